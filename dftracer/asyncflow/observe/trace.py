"""What an engine writes into a trace: of tasks that a backend writes what only it knows, of others
all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence

from dftracer.asyncflow.backends.base import ExecutionBackend, State
from dftracer.asyncflow.engine.interfaces import Observer, TaskRecord
from dftracer.utils.tracing import Trace, open_trace, trace_of_environment


class EngineTrace(Observer):
    """The trace of one engine.

    A task that one of our runtimes runs is written by that runtime, with the note that it is given
    here. Blocks, tasks on other backends and components that never began are written here.
    """

    def __init__(self, trace: Trace, engine: str, targets: Sequence[ExecutionBackend]) -> None:
        self._trace = trace
        self._engine = engine
        self._writers = [target for target in targets if target.trace_to(trace)]
        self._names = {target.name for target in self._writers}
        self._times: dict[int, list[int]] = {}
        """When each unfinished component was created, submitted and begun; 0: not yet."""

    @classmethod
    def opened(
        cls,
        path: str | os.PathLike[str] | None,
        engine: str,
        targets: Sequence[ExecutionBackend],
    ) -> EngineTrace | None:
        """Open the trace at ``path``, or that of the environment."""
        trace = trace_of_environment() if path is None else open_trace(path)
        return None if trace is None else cls(trace, engine, targets)

    def flush(self) -> None:
        """Wait until all that has ended is in the file."""
        self._trace.flush()

    def is_written_by(self, target: ExecutionBackend) -> bool:
        """Tell whether a backend writes the tasks that it is given a note for."""
        return target in self._writers

    def note_of(self, task: TaskRecord) -> tuple[int, str] | None:
        """Return the note for a task that is about to be submitted, if its backend writes it."""
        if task.backend not in self._names:
            return None
        times = self._times.get(task.number)
        return None if times is None else (times[0], self._members(task))

    def created(self, task: TaskRecord) -> None:
        self._times[task.number] = [self._trace.clock(), 0, 0]

    def submitted(self, task: TaskRecord, program: str | None) -> None:
        times = self._times.get(task.number)
        if times is not None:
            times[1] = self._trace.clock()

    def started(self, task: TaskRecord, since: float | None) -> None:
        times = self._times.get(task.number)
        if times is not None and not times[2]:
            now = self._trace.clock()
            ago = 0 if since is None else int((time.time() - since) * 1e9)
            times[1] = times[1] or now
            # Never before it was submitted, whatever clocks say.
            times[2] = max(times[1], now - max(0, ago))

    def ended(
        self, task: TaskRecord, state: State, error: BaseException | None, is_traced: bool
    ) -> None:
        times = self._times.pop(task.number, None)
        if times is None or is_traced:
            return
        now = self._trace.clock()
        created, submitted, started = times
        self._trace.component(
            "block" if task.kind == "block" else "task",
            task.name,
            # A backend need not say when a task begins.
            (created, submitted or now, started or submitted, now),
            state.value,
            self._members(task),
            error,
        )

    def _members(self, task: TaskRecord) -> str:
        members = {"uid": task.uid, "kind": task.kind, "engine": self._engine}
        if task.kind != "block":
            members["backend"] = task.backend
        if task.workflow_id is not None:
            members["workflow_id"] = task.workflow_id
        if task.owner is not None:
            members["owner"] = task.owner
        if task.dependencies:
            members["deps"] = " ".join(task.dependencies)
        text = json.dumps(members, ensure_ascii=False)[1:-1]
        return text.encode(errors="replace").decode()  # a name may hold half of a surrogate pair
