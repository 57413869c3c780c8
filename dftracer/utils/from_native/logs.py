"""What the runtime logs of bodies and callbacks that misbehave."""

from __future__ import annotations

import logging
from typing import Any

_log = logging.getLogger("dftracer.utils")


def log_failure(callback: Any, error: BaseException) -> None:
    """Log that ``callback`` has raised ``error``: it stops neither the task nor its worker."""
    _log.error("callback %r raised", callback, exc_info=error)


def log_given_up(name: str) -> None:
    """Warn that a body runs on though its task has ended. Called once for a runtime."""
    _log.warning(
        "task %r was cancelled or has run out of time, and its body runs on until it returns; "
        "another worker stands in for its thread meanwhile. This is said once, and there may be "
        "more; see 'Cancellation' in docs/lifecycle.md",
        name,
    )


def let_pending_raise() -> None:
    """Run Python code, so that an exception that was sent to this thread is raised."""
