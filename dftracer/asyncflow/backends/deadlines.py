"""Timeouts of submissions whose workers keep none: one timer of the event loop for each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import Context

from dftracer.asyncflow.backends.base import Submission

Begun = Callable[[], "float | None"]
"""Tells since when a submission runs, by ``time.monotonic()``; ``None`` if it does not."""

OnOver = Callable[[Submission, float], object]
"""Is called with a submission that has run for too long, and how many seconds it had."""


class Deadlines:
    """The timeouts of submissions, counted from when each begins to run."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timers: dict[Submission, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._timers)

    def start(self, submission: Submission, seconds: float, begun: Begun, on_over: OnOver) -> None:
        """Call ``on_over`` when a submission has run for so long, unless it is stopped before."""
        self._check_after(seconds, submission, seconds, begun, on_over)

    def stop(self, submission: Submission) -> None:
        """Forget the timeout of a submission, if it has one."""
        timer = self._timers.pop(submission, None)
        if timer is not None:
            timer.cancel()

    def _check_after(
        self, wait: float, submission: Submission, seconds: float, begun: Begun, on_over: OnOver
    ) -> None:
        # The loop may keep the context of a cancelled timer until that is due.
        self._timers[submission] = self._loop.call_later(
            wait, self._check, submission, seconds, begun, on_over, context=Context()
        )

    def _check(self, submission: Submission, seconds: float, begun: Begun, on_over: OnOver) -> None:
        # What has not begun is looked at again when it may at the earliest have run for so long.
        since = begun()
        left = seconds if since is None else since + seconds - time.monotonic()
        if left > 0:
            self._check_after(left, submission, seconds, begun, on_over)
        else:
            del self._timers[submission]
            on_over(submission, seconds)
