"""What can be seen of an engine's components: those that are unfinished, and the last to end."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dftracer.asyncflow.backends.base import State
from dftracer.asyncflow.engine.component import Component, number_of

if TYPE_CHECKING:
    from dftracer.asyncflow.engine.definition import Definition

HISTORY_SIZE = 1_000
"""How many ended components an engine remembers."""


class Ended(NamedTuple):
    """What is remembered of a component that has ended: neither its arguments nor its result."""

    uid: str
    kind: str
    name: str
    state: State
    component: weakref.ref[Component[Any]]


Entry = tuple["Definition", int, bool | None, "weakref.ref[Component[Any]]"]
"""The same, made in less time."""


class Tie(NamedTuple):
    """What is remembered of a component besides, if it is among the first of its engine."""

    owner: int
    """The number of the block in whose body it was called; 0 if in none."""
    sources: Sequence[int]
    """The numbers of those it was given futures of."""
    seconds: float
    """From its launch to its end; 0 if it was not launched."""


class History:
    """The components that have ended last, oldest first."""

    def __init__(self) -> None:
        self.ended: deque[Entry] = deque(maxlen=HISTORY_SIZE)
        self.ties: dict[int, Tie] = {}
        """By their numbers, from 1 to the size of the history."""

    def entries(self) -> list[Entry]:
        """Return what is remembered, oldest first."""
        return list(self.ended)

    def __iter__(self) -> Iterator[Ended]:
        return map(_shown, list(self.ended))

    def find(self, uid: str) -> Ended | None:
        """Return what is remembered of the component with that identifier, if anything is."""
        number = number_of(uid)
        for entry in self.ended:
            if entry[1] == number and (ended := _shown(entry)).uid == uid:
                return ended
        return None

    def __len__(self) -> int:
        return len(self.ended)


class Components(Mapping[str, dict[str, Any]]):
    """The components of an engine, by their identifiers: those that ended last, then the others.

    Each is a dict with ``type`` (``"task"`` or ``"block"``), ``future``, ``description`` and
    ``state``. Nothing is kept alive for it: once nobody holds the future of a component that has
    ended, ``future`` is ``None`` and the description holds no more than ``uid`` and ``name``.
    """

    def __init__(self, unfinished: Mapping[int, Component[Any]], history: History) -> None:
        self._unfinished = unfinished
        self._history = history

    def __getitem__(self, uid: str) -> dict[str, Any]:
        unfinished = self._unfinished.get(number_of(uid))
        if unfinished is not None and unfinished.uid == uid:
            return _entry(unfinished)
        ended = self._history.find(uid)
        if ended is None:
            raise KeyError(uid)
        component_or_none = ended.component()
        if component_or_none is not None:
            return _entry(component_or_none)
        return {
            "type": ended.kind,
            "future": None,
            "description": {"uid": uid, "name": ended.name},
            "state": ended.state,
        }

    def __iter__(self) -> Iterator[str]:
        yield from [ended.uid for ended in self._history]
        yield from [component.uid for component in self._unfinished.values()]

    def __len__(self) -> int:
        return len(self._history) + len(self._unfinished)


class Dependencies(Mapping[str, list[dict[str, str]]]):
    """What each of an engine's components depends on: dicts with ``uid`` and ``name``."""

    def __init__(self, components: Components) -> None:
        self._components = components

    def __getitem__(self, uid: str) -> list[dict[str, str]]:
        metadata = self._components[uid]["description"].get("metadata", {})
        return list(metadata.get("dependencies", ()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._components)

    def __len__(self) -> int:
        return len(self._components)


def _shown(entry: Entry) -> Ended:
    definition, number, succeeded, reference = entry
    state = state_of(succeeded)
    kind = definition.component.kind
    return Ended(definition.uid_of(number), kind, definition.name, state, reference)


def state_of(succeeded: bool | None) -> State:
    """Return the state of what has succeeded, failed, or (``None``) was cancelled."""
    if succeeded is None:
        return State.CANCELED
    return State.DONE if succeeded else State.FAILED


def _entry(component: Component[Any]) -> dict[str, Any]:
    return {
        "type": component.kind,
        "future": component,
        "description": component.as_dict(),
        "state": component.state,
    }
