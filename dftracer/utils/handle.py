"""What :meth:`TaskHandle.cancel <dftracer.utils.TaskHandle.cancel>` returns."""

from enum import IntEnum


class Cancellation(IntEnum):
    """What a :meth:`TaskHandle.cancel <dftracer.utils.TaskHandle.cancel>` has done.

    Only :attr:`TOO_LATE` is false, so ``if handle.cancel(): ...`` reads as it should.
    """

    TOO_LATE = 0
    """Nothing changed: the task has ended, or runs where it cannot be stopped."""
    REQUESTED = 1
    """The task was asked to stop and will end, as cancelled unless it finishes before."""
    DEQUEUED = 2
    """The task had not begun, never will, and has ended as cancelled."""
