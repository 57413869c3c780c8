"""What tests of handles share."""

from typing import Any, TypeVar

from dftracer.utils import TaskHandle, as_completed

GUARD_S = 30
"""How long a test waits for what must come."""

H = TypeVar("H", bound=TaskHandle[Any])


def ended(handle: H) -> H:
    """Wait until the task has ended, whichever way, and return its handle."""
    return next(iter(as_completed([handle], GUARD_S)))  # type: ignore[return-value]
