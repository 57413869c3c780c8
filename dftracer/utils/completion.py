"""Results as they come."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from dftracer.utils._native import Blocked, Waiting
from dftracer.utils.current import current_task

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
        If some have not; the message says how many.
    TypeError
        If one is an asyncio future, as calls on an engine are: its loop could not go on while this
        waits.
    """
    pending = list(dict.fromkeys(handles))
    for handle in pending:
        if asyncio.isfuture(handle):
            raise TypeError(
                "dftracer.utils.as_completed() takes the handles of a runtime, not asyncio futures "
                f"such as {handle!r}, whose event loop could not go on while it waits: use "
                "asyncio.as_completed()"
            )
    deadline = None if timeout is None else time.monotonic() + timeout
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for handle in pending:
        handle.add_done_callback(ended.put)
    # Inside a task, `wait_all` of others must know what this one waits for. Elsewhere handles that
    # were yielded are not held.
    waited_for = set(pending) if current_task() is not None else None
    return _yield_ended(ended, len(pending), deadline, waited_for)


def _yield_ended(
    ended: queue.SimpleQueue[Any],
    count: int,
    deadline: float | None,
    waited_for: set[TaskHandle[Any]] | None,
) -> Iterator[TaskHandle[Any]]:
    for left in range(count, 0, -1):
        handle = _next_ended(ended, deadline, waited_for)
        if handle is None:
            raise TimeoutError(f"{left} of {count} tasks have not ended in time")
        if waited_for is not None:
            waited_for.discard(handle)
        yield handle


def _next_ended(
    ended: queue.SimpleQueue[TaskHandle[Any]],
    deadline: float | None,
    waited_for: set[TaskHandle[Any]] | None,
) -> TaskHandle[Any] | None:
    with contextlib.suppress(queue.Empty):
        return ended.get_nowait()
    timeout = None
    if deadline is not None:
        timeout = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
    # Inside a task, its lane may start a spare worker meanwhile: for one of those waited for.
    with Blocked(), Waiting(list(waited_for or ())):
        try:
            return ended.get(timeout=timeout)
        except queue.Empty:
            return None
