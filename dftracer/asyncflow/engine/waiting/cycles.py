"""Blocks that wait for each other in a circle, which none of them could ever leave.

What a body in the event loop waits for is asked of asyncio: see ``waits.py``. What is not known
there is taken for something that may still end. From that follows:

- A future that waits for several is stuck only if all of them are. So nobody in a circle of those
  that are stuck can go on, unless a timeout interrupts it.
- A circle in which somebody could go on by another way is no error, and is logged.

Nothing of this is on the way of a task: a timer looks while there are bodies in the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextvars import Context
from time import monotonic
from typing import Any, Protocol

from dftracer.asyncflow.engine.component import Component
from dftracer.asyncflow.engine.settlement import label_of
from dftracer.asyncflow.engine.waiting.waits import awaited_by, body_of, has_a_limit
from dftracer.asyncflow.errors import CircularWaitError

_INTERVAL_S = 5.0
"""The time from one look to the next. A circle is logged when it is seen in two of them."""
_SHARE = 1_000
"""Looks take no more than this part of the time of the event loop."""
_MOST = 100
"""How many circles are dealt with in one look."""
_NAMED = 10
"""How many members of a circle a message names."""

_Future = asyncio.Future[Any]
_Waits = Mapping[_Future, Sequence[_Future]]
"""Futures, each with those that it waits for."""


class Scheduler(Protocol):
    """What is asked of the scheduler."""

    loop: asyncio.AbstractEventLoop
    uid: str
    log: logging.Logger
    bodies: Any
    state: Any


class Cycles:
    """Looks for circles among the bodies of an engine."""

    def __init__(self, engine: Scheduler) -> None:
        self._engine = weakref.ref(engine)  # the loop holds this until the next look
        self.is_watching = False
        """Whether the next look is due."""
        self._seen: set[frozenset[str]] = set()
        """The circles of the last look that were no error."""
        self._said: set[frozenset[str]] = set()

    def watch(self) -> None:
        """Look from now on, until no body runs."""
        if not self.is_watching:
            self._look_in(_INTERVAL_S)

    def _look_in(self, seconds: float) -> None:
        engine = self._engine()
        if engine is not None:
            self.is_watching = True
            engine.loop.call_later(seconds, self._look, context=Context())

    def _look(self) -> None:
        engine = self._engine()
        self.is_watching = False
        if engine is None or not engine.bodies:
            self._seen.clear()
            self._said.clear()
            return
        began_at = monotonic()
        try:
            self._end_circles(engine)
        finally:
            self._look_in(max(_INTERVAL_S, (monotonic() - began_at) * _SHARE))

    def _end_circles(self, engine: Scheduler) -> None:
        bodies = [engine.state.unfinished[n] for n in engine.bodies if n in engine.state.unfinished]
        waits = _waits_behind(bodies)
        stuck = _stuck(waits)
        texts: dict[Component[Any], str] = {}
        for circle in _circles({future: waits[future] for future in stuck}):
            for member in circle:
                if isinstance(member, Component) and body_of(member) is not None:
                    texts.setdefault(member, _text_of(circle))
        # Those that are only waited for in a circle get the errors from these.
        for member, text in texts.items():
            error = CircularWaitError(
                f"{member.name!r} can never end, as there is a circle of calls that wait for each "
                f"other: {text}: let one of them end before what it waits for begins"
            )
            member.engine.settle(member, error=error)
        rest = {future: waits[future] for future in waits if future not in texts}
        self._say_what_waits(engine, list(_circles(rest)))

    def _say_what_waits(self, engine: Scheduler, circles: list[list[_Future]]) -> None:
        seen = {frozenset(map(_label_of, circle)): circle for circle in circles}
        for key in (seen.keys() & self._seen) - self._said:
            engine.log.warning(
                "engine '%s': a circle of calls wait for each other: %s; they can only go on if a "
                "timeout or something else ends this",
                engine.uid,
                _text_of(seen[key]),
            )
            self._said.add(key)
        self._seen = set(seen)
        self._said &= self._seen


def _waits_behind(roots: Sequence[_Future]) -> dict[_Future, Sequence[_Future]]:
    """Return what these wait for, what that waits for, and so on."""
    waits: dict[_Future, Sequence[_Future]] = {}
    to_do = list(roots)
    while to_do:
        future = to_do.pop()
        if future not in waits:
            waits[future] = awaited_by(future)
            to_do += waits[future]
    return waits


def _stuck(waits: _Waits) -> set[_Future]:
    """Return those that can never end, as all that they wait for cannot."""
    stuck = _without(set(waits), waits, [future for future in waits if not waits[future]])
    # Only now, since that takes longer to find out, and there are few.
    return _without(stuck, waits, [future for future in stuck if has_a_limit(future)])


def _without(futures: set[_Future], waits: _Waits, ends: Sequence[_Future]) -> set[_Future]:
    """Return those of ``futures`` that can not end though these do."""
    waiting: dict[_Future, list[_Future]] = {}
    for future in futures:
        for awaited in waits[future]:
            waiting.setdefault(awaited, []).append(future)
    may_end: set[_Future] = set()
    to_do = list(ends)
    while to_do:
        future = to_do.pop()
        if future not in may_end:
            may_end.add(future)
            to_do += waiting.get(future, ())
    return futures - may_end


def _circles(waits: _Waits) -> Iterator[list[_Future]]:
    """Give circles, each as those that wait, in turn; at least one if there are any."""
    found = 0
    left: set[_Future] = set()
    for root in waits:
        if root in left:
            continue
        path, places, open_ = [root], {root: 0}, [iter(waits[root])]
        while path:
            for awaited in open_[-1]:
                if awaited in places:
                    yield path[places[awaited] :]
                    found += 1
                    if found == _MOST:
                        return
                elif awaited in waits and awaited not in left:
                    places[awaited] = len(path)
                    path.append(awaited)
                    open_.append(iter(waits[awaited]))
                    break
            else:
                open_.pop()
                left.add(path[-1])
                del places[path.pop()]


def _label_of(future: _Future) -> str:
    if isinstance(future, asyncio.Task):
        return f"asyncio's task '{future.get_name()}'"
    return label_of(future)


def _text_of(circle: Sequence[_Future]) -> str:
    """Say who waits for whom, without what is between the calls."""
    members = [future for future in circle if isinstance(future, Component)]
    labels = list(map(_label_of, members or circle))
    if len(labels) == 1:
        return f"{labels[0]} waits for itself"
    following = [*labels[1:], labels[0]]
    links = [f"{label} waits for {next_}" for label, next_ in zip(labels, following, strict=True)]
    if len(links) > _NAMED:
        links[_NAMED - 1 : -1] = [f"... ({len(links) - _NAMED} more)"]
    return ", ".join(links)
