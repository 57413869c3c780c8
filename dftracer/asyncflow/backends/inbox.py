"""A mailbox that an event loop reads for somebody whom it does not hold.

A loop holds its readers, and what these refer to, for as long as it runs: in a notebook for ever.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from contextvars import Context
from typing import TYPE_CHECKING, Any

from dftracer.utils.primitives import Mailbox

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Inbox:
    """A mailbox, and its place among the readers of an event loop.

    Parameters
    ----------
    loop:
        What watches the descriptor of the mailbox until :meth:`close` or the end of this object.
    deliver:
        A bound method that is called when there is something to read, as long as its object lives.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[], object]) -> None:
        self.mailbox = Mailbox()
        self._loop = weakref.ref(loop)
        self._process = os.getpid()
        self._reader = _Reader(deliver)
        # Not in the context of the caller, which the loop would keep with the reader.
        Context().run(loop.add_reader, self.mailbox.fileno(), self._reader)

    def hold(self, owner: object | None) -> None:
        """Have the loop hold ``owner`` until it is told to hold nothing, or is closed.

        What waits for an end must live to hear of it, though nobody else may hold it.
        """
        self._reader.owner = owner

    def close(self) -> None:
        """Read no more. To be called in the thread of the loop."""
        self._reader.owner = None
        loop = self._loop()
        if loop is not None:
            loop.remove_reader(self.mailbox.fileno())
        self._process = 0

    def __del__(self) -> None:
        loop = self._loop()
        # The child of a fork shares the loop's descriptors with its parent, who still reads them.
        if loop is not None and self._process == os.getpid():
            # The collector may run in any thread, and in the middle of the loop's own work. The
            # descriptor stays open until it is no more among those that the loop watches.
            with contextlib.suppress(RuntimeError):  # closed
                loop.call_soon_threadsafe(_stop_reading, loop, self.mailbox)


class _Reader:
    """What the event loop calls."""

    __slots__ = ("_deliver", "owner")

    def __init__(self, deliver: Any) -> None:
        self._deliver = weakref.WeakMethod(deliver)
        self.owner: object | None = None

    def __call__(self) -> None:
        deliver = self._deliver()
        if deliver is not None:
            deliver()


def _stop_reading(loop: asyncio.AbstractEventLoop, mailbox: Mailbox) -> None:
    loop.remove_reader(mailbox.fileno())
