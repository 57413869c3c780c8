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
import contextvars
import functools
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from dftracer.asyncflow import dependencies
from dftracer.asyncflow.backends.base import ExecutionBackend, TaskStates
from dftracer.asyncflow.commands import to_argv
from dftracer.asyncflow.components import Block, Component, Task
from dftracer.asyncflow.decorators import Template
from dftracer.asyncflow.errors import EngineShutdownError
from dftracer.asyncflow.failures import (
    all_failed,
    dependency_failure,
    failure_without_reason,
    first_cancelled,
    fit_for_future,
    label_of,
    root_of,
)
from dftracer.utils.primitives import Graph


class Scheduler:
    """All the components of one engine that have not ended, and what happens to them."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, backend: ExecutionBackend, uid: str
    ) -> None:
        self.loop = loop
        self.backend = backend
        self.uid = uid

        self._graph = Graph()
        self._numbers = 0
        self._unfinished: dict[int, Component[Any]] = {}
        self._by_uid: dict[str, Component[Any]] = {}
        self._foreign: dict[asyncio.Future[Any], int] = {}
        self._ready: list[Component[Any]] = []
        self._launch_scheduled = False
        self._background: set[asyncio.Task[Any]] = set()
        self._bodies: dict[int, asyncio.Task[None]] = {}
        self._members: dict[int, dict[int, Component[Any]]] = {}
        self._to_cancel: deque[tuple[Component[Any], Any, str]] = deque()
        self._is_cancelling = False
        self._is_closed = False
        self._quiet: asyncio.Future[None] | None = None
        self._owner: contextvars.ContextVar[Component[Any] | None] = contextvars.ContextVar(
            f"{uid}.owner", default=None
        )
        """The component in whose body this is, if that body runs in the event loop."""

    # --- a call ---------------------------------------------------------------------------------

    def _register(
        self, template: Template, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Component[Any]:
        """Make a call a node of the graph; its future is the answer to the caller."""
        self._check_caller(template)
        futures = dependencies.find_in_call(args, kwargs)
        waits_for = [self._node_of(future) for future in futures if not future.done()]
        self._numbers = number = self._numbers + 1
        is_block = template.kind == "block"
        uid = f"{'block' if is_block else 'task'}.{number:06d}"
        description = {
            "uid": uid,
            "name": template.name,
            "function": template.function,
            "executable": None,
            "args": args,
            "kwargs": kwargs,
            "context": contextvars.copy_context(),
            "engine": self.uid,
        }
        kind: type[Component[Any]] = Block if is_block else Task
        component = kind(self, number, description, template)
        if futures:
            component._dependencies = list(futures)
        ready = self._graph.add(number, waits_for)

        self._unfinished[number] = component
        self._by_uid[uid] = component
        owner = self._owner.get()
        if owner is not None and not owner.done():
            component._owner = owner._number
            self._members.setdefault(owner._number, {})[number] = component
        if ready:
            self._enqueue(component)
        return component

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
            if component.done() or (component._dependencies and not self._resolve(component)):
                continue
            kind = component._template.kind
            if kind == "function":
                tasks.append(component._description)
            elif kind == "executable":
                self._start_body(component, self._prepare_program(component))
            else:
                self._start_body(component, self._run_block(component))
        if tasks:
            self._submit(tasks)

    def _resolve(self, component: Component[Any]) -> bool:
        """Put values in place of futures. False if that has failed, and ``component`` with it."""
        description = component._description
        # The graph knows neither what had ended before the call nor how foreign futures end.
        for future in component._dependencies:
            if future.cancelled() or future.exception() is not None:
                self._blame(component)
                return False
        try:
            description["args"], description["kwargs"] = dependencies.resolve_call(
                description["args"], description["kwargs"]
            )
        except Exception as error:
            self._settle(component, error=error)
            return False
        component._dependencies = ()
        return True

    def _blame(self, component: Component[Any]) -> None:
        """End a component that cannot run, since not all of its dependencies have ended well."""
        if cancelled := first_cancelled(component._dependencies):
            self._cancel(component, _cancelled_with(root_of(cancelled)), root_of(cancelled))
        else:
            failed = all_failed(component._dependencies)
            self._settle(component, error=dependency_failure(component, failed))

    def _start_body(self, component: Component[Any], body: Coroutine[Any, Any, None]) -> None:
        """Run a part of a component in the event loop; cancelling the component cancels it."""
        description, number = component._description, component._number
        # In a copy of the call's context, which holds for any task factory and Python version.
        create = functools.partial(self.loop.create_task, body, name=description["uid"])
        task = description["context"].run(create)
        if not task.done() and not component._body_released:
            self._bodies[number] = task
            task.add_done_callback(functools.partial(self._body_ended, number))

    def _body_ended(self, number: int, _task: asyncio.Task[None] | None = None) -> None:
        self._bodies.pop(number, None)
        self._tell_if_quiet()

    async def _prepare_program(self, component: Component[Any]) -> None:
        """Ask an executable task's function for its command and submit that."""
        description, template = component._description, component._template
        self._owner.set(component)
        try:
            command = template.function(*description["args"], **description["kwargs"])
            if template.is_async:
                command = await command
            argv = to_argv(template.name, command)
        except asyncio.CancelledError:
            self._cancel(component, None)
        except Exception as error:
            self._settle(component, error=error)
        except (SystemExit, KeyboardInterrupt) as error:
            self._settle(component, error=error)
            raise
        else:
            if not component.done():
                description.update(function=None, executable=argv[0], arguments=argv[1:])
                self._submit([description])

    async def _run_block(self, block: Component[Any]) -> None:
        description, template = block._description, block._template
        block._running = True
        self._owner.set(block)  # in this task's own copy of the context, so never to be reset
        try:
            result = await template.function(*description["args"], **description["kwargs"])
        except asyncio.CancelledError:
            self._cancel(block, None)
        except Exception as error:
            self._settle(block, error=error)
        except (SystemExit, KeyboardInterrupt) as error:
            self._settle(block, error=error)
            raise
        else:
            self._settle(block, result)

    def _submit(self, tasks: list[dict[str, Any]]) -> None:
        """Hand tasks to the backend. If it refuses them they fail; the engine lives on."""
        submit_nowait = getattr(self.backend, "submit_nowait", None)
        if submit_nowait is None:
            self._run_in_background(self._submit_and_wait(tasks))
            return
        try:
            submit_nowait(tasks)
        except Exception as error:
            self._fail_all(tasks, error)

    async def _submit_and_wait(self, tasks: list[dict[str, Any]]) -> None:
        try:
            await self.backend.submit_tasks(tasks)
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

    def _run_in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self.loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background_ended)

    def _background_ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        self._tell_if_quiet()

    # --- an outcome -----------------------------------------------------------------------------

    def task_callbacks(self, task: dict[str, Any], state: str) -> None:
        """Take a task's new state from a backend, in the event loop's thread."""
        component = self._by_uid.get(task["uid"])
        if component is None or component.done():
            return  # cancelled meanwhile: its outcome comes too late
        if task is not component._description and task.get("engine") != self.uid:
            return  # of another engine, whose tasks have the same names
        if state == TaskStates.DONE:
            is_program = component._template.kind == "executable"
            self._settle(component, task["stdout"] if is_program else task["return_value"])
        elif state == TaskStates.FAILED:
            error = task.get("exception")
            if error is None:
                error = failure_without_reason(task, self.backend.name)
            self._settle(component, error=error)
        elif state == TaskStates.CANCELED:
            self._cancel(component, None)
        elif state == TaskStates.RUNNING:
            component._running = True

    def _settle(self, component: Component[Any], result: Any = None, *, error: Any = None) -> None:
        """End a component with a result or an error, and tell the graph."""
        if component.done():
            return
        if error is None:
            component.set_result(result)
        else:
            component.set_exception(fit_for_future(component, error))
        self._forget(component)
        verdicts = self._graph.finish(component._number, done=error is None)
        if verdicts:
            self._follow(verdicts)

    def _forget(self, component: Component[Any]) -> None:
        """Let go of an ended component: from here on its future is all there is of it."""
        number, description = component._number, component._description
        del self._unfinished[number]
        del self._by_uid[description["uid"]]
        description["context"] = None
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
                component._settle_as_cancelled(_cancelled_with(component._root))
            else:
                failed = all_failed(component._dependencies)
                component.set_exception(dependency_failure(component, failed))
            self._forget(component)

    # --- a cancellation -------------------------------------------------------------------------

    def _cancel(self, component: Component[Any], msg: Any | None, root: str = "") -> bool:
        """End a component as cancelled; stop it, its members and its dependents.

        ``root`` names what was cancelled first, if that was not ``component``.
        """
        if component.done():
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
        component._settle_as_cancelled(msg)
        self._forget(component)
        body = self._bodies.get(number)
        if body is not None and body is not asyncio.current_task(self.loop):
            body.cancel(msg)
        if isinstance(component, Task):
            self._cancel_on_backend(component._description["uid"])
        self._follow(self._graph.cancel(number))

    def _cancel_on_backend(self, uid: str) -> None:
        cancel_nowait: Callable[[str], bool] | None = getattr(self.backend, "cancel_nowait", None)
        if cancel_nowait is None:
            self._run_in_background(self.backend.cancel_task(uid))
            return
        try:
            cancel_nowait(uid)
        except Exception as error:
            message = f"backend '{self.backend.name}' could not cancel {uid}"
            self.loop.call_exception_handler({"message": message, "exception": error})

    def _is_running(self, component: Component[Any]) -> bool:
        return component._running or self.backend.is_running(component._description["uid"])

    # --- the end --------------------------------------------------------------------------------

    def _close(self) -> None:
        """Cancel all that is unfinished, and refuse calls from now on."""
        self._is_closed = True
        for component in list(self._unfinished.values()):
            self._cancel(component, f"engine '{self.uid}' is shut down")

    def _release_caller(self) -> None:
        """Do not wait for the body that calls this, nor for one that this is called for."""
        current, owner = asyncio.current_task(self.loop), self._owner.get()
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


def _cancelled_with(root: str) -> str:
    return f"a dependency was cancelled: {root}"
