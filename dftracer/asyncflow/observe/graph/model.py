"""The graph of an engine's components as it stands at one moment: what ``flow.graph()`` returns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dftracer.asyncflow.observe.graph import formats as drawing
from dftracer.asyncflow.observe.history import HISTORY_SIZE
from dftracer.utils.whole_file import replacing

if TYPE_CHECKING:
    from dftracer.asyncflow.engine.component import Component
    from dftracer.asyncflow.engine.scheduler import Scheduler
    from dftracer.asyncflow.observe.counts import Tally

MOST_NODES = 100
"""Up to how many components each has a node of its own, unless ``fold`` says otherwise."""


@dataclass(frozen=True)
class Node:
    """One component, or all calls of one function in one place."""

    id: str
    kind: str
    """``function``, ``executable``, ``prompt`` or ``block``."""
    name: str
    uid: str | None
    """The identifier of the component; ``None`` if it may be several."""
    states: Mapping[str, int]
    """How many are in which state, without those states that none is in."""
    seconds: float | None
    """From the launch to the end, the wait for a worker included; of several that are done, the
    mean; ``None`` if none is."""
    block: str | None
    """The ``id`` of the block in whose body it was called."""

    @property
    def count(self) -> int:
        """How many components it stands for."""
        return sum(self.states.values())


@dataclass(frozen=True)
class Edge:
    """That calls of ``target`` were given futures of ``source``; both are the ``id`` of a node."""

    source: str
    target: str
    count: int
    """How many."""


@dataclass(frozen=True, eq=False)
class WorkflowGraph:
    """The components of an engine, and what they wait for. It does not change any more.

    Futures that are no components of the engine are not in it.
    """

    name: str
    """The identifier of the engine."""
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    is_folded: bool
    """Whether all calls of one function are one node."""

    def to_mermaid(self) -> str:
        """Return the graph in the language of Mermaid, which many sites and editors draw."""
        return drawing.to_mermaid(self)

    def to_dot(self) -> str:
        """Return the graph in the language of Graphviz."""
        return drawing.to_dot(self)

    def to_svg(self) -> str:
        """Return the graph as an SVG image.

        Raises
        ------
        ImportError
            If the extra ``[viz]`` is not installed.
        RuntimeError
            If the program ``dot`` of Graphviz is not installed, or fails.
        """
        return self._svg

    def to_html(self) -> str:
        """Return a page with the image and a table of the nodes. Raises as :meth:`to_svg`."""
        return drawing.to_page(self, self._svg)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the graph to a file of the kind that its name ends in.

        Parameters
        ----------
        path:
            The file, which is replaced: ``.mmd`` or ``.dot`` for text; ``.svg``, ``.png`` or
            ``.html``, for which Graphviz is needed.

        Returns
        -------
        pathlib.Path
            The file.

        Raises
        ------
        ValueError
            If the name ends in something else.
        ImportError, RuntimeError
            As :meth:`to_svg`.
        OSError
            If the file cannot be written.
        """
        target = Path(path)
        write = drawing.writer_for(target)
        content = write(self)
        with replacing(target) as partial:
            partial.write_bytes(content)
        return target

    def _repr_svg_(self) -> str | None:
        """Return the image for a notebook, if it can be drawn here."""
        try:
            return self._svg
        except (ImportError, RuntimeError):
            return None

    def _repr_html_(self) -> str:
        """Return the image for a notebook; a table, and what to install, if it cannot be drawn."""
        try:
            return drawing.to_scrolled(self._svg)
        except (ImportError, RuntimeError) as error:
            return drawing.to_table(self, str(error))

    def __repr__(self) -> str:
        folded = ", folded" if self.is_folded else ""
        count = sum(node.count for node in self.nodes)
        return f"<graph of '{self.name}': {count:,} components{folded}>"

    @cached_property
    def _svg(self) -> str:
        return drawing.render(drawing.to_dot(self), "svg").decode()


def graph_of(engine: Scheduler, fold: bool | None) -> WorkflowGraph:
    """Draw up the graph of an engine: see ``WorkflowEngine.graph``."""
    if fold not in (True, False, None):
        raise TypeError(f"fold must be True, False or None, not {type(fold).__name__} {fold!r}")
    unfinished = list(engine._unfinished.values())
    count = len(unfinished) + len(engine._history)
    # Only of the first is it remembered whose futures they were given.
    is_remembered = engine._numbers <= HISTORY_SIZE
    if fold is False and not is_remembered:
        raise ValueError(
            f"engine '{engine.uid}' was given more than {HISTORY_SIZE:,} calls, of which it does "
            "not remember each: leave fold=False away, and like calls are one node"
        )
    if fold is None:
        fold = not is_remembered or count > MOST_NODES
    return _folded(engine, unfinished) if fold else _unfolded(engine, unfinished)


def _unfolded(engine: Scheduler, unfinished: list[Component[object]]) -> WorkflowGraph:
    history = engine._history
    found: dict[int, Node] = {}
    sources: dict[int, list[int]] = {}
    for template, number, succeeded, _ in history.entries():
        tie = history.ties[number]
        found[number] = Node(
            id=f"n{number}",
            kind=template.kind,
            name=template.name,
            uid=template.uid_of(number),
            states={"CANCELLED" if succeeded is None else "DONE" if succeeded else "FAILED": 1},
            seconds=tie.seconds if succeeded and tie.seconds else None,
            block=f"n{tie.owner}" if tie.owner else None,
        )
        sources[number] = list(tie.sources)
    for component in unfinished:
        number = component._number
        found[number] = Node(
            id=f"n{number}",
            kind=component._template.kind,
            name=component.name,
            uid=component.uid,
            states={component.state: 1},
            seconds=None,
            block=f"n{component._owner}" if component._owner else None,
        )
        sources[number] = list(component._sources)
    numbers = sorted(found)
    return WorkflowGraph(
        engine.uid,
        tuple(found[number] for number in numbers),
        tuple(
            Edge(f"n{source}", f"n{number}", 1)
            for number in numbers
            for source in sources[number]
            if source in found
        ),
        is_folded=False,
    )


def _folded(engine: Scheduler, unfinished: list[Component[object]]) -> WorkflowGraph:
    running: dict[Tally, int] = {}
    for component in unfinished:
        if component.state == "RUNNING":
            running[component._tally] = running.get(component._tally, 0) + 1
    ids = {
        tally: f"n{number}" for number, tally in enumerate(engine._tallies, 1) if tally.registered
    }
    nodes, edges = [], []
    for tally, identifier in ids.items():
        now = running.get(tally, 0)
        states = {
            "PENDING": tally.registered - tally.ended - now,
            "RUNNING": now,
            "DONE": tally.done,
            "FAILED": tally.failed,
            "CANCELLED": tally.cancelled,
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
    return WorkflowGraph(engine.uid, tuple(nodes), tuple(edges), is_folded=True)
