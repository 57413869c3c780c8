"""The event loop as the futures of an engine see it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any

_Call = tuple[Context, Callable[[Any], object], Any]


class CallbackLoop:
    """Stands in for an event loop where futures hand over their callbacks when they end.

    asyncio makes a handle of each, and takes longer for that than most callbacks do. Those of
    futures that end between :meth:`hold` and :meth:`release` get one handle together, and are
    called by it in their order, each in its own context. Only asyncio's futures in C come here;
    those in Python, where they are used, take the loop itself.
    """

    __slots__ = ("_held", "_loop", "_take_failure", "get_debug")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        take_failure: Callable[[dict[str, Any]], bool] = lambda _: False,
    ) -> None:
        self._loop = loop
        self._take_failure = take_failure
        self._held: list[_Call] | None = None
        self.get_debug = loop.get_debug
        """What a future asks when it is made."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Tell of an error that nobody has asked a future for, unless the engine will."""
        if not self._take_failure(context):
            self._loop.call_exception_handler(context)

    def call_soon(
        self, callback: Callable[[Any], object], future: Any, *, context: Context
    ) -> None:
        """Have a future's callback called in a later turn of the loop."""
        if self._held is None:
            self._loop.call_soon(callback, future, context=context)
        else:
            self._held.append((context, callback, future))

    def hold(self) -> None:
        """Gather callbacks; but not in debug mode, where asyncio logs each that is slow."""
        if not self.get_debug():
            self._held = []

    def release(self) -> None:
        """Have those that were gathered called."""
        held, self._held = self._held, None
        if not held:
            return
        if len(held) == 1:
            [(context, callback, future)] = held
            self._loop.call_soon(callback, future, context=context)
        else:
            self._loop.call_soon(self._call, deque(held))

    def _call(self, calls: deque[_Call]) -> None:
        # If a callback ends the run of the loop, or runs it anew within itself, as nest_asyncio
        # allows, the loop finds the others here.
        rest = self._loop.call_soon(self._call, calls)
        while calls:
            context, callback, future = calls.popleft()
            try:
                context.run(callback, future)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                message = f"Exception in callback {callback!r}"
                self._loop.call_exception_handler(
                    {"message": message, "exception": error, "future": future}
                )
        rest.cancel()
