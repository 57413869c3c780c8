"""Function tasks on any executor of :mod:`concurrent.futures`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections import deque
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from dftracer.asyncflow.backends.base import Task, TaskStates
from dftracer.asyncflow.backends.host import DELIVERIES_PER_TURN, HostExecutionBackend
from dftracer.asyncflow.backends.local.calls import Call
from dftracer.asyncflow.backends.local.notes import Notes
from dftracer.asyncflow.backends.local.pools import (
    BrokenPool,
    LostThreadError,
    PoolWatch,
    release_writer,
    remake_of,
)
from dftracer.asyncflow.errors import let_out, text_of_error
from dftracer.utils import Runtime
from dftracer.utils.default import threads_of_environment
from dftracer.utils.lifetime.exit import exit_patience_s

if TYPE_CHECKING:
    from typing_extensions import Self


_log = logging.getLogger("dftracer.asyncflow")

LOOK_S = 1.0
"""How often a pool of processes is looked after while it has calls."""

BREAKS_IN_A_ROW = 3
"""After how many broken pools in which no task has begun those that wait fail."""


class LocalExecutionBackend(HostExecutionBackend):
    """Runs functions on an executor, and programs through a runtime, without a thread for each.

    Parameters
    ----------
    executor:
        Any :class:`concurrent.futures.Executor`, of threads, processes or interpreters, loky's and
        :meth:`Runtime.executor() <dftracer.utils.Runtime.executor>` too. ``None`` makes a
        :class:`~concurrent.futures.ThreadPoolExecutor`. Either is shut down by :meth:`shutdown`;
        with one that was given, the backend cannot be used again then.
    name:
        The name by which decorators choose this backend.

    Raises
    ------
    TypeError
        If ``executor`` is no executor.

    Notes
    -----
    Async functions run under :func:`asyncio.run` in a worker. In a thread of this process a body
    runs in the context (:mod:`contextvars`) of its call. To another process go function, arguments
    and result by ``cloudpickle``; what cannot be sent fails its task with
    :class:`pickle.PicklingError`. An error keeps its type, and its traceback is the ``__cause__``.

    A body that runs cannot be stopped. A task that is cancelled, or fails with
    :class:`~dftracer.utils.TaskTimeoutError` at its ``timeout``, has ended for whoever waits, and
    its worker is busy until the body is back.

    A worker process that dies breaks its whole pool. Of :class:`ProcessPoolExecutor` and loky's,
    the backend then makes another like it, which is :attr:`executor` from then on. The tasks that
    had begun fail with :class:`WorkerDiedError`, which tells whether it was their worker that died,
    and of what; all others run on the new pool. No body is begun twice. If three pools in a row
    break before a task begins, those that wait fail too. With other executors all tasks that it
    held fail, and it takes no more.
    """

    _after_timeout = "its worker is free again when the body returns"

    def __init__(self, executor: Executor | None = None, name: str = "default") -> None:
        super().__init__(name)
        if executor is not None and not isinstance(executor, Executor):
            raise TypeError(
                "executor must be a concurrent.futures.Executor or None, not "
                f"{type(executor).__name__}"
            )
        self._owns_executor = executor is None
        self.executor: Executor = _new_pool() if executor is None else executor
        """Where functions run. Another one after a worker process has died."""
        self._remake = remake_of(self.executor)
        self._watch = PoolWatch(self.executor)
        self._next_look: asyncio.TimerHandle | None = None
        self._lost: deque[Call] = deque()
        """The calls that a broken pool held, and those that wait for the next. Filled by any
        thread."""
        self._broken: BrokenPool | None = None
        self._breaks = 0
        """How many pools in a row have broken before a task began."""
        self._recovering: asyncio.Task[None] | None = None
        self._is_spent = False
        self._notes = Notes()
        self._ended: deque[Call] = deque()
        """The calls that have ended and are not yet reported. Filled by any thread."""
        self._lock = threading.Lock()
        self._is_woken = False
        """Whether the event loop will look at them, without being told again."""

    @classmethod
    async def create(cls, executor: Executor | None = None, name: str = "default") -> Self:
        """Make a backend and start it."""
        return await cls(executor, name)

    def _acquire(self) -> Runtime:
        if self._is_spent:
            raise RuntimeError(
                f"backend '{self.name}' has shut its executor down: make a new one of each"
            )
        return Runtime(threads_of_environment())

    def _patience_s(self) -> float | None:
        return exit_patience_s()

    def _leave_behind(self) -> bool:
        """Expect nothing more of the bodies that run on; tell whether there are some."""
        left = [call for _, call in self._late.values() if isinstance(call, Call)]
        if left:
            _log.warning(
                "backend '%s' is shut down, and bodies whose calls were cancelled or have run out "
                "of time have not returned (DFTRACER_EXIT_PATIENCE_S): processes are killed, "
                "threads are left behind",
                self.name,
            )
        for call in left:
            call.future = call.executor = None
        self._late.clear()
        return bool(left)

    async def _release(self) -> None:
        # All these wait for their workers; not in the event loop's thread.
        if self._recovering is not None:
            await asyncio.wait([self._recovering])
        if self._runtime is not None:
            await asyncio.to_thread(self._runtime.shutdown)
        await asyncio.to_thread(self._watch.shut_down, self._leave_behind())
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        if self._owns_executor:
            self.executor = _new_pool()
            self._watch = PoolWatch(self.executor)
        self._is_spent = not self._owns_executor
        self._notes = Notes()

    def state(self) -> str:
        return "SHUTDOWN" if self._is_spent else super().state()

    def _run_functions(self, tasks: list[Task]) -> None:
        for task in tasks:
            call = Call(
                task, self.name, self._notes, self._mailbox if self.report_running else None
            )
            call.cancels_future = self._remake is None
            try:
                timeout = self._timeout_of_function(task)
                self._unfinished[task["uid"]] = (task, call)
                self._hand_over(call)
            except BaseException as error:
                self._unfinished.pop(task["uid"], None)
                self._fail(task, error)
                let_out(error)
                continue
            if timeout is not None:
                self._limit(task, timeout, call.begun)
        self._look_later()

    def _hand_over(self, call: Call) -> None:
        """Give a call to the executor, or let it wait for the next if that has broken."""
        if self._broken is not None:
            self._lost.append(call)
            self._recover()
            return
        try:
            if self._watch.would_lose_calls():
                raise LostThreadError
            self._watch.trim_idle()
            future = call.begin(self.executor)
        except BrokenExecutor as error:
            if self._remake is None:
                raise call.lost(error) from error
            self._note_break(call, error)
            self._recover()
            return
        future.add_done_callback(functools.partial(self._note_end, call))

    def _look_later(self) -> None:
        if self._next_look is None and self._watch.is_possible:
            assert self._loop is not None
            self._next_look = self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        """See that the calls that the pool has will end. While there are some, again and again."""
        self._next_look = None
        if not self._unfinished and not self._late:
            return
        self._look_later()
        if self._recovering is not None:
            return
        if not self._watch.has_lost_its_thread():
            self._watch.look()
            return
        error = LostThreadError()
        for call in self._calls_of(self.executor):
            if self._remake is not None:
                self._note_break(call, error)
            else:
                call.fail_lost(error)
                self._ended.append(call)
        if self._lost or self._ended:
            self._report_ended()

    def _calls_of(self, executor: Executor) -> list[Call]:
        """Return the calls whose ends the executor still owes."""
        entries = [*self._unfinished.values(), *self._late.values()]
        return [
            call
            for _, call in entries
            if isinstance(call, Call)
            and call.executor is executor
            and call.future is not None
            and not call.future.done()
        ]

    def _note_break(self, call: Call, error: BrokenExecutor) -> None:
        """See what has died, before the executor stops the others. Called in any thread."""
        with self._lock:
            if self._broken is None:
                stop = isinstance(error, LostThreadError)
                self._broken = BrokenPool(self.executor, error, stop)
        call.executor = call.future = None  # from which nothing is expected any more
        self._lost.append(call)

    def _note_end(self, call: Call, future: Future[Any]) -> None:
        """Pass the end of a call on to the event loop. Called in any thread."""
        if call.future is not future:
            return  # lost before, and the executor has found its voice again
        self._watch.trim_idle()
        error = None if future.cancelled() else future.exception()
        if isinstance(error, BrokenExecutor) and self._remake is not None:
            self._note_break(call, error)
            release_writer(self.executor)
        else:
            call.finish(future)
            self._ended.append(call)
        if not self._is_woken:
            self._wake()

    def _wake(self) -> None:
        assert self._loop is not None
        self._is_woken = True
        with contextlib.suppress(RuntimeError):  # closed without a shutdown: nobody listens
            self._loop.call_soon_threadsafe(self._report_ended)

    def _report_ended(self) -> None:
        # Before looking, so that what comes after the last look wakes the loop again.
        self._is_woken = False
        for _ in range(min(len(self._ended), DELIVERIES_PER_TURN)):
            call = self._ended.popleft()
            self._breaks = 0
            if self.report_running:
                self._begin_late(call)
            self._end(*call.take_end())
        if self._lost:
            self._recover()
        if self._ended:
            self._wake()
        self._tell_if_empty()

    def _recover(self) -> None:
        if self._recovering is None:
            assert self._loop is not None
            self._recovering = self._loop.create_task(self._replace_pool())

    async def _replace_pool(self) -> None:
        """Put another pool in the place of one that has broken, and go on with that."""
        broken, remake = self._broken, self._remake
        assert broken is not None
        assert remake is not None
        failure: BaseException | None = None
        try:
            # Then its workers have ended, and all that it held is known to be lost.
            await asyncio.to_thread(broken.close)
            self.executor = remake()
            self._remake = remake_of(self.executor)
            self._watch = PoolWatch(self.executor)
        except BaseException as error:
            let_out(error)
            failure = error
        # Those too that the pool took in while it broke, and forgot.
        self._lost.extend(self._calls_of(broken.executor))
        self._broken = self._recovering = None
        lost = [self._lost.popleft() for _ in range(len(self._lost))]
        waiting = []
        for call in lost:
            try:
                has_ended = call.finish_lost(broken)
            except BaseException as error:
                call.end = ("failed", error)
                has_ended = True
            if has_ended:
                self._ended.append(call)
            else:
                waiting.append(call)
        self._breaks = 0 if self._ended else self._breaks + 1
        if failure is not None:
            what = f"another pool cannot be made: {text_of_error(failure)}"
            self._fail_all(waiting, broken, what)
        elif self._breaks == BREAKS_IN_A_ROW:
            self._breaks = 0
            what = f"that {BREAKS_IN_A_ROW} times in a row before a task could begin: look at the "
            what += "pool's initializer, and at what its workers import"
            self._fail_all(waiting, broken, what)
        else:
            for call in waiting:
                try:
                    self._hand_over(call)
                except BaseException as error:
                    call.end = ("failed", error)
                    self._ended.append(call)
        self._look_later()
        self._report_ended()

    def _fail_all(self, calls: list[Call], broken: BrokenPool, why: str) -> None:
        reason = f"a worker process died ({broken.death})" if broken.deaths else broken.death
        for call in calls:
            what = f"cannot begin: {reason}, and {why}"
            call.fail(what, broken.cause)
        self._ended.extend(calls)

    def _begin_late(self, call: Call) -> None:
        """Report that a call has begun if only its end tells, as in another process."""
        since = call.began_at()
        if since is not None and call.task is not None and "started_at" not in call.task:
            self._begin(call.task, since)

    def cancel_nowait(self, uid: str) -> bool:
        entry = self._unfinished.get(uid)
        if entry is None or not isinstance(entry[1], Call):
            return super().cancel_nowait(uid)
        task, call = entry
        self._give_up(task)
        call.cancel()
        self._tell(task, TaskStates.CANCELED)
        return True


def _new_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="dft-local")
