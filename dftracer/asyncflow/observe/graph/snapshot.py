"""The graph of an engine as it stands."""

from __future__ import annotations

from dftracer.asyncflow.backends.base import State
from dftracer.asyncflow.engine.component import Component
from dftracer.asyncflow.engine.state import WorkflowState
from dftracer.asyncflow.observe.counts import Tally
from dftracer.asyncflow.observe.graph.model import WorkflowGraph
from dftracer.asyncflow.observe.graph.parts import Edge, Node
from dftracer.asyncflow.observe.history import HISTORY_SIZE, state_of

MOST_NODES = 100
"""Up to how many components each has a node of its own, unless ``fold`` says otherwise."""


def graph_of(engine: str, state: WorkflowState, fold: bool | None) -> WorkflowGraph:
    """Draw up the graph of an engine: see ``WorkflowEngine.graph``."""
    if fold not in (True, False, None):
        raise TypeError(f"fold must be True, False or None, not {type(fold).__name__} {fold!r}")
    unfinished = list(state.unfinished.values())
    count = len(unfinished) + len(state.history)
    # Only of the first is it remembered whose futures they were given.
    is_remembered = state.count <= HISTORY_SIZE
    if fold is False and not is_remembered:
        raise ValueError(
            f"engine '{engine}' was given more than {HISTORY_SIZE:,} calls, of which it does "
            "not remember each: leave fold=False away, and like calls are one node"
        )
    if fold is None:
        fold = not is_remembered or count > MOST_NODES
    return _folded(engine, state, unfinished) if fold else _unfolded(engine, state, unfinished)


def _unfolded(
    engine: str, state: WorkflowState, unfinished: list[Component[object]]
) -> WorkflowGraph:
    history = state.history
    found: dict[int, Node] = {}
    sources: dict[int, list[int]] = {}
    for definition, number, succeeded, _ in history.entries():
        tie = history.ties[number]
        found[number] = Node(
            id=f"n{number}",
            kind=definition.kind,
            name=definition.name,
            uid=definition.uid_of(number),
            states={state_of(succeeded).value: 1},
            seconds=tie.seconds if succeeded and tie.seconds else None,
            block=f"n{tie.owner}" if tie.owner else None,
        )
        sources[number] = list(tie.sources)
    for component in unfinished:
        number = component.number
        found[number] = Node(
            id=f"n{number}",
            kind=component.definition.kind,
            name=component.name,
            uid=component.uid,
            states={component.state.value: 1},
            seconds=None,
            block=f"n{component.owner}" if component.owner else None,
        )
        sources[number] = list(component.sources)
    numbers = sorted(found)
    return WorkflowGraph(
        engine,
        tuple(found[number] for number in numbers),
        tuple(
            Edge(f"n{source}", f"n{number}", 1)
            for number in numbers
            for source in sources[number]
            if source in found
        ),
        is_folded=False,
    )


def _folded(
    engine: str, state: WorkflowState, unfinished: list[Component[object]]
) -> WorkflowGraph:
    running: dict[Tally, int] = {}
    for component in unfinished:
        if component.state is State.RUNNING:
            running[component.tally] = running.get(component.tally, 0) + 1
    ids = {tally: f"n{number}" for number, tally in enumerate(state.counts, 1) if tally.registered}
    nodes: list[Node] = []
    edges: list[Edge] = []
    for tally, identifier in ids.items():
        now = running.get(tally, 0)
        states = {
            "PENDING": tally.registered - tally.ended - now,
            "RUNNING": now,
            "DONE": tally.done,
            "FAILED": tally.failed,
            "CANCELED": tally.cancelled,
        }
        nodes.append(
            Node(
                id=identifier,
                kind=tally.kind,
                name=tally.name,
                uid=None,
                states={state: count for state, count in states.items() if count > 0},
                seconds=tally.seconds / tally.done if tally.done and tally.seconds else None,
                block=None if tally.owner is None else ids[tally.owner],
            )
        )
        for source, number in list(tally.sources.items()):
            if source in ids:
                edges.append(Edge(ids[source], identifier, number))
    return WorkflowGraph(engine, tuple(nodes), tuple(edges), is_folded=True)
