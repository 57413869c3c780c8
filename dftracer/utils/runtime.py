"""The :class:`Runtime`: native threads that run tasks."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from dftracer.utils import _native

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


class Runtime(_native.Runtime):
    """Runs callables and coroutine functions on threads that Rust owns.

    Parameters
    ----------
    threads:
        Compute threads for native work. 0 means as many CPUs as this process may use: its
        affinity and its cgroup's quota, not the number in the box.
    io_threads:
        Threads for native I/O, by which child processes are started and awaited. 0 as above.
    python_threads:
        The most threads that run plain callables, and, apart from those, the most event loops
        that run coroutine functions. 0 means ``min(32, threads)``. They are started one by one,
        when there is work for them.

    Raises
    ------
    ValueError
        If a size is negative.

    Notes
    -----
    Leaving the ``with`` block, or :meth:`shutdown`, waits for every task. A runtime that nobody
    shuts down finishes its tasks at interpreter exit. After ``fork()`` the copy in the child
    process refuses work with a :class:`RuntimeError`.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()


# Earlier than `atexit`, whose callbacks run when threads can no longer be waited for safely: our
# threads must be gone before the interpreter is.
threading._register_atexit(_native.shutdown_all)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_native.after_fork_in_child)
