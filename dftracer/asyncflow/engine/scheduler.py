"""The loop of an engine: takes events, changes the state, and carries out what follows.

Everything here happens in the event loop's thread, and in answer to an event: a call, the end of a
dependency, a report of a backend, a cancellation. Nothing polls and nothing sleeps.

1. :meth:`Scheduler.register` makes of a call a component, and finds what it waits for.
2. :meth:`Scheduler.launch`, in the loop's next turn, puts values in the place of futures, begins
   what runs in the loop, and submits the rest to the backends, in the order of the calls.
3. :meth:`Scheduler.report` takes what backends report and ends components.
4. The state answers each end with decisions: what is ready now is launched before the report
   returns, what never can be is ended too.

It is longer than most modules: these four share state that nothing else may touch.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar, copy_context
from sys import get_asyncgen_hooks
from threading import get_ident
from time import monotonic
from typing import Any
from weakref import WeakSet

from dftracer.asyncflow.backends.adapter import target_of
from dftracer.asyncflow.backends.base import (
    EMPTY,
    ExecutionBackend,
    Outcome,
    RemoteValue,
    State,
    Submission,
)
from dftracer.asyncflow.commands import program_of
from dftracer.asyncflow.engine import arguments, recovery
from dftracer.asyncflow.engine.arguments import LEAVES
from dftracer.asyncflow.engine.attempts import Attempt, Attempts
from dftracer.asyncflow.engine.callbacks import CallbackLoop
from dftracer.asyncflow.engine.component import (
    Component,
    RemoteTask,
    Task,
    drop,
    fail,
    finish,
    is_left,
    number_of,
    returning,
)
from dftracer.asyncflow.engine.definition import Definition
from dftracer.asyncflow.engine.interfaces import Observer, Place, TaskRecord, Unsearched
from dftracer.asyncflow.engine.launcher import Bodies, Launcher
from dftracer.asyncflow.engine.peers.overrides import Overrides
from dftracer.asyncflow.engine.scope import ScopeVariable
from dftracer.asyncflow.engine.settlement import (
    all_failed,
    dependency_failure,
    first_cancelled,
    fit_for_future,
    label_of,
    root_of,
)
from dftracer.asyncflow.engine.state import NOTHING, Decisions, WorkflowState
from dftracer.asyncflow.engine.waiting.cycles import Cycles
from dftracer.asyncflow.engine.waiting.leaving import Ends, Unseen
from dftracer.asyncflow.errors import DependencyFailureError, EngineShutdownError, let_out
from dftracer.asyncflow.observe.history import HISTORY_SIZE
from dftracer.utils.failures.copies import release_variables
from dftracer.utils.primitives import track_all, untrack

_BACKEND = Place.BACKEND
_NO_OUTCOMES: tuple[Outcome, ...] = ()
_result_of: arguments.ValueOf = asyncio.Future[Any].result


class Scheduler(Unsearched):
    """The components of one engine, from their calls to their ends.

    Parameters
    ----------
    loop:
        The running event loop.
    uid:
        The name of the engine.
    backends:
        Its backends by name, the first being the one for tasks that name none.
    implicit_data:
        Whether tasks get the files of those they depend on.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        uid: str,
        backends: Mapping[str, Any],
        implicit_data: bool,
    ) -> None:
        self.loop = loop
        self.uid = uid
        self.engine: object = None
        """Whose scheduler it is: what lives as long as something of it runs."""
        self.get_loop = returning(loop)
        self.log = logging.getLogger("dftracer.asyncflow")
        self.thread = get_ident()
        """That which runs the loop, as far as is known; see :meth:`is_in_other_thread`."""
        self.is_loop_running = loop.is_running
        self.implicit_data = implicit_data
        self.state = WorkflowState()
        self.counts = self.state.counts
        self.unseen = Unseen()
        self.futures_loop = CallbackLoop(loop, self.unseen.take)
        """What its futures have for an event loop."""
        self.bodies = Bodies(loop, self._body_ended)
        self.targets = {
            name: target_of(backend, self.bodies.run_in_background)
            for name, backend in backends.items()
        }
        self.scope: ScopeVariable = ContextVar(f"{uid}.scope", default=None)
        self.launcher = Launcher(self, self.scope)
        self.cycles = Cycles(self)
        self.observers: tuple[Observer, ...] = ()
        self.overrides: Overrides | None = None
        """The steps that the class of the engine has methods of its own for."""
        self.annotate: Callable[[TaskRecord], tuple[int, str] | None] | None = None
        """Returns the ``trace_note`` of a task for backends that write the trace themselves."""
        self.services: dict[int, Component[Any]] = {}
        """What runs on though its future has been ended by hand, as a service's is when ready."""
        self.awaited_ends: list[Ends] = []
        """Of those who leave the engine's block."""
        self.is_closed = False
        self.shutdown_begun = asyncio.Event()

        self._links_implicitly = any(
            target.supports_implicit_data_linking for target in self.targets.values()
        )
        self._contents: dict[int, arguments.Contents] = {}
        """What was in the containers among the arguments of a call, until it is launched."""
        self._ready: deque[Component[Any]] = deque()
        self._held: deque[Component[Any]] = deque()
        """Those that are ready, and for which the window of their backend has no room yet."""
        self._turn_is_due = False
        """Whether what is ready is launched soon anyway."""
        self._turn = 0
        """The number of the last launch, which what it makes the backends run is given by."""
        self.loop_run: object = self
        """Names the run of the loop that calls were made in. A handle that a run was about to call
        when a signal's handler raised, and so ended it, is called by no other run."""
        self._untaken: list[Outcome] = []
        """What was reported and is not dealt with, since a signal's handler has raised."""
        self._now = 0.0
        """When the reports came that are dealt with at this moment, on the monotonic clock."""
        self._left_tasks: WeakSet[RemoteTask[Any]] = WeakSet()
        """Those that may be asked for their results, which nobody can fetch after the end."""
        self._has_left_results = False
        self._submits: set[asyncio.Task[Any]] = set()
        """Calls of the ``submit`` of a subclass that go on."""
        self.has_awaiting_bodies = False
        """Whether a body awaits parameters of its own."""
        self._to_cancel: deque[tuple[Component[Any], Any, str]] = deque()
        self._is_cancelling = False
        _alive.add(self)

    # --- a call ---------------------------------------------------------------------------------

    def register(
        self,
        definition: Definition,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        workflow_id: str | None = None,
    ) -> Component[Any]:
        """Make a call a component; its future is the answer to the caller."""
        # In a known run of the loop, which sets hooks of its own in its thread, all is well.
        if self.is_closed or get_asyncgen_hooks().firstiter is not self.loop_run:
            self._check_caller(definition)
        state = self.state
        inputs = None
        if kwargs:
            inputs = self._inputs_of(args, kwargs)
        else:
            for value in args:
                if type(value) not in LEAVES:
                    inputs = state.tasks_among(args) or self._inputs_of(args, kwargs)
                    break
        state.count = number = state.count + 1
        # No `__init__`, which takes longer to be called than all that this does.
        futures_loop: Any = self.futures_loop
        component: Component[Any] = definition.component(loop=futures_loop)
        component.engine = self
        component.number = number
        component.definition = definition
        component.args = args
        component.kwargs = kwargs
        component.options = definition.options if options is None else options
        component.context = context = copy_context() or EMPTY
        component.name = definition.name
        component.function = definition.function
        component.interrupt = definition.interrupt
        component.dependencies = component.depended_on = component.files = ()
        component.is_node = component.is_running = component.has_waited = False
        component.description = component.place = None
        component.tally = tally = definition.tally
        component.launched_at = 0.0
        state.unfinished[number] = component
        if context is not EMPTY and (scope := self.scope.get()) is not None:
            component.workflow_id = scope.workflow_id
            owner = None if scope.owner is None else scope.owner()
            if owner is not None and not owner.done():
                state.add_member(owner, component)
                tally = component.tally
        if workflow_id is not None:
            component.workflow_id = workflow_id
        tally.registered += 1
        waits_for = self._connect(component, inputs) if inputs is not None else None
        if self.observers:
            record = self.record_of(component)
            for observer in self.observers:
                observer.created(record)
        if waits_for:
            component.is_node = component.has_waited = True
            state.graph.add(number, waits_for)
        else:
            if definition.is_plain:
                # It will end, and until then is among the unfinished.
                untrack(component)
            self._ready.append(component)
            if not self._turn_is_due:
                self._turn_is_due = True
                self.loop.call_soon(_Turn(self))
        return component

    def _inputs_of(
        self, args: tuple[Any, ...], kwargs: dict[str, Any] | None
    ) -> arguments.Inputs | None:
        """Return what a call depends on."""
        contents: arguments.Contents = {}
        futures, files = arguments.find_in_call(args, kwargs, contents)
        if not futures and not files:
            return arguments.Inputs((), (), [], (), False, None, contents) if contents else None
        own = [f for f in futures if isinstance(f, Component) and f.engine is self]
        nodes = self.state.nodes_of(own)
        if len(own) < len(futures):
            nodes += [
                self._node_of_foreign(future)
                for future in futures
                if not (isinstance(future, Component) and future.engine is self)
                and not future.done()
            ]
        may_have_failed = len(nodes) < len(futures) or len(own) < len(futures)
        sources = [future.number for future in own]
        return arguments.Inputs(
            tuple(futures), own, nodes, sources, may_have_failed, files, contents
        )

    def _connect(self, component: Component[Any], inputs: arguments.Inputs) -> list[int]:
        """Note what a call depends on; return the nodes that it waits for."""
        component.dependencies, own, nodes, sources, may_have_failed, files, contents = inputs
        if contents:
            self._contents[component.number] = contents
        if not component.dependencies and not files:
            return nodes
        if may_have_failed:
            component.may_have_failed = True
        if files:
            component.files = files
        tally, count = component.tally, 0
        counts = tally.sources
        for future in own:
            if future.tally is not tally:
                if count:
                    counts[tally] = counts.get(tally, 0) + count
                tally, count = future.tally, 0
            count += 1
        if count:
            counts[tally] = counts.get(tally, 0) + count
        if component.number <= HISTORY_SIZE:
            component.sources = sources
        return nodes

    def _node_of_foreign(self, future: asyncio.Future[Any]) -> int:
        """Return the node of an unfinished future of this loop that is no component of ours."""
        if future.get_loop() is not self.loop:
            raise ValueError(
                f"{future!r} belongs to another event loop, so a task here cannot depend on it"
            )
        if future not in self.state.foreign:
            future.add_done_callback(self.foreign_done)
        return self.state.add_foreign(future)

    def foreign_done(self, future: asyncio.Future[Any]) -> None:
        if future in self.state.foreign:
            self._apply(self.state.end_foreign(future))

    def _check_caller(self, definition: Definition) -> None:
        """Refuse a call that is made elsewhere than in the engine's loop, or after its end."""
        if self.is_in_other_thread() or not self.is_loop_running():
            raise RuntimeError(
                f"'{definition.name}' was called outside the event loop of its engine "
                f"'{self.uid}': call tasks and blocks in that loop's thread"
            )
        if self.is_closed:
            raise EngineShutdownError(
                f"cannot call '{definition.name}': engine '{self.uid}' is shut down"
            )
        self.enter_run()

    def enter_run(self) -> None:
        """Go on in the current run of the loop, if it is another than the last, with what an
        interrupted one may have left."""
        hook = get_asyncgen_hooks().firstiter
        if hook is None or hook is self.loop_run:
            return
        self.loop_run = hook
        self._turn_is_due = self._is_cancelling = False
        self.bodies.begin_run()
        self._cancel_all()
        recovery.recover(self, itertools.chain(self._ready, self._held))
        self.futures_loop.release()
        self.state.in_flight.intersection_update(self.state.unfinished.values())
        if self._held:
            self._refill()
        if self._ready:
            self._come_soon()
        if self._untaken:
            self.loop.call_soon(self.report, _NO_OUTCOMES)

    def is_in_other_thread(self) -> bool:
        """Tell whether this is not the thread of the loop, which another may run than at first."""
        thread = get_ident()
        if thread != self.thread and asyncio._get_running_loop() is self.loop:
            self.thread = thread
        return thread != self.thread

    def has_ended(self, future: asyncio.Future[Any]) -> bool:
        """Tell whether nobody needs to wait for a future, without having its result fetched."""
        if is_left(future) and isinstance(future, Component) and future.engine is self:
            return True
        return future.done()

    # --- nothing left to wait for ---------------------------------------------------------------

    def enqueue(self, component: Component[Any]) -> None:
        """Launch ``component`` soon, together with all that become ready in this turn."""
        self._ready.append(component)
        self._come_soon()

    def _refill(self) -> None:
        """Make those ready that the window has room for again."""
        held, room = self._held, self._held[0].definition.window - len(self.state.in_flight)
        while held and room > 0:
            component = held.popleft()
            if not component.done():
                self._ready.append(component)
                room -= 1
        if self._ready and not self._turn_is_due:
            self._come_soon()

    def track_ready(self) -> None:
        """Put what is ready back on the collector's list: nothing will end it."""
        track_all(list(self._ready))

    def _come_soon(self) -> None:
        if not self._turn_is_due:
            self._turn_is_due = True
            self.loop.call_soon(_Turn(self))

    def launch_now(self, components: Sequence[Component[Any]]) -> None:
        """Launch these together with what else is ready, not in the loop's next turn."""
        overrides = self.overrides
        if overrides is None or overrides.submit is None:
            self._ready.extend(components)
            self.launch()
            return
        others = list(self._ready)
        self._ready.clear()
        self._ready.extend(components)
        try:
            self.launch(offers=False)
        finally:
            self._ready.extend(others)
            for component in components:
                if component.place is not None:
                    overrides.offered.discard(component)

    def _offer(self, overrides: Overrides, polls: bool) -> None:
        """Give what is ready to the engine's own ``submit``, and launch what comes from there."""
        self._turn_is_due = False
        offered = overrides.offered
        new = [component for component in self._ready if component not in offered]
        known = [component for component in self._ready if component in offered]
        self._ready.clear()
        offered.update(new)
        objects: list[Component[Any]] = []
        for component in new:
            if component.done() or component.place is not None:
                offered.discard(component)
            elif component.dependencies and not self._resolve(component):
                offered.discard(component)  # it has failed, or comes again
            else:
                objects.append(component)
        if objects:
            task = self.bodies.run_in_background(self._submit_through(overrides, objects))
            self._submits.add(task)
            task.add_done_callback(self._submits.discard)
        if known:
            self._ready.extendleft(reversed(known))
            self.launch(polls, offers=False)
            # What the launch has left for another turn is not offered a second time.
            offered.difference_update(
                [each for each in known if each.place is not None or each.done()]
            )

    async def _submit_through(self, overrides: Overrides, components: list[Component[Any]]) -> None:
        assert overrides.submit is not None
        try:
            await overrides.submit([component.as_dict() for component in components])
        except BaseException as error:
            if self.is_closed and isinstance(error, asyncio.CancelledError):
                raise
            overrides.offered.difference_update(components)
            for component in components:
                if component.place is None and not component.done():
                    self.fail(component, error)
            let_out(error)

    def launch(self, polls: bool = False, offers: bool = True) -> None:
        """Launch what is ready, in the order of the calls.

        If it ``polls``, what is launched is one function, and its backend finds it worth while,
        this waits a moment for its end.

        Functions are handed over, and the bodies of programs and prompts begun, in that order: what
        a body changes, those called before it do not see. An async body makes its first step in the
        loop's next turn, and those called after it come then. Nobody waits for one that suspends.

        Those that have waited for others go ahead of what was handed over earlier. Of the others,
        no more than the backend's window are with it that somebody waits for: what is made is used
        before more is.

        If it ``offers``, what is ready goes through the engine's own ``submit`` first, where its
        class has one.
        """
        if offers and self.overrides is not None and self.overrides.submit is not None:
            self._offer(self.overrides, polls)
            return
        self._turn_is_due = False
        self._turn = next(_turns)
        ready, contents, observers = self._ready, self._contents, self.observers
        batch: list[Component[Any]] = []
        now = self._now or monotonic()
        has_async, is_plain, links = False, not observers, self._links_implicitly
        target, has_waited, in_flight = None, False, self.state.in_flight
        component: Component[Any] | None = None
        try:
            while ready:
                component = ready[0]
                definition = component.definition
                if has_async and not (definition.needs_loop and definition.is_async):
                    self._come_soon()  # behind the first steps of the bodies
                    break
                ready.popleft()
                if component.place is not None or component.done():
                    continue
                if component.is_node and definition.window and not component.has_waited:
                    if len(in_flight) >= definition.window:
                        self._held.append(component)
                        continue
                    in_flight.add(component)
                if component.dependencies:
                    if not self._resolve(component):
                        continue
                elif contents and not self._check_contents(component):
                    continue
                if observers and component.attempts is None:
                    for observer in observers:
                        observer.resolved(self.record_of(component))
                component.launched_at = now
                if (
                    definition.is_plain
                    and not component.files
                    and not (links and component.producers)
                ):
                    component.place = _BACKEND
                    if definition.target is not target:
                        is_plain = is_plain and not batch
                        target, has_waited = definition.target, component.has_waited
                    elif component.has_waited is not has_waited:
                        if batch and is_plain and target is not None:
                            earlier, batch = batch, [component]
                            self._hand_over(target, earlier, has_waited)
                            has_waited = component.has_waited
                            continue
                        is_plain = is_plain and not batch
                        has_waited = component.has_waited
                    batch.append(component)
                    continue
                is_plain = False
                if definition.policy is not None:
                    if component.attempts is None:
                        component.attempts = Attempts(self, component, definition.policy)
                    component.attempts.begin()
                if definition.needs_loop or component.files or component.producers:
                    if batch:  # they were called before
                        earlier, batch = batch, []
                        self.submit(earlier)
                    if self.launcher.begin(component):
                        has_async = True
                        continue
                    if component.done() or component.command is component.prompt is None:
                        continue
                component.place = _BACKEND
                batch.append(component)
        except BaseException as error:
            if not isinstance(error, Exception):
                self._launch_again(component, batch)
            raise
        finally:
            try:
                if not is_plain or target is None:
                    if batch:
                        self.submit(batch)
                elif batch:
                    try:  # as `_hand_over`, without a call
                        target.submit(batch, self._turn if has_waited else 0)
                    except BaseException as error:
                        self._refuse(batch, error)
            finally:
                if ready:
                    self._come_soon()
        if polls and is_plain and target is not None and len(batch) == 1:
            target.poll()

    def _launch_again(self, component: Component[Any] | None, batch: list[Component[Any]]) -> None:
        """Keep what was about to be launched when a signal's handler raised."""
        if component is None or component.done():
            return
        is_in_batch = bool(batch) and batch[-1] is component
        if component.place is _BACKEND and not is_in_batch:
            batch.append(component)
        elif component.place is None and not (self._ready and self._ready[0] is component):
            self._ready.appendleft(component)

    def submit(self, components: list[Component[Any]]) -> None:
        """Hand tasks to their backends. If one refuses them they fail; the engine lives on."""
        shares: dict[tuple[int, bool], tuple[ExecutionBackend, list[Submission]]] = {}
        for component in components:
            if component.done():
                continue
            component.place = _BACKEND
            target, attempts = component.definition.target, component.attempts
            submission: Any = component if attempts is None else attempts.submission()
            if self.observers:
                self._observe_submission(component, submission)
            kind = id(target), component.has_waited
            shares.setdefault(kind, (target, []))[1].append(submission)
        for (_, has_waited), (target, share) in shares.items():
            self._hand_over(target, share, has_waited)

    def _hand_over(
        self, target: ExecutionBackend, submissions: Sequence[Any], has_waited: bool
    ) -> None:
        """Submit to one backend; what that does not take has failed."""
        try:
            target.submit(submissions, self._turn if has_waited else 0)
        except BaseException as error:
            self._refuse(submissions, error)

    def _refuse(self, submissions: Sequence[Any], error: BaseException) -> None:
        """End submissions that their backend has not taken."""
        self.report([(submission, State.FAILED, error) for submission in submissions])
        let_out(error)

    def _observe_submission(self, component: Component[Any], submission: Any) -> None:
        record = self.record_of(component)
        program = program_of(component.command) if component.command else None
        for observer in self.observers:
            observer.submitted(record, program)
        if self.annotate is not None:
            submission.trace_note = self.annotate(record)

    def _resolve(self, component: Component[Any]) -> bool:
        """Put values in place of futures. False if that has failed, and ``component`` with it."""
        dependencies, args, kwargs = component.dependencies, component.args, component.kwargs
        value_of = _result_of
        if component.may_have_failed or self._has_left_results:
            for future in dependencies:
                if getattr(future, "remote", None) is not None:
                    value_of = _ValueFor(component)
                elif future.cancelled() or future.exception() is not None:
                    self._blame(component)
                    return False
            if value_of is not _result_of and self._fetch_for(component):
                return False
        try:
            values: list[Any] = []
            for value in args if dependencies is not args and not kwargs else ():
                if type(value) in LEAVES:
                    values.append(value)
                elif isinstance(value, asyncio.Future):
                    values.append(value_of(value))  # pyright: ignore[reportUnknownArgumentType]
                else:  # which there may be something in
                    break
            if self.has_awaiting_bodies and component.definition.awaited is not None:
                contents = self.contents_of(component) if self._contents else None
                resolved = arguments.resolve_call(args, kwargs, value_of, contents)
                args, kwargs = component.definition.awaited.keep(args, kwargs, resolved)
            elif dependencies is args:
                args = tuple(map(value_of, args))
            elif not kwargs and len(values) == len(args):
                args = tuple(values)
            else:
                contents = self.contents_of(component) if self._contents else None
                args, kwargs = arguments.resolve_call(args, kwargs, value_of, contents)
        except BaseException as error:
            self.settle(component, error=error)
            let_out(error)
            return False
        if component.description is None:
            component.args, component.kwargs = args, kwargs
        else:
            component.set_arguments(args, kwargs)
        if component.files or self._links_implicitly:
            component.producers = [
                future.as_dict() for future in dependencies if isinstance(future, Component)
            ]
        calls: list[Any] = []
        for future in dependencies:
            if isinstance(future, Component):
                calls += (future.definition, future.number)
        # As `release_dependencies`, without two calls.
        component.depended_on, component.dependencies = calls, ()
        return True

    def contents_of(self, component: Component[Any]) -> arguments.Contents | None:
        """Return what was in the containers of a call, which nobody will ask for again unless there
        are files among it."""
        number = component.number
        if component.files:
            return self._contents.get(number)
        return self._contents.pop(number, None)

    def _check_contents(self, component: Component[Any]) -> bool:
        """See that a call that depends on nothing is given no futures, though the containers among
        its arguments have been given some since. False if that has failed, and the call with it."""
        contents = self.contents_of(component)
        if contents is None:
            return True
        args, kwargs = component.args, component.kwargs
        try:
            if arguments.have_got_futures(contents):
                component.set_arguments(*arguments.resolve_call(args, kwargs, contents=contents))
        except BaseException as error:
            self.settle(component, error=error)
            let_out(error)
            return False
        return True

    def _fetch_for(self, component: Component[Any]) -> bool:
        """Have the results fetched that ``component`` needs here; it is launched again then."""
        absent = [
            future
            for future in component.dependencies
            if is_left(future) and not _can_stay(future, component)
        ]
        if absent:
            fetched = asyncio.gather(*absent, return_exceptions=True)
            fetched.add_done_callback(lambda _: self.enqueue(component))
        return bool(absent)

    def _blame(self, component: Component[Any]) -> None:
        """End a component that cannot run, since not all of its dependencies have ended well."""
        if cancelled := first_cancelled(component.dependencies):
            self.cancel(component, _cancelled_with(root_of(cancelled)), root_of(cancelled))
        else:
            failed = all_failed(component.dependencies)
            self.fail_for_good(component, dependency_failure(component, failed), False)

    # --- an outcome -----------------------------------------------------------------------------

    def report(self, outcomes: Sequence[Outcome]) -> bool:
        """Take what a backend reports, in the event loop's thread.

        Returns
        -------
        bool
            Whether nobody waits for this and more may come soon.
        """
        state_of_all, futures_loop = self.state, self.futures_loop
        is_done, is_observed = State.DONE, bool(self.observers or self.overrides)
        unfinished = state_of_all.unfinished
        if self._untaken:
            outcomes, self._untaken = [*self._untaken, *outcomes], []
        is_single = len(outcomes) == 1
        # Nobody awaits any link of a chain but the last.
        is_link = is_single and not getattr(outcomes[0][0], "_callbacks", True)
        done: list[Component[Any]] = []
        left = iter(outcomes)
        ready: Any = None
        # What this makes ready needs no turn of the loop of its own.
        was_due = self._turn_is_due
        # A signal's handler may raise wherever something is called.
        try:
            self._turn_is_due = True
            self._now = monotonic()
            if not is_single:
                futures_loop.hold()
            for submission, state, value in left:
                if (
                    state is not is_done
                    or type(submission) is not Task
                    or is_observed
                    or submission.description is not None
                    or submission.number not in unfinished
                ):
                    if done:
                        ended, done = done, []
                        self._apply(state_of_all.end_all(ended, self._now))
                        if self.awaited_ends:
                            self._count_ends(len(ended))
                    self._take(submission, state, value)
                else:
                    finish(submission, value)  # pyright: ignore[reportUnknownArgumentType]
                    submission.args, submission.kwargs, submission.context = (), None, None
                    del unfinished[submission.number]
                    done.append(submission)  # pyright: ignore[reportUnknownArgumentType]
        except BaseException as error:
            self._keep_outcomes(outcomes, left, done, isinstance(error, Exception))
            raise
        finally:
            try:
                if done:
                    decisions = state_of_all.end_all(done, self._now)
                    if decisions is not NOTHING:
                        self._apply(decisions)
                    if self.awaited_ends:
                        self._count_ends(len(done))
            finally:
                try:
                    if not is_single:
                        try:
                            futures_loop.release()
                        finally:  # a signal's handler may have raised in it
                            futures_loop.release()
                    if self._held:
                        self._refill()
                finally:
                    self._turn_is_due = was_due
                    ready = self._ready and not was_due
                    try:
                        if ready:
                            self.launch()
                    finally:
                        self._now = 0.0
        return bool(ready and is_link)

    def _keep_outcomes(
        self,
        outcomes: Sequence[Outcome],
        left: Iterator[Outcome],
        done: list[Component[Any]],
        is_dealt_with: bool,
    ) -> None:
        """See that nothing of a report is lost when a signal's handler has raised in it."""
        self._untaken += left
        taken = len(outcomes) - len(self._untaken)
        if taken > 0 and not is_dealt_with:
            submission, state, value = outcomes[taken - 1]
            component: Any = submission.component if type(submission) is Attempt else submission
            if component.number in self.state.unfinished:
                if not component.done():
                    # Not where it is retried already.
                    if component.place is None and component is submission:
                        component.place = _BACKEND
                    self._untaken.insert(0, (submission, state, value))
                else:
                    del self.state.unfinished[component.number]
                    done.append(component)
        if self._untaken:
            self.loop.call_soon(self.report, _NO_OUTCOMES)

    def _take(self, submission: Any, state: State, value: Any) -> None:
        """Take one outcome, of whatever kind."""
        component: Component[Any] = submission
        if type(submission) is Attempt:
            component = submission.component
            if component.submission is not submission:
                return  # of an attempt that has run out of time
        if component.number not in self.state.unfinished:  # cancelled meanwhile, or ended by hand
            if state is not State.RUNNING:
                self.services.pop(component.number, None)
                component.submission = None
            return
        if component.place is not _BACKEND:
            return  # the backend has not been given it, or not yet
        if state is State.RUNNING:
            component.is_running = True
            if value is not None:
                submission.describe(started_at=value)
            for observer in self.observers:
                observer.started(self.record_of(component), value)
            return
        if not component.files:
            component.place = None  # the backend is done with its description
        if state is State.DONE:
            if component.files and component.as_dict().get("directory") is not None:
                self.bodies.run_in_background(self._check_outputs(component, value))
            elif self.overrides is None:
                self.settle(component, value)
            else:
                self.overrides.succeeded(component, value)
        elif state is State.FAILED:
            self.fail(component, value)
        else:
            self.cancel(component, None)

    async def _check_outputs(self, component: Component[Any], value: Any) -> None:
        """End a task that has ended well, unless it has not written what it declares to write."""
        try:
            await component.definition.backend.check_outputs(component.as_dict())
            component.place = None
        except BaseException as error:
            self.fail_here(component, error)
        else:
            self.succeed(component, value)

    def fail_here(self, component: Component[Any], error: BaseException) -> None:
        """End an attempt with what was raised in the event loop's thread, by a body or a hook."""
        try:
            let_out(error)
        except BaseException:
            self.settle(component, error=error)
            raise
        self.fail(component, error)

    def fail(self, component: Component[Any], error: Any) -> None:
        """End an attempt of a component, and the component too if there is no other attempt."""
        attempts = component.attempts
        if attempts is not None:
            failure = fit_for_future(component, error)
            attempt = component.attempt
            error = attempts.fail(failure, error)
            if error is None:
                for observer in self.observers:
                    observer.retried(self.record_of(component), attempt, failure)
                return
        if self.overrides is None:
            self.settle(component, error=error)
        else:
            self.fail_for_good(component, error, component.definition.kind != "block")

    def succeed(self, component: Component[Any], value: Any) -> None:
        """End a component that has ended well, through the engine's own method for that."""
        if self.overrides is None:
            self.settle(component, value)
        else:
            self.overrides.succeeded(component, value)

    def fail_for_good(self, component: Component[Any], error: Any, is_of_task: bool) -> None:
        """End a component that has failed, through the engine's own method for that."""
        if self.overrides is None:
            self.settle(component, error=error)
        elif component.number in self.state.unfinished:
            self.overrides.failed(component, fit_for_future(component, error), is_of_task)

    def settle(self, component: Component[Any], result: Any = None, *, error: Any = None) -> None:
        """End a component with a result or an error, and do what follows."""
        if component.number not in self.state.unfinished:
            return
        decisions = self.state.end(component, error is None) if component.is_node else NOTHING
        if error is not None:
            failure = fit_for_future(component, error)
            # The cause of a failed dependency has lost its variables by itself.
            is_caused = type(failure) is DependencyFailureError and failure.__traceback__ is None
            if not is_caused and not self.loop.get_debug():
                release_variables(failure)
            fail(component, failure)
            self.unseen.add(component)
        elif isinstance(component, RemoteTask) and issubclass(type(result), RemoteValue):
            # Its class, whatever it says of that itself.
            self._has_left_results = True
            self._left_tasks.add(component)
            component.leave(result)
        else:
            finish(component, result)
        self._forget(component, error is None)
        if decisions is not NOTHING:
            self._apply(decisions)

    def _forget(self, component: Component[Any], succeeded: bool | None) -> None:
        """Keep of an ended component its future alone. It has ``succeeded``, failed, or (``None``)
        was cancelled."""
        self.state.forget(component, succeeded, self._now or monotonic())
        if self.observers:
            state = State.CANCELED if succeeded is None else component.state
            error = None if succeeded is not False else component._exception
            submission = component.submission or component
            # What a backend writes that it was not given a note for, or could not begin, it says.
            is_traced = submission.trace_note is not None and (
                (component.description or {}).get("is_traced", True)
            )
            for observer in self.observers:
                observer.ended(self.record_of(component), state, error, is_traced)
        if component.attempts is not None:
            component.attempts.end()
        if self._contents:
            self._contents.pop(component.number, None)
        if component.description is not None or component.files or component.producers:
            component.release_arguments(is_description_shared=component.place is _BACKEND)
        else:
            component.args, component.kwargs = (), None
        if component.submission is not None and component.place is not _BACKEND:
            component.submission = None
        if self.awaited_ends:
            self._count_ends(1)
        if self._held and component.is_node:
            self._refill()

    def _count_ends(self, count: int) -> None:
        for ends in self.awaited_ends:
            ends.count(count)

    def _apply(self, decisions: Decisions) -> None:
        """Do what the state has decided about those who waited."""
        if decisions.ready:
            self._ready.extend(decisions.ready)
            if not self._turn_is_due:
                self._come_soon()
        if self.overrides is not None and decisions.doomed:
            self._end_through(decisions.doomed)
            return
        for component in decisions.doomed:
            # It has ended. How is asked of its dependencies, as `_resolve` does: some of them the
            # graph does not know.
            if cancelled := first_cancelled(component.dependencies):
                component.root = root_of(cancelled)
                drop(component, _cancelled_with(component.root))
            else:
                failed = all_failed(component.dependencies)
                fail(component, dependency_failure(component, failed))
                self.unseen.add(component)
            self._forget(component, None if cancelled else False)

    def _end_through(self, doomed: list[Component[Any]]) -> None:
        """End those whose dependencies have not ended well through the engine's own methods."""
        for component in doomed:
            component.is_node = False  # the graph has forgotten it
        for component in doomed:
            dependencies = component.dependencies
            if cancelled := first_cancelled(dependencies):
                root = root_of(cancelled)
                self.cancel(component, _cancelled_with(root), root)
            elif failed := all_failed(dependencies):
                self.fail_for_good(component, dependency_failure(component, failed), False)
            else:  # a method has left a dependency unfinished
                self.state.add(component, self.state.nodes_of(dependencies))

    def record_of(self, component: Component[Any]) -> TaskRecord:
        """Return what observers get of a component."""
        record = component.record
        if record is None:
            definition = component.definition
            owner = self.state.unfinished.get(component.owner) if component.owner else None
            record = component.record = TaskRecord(
                component.number,
                component.uid,
                definition.name,
                definition.kind,
                definition.target.name,
                component.workflow_id,
                owner.uid if owner else f"block.{component.owner:06d}" if component.owner else None,
                tuple(uid for uid, _ in component.names_of_dependencies()),
            )
        return record

    def conclude(self, component: Component[Any]) -> None:
        """Do what follows from the end of a future, of which an interrupt may have kept a part from
        being done."""
        is_cancelled = component.cancelled()
        is_ended_well = is_left(component) or (not is_cancelled and component._exception is None)
        decisions, state = NOTHING, self.state
        if component.number in state.graph:
            end = state.cancel(component) if is_cancelled else state.end(component, is_ended_well)
            decisions = end
        if component.number in state.unfinished:
            self._stop(component)
            self._forget(component, None if is_cancelled else is_ended_well)
        self._apply(decisions)

    # --- a cancellation -------------------------------------------------------------------------

    def cancel(self, component: Component[Any], msg: Any | None, root: str = "") -> bool:
        """End a component as cancelled; stop it, its members and its dependents.

        ``root`` names what was cancelled first, if that was not ``component``.
        """
        if component.number not in self.state.unfinished:
            return False
        self._to_cancel.append((component, msg, root))
        # To cancel a body is to cancel what it awaits, which may bring us here again, as often as
        # blocks are nested: the first call does the work for all.
        if not self._is_cancelling:
            self._cancel_all()
        return True

    def _cancel_all(self) -> None:
        self._is_cancelling = True
        try:
            while self._to_cancel:
                # It stays there until it is cancelled: a signal's handler may raise.
                self._cancel_one(*self._to_cancel[0])
                self._to_cancel.popleft()
        finally:
            self._is_cancelling = False

    def _cancel_one(self, component: Component[Any], msg: Any | None, root: str) -> None:
        if component.number not in self.state.unfinished:
            return
        if self.overrides is not None:
            asked = self.overrides.cancelled(component, msg, root)
            if asked is None:
                return
            msg, root = asked
        why = msg or f"{label_of(component)} was cancelled"
        members = self.state.members.get(component.number, {}).values()
        self._to_cancel.extend([(member, why, "") for member in members])
        component.root = root
        drop(component, msg)
        self._forget(component, None)
        self._stop(component, msg)
        if component.submission is not None:
            component.submission = None
        self._apply(self.state.cancel(component))

    def cancel_members(self, component: Component[Any], msg: str) -> None:
        """Cancel what was called in the body of a component."""
        for member in self.state.members.pop(component.number, {}).values():
            self.cancel(member, msg)

    def _stop(self, component: Component[Any], msg: Any | None = None) -> None:
        """Cancel what runs of a component, here or on its backend."""
        self.bodies.cancel(component.number, msg)
        if component.place is _BACKEND:
            self.stop_submission(component.definition.target, component.submission or component)

    def stop_submission(self, target: ExecutionBackend, submission: Submission) -> None:
        """Have a backend stop a submission."""
        try:
            target.cancel(submission)
        except BaseException as error:
            message = f"backend '{target.name}' could not cancel {submission.uid}"
            self.loop.call_exception_handler({"message": message, "exception": error})
            let_out(error)

    # --- reports in the dictionary protocol -----------------------------------------------------

    def submission_of(self, task: Mapping[str, Any]) -> Any:
        """Return what a backend was given that speaks of a dictionary; ``None`` if it is late."""
        component = self.state.unfinished.get(number_of(task["uid"]))
        if component is None or component.place is not _BACKEND or component.key != task["uid"]:
            return None
        is_ours = task is component.description
        if not is_ours and task.get("engine", self.uid) != self.uid:
            return None  # of another engine, whose tasks have the same names
        return component if component.attempts is None else component.submission

    def service_reports(self, task: Mapping[str, Any], state: State) -> None:
        """Take a report on what is no unfinished task, maybe a service that was ended by hand."""
        service = self.services.get(number_of(task["uid"]))
        if service is None or service.key != task["uid"] or state is State.RUNNING:
            return
        if task.get("engine", self.uid) == self.uid:
            del self.services[service.number]

    # --- what runs on ---------------------------------------------------------------------------

    def end_by_hand(
        self, component: Component[Any], result: Any, error: Any, *, serves_on: bool = True
    ) -> None:
        """End a component whose body may go on, also on its backend if it ``serves_on`` there."""
        if component.number not in self.state.unfinished:
            return  # it has ended, maybe while this was on its way from another thread
        self.settle(component, result, error=error)
        if component.number in self.bodies or (serves_on and component.place is _BACKEND):
            self.services[component.number] = component
        else:
            component.submission = None

    def _body_ended(self, number: int) -> None:
        service = self.services.get(number)
        if service is not None and service.place is not _BACKEND:
            del self.services[number]

    def is_running(self, component: Component[Any]) -> bool:
        """Tell whether a component's body runs, as far as that is known."""
        if component.is_running or component.place is not _BACKEND:
            return component.is_running
        target: ExecutionBackend = component.definition.target
        return target.has_begun(component.submission or component)

    def is_unfinished(self, component: Component[Any]) -> bool:
        """Tell whether a component has not ended."""
        return component.number in self.state.unfinished

    def body_of(self, component: Component[Any]) -> asyncio.Task[None] | None:
        """Return what runs of a component in the event loop."""
        return self.bodies.get(component.number)

    # --- the end --------------------------------------------------------------------------------

    def close(self, by: str = "") -> None:
        """Cancel all that is unfinished, and refuse calls from now on."""
        self.is_closed = True
        unfinished = list(self.state.unfinished.values())
        count = sum(not component.definition.service for component in unfinished)
        if count:
            level = logging.INFO if by else logging.WARNING
            self.log.log(
                level, "engine '%s' is shut down%s: cancelling %d call(s)", self.uid, by, count
            )
        for component in unfinished:
            self.cancel(component, f"engine '{self.uid}' is shut down{by}")
        for component in list(self.state.unfinished.values()):  # what a method has left unfinished
            self.cancel(component, f"engine '{self.uid}' is shut down{by}")
        for service in self.services.values():
            self._stop(service)
        self.services.clear()
        self._held.clear()
        for target in self.targets.values():
            target.withdraw()
        for task in list(self._left_tasks):
            if task.is_left:
                task.cancel(f"engine '{self.uid}' is shut down, and nobody had awaited {task!r}")
        for submit in self._submits - {_current_task()}:
            submit.cancel()
        self.shutdown_begun.set()


def _current_task() -> asyncio.Task[Any] | None:
    """Return the task that runs here; ``None`` also where no event loop does."""
    return asyncio.current_task() if asyncio._get_running_loop() is not None else None


class _Turn:
    """What an engine asks its loop to do in the next turn."""

    __slots__ = ("_scheduler",)

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler: Scheduler | None = scheduler

    def __call__(self) -> None:
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            scheduler.launch(polls=True)

    def __del__(self) -> None:
        # The loop was closed before that turn. What has no task whose end puts it back would keep
        # the engine for ever.
        if self._scheduler is not None:
            self._scheduler.track_ready()


class _ValueFor:
    """Returns the results of futures as one component can have them without a copy being sent."""

    def __init__(self, asker: Component[Any]) -> None:
        self._asker = asker

    def __call__(self, future: asyncio.Future[Any]) -> Any:
        if isinstance(future, Component) and _can_stay(future, self._asker):
            return future.remote
        return future.result()


def _can_stay(task: asyncio.Future[Any], asker: Component[Any]) -> bool:
    """Tell whether ``asker`` can do with the result of ``task`` where it is."""
    definition = asker.definition
    return (
        isinstance(task, Component)
        and task.remote is not None
        and definition.kind == "function"
        and task.remote.is_on(definition.backend)
    )


def _cancelled_with(root: str) -> str:
    return f"a dependency was cancelled: {root}"


_turns = itertools.count(1)
"""Engines that share a backend have different numbers."""

_alive: WeakSet[Scheduler] = WeakSet()


def _forget_in_child() -> None:
    """No engine's loop goes on in the child of a fork."""
    for scheduler in _alive:
        scheduler.thread, scheduler.loop_run = 0, scheduler


os.register_at_fork(after_in_child=_forget_in_child)
