"""What passes between an engine and its backends: tasks one way, outcomes the other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dftracer.asyncflow.backends import registry
from dftracer.asyncflow.backends.base import ExecutionBackend, TaskStates
from dftracer.asyncflow.engine.bodies import Bodies
from dftracer.asyncflow.engine.callbacks import CallbackLoop
from dftracer.asyncflow.engine.component import Component, Task, number_of
from dftracer.asyncflow.engine.failures import failure_on_backend, result_on_backend
from dftracer.asyncflow.engine.leaving import Unseen
from dftracer.asyncflow.errors import let_out, text_of

if TYPE_CHECKING:
    from dftracer.asyncflow.observe.telemetry import Telemetry
    from dftracer.asyncflow.observe.trace import EngineTrace

Description = dict[str, Any]

_alive: weakref.WeakSet[Dispatcher] = weakref.WeakSet()


def _forget_in_child() -> None:
    """No engine's loop goes on in the child of a fork."""
    for engine in _alive:
        engine._thread = 0


os.register_at_fork(after_in_child=_forget_in_child)

_ON_BACKEND = frozenset({"LAUNCHED", "RUNNING"})
_LAST = frozenset({TaskStates.DONE, TaskStates.FAILED})


class Dispatcher:
    """The part of an engine that knows its backends."""

    def __init__(self, loop: asyncio.AbstractEventLoop, backends: Sequence[Any], uid: str) -> None:
        self.loop = loop
        self.uid = uid
        self.log = logging.getLogger("dftracer.asyncflow")
        self._thread = threading.get_ident()
        """That which runs the loop, as far as is known; see :meth:`_is_in_other_thread`."""
        _alive.add(self)
        self._unseen = Unseen()
        self._callback_loop = CallbackLoop(loop, self._unseen.take)
        """What its futures have for an event loop."""
        self._backends = registry.by_name(backends)
        self._default = backends[0]
        # Not if it has that from a base class: it may do otherwise with tasks.
        self._takes_calls = "call_nowait" in vars(type(self._default))
        self._states = registry.state_names(backends)
        self._bodies = Bodies(loop, self._body_ended)
        self._submissions: set[asyncio.Task[Any]] = set()
        """What in the background hands tasks to a backend, and may wait there for their ends."""
        self._on_their_way: set[str] = set()
        """The identifiers of the tasks in submissions that have not begun."""
        self._unfinished: dict[int, Component[Any]] = {}
        self._services: dict[int, Component[Any]] = {}
        """What runs on though its future has been ended by hand, as a service's is when ready."""
        self._telemetry: Telemetry | None = None
        self._trace: EngineTrace | None = None

    def _backend_named(self, name: str | None, asker: str) -> Any:
        if name is None:
            return self._default
        if isinstance(name, str) and name in self._backends:
            return self._backends[name]
        known = ", ".join(map(repr, self._backends))
        raise ValueError(
            f"{asker}: engine '{self.uid}' has no backend named {text_of(name)}; it has {known}: "
            "name one of them, or pass the backend to WorkflowEngine.create()"
        )

    def _is_in_other_thread(self) -> bool:
        """Tell whether this is not the thread of the loop, which another may run than at first."""
        thread = threading.get_ident()
        if thread != self._thread and asyncio._get_running_loop() is self.loop:
            self._thread = thread
        return thread != self._thread

    def _ask_for_beginnings(self) -> None:
        """Have backends tell when tasks begin, if telemetry or the trace want to know that."""
        for backend in self._backends.values():
            if hasattr(backend, "report_running"):
                backend.report_running = self._telemetry is not None or (
                    self._trace is not None and not self._trace.is_written_by(backend)
                )

    @abstractmethod
    def _settle(
        self, component: Component[Any], result: Any = None, *, error: Any = None
    ) -> None: ...
    @abstractmethod
    def _fail(self, component: Component[Any], error: Any) -> None: ...
    def _fail_here(self, component: Component[Any], error: BaseException) -> None:
        """End an attempt with what was raised in the event loop's thread, by a body or a hook."""
        try:
            let_out(error)
        except BaseException:
            self._settle(component, error=error)
            raise
        self._fail(component, error)

    @abstractmethod
    def _cancel(self, component: Component[Any], msg: Any | None, root: str = "") -> bool: ...

    # --- to a backend ---------------------------------------------------------------------------

    def _gives_calls(self) -> bool:
        """Tell whether the default backend may be given plain calls as no more than that."""
        return (
            self._takes_calls
            and self._telemetry is None
            and (self._trace is None or self._trace.is_written_by(self._default))
            # Else somebody listens to what it tells of tasks.
            and self._default._callback_func == self.task_callbacks
        )

    def _submit_calls(self, components: list[Component[Any]]) -> None:
        """Hand plain calls to the default backend, without a description of each."""
        calls = _as_calls(components)
        try:
            if self._trace is None:
                self._default.call_nowait(components, calls, self._take_outcomes)
            else:
                notes = self._trace.launched(components)
                self._default.call_nowait(components, calls, self._take_outcomes, notes)
                self._trace.handed_over(components)
        except BaseException as error:
            for component in components:
                self._settle(component, error=error)
            let_out(error)

    def _submit(self, components: list[Component[Any]]) -> None:
        """Hand tasks to their backends."""
        for component in components:
            if component._attempts is not None:
                component._attempts.hand_over()
        if self._telemetry is not None:
            self._telemetry.submitted(components)
        if self._trace is not None:
            self._trace.describe(components)
        shares: dict[str, list[Description]] = {}
        for component in components:
            name = component._template.backend.name
            shares.setdefault(name, []).append(component._describe())
        for name, tasks in shares.items():
            self._submit_to(self._backends[name], tasks)

    def _submit_to(self, backend: Any, tasks: list[Description]) -> None:
        """Hand tasks to a backend. If it refuses them they fail; the engine lives on."""
        submit_nowait = getattr(backend, "submit_nowait", None)
        try:
            if any(task["capture_stdio"] and task["executable"] for task in tasks):
                os.makedirs(backend._work_dir, exist_ok=True)
            if submit_nowait is not None:
                submit_nowait(tasks)
            else:
                self._on_their_way.update(task["uid"] for task in tasks)
                work = self._submit_and_wait(backend, tasks)
                submission = self._bodies.run_in_background(work)
                self._submissions.add(submission)
                submission.add_done_callback(self._submissions.discard)
        except BaseException as error:
            self._fail_all(tasks, error)
            let_out(error)

    async def _submit_and_wait(self, backend: Any, tasks: list[Description]) -> None:
        tasks = [task for task in tasks if task["uid"] in self._on_their_way]
        self._on_their_way.difference_update(task["uid"] for task in tasks)
        if not tasks:
            return
        try:
            await registry.end_of(backend.submit_tasks(tasks))
        except asyncio.CancelledError:
            for task in tasks:
                self.task_callbacks(task, TaskStates.CANCELED)
            raise
        except BaseException as error:
            self._fail_all(tasks, error)
            let_out(error)

    def _fail_all(self, tasks: list[Description], error: BaseException) -> None:
        for task in tasks:
            task["exception"] = error
            self.task_callbacks(task, TaskStates.FAILED)

    # --- from a backend -------------------------------------------------------------------------

    @abstractmethod
    def _take_outcomes(self, outcomes: Sequence[tuple[Component[Any], str, Any]]) -> bool:
        """End plain calls: each with ``"done"`` and its value, ``"failed"`` and its error, or
        ``"cancelled"``. Return whether the next may soon follow, and nobody waits for these."""

    def _take_outcome(self, component: Component[Any], end: str, value: Any) -> None:
        """End a plain call."""
        if component.done():  # cancelled meanwhile, or ended by hand
            self._services.pop(component._number, None)
        elif end == "done":
            self._settle(component, value)
        elif end == "failed":
            self._settle(component, error=value)
        else:
            self._cancel(component, None)

    def task_callbacks(
        self,
        task: Any,
        state: str,
        service_callback: Callable[[Component[Any], Any, str], object] | None = None,
    ) -> None:
        """Take a task's new state from a backend, in whatever thread.

        Parameters
        ----------
        task:
            The description that was submitted, a copy of it, or an object whose ``as_dict()`` is
            one.
        state:
            As the backend's ``get_task_states_map()`` names it; others are ignored.
        service_callback:
            Called as ``service_callback(future, task, state)`` before the state is heeded. It ends
            the future of a service, now or later, when the service is ready.
        """
        if self._is_in_other_thread():
            report = self.task_callbacks
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self.loop.call_soon_threadsafe(report, task, state, service_callback)
            return
        outcome = self._states.get(state)
        if outcome is None:
            self.log.debug("engine '%s': a backend reports %r, which is no state", self.uid, state)
            return
        record = task if isinstance(task, dict) else task.as_dict()
        component = self._component_of(record["uid"])
        is_ours = component is not None and record is component._description
        if not is_ours and record.get("engine", self.uid) != self.uid:
            return  # of another engine, whose tasks have the same names
        if component is None:  # cancelled meanwhile, or ended by hand
            service = self._services.get(number_of(record["uid"]))
            if (
                service is not None
                and service._key == record["uid"]
                and outcome != TaskStates.RUNNING
            ):
                del self._services[service._number]
            return
        if component._stage not in _ON_BACKEND or component._template.runs_in_loop:
            return  # no backend has been given it, or not yet
        if component._attempts is not None and not component._attempts.takes(record["uid"]):
            return  # of an attempt that has run out of time
        if service_callback is not None:
            try:
                service_callback(component, task, state)
            except BaseException as error:
                self._fail_here(component, error)
            if component.done():
                return
        if outcome in _LAST and not component._files:
            component._stage = "REPORTED"  # the backend is done with its description
        if outcome == TaskStates.DONE:
            if component._files and component._describe().get("directory") is not None:
                self._bodies.run_in_background(self._check_outputs(component, record))
            else:
                self._settle(component, result_on_backend(component, record))
        elif outcome == TaskStates.FAILED:
            self._fail(component, failure_on_backend(component, record))
        elif outcome == TaskStates.CANCELED:
            self._cancel(component, None)
        elif outcome == TaskStates.RUNNING:
            component._stage = "RUNNING"
            if self._telemetry is not None:
                self._telemetry.started(component, record)
            if self._trace is not None:
                self._trace.began(component, record.get("started_at"))

    async def _check_outputs(self, component: Component[Any], record: Description) -> None:
        """End a task that has ended well, unless it has not written what it declares to write."""
        try:
            await component._template.backend.check_outputs(component._describe())
            component._stage = "REPORTED"
        except BaseException as error:
            self._fail_here(component, error)
        else:
            self._settle(component, result_on_backend(component, record))

    def _component_of(self, uid: str) -> Component[Any] | None:
        """Return the unfinished component of that identifier."""
        return self._unfinished.get(number_of(uid))

    # --- what runs on ---------------------------------------------------------------------------

    def _end_by_hand(
        self, component: Component[Any], result: Any, error: Any, *, serves_on: bool = True
    ) -> None:
        """End a component whose body may go on, also on its backend if it ``serves_on`` there."""
        if component._number not in self._unfinished:
            return  # it has ended, maybe while this was on its way from another thread
        self._settle(component, result, error=error)
        if component._number in self._bodies or (serves_on and is_on_backend(component)):
            self._services[component._number] = component

    def _body_ended(self, number: int) -> None:
        service = self._services.get(number)
        if service is not None and not is_on_backend(service):
            del self._services[number]

    def _stop(self, component: Component[Any], msg: Any | None = None) -> None:
        """Cancel what runs of a component, here or on its backend."""
        self._bodies.cancel(component._number, msg)
        if is_on_backend(component):
            self._cancel_on_backend(component)

    def _cancel_on_backend(self, component: Component[Any]) -> None:
        backend, uid = component._template.backend, component._key
        cancel_nowait: Callable[[Any], bool] | None = getattr(backend, "cancel_nowait", None)
        if cancel_nowait is None:
            if uid in self._on_their_way:
                self._on_their_way.remove(uid)  # and so it will not get there
                return
            self._bodies.run_in_background(self._cancel_and_wait(backend, uid))
            return
        try:
            cancel_nowait(uid)
        except BaseException as error:
            self._complain(backend, uid, error)
            let_out(error)

    async def _cancel_and_wait(self, backend: Any, uid: str) -> None:
        try:
            await registry.end_of(backend.cancel_task(uid))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._complain(backend, uid, error)
            let_out(error)

    def _complain(self, backend: Any, uid: str, error: BaseException) -> None:
        message = f"backend '{backend.name}' could not cancel {uid}"
        self.loop.call_exception_handler({"message": message, "exception": error})

    def _is_running(self, component: Component[Any]) -> bool:
        if component._stage != "LAUNCHED":
            return component._stage == "RUNNING"
        backend = component._template.backend
        return isinstance(backend, ExecutionBackend) and backend.is_running(component._key)


def _as_calls(components: list[Component[Any]]) -> Iterator[tuple[Any, ...]]:
    """Give for each component what a backend needs of a plain call, which it then is."""
    for component in components:
        template, context = component._template, component._context
        component._is_call = True
        component._context = None
        yield (
            component,
            template.function,
            component._args,
            component._kwargs,
            template.name,
            context,
        )


def is_on_backend(component: Component[Any]) -> bool:
    """Tell whether a backend has been given the component, which has not ended or is a service."""
    return (
        component._stage in _ON_BACKEND
        and isinstance(component, Task)
        and not component._template.runs_in_loop
    )
