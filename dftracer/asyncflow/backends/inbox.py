"""A mailbox that an event loop reads for somebody whom it does not hold.

A loop holds its readers, and what these refer to, for as long as it runs: in a notebook for ever.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any

from dftracer.asyncflow.backends.base import State
from dftracer.utils.primitives import Mailbox

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_mailbox_of_reader: ContextVar[Mailbox] = ContextVar("_mailbox_of_reader")

STATES = (State.RUNNING, State.DONE, State.FAILED, State.CANCELED)
"""What states are called in what is read from the mailbox."""


class Inbox:
    """A mailbox, and its place among the readers of an event loop.

    Parameters
    ----------
    loop:
        What watches the descriptor of the mailbox until :meth:`close` or the end of this object.
    reader:
        What the loop calls when there is something to read. The loop holds it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reader: Callable[[], object],
        states: Any = STATES,
    ) -> None:
        self.mailbox = Mailbox(states)
        self._loop = weakref.ref(loop)
        self._process = os.getpid()
        # Not in the context of the caller, which the loop would keep with the reader. The mailbox
        # is held as well, so that its descriptor is open as long as the loop watches it, also if a
        # signal's handler raises in `__del__`.
        context = Context()
        context.run(_mailbox_of_reader.set, self.mailbox)
        context.run(loop.add_reader, self.mailbox.fileno(), reader)

    def close(self) -> None:
        """Read no more. To be called in the thread of the loop."""
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


def _stop_reading(loop: asyncio.AbstractEventLoop, mailbox: Mailbox) -> None:
    loop.remove_reader(mailbox.fileno())
