"""What RHAPSODY's telemetry gets of an engine: an event for each step of a task, spans for scopes.

It needs the extra ``[telemetry]``, and is imported when an engine starts its telemetry.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from dftracer.asyncflow.backends.base import State
from dftracer.asyncflow.engine.interfaces import Observer, TaskRecord

try:
    from opentelemetry import context as otel_context
    from opentelemetry import trace
    from rhapsody.telemetry.events import (
        TaskCanceled,
        TaskCompleted,
        TaskCreated,
        TaskFailed,
        TaskQueued,
        TaskStarted,
        TaskSubmitted,
        define_event,
        make_event,
    )
    from rhapsody.telemetry.manager import TelemetryManager
except ImportError as error:
    raise ImportError(
        "start_telemetry() needs RHAPSODY and OpenTelemetry: "
        "pip install 'dftracer-asyncflow[telemetry]'"
    ) from error

log = logging.getLogger("dftracer.asyncflow")

TaskResolved = define_event("asyncflow.TaskResolved")
"""All that a task depends on has ended well."""

TaskRetried = define_event("asyncflow.TaskRetried", error_type=str)
"""An attempt has failed and there will be another."""

WORKFLOW = "asyncflow.workflow_id"
"""The attribute that names the workflow or block in which a task was called."""


async def start(
    engine: str,
    backends: Sequence[Any],
    observe: Callable[[Telemetry | None], None],
    interval: float,
    **options: Any,
) -> Telemetry:
    """Start a manager for the tasks of an engine; its session's span is this task's current one.

    Parameters
    ----------
    engine:
        The name of the engine.
    backends:
        Its backends.
    observe:
        Is called with the telemetry when it has started, and with ``None`` when it has stopped.
    interval:
        Seconds between looks at the resources of backends for which RHAPSODY can do that.
    options:
        As for :class:`rhapsody.telemetry.manager.TelemetryManager`.
    """
    manager = _Manager(session_id=engine, **options)
    manager.register_span_enricher(_workflow_of)
    for backend in backends:
        manager.attach_backend(
            backend, session_id=engine, backend_name=backend.name, interval=interval
        )
    await manager.start()
    telemetry = Telemetry(engine, manager, observe)
    observe(telemetry)
    return telemetry


class Telemetry(Observer):
    """Passes what happens to the tasks of one engine on to a manager.

    Blocks are no tasks: they are spans around theirs.
    """

    def __init__(
        self, engine: str, manager: _Manager, observe: Callable[[Telemetry | None], None]
    ) -> None:
        self.manager = manager
        self._engine = engine
        self._observe = observe
        self._submitted: dict[int, float] = {}
        self._programs: dict[int, str] = {}
        """What the unfinished executable tasks run that were submitted."""
        self._started = manager.started
        manager.life.add_done_callback(self._stopped)

    def created(self, task: TaskRecord) -> None:
        # The task's span will be inside the one that is current here.
        if task.kind == "block":
            return
        token = None
        if not trace.get_current_span().get_span_context().is_valid:
            token = otel_context.attach(self.manager.session_context)
        self._emit(TaskCreated, task, time.time(), depends_on=list(task.dependencies))
        if token is not None:
            otel_context.detach(token)

    def resolved(self, task: TaskRecord) -> None:
        if task.kind != "block":
            self._emit(TaskResolved, task, time.time())

    def submitted(self, task: TaskRecord, program: str | None) -> None:
        if program is not None:
            self._programs[task.number] = program
        now = self._submitted[task.number] = time.time()
        self._emit(TaskQueued, task, now)
        self._emit(TaskSubmitted, task, now)

    def started(self, task: TaskRecord, since: float | None) -> None:
        if task.kind != "block" and task.number not in self._started:
            when = since or time.time()
            # Never before it was submitted, whatever clocks say.
            when = max(when, self._submitted.get(task.number, 0.0))
            self._started[task.number] = when
            self._emit(TaskStarted, task, when)

    def retried(self, task: TaskRecord, attempt: int, error: BaseException) -> None:
        if task.kind != "block":
            kind = type(error).__name__
            now, fields = time.time(), {"error_type": kind}
            self._emit(TaskRetried, task, now, fields, attempt=attempt, error_type=kind)

    def ended(
        self, task: TaskRecord, state: State, error: BaseException | None, is_traced: bool
    ) -> None:
        if task.kind == "block":
            return
        now, number = time.time(), task.number
        started, submitted = self._started.pop(number, None), self._submitted.pop(number, now)
        duration = max(0.0, now - (submitted if started is None else started))
        # What RHAPSODY calls a task of which it is not known when it started, or that never did.
        attributes: dict[str, Any] = {"incomplete_lifecycle": True} if started is None else {}
        fields: dict[str, Any] = {"duration_seconds": duration}
        if state is State.CANCELED:
            event = TaskCanceled
        elif state is State.DONE:
            event = TaskCompleted
        else:
            event = TaskFailed
            attributes["error_type"] = fields["error_type"] = type(error).__name__
        self._emit(event, task, now, fields, **attributes)
        self._programs.pop(number, None)

    def scope(self, kind: str, name: str) -> AbstractContextManager[None]:
        """Return a span, ``workflow`` or ``block``, around what is called inside."""
        scope: AbstractContextManager[None] = self.manager.span_scope(kind, {WORKFLOW: name})
        return scope

    async def stop(self) -> None:
        """Let the manager handle all that it has got, and end. It never fails."""
        try:
            await self.manager.stop()
        except Exception:
            log.exception("the telemetry of engine '%s' did not stop cleanly", self._engine)

    def _stopped(self, _life: asyncio.Task[None]) -> None:
        self._observe(None)

    def _emit(
        self,
        event: Any,
        task: TaskRecord,
        when: float,
        fields: dict[str, Any] | None = None,
        **attributes: Any,
    ) -> None:
        attributes["executable"] = self._programs.get(task.number) or task.name
        attributes["task_type"] = task.kind
        if task.workflow_id is not None:
            attributes[WORKFLOW] = task.workflow_id
        self.manager.emit(
            make_event(
                event,
                session_id=self.manager.session_id,
                backend=task.backend,
                task_id=task.uid,
                event_time=when,
                attributes=attributes,
                **(fields or {}),
            )
        )


class _Manager(TelemetryManager):  # type: ignore[misc] # there is none to check against
    """One that may be stopped in any asyncio task, and more than once.

    OpenTelemetry wants a context to be left where it was entered: one task starts and stops it.
    """

    life: asyncio.Task[None]
    session_context: otel_context.Context
    """With the session's span as the current one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.started: dict[int, float] = {}
        """The tasks that run, by their numbers, and since when."""

    async def start(self) -> None:
        self._stop_asked = asyncio.Event()
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.life = asyncio.create_task(self._live(started), name="telemetry")
        await asyncio.wait([started, self.life], return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            await self.life  # raises
        self._outer_context = otel_context.get_current()
        otel_context.attach(self.session_context)

    async def _live(self, started: asyncio.Future[None]) -> None:
        await super().start()
        self.session_context = otel_context.get_current()
        started.set_result(None)
        await self._stop_asked.wait()
        await super().stop()

    async def stop(self) -> None:
        self._stop_asked.set()
        await asyncio.shield(self.life)
        self.leave()

    def task_count(self) -> dict[str, int]:
        # RHAPSODY 0.6 takes one away for each task that ends, whether it had started or not.
        return {**super().task_count(), "running": len(self.started)}

    def leave(self) -> None:
        """Make the session's span no longer the current one of the calling task."""
        if otel_context.get_current() is self.session_context:
            otel_context.attach(self._outer_context)


def _workflow_of(event: Any) -> dict[str, Any]:
    """Return what the span of a task says beyond what every span does."""
    return {WORKFLOW: event.attributes[WORKFLOW]} if WORKFLOW in event.attributes else {}
