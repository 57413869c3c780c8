"""What becomes of runtimes when the process forks; see ``docs/lifecycle.md``."""

from __future__ import annotations

import os
import threading
from typing import Any

from dftracer.utils import _native, current, errors, handle, tracing
from dftracer.utils.failures import copies
from dftracer.utils.from_native import adoption, awaiting, coroutines, logs

IMPORTED_BY_NATIVE_CODE = (
    adoption,
    awaiting,
    copies,
    coroutines,
    current,
    errors,
    handle,
    logs,
    tracing,
)
"""Native code imports these when it needs them. They are imported here so that no thread is in the
middle of that, holding the lock of an import, when the process forks."""


def _lock_of_foreign_threads() -> Any:
    """Return the lock that CPython takes, from 3.13 on, when what it knows of a thread goes that
    ``threading`` has not started, such as ours; ``None`` if there is none.

    It is not made anew in the child of a fork. If another thread has it at that moment, each such
    thread in the child waits for it for ever, and so does the fork, which drops what others have
    left.
    """
    kind: Any = getattr(threading, "_DeleteDummyThreadOnDel", None)
    defaults: tuple[Any, ...] = getattr(getattr(kind, "__del__", None), "__defaults__", None) or ()
    return next((each for each in defaults if hasattr(each, "acquire")), None)


_foreign_threads = _lock_of_foreign_threads()

_held: list[Any] = []
"""The lock, from before a fork to after it."""


def _before_fork() -> None:
    if _foreign_threads is not None:
        _foreign_threads.acquire()
        _held.append(_foreign_threads)
    _native.before_fork()


def _release() -> None:
    if _held:
        _held.pop().release()


def _after_fork_in_parent() -> None:
    _native.after_fork_in_parent()
    _release()


def _after_fork_in_child() -> None:
    _native.after_fork_in_child()
    _release()
    main = threading.main_thread()
    # If a task forked, its worker's thread is the main one now. Before CPython 3.13, `threading`
    # takes for granted that the main thread has this lock, and fails at exit if it was not made by
    # `threading` itself.
    if getattr(main, "_tstate_lock", main) is None:
        main._set_tstate_lock()  # type: ignore[attr-defined]


def register_at_fork() -> None:
    """Have runtimes make ready for each ``fork()``. To be called once."""
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
