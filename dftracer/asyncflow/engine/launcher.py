"""What is done of a component in the event loop: the body of a block, of what makes a command or a
prompt, of ``loop="engine"``; and its files.

A plain body is called at once. An async one is a task of asyncio's, whose first step is the next
thing that the loop does: see :meth:`Scheduler.launch` for the order.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from contextvars import Context
from time import monotonic
from typing import Any, Protocol

from dftracer.asyncflow.backends.base import EMPTY
from dftracer.asyncflow.backends.ending import LOOK_AGAIN_S
from dftracer.asyncflow.commands import to_argv, to_prompt
from dftracer.asyncflow.data import linking
from dftracer.asyncflow.data.downloads import Downloads
from dftracer.asyncflow.engine import arguments
from dftracer.asyncflow.engine.attempts import Attempts
from dftracer.asyncflow.engine.component import Component
from dftracer.asyncflow.engine.interfaces import Observer, Place, TaskRecord
from dftracer.asyncflow.engine.peers.awaited import explained
from dftracer.asyncflow.engine.scope import Scope, ScopeVariable
from dftracer.asyncflow.engine.settlement import without_frames_of
from dftracer.asyncflow.engine.waiting.cycles import Cycles
from dftracer.utils.lifetime.exit import exit_patience_s

_log = logging.getLogger("dftracer.asyncflow")


class Bodies:
    """The parts of components that run in the event loop, by their numbers, and work beside them.

    Parameters
    ----------
    loop:
        Where they run.
    on_end:
        Called with the number of a component whose body has ended, or is not waited for any more.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_end: Callable[[int], object]) -> None:
        self._loop = loop
        self._on_end = on_end
        self._bodies: dict[int, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._quiet: asyncio.Future[None] | None = None
        self._cancelled: set[int] = set()
        """The numbers of the bodies that were cancelled."""
        self._old: set[asyncio.Task[Any]] = set()
        """What was begun in an earlier run of the loop."""

    def __contains__(self, number: int) -> bool:
        return number in self._bodies

    def __len__(self) -> int:
        return len(self._bodies)

    def __iter__(self) -> Iterator[int]:
        return iter(self._bodies)

    def get(self, number: int) -> asyncio.Task[None] | None:
        """Return the body of a component, if it runs here."""
        return self._bodies.get(number)

    def start(
        self, component: Component[Any], body: Coroutine[Any, Any, None]
    ) -> asyncio.Task[None]:
        """Run the body of ``component``."""
        context, number = component.context, component.number
        if context is EMPTY:
            context = component.context = Context()
        assert context is not None, "a component that has not ended has its context"
        # In a copy of the call's context, which holds for any task factory and Python version.
        create = functools.partial(self._loop.create_task, body, name=component.uid)
        task = context.run(create)
        if not task.done() and not component.body_released:
            self._bodies[number] = task
            task.add_done_callback(functools.partial(self._ended, number))
        return task

    def cancel(self, number: int, msg: Any | None = None) -> None:
        """Cancel the body of a component, if it runs and is not the one that calls this."""
        body = self._bodies.get(number)
        if body is not None and body is not asyncio.current_task(self._loop):
            self._cancelled.add(number)
            body.cancel(msg)

    def begin_run(self) -> None:
        """Go on in another run of the loop: an interrupt may have ended the last one."""
        self._forget_ended()
        self._old.update(self._bodies.values(), self._background)

    def _forget_ended(self) -> None:
        """Forget what has ended, also where an interrupt has kept it from saying so."""
        for number, body in list(self._bodies.items()):
            if body.done():
                self._ended(number)
        for task in [task for task in self._background if task.done()]:
            self._background_ended(task)

    def run_in_background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run what is part of no component; the engine does not end before it."""
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background_ended)
        return task

    def release(self, owner: Component[Any] | None) -> None:
        """Do not wait for the body that calls this, nor for that of ``owner``."""
        current = asyncio.current_task(self._loop)
        if owner is not None:
            owner.body_released = True
            self._ended(owner.number)
        for number in [n for n, body in self._bodies.items() if body is current]:
            self._ended(number)

    async def wait_until_quiet(self, engine: str) -> None:
        """Wait until nothing runs here any more of an engine that is shut down.

        What was begun in an earlier run of the loop an interrupt may have kept from ever waking. It
        is waited for no longer than bodies in threads that do not return.
        """
        for number in list(self._bodies.keys() - self._cancelled):
            self.cancel(number, f"engine '{engine}' is shut down")
        deadline = monotonic() + exit_patience_s()
        while True:
            self._forget_ended()
            left: set[asyncio.Task[Any]] = {*self._bodies.values(), *self._background}
            if left and monotonic() >= deadline and left <= self._old:
                names = ", ".join(sorted(task.get_name() for task in left)[:5])
                _log.warning(
                    "engine '%s' is shut down, and %d of its bodies have not ended, which began "
                    "in an earlier run of the event loop: %s",
                    engine,
                    len(left),
                    names,
                )
                left.clear()
            if not left:
                return
            self._quiet = self._loop.create_future()
            await asyncio.wait([self._quiet], timeout=LOOK_AGAIN_S)

    def _ended(self, number: int, _task: asyncio.Task[None] | None = None) -> None:
        body = self._bodies.pop(number, None)
        self._cancelled.discard(number)
        if body is not None:
            self._old.discard(body)
        self._on_end(number)
        self._tell_if_quiet()

    def _background_ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        self._old.discard(task)
        self._tell_if_quiet()

    def _tell_if_quiet(self) -> None:
        quiet = self._quiet
        if quiet is not None and not quiet.done() and not self._bodies and not self._background:
            quiet.set_result(None)


class Settles(Protocol):
    """What a launcher asks of the scheduler."""

    bodies: Bodies
    observers: tuple[Observer, ...]
    cycles: Cycles
    implicit_data: bool
    overrides: Any

    def succeed(self, component: Any, value: Any) -> None: ...
    def settle(self, component: Any, result: Any = None, *, error: Any = None) -> None: ...
    def fail_here(self, component: Any, error: BaseException) -> None: ...
    def cancel(self, component: Any, msg: Any | None, root: str = "") -> bool: ...
    def submit(self, components: list[Component[Any]]) -> None: ...
    def contents_of(self, component: Any) -> Any: ...
    def is_loop_running(self) -> bool: ...
    def record_of(self, component: Any) -> TaskRecord: ...


class Launcher:
    """Runs what is to be done of components in the event loop of an engine."""

    def __init__(self, scheduler: Settles, scope: ScopeVariable) -> None:
        self._scheduler = scheduler
        self._scope = scope
        self.downloads = Downloads()

    def begin(self, component: Component[Any]) -> bool:
        """Begin a component; true if its first step comes in the loop's next turn.

        A plain body that makes a command or a prompt runs now, and the task is submitted by the
        caller if it has ``command`` or ``prompt`` then.
        """
        definition = component.definition
        if definition.runs_in_loop:
            work = self._run if not component.files or definition.kind == "block" else self._prepare
        elif component.files or component.producers or definition.is_async:
            work = self._prepare
        else:
            self._call_body(component)
            return False
        body = work(component)
        try:
            self.start(component, body)
        except BaseException as error:  # of the loop's task factory
            body.close()
            self._scheduler.fail_here(component, error)
        return True

    def start(
        self, component: Component[Any], body: Coroutine[Any, Any, None]
    ) -> asyncio.Task[None]:
        """Run a coroutine as the body of a component; cancelling the component cancels it."""
        component.place = Place.LOOP
        if not self._scheduler.cycles.is_watching:
            self._scheduler.cycles.watch()
        return self._scheduler.bodies.start(component, body)

    # --- commands and prompts -------------------------------------------------------------------

    def _call_body(self, component: Component[Any]) -> None:
        """Let a plain body say what the task runs."""
        context = component.own_context()
        assert context is not None, "a component that has not ended has its context"
        component.place = Place.LOOP
        work = component.definition.body
        # A copy, as the variables that a body sets are its own.
        context = context.copy()
        try:
            context.run(self._enter, component)
            order = context.run(work, *component.args, **component.own_kwargs())
            self._set_work(component, order)
        except asyncio.CancelledError:
            self._scheduler.cancel(component, None)
        except BaseException as error:
            self._failed(component, error)

    def _enter(self, component: Component[Any]) -> None:
        """Have what is called from here on called in the body of ``component``."""
        # In a copy of the context, so never to be reset.
        self._scope.set(Scope(weakref.ref(component), component.workflow_id))

    def _set_work(self, component: Component[Any], order: Any) -> None:
        definition = component.definition
        if definition.kind == "prompt":
            component.set_work(None, to_prompt(definition.name, order))
        else:
            command = to_argv(definition.name, order, component.options.get("shell"))
            component.set_work(command, None)

    async def _prepare(self, component: Component[Any]) -> None:
        """See to the files of a task, ask what it runs if it is no function, and submit it."""
        definition, attempts = component.definition, component.attempts
        self._enter(component)
        try:
            if component.files or component.producers:
                await self._link_files(component)
            if definition.kind != "function":
                order = definition.body(*component.args, **component.own_kwargs())
                if definition.is_async:
                    try:
                        order = await (order if attempts is None else attempts.limit(order))
                    except TypeError as error:
                        explanation = explained(error, definition)
                        if explanation is error:
                            raise
                        raise explanation from error.__cause__
                self._set_work(component, order)
        except asyncio.CancelledError:
            self._scheduler.cancel(component, None)
        except BaseException as error:
            self._failed(component, error)
        else:
            if component.done():
                return
            if definition.runs_in_loop:
                await self._run(component)
            else:
                self._scheduler.submit([component])

    async def _link_files(self, component: Component[Any]) -> None:
        """Let the files of a task be brought, and its body know where they are."""
        definition = component.definition
        places = await linking.link(
            component.as_dict(),
            component.files,
            component.producers,
            definition.backend,
            self._scheduler.implicit_data,
            self.downloads,
        )
        component.producers = ()
        component.options = component.as_dict()["task_backend_specific_kwargs"]
        component.set_arguments(
            *arguments.place_files(
                component.args,
                component.own_kwargs(),
                places,
                self._scheduler.contents_of(component),
            )
        )

    # --- bodies that run here -------------------------------------------------------------------

    async def _run(self, component: Component[Any]) -> None:
        """Run the body of a block, or of a function in the engine's loop."""
        definition = component.definition
        if definition.kind != "block":
            for observer in self._scheduler.observers:
                observer.submitted(self._scheduler.record_of(component), None)
        elif (overrides := self._scheduler.overrides) is not None and overrides.execute_block:
            await self._execute_through(overrides, component)
            return
        await self.run_body(component, definition.body, component.args, component.kwargs or {})

    async def _execute_through(self, overrides: Any, component: Component[Any]) -> None:
        """Run the body of a block through the engine's own ``execute_block``."""
        args, kwargs = component.args, component.own_kwargs()
        overrides.executing.add(component)
        try:
            await overrides.execute_block(component, component.definition.body, *args, **kwargs)
        except asyncio.CancelledError:
            self._scheduler.cancel(component, None)
        except BaseException as error:
            self._failed(component, error)
        finally:
            overrides.executing.discard(component)

    async def run_body(
        self,
        component: Component[Any],
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Await a body and end the component as it ends."""
        scheduler = self._scheduler
        is_block = component.definition.kind == "block"
        component.is_running = True
        observers = scheduler.observers
        for observer in observers:
            observer.started(scheduler.record_of(component), None)
        # In this task's own copy of the context, so never to be reset.
        workflow_id = component.uid if is_block else component.workflow_id
        self._scope.set(Scope(weakref.ref(component), workflow_id))
        try:
            with _scopes(observers, component.uid) if is_block and observers else nullcontext():
                work, attempts = function(*args, **kwargs), component.attempts
                result = await (work if attempts is None else attempts.limit(work))
            if component.files and component.as_dict().get("directory") is not None:
                await component.definition.backend.check_outputs(component.as_dict())
        except asyncio.CancelledError:
            scheduler.cancel(component, None)
        except BaseException as error:
            self._failed(component, error)
        else:
            if scheduler.overrides is None:
                scheduler.settle(component, result)
            else:
                scheduler.succeed(component, result)

    def _failed(self, component: Component[Any], error: BaseException) -> None:
        """End an attempt whose body, in the event loop, has raised ``error``."""
        if isinstance(error, GeneratorExit) and not self._scheduler.is_loop_running():
            raise error  # the loop has been given up, and its unfinished bodies are closed
        # They have the arguments too, and the component, which gets the error.
        without_frames_of(error, _DRIVERS)
        self._scheduler.fail_here(component, error)


def _scopes(observers: tuple[Observer, ...], uid: str) -> AbstractContextManager[object]:
    """Return what observers put around the body of a block."""
    with ExitStack() as stack:
        for observer in observers:
            stack.enter_context(observer.scope("block", uid))
        return stack.pop_all()


_DRIVERS = frozenset(
    {
        Launcher._prepare.__code__,  # pyright: ignore[reportPrivateUsage]
        Launcher._call_body.__code__,  # pyright: ignore[reportPrivateUsage]
        Launcher._run.__code__,  # pyright: ignore[reportPrivateUsage]
        Launcher.run_body.__code__,
        Attempts.limit.__code__,
    }
)
"""What runs bodies in the event loop."""
