"""A runtime behind the interface of :class:`concurrent.futures.Executor`."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future, InvalidStateError
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from dftracer.utils._native import Blocked
from dftracer.utils.completion import as_completed
from dftracer.utils.errors import ForkedRuntimeError, RuntimeShutdownError

if TYPE_CHECKING:
    from dftracer.utils import _native
    from dftracer.utils._native import TaskHandle

P = ParamSpec("P")
T = TypeVar("T")

_FIRST_BEGIN_S = 0.05
"""How long calls that were just submitted may take to begin before they are cancelled in a row."""


class RuntimeExecutor(Executor):
    """What :meth:`Runtime.executor <dftracer.utils.Runtime.executor>` returns.

    ``loop.run_in_executor``, Dask's ``worker.executors`` and other code that wants an executor can
    use it. Shutting it down stops it from taking calls and waits for its own; the runtime goes on.
    """

    def __init__(self, runtime: _native.Runtime) -> None:
        self._runtime = runtime
        self._process = os.getpid()
        # Held while a call is submitted, so that one that is accepted is among those that
        # `shutdown` waits for. A signal handler or a finalizer may submit in the middle of that.
        self._lock = threading.RLock()
        self._is_open = True
        self._unfinished: dict[TaskHandle[None], Future[Any]] = {}
        self._here = _Here(threading.Event())
        # What Dask reads to know how much to send at a time.
        self._max_workers = runtime.sizes["python_threads"]

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn(*args, **kwargs)`` on a worker of the runtime.

        A call may wait for the result of another one: a spare worker runs that meanwhile.

        Raises
        ------
        RuntimeShutdownError
            If this executor or the runtime is shut down.
        ForkedRuntimeError
            If they were made before a ``fork()``.
        """
        self._check_process()
        call = _Call(self._here, fn, args, kwargs)
        future = call.future
        with self._lock:
            if not self._is_open:
                raise RuntimeShutdownError("cannot schedule new futures after shutdown")
            try:
                handle = self._runtime.submit(call, name=_name_of(fn))
            except RuntimeError as error:
                raise type(error)(f"cannot schedule new futures: {error}") from error
            self._unfinished[handle] = future
        handle.add_done_callback(call.ended)
        handle.add_done_callback(self._forget)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; cancel or wait for those of this executor as asked.

        It waits until their done callbacks have been called too. Inside one of its own calls,
        which it would wait for in vain, it returns at once, as it does in the child of a
        ``fork()``.
        """
        if self._process != os.getpid():
            return
        with self._lock:
            self._is_open = False
            unfinished = dict(self._unfinished)
        if cancel_futures:
            # Where the first calls are submitted, a pool of threads waits for their threads.
            if unfinished:
                self._here.has_begun.wait(_FIRST_BEGIN_S)
            for future in unfinished.values():
                future.cancel()
        if wait and not self._here.depth:
            for _ in as_completed(unfinished):  # which raises none of their errors
                pass

    def _forget(self, handle: TaskHandle[None]) -> None:
        self._unfinished.pop(handle, None)

    def _check_process(self) -> None:
        # First of all: the lock may have been held by another thread when the process forked.
        if self._process != os.getpid():
            raise ForkedRuntimeError(
                "this executor was made before a fork(): make a runtime in the child"
            )


class _Here(threading.local):
    """What the calls of an executor note for it, in their threads."""

    depth = 0
    """How many of its calls run on this thread, one inside the other."""

    def __init__(self, has_begun: threading.Event) -> None:
        self.has_begun = has_begun
        """Set when the first of them has begun; the same in all threads."""


class _Future(Future[T]):
    """A future for which a call on the same runtime may wait."""

    def result(self, timeout: float | None = None) -> T:
        try:
            with Blocked():
                return super().result(timeout)
        finally:
            del self  # not part of the traceback that it holds

    def exception(self, timeout: float | None = None) -> BaseException | None:
        with Blocked():
            return super().exception(timeout)


class _Call(Generic[T]):
    """The body of a task that runs one call and ends its future."""

    __slots__ = ("_args", "_fn", "_here", "_kwargs", "_unclaimed", "future")

    def __init__(
        self,
        here: _Here,
        fn: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._here = here
        self._fn = fn
        self._args = args
        self._kwargs = kwargs
        self._unclaimed = [True]
        """Emptied by the first of the two: the call as it begins, or the end of its task."""
        self.future: Future[T] = _Future()

    def __call__(self) -> None:
        if not self._claim() or not self.future.set_running_or_notify_cancel():
            return
        self._here.depth += 1
        if not self._here.has_begun.is_set():
            self._here.has_begun.set()
        try:
            # The runtime may have ended the task meanwhile, at a deadline, and with it the future.
            with contextlib.suppress(InvalidStateError):
                try:
                    result = self._fn(*self._args, **self._kwargs)
                except BaseException as error:
                    self.future.set_exception(error)
                else:
                    self.future.set_result(result)
        finally:
            self._here.depth -= 1
            # The traceback of an error holds this frame, which shall not hold the error's future.
            del self

    def ended(self, handle: TaskHandle[None]) -> None:
        """End the future if the runtime has ended the task without its body."""
        future = self.future
        if handle.state == "done":
            return
        if self._claim():
            if handle.state == "cancelled":
                future.cancel()
            if not future.set_running_or_notify_cancel():
                return
        with contextlib.suppress(InvalidStateError):
            future.set_exception(handle.exception or CancelledError())

    def _claim(self) -> bool:
        try:
            return self._unclaimed.pop()
        except IndexError:
            return False


def _name_of(fn: object) -> str:
    """Return the name of the task: that of the callable, or of its class if it has none."""
    name: object = getattr(fn, "__qualname__", None)
    return name if isinstance(name, str) else type(fn).__qualname__
