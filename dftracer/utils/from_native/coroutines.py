"""The event loops that run coroutine functions, one on each worker of the coroutine lane.

A body runs in a real :class:`asyncio.Task` on a loop that runs, so ``current_task``, ``timeout``,
``TaskGroup`` and ``get_running_loop`` work as everywhere. Its first step is made at once, inside
the callback that took it from the queue: a body that never suspends costs no turn of the loop, and
one that blocks keeps only its own worker busy, since another one takes the next task.

Bodies that never suspend follow each other in one asyncio task, their *driver*; one that suspends
keeps its driver to its end, and those behind it get another. So an asyncio task is made for each
body that needs one, and it is the same from the body's first step to its last.

For its lane, a worker sleeps exactly while its loop waits in the selector. A loop that goes on with
a suspended body is awake, and is sent no task that the body could hold up.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import selectors
import threading
import types
from typing import TYPE_CHECKING, Any

from dftracer.utils.current import coroutine_task
from dftracer.utils.errors import WaitRefusedError
from dftracer.utils.from_native.event_loop import EventLoop, start_now

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator
    from contextvars import Context

    from dftracer.utils._native import CoroutineWorker, TaskHandle

_BATCH: int = 64
"""How many tasks are begun before the loop goes on with those that are suspended."""

_here = threading.local()


def serve(worker: CoroutineWorker) -> None:
    """Run tasks of ``worker``'s lane until the lane has no more use for it."""
    server = _here.server = _Server(worker)
    server.run()


def check_may_block() -> None:
    """Refuse to block this thread's event loop while other tasks are suspended in it.

    They could not go on meanwhile, and one of them may be what the wait is for.
    """
    server: _Server = _here.server
    current = asyncio.current_task(server.loop)
    others = [task for task in server.suspended if task is not current and not task.done()]
    if others:
        raise WaitRefusedError(
            f"waiting here would block the event loop in which {len(others)} other task(s) are "
            "suspended, perhaps for ever: in a coroutine, use 'await handle'"
        )


class _Server:
    def __init__(self, worker: CoroutineWorker) -> None:
        self.loop = EventLoop(_Selector(self, worker))
        self.suspended: set[asyncio.Task[Any]] = set()
        # Bodies make their first step inside a callback: that may take as long as it likes.
        self.loop.slow_callback_duration = math.inf
        self._worker = worker
        self._leaving = False
        self._left = 0
        """How many tasks may still be begun in this turn of the loop; -1 if there are none."""
        self.is_copy = False
        """Whether a body has forked, and this is the child."""
        self._last: TaskHandle[Any] | None = None
        """The task that the newest driver is at, if it has suspended."""

    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.add_reader(self._worker.fileno(), self._wake)
        self.loop.call_soon(self._wake)
        try:
            while not self._leaving:
                self._run_loop()
            self._cancel_strays()
        finally:
            self.loop.remove_reader(self._worker.fileno())
            asyncio.set_event_loop(None)
            self.loop.close()

    def _run_loop(self) -> None:
        # asyncio raises these here when a task that a body has made raises them. The body gets
        # them when it awaits its task; the others go on.
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            self.loop.run_forever()

    def _cancel_strays(self) -> None:
        """Cancel the tasks that bodies have made in this loop and not awaited."""
        strays = asyncio.all_tasks(self.loop)
        for task in strays:
            task.cancel()
        if strays:
            self.loop.run_until_complete(asyncio.gather(*strays, return_exceptions=True))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())

    def stop_copy(self) -> None:
        """End this process, in which nothing else may run, when this step of a body is over."""
        self.is_copy = True
        # On CPython 3.14 a child has no running loop, of which the end of this step complains.
        self.loop.set_exception_handler(_ignore)
        self.loop.replace_ready(self.leave)

    def leave(self) -> None:
        """End the child of a fork."""
        self._worker.leave()

    def before_sleep(self) -> bool:
        """Called when the loop has nothing to do; false if it must not sleep now."""
        if self._leaving:
            return True
        rest = self._worker.rest(may_exit=not self.suspended)
        if rest == "retry":
            self.loop.call_soon(self._take)
        elif rest == "exit":
            self._leaving = True
            self.loop.stop()
        return rest == "sleep"

    def _wake(self) -> None:
        self._worker.awake()
        self._take()

    def _take(self) -> None:
        """Begin tasks that are queued."""
        self._left = _BATCH
        while self._left > 0:
            driver = start_now(self.loop, self._drive())
            handle, self._last = self._last, None
            if handle is not None:
                self.suspended.add(driver)
                driver.add_done_callback(self.suspended.discard)
                if self._worker.suspended(handle, driver, self.loop):
                    driver.cancel()
            # The traceback of a body that fails leads to this frame, and keeps what it holds.
            del driver, handle
        if self._left == 0:
            self._worker.pause()
            self.loop.call_soon(self._take)

    async def _drive(self) -> None:
        """Begin bodies until one suspends, and run that one to its end."""
        worker = self._worker
        self._left, suspended = worker.begin(asyncio.current_task(self.loop), self._left)
        if suspended is not None:
            self._last = suspended[0]
            body = _go_on(worker, *suspended)
            del suspended  # see `_go_on`
            await body


def _ignore(_loop: asyncio.AbstractEventLoop, _context: dict[str, Any]) -> None:
    """Handle what asyncio complains of, by doing nothing."""


@types.coroutine
def _go_on(
    worker: CoroutineWorker,
    handle: TaskHandle[Any],
    coroutine: Coroutine[Any, Any, Any],
    context: Context,
    awaited: Any,
) -> Generator[Any, Any, None]:
    """Run a body that has suspended to its end, each step in its context."""
    value: Any = None
    step: Callable[[Any], Any] = coroutine.send
    try:
        while True:
            try:
                value = yield awaited
                step = coroutine.send
            except BaseException as error:
                value, step = error, coroutine.throw
                if error.__traceback__ is not None:
                    error.__traceback__ = error.__traceback__.tb_next  # without this frame
            awaited = context.run(step, value)
    except StopIteration as stop:
        worker.succeed(handle, stop.value)
    except asyncio.CancelledError as error:
        worker.fail(handle, error, cancelled=True)
    except BaseException as error:
        worker.fail(handle, error, cancelled=False)
    finally:
        context.run(coroutine_task.set, None)
        # The traceback of a body that has failed leads to this frame, and keeps what it holds.
        del handle, coroutine, context, awaited, step, value


def _stop_copy() -> None:
    """Let nothing else run in the child of a fork that a body has made: its loop is a copy."""
    server: _Server | None = getattr(_here, "server", None)
    if server is not None:
        server.stop_copy()


os.register_at_fork(after_in_child=_stop_copy)


async def as_coroutine(awaitable: Awaitable[Any]) -> Any:
    """Make a coroutine of an awaitable that is none."""
    return await awaitable


class _Selector(selectors.DefaultSelector):
    """Reports to the lane when the loop sleeps, and lets its tasks go first when it wakes."""

    def __init__(self, server: _Server, worker: CoroutineWorker) -> None:
        super().__init__()
        self._server = server
        self._worker = worker
        self._descriptor = worker.fileno()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._server.is_copy:
            self._server.leave()
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        if not self._server.before_sleep():
            return super().select(0)
        events = super().select(timeout)
        for index, (key, _) in enumerate(events):
            if key.fd == self._descriptor:
                # A body that is resumed may block; a task that was sent here must not wait for it.
                events.insert(0, events.pop(index))
                return events
        self._worker.rise()
        return events
