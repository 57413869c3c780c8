"""What an engine tells RHAPSODY's telemetry: an event for each step of a task, spans for scopes.

It needs the extra ``[telemetry]``, and is imported when an engine starts its telemetry.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from dftracer.asyncflow.commands import SHELL
from dftracer.asyncflow.engine.component import Block, Component
from dftracer.asyncflow.errors import EngineShutdownError
from dftracer.utils.redaction import hide

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

if TYPE_CHECKING:
    from dftracer.asyncflow.engine.scheduler import Scheduler

log = logging.getLogger("dftracer.asyncflow")

TaskResolved = define_event("asyncflow.TaskResolved")
"""All that a task depends on has ended well."""

TaskRetried = define_event("asyncflow.TaskRetried", error_type=str)
"""An attempt has failed and there will be another."""

WORKFLOW = "asyncflow.workflow_id"
"""The attribute that names the workflow or block in which a task was called."""


async def start(engine: Scheduler, interval: float, **options: Any) -> TelemetryManager:
    """Start a manager for the tasks of ``engine``; its session's span is this task's current one.

    Parameters
    ----------
    interval:
        Seconds between looks at the resources of backends for which RHAPSODY can do that.
    options:
        As for :class:`rhapsody.telemetry.manager.TelemetryManager`.

    Raises
    ------
    RuntimeError
        If the engine has its telemetry already, or is shut down.
    """
    if engine._is_closed:
        raise EngineShutdownError(
            f"cannot start the telemetry of engine '{engine.uid}': it is shut down"
        )
    if engine._telemetry is not None:
        raise RuntimeError(
            f"engine '{engine.uid}' has its telemetry already: stop that manager first"
        )
    manager = _Manager(session_id=engine.uid, **options)
    manager.register_span_enricher(_workflow_of)
    for backend in engine._backends.values():
        manager.attach_backend(
            backend, session_id=engine.uid, backend_name=backend.name, interval=interval
        )
    await manager.start()
    engine._telemetry = Telemetry(engine, manager)
    engine._ask_for_beginnings()
    return manager


class Telemetry:
    """Tells a manager what happens to the tasks of one engine.

    All is called in the event loop's thread. Blocks are no tasks: they are spans around theirs.
    """

    def __init__(self, engine: Scheduler, manager: _Manager) -> None:
        self.manager = manager
        self._engine = engine
        self._submitted: dict[int, float] = {}
        self._started = manager.started
        manager.life.add_done_callback(self._stopped)

    def created(self, component: Component[Any]) -> None:
        """A task was called. Its span will be inside the one that is current here."""
        if isinstance(component, Block):
            return
        depends_on = [
            future.uid
            for future in component._dependencies
            if isinstance(future, Component) and future._engine is self._engine
        ]
        token = None
        if not trace.get_current_span().get_span_context().is_valid:
            token = otel_context.attach(self.manager.session_context)
        self._emit(TaskCreated, component, time.time(), depends_on=depends_on)
        if token is not None:
            otel_context.detach(token)

    def resolved(self, component: Component[Any]) -> None:
        """All that a task depends on has ended well."""
        if not isinstance(component, Block):
            self._emit(TaskResolved, component, time.time())

    def submitted(self, components: list[Component[Any]]) -> None:
        """Tasks are handed to their backends."""
        for component in components:
            now = self._submitted[component._number] = time.time()
            self._emit(TaskQueued, component, now)
            self._emit(TaskSubmitted, component, now)

    def started(self, component: Component[Any], record: dict[str, Any]) -> None:
        """A backend says that a task runs, and perhaps since when."""
        number = component._number
        if number not in self._started:
            when = record.get("started_at") or time.time()
            # Never before it was submitted, whatever clocks say.
            when = self._started[number] = max(when, self._submitted.get(number, 0.0))
            self._emit(TaskStarted, component, when)

    def retried(self, component: Component[Any], error: Exception) -> None:
        """An attempt has failed, and there will be another, which is submitted anew."""
        if not isinstance(component, Block):
            attempt, kind = component._describe()["attempt"], type(error).__name__
            self._emit(
                TaskRetried,
                component,
                time.time(),
                {"error_type": kind},
                attempt=attempt,
                error_type=kind,
            )

    def ended(self, component: Component[Any]) -> None:
        """A task has come to its end."""
        if isinstance(component, Block):
            return
        now, number = time.time(), component._number
        started, submitted = self._started.pop(number, None), self._submitted.pop(number, now)
        duration = max(0.0, now - (submitted if started is None else started))
        # What RHAPSODY calls a task of which it is not known when it started, or that never did.
        attributes: dict[str, Any] = {"incomplete_lifecycle": True} if started is None else {}
        # Not `exception()`: to look at the error must not pass for having seen it.
        error = None if component.cancelled() else component._exception
        if component.cancelled():
            self._end(TaskCanceled, component, now, duration, attributes)
        elif error is None:
            self._end(TaskCompleted, component, now, duration, attributes)
        else:
            kind = type(error).__name__
            attributes["error_type"] = kind
            self._end(TaskFailed, component, now, duration, attributes, error_type=kind)

    def scope(self, kind: str, workflow_id: str) -> AbstractContextManager[None]:
        """Return a span, ``workflow`` or ``block``, around what is called inside."""
        scope: AbstractContextManager[None] = self.manager.span_scope(kind, {WORKFLOW: workflow_id})
        return scope

    async def stop(self) -> None:
        """Let the manager handle all that it was told, and end. It never fails."""
        try:
            await self.manager.stop()
        except Exception:
            log.exception("the telemetry of engine '%s' did not stop cleanly", self._engine.uid)

    def _stopped(self, _life: asyncio.Task[None]) -> None:
        self._engine._telemetry = None
        self._engine._ask_for_beginnings()

    def _end(
        self,
        event: Any,
        component: Component[Any],
        now: float,
        duration: float,
        attributes: dict[str, Any],
        **fields: Any,
    ) -> None:
        self._emit(event, component, now, {"duration_seconds": duration, **fields}, **attributes)

    def _emit(
        self,
        event: Any,
        component: Component[Any],
        when: float,
        fields: dict[str, Any] | None = None,
        **attributes: Any,
    ) -> None:
        template = component._template
        attributes["executable"] = _program_of(component) or template.name
        attributes["task_type"] = template.kind
        if component._workflow_id is not None:
            attributes[WORKFLOW] = component._workflow_id
        self.manager.emit(
            make_event(
                event,
                session_id=self.manager.session_id,
                backend=template.backend.name,
                task_id=component.uid,
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


def _program_of(component: Component[Any]) -> str | None:
    """Return what an executable task runs: of a shell's command the first word."""
    description = component._description or {}
    program: str | None = description.get("executable")
    if program == SHELL and description["arguments"][:1] == ["-c"]:
        words = description["arguments"][1].split(None, 1)
        return hide(words[0]) if words else program
    return program


def _workflow_of(event: Any) -> dict[str, Any]:
    """Return what the span of a task says beyond what every span does."""
    return {WORKFLOW: event.attributes[WORKFLOW]} if WORKFLOW in event.attributes else {}
