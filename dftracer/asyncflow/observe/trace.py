"""What an engine tells a trace: of its runtime's tasks what only it knows, and of others all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any

from dftracer.asyncflow.engine.component import Component
from dftracer.utils.tracing import Trace, open_trace, trace_of_environment


class EngineTrace:
    """The trace of one engine.

    A task that one of our runtimes runs is written by that runtime, with the note that it is given
    here. Blocks, tasks on other backends and components that never began are written here.
    """

    def __init__(self, trace: Trace, engine: str, backends: Sequence[Any]) -> None:
        self._trace = trace
        self._engine = engine
        self._writers = [backend for backend in backends if _writes(backend, trace)]
        self._times: dict[int, list[int]] = {}
        """When each unfinished component was created, submitted and begun; 0: not yet."""
        self._handed_over: set[int] = set()
        """The unfinished plain calls that their runtime writes."""

    @classmethod
    def opened(
        cls, path: str | os.PathLike[str] | None, engine: str, backends: Sequence[Any]
    ) -> EngineTrace | None:
        """Open the trace at ``path``, or that of the environment."""
        trace = trace_of_environment() if path is None else open_trace(path)
        return None if trace is None else cls(trace, engine, backends)

    def flush(self) -> None:
        """Wait until all that has ended is in the file."""
        self._trace.flush()

    def created(self, component: Component[Any]) -> None:
        """Take down that a component was called."""
        self._times[component._number] = [self._trace.clock(), 0, 0]

    def is_written_by(self, backend: Any) -> bool:
        """Tell whether a backend writes the tasks that it is given a note for."""
        return backend in self._writers

    def launched(self, components: list[Component[Any]]) -> list[tuple[int, str]]:
        """Take down that tasks are about to be handed to their backend; return their notes."""
        now = self._trace.clock()
        notes = []
        for component in components:
            times = self._times[component._number]
            times[1] = now
            notes.append((times[0], self._members(component)))
        return notes

    def describe(self, components: list[Component[Any]]) -> None:
        """As :meth:`launched`, leaving notes in descriptions for the backends that write them."""
        for component, note in zip(components, self.launched(components), strict=True):
            if self.is_written_by(component._template.backend):
                component._describe()["trace_note"] = note

    def handed_over(self, components: list[Component[Any]]) -> None:
        """Take down that a runtime has taken plain calls, which it will write."""
        self._handed_over.update(component._number for component in components)

    def began(self, component: Component[Any], since: float | None = None) -> None:
        """Take down that a component runs, now or since then, in seconds since the epoch."""
        times = self._times.get(component._number)
        if times is not None and not times[2]:
            now = self._trace.clock()
            ago = 0 if since is None else int((time.time() - since) * 1e9)
            times[1] = times[1] or now
            # Never before it was submitted, whatever clocks say.
            times[2] = max(times[1], now - max(0, ago))

    def ended(self, component: Component[Any]) -> None:
        """Write a component that has ended, unless its runtime does."""
        times = self._times.pop(component._number, None)
        if times is None:
            return
        description = component._description
        if component._number in self._handed_over:
            self._handed_over.remove(component._number)
            return
        if description is not None and description.get("is_traced"):
            return
        now = self._trace.clock()
        created, submitted, started = times
        error = None if component.cancelled() else component._exception
        self._trace.component(
            component.kind,
            component.name,
            # A backend need not say when a task begins.
            (created, submitted or now, started or submitted, now),
            component.state,
            self._members(component),
            error,
        )

    def _members(self, component: Component[Any]) -> str:
        members = {
            "uid": component.uid,
            "kind": component._template.kind,
            "engine": self._engine,
            "backend": component._template.backend.name,
        }
        if component.kind == "block":
            del members["backend"]
        if component._workflow_id is not None:
            members["workflow_id"] = component._workflow_id
        if component._owner:
            owner = component._engine._unfinished.get(component._owner)
            members["owner"] = owner.uid if owner is not None else f"block.{component._owner:06d}"
        dependencies = component._names_of_dependencies()
        if dependencies:
            members["deps"] = " ".join(uid for uid, _ in dependencies)
        text = json.dumps(members, ensure_ascii=False)[1:-1]
        return text.encode(errors="replace").decode()  # a name may hold half of a surrogate pair


def _writes(backend: Any, trace: Trace) -> bool:
    """Whether a backend writes the tasks that it is given a note for."""
    trace_to = getattr(backend, "trace_to", None)
    return trace_to is not None and bool(trace_to(trace))
