"""The engine: turns calls into a graph and runs what is ready.

Everything here happens in the event loop's thread, and in answer to an event: a call, the end of a
dependency, an outcome from a backend, a cancellation. Nothing polls and nothing sleeps.

======================  ==========================================================
event                   what follows
======================  ==========================================================
a call                  ``_register``: a node in the graph, an edge per future
nothing left to wait    ``_launch``: values in place of futures, then to a backend
an outcome              ``task_callbacks``: the future is settled
a future settled        ``_follow``: the graph says who is ready, failed, cancelled
======================  ==========================================================
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from dftracer.asyncflow import dependencies
from dftracer.asyncflow.backends.base import ExecutionBackend, TaskStates
from dftracer.asyncflow.backends.noop import NoopExecutionBackend
from dftracer.asyncflow.backends.runtime import RuntimeExecutionBackend
from dftracer.asyncflow.commands import to_argv
from dftracer.asyncflow.components import Block, Component, Task
from dftracer.asyncflow.decorators import (
    BlockDecorator,
    ExecutableDecorator,
    FunctionDecorator,
    Template,
    make_decorator,
)
from dftracer.asyncflow.errors import DependencyFailureError, EngineShutdownError
from dftracer.utils.primitives import Graph

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


class WorkflowEngine:
    """Runs workflows of decorated functions in the current event loop.

    Make one with ``await WorkflowEngine.create()`` and end it with :meth:`shutdown`, or use it as
    ``async with await WorkflowEngine.create() as flow:``.

    Parameters
    ----------
    backend:
        An execution backend that has been awaited. Only for :meth:`create`: ``None``.
    dry_run:
        Run nothing: every task ends at once with a dummy result.
    uid:
        The name of the engine; ``asyncflow.session.`` and 8 random hex digits by default.
    work_dir:
        The directory below which outputs go; the current one by default.

    Raises
    ------
    RuntimeError
        If no event loop runs.
    TypeError
        If ``backend`` is no execution backend.
    """

    function_task: FunctionDecorator
    """Decorates a function, plain or async, that runs on a worker; with or without ``()``."""
    executable_task: ExecutableDecorator
    """Decorates a function that returns a command; the result is what the program writes."""
    block: BlockDecorator
    """Decorates an async function that runs in the event loop and calls tasks and blocks."""

    def __init__(
        self,
        backend: ExecutionBackend | None = None,
        dry_run: bool = False,
        uid: str | None = None,
        work_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.loop = _running_loop()
        if not isinstance(backend, ExecutionBackend):
            raise TypeError(
                f"backend must be an execution backend, not {type(backend).__name__}: use "
                "'await WorkflowEngine.create()', which makes the default one"
            )
        self.backend = backend
        self.dry_run = dry_run
        self.uid = uid or f"asyncflow.session.{uuid.uuid4().hex[:8]}"
        self.work_dir = os.fspath(work_dir) if work_dir is not None else os.getcwd()

        self._graph = Graph()
        self._numbers = 0
        self._unfinished: dict[int, Component[Any]] = {}
        self._by_uid: dict[str, Component[Any]] = {}
        self._foreign: dict[asyncio.Future[Any], int] = {}
        self._ready: list[Component[Any]] = []
        self._launch_scheduled = False
        self._background: set[asyncio.Task[Any]] = set()
        self._bodies: dict[int, asyncio.Task[Any]] = {}
        self._members: dict[int, set[Component[Any]]] = {}
        self._block: ContextVar[Component[Any] | None] = ContextVar(
            f"{self.uid}.block", default=None
        )
        self._closing: asyncio.Future[None] | None = None

        self.function_task = make_decorator(self, "function")
        self.executable_task = make_decorator(self, "executable")
        self.block = make_decorator(self, "block")

        backend.is_attached = True
        backend.attached_to.append(self.uid)
        backend._work_dir = os.path.join(self.work_dir, self.uid)
        backend.register_callback(self.task_callbacks)

    @classmethod
    async def create(
        cls,
        backend: ExecutionBackend | None = None,
        dry_run: bool = False,
        uid: str | None = None,
        work_dir: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Make an engine in the running event loop, and its default backend if none is given."""
        _running_loop()
        if backend is None:
            backend = NoopExecutionBackend() if dry_run else await RuntimeExecutionBackend()
        elif isinstance(backend, RuntimeExecutionBackend):
            await backend
        return cls(backend, dry_run, uid, work_dir)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.shutdown()

    # --- a call ---------------------------------------------------------------------------------

    def _register(
        self, template: Template, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Component[Any]:
        """Make a call a node of the graph; its future is the answer to the caller."""
        self._check_caller(template)
        self._numbers += 1
        number = self._numbers
        is_block = template.kind == "block"
        uid = f"{'block' if is_block else 'task'}.{number:06d}"
        description = {
            "uid": uid,
            "name": template.name,
            "function": template.function,
            "executable": None,
            "args": args,
            "kwargs": kwargs,
        }
        kind: type[Component[Any]] = Block if is_block else Task
        component = kind(self, number, description)
        component._template = template

        futures: dict[asyncio.Future[Any], None] = {}
        for value in args:
            dependencies.find_futures(value, futures)
        if kwargs:
            dependencies.find_futures(kwargs, futures)
        component._dependencies = list(futures)
        waits_for = [self._node_of(future) for future in futures if not future.done()]
        ready = self._graph.add(number, waits_for)

        self._unfinished[number] = component
        self._by_uid[uid] = component
        block = self._block.get()
        if block is not None and not block.done():
            self._members.setdefault(block._number, set()).add(component)
        if ready:
            self._enqueue(component)
        return component

    def _check_caller(self, template: Template) -> None:
        if asyncio._get_running_loop() is not self.loop:
            raise RuntimeError(
                f"'{template.name}' was called outside the event loop of its engine "
                f"'{self.uid}': call tasks and blocks in that loop's thread"
            )
        if self._closing is not None:
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
        # Whether it failed is asked when its dependents are launched.
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
            if component.done() or not self._resolve(component):
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
        if not component._dependencies:
            return True
        failed: list[asyncio.Future[Any]] = []
        for future in component._dependencies:
            if future.cancelled():
                self._cancel(component, f"dependency {_name_of(future)} was cancelled")
                return False
            if future.exception() is not None:
                failed.append(future)
        if failed:
            self._settle(component, error=_dependency_failure(component, failed))
            return False
        try:
            description["args"] = tuple(map(dependencies.resolve, description["args"]))
            description["kwargs"] = {
                key: dependencies.resolve(value) for key, value in description["kwargs"].items()
            }
        except Exception as error:
            self._settle(component, error=error)
            return False
        component._dependencies = []
        return True

    def _start_body(self, component: Component[Any], body: Any) -> None:
        """Run a part of a component in the event loop; cancelling the component cancels it."""
        task = self.loop.create_task(body, name=component._description["uid"])
        self._bodies[component._number] = task
        task.add_done_callback(lambda _: self._bodies.pop(component._number, None))

    async def _prepare_program(self, component: Component[Any]) -> None:
        """Ask an executable task's function for its command and submit that."""
        description, template = component._description, component._template
        try:
            command = template.function(*description["args"], **description["kwargs"])
            if template.is_async:
                command = await command
            argv = to_argv(template.name, command)
        except asyncio.CancelledError:
            self._cancel(component, None)
        except Exception as error:
            self._settle(component, error=error)
        else:
            if not component.done():
                description.update(function=None, executable=argv[0], arguments=argv[1:])
                self._submit([description])

    async def _run_block(self, block: Component[Any]) -> None:
        description, template = block._description, block._template
        block._running = True
        self._block.set(block)  # in this task's own copy of the context, so never to be reset
        try:
            result = await template.function(*description["args"], **description["kwargs"])
        except asyncio.CancelledError:
            self._cancel(block, None)
        except Exception as error:
            self._settle(block, error=error)
        else:
            self._settle(block, result)

    def _submit(self, tasks: list[dict[str, Any]]) -> None:
        """Hand tasks to the backend. If it refuses them they fail; the engine lives on."""
        submit_nowait = getattr(self.backend, "submit_nowait", None)
        if submit_nowait is None:
            task = self.loop.create_task(self._submit_and_wait(tasks))
            self._background.add(task)
            task.add_done_callback(self._background.discard)
            return
        try:
            submit_nowait(tasks)
        except Exception as error:
            self._fail_all(tasks, error)

    async def _submit_and_wait(self, tasks: list[dict[str, Any]]) -> None:
        try:
            await self.backend.submit_tasks(tasks)
        except Exception as error:
            self._fail_all(tasks, error)

    def _fail_all(self, tasks: list[dict[str, Any]], error: Exception) -> None:
        for task in tasks:
            task["exception"] = error
            self.task_callbacks(task, TaskStates.FAILED)

    # --- an outcome -----------------------------------------------------------------------------

    def task_callbacks(self, task: dict[str, Any], state: str) -> None:
        """Take a task's new state from a backend, in the event loop's thread."""
        component = self._by_uid.get(task["uid"])
        if component is None or component.done():
            return  # cancelled meanwhile: its outcome comes too late
        if state == TaskStates.DONE:
            is_program = component._template.kind == "executable"
            self._settle(component, task["stdout"] if is_program else task["return_value"])
        elif state == TaskStates.FAILED:
            error = task.get("exception") or RuntimeError(
                f"task '{task['name']}' failed on backend '{self.backend.name}', which gave no "
                f"reason: {task.get('stderr') or 'no output'}"
            )
            self._settle(component, error=error)
        elif state == TaskStates.CANCELED:
            self._cancel(component, None)
        elif state == TaskStates.RUNNING:
            component._running = True

    def _settle(
        self, component: Component[Any], result: Any = None, *, error: BaseException | None = None
    ) -> None:
        """End a component with a result or an error, and tell the graph."""
        if component.done():
            return
        if error is None:
            component.set_result(result)
        else:
            component.set_exception(_fit_for_future(component, error))
        self._forget(component)
        self._follow(self._graph.finish(component._number, done=error is None))

    def _forget(self, component: Component[Any]) -> None:
        """Let go of an ended component: from here on its future is all there is of it."""
        del self._unfinished[component._number]
        del self._by_uid[component._description["uid"]]
        component._dependencies = []
        self._members.pop(component._number, None)

    def _follow(self, verdicts: Sequence[tuple[int, str]], root: str = "") -> None:
        """Carry out what the graph has decided about those who waited."""
        for number, verdict in verdicts:
            component = self._unfinished[number]
            if verdict == "ready":
                self._enqueue(component)
            elif verdict == "failed":
                failed = [f for f in component._dependencies if _has_failed(f)]
                component.set_exception(_dependency_failure(component, failed))
                self._forget(component)
            else:
                component._settle_as_cancelled(f"a dependency was cancelled: {root}")
                self._forget(component)

    # --- a cancellation -------------------------------------------------------------------------

    def _cancel(self, component: Component[Any], msg: Any | None) -> bool:
        """End a component as cancelled; stop it, its members and its dependents."""
        if component.done():
            return False
        number, uid = component._number, component._description["uid"]
        members = self._members.pop(number, set())
        component._settle_as_cancelled(msg)
        self._forget(component)
        body = self._bodies.get(number)
        if body is not None and body is not asyncio.current_task(self.loop):
            body.cancel(msg)
        for member in members:
            self._cancel(member, msg or f"block {component!r} was cancelled")
        if isinstance(component, Task):
            self._cancel_on_backend(uid)
        self._follow(self._graph.cancel(number), root=f"{uid} '{component.name}'")
        return True

    def _cancel_on_backend(self, uid: str) -> None:
        cancel_nowait = getattr(self.backend, "cancel_nowait", None)
        if cancel_nowait is not None:
            cancel_nowait(uid)
            return
        task = self.loop.create_task(self.backend.cancel_task(uid))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _is_running(self, component: Component[Any]) -> bool:
        return component._running or self.backend.is_running(component._description["uid"])

    # --- the end --------------------------------------------------------------------------------

    async def shutdown(self, skip_execution_backend: bool = False) -> None:
        """Cancel all that is unfinished, wait until it is gone, and shut the backend down.

        Calling it again waits for the first call and does nothing more. Afterwards, calling a task
        or block raises :class:`EngineShutdownError`.

        Parameters
        ----------
        skip_execution_backend:
            Leave the backend running, for another engine to use.
        """
        if self._closing is not None:
            await asyncio.shield(self._closing)
            return
        self._closing = self.loop.create_future()
        try:
            for component in list(self._unfinished.values()):
                self._cancel(component, f"engine '{self.uid}' is shut down")
            bodies = [*self._bodies.values(), *self._background]
            current = asyncio.current_task()
            await asyncio.gather(*(b for b in bodies if b is not current), return_exceptions=True)
            if not skip_execution_backend:
                await self.backend.shutdown()
        finally:
            self._closing.set_result(None)


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "a WorkflowEngine lives in an event loop and none is running: use "
            "'await WorkflowEngine.create()' inside an async function, for example under "
            "asyncio.run()"
        ) from None


def _name_of(future: asyncio.Future[Any]) -> str:
    if isinstance(future, Component):
        return f"{future._description['uid']} '{future.name}'"
    return repr(future)


def _has_failed(future: asyncio.Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is not None


def _dependency_failure(
    component: Component[Any], failed: list[asyncio.Future[Any]]
) -> DependencyFailureError:
    """Say which dependencies failed, and how it began."""
    names = [f.name if isinstance(f, Component) else repr(f) for f in failed]
    cause = failed[0].exception()
    root = cause.root_cause if isinstance(cause, DependencyFailureError) else cause
    error = DependencyFailureError(
        f"cannot run '{component.name}': {', '.join(names)} failed: {type(root).__name__}: {root}",
        failed_dependencies=names,
        root_cause=root,
    )
    error.__cause__ = cause
    return error


def _fit_for_future(component: Component[Any], error: BaseException) -> BaseException:
    """Return an error that a future can hold without harm to whoever awaits it.

    A future refuses ``StopIteration``, and ``SystemExit`` or ``KeyboardInterrupt`` raised by a
    task's body would end the event loop of the program that awaits it.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    stand_in = RuntimeError(f"task '{component.name}' raised {type(error).__name__}: {error}")
    stand_in.__cause__ = error
    return stand_in
