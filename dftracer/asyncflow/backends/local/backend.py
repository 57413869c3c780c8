"""Function tasks on any executor of :mod:`concurrent.futures`."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING

from dftracer.asyncflow.backends.base import State
from dftracer.asyncflow.backends.deadlines import Deadlines
from dftracer.asyncflow.backends.host import DELIVERIES_PER_TURN, HostExecutionBackend
from dftracer.asyncflow.backends.local.changes import Changes
from dftracer.asyncflow.backends.local.notes import Notes
from dftracer.asyncflow.backends.local.recovery import RecoveringPool
from dftracer.asyncflow.backends.local.work import WorkItem
from dftracer.asyncflow.errors import let_out
from dftracer.utils import Runtime, TaskTimeoutError
from dftracer.utils.default import threads_of_environment
from dftracer.utils.lifetime.exit import exit_patience_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

    from dftracer.asyncflow.backends.base import Outcome, Submission
_log = logging.getLogger("dftracer.asyncflow")


class LocalExecutionBackend(HostExecutionBackend):
    """Runs functions on an executor, and programs through a runtime, without a thread for each.

    Executors run functions in the order of their submission: none goes ahead.

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
    had begun fail with :class:`WorkerDiedError`, which says whether it was their worker that died,
    and of what; all others run on the new pool. No body is begun twice. If three pools in a row
    break before a task begins, those that wait fail too. With other executors all tasks that it
    held fail, and it takes no more.
    """

    def __init__(self, executor: Executor | None = None, name: str = "default") -> None:
        super().__init__(name)
        if executor is not None and not isinstance(executor, Executor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                "executor must be a concurrent.futures.Executor or None, not "
                f"{type(executor).__name__}"
            )
        self._owns_executor = executor is None
        self._executor: Executor = _new_pool() if executor is None else executor
        """What the backend starts with."""
        self._is_spent = False
        self._notes = Notes()
        # These are there while the backend is started.
        self._pool: RecoveringPool
        self._changes: Changes
        self._deadlines: Deadlines

    @classmethod
    async def create(cls, executor: Executor | None = None, name: str = "default") -> Self:
        """Make a backend and start it."""
        return await cls(executor, name)

    @property
    def executor(self) -> Executor:
        """Where functions run. Another one after a worker process has died."""
        return self._executor if self.loop is None else self._pool.executor

    def acquire(self) -> Runtime:
        if self._is_spent:
            raise RuntimeError(
                f"backend '{self.name}' has shut its executor down: make a new one of each"
            )
        loop = asyncio.get_running_loop()
        runtime = Runtime(threads_of_environment())
        self._changes = Changes(loop, self._report_changes)
        self._deadlines = Deadlines(loop)
        self._pool = RecoveringPool(self._executor, loop, self._changes)
        return runtime

    def _leave_behind(self) -> bool:
        """Expect nothing more of the bodies that run on; return whether there are some."""
        left = [work for work in self.late.values() if isinstance(work, WorkItem)]
        if left:
            _log.warning(
                "backend '%s' is shut down, and bodies whose calls were cancelled or have run out "
                "of time have not returned (DFTRACER_EXIT_PATIENCE_S): processes are killed, "
                "threads are left behind",
                self.name,
            )
        for item in left:
            item.future = item.executor = None
            self._pool.remove(item)
        self.late.clear()
        return bool(left)

    def patience_s(self) -> float | None:
        return exit_patience_s()

    async def release(self) -> None:
        # All these wait for their workers; not in the event loop's thread.
        if self.runtime is not None:
            await asyncio.to_thread(self.runtime.shutdown)
        await self._pool.shut_down(is_stuck=self._leave_behind())
        self._executor = _new_pool() if self._owns_executor else self._pool.executor
        self._is_spent = not self._owns_executor
        self._notes.close()
        self._notes = Notes()

    def state(self) -> str:
        return "SHUTDOWN" if self._is_spent else super().state()

    # --- submissions ----------------------------------------------------------------------------

    def submit(self, submissions: Sequence[Submission], ahead: int = 0) -> None:
        if not self.is_open:
            raise RuntimeError(f"backend '{self.name}' is not started: await it first")
        for submission in submissions:
            try:
                if submission.function is None:
                    self.start_program(submission)
                else:
                    self._submit_function(submission)
            except BaseException as error:
                self.fail(submission, error)
                let_out(error)
        self.stay_while_busy()

    def _submit_function(self, submission: Submission) -> None:
        timeout = self.timeout_of_function(submission)
        report_running = self._changes.add_running if self.report_running else None
        item = WorkItem(submission, self.name, self._notes, report_running)
        self._pool.submit(item)
        self.unfinished[submission] = item
        if timeout is not None:
            self._deadlines.start(submission, timeout, item.begun, self._run_out)

    # --- outcomes -------------------------------------------------------------------------------

    def _report_changes(self) -> None:
        """Report what has begun or ended on the executor."""
        outcomes: list[Outcome] = []
        for item, has_ended in self._changes.take(DELIVERIES_PER_TURN):
            if self.report_running:
                self._add_running(item, outcomes)
            if has_ended:
                self._pool.remove(item)
                submission, state, value = item.take_outcome()
                self._deadlines.stop(submission)
                if self.late.pop(submission, None) is None:
                    self.unfinished.pop(submission, None)
                    outcomes.append((submission, state, value))
        self.stay_while_busy()
        if outcomes:
            self._report(outcomes)

    def look_again(self) -> None:
        super().look_again()
        self._report_changes()

    def _add_running(self, item: WorkItem, outcomes: list[Outcome]) -> None:
        """Add that an item runs, if it does; in another process that is known only at its end."""
        submission = item.submission
        if submission in self.unfinished and not item.is_reported_running:
            since = item.began_at()
            if since is not None:
                item.is_reported_running = True
                outcomes.append((submission, State.RUNNING, since))

    def _run_out(self, submission: Submission, seconds: float) -> None:
        """Let a submission fail that has run for too long."""
        late = self.late.get(submission)
        if late is not None:
            if not late.cancel_requested:
                late.cancel()
            return
        self._give_up(submission)
        error = TaskTimeoutError(
            f"task '{submission.name}' on backend '{self.name}' has run out of time, which was "
            f"{seconds:g} s: its worker is free again when the body returns"
        )
        self._report([(submission, State.FAILED, error)])

    def cancel(self, submission: Submission) -> bool:
        if not isinstance(self.unfinished.get(submission), WorkItem):
            return super().cancel(submission)
        self._give_up(submission)
        self._report([(submission, State.CANCELED, None)])
        return True

    def _give_up(self, submission: Submission) -> None:
        """Keep a body from beginning; if it has begun, its end is not reported."""
        running = self.late[submission] = self.unfinished.pop(submission)
        running.cancel()


def _new_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="dft-local")
