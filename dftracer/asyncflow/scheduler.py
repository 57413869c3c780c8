"""The part of an engine that turns calls into a graph and runs what is ready.

Everything here happens in the event loop's thread, and in answer to an event: a call, the end of a
dependency, an outcome from a backend, a cancellation. Nothing polls and nothing sleeps.

======================  ==========================================================
event                   what follows
======================  ==========================================================
a call                  ``_register``: a node in the graph, an edge per future
nothing left to wait    ``_launch``: values in place of futures, then to a backend
an outcome              ``task_callbacks``: the future is settled
a future settled        ``_follow``: the graph says whose waiting is over
======================  ==========================================================

It is one class, and longer than most: its events share state that nothing else may touch.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from dftracer.asyncflow import dependencies, linking
from dftracer.asyncflow.attempts import Attempts, Policy
from dftracer.asyncflow.backends import registry
from dftracer.asyncflow.backends.base import ExecutionBackend, RemoteValue, TaskStates
from dftracer.asyncflow.commands import to_argv, to_prompt
from dftracer.asyncflow.components import Block, Component, RemoteTask, Task, number_of
from dftracer.asyncflow.decorators import Template
from dftracer.asyncflow.downloads import Downloads
from dftracer.asyncflow.errors import EngineShutdownError, text_of
from dftracer.asyncflow.failures import (
    all_failed,
    dependency_failure,
    failure_on_backend,
    first_cancelled,
    fit_for_future,
    label_of,
    result_on_backend,
    root_of,
)
from dftracer.asyncflow.inspection import History
from dftracer.utils.primitives import Graph

if TYPE_CHECKING:
    from dftracer.asyncflow.telemetry import Telemetry

log = logging.getLogger("dftracer.asyncflow")


_ON_BACKEND = frozenset({"LAUNCHED", "RUNNING"})


class Scope(NamedTuple):
    """Where a call is made: in whose body, and under which workflow's name."""

    owner: Component[Any] | None
    workflow_id: str | None


class Scheduler:
    """All the components of one engine that have not ended, and what happens to them."""

    implicit_data_mode: bool

    def __init__(self, loop: asyncio.AbstractEventLoop, backends: Sequence[Any], uid: str) -> None:
        self.loop = loop
        self.uid = uid
        self.log = log
        self._thread = threading.get_ident()
        self._backends = registry.by_name(backends)
        self._default = backends[0]
        self._states = registry.state_names(backends)
        self._links_implicitly = any(map(linking.links_implicitly, backends))
        self._downloads = Downloads()

        self._graph = Graph()
        self._numbers = 0
        self._unfinished: dict[int, Component[Any]] = {}
        self._history = History()
        self._foreign: dict[asyncio.Future[Any], int] = {}
        self._ready: list[Component[Any]] = []
        self._launch_scheduled = False
        self._background: set[asyncio.Task[Any]] = set()
        self._submissions: set[asyncio.Task[Any]] = set()
        """What in the background hands tasks to a backend, and may wait there for their ends."""
        self._bodies: dict[int, asyncio.Task[None]] = {}
        self._members: dict[int, dict[int, Component[Any]]] = {}
        self._remote_tasks: weakref.WeakSet[RemoteTask[Any]] = weakref.WeakSet()
        """Those that may be asked for their results, which nobody can fetch after the end."""
        self._services: dict[int, Component[Any]] = {}
        """What runs on though its future has been ended by hand, as a service's is when ready."""
        self._to_cancel: deque[tuple[Component[Any], Any, str]] = deque()
        self._is_cancelling = False
        self._is_closed = False
        self._shutdown_begun = asyncio.Event()
        self._quiet: asyncio.Future[None] | None = None
        self._telemetry: Telemetry | None = None
        self._scope: contextvars.ContextVar[Scope | None] = contextvars.ContextVar(
            f"{uid}.scope", default=None
        )

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

    # --- a call ---------------------------------------------------------------------------------

    def _register(
        self,
        template: Template,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Mapping[str, Any] | None = None,
        workflow_id: str | None = None,
    ) -> Component[Any]:
        """Make a call a node of the graph; its future is the answer to the caller."""
        self._check_caller(template)
        futures, files = dependencies.find_in_call(args, kwargs)
        waits_for = [self._node_of(future) for future in futures if not self._has_ended(future)]
        self._numbers = number = self._numbers + 1
        kind: type[Component[Any]] = Block if template.kind == "block" else Task
        if options is None:
            options = template.task_description
        context = contextvars.copy_context()
        component = kind(self, number, template, args, kwargs, options, context)
        if futures:
            component._dependencies = list(futures)
        if files:
            component._files = files
        ready = self._graph.add(number, waits_for)

        self._unfinished[number] = component
        scope = self._scope.get()
        if scope is not None:
            self._take_in(component, scope)
        if workflow_id is not None:
            component._workflow_id = workflow_id
        if self._telemetry is not None:
            self._telemetry.created(component)
        if ready:
            self._enqueue(component)
        return component

    def _take_in(self, component: Component[Any], scope: Scope) -> None:
        """Note in whose body and for which workflow a call was made."""
        component._workflow_id = scope.workflow_id
        owner = scope.owner
        if owner is not None and not owner.done():
            component._owner = owner._number
            self._members.setdefault(owner._number, {})[component._number] = component

    def _check_caller(self, template: Template) -> None:
        if asyncio._get_running_loop() is not self.loop:
            raise RuntimeError(
                f"'{template.name}' was called outside the event loop of its engine "
                f"'{self.uid}': call tasks and blocks in that loop's thread"
            )
        if self._is_closed:
            raise EngineShutdownError(
                f"cannot call '{template.name}': engine '{self.uid}' is shut down"
            )

    def _has_ended(self, future: asyncio.Future[Any]) -> bool:
        """Tell whether nobody needs to wait for a future, without having its result fetched."""
        return (type(future) is RemoteTask and future._engine is self) or future.done()

    def _node_of(self, future: asyncio.Future[Any]) -> int:
        """Return the node of an unfinished future: a component, or any other one of this loop."""
        if isinstance(future, Component) and future._engine is self:
            return future._number
        if future in self._foreign:
            return self._foreign[future]
        if future.get_loop() is not self.loop:
            raise ValueError(
                f"{future!r} belongs to another event loop, so a task here cannot depend on it"
            )
        self._numbers += 1
        number = self._foreign[future] = self._numbers
        self._graph.add(number, [])
        future.add_done_callback(self._foreign_done)
        return number

    def _foreign_done(self, future: asyncio.Future[Any]) -> None:
        number = self._foreign.pop(future)
        # How it ended is asked when its dependents are launched.
        self._follow(self._graph.finish(number, done=True))

    # --- nothing left to wait for ---------------------------------------------------------------

    def _enqueue(self, component: Component[Any]) -> None:
        """Launch ``component`` soon, together with all that become ready in this turn."""
        self._ready.append(component)
        if not self._launch_scheduled:
            self._launch_scheduled = True
            self.loop.call_soon(self._launch)

    def _launch(self) -> None:
        self._launch_scheduled = False
        ready, self._ready = self._ready, []
        tasks = []
        for component in ready:
            if component.done() or component._stage != "PENDING":
                continue
            if component._dependencies and not self._resolve(component):
                continue
            if self._telemetry is not None:
                self._telemetry.resolved(component)
            if component._template.policy is not None:
                self._begin_attempt(component, component._template.policy)
            kind = component._template.kind
            if kind == "function" and not (component._files or component._producers):
                component._stage = "LAUNCHED"
                tasks.append(component)
            elif kind == "block":
                self._start_body(component, self._run_block(component))
            else:
                self._start_body(component, self._prepare(component))
        # The body of a block that was started eagerly may have cancelled some.
        if tasks := [task for task in tasks if not task.done()]:
            self._submit(tasks)

    def _resolve(self, component: Component[Any]) -> bool:
        """Put values in place of futures. False if that has failed, and ``component`` with it."""
        # The graph knows neither what had ended before the call nor how foreign futures end.
        value_of: Callable[[asyncio.Future[Any]], Any] = asyncio.Future.result
        for future in component._dependencies:
            if getattr(future, "_remote", None) is not None:
                value_of = functools.partial(_value_for, component)
            elif future.cancelled() or future.exception() is not None:
                self._blame(component)
                return False
        if value_of is not asyncio.Future.result and self._fetch_for(component):
            return False
        description = component._describe()
        try:
            args, kwargs = dependencies.resolve_call(component._args, component._kwargs, value_of)
        except Exception as error:
            self._settle(component, error=error)
            return False
        component._args = description["args"] = args
        component._kwargs = description["kwargs"] = kwargs
        if component._files or self._links_implicitly:
            component._producers = [
                future._describe()
                for future in component._dependencies
                if isinstance(future, Component)
            ]
        component._dependencies = ()
        return True

    def _fetch_for(self, component: Component[Any]) -> bool:
        """Have the results fetched that ``component`` needs here; it is launched again then."""
        absent = [
            future
            for future in component._dependencies
            if type(future) is RemoteTask and not _can_stay(future, component)
        ]
        if absent:
            fetched = asyncio.gather(*absent, return_exceptions=True)
            fetched.add_done_callback(lambda _: self._enqueue(component))
        return bool(absent)

    def _blame(self, component: Component[Any]) -> None:
        """End a component that cannot run, since not all of its dependencies have ended well."""
        if cancelled := first_cancelled(component._dependencies):
            self._cancel(component, _cancelled_with(root_of(cancelled)), root_of(cancelled))
        else:
            failed = all_failed(component._dependencies)
            self._settle(component, error=dependency_failure(component, failed))

    def _begin_attempt(self, component: Component[Any], policy: Policy) -> None:
        if component._attempts is None:
            component._attempts = Attempts(component, policy)
        component._attempts.begin()

    def _start_body(
        self, component: Component[Any], body: Coroutine[Any, Any, None]
    ) -> asyncio.Task[None]:
        """Run a part of a component in the event loop; cancelling the component cancels it."""
        component._stage = "PREPARING"
        context, number = component._context, component._number
        assert context is not None, "a component that has not ended has its context"
        # In a copy of the call's context, which holds for any task factory and Python version.
        create = functools.partial(self.loop.create_task, body, name=component.uid)
        task = context.run(create)
        if not task.done() and not component._body_released:
            self._bodies[number] = task
            task.add_done_callback(functools.partial(self._body_ended, number))
        return task

    def _body_ended(self, number: int, _task: asyncio.Task[None] | None = None) -> None:
        self._bodies.pop(number, None)
        service = self._services.get(number)
        if service is not None and not _is_on_backend(service):
            del self._services[number]
        self._tell_if_quiet()

    async def _prepare(self, component: Component[Any]) -> None:
        """See to the files of a task, ask what it runs if it is no function, and submit it."""
        template, attempts, order = component._template, component._attempts, None
        # In this task's own copy of the context, so never to be reset.
        self._scope.set(Scope(component, component._workflow_id))
        try:
            if component._files or component._producers:
                await self._link_files(component)
            if template.kind != "function":
                order = template.function(*component._args, **component._kwargs)
                if template.is_async:
                    order = await (order if attempts is None else attempts.limit(order))
            if template.kind == "prompt":
                order = {"prompt": to_prompt(template.name, order)}
            elif template.kind == "executable":
                argv = to_argv(template.name, order, component._options.get("shell"))
                order = {"executable": argv[0], "arguments": argv[1:]}
        except asyncio.CancelledError:
            self._cancel(component, None)
        except Exception as error:
            self._fail(component, error)
        except (SystemExit, KeyboardInterrupt) as error:
            self._settle(component, error=error)
            raise
        else:
            if not component.done():
                if order is not None:
                    description = component._describe()
                    description.update(order)
                    # Seen to: what is run is run directly.
                    description["task_backend_specific_kwargs"].pop("shell", None)
                component._stage = "LAUNCHED"
                self._submit([component])

    async def _link_files(self, component: Component[Any]) -> None:
        """Let the files of a task be brought, and its body know where they are."""
        description, backend = component._describe(), component._template.backend
        places = await linking.link(
            description,
            component._files,
            component._producers,
            backend,
            self.implicit_data_mode,
            self._downloads,
        )
        component._producers = ()
        args, kwargs = dependencies.place_files(component._args, component._kwargs, places)
        component._args = description["args"] = args
        component._kwargs = description["kwargs"] = kwargs

    async def _run_block(self, block: Component[Any]) -> None:
        await self._run_body(block, block._template.function, block._args, block._kwargs)

    async def _run_body(
        self,
        block: Component[Any],
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Await a block's body and end the block as it ends."""
        block._stage = "RUNNING"
        # In this task's own copy of the context, so never to be reset.
        self._scope.set(Scope(block, block.uid))
        telemetry = self._telemetry
        try:
            with telemetry.scope("block", block.uid) if telemetry is not None else nullcontext():
                work, attempts = function(*args, **kwargs), block._attempts
                result = await (work if attempts is None else attempts.limit(work))
        except asyncio.CancelledError:
            self._cancel(block, None)
        except Exception as error:
            self._fail(block, error)
        except (SystemExit, KeyboardInterrupt) as error:
            self._settle(block, error=error)
            raise
        else:
            self._settle(block, result)

    def _submit(self, components: list[Component[Any]]) -> None:
        """Hand tasks to their backends."""
        for component in components:
            if component._attempts is not None:
                component._attempts.hand_over()
        if self._telemetry is not None:
            self._telemetry.submitted(components)
        if len(self._backends) == 1:
            self._submit_to(self._default, [component._describe() for component in components])
            return
        shares: dict[str, list[dict[str, Any]]] = {}
        for component in components:
            name = component._template.backend.name
            shares.setdefault(name, []).append(component._describe())
        for name, tasks in shares.items():
            self._submit_to(self._backends[name], tasks)

    def _submit_to(self, backend: Any, tasks: list[dict[str, Any]]) -> None:
        """Hand tasks to a backend. If it refuses them they fail; the engine lives on."""
        submit_nowait = getattr(backend, "submit_nowait", None)
        try:
            if any(task["capture_stdio"] and task["executable"] for task in tasks):
                os.makedirs(backend._work_dir, exist_ok=True)
            if submit_nowait is not None:
                submit_nowait(tasks)
            else:
                submission = self._run_in_background(self._submit_and_wait(backend, tasks))
                self._submissions.add(submission)
                submission.add_done_callback(self._submissions.discard)
        except Exception as error:
            self._fail_all(tasks, error)

    async def _submit_and_wait(self, backend: Any, tasks: list[dict[str, Any]]) -> None:
        try:
            await registry.end_of(backend.submit_tasks(tasks))
        except asyncio.CancelledError:
            for task in tasks:
                self.task_callbacks(task, TaskStates.CANCELED)
            raise
        except Exception as error:
            self._fail_all(tasks, error)

    def _fail_all(self, tasks: list[dict[str, Any]], error: Exception) -> None:
        for task in tasks:
            task["exception"] = error
            self.task_callbacks(task, TaskStates.FAILED)

    def _run_in_background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background_ended)
        return task

    def _background_ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        self._tell_if_quiet()

    # --- an outcome -----------------------------------------------------------------------------

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
        if threading.get_ident() != self._thread:
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
            if outcome != TaskStates.RUNNING:
                self._services.pop(number_of(record["uid"]), None)
            return
        if component._stage not in _ON_BACKEND:
            return  # no backend has been given it yet
        if component._attempts is not None and not component._attempts.takes(record["uid"]):
            return  # of an attempt that has run out of time
        if service_callback is not None:
            service_callback(component, task, state)
            if component.done():
                return
        if outcome == TaskStates.DONE:
            if component._files and component._describe().get("directory") is not None:
                self._run_in_background(self._check_outputs(component, record))
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

    async def _check_outputs(self, component: Component[Any], record: dict[str, Any]) -> None:
        """End a task that has ended well, unless it has not written what it declares to write."""
        try:
            await component._template.backend.check_outputs(component._describe())
        except Exception as error:
            self._settle(component, error=error)
        else:
            self._settle(component, result_on_backend(component, record))

    def _component_of(self, uid: str) -> Component[Any] | None:
        """Return the unfinished component of that identifier."""
        return self._unfinished.get(number_of(uid))

    def _fail(self, component: Component[Any], error: Any) -> None:
        """End an attempt of a component, and the component too if there is no other attempt."""
        attempts = component._attempts
        if attempts is not None:
            error = attempts.fail(fit_for_future(component, error))
            if error is None:
                return
        self._settle(component, error=error)

    def _settle(self, component: Component[Any], result: Any = None, *, error: Any = None) -> None:
        """End a component with a result or an error, and tell the graph."""
        if component._number not in self._unfinished:
            return
        try:
            verdicts = self._graph.finish(component._number, done=error is None)
        except ValueError:
            raise asyncio.InvalidStateError(
                f"{component!r} cannot be ended by hand while it waits for others: cancel it, or "
                "wait for them"
            ) from None
        if error is not None:
            asyncio.Future.set_exception(component, fit_for_future(component, error))
        elif isinstance(result, RemoteValue):
            self._leave(component, result)
        else:
            asyncio.Future.set_result(component, result)
        self._forget(component)
        if verdicts:
            self._follow(verdicts)

    def _leave(self, component: Component[Any], result: RemoteValue) -> None:
        """End a component whose result stays where it is until somebody asks for it."""
        component._remote = result
        component.__class__ = RemoteTask
        assert isinstance(component, RemoteTask)
        self._remote_tasks.add(component)
        if component._callbacks:  # somebody has
            component._fetch()

    def _end_by_hand(self, component: Component[Any], result: Any, error: Any) -> None:
        if component.done():
            return  # while this was on its way from another thread
        self._settle(component, result, error=error)
        if component._stage != "PENDING":
            self._services[component._number] = component

    def _forget(self, component: Component[Any]) -> None:
        """Let go of an ended component: from here on its future is all there is of it."""
        number = component._number
        del self._unfinished[number]
        self._history.add(component)
        if self._telemetry is not None:
            self._telemetry.ended(component)
        component._context = None
        if component._attempts is not None:
            component._attempts.end()
        if component._description is not None:
            component._description["context"] = None
        if component._dependencies:
            component._describe()  # which names them, and does not hold them
            component._dependencies = ()
        if self._members:
            self._members.pop(number, None)
            if component._owner in self._members:
                self._members[component._owner].pop(number, None)

    def _follow(self, verdicts: Sequence[tuple[int, str]]) -> None:
        """Carry out what the graph has decided about those who waited."""
        for number, verdict in verdicts:
            component = self._unfinished[number]
            if verdict == "ready":
                self._enqueue(component)
                continue
            # It has ended. How is asked of its dependencies, as `_resolve` does: some of them the
            # graph does not know.
            if cancelled := first_cancelled(component._dependencies):
                component._root = root_of(cancelled)
                asyncio.Future.cancel(component, _cancelled_with(component._root))
            else:
                failed = all_failed(component._dependencies)
                error = dependency_failure(component, failed)
                asyncio.Future.set_exception(component, error)
            self._forget(component)

    # --- a cancellation -------------------------------------------------------------------------

    def _cancel(self, component: Component[Any], msg: Any | None, root: str = "") -> bool:
        """End a component as cancelled; stop it, its members and its dependents.

        ``root`` names what was cancelled first, if that was not ``component``.
        """
        if component._number not in self._unfinished:
            return False
        self._to_cancel.append((component, msg, root))
        # To cancel a body is to cancel what it awaits, which may bring us here again, as often as
        # blocks are nested: the first call does the work for all.
        if not self._is_cancelling:
            self._is_cancelling = True
            try:
                while self._to_cancel:
                    self._cancel_one(*self._to_cancel.popleft())
            finally:
                self._is_cancelling = False
        return True

    def _cancel_one(self, component: Component[Any], msg: Any | None, root: str) -> None:
        if component.done():
            return
        number = component._number
        for member in self._members.pop(number, {}).values():
            self._to_cancel.append((member, msg or f"{label_of(component)} was cancelled", ""))
        component._root = root
        asyncio.Future.cancel(component, msg)
        self._forget(component)
        body = self._bodies.get(number)
        if body is not None and body is not asyncio.current_task(self.loop):
            body.cancel(msg)
        if _is_on_backend(component):
            self._cancel_on_backend(component)
        self._follow(self._graph.cancel(number))

    def _cancel_on_backend(self, component: Component[Any]) -> None:
        backend, uid = component._template.backend, component._describe()["uid"]
        cancel_nowait: Callable[[str], bool] | None = getattr(backend, "cancel_nowait", None)
        if cancel_nowait is None:
            self._run_in_background(self._cancel_and_wait(backend, uid))
            return
        try:
            cancel_nowait(uid)
        except Exception as error:
            self._complain(backend, uid, error)

    async def _cancel_and_wait(self, backend: Any, uid: str) -> None:
        try:
            await registry.end_of(backend.cancel_task(uid))
        except Exception as error:
            self._complain(backend, uid, error)

    def _complain(self, backend: Any, uid: str, error: Exception) -> None:
        message = f"backend '{backend.name}' could not cancel {uid}"
        self.loop.call_exception_handler({"message": message, "exception": error})

    def _is_running(self, component: Component[Any]) -> bool:
        if component._stage != "LAUNCHED":
            return component._stage == "RUNNING"
        backend = component._template.backend
        return isinstance(backend, ExecutionBackend) and backend.is_running(
            component._describe()["uid"]
        )

    # --- the end --------------------------------------------------------------------------------

    def _close(self) -> None:
        """Cancel all that is unfinished, and refuse calls from now on."""
        self._is_closed = True
        for component in list(self._unfinished.values()):
            self._cancel(component, f"engine '{self.uid}' is shut down")
        for number, service in self._services.items():
            body = self._bodies.get(number)
            if body is not None and body is not asyncio.current_task(self.loop):
                body.cancel()
            if _is_on_backend(service):
                self._cancel_on_backend(service)
        self._services.clear()
        for submission in self._submissions:
            submission.cancel()
        for task in list(self._remote_tasks):
            if type(task) is RemoteTask:
                task.cancel(f"engine '{self.uid}' is shut down, and nobody had awaited {task!r}")
        self._shutdown_begun.set()

    def _release_caller(self) -> None:
        """Do not wait for the body that calls this, nor for one that this is called for."""
        current, scope = asyncio.current_task(self.loop), self._scope.get()
        owner = scope.owner if scope is not None else None
        if owner is not None:
            owner._body_released = True
            self._body_ended(owner._number)
        for number in [n for n, body in self._bodies.items() if body is current]:
            self._body_ended(number)

    async def _wait_until_quiet(self) -> None:
        """Wait until no body runs in the event loop, nor anything else on behalf of the engine."""
        while self._bodies or self._background:
            self._quiet = self.loop.create_future()
            await self._quiet

    def _tell_if_quiet(self) -> None:
        quiet = self._quiet
        if quiet is not None and not quiet.done() and not self._bodies and not self._background:
            quiet.set_result(None)


def _is_on_backend(component: Component[Any]) -> bool:
    """Tell whether a backend has been given the component, which has not ended or is a service."""
    return component._stage in _ON_BACKEND and isinstance(component, Task)


def _can_stay(task: Component[Any], asker: Component[Any]) -> bool:
    """Tell whether ``asker`` can do with the result of ``task`` where it is."""
    template = asker._template
    return (
        task._remote is not None
        and template.kind == "function"
        and task._remote.is_on(template.backend)
    )


def _value_for(asker: Component[Any], future: asyncio.Future[Any]) -> Any:
    """Return the result of ``future`` as ``asker`` can have it without a copy being sent."""
    if isinstance(future, Component) and _can_stay(future, asker):
        return future._remote
    return future.result()


def _cancelled_with(root: str) -> str:
    return f"a dependency was cancelled: {root}"
