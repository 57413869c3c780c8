"""What a run of the event loop has left undone that an interrupt has ended.

``KeyboardInterrupt`` may be raised between any two steps, also between the end of a future and what
follows from it. What has been lost then is found by looking at all that is unfinished, when the
engine is first used in another run of its loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Protocol, cast

from dftracer.asyncflow.engine.component import Component, is_left
from dftracer.asyncflow.engine.interfaces import Place
from dftracer.asyncflow.engine.launcher import Bodies
from dftracer.asyncflow.engine.state import WorkflowState

_has_ended = asyncio.Future[Any].done
"""Not a component's own, which may have a result fetched."""


class Scheduler(Protocol):
    """What is asked of the scheduler."""

    state: WorkflowState
    bodies: Bodies
    overrides: Any

    def conclude(self, component: Component[Any]) -> None: ...
    def foreign_done(self, future: asyncio.Future[Any]) -> None: ...
    def enqueue(self, component: Component[Any]) -> None: ...
    def settle(self, component: Any, result: Any = None, *, error: Any = None) -> None: ...
    def has_ended(self, future: asyncio.Future[Any]) -> bool: ...


def recover(scheduler: Scheduler, waiting: Iterable[Component[Any]]) -> None:
    """Go on with all that is unfinished; ``waiting`` are those that will be launched anyway."""
    state = scheduler.state
    unfinished = state.unfinished
    for future in [future for future in state.foreign if future.done()]:
        scheduler.foreign_done(future)
    if not unfinished:
        return
    for component in list(unfinished.values()):
        if _has_ended(component) or is_left(component):
            scheduler.conclude(component)
    if scheduler.overrides is not None:
        return  # methods of a subclass may have left something unfinished on purpose
    known = {component.number for component in waiting}
    for component in list(unfinished.values()):
        number = component.number
        if number not in unfinished or component.attempt:
            continue  # an attempt that follows another waits for its time
        if component.place is None:
            if number not in known and all(map(scheduler.has_ended, component.dependencies)):
                _launch(scheduler, component)
        elif (
            component.place is Place.LOOP
            and number not in scheduler.bodies
            and not component.body_released
        ):
            message = f"the body of {component.uid} '{component.name}' was cut off by an interrupt"
            scheduler.settle(component, error=RuntimeError(message))


def _launch(scheduler: Scheduler, component: Component[Any]) -> None:
    """Launch a component that waits for nothing any more and does not know it."""
    graph, own = scheduler.state.graph, cast("Any", scheduler)
    for future in component.dependencies:
        if isinstance(future, Component) and future.engine is own and future.number in graph:
            scheduler.conclude(future)
    if component.number in scheduler.state.unfinished and component.place is None:
        component.is_node = component.number in graph
        component.may_have_failed = True
        scheduler.enqueue(component)
