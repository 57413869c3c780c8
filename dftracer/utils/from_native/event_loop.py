"""Event loops whose bodies may wait for events and queues of other loops."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextvars import Context


class EventLoop(asyncio.SelectorEventLoop):
    """An event loop that wakes when another thread makes a callback ready in it.

    An event or a queue of another loop is set or filled in that loop's thread, which resumes the
    bodies here that wait for it. asyncio does not expect that.
    """

    _thread_id: int | None
    _debug: bool
    _ready: Any

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        if threading.get_ident() != self._thread_id:
            return self._call_from_elsewhere(callback, args, context)
        if self._debug:
            return super().call_soon(callback, *args, context=context)
        # The same for a loop that runs, without two calls: each step of a body passes here.
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def replace_ready(self, call: Callable[[], object]) -> None:
        """Run ``call`` in the place of each callback that is ready."""
        for index in range(len(self._ready)):
            self._ready[index] = asyncio.Handle(call, (), self)

    def _call_from_elsewhere(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> asyncio.Handle:
        elsewhere = asyncio._get_running_loop()
        if elsewhere is None:
            return self.call_soon_threadsafe(callback, *args, context=context)

        def call() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits in it
                self.call_soon_threadsafe(callback, *args, context=context)

        # In that loop's next turn: `Event.set` goes through the list of waiters, which must not
        # change meanwhile.
        return elsewhere.call_soon(call)


if sys.version_info >= (3, 12):

    def start_now(
        loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None]
    ) -> asyncio.Task[None]:
        """Make a task of a coroutine, and its first step at once, inside a callback of ``loop``."""
        return asyncio.Task(coroutine, loop=loop, eager_start=True)

else:

    def start_now(
        loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None]
    ) -> asyncio.Task[None]:
        """Make a task of a coroutine, and its first step at once, inside a callback of ``loop``."""
        task = asyncio.Task(coroutine, loop=loop)
        # The new task has just put its first step last in the loop's queue: take it from there.
        queue: deque[Any] = vars(loop)["_ready"]
        step = queue.pop()
        if step._callback.__self__ is not task:
            # Another thread has added a callback meanwhile, with `call_soon_threadsafe`.
            queue.append(step)
            step = next(s for s in list(queue) if getattr(s._callback, "__self__", None) is task)
            queue.remove(step)
        step._run()
        return task


def run_alone(body: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a new event loop, close that, and return the result.

    The loop is an :class:`EventLoop`, unless the program has set a policy that makes others, or on
    CPython 3.10.
    """
    if sys.version_info < (3, 11):
        return asyncio.run(body)
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(body)


def _new_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    if type(loop) is not asyncio.SelectorEventLoop:
        return loop  # of the program's policy
    loop.close()
    return EventLoop()
