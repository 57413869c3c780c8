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
import functools
import logging
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import ContextVar, copy_context
from threading import get_ident
from time import monotonic
from typing import Any, NamedTuple

from dftracer.asyncflow.backends.base import RemoteValue
from dftracer.asyncflow.commands import to_argv, to_prompt
from dftracer.asyncflow.data import linking
from dftracer.asyncflow.data.downloads import Downloads
from dftracer.asyncflow.engine import arguments as dependencies
from dftracer.asyncflow.engine.arguments import LEAVES
from dftracer.asyncflow.engine.component import EMPTY, Component, RemoteTask, Task, new_component
from dftracer.asyncflow.engine.decorators import Template
from dftracer.asyncflow.engine.dispatcher import Dispatcher, is_on_backend
from dftracer.asyncflow.engine.failures import (
    all_failed,
    dependency_failure,
    first_cancelled,
    fit_for_future,
    label_of,
    root_of,
    without_frames_of,
)
from dftracer.asyncflow.engine.leaving import Ends
from dftracer.asyncflow.engine.retries import Attempts, Policy
from dftracer.asyncflow.engine.stuck.cycles import Circles
from dftracer.asyncflow.errors import DependencyFailureError, EngineShutdownError, let_out
from dftracer.asyncflow.observe.counts import Tallies
from dftracer.asyncflow.observe.history import HISTORY_SIZE, History
from dftracer.utils.failures.copies import release_variables
from dftracer.utils.primitives import Graph, track_all, untrack

_set_result = asyncio.Future.set_result
"""That of the base class: the component's own is for its users."""


class Scope(NamedTuple):
    """Where a call is made: in whose body, and under which workflow's name."""

    owner: weakref.ref[Component[Any]] | None
    """Contexts hold it, those of what a body leaves running too: they keep no component."""
    workflow_id: str | None


Inputs = tuple[
    Sequence[asyncio.Future[Any]],
    Sequence[Component[Any]],
    list[int],
    bool,
    dependencies.Files | None,
    dependencies.Contents,
]
"""What a call depends on: the futures, those among them that are components of this engine, the
nodes of those that have not ended, whether one may have failed without the graph's knowing it, the
files, and what is in the containers."""

_FEW = 16
"""Up to so many arguments are compared with each other."""


class Scheduler(Dispatcher):
    """All the components of one engine that have not ended, and what happens to them."""

    implicit_data_mode: bool

    def __init__(self, loop: asyncio.AbstractEventLoop, backends: Sequence[Any], uid: str) -> None:
        super().__init__(loop, backends, uid)
        self._is_loop_running = loop.is_running
        self._links_implicitly = any(map(linking.links_implicitly, backends))
        self._downloads = Downloads()

        self._graph = Graph()
        """Of those who wait, and those whom somebody waits for; the others need none."""
        self._numbers = 0
        self._history = History()
        self._tallies = Tallies()
        self._batch_ended_at = 0.0
        """When the outcomes came that are dealt with at this moment, on the monotonic clock."""
        self._foreign: dict[asyncio.Future[Any], int] = {}
        self._contents: dict[int, dependencies.Contents] = {}
        """What was in the containers among the arguments of a call, until it is launched."""
        self._ready: list[Component[Any]] = []
        self._launch_scheduled = False
        self._members: dict[int, dict[int, Component[Any]]] = {}
        self._remote_tasks: weakref.WeakSet[RemoteTask[Any]] = weakref.WeakSet()
        """Those that may be asked for their results, which nobody can fetch after the end."""
        self._has_left_results = False
        """Whether there has been any of those."""
        self._to_cancel: deque[tuple[Component[Any], Any, str]] = deque()
        self._is_cancelling = False
        self._is_closed = False
        self._awaited_ends: list[Ends] = []
        """Of those who leave the engine's block."""
        self._circles = Circles(self)
        self._shutdown_begun = asyncio.Event()
        self._scope: ContextVar[Scope | None] = ContextVar(f"{uid}.scope", default=None)

    # --- a call ---------------------------------------------------------------------------------

    def _register(
        self,
        template: Template,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        workflow_id: str | None = None,
    ) -> Component[Any]:
        """Make a call a node of the graph; its future is the answer to the caller."""
        # What `_check_caller` asks in most cases, without a call.
        if self._is_closed or get_ident() != self._thread or not self._is_loop_running():
            self._check_caller(template)
        inputs = None
        if kwargs:
            inputs = self._inputs_of(args, kwargs)
        else:
            for value in args:
                if type(value) not in LEAVES:
                    inputs = self._inputs_of_tasks(args) or self._inputs_of(args, kwargs)
                    break
        self._numbers = number = self._numbers + 1
        if options is None:
            options = template.task_description
        context = copy_context() or EMPTY
        component = new_component(self, number, template, args, kwargs, options, context)
        self._unfinished[number] = component
        if context is not EMPTY and (scope := self._scope.get()) is not None:
            self._take_in(component, scope)
        if workflow_id is not None:
            component._workflow_id = workflow_id
        component._tally.registered += 1
        waits_for = self._take_inputs(component, inputs) if inputs is not None else None
        if self._telemetry is not None:
            self._telemetry.created(component)
        if self._trace is not None:
            self._trace.created(component)
        if waits_for:
            component._is_node = True
            self._graph.add(number, waits_for)
        else:
            if template.may_be_plain:
                # It will end, and until then is in `_unfinished`.
                untrack(component)
            self._enqueue(component)
        return component

    def _take_in(self, component: Component[Any], scope: Scope) -> None:
        """Note in whose body and for which workflow a call was made."""
        component._workflow_id = scope.workflow_id
        owner = None if scope.owner is None else scope.owner()
        if owner is not None and not owner.done():
            component._owner = owner._number
            component._tally = self._tallies.inside(owner._tally, component._tally)
            self._members.setdefault(owner._number, {})[component._number] = component

    def _inputs_of(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Inputs | None:
        """Return what a call depends on."""
        contents: dependencies.Contents = {}
        futures, files = dependencies.find_in_call(args, kwargs, contents)
        if not futures and not files:
            return ((), (), [], False, None, contents) if contents else None
        own = [f for f in futures if isinstance(f, Component) and f._engine is self]
        nodes = self._nodes_of(futures)
        may_have_failed = len(nodes) < len(futures) or len(own) < len(futures)
        return tuple(futures), own, nodes, may_have_failed, files, contents

    def _inputs_of_tasks(self, args: tuple[Any, ...]) -> Inputs | None:
        """As :meth:`_inputs_of`, sooner, if all that is in the arguments are unfinished tasks of
        this engine, each another one, besides numbers and texts; none otherwise.

        What it has made nodes of until then are nodes for :meth:`_inputs_of` too.
        """
        if len(args) > _FEW:
            return None
        nodes: list[int] = []
        for value in args:
            if type(value) is Task and value._engine is self:
                number = value._number
                if number in nodes or number not in self._unfinished:
                    return None
                nodes.append(number)
                if not value._is_node:
                    value._is_node = True
                    self._graph.add(number, [])
            elif type(value) not in LEAVES:
                return None
        tasks = args  # the same object, by which `_resolve` knows such a call
        if len(nodes) < len(args):
            tasks = tuple([value for value in args if type(value) is Task])
        return tasks, tasks, nodes, False, None, {}

    def _take_inputs(self, component: Component[Any], inputs: Inputs) -> list[int]:
        """Note what a call depends on; return the nodes that it waits for."""
        component._dependencies, own, nodes, may_have_failed, files, contents = inputs
        if contents:
            self._contents[component._number] = contents
        if not component._dependencies and not files:
            return nodes
        if may_have_failed:
            component._may_have_failed = True
        if files:
            component._files = files
        counts = component._tally.sources
        tally, count = component._tally, 0
        for future in own:
            if future._tally is not tally:
                if count:
                    counts[tally] = counts.get(tally, 0) + count
                tally, count = future._tally, 0
            count += 1
        if count:
            counts[tally] = counts.get(tally, 0) + count
        if component._number <= HISTORY_SIZE:
            component._sources = [future._number for future in own]
        return nodes

    def _check_caller(self, template: Template) -> None:
        """Refuse a call that is made elsewhere than in the engine's loop, or after its end."""
        if self._is_in_other_thread() or not self._is_loop_running():
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

    def _nodes_of(self, futures: Iterable[asyncio.Future[Any]]) -> list[int]:
        """Return the nodes of those futures that have not ended."""
        nodes = []
        for future in futures:
            if isinstance(future, Component) and future._engine is self:
                # Not `done()`, which would have the result fetched of one that is not here.
                if future._number in self._unfinished:
                    if not future._is_node:
                        future._is_node = True
                        self._graph.add(future._number, [])
                    nodes.append(future._number)
            elif not future.done():
                nodes.append(self._node_of_foreign(future))
        return nodes

    def _node_of_foreign(self, future: asyncio.Future[Any]) -> int:
        """Return the node of an unfinished future of this loop that is no component of ours."""
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
            self.loop.call_soon(_Launch(self))

    def _launch(self) -> None:
        """Launch what is ready, in a turn of the loop."""
        if self._launch_ready() == 1:
            self._default.look()

    def _launch_ready(self) -> int:
        """Launch what is ready; return how many plain calls that were, if it was nothing else."""
        self._launch_scheduled = False
        ready, self._ready = self._ready, []
        calls: list[Component[Any]] = []
        tasks: list[Component[Any]] = []
        has_begun_bodies = False
        telemetry, gives_calls, contents = self._telemetry, self._gives_calls(), self._contents
        now = monotonic()
        for component in ready:
            if component.done() or component._stage != "PENDING":
                continue
            if component._dependencies:
                if not self._resolve(component):
                    continue
            elif contents and not self._check_contents(component):
                continue
            template = component._template
            if telemetry is not None and component._attempts is None:
                telemetry.resolved(component)
            component._launched_at = now
            if template.policy is not None:
                self._begin_attempt(component, template.policy)
            needs_none_here = not (component._files or component._producers)
            if template.kind == "function" and needs_none_here and not template.runs_in_loop:
                component._stage = "LAUNCHED"
                is_plain = gives_calls and template.may_be_plain and not component._options
                (calls if is_plain else tasks).append(component)
            else:
                has_begun_bodies = True
                self._begin_body(component)
        if has_begun_bodies:  # maybe eagerly, and they may have cancelled some, or begun to listen
            if not self._gives_calls():
                tasks, calls = calls + tasks, []
            calls = [call for call in calls if not call.done()]
            tasks = [task for task in tasks if not task.done()]
        if calls:
            self._submit_calls(calls)
        if tasks:
            self._submit(tasks)
        return 0 if tasks or has_begun_bodies else len(calls)

    def _begin_body(self, component: Component[Any]) -> None:
        """Begin what a component needs of the event loop: a block's body, files, a command."""
        work = self._run_block if component._template.kind == "block" else self._prepare
        body = work(component)
        try:
            self._start_body(component, body)
        except BaseException as error:  # of the loop's task factory
            body.close()
            self._fail_here(component, error)

    def _start_body(
        self, component: Component[Any], body: Coroutine[Any, Any, None]
    ) -> asyncio.Task[None]:
        """Run a part of a component in the event loop; cancelling the component cancels it."""
        component._stage = "PREPARING"
        self._circles.watch()
        return self._bodies.start(component, body)

    def _resolve(self, component: Component[Any]) -> bool:
        """Put values in place of futures. False if that has failed, and ``component`` with it."""
        value_of: Callable[[asyncio.Future[Any]], Any] = asyncio.Future.result
        if component._may_have_failed or self._has_left_results:
            for future in component._dependencies:
                if getattr(future, "_remote", None) is not None:
                    value_of = functools.partial(_value_for, component)
                elif future.cancelled() or future.exception() is not None:
                    self._blame(component)
                    return False
            if value_of is not asyncio.Future.result and self._fetch_for(component):
                return False
        args, kwargs = component._args, component._kwargs
        try:
            if component._dependencies is args and value_of is asyncio.Future.result:
                args = tuple(map(value_of, args))
            else:
                contents = self._contents_of(component)
                args, kwargs = dependencies.resolve_call(args, kwargs, value_of, contents)
        except BaseException as error:
            self._settle(component, error=error)
            let_out(error)
            return False
        if component._description is None:
            component._args, component._kwargs = args, kwargs
        else:
            component._set_arguments(args, kwargs)
        if component._files or self._links_implicitly:
            component._producers = [
                future._describe()
                for future in component._dependencies
                if isinstance(future, Component)
            ]
        component._release_dependencies()
        return True

    def _contents_of(self, component: Component[Any]) -> dependencies.Contents | None:
        """Return what was in the containers of a call, which nobody will ask for again unless there
        are files among it."""
        number = component._number
        if component._files:
            return self._contents.get(number)
        return self._contents.pop(number, None)

    def _check_contents(self, component: Component[Any]) -> bool:
        """See that a call that depends on nothing is given no futures, though the containers among
        its arguments have been given some since. False if that has failed, and the call with it."""
        contents = self._contents_of(component)
        if contents is None:
            return True
        args, kwargs = component._args, component._kwargs
        try:
            if dependencies.have_got_futures(contents):
                component._set_arguments(
                    *dependencies.resolve_call(args, kwargs, contents=contents)
                )
        except BaseException as error:
            self._settle(component, error=error)
            let_out(error)
            return False
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

    async def _prepare(self, component: Component[Any]) -> None:
        """See to the files of a task, ask what it runs if it is no function, and submit it."""
        template, attempts, order = component._template, component._attempts, None
        # In this task's own copy of the context, so never to be reset.
        self._scope.set(Scope(weakref.ref(component), component._workflow_id))
        try:
            if component._files or component._producers:
                await self._link_files(component)
            if template.kind != "function":
                order = template.function(*component._args, **component._own_kwargs())
                if template.is_async:
                    order = await (order if attempts is None else attempts.limit(order))
            if template.kind == "prompt":
                order = {"prompt": to_prompt(template.name, order)}
            elif template.kind == "executable":
                argv = to_argv(template.name, order, component._options.get("shell"))
                order = {"executable": argv[0], "arguments": argv[1:]}
        except asyncio.CancelledError:
            self._cancel(component, None)
        except BaseException as error:
            self._body_failed(component, error)
        else:
            if not component.done():
                if order is not None:
                    description = component._describe()
                    description.update(order)
                    # Seen to: what is run is run directly.
                    description["task_backend_specific_kwargs"].pop("shell", None)
                if template.runs_in_loop:
                    await self._run_here(component)
                    return
                component._stage = "LAUNCHED"
                self._submit([component])

    async def _run_here(self, task: Component[Any]) -> None:
        """Await the body of a function task in the engine's event loop."""
        if self._telemetry is not None:
            self._telemetry.submitted([task])
            self._telemetry.started(task, {})
        args, kwargs = task._args, task._own_kwargs()
        await self._run_body(task, task._template.function, args, kwargs)

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
        component._set_arguments(
            *dependencies.place_files(
                component._args, component._own_kwargs(), places, self._contents_of(component)
            )
        )

    async def _run_block(self, block: Component[Any]) -> None:
        await self._run_body(block, block._template.function, block._args, block._own_kwargs())

    async def _run_body(
        self,
        block: Component[Any],
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Await a block's body and end the block as it ends."""
        block._stage = "RUNNING"
        if self._trace is not None:
            self._trace.began(block)
        # In this task's own copy of the context, so never to be reset.
        is_block = not block._template.runs_in_loop
        self._scope.set(Scope(weakref.ref(block), block.uid if is_block else block._workflow_id))
        telemetry = self._telemetry if is_block else None
        try:
            with telemetry.scope("block", block.uid) if telemetry is not None else nullcontext():
                work, attempts = function(*args, **kwargs), block._attempts
                result = await (work if attempts is None else attempts.limit(work))
            if block._files and block._describe().get("directory") is not None:
                await block._template.backend.check_outputs(block._describe())
        except asyncio.CancelledError:
            self._cancel(block, None)
        except BaseException as error:
            self._body_failed(block, error)
        else:
            self._settle(block, result)

    def _body_failed(self, component: Component[Any], error: BaseException) -> None:
        """End an attempt whose body, in the event loop, has raised ``error``."""
        if isinstance(error, GeneratorExit) and not self._is_loop_running():
            raise error  # the loop has been given up, and its unfinished bodies are closed
        # They have the arguments too, and the component, which gets the error.
        without_frames_of(error, _DRIVERS)
        self._fail_here(component, error)

    # --- an outcome -----------------------------------------------------------------------------

    def _fail(self, component: Component[Any], error: Any) -> None:
        """End an attempt of a component, and the component too if there is no other attempt."""
        attempts = component._attempts
        if attempts is not None:
            failure = fit_for_future(component, error)
            error = attempts.fail(failure, error)
            if error is None:
                if self._telemetry is not None:
                    self._telemetry.retried(component, failure)
                return
        self._settle(component, error=error)

    def _settle(self, component: Component[Any], result: Any = None, *, error: Any = None) -> None:
        """End a component with a result or an error, and tell the graph."""
        if component._number not in self._unfinished:
            return
        verdicts = self._finish_node(component, error is None) if component._is_node else None
        if error is not None:
            failure = fit_for_future(component, error)
            # The cause of a failed dependency has lost its variables by itself.
            is_caused = type(failure) is DependencyFailureError and failure.__traceback__ is None
            if not is_caused and not self.loop.get_debug():
                release_variables(failure)
            asyncio.Future.set_exception(component, failure)
            self._unseen.add(component)
        elif issubclass(type(result), RemoteValue):  # whatever it says of its class
            self._leave(component, result)
        else:
            _set_result(component, result)
        self._forget(component, error is None)
        if verdicts:
            self._follow(verdicts)

    def _finish_node(self, component: Component[Any], done: bool) -> Sequence[tuple[int, str]]:
        try:
            return self._graph.finish(component._number, done=done)
        except ValueError:
            raise asyncio.InvalidStateError(
                f"{component!r} cannot be ended by hand while it waits for others: cancel it, or "
                "wait for them"
            ) from None

    def _leave(self, component: Component[Any], result: RemoteValue) -> None:
        """End a component whose result stays where it is until somebody asks for it."""
        self._has_left_results = True
        component._remote = result
        component.__class__ = RemoteTask
        assert isinstance(component, RemoteTask)
        self._remote_tasks.add(component)
        if component._callbacks:  # somebody has
            component._fetch()

    def _forget(self, component: Component[Any], succeeded: bool | None) -> None:
        """Let go of an ended component: from here on its future is all there is of it.

        It has ``succeeded``, failed, or (``None``) was cancelled.
        """
        number = component._number
        del self._unfinished[number]
        if component._template.may_be_plain:
            track_all([component])
        self._history.add(component, succeeded, self._batch_ended_at or monotonic())
        if self._telemetry is not None:
            self._telemetry.ended(component)
        if self._trace is not None:
            self._trace.ended(component)
        component._context = None
        if component._attempts is not None:
            component._attempts.end()
        if component._dependencies:
            component._release_dependencies()
        if self._contents:
            self._contents.pop(number, None)
        component._release_arguments(is_description_shared=is_on_backend(component))
        if self._members:
            self._members.pop(number, None)
            if component._owner in self._members:
                self._members[component._owner].pop(number, None)
        if self._awaited_ends:
            self._count_ends(1)

    def _count_ends(self, count: int) -> None:
        for ends in self._awaited_ends:
            ends.count(count)

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
                self._unseen.add(component)
            self._forget(component, None if cancelled else False)

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
        self._forget(component, None)
        self._stop(component, msg)
        if component._is_node:
            self._follow(self._graph.cancel(number))

    def _take_outcomes(self, outcomes: Sequence[tuple[Component[Any], str, Any]]) -> bool:
        # Of the links of a chain, nobody awaits any but the last.
        is_link = len(outcomes) == 1 and not outcomes[0][0]._callbacks
        was_scheduled, self._launch_scheduled = self._launch_scheduled, True
        self._batch_ended_at = monotonic()
        self._callback_loop.hold()
        try:
            self._settle_all(outcomes)
        finally:
            self._callback_loop.release()
            self._launch_scheduled = was_scheduled
            self._batch_ended_at = 0.0
        # What this has made ready needs no turn of the loop of its own.
        if self._ready and not was_scheduled:
            self._launch_ready()
            return is_link
        return False

    def _settle_all(self, outcomes: Sequence[tuple[Component[Any], str, Any]]) -> None:
        """End plain calls. What most of them have in common is done for all at a time."""
        unfinished = self._unfinished
        done: list[Component[Any]] = []
        has_listeners = self._telemetry is not None or self._trace is not None
        left = iter(outcomes)
        try:
            for component, end, value in left:
                if (
                    end != "done"
                    or has_listeners
                    or component._number not in unfinished
                    or component._description is not None
                    or issubclass(type(value), RemoteValue)  # whatever it says of its class
                ):
                    self._forget_done(done)
                    done.clear()
                    self._take_outcome(component, end, value)
                else:
                    _set_result(component, value)
                    component._args, component._kwargs = (), None
                    del unfinished[component._number]
                    done.append(component)
        finally:  # a signal's handler may have raised
            self._forget_done(done)
            if not_taken := list(left):
                self.loop.call_soon(self._take_outcomes, not_taken)

    def _forget_done(self, done: list[Component[Any]]) -> None:
        """As :meth:`_forget` for those that have ended well and were nothing but calls; tell the
        graph.

        They had no listeners, attempts or description, and let go of their contexts and
        dependencies when they were launched.
        """
        if not done:
            return
        track_all(done)
        self._history.add_done(done, self._batch_ended_at)
        if self._members:
            for component in done:
                if component._owner in self._members:
                    self._members[component._owner].pop(component._number, None)
        nodes = [component._number for component in done if component._is_node]
        if nodes:
            ready, ended = self._graph.finish_all(nodes)
            for number in ready:
                self._enqueue(self._unfinished[number])
            self._follow(ended)
        if self._awaited_ends:
            self._count_ends(len(done))

    # --- the end --------------------------------------------------------------------------------

    def _close(self, by: str = "") -> None:
        """Cancel all that is unfinished, and refuse calls from now on."""
        self._is_closed = True
        unfinished = list(self._unfinished.values())
        count = sum(not component._template.service for component in unfinished)
        if count:
            level = logging.INFO if by else logging.WARNING
            self.log.log(
                level, "engine '%s' is shut down%s: cancelling %d call(s)", self.uid, by, count
            )
        for component in unfinished:
            self._cancel(component, f"engine '{self.uid}' is shut down{by}")
        for service in self._services.values():
            self._stop(service)
        self._services.clear()
        for submission in self._submissions:
            submission.cancel()
        for task in list(self._remote_tasks):
            if type(task) is RemoteTask:
                task.cancel(f"engine '{self.uid}' is shut down, and nobody had awaited {task!r}")
        self._shutdown_begun.set()


class _Launch:
    """What an engine asks its loop to do in the next turn."""

    __slots__ = ("_engine",)

    def __init__(self, engine: Scheduler) -> None:
        self._engine: Scheduler | None = engine

    def __call__(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine._launch()

    def __del__(self) -> None:
        # The loop was closed before that turn. What has no task whose end puts it back would keep
        # the engine for ever.
        if self._engine is not None:
            track_all(self._engine._ready)


_DRIVERS = frozenset(
    {
        Scheduler._prepare.__code__,
        Scheduler._run_block.__code__,
        Scheduler._run_body.__code__,
        Scheduler._run_here.__code__,
        Attempts.limit.__code__,
    }
)
"""What runs bodies in the event loop."""


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
