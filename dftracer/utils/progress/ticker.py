"""A thread that calls a function again and again, and uses 1% of one core for that."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

_log = logging.getLogger("dftracer.utils")

SHARE = 0.01
"""Which part of the time looking and drawing may take."""

FIRST_LOOK_S = 0.5
"""How long something must last to be shown while it does."""


class Ticker:
    """Calls a function again and again in a thread, which it keeps busy for 1% of the time.

    Parameters
    ----------
    act:
        What to call. When it fails, that is logged and the ticker stops.
    interval:
        Seconds between the calls, at least.
    name:
        That of the thread.
    """

    def __init__(self, act: Callable[[], object], interval: float, name: str) -> None:
        self._act = act
        self._interval = interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for a call that is being made."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        pause = FIRST_LOOK_S
        while not self._stopped.wait(pause):
            start = time.thread_time()
            try:
                self._act()
            except Exception:
                _log.debug("%s has failed", self._thread.name, exc_info=True)
                return
            pause = max(self._interval, (time.thread_time() - start) / SHARE)
