"""What the workers of a Dask cluster run for :mod:`dftracer.asyncflow.backends.dask.backend`.

Each task is one coroutine in the event loop of its Dask worker. It hands the body to the worker's
runtime and awaits the handle: it takes one of the slots (``nthreads``) by which Dask counts what a
worker does, and none of Dask's threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distributed import Reschedule, WorkerPlugin, get_worker

from dftracer.asyncflow.backends.dask.failures import BodyCancelledError, sendable
from dftracer.asyncflow.backends.dask.work import FunctionWork, ProgramWork
from dftracer.utils import TaskHandle, TaskTimeoutError, get_default_runtime

if TYPE_CHECKING:
    from distributed import Worker

_running: dict[str, TaskHandle[Any]] = {}
"""What this process runs, by its Dask key."""
_stopped: set[str] = set()
"""Those that Dask wants no more."""


class TaskStopper(WorkerPlugin):  # type: ignore[misc]
    """Stops what Dask only forgets: a task whose future was cancelled, or whose client is gone."""

    name = "dftracer-asyncflow-tasks"
    idempotent = True

    def transition(self, key: Any, start: str, finish: str, **_kwargs: Any) -> None:
        """Called by the worker whenever a task changes its state."""
        if finish == "released" and key in _running:
            _stopped.add(key)
            _running[key].cancel()


async def run(work: FunctionWork | ProgramWork, values: Sequence[Any] = ()) -> Any:
    """Run a task; ``values`` are the results of others that are among its arguments."""
    worker = get_worker()
    state = worker.state.tasks.get(work.key)
    if state is not None and state.state == "cancelled":
        raise Reschedule  # released before it could begin; Dask asks for it again if need be
    runtime = getattr(worker, "dftracer_utils_runtime", None) or get_default_runtime()
    since = time.time()
    handle = _running[work.key] = work.start(runtime, values)
    timer = _log_begin(worker, work, handle, since)
    try:
        return work.result_of(await _wait(work, handle))
    except asyncio.CancelledError:
        if work.key in _stopped:
            raise Reschedule from None
        if handle.cancel_requested:
            raise  # the worker closes
        raise BodyCancelledError from None
    except BaseException as error:
        failure = sendable(*work.failure_of(handle.exception or error))
    finally:
        if timer is not None:
            timer.cancel()
        del _running[work.key]
        _stopped.discard(work.key)
    raise failure  # not where it would get a context, which may be what cannot be sent


def _log_begin(
    worker: Worker, work: FunctionWork | ProgramWork, handle: TaskHandle[Any], since: float
) -> asyncio.TimerHandle | None:
    """Log the event that a task has begun, at once or when it has run for some time."""
    topic, after_s = work.begin_event
    if not after_s:
        worker.log_event(topic, [work.key, work.uid, since])
        return None

    def log_later(since: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(after_s, log, since)

    def log(since: float) -> None:
        if handle.state == "running":
            worker.log_event(topic, [work.key, work.uid, since])
        elif handle.state == "queued":  # behind a body that was cancelled and does not end
            log_later(time.time())

    return log_later(since)


async def _wait(work: FunctionWork | ProgramWork, handle: TaskHandle[Any]) -> Any:
    if work.timeout is None:
        return await handle
    ended = asyncio.ensure_future(handle)
    try:
        await asyncio.wait([ended], timeout=work.timeout)
    finally:
        if not ended.done():
            ended.cancel()  # and with it the task
    if ended.done():
        return ended.result()
    raise TaskTimeoutError(
        f"{work!r} has run out of time, which was {work.timeout:g} s: it was asked to stop"
    )
