"""Results as they come."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from dftracer.utils._native import TaskHandle

T = TypeVar("T")


def as_completed(
    handles: Iterable[TaskHandle[T]], timeout: float | None = None
) -> Iterator[TaskHandle[T]]:
    """Yield each handle once, as its task ends, whichever way; those that have ended come first.

    Parameters
    ----------
    timeout:
        Seconds from this call in which all must have ended.

    Raises
    ------
    TimeoutError
        If some have not; it tells how many.
    """
    pending = list(dict.fromkeys(handles))
    deadline = None if timeout is None else time.monotonic() + timeout
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for handle in pending:
        handle.add_done_callback(ended.put)
    return _yield_ended(ended, len(pending), deadline)


def _yield_ended(
    ended: queue.SimpleQueue[Any], count: int, deadline: float | None
) -> Iterator[TaskHandle[Any]]:
    for left in range(count, 0, -1):
        try:
            if deadline is None:
                yield ended.get()
            else:
                yield ended.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise TimeoutError(f"{left} of {count} tasks have not ended in time") from None
