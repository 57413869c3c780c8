"""The runtime that a process shares when nobody names another."""

from __future__ import annotations

import os
import threading

from dftracer.utils.runtime import Runtime
from dftracer.utils.tracing import ENVIRONMENT

_lock = threading.Lock()
_default: Runtime | None = None


def get_default_runtime() -> Runtime:
    """Return the process-wide runtime; the first call makes it, with default sizes.

    In the environment ``DFTRACER_THREADS`` gives it another size, and ``DFTRACER_TRACE`` says where
    to write a trace.

    Raises
    ------
    ValueError
        If one of these cannot be used.
    """
    global _default
    with _lock:
        if _default is None:
            trace = os.environ.get(ENVIRONMENT) or None
            _default = Runtime(threads_of_environment(), trace=trace)
        return _default


def threads_of_environment() -> int:
    """Return the size that ``DFTRACER_THREADS`` gives to runtimes without one; 0 if it is not set.

    Raises
    ------
    ValueError
        If it is no number, or a negative one.
    """
    text = os.environ.get("DFTRACER_THREADS") or "0"
    if not text.isdecimal():
        raise ValueError(f"DFTRACER_THREADS in the environment must be a number, not {text!r}")
    return int(text)


def peek_default_runtime() -> Runtime | None:
    """Return the process-wide runtime if there is one; never make it."""
    return _default


def set_default_runtime(runtime: Runtime | None) -> None:
    """Make ``runtime`` the process-wide one, or forget it with ``None``.

    The previous one is not shut down, and can still be used.

    Raises
    ------
    TypeError
        If ``runtime`` is neither a :class:`Runtime` nor ``None``.
    """
    global _default
    allowed = (Runtime, type(None))
    if not isinstance(runtime, allowed):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"runtime must be a Runtime or None, not {type(runtime).__name__}")
    with _lock:
        _default = runtime


def _forget_in_child() -> None:
    """After ``fork()`` the parent's runtime has no threads here, and its lock may be held."""
    global _default, _lock
    _lock = threading.Lock()
    _default = None


os.register_at_fork(after_in_child=_forget_in_child)
