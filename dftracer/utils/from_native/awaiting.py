"""``await handle``, in any asyncio event loop.

Each loop gets one mailbox, whose descriptor it watches: however many awaited tasks end at a time,
the loop is woken once. Nothing but the loop holds its mailbox, which is dropped when the loop is
closed; and a task that is awaited holds a number, not the loop.
"""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import Context
from typing import Any

from dftracer.utils._native import Blocked, Mailbox, TaskHandle, Waiting, running_task
from dftracer.utils.current import current_task

_DELIVERIES_PER_TURN = 1_000

_numbers = itertools.count()


def iterate(handle: TaskHandle[Any]) -> Generator[Any, Any, Any]:
    """Return what ``handle.__await__()`` returns: the steps of waiting in the running loop."""
    return _outcome(handle).__await__()


async def _outcome(handle: TaskHandle[Any]) -> Any:
    if not handle.done():
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        arrivals, number = _arrivals_of(loop), next(_numbers)
        arrivals.expected[number] = ended
        handle._deliver_to(arrivals.mailbox, number)
        try:
            if running_task() is not None:  # a plain body, in an event loop of its own
                with arrivals.block(), Waiting([handle]):
                    await ended
            elif current_task() is None:
                await ended
            else:  # `wait_all` of others must know that this task waits
                with Waiting([handle]):
                    await ended
        except asyncio.CancelledError:
            # Awaiting an asyncio task does the same: a wait that is cancelled cancels the task.
            handle.cancel()
            raise
        finally:
            if not ended.done() or ended.cancelled():
                arrivals.expected.pop(number, None)
                handle._withdraw(number)
    state, value = handle._report()
    if state == "cancelled":
        raise asyncio.CancelledError(f"task {handle.task_id} '{handle.name}' was cancelled")
    return handle.get() if state == "failed" else value


class _Arrivals:
    """The awaited tasks of one event loop."""

    def __init__(self) -> None:
        self.mailbox = Mailbox()
        self.expected: dict[int, asyncio.Future[None]] = {}
        """The futures of those who wait, by the numbers that are posted when the tasks end."""

        self._blocked: Blocked | None = None
        self._awaiting = 0

    @contextmanager
    def block(self) -> Generator[None, None, None]:
        """Have another worker stand in for this one, once however much is awaited in its loop."""
        if self._blocked is None:
            blocked = Blocked()
            blocked.__enter__()
            self._blocked = blocked
        self._awaiting += 1
        try:
            yield
        finally:
            self._awaiting -= 1
            if not self._awaiting:
                self._unblock()

    def _unblock(self) -> None:
        if self._blocked is not None:
            self._blocked.__exit__(None, None, None)
            self._blocked = None

    def deliver(self) -> None:
        for number, _state, _value in self.mailbox.drain(_DELIVERIES_PER_TURN):
            ended = self.expected.pop(number, None)
            if ended is not None and not ended.done():
                ended.set_result(None)


_of_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[_Arrivals]] = (
    weakref.WeakKeyDictionary()
)
"""Weak in both, since the arrivals lead to the loop: only the loop holds them, as a reader."""


def _arrivals_of(loop: asyncio.AbstractEventLoop) -> _Arrivals:
    known = _of_loops.get(loop)
    arrivals = known() if known is not None else None
    if arrivals is None:
        arrivals = _Arrivals()
        # Not in the context of the first to await, which the loop would keep with the reader.
        Context().run(loop.add_reader, arrivals.mailbox.fileno(), arrivals.deliver)
        _of_loops[loop] = weakref.ref(arrivals)
    return arrivals
