"""A function call as something that any executor can run.

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
from typing import Any

from dftracer.asyncflow.backends import remote
from dftracer.asyncflow.backends.base import Task
from dftracer.asyncflow.backends.local.notes import Notes
from dftracer.asyncflow.backends.local.pools import BrokenPool, LostThreadError
from dftracer.asyncflow.backends.programs import name_of
from dftracer.asyncflow.errors import WorkerDiedError, let_out, text_of_error
from dftracer.utils.from_native.event_loop import run_alone
from dftracer.utils.payload import (
    ByValue,
    Outcome,
    is_packed_outcome,
    pack_call,
    pack_cancelled,
    read_outcome,
)
from dftracer.utils.primitives import Mailbox

_INHERIT = getattr(sys.flags, "thread_inherit_context", 0)
"""Whether new threads have the context of whoever starts them, as they do without the GIL. A thread
of a pool would hold that of the first call as long as it lives."""


class Call:
    """One function task on an executor.

    Parameters
    ----------
    task:
        What to run.
    backend:
        The backend's name, for messages.
    notes:
        Where workers in other processes note that they begin.
    mailbox:
        Where a worker in this process posts that it begins, if anybody wants to know that.
    """

    def __init__(
        self, task: Task, backend: str, notes: Notes, mailbox: Mailbox | None = None
    ) -> None:
        self.task: Task | None = task
        self.name = name_of(task)
        self.backend = backend
        self._label = f"task '{self.name}' on backend '{backend}'"
        self.future: Future[Any] | None = None
        self.executor: Executor | None = None
        """Which has it, while it has not ended."""
        self.end: Outcome | None = None
        self.cancel_requested = False
        self.cancels_future = True
        """Whether :meth:`cancel` cancels the executor's future. Where a pool may break, it must
        not: before Python 3.12, the executor's thread fails if it finds such a future then."""
        self._function: Any = task["function"]
        self._args = task.get("args") or ()
        self._kwargs = task.get("kwargs") or {}
        context = task.get("context")  # an empty one is false
        self._context: Any = contextvars.copy_context() if context is None else context
        self._notes = notes
        self._mailbox = mailbox
        self._position: int | None = None
        self._begun: float | None = None
        self._refusal: BaseException | None = None

    # --- in a worker of this process ------------------------------------------------------------

    def __call__(self) -> None:
        """Run the body, in the context of its call; the outcome is left here."""
        if self.cancel_requested:
            self.end = ("cancelled", None)
            return
        self._begun = time.monotonic()
        if self._mailbox is not None:
            self._mailbox.post(self.task)
        process = os.getpid()
        try:
            self.end = ("done", self._context.run(self._run))
        except BaseException as error:
            self.end = ("failed", error)
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
        if self._position is None:
            self._position = self._notes.reserve()
        if self.cancel_requested:  # meanwhile
            self._notes.cancel(self._position)
        whence = (self._notes.path, self._notes.host, self._position)
        return functools.partial, (ByValue(remote.run), packed, *whence)

    # --- in this process ------------------------------------------------------------------------

    def begin(self, executor: Executor) -> Future[Any]:
        """Hand the call to an executor.

        Raises
        ------
        BrokenExecutor
            If the executor has broken.
        RuntimeError
            If it takes no calls for another reason.
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
        """When the body began, by ``time.monotonic()``; ``None`` before."""
        position = self._position  # another thread may end the call
        if self._begun is None and position is not None:
            note = self._notes.read(position)
            return None if note is None else note[0]
        return self._begun

    def began_at(self) -> float | None:
        """As :meth:`begun`, in seconds since the epoch."""
        begun = self.begun()
        return None if begun is None else time.time() - (time.monotonic() - begun)

    @property
    def state(self) -> str:
        """``queued`` or ``running``, as of an unfinished call."""
        return "queued" if self.begun() is None else "running"

    def cancel(self) -> bool:
        """Keep the call from beginning, if it has not; true, for whatever it does is not told."""
        self.cancel_requested = True
        position = self._position  # another thread may end the call
        if position is not None:
            self._notes.cancel(position)
        if self.future is not None and self.cancels_future:
            self.future.cancel()
        return True

    def take_end(self) -> tuple[Task, str, Any]:
        """Give the task and its end away.

        Nothing of it may be kept: an error's traceback leads to the worker's frames, these to the
        executor's future, and that to this call.
        """
        task, end, self.task, self.end, self.future = self.task, self.end, None, None, None
        self.executor = None
        self._function, self._args, self._kwargs, self._context = None, (), {}, None
        assert task is not None
        assert end is not None
        return task, *end

    def finish(self, future: Future[Any]) -> None:
        """Take the end from the executor's future. Called in any thread, once."""
        try:
            self.end = self._end_of(future)
        except BaseException as error:  # of somebody's unpickling, if anything
            self.end = ("failed", error)
        self._release_note()

    def finish_lost(self, pool: BrokenPool) -> bool:
        """End a call whose pool has broken, if it had begun or was cancelled; else it can run.

        All the workers of the pool must have ended, so that it cannot begin any more.
        """
        note = None if self._position is None else self._notes.read(self._position)
        self.future = self.executor = None
        if self.cancel_requested:
            self.end = ("cancelled", None)
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
        """End the call with a :class:`WorkerDiedError` that says so."""
        self.end = ("failed", _caused(WorkerDiedError(self._say(what)), cause))
        self._release_note()

    def fail_lost(self, error: BrokenExecutor) -> None:
        """End the call because its executor will not, and cannot be replaced."""
        self.future = self.executor = None
        self.end = ("failed", _caused(self.lost(error), error))
        self._release_note()

    def _release_note(self) -> None:
        if self._position is not None:
            if self._mailbox is not None:
                self._begun = self.begun()
            self._notes.release(self._position)
            self._position = None

    def _end_of(self, future: Future[Any]) -> Outcome:
        if future.cancelled():
            return "cancelled", None
        error = future.exception()
        if error is None:
            told = future.result()
            if is_packed_outcome(told):
                return read_outcome(self._label, told)
            return self.end or ("failed", RuntimeError(self._say("got no outcome from it")))
        if self._refusal is not None:
            return "failed", self._refusal
        if isinstance(error, BrokenExecutor):
            return "failed", _caused(self.lost(error), error)
        return "failed", error

    def lost(self, error: BrokenExecutor) -> WorkerDiedError:
        """Return the error of a call whose executor has broken and cannot be replaced."""
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

    def _say(self, what: str) -> str:
        return f"{self._label} {what}"


def _caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error
