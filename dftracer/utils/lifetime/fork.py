"""What becomes of runtimes when the process forks; see ``docs/lifecycle.md``."""

from __future__ import annotations

import os
import threading

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


def _after_fork_in_child() -> None:
    _native.after_fork_in_child()
    main = threading.main_thread()
    # If a task forked, its worker's thread is the main one now. Before CPython 3.13, `threading`
    # takes for granted that the main thread has this lock, and fails at exit if it was not made by
    # `threading` itself.
    if getattr(main, "_tstate_lock", main) is None:
        main._set_tstate_lock()  # type: ignore[attr-defined]


def register_at_fork() -> None:
    """Have runtimes make ready for each ``fork()``. To be called once."""
    os.register_at_fork(
        before=_native.before_fork,
        after_in_parent=_native.after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
