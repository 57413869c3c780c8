"""Function tasks on any executor of :mod:`concurrent.futures`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import deque
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from dftracer.asyncflow.backends.base import Task, TaskStates
from dftracer.asyncflow.backends.calls import Call
from dftracer.asyncflow.backends.host import DELIVERIES_PER_TURN, HostExecutionBackend
from dftracer.asyncflow.backends.notes import Notes
from dftracer.utils import Runtime

if TYPE_CHECKING:
    from typing_extensions import Self


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
    its worker is busy until the body is back. When a worker process dies, the tasks that its
    executor held fail with :class:`WorkerDiedError`.
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
        """Where functions run."""
        self._is_spent = False
        self._notes = Notes()
        self._ended: deque[Call] = deque()
        """The calls that have ended and are not yet reported. Filled by any thread."""
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
        return Runtime()

    async def _release(self) -> None:
        # Both wait for their workers; not in the event loop's thread.
        if self._runtime is not None:
            await asyncio.to_thread(self._runtime.shutdown)
        await asyncio.to_thread(self.executor.shutdown)
        if self._owns_executor:
            self.executor = _new_pool()
        self._is_spent = not self._owns_executor
        self._notes = Notes()

    def state(self) -> str:
        return "SHUTDOWN" if self._is_spent else super().state()

    def _run_functions(self, tasks: list[Task]) -> None:
        for task in tasks:
            call = Call(
                task, self.name, self._notes, self._mailbox if self.report_running else None
            )
            try:
                timeout = self._timeout_of_function(task)
                future = call.begin(self.executor)
            except Exception as error:
                self._fail(task, error)
                continue
            self._unfinished[task["uid"]] = (task, call)
            if timeout is not None:
                self._limit(task, timeout, call.begun)
            future.add_done_callback(functools.partial(self._note_end, call))

    def _note_end(self, call: Call, future: Future[Any]) -> None:
        """Pass the end of a call on to the event loop. Called in any thread."""
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
            if self.report_running:
                self._begin_late(call)
            self._end(*call.take_end())
        if self._ended:
            self._wake()
        self._tell_if_empty()

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
