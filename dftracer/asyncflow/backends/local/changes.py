"""What is new of work items, on their way from any thread to the event loop.

Executors report in whatever thread, one item at a time. The event loop is woken once for all that
changes before it gets to run.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from dftracer.asyncflow.backends.local.work import WorkItem


class Changes:
    """A queue that an event loop reads for somebody whom it does not hold.

    Parameters
    ----------
    loop:
        What calls ``deliver``.
    deliver:
        A bound method that is called when there is something to take, as long as its object lives.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[], object]) -> None:
        self._loop = loop
        self._deliver = weakref.WeakMethod(deliver)
        self._queue: deque[tuple[WorkItem, bool]] = deque()
        self._is_awake = False
        """Whether the event loop will read the queue without being woken again."""

    def add_running(self, item: WorkItem) -> None:
        """Note that the body of an item begins. Called in any thread."""
        self._add(item, False)

    def add_end(self, item: WorkItem) -> None:
        """Note that an item has its outcome. Called in any thread, once for each."""
        self._add(item, True)

    def _add(self, item: WorkItem, has_ended: bool) -> None:
        self._queue.append((item, has_ended))
        if not self._is_awake:
            self._wake()

    def _wake(self) -> None:
        self._is_awake = True
        with contextlib.suppress(RuntimeError):  # closed without a shutdown: nobody waits
            self._loop.call_soon_threadsafe(self._call)

    def _call(self) -> None:
        # Before the queue is read, so that what comes after that wakes the loop again.
        self._is_awake = False
        deliver = self._deliver()
        if deliver is not None:
            deliver()

    def take(self, most: int) -> list[tuple[WorkItem, bool]]:
        """Return items that have changed, and of each whether it has ended; else it runs.

        What is beyond ``most`` follows in another turn of the loop.
        """
        taken = [self._queue.popleft() for _ in range(min(len(self._queue), most))]
        if self._queue:
            self._wake()
        return taken
