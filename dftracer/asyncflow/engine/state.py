"""The state of a workflow: what has not ended, what waits for what, and what follows from an end.

Events come in, decisions go out as data: the scheduler carries them out. Nothing here knows event
loops, backends or time.

======================  ===========================================================================
an event                its decisions
======================  ===========================================================================
:meth:`add`             whether the component is ready
:meth:`end`             those that are ready now, and those that never will be
:meth:`end_all`         the same for many that have ended well
:meth:`cancel`          the same
======================  ===========================================================================

A component that waits for another is a node of the graph, and so is what it waits for; all others
need none. The graph, in Rust, knows numbers alone.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from dftracer.asyncflow.engine.arguments import LEAVES, Inputs
from dftracer.asyncflow.engine.component import Component, Task, calls_among
from dftracer.asyncflow.observe.counts import Counts
from dftracer.asyncflow.observe.history import HISTORY_SIZE, History, Tie
from dftracer.utils.primitives import Graph, track_all

_Future = asyncio.Future[Any]


class Decisions(NamedTuple):
    """What follows from an event."""

    ready: list[Component[Any]]
    """They have nothing left to wait for."""
    doomed: list[Component[Any]]
    """What they wait for has failed or was cancelled, so that they have ended, too."""


NOTHING = Decisions([], [])
"""What follows from most ends."""

_FEW = 16
"""Up to so many arguments are compared with each other."""


class WorkflowState:
    """All components of an engine that have not ended, and what is remembered of the others."""

    def __init__(self) -> None:
        self.unfinished: dict[int, Component[Any]] = {}
        self.count = 0
        """How many numbers were given to components and other futures."""
        self.graph = Graph()
        self.members: dict[int, dict[int, Component[Any]]] = {}
        """What was called in the body of an unfinished component, by its number."""
        self.foreign: dict[_Future, int] = {}
        """The nodes of unfinished futures that are no components of this engine."""
        self.in_flight: set[Component[Any]] = set()
        """Those with a backend that has a window, and that somebody waits for."""
        self.history = History()
        self.counts = Counts()

    # --- before the end -------------------------------------------------------------------------

    def add(self, component: Component[Any], waits_for: list[int]) -> None:
        """Make a component a node that waits for others."""
        component.is_node = True
        self.graph.add(component.number, waits_for)

    def add_member(self, owner: Component[Any], component: Component[Any]) -> None:
        """Note in whose body a component was called."""
        component.owner = owner.number
        tally, known = component.tally, owner.tally.members
        component.tally = known.get(tally) or self.counts.inside(owner.tally, tally)
        self.members.setdefault(owner.number, {})[component.number] = component

    def nodes_of(self, futures: Iterable[_Future]) -> list[int]:
        """Return the nodes of those futures that have not ended, of foreign ones that are known."""
        nodes: list[int] = []
        for future in futures:
            if isinstance(future, Component) and future.number in self.unfinished:
                # A component of another engine may have the same number.
                if self.unfinished[future.number] is not future:
                    continue
                if not future.is_node:
                    self.add(future, [])
                nodes.append(future.number)
        return nodes

    def tasks_among(self, args: tuple[Any, ...]) -> Inputs | None:
        """Return what a call depends on, if all that is in its arguments are unfinished tasks of
        this engine, each another one, besides numbers and texts; none otherwise.

        Tasks that it has made nodes of until then stay nodes.
        """
        if len(args) > _FEW:
            return None
        nodes: list[int] = []
        tasks: list[Task[Any]] = []
        for value in args:
            if isinstance(value, Task):
                tasks.append(value)  # pyright: ignore[reportUnknownArgumentType]
                number = value.number
                if number in nodes or self.unfinished.get(number) is not value:
                    return None
                nodes.append(number)
                if not value.is_node:
                    value.is_node = True
                    self.graph.add(number, [])
            elif type(value) not in LEAVES:
                return None
        found: Sequence[Task[Any]] = tasks
        if len(tasks) == len(args):
            found = args  # the same object, by which such a call is known at its launch
        return Inputs(found, found, nodes, nodes, False, None, {})

    def add_foreign(self, future: _Future) -> int:
        """Return the node of an unfinished future that is no component of this engine."""
        number = self.foreign.get(future)
        if number is None:
            self.count = number = self.count + 1
            self.foreign[future] = number
            self.graph.add(number, [])
        return number

    # --- the end --------------------------------------------------------------------------------

    def end(self, component: Component[Any], done: bool) -> Decisions:
        """Take the end of a component that waits for nothing, well or with an error.

        Raises
        ------
        asyncio.InvalidStateError
            If it waits for others.
        """
        try:
            return self._decided(self.graph.finish(component.number, done=done))
        except ValueError:
            raise asyncio.InvalidStateError(
                f"{component!r} cannot be ended by hand while it waits for others: cancel it, or "
                "wait for them"
            ) from None

    def cancel(self, component: Component[Any]) -> Decisions:
        """Take the cancellation of a component, whether it waits or not."""
        return self._decided(self.graph.cancel(component.number)) if component.is_node else NOTHING

    def end_foreign(self, future: _Future) -> Decisions:
        """Take the end of another future. How it has ended is seen at the launch of dependents."""
        return self._decided(self.graph.finish(self.foreign.pop(future), done=True))

    def end_all(self, components: list[Component[Any]], now: float) -> Decisions:
        """Take the ends of components that had been launched and have ended well.

        They need to have no files, description or attempts, and are not among the unfinished any
        more.
        """
        track_all(components)
        history, ties = self.history.ended, self.history.ties
        ref: Callable[[Component[Any]], weakref.ref[Any]] = weakref.ref
        nodes: list[int] = []
        members, in_flight = self.members, self.in_flight
        for component in components:
            tally, number = component.tally, component.number
            seconds = now - component.launched_at
            tally.done += 1
            tally.seconds += seconds
            history.append((component.definition, number, True, ref(component)))
            if number <= HISTORY_SIZE:
                ties[number] = Tie(component.owner, component.sources, seconds)
            if component.is_node:
                nodes.append(number)
                in_flight.discard(component)
            if members and component.owner in members:
                members[component.owner].pop(number, None)
        if not nodes:
            return NOTHING
        ready, others = self.graph.finish_all(nodes)
        if not ready and not others:
            return NOTHING
        decisions = Decisions([], [])
        for number in ready:
            decisions.ready.append(self.unfinished[number])
        for number, _ in others:
            decisions.doomed.append(self.unfinished[number])
        return decisions

    def forget(self, component: Component[Any], succeeded: bool | None, now: float) -> None:
        """Remember a component that has ended, and keep none of what it was called with.

        It has ``succeeded``, failed, or (``None``) was cancelled.
        """
        number = component.number
        del self.unfinished[number]
        track_all([component])
        if component.is_node:
            self.in_flight.discard(component)
        tally, launched_at = component.tally, component.launched_at
        seconds = now - launched_at if launched_at else 0.0
        if succeeded:
            tally.done += 1
            tally.seconds += seconds
        elif succeeded is None:
            tally.cancelled += 1
        else:
            tally.failed += 1
        self.history.ended.append((component.definition, number, succeeded, weakref.ref(component)))
        if number <= HISTORY_SIZE:
            self.history.ties[number] = Tie(component.owner, component.sources, seconds)
        component.context = None
        if component.dependencies:
            release_dependencies(component)
        if self.members:
            self.members.pop(number, None)
            if component.owner in self.members:
                self.members[component.owner].pop(number, None)

    def _decided(self, verdicts: Sequence[tuple[int, str]]) -> Decisions:
        if not verdicts:
            return NOTHING
        decisions = Decisions([], [])
        for number, verdict in verdicts:
            part = decisions.ready if verdict == "ready" else decisions.doomed
            part.append(self.unfinished[number])
        return decisions


def release_dependencies(component: Component[Any]) -> None:
    """Keep the names of the components that one depends on, and no longer their futures."""
    component.depended_on = calls_among(component.dependencies)
    component.dependencies = ()
