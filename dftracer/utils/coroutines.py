"""The event loops that run coroutine functions, one on each worker of the coroutine lane.

A body runs in a real :class:`asyncio.Task` on a loop that runs, so ``current_task``, ``timeout``,
``TaskGroup`` and ``get_running_loop`` work as everywhere. Its first step is made at once, inside
the callback that took it from the queue: a body that never suspends costs no turn of the loop, and
one that blocks keeps only its own worker busy, since another one takes the next task.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from dftracer.utils.current import coroutine_task

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextvars import Context

    from dftracer.utils._native import CoroutineWorker, TaskHandle

_BATCH = 64
"""How many tasks are begun before the loop gets a turn to go on with those that are suspended."""

if sys.version_info >= (3, 12):

    def _start(
        loop: asyncio.SelectorEventLoop, coroutine: Coroutine[Any, Any, None], context: Context
    ) -> asyncio.Task[None]:
        return asyncio.Task(coroutine, loop=loop, context=context, eager_start=True)

else:

    def _start(
        loop: asyncio.SelectorEventLoop, coroutine: Coroutine[Any, Any, None], context: Context
    ) -> asyncio.Task[None]:
        task = context.run(asyncio.Task, coroutine, loop=loop)
        # The new task has just put its first step last in the loop's queue: take it from there.
        loop._ready.pop()._run()  # type: ignore[attr-defined]
        return task


def serve(worker: CoroutineWorker) -> None:
    """Run tasks of ``worker``'s lane until the lane has no more use for it."""
    _Server(worker).run()


class _Server:
    def __init__(self, worker: CoroutineWorker) -> None:
        self._worker = worker
        self._loop = asyncio.SelectorEventLoop()
        self._suspended = 0

    def run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.add_reader(self._worker.fileno(), self._wake)
        self._loop.call_soon(self._wake)
        try:
            self._loop.run_forever()
        finally:
            self._loop.remove_reader(self._worker.fileno())
            asyncio.set_event_loop(None)
            self._loop.close()

    def _wake(self) -> None:
        self._worker.awake()
        self._take()

    def _take(self) -> None:
        """Begin queued tasks; then sleep, or leave if the lane says so."""
        for _ in range(_BATCH):
            claimed = self._worker.next()
            if claimed is None:
                break
            self._begin(*claimed)
        else:
            self._worker.pause()
            self._loop.call_soon(self._take)
            return
        rest = self._worker.rest(may_exit=not self._suspended)
        if rest == "retry":
            self._loop.call_soon(self._take)
        elif rest == "exit":
            self._loop.stop()

    def _begin(
        self,
        handle: TaskHandle[Any],
        body: Callable[..., Coroutine[Any, Any, Any]] | Coroutine[Any, Any, Any],
        args: tuple[Any, ...] | None,
        kwargs: dict[str, Any] | None,
        context: Context,
    ) -> None:
        coroutine = self._drive(handle, body, args, kwargs)
        task = _start(self._loop, coroutine, context)
        if not task.done():
            self._suspended += 1
            task.add_done_callback(self._resumed)
            if self._worker.suspended(handle, task, self._loop):
                task.cancel()

    async def _drive(
        self,
        handle: TaskHandle[Any],
        body: Any,
        args: tuple[Any, ...] | None,
        kwargs: dict[str, Any] | None,
    ) -> None:
        """Await one body and settle its handle, whatever happens."""
        coroutine_task.set(handle)
        try:
            coroutine = body if args is None else body(*args, **(kwargs or {}))
            del body, args, kwargs
            value = await coroutine
        except asyncio.CancelledError as error:
            self._worker.fail(handle, error, cancelled=True)
        except BaseException as error:
            traceback = error.__traceback__
            # Without this frame: a user's traceback begins with the user's code.
            error.__traceback__ = traceback and (traceback.tb_next or traceback)
            del traceback
            self._worker.fail(handle, error, cancelled=False)
        else:
            self._worker.succeed(handle, value)

    def _resumed(self, _task: asyncio.Task[None]) -> None:
        self._suspended -= 1
        if not self._suspended:
            # The lane may have been closed, or found us surplus, while tasks were suspended.
            self._worker.notify_self()
