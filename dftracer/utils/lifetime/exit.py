"""What becomes of tasks when the interpreter exits; see ``docs/lifecycle.md``."""

from __future__ import annotations

import atexit
import logging
import os
import threading

from dftracer.utils import _native

_log = logging.getLogger("dftracer.utils")

_is_in_a_hurry = False


def hurry_at_exit() -> None:
    """Do not wait for tasks when the interpreter exits: the user has asked twice for the end."""
    global _is_in_a_hurry
    _is_in_a_hurry = True


def exit_patience_s() -> float:
    """How many seconds the end waits for what does not end: of the interpreter, and of others."""
    if _is_in_a_hurry:
        return 0.0
    try:
        return float(os.environ.get("DFTRACER_EXIT_PATIENCE_S", "3"))
    except ValueError:
        return 3.0


def _shut_down_at_exit() -> None:
    given_up, interruption = _native.shutdown_all(exit_patience_s())
    if given_up:
        reason = "none had ended for a while (DFTRACER_EXIT_PATIENCE_S)"
        if interruption is not None:
            reason = f"{type(interruption).__name__} ended the waiting"
        _log.warning(
            "%d task(s) were given up at interpreter exit, because %s: %s",
            len(given_up),
            reason,
            ", ".join(given_up[:10]),
        )
    if interruption is not None:
        raise interruption


def register_at_exit() -> None:
    """Have all runtimes shut down when the interpreter exits. To be called once."""
    # Earlier than `atexit`, whose callbacks run when threads can no longer be waited for safely:
    # our threads must be gone before the interpreter is.
    threading._register_atexit(_shut_down_at_exit)  # type: ignore[attr-defined]
    # If a signal has kept it from being called. A function of Python's could be interrupted once
    # more before its first line.
    atexit.register(_native.shutdown_all, 0.0)
