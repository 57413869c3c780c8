"""The event loop as the futures of an engine see it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any

_Call = tuple[Context, Callable[[Any], object], Any]


class CallbackLoop:
    """Stands in for an event loop where futures hand over their callbacks when they end.

    asyncio makes a handle of each, and takes longer for that than most callbacks do. Those of
    futures that end between :meth:`hold` and :meth:`release` get one handle together, and are
    called by it in their order, each in its own context.
    """

    __slots__ = ("_held", "_loop", "call_exception_handler", "get_debug")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._held: list[_Call] | None = None
        # What else a future asks of its loop.
        self.call_exception_handler = loop.call_exception_handler
        self.get_debug = loop.get_debug

    def call_soon(
        self, callback: Callable[[Any], object], future: Any, *, context: Context
    ) -> None:
        """Have a future's callback called in a later turn of the loop."""
        if self._held is None:
            self._loop.call_soon(callback, future, context=context)
        else:
            self._held.append((context, callback, future))

    def hold(self) -> None:
        """Gather callbacks; but not in debug mode, where asyncio tells of each that is slow."""
        if not self.get_debug():
            self._held = []

    def release(self) -> None:
        """Have those that were gathered called."""
        held, self._held = self._held, None
        if held:
            self._loop.call_soon(self._call, iter(held))

    def _call(self, calls: Iterator[_Call]) -> None:
        for context, callback, future in calls:
            try:
                context.run(callback, future)
            except (SystemExit, KeyboardInterrupt):
                # It ends the loop's run. If that is run again, the others come then.
                self._loop.call_soon(self._call, calls)
                raise
            except BaseException as error:
                message = f"Exception in callback {callback!r}"
                self.call_exception_handler(
                    {"message": message, "exception": error, "future": future}
                )
