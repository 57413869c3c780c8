"""A function task in a form that any executor can run.

An executor of threads calls it as it is. One whose workers are other processes or interpreters
pickles it, and then it becomes what :mod:`~dftracer.asyncflow.backends.remote` runs: nobody has to
know which kind of executor it is.
"""

from __future__ import annotations

import contextvars
import functools
import os
import pickle
import sys
import time
from concurrent.futures import BrokenExecutor, Executor, Future
from concurrent.futures.thread import BrokenThreadPool
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any

from dftracer.asyncflow.backends import remote
from dftracer.asyncflow.backends.base import EMPTY, State
from dftracer.asyncflow.backends.local.pools import BrokenPool, LostThreadError
from dftracer.asyncflow.errors import WorkerDiedError, let_out, text_of_error
from dftracer.utils.from_native.event_loop import run_alone
from dftracer.utils.payload import (
    ByValue,
    is_packed_outcome,
    pack_call,
    pack_cancelled,
    read_outcome,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dftracer.asyncflow.backends.base import Outcome, Submission
    from dftracer.asyncflow.backends.local.notes import Notes

_INHERIT = getattr(sys.flags, "thread_inherit_context", 0)
"""Whether new threads have the context of whoever starts them, as they do without the GIL. A thread
of a pool would hold that of the first call as long as it lives."""

_STATES = {"done": State.DONE, "failed": State.FAILED, "cancelled": State.CANCELED}
"""Of outcomes from other processes."""


class WorkItem:
    """One function task on an executor.

    Parameters
    ----------
    submission:
        What to run.
    backend:
        The backend's name, for messages.
    notes:
        Where workers in other processes note that they begin.
    report_running:
        Called in the worker's thread when the body begins, if that is in this process.
    """

    __slots__ = (
        "_args",
        "_begun",
        "_body_context",
        "_function",
        "_kwargs",
        "_label",
        "_notes",
        "_position",
        "_refusal",
        "_report_running",
        "cancel_requested",
        "cancels_future",
        "executor",
        "future",
        "is_reported_running",
        "outcome",
        "submission",
    )

    def __init__(
        self,
        submission: Submission,
        backend: str,
        notes: Notes,
        report_running: Callable[[WorkItem], object] | None = None,
    ) -> None:
        self.submission: Submission | None = submission
        self.future: Future[Any] | None = None
        self.executor: Executor | None = None
        """Which has it, while it has not ended."""
        self.outcome: tuple[State, Any] | None = None
        self.is_reported_running = False
        """Whether it has been reported that it runs."""
        self.cancel_requested = False
        self.cancels_future = True
        """Whether :meth:`cancel` cancels the executor's future. Where a pool may break, it must
        not: before Python 3.12, the executor's thread fails if it finds such a future then."""
        self._label = f"task '{submission.name}' on backend '{backend}'"
        self._function: Any = submission.function
        self._args = submission.args
        self._kwargs = submission.kwargs or {}
        self._body_context = _own_context(submission.context)
        self._notes = notes
        self._report_running = report_running
        self._position: int | None = None
        self._begun: float | None = None
        self._refusal: BaseException | None = None

    # --- in a worker of this process ------------------------------------------------------------

    def __call__(self) -> None:
        """Run the body, in the context of its call; the outcome is left here."""
        if self.cancel_requested:
            self.outcome = State.CANCELED, None
            return
        self._begun = time.monotonic()
        if self._report_running is not None:
            self._report_running(self)
        process = os.getpid()
        try:
            self.outcome = State.DONE, self._body_context.run(self._run)
        except BaseException as error:
            self.outcome = State.FAILED, error
        if os.getpid() != process:
            os._exit(0)  # the body has forked, and this is the child, which is no worker

    def _run(self) -> Any:
        value = self._function(*self._args, **self._kwargs)
        if iscoroutine(value):
            return run_alone(value)
        return value

    # --- on the way to another process ----------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        if self.cancel_requested:
            return functools.partial, (tuple, pack_cancelled())
        try:
            packed = pack_call(self._label, self._function, self._args, self._kwargs)
        except pickle.PicklingError as error:
            self._refusal = error
            raise
        with self._notes.lock:
            if self._position is None:
                self._position = self._notes.reserve()
            if self.cancel_requested:  # meanwhile
                self._notes.cancel(self._position)
            note = (self._notes.path, self._notes.host, self._position)
        return functools.partial, (ByValue(remote.run), packed, *note)

    # --- in this process ------------------------------------------------------------------------

    def submit_to(self, executor: Executor) -> Future[Any]:
        """Hand the item to an executor.

        Raises
        ------
        BrokenExecutor
            If the executor has broken.
        RuntimeError
            If it takes nothing for another reason.
        """
        try:
            if _INHERIT:
                self.future = contextvars.Context().run(executor.submit, self)
            else:
                self.future = executor.submit(self)
            self.executor = executor
        except BrokenExecutor:
            raise
        except BaseException as error:
            self.cancel()  # it may be in a queue all the same
            let_out(error)
            what = f"is refused by {type(executor).__name__}: {text_of_error(error)}"
            raise RuntimeError(self._say(what)) from error
        return self.future

    def begun(self) -> float | None:
        """Return when the body began, by ``time.monotonic()``; ``None`` before."""
        with self._notes.lock:
            if self._begun is None and self._position is not None:
                note = self._notes.read(self._position)
                return None if note is None else note[0]
            return self._begun

    def began_at(self) -> float | None:
        """Return when the body began, in seconds since the epoch; ``None`` before."""
        begun = self.begun()
        return None if begun is None else time.time() - (time.monotonic() - begun)

    @property
    def state(self) -> str:
        """``queued`` or ``running``, as of an item that has not ended."""
        return "queued" if self.begun() is None else "running"

    def cancel(self) -> None:
        """Keep the body from beginning, if it has not."""
        self.cancel_requested = True
        with self._notes.lock:
            if self._position is not None:
                self._notes.cancel(self._position)
        if self.future is not None and self.cancels_future:
            self.future.cancel()

    def take_outcome(self) -> Outcome:
        """Give the submission and its outcome away.

        Nothing of it may be kept: an error's traceback leads to the worker's frames, these to the
        executor's future, and that to this item.
        """
        submission, outcome, self.submission, self.outcome = (
            self.submission,
            self.outcome,
            None,
            None,
        )
        self.future = self.executor = None
        self._function, self._args, self._kwargs = None, (), {}
        self._body_context = EMPTY
        assert outcome is not None
        return submission, *outcome

    def finish(self, future: Future[Any]) -> None:
        """Take the outcome from the executor's future. Called in any thread, once."""
        try:
            self.outcome = self._outcome_of(future)
        except BaseException as error:  # of somebody's unpickling, if anything
            self.outcome = State.FAILED, error
        self._release_note()

    def finish_in(self, pool: BrokenPool) -> bool:
        """End an item whose pool has broken, if it had begun or was cancelled; else it can run.

        All the workers of the pool must have ended, so that it cannot begin any more.
        """
        note = None if self._position is None else self._notes.read(self._position)
        self.future = self.executor = None
        if self.cancel_requested:
            self.outcome = State.CANCELED, None
        elif note is not None:
            death = pool.deaths.get(note[1])
            if death is not None:
                what = f"is lost: its worker process died ({death})"
            else:
                why = "when another died " if pool.deaths else ""
                what = (
                    "is lost: its worker process was stopped in the middle of it, as their pool "
                    f"broke {why}({pool.death}); it is not run again by itself, because what it "
                    "has done already would be done twice"
                )
            self.fail(what, pool.cause)
            return True
        else:
            return False
        self._release_note()
        return True

    def fail(self, what: str, cause: BaseException) -> None:
        """End the item with a :class:`WorkerDiedError` that says so."""
        self.outcome = State.FAILED, _caused(WorkerDiedError(self._say(what)), cause)
        self._release_note()

    def fail_with_executor(self, error: BrokenExecutor) -> None:
        """End the item because its executor will not, and cannot be replaced."""
        self.future = self.executor = None
        self.outcome = State.FAILED, _caused(self.executor_error(error), error)
        self._release_note()

    def executor_error(self, error: BrokenExecutor) -> WorkerDiedError:
        """Return the error of an item whose executor has broken and cannot be replaced."""
        reason = "a worker process died"
        if isinstance(error, BrokenThreadPool):
            reason = "its workers cannot be set up"
        elif isinstance(error, LostThreadError):
            reason = "nobody looks after its worker processes"
        return WorkerDiedError(
            self._say(
                f"is lost: {reason}, and its executor takes no more tasks; make a new one, with a "
                f"new backend: {error}"
            )
        )

    def _release_note(self) -> None:
        with self._notes.lock:
            if self._position is not None:
                if self._report_running is not None:
                    self._begun = self.begun()
                position, self._position = self._position, None
                self._notes.release(position)

    def _outcome_of(self, future: Future[Any]) -> tuple[State, Any]:
        if future.cancelled():
            return State.CANCELED, None
        error = future.exception()
        if error is None:
            result = future.result()
            if is_packed_outcome(result):
                end, value = read_outcome(self._label, result)
                return _STATES[end], value
            missing = "got no outcome from it"
            return self.outcome or (State.FAILED, RuntimeError(self._say(missing)))
        if self._refusal is not None:
            return State.FAILED, self._refusal
        if isinstance(error, BrokenExecutor):
            return State.FAILED, _caused(self.executor_error(error), error)
        return State.FAILED, error

    def _say(self, what: str) -> str:
        return f"{self._label} {what}"


def _own_context(context: contextvars.Context | None) -> contextvars.Context:
    """Return the context that a body runs in; one that was not given is a copy of the caller's."""
    if context is None:
        return contextvars.copy_context()
    return contextvars.Context() if context is EMPTY else context


def _caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error
