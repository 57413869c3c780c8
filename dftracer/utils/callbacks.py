"""What becomes of the errors of functions that were given to us to be called."""

from __future__ import annotations

import logging
from typing import Any

_log = logging.getLogger("dftracer.utils")


def log_failure(callback: Any, error: BaseException) -> None:
    """Log that ``callback`` has raised ``error``: it stops neither the task nor its worker."""
    _log.error("callback %r raised", callback, exc_info=error)
