"""What can go wrong with a task or a runtime, beyond what a body itself raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dftracer.utils._native import (
    ForkedRuntimeError,
    RuntimeShutdownError,
    SystemLimitError,
    TooManyBlockedError,
    WaitRefusedError,
)

if TYPE_CHECKING:
    from dftracer.utils._native import ProcessResult

__all__ = [
    "ForkedRuntimeError",
    "RuntimeShutdownError",
    "SystemLimitError",
    "TaskTimeoutError",
    "TooManyBlockedError",
    "WaitRefusedError",
]


class TaskTimeoutError(TimeoutError):
    """A task has run longer than it may, and was asked to stop.

    Attributes
    ----------
    result : ProcessResult | None
        Of a child process that ran into its own timeout: how it ended and what it had written.
    """

    result: ProcessResult | None = None
