"""What a graph consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


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


class Graph(Protocol):
    """What the formats show."""

    @property
    def name(self) -> str: ...
    @property
    def nodes(self) -> tuple[Node, ...]: ...
    @property
    def edges(self) -> tuple[Edge, ...]: ...
    @property
    def is_folded(self) -> bool: ...
    def to_mermaid(self) -> str: ...
    def to_dot(self) -> str: ...
    def to_svg(self) -> str: ...
    def to_html(self) -> str: ...
