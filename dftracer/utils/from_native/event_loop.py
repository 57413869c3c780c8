"""An event loop whose bodies may wait for events and queues of other loops."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextvars import Context


class EventLoop(asyncio.SelectorEventLoop):
    """An event loop that wakes for whatever makes something ready in it.

    An event or a queue of another loop is set or filled in that loop's thread, and so goes on with
    the bodies here that wait for it, which asyncio does not expect.
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
        # What that does for a loop that runs, without two calls: each step of a body comes here.
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def _call_from_elsewhere(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> asyncio.Handle:
        elsewhere = asyncio._get_running_loop()
        if elsewhere is None:
            return self.call_soon_threadsafe(callback, *args, context=context)

        def call() -> None:
            with contextlib.suppress(RuntimeError):  # it is closed, and nobody waits any more
                self.call_soon_threadsafe(callback, *args, context=context)

        # In that loop's next turn: whoever sets an event goes through the list of those who wait,
        # from which nobody may take himself meanwhile.
        return elsewhere.call_soon(call)


def run_alone(body: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine as :func:`asyncio.run` does, in such a loop if it would be one of asyncio's.

    On CPython 3.10 it is asyncio's own.
    """
    if sys.version_info < (3, 11):
        return asyncio.run(body)
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(body)


def _new_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    if type(loop) is not asyncio.SelectorEventLoop:
        return loop  # of somebody's policy
    loop.close()
    return EventLoop()
