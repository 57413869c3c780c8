"""A runtime behind the interface of :class:`concurrent.futures.Executor`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future, InvalidStateError
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from dftracer.utils._native import TaskHandle
    from dftracer.utils.runtime import Runtime

P = ParamSpec("P")
T = TypeVar("T")


class RuntimeExecutor(Executor):
    """What :meth:`Runtime.executor <dftracer.utils.Runtime.executor>` returns.

    ``loop.run_in_executor``, Dask's ``worker.executors`` and other code that wants an executor can
    use it. Shutting it down stops it from taking calls and waits for its own; the runtime goes on.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._open = True
        self._unfinished: set[Future[Any]] = set()
        # What Dask reads to know how much to send at a time.
        self._max_workers = runtime.sizes["python_threads"]

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn(*args, **kwargs)`` on a worker of the runtime.

        Raises
        ------
        RuntimeError
            If this executor or the runtime is shut down.
        """
        if not self._open:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[T] = Future()

        def body() -> None:
            if not future.set_running_or_notify_cancel():
                return
            # The runtime may have ended the task meanwhile, at a deadline: then that has been told.
            with contextlib.suppress(InvalidStateError):
                try:
                    result = fn(*args, **kwargs)
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)

        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        try:
            handle = self._runtime.submit(body, name=getattr(fn, "__qualname__", None))
        except BaseException:
            self._unfinished.discard(future)
            raise
        handle.add_done_callback(lambda ended: _end(future, ended))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; cancel or wait for those of this executor as asked."""
        self._open = False
        for future in list(self._unfinished):
            if cancel_futures:
                future.cancel()
        if wait:
            for future in list(self._unfinished):
                if not future.cancelled():
                    future.exception()


def _end(future: Future[Any], handle: TaskHandle[None]) -> None:
    """End a future whose task the runtime has ended without its body's doing."""
    error = handle.exception or CancelledError()
    with contextlib.suppress(InvalidStateError):
        if not future.done() and not (handle.state == "cancelled" and future.cancel()):
            future.set_exception(error)
