"""A signal that is sent again until what it asks for is done."""

from __future__ import annotations

import _thread
import signal
from collections.abc import Sequence


class Reminder:
    """Sends a signal to this thread again if what it asked for was not done in time.

    All but the waiting happens in the thread that gets the signals.

    Parameters
    ----------
    waits:
        How many seconds pass until each.
    """

    def __init__(self, *waits: float) -> None:
        self.is_open = False
        """Whether it has begun and is not done."""
        self._waits: Sequence[float] = waits
        self._closed = _thread.allocate_lock()
        """Released when it is done; each beginning has one of its own."""
        self._sent: tuple[_thread.LockType, bool] | None = None
        """Of the signal that is on its way: of which beginning, and whether it is the last."""

    def begin(self, signum: int) -> None:
        """Send ``signum`` after each of the waits, unless it is done by then."""
        if self.is_open:
            return
        self._closed = closed = _thread.allocate_lock()
        closed.acquire()
        self.is_open = True
        # No `threading.Thread`: what is interrupted here may hold the locks that one needs.
        try:
            _thread.start_new_thread(self._remind, (closed, signum, _thread.get_ident()))
        except RuntimeError:  # none is to be had
            self.done()

    def done(self) -> None:
        """Remind of it no more."""
        if self.is_open:
            self.is_open = False
            self._closed.release()

    def is_reminder(self) -> bool:
        """Tell whether a signal that has come is a reminder; :meth:`take` must follow then."""
        return self._sent is not None

    def take(self) -> tuple[bool, bool]:
        """Tell whether what a signal reminds of is still to be done, and whether no other comes."""
        sent, self._sent = self._sent, None
        if sent is None or not self.is_open or sent[0] is not self._closed:
            return False, False
        return True, sent[1]

    def _remind(self, closed: _thread.LockType, signum: int, thread: int) -> None:
        left = len(self._waits)
        for seconds in self._waits:
            left -= 1
            if closed.acquire(timeout=seconds):
                return
            self._sent = closed, left == 0
            signal.pthread_kill(thread, signum)
