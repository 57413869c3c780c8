"""How an engine's ``async with`` block is left: what is waited for, and what is said of it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol
from weakref import WeakValueDictionary

from dftracer.asyncflow.engine.component import Component
from dftracer.asyncflow.engine.scope import ScopeVariable, owner_in

_SILENCE_S = 10.0
"""How long calls that have not even begun are waited for without a word."""


class Scheduler(Protocol):
    """What is asked of the scheduler."""

    loop: asyncio.AbstractEventLoop
    uid: str
    log: logging.Logger
    state: Any
    scope: ScopeVariable
    awaited_ends: list[Ends]


class Ends:
    """Waits until so many components have ended, whichever they are."""

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop) -> None:
        self._left = count
        self.reached: asyncio.Future[None] = loop.create_future()

    def count(self, ended: int) -> None:
        """Count ends."""
        self._left -= ended
        if self._left <= 0 and not self.reached.done():
            self.reached.set_result(None)


async def wait_for_calls(scheduler: Scheduler) -> None:
    """Wait until all calls have ended but services, and the blocks that this is called in.

    No callback is added to any of them: one would have results fetched that nobody wants.
    """
    callers = _callers(scheduler)
    timeout: float | None = _SILENCE_S
    while pending := _pending(scheduler, callers):
        # All of them must end before this is over, so not to look sooner again is no loss.
        ends = Ends(len(pending), scheduler.loop)
        scheduler.awaited_ends.append(ends)
        try:
            await asyncio.wait([ends.reached], timeout=timeout)
        finally:
            scheduler.awaited_ends.remove(ends)
        if timeout is not None and not ends.reached.done():
            timeout = None
            _say_what_is_waited_for(scheduler, _pending(scheduler, callers))


def _pending(scheduler: Scheduler, callers: set[int]) -> list[Component[Any]]:
    return [
        component
        for number, component in scheduler.state.unfinished.items()
        if number not in callers and not component.definition.service
    ]


def _callers(scheduler: Scheduler) -> set[int]:
    """Return the numbers of the blocks in whose bodies this is called."""
    component = owner_in(scheduler.scope.get())
    numbers: set[int] = set()
    while component is not None:
        numbers.add(component.number)
        component = scheduler.state.unfinished.get(component.owner)
    return numbers


def _say_what_is_waited_for(scheduler: Scheduler, pending: list[Component[Any]]) -> None:
    """Say it aloud if nothing runs that could bring an end, as where a service is never ready."""
    if not pending or any(component.place is not None for component in pending):
        return
    names = ", ".join(repr(component) for component in pending[:5])
    scheduler.log.warning(
        "engine '%s' is not left yet: %d call(s) have not begun: %s",
        scheduler.uid,
        len(pending),
        names,
    )


class Unseen:
    """The failures of an engine's calls that nobody has awaited.

    asyncio logs each when its future dies. Within ``async with`` that is done for the first alone;
    the others are counted, and the end of the block logs how many there were.
    """

    def __init__(self) -> None:
        self.is_counting = False
        """Whether the block was entered and is not left."""
        self.is_leaving = False
        """Whether the end of the block is near, where all are logged."""
        self._alive: WeakValueDictionary[int, Component[Any]] = WeakValueDictionary()
        """Those that have failed, seen or not."""
        self._dead = 0
        self._first: tuple[int, BaseException] | None = None
        """Of the dead ones: the number and the error of the one that was called first."""

    def add(self, component: Component[Any]) -> None:
        """Note that a call has failed."""
        self._alive[component.number] = component

    def take(self, complaint: dict[str, Any]) -> bool:
        """Count a failure whose future dies unseen; false if asyncio shall tell of it."""
        component, error = complaint.get("future"), complaint.get("exception")
        if not self.is_counting or component is None or error is None:
            return False
        self._dead += 1
        if self._first is None or component.number < self._first[0]:
            self._first = (component.number, error)
        return self.is_leaving or self._dead > 1

    def report(self, log: logging.Logger, uid: str) -> None:
        """Log how many there were, with the first traceback."""
        self.is_counting = self.is_leaving = False
        # A copy: they may die meanwhile.
        unseen = [each for each in list(self._alive.values()) if each._log_traceback]
        firsts = [(each.number, each._exception) for each in unseen]
        for each in unseen:
            each._log_traceback = False
        firsts += [self._first] if self._first is not None else []
        count, self._dead, self._first = self._dead + len(unseen), 0, None
        if count:
            _, error = min(firsts, key=lambda first: first[0])
            log.error(
                "%d call(s) of engine '%s' have failed that nobody awaited; the first:",
                count,
                uid,
                exc_info=error,
            )
