"""The engine as its users see it: how it begins and ends, and what it decorates.

It is longer than most modules, for what it documents: the public methods are short.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
import sys
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from dftracer.asyncflow import environment
from dftracer.asyncflow.backends import registry
from dftracer.asyncflow.backends.adapter import DictionaryReports, failure_in, result_in
from dftracer.asyncflow.backends.ending import Ending
from dftracer.asyncflow.backends.local.backend import (
    LocalExecutionBackend as LocalExecutionBackend,
)
from dftracer.asyncflow.backends.noop import NoopExecutionBackend as NoopExecutionBackend
from dftracer.asyncflow.data.files import InputFile as InputFile
from dftracer.asyncflow.data.files import OutputFile as OutputFile
from dftracer.asyncflow.engine import signals
from dftracer.asyncflow.engine.component import Component, number_of
from dftracer.asyncflow.engine.decorators import (
    BlockDecorator,
    ExecutableDecorator,
    FunctionDecorator,
    make_decorator,
)
from dftracer.asyncflow.engine.interfaces import Observer, Unsearched
from dftracer.asyncflow.engine.peers.overrides import overrides_of
from dftracer.asyncflow.engine.scheduler import Scheduler
from dftracer.asyncflow.engine.scope import Scope, owner_in
from dftracer.asyncflow.engine.settlement import fit_for_future
from dftracer.asyncflow.engine.waiting.leaving import wait_for_calls
from dftracer.asyncflow.errors import DependencyFailureError as DependencyFailureError
from dftracer.asyncflow.errors import EngineShutdownError, let_out, text_of
from dftracer.asyncflow.observe.graph.model import WorkflowGraph
from dftracer.asyncflow.observe.graph.snapshot import graph_of
from dftracer.asyncflow.observe.history import Components, Dependencies
from dftracer.asyncflow.observe.trace import EngineTrace
from dftracer.asyncflow.utils import NoProfiler, get_event_loop_or_raise
from dftracer.asyncflow.utils import get_next_uid as get_next_uid
from dftracer.asyncflow.utils import reset_uid_counter as reset_uid_counter
from dftracer.utils.lifetime.exit import exit_patience_s
from dftracer.utils.progress.display import show

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from dftracer.asyncflow.backends.base import ExecutionBackend
    from dftracer.asyncflow.observe.telemetry import Telemetry

TASK = "task"
"""The ``type`` of a component that is a task, and what its identifier begins with."""
BLOCK = "block"
"""The same of a block."""
FUNCTION = "function"
"""The key of a task's description that holds its function; ``None`` for the other kinds."""
EXECUTABLE = "executable"
"""The key of a task's description that holds its program; ``None`` for the other kinds."""
PROMPT = "prompt"
"""The key of a task's description that holds its prompt; ``None`` for the other kinds."""


class WorkflowEngine(Unsearched):
    """Runs workflows of decorated functions in the current event loop.

    Make one with ``await WorkflowEngine.create()`` and end it with :meth:`shutdown`, or use it as
    ``async with await WorkflowEngine.create() as flow:``. That block, if it ends without an error,
    waits for all calls that were made but for services, logs the failures that nobody awaited, and
    then shuts the engine down.

    Parameters
    ----------
    backend:
        Where tasks run: an execution backend that has been awaited, or a list of them with
        different names, the first being the one for tasks that name none. For :meth:`create` they
        need not have been awaited, and ``None`` is a :class:`RuntimeExecutionBackend` of its own,
        or what ``DFTRACER_BACKEND`` in the environment says: see ``docs/cli.md``.
    dry_run:
        Run nothing: every task ends at once with a dummy result, whichever backend it names. The
        backends that are given are neither used nor shut down. ``DFTRACER_DRY_RUN=1`` in the
        environment asks all engines for it.
    implicit_data:
        Let a task have the files of those it depends on, on backends that can do that.
    uid:
        The name of the engine; ``asyncflow.session.`` and 8 random hex digits by default.
    work_dir:
        The directory below which outputs go, to ``<work_dir>/<uid>``; the current one by default.
    trace:
        Where to write the life of every component, in DFTracer's format: a file that ends in
        ``.pfw.gz``, or a directory; by default what ``DFTRACER_TRACE`` in the environment says.
        See ``docs/tracing.md``.
    cancel_on_exit:
        Cancel what is unfinished where the ``async with`` block ends without an error, and do not
        wait for it.

    Raises
    ------
    RuntimeError
        If no event loop runs, or a backend serves an engine that is not shut down.
    TypeError
        If an argument is of the wrong type.
    ValueError
        If there is no backend, or two have the same name, or the trace has a wrong one.
    OSError
        If the trace cannot be written.
    """

    function_task: FunctionDecorator
    """Decorates a function, plain or async, that runs on a worker; with or without ``()``.

    All four decorators take the same options. ``backend=`` names where the calls run.
    ``capture_stdio=True`` sends a program's output to files, whose path is then the result.
    ``service=True`` marks a task that runs until the engine ends. ``retries=`` is how often a call
    that has failed is tried again, for errors that ``retry_on=`` (an exception type, several in a
    tuple, or a function of the error) covers, after ``backoff=`` seconds (doubled each time) or
    what a function of the attempt's number returns. ``timeout=`` is how many seconds each attempt
    may take. This one also takes ``loop="engine"``, for async functions: their bodies run in the
    engine's event loop, on no backend, and may share connections and events with the program.
    ``interrupt=True``: a plain body that is cancelled or runs out of
    time gets :class:`asyncio.CancelledError`, on the runtime and on Dask; see "Cancellation" in
    ``docs/lifecycle.md`` for what that risks.
    """
    executable_task: ExecutableDecorator
    """Decorates a function that returns a command; the result is what the program writes."""
    prompt_task: ExecutableDecorator
    """Decorates a function that returns a prompt; the result is what the model answers."""
    block: BlockDecorator
    """Decorates an async function that runs in the event loop and calls tasks and blocks."""

    def __init__(
        self,
        backend: Any = None,
        dry_run: bool = False,
        implicit_data: bool = True,
        uid: str | None = None,
        work_dir: str | os.PathLike[str] | None = None,
        trace: str | os.PathLike[str] | None = None,
        cancel_on_exit: bool = False,
    ) -> None:
        loop = get_event_loop_or_raise("WorkflowEngine")
        if backend is None:
            raise TypeError(
                "backend is missing: use 'await WorkflowEngine.create()', which makes one"
            )
        _check_arguments(dry_run, implicit_data, uid, work_dir, cancel_on_exit)
        dry_run = dry_run or environment.is_dry_run()
        backends = _as_list(backend)
        if dry_run:
            backends = [NoopExecutionBackend(each.name) for each in backends]
        self.uid = uid or f"asyncflow.session.{uuid.uuid4().hex[:8]}"
        """Its name."""
        self.loop = loop
        """The event loop that it lives in."""
        self.log = logging.getLogger("dftracer.asyncflow")
        self.prof = NoProfiler()
        """Records nothing. What a workflow does is written to a trace."""
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        """Nothing is put here: tasks that are ready go to their backends."""
        self.dry_run = dry_run
        self.implicit_data_mode = implicit_data
        self.work_dir = os.fspath(work_dir) if work_dir is not None else os.getcwd()
        self._backends = registry.by_name(backends)
        self._default = backends[0]
        self._scheduler = Scheduler(loop, self.uid, self._backends, implicit_data)
        self._scheduler.engine = self
        self._reports = DictionaryReports(self._scheduler, backends)
        state = self._scheduler.state
        self.components = Components(state.unfinished, state.history)
        """Every unfinished component and the last that ended, by their ``uid``."""
        self.dependencies = Dependencies(self.components)
        """What each component depends on, by its ``uid``."""
        self._ending = Ending()
        self._runs = 0
        self._cancels_on_exit = cancel_on_exit

        scheduler, chosen = self._scheduler, self._backend_named
        self.function_task = make_decorator(scheduler, chosen, "function")
        self.executable_task = make_decorator(scheduler, chosen, "executable")
        self.prompt_task = make_decorator(scheduler, chosen, "prompt")
        self.block = make_decorator(scheduler, chosen, "block")
        self._telemetry: Telemetry | None = None
        self._trace = EngineTrace.opened(trace, self.uid, list(scheduler.targets.values()))
        if self._trace is not None:
            scheduler.observers = (self._trace,)
            scheduler.annotate = self._trace.note_of
        self._ask_for_beginnings()
        environment.register(scheduler.counts.rows, self.graph)
        self._attach()
        signals.watch(self)
        overrides = scheduler.overrides = overrides_of(self, WorkflowEngine, scheduler)
        self._own_run: asyncio.Task[None] | None = None
        """The :meth:`run` of a subclass, which the engine calls itself."""
        if overrides is not None and overrides.run is not None:
            self._own_run = loop.create_task(self._run_through(overrides.run))

    @classmethod
    async def create(
        cls,
        backend: Any = None,
        dry_run: bool = False,
        implicit_data: bool = True,
        uid: str | None = None,
        work_dir: str | os.PathLike[str] | None = None,
        trace: str | os.PathLike[str] | None = None,
        cancel_on_exit: bool = False,
    ) -> Self:
        """Make an engine in the running event loop, and its default backend if none is given."""
        _check_interpreter()
        get_event_loop_or_raise("WorkflowEngine")
        _check_arguments(dry_run, implicit_data, uid, work_dir, cancel_on_exit)
        dry_run = dry_run or environment.is_dry_run()
        backends = [environment.make_backend(dry_run)] if backend is None else _as_list(backend)
        registry.by_name(backends)  # before any of them starts
        if not dry_run:
            for each in backends:
                await registry.start(each)
        try:
            return cls(backends, dry_run, implicit_data, uid, work_dir, trace, cancel_on_exit)
        except BaseException:
            if backend is None:
                await backends[0].shutdown()
            raise

    def _attach(self) -> None:
        """Serve as the engine of all backends, or of none."""
        attached: list[tuple[Any, ExecutionBackend]] = []
        work_dir = os.path.join(self.work_dir, self.uid)
        try:
            for name, backend in self._backends.items():
                target, report = self._scheduler.targets[name], self._scheduler.report
                registry.attach(backend, target, self.uid, report, self.task_callbacks, work_dir)
                attached.append((backend, target))
                if type(self).task_callbacks is not WorkflowEngine.task_callbacks:
                    backend.register_callback(self.task_callbacks)
        except BaseException:
            for backend, target in attached:
                registry.detach(backend, target)
            raise

    def _backend_named(self, name: str | None, asker: str) -> Any:
        if name is None:
            return self._default
        is_text = isinstance(name, str)  # pyright: ignore[reportUnnecessaryIsInstance]
        if is_text and name in self._backends:
            return self._backends[name]
        known = ", ".join(map(repr, self._backends))
        raise ValueError(
            f"{asker}: engine '{self.uid}' has no backend named {text_of(name)}; it has {known}: "
            "name one of them, or pass the backend to WorkflowEngine.create()"
        )

    def _ask_for_beginnings(self) -> None:
        """Have backends report when tasks begin, if an observer wants to know that."""
        for target in self._scheduler.targets.values():
            target.report_running = self._telemetry is not None or (
                self._trace is not None and not self._trace.is_written_by(target)
            )

    # --- what is going on -----------------------------------------------------------------------

    @property
    def backend(self) -> Any:
        """The backend of tasks that name none."""
        return self._default

    @property
    def task_states_map(self) -> Any:
        """The names of the states that :attr:`backend` reports, and its ``terminal_states``."""
        return self._default.get_task_states_map()

    @property
    def running(self) -> set[str]:
        """The ``uid`` of every component that has been launched and has not ended."""
        unfinished = self._scheduler.state.unfinished.values()
        return {component.uid for component in unfinished if component.place is not None}

    @property
    def resolved(self) -> set[str]:
        """The ``uid`` of every component that waits for no other: launched, or ended lately."""
        return self.running | {ended.uid for ended in self._scheduler.state.history}

    def graph(self, fold: bool | None = None) -> WorkflowGraph:
        """Return the graph of all calls as it stands, before, during or after a run.

        Parameters
        ----------
        fold:
            Whether all calls of one function are one node, in each kind of block; by default if
            there are more than 100 calls.

        Raises
        ------
        ValueError
            If every call shall have its node, and there were more than 1,000.
        """
        return graph_of(self.uid, self._scheduler.state, fold)

    def progress(self) -> AbstractContextManager[None]:
        """Show on the standard error how far the tasks of each name have come, for ``with``.

        Bars on a terminal and in a notebook, with the extra ``[progress]``; otherwise lines, every
        few seconds. See ``docs/progress.md``.
        """
        return show(self._scheduler.counts.rows)

    @asynccontextmanager
    async def workflow_scope(self, workflow_id: str | None = None) -> AsyncGenerator[str, None]:
        """Tag every call made inside with a ``workflow_id``, made up if none is given.

        A call's own ``workflow_id=`` goes before it; in the body of a block it is the block's
        ``uid``.
        """
        workflow_id = workflow_id or f"wf-{uuid.uuid4().hex[:8]}"
        variable, telemetry = self._scheduler.scope, self._telemetry
        outer = variable.get()
        token = variable.set(Scope(outer.owner if outer else None, workflow_id))
        try:
            with telemetry.scope("workflow", workflow_id) if telemetry else nullcontext():
                yield workflow_id
        finally:
            variable.reset(token)

    async def start_telemetry(
        self,
        resource_poll_interval: float = 5.0,
        checkpoint_interval: float | None = None,
        checkpoint_path: str | os.PathLike[str] | None = None,
        span_processors: list[Any] | None = None,
        metric_readers: list[Any] | None = None,
        resource: Any = None,
    ) -> Any:
        """Begin to record what happens to tasks, until the engine or the manager is stopped.

        Parameters
        ----------
        resource_poll_interval:
            Seconds between looks at the resources of a backend, if RHAPSODY can see these.
        checkpoint_interval:
            Seconds between writes of metrics and spans; by default only at the end.
        checkpoint_path:
            The directory of the file, of JSON lines, that all is written to; by default none.
        span_processors, metric_readers, resource:
            What OpenTelemetry's providers shall have in addition.

        Returns
        -------
        rhapsody.telemetry.manager.TelemetryManager
            What gives events, metrics and spans; the names are in ``docs/telemetry.md``.

        Raises
        ------
        ImportError
            If the extra ``[telemetry]`` is not installed.
        RuntimeError
            If the engine has its telemetry already, or is shut down.
        """
        from dftracer.asyncflow.observe import telemetry  # not before: it needs the extra

        if self._scheduler.is_closed:
            raise EngineShutdownError(
                f"cannot start the telemetry of engine '{self.uid}': it is shut down"
            )
        if self._telemetry is not None:
            raise RuntimeError(
                f"engine '{self.uid}' has its telemetry already: stop that manager first"
            )
        self._telemetry = await telemetry.start(
            self.uid,
            list(self._backends.values()),
            self._observe,
            resource_poll_interval,
            checkpoint_interval=checkpoint_interval,
            checkpoint_path=checkpoint_path,
            span_processors=span_processors,
            metric_readers=metric_readers,
            resource=resource,
        )
        return self._telemetry.manager

    def _observe(self, telemetry: Telemetry | None) -> None:
        """Let this, or nothing, be the engine's telemetry."""
        self._telemetry = telemetry
        observers: list[Observer] = [each for each in (telemetry, self._trace) if each is not None]
        self._scheduler.observers = tuple(observers)
        self._ask_for_beginnings()

    # --- by hand --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Wait until the engine is shut down. It runs what is ready by itself."""
        # What the engine has begun itself ends with it, and leaves nothing.
        count = 0 if asyncio.current_task() is self._own_run else 1
        self._runs += count
        try:
            await self._scheduler.shutdown_begun.wait()
        finally:
            self._runs -= count

    async def _run_through(self, run: Callable[[], Awaitable[None]]) -> None:
        try:
            await run()
        except Exception:
            self.log.exception("engine '%s': run() has failed; the engine goes on", self.uid)

    @property
    def is_run(self) -> bool:
        """Whether somebody waits in :meth:`run`, and so leaves when the engine is shut down."""
        return self._runs > 0

    async def submit(self, objects: Sequence[dict[str, Any]]) -> None:
        """Launch components at once, not in the event loop's next turn.

        Parameters
        ----------
        objects:
            Their descriptions. What has been launched or has ended is left alone.

        Raises
        ------
        ValueError
            If one of them still waits for another.
        """
        scheduler = self._scheduler
        pending: list[Component[Any]] = []
        for description in objects:
            component = scheduler.state.unfinished.get(number_of(description["uid"]))
            if component is None or component.place is not None:
                continue
            for future in component.dependencies:
                if not scheduler.has_ended(future):
                    raise ValueError(f"{component!r} cannot be launched: it waits for {future!r}")
            pending.append(component)
        scheduler.launch_now(pending)

    async def execute_block(
        self, block_fut: asyncio.Future[Any], func: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> None:
        """Await ``func(*args, **kwargs)`` as the body of a block, which ends as it does.

        A plain function runs in a thread. Any other future than a block's is ended in the same way;
        it is named by ``block_fut.block["uid"]``, if it has that.

        Raises
        ------
        asyncio.InvalidStateError
            If the block has begun or ended, or waits for others.
        """
        if not inspect.iscoroutinefunction(func):
            func = functools.partial(_call_in_thread, func)
        if not isinstance(block_fut, Component):
            await self._execute(block_fut, func(*args, **kwargs))
            return
        launcher, overrides = self._scheduler.launcher, self._scheduler.overrides
        if overrides is not None and block_fut in overrides.executing:
            overrides.executing.discard(block_fut)  # pyright: ignore[reportUnknownArgumentType]
            await launcher.run_body(block_fut, func, args, kwargs)  # pyright: ignore[reportUnknownArgumentType]
            return
        if block_fut.done() or block_fut.place is not None:
            raise asyncio.InvalidStateError(f"{block_fut!r} has begun already")
        if not all(map(self._scheduler.has_ended, block_fut.dependencies)):
            raise asyncio.InvalidStateError(f"{block_fut!r} still waits for others")
        body = launcher.start(block_fut, launcher.run_body(block_fut, func, args, kwargs))
        try:
            await asyncio.shield(body)
        except asyncio.CancelledError:
            body.cancel()
            raise

    async def _execute(self, future: asyncio.Future[Any], body: Awaitable[Any]) -> None:
        """Await a body and end a future that is no component as it ends."""
        description: Any = getattr(future, "block", None) or {}
        uid = str(description.get("uid") or text_of(future))
        variable = self._scheduler.scope
        token = variable.set(Scope(None, uid))
        try:
            result = await body
        except asyncio.CancelledError:
            self.handle_component_cancellation(description, future)
            raise
        except BaseException as error:
            self.handle_component_failure(description, future, error)
            let_out(error)
        else:
            self.handle_component_success({"uid": uid, "return_value": result}, future)
        finally:
            variable.reset(token)

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
            Called as ``service_callback(future, task, state)`` before anything else is done. It
            ends the future of a service, now or later, when the service is ready.
        """
        self._reports.take(task, state, service_callback, self.task_callbacks)

    def handle_task_success(self, task: dict[str, Any], task_fut: asyncio.Future[Any]) -> None:
        """End a task or block with the result in ``task``; nothing happens if it has ended.

        An override of this, or of one of its siblings, is called for every task and block of the
        engine. What it does not end, and hands to no such method of this class, is unfinished.
        """
        if isinstance(task_fut, Component):
            result = result_in(task_fut, task)  # pyright: ignore[reportUnknownArgumentType]
            self._scheduler.end_by_hand(task_fut, result, None, serves_on=False)
        elif not self._has_ended(task, task_fut):
            task_fut.set_result(task["return_value"] if "return_value" in task else task["stdout"])

    def handle_task_failure(
        self,
        task: dict[str, Any],
        task_fut: asyncio.Future[Any],
        override_error_message: str | BaseException | None = None,
    ) -> None:
        """End it with that error, or the one in ``task``; nothing happens if it has ended."""
        error: Any = override_error_message
        if error is None:
            error = failure_in(task_fut, task)
        elif not isinstance(error, BaseException):
            error = RuntimeError(str(error))
        if isinstance(task_fut, Component):
            self._scheduler.end_by_hand(task_fut, None, error, serves_on=False)
        elif not self._has_ended(task, task_fut):
            task_fut.set_exception(fit_for_future(task_fut, error))

    def handle_task_cancellation(self, task: dict[str, Any], task_fut: asyncio.Future[Any]) -> bool:
        """Cancel it; false if it has ended."""
        if isinstance(task_fut, Component):
            return self._scheduler.cancel(task_fut, None)
        return task_fut.cancel()

    def handle_component_success(
        self, component: dict[str, Any], component_fut: asyncio.Future[Any]
    ) -> None:
        """Do as :meth:`handle_task_success`."""
        self.handle_task_success(component, component_fut)

    def handle_component_failure(
        self,
        component: dict[str, Any],
        component_fut: asyncio.Future[Any],
        override_error_message: str | BaseException | None = None,
    ) -> None:
        """Do as :meth:`handle_task_failure`."""
        if override_error_message is None:
            self.handle_task_failure(component, component_fut)
        else:
            self.handle_task_failure(component, component_fut, override_error_message)

    def handle_component_cancellation(
        self, component: dict[str, Any], component_fut: asyncio.Future[Any]
    ) -> bool:
        """Do as :meth:`handle_task_cancellation`."""
        return self.handle_task_cancellation(component, component_fut)

    def _has_ended(self, task: dict[str, Any], future: asyncio.Future[Any]) -> bool:
        if future.done():
            self.log.warning("'%s' has ended already", task.get("uid"))
        return future.done()

    # --- the end --------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._scheduler.unseen.is_counting = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc_type is None and not self._cancels_on_exit and not self.is_closed:
                self._scheduler.unseen.is_leaving = True
                await wait_for_calls(self._scheduler)
        finally:
            try:
                await self.shutdown()
            finally:
                self._scheduler.unseen.report(self._scheduler.log, self.uid)

    async def shutdown(self, skip_execution_backend: bool = False) -> None:
        """Cancel all that is unfinished, wait until it is gone, and shut the backend down.

        The log says how many calls were cancelled.

        Calling it again waits for the same and does nothing more: it is begun once, goes on when
        a caller is cancelled, and only if it has failed does the next call try again. Afterwards,
        calling a task or block raises :class:`EngineShutdownError`. The body of a block may call
        it too; nobody waits for that body then.

        Parameters
        ----------
        skip_execution_backend:
            Leave the backend running, for another engine to use, and do not wait for it.
        """
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError(
                f"engine '{self.uid}' belongs to another event loop: shut it down there"
            )
        scheduler = self._scheduler
        scheduler.enter_run()
        if not self.is_closed or scheduler.state.unfinished:
            self.close()
        scheduler.bodies.release(owner_in(scheduler.scope.get()))
        telemetry = self._telemetry
        await self._ending.wait(functools.partial(self._end, skip_execution_backend))
        if telemetry is not None:
            telemetry.manager.leave()

    @property
    def is_closed(self) -> bool:
        """Whether the engine is shut down, or about to be."""
        return self._scheduler.is_closed

    def close(self, by: str = "") -> None:
        """Cancel all that is unfinished, and refuse calls from now on; :meth:`shutdown` does so.

        ``by`` says in messages why that is, as in ``" by SIGTERM"``.
        """
        self._scheduler.close(by)

    async def _end(self, skip_execution_backend: bool) -> None:
        try:
            await self._scheduler.bodies.wait_until_quiet(self.uid)
            run = self._own_run
            if run is not None and not run.done():
                run.cancel()
                await asyncio.wait([run], timeout=exit_patience_s())
            if self._ending.is_current():
                await self._end_backends(skip_execution_backend)
        finally:
            if self._ending.is_current():
                signals.unwatch(self)

    async def _end_backends(self, skip_execution_backend: bool) -> None:
        backends, targets = self._backends, self._scheduler.targets
        errors: list[BaseException] = []
        left = {} if skip_execution_backend else dict(targets)
        while left:
            ends = [target.shutdown() for target in left.values()]
            ended = await asyncio.gather(*ends, return_exceptions=True)
            cut_off = {}
            for (name, target), error in zip(left.items(), ended, strict=True):
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    cut_off[name] = target  # by what was raised by the loop itself, too
                elif isinstance(error, BaseException):
                    log = self._scheduler.log
                    log.error("backend '%s' failed to shut down: %r", name, error)
                    errors.append(error)
            left = cut_off
        if not self._ending.is_current():
            return
        for name, backend in backends.items():
            registry.detach(backend, targets[name])
        if self._telemetry is not None:
            await self._telemetry.stop()
        if self._trace is not None:
            await asyncio.to_thread(self._trace.flush)
        if errors:
            raise errors[0]


def _check_interpreter() -> None:
    """Refuse what an engine cannot work with: an asyncio or threads that somebody has replaced."""
    if not issubclass(Component, asyncio.Future):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RuntimeError(
            "asyncio.Future was replaced after dftracer.asyncflow was imported, as nest_asyncio "
            "does: call nest_asyncio.apply() before importing dftracer.asyncflow"
        )
    for package in ("gevent", "eventlet"):
        try:
            patcher: Any = sys.modules[f"{package}.{_PATCHERS[package]}"]
            if not any(map(getattr(patcher, _ASKS[package]), ("threading", "select", "thread"))):
                continue
        except (KeyError, AttributeError):
            continue
        raise RuntimeError(
            f"{package} has replaced the threads or sockets of this process, with which asyncio "
            f"and an engine do not work: leave out {package}'s monkey patching, or run the engine "
            "in another process"
        )


_PATCHERS = {"gevent": "monkey", "eventlet": "patcher"}
_ASKS = {"gevent": "is_module_patched", "eventlet": "is_monkey_patched"}
"""The functions that say whether a module was replaced."""


async def _call_in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a plain function off the event loop, and await what it returns if that is awaitable."""
    result = await asyncio.to_thread(function, *args, **kwargs)
    return await result if inspect.isawaitable(result) else result


def _as_list(backend: Any) -> list[Any]:
    """Return the backends that were given, if that is what they are."""
    if isinstance(backend, (list, tuple)):
        backends = list(cast("Sequence[Any]", backend))
    else:
        backends = [backend]
    if not backends:
        raise ValueError("the list of backends is empty: pass at least one, or None")
    for each in backends:
        registry.check(each)
    return backends


def _check_arguments(
    dry_run: Any, implicit_data: Any, uid: Any, work_dir: Any, cancel_on_exit: Any
) -> None:
    for name, value, kinds, meant in (
        ("dry_run", dry_run, bool, "True or False"),
        ("implicit_data", implicit_data, bool, "True or False"),
        ("uid", uid, (str, type(None)), "a string or None"),
        ("work_dir", work_dir, (str, os.PathLike, type(None)), "a path or None"),
        ("cancel_on_exit", cancel_on_exit, bool, "True or False"),
    ):
        if not isinstance(value, kinds):
            raise TypeError(f"{name} must be {meant}, not {type(value).__name__} {text_of(value)}")
