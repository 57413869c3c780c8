"""How a backend serves an event loop: from its start to its shutdown, and what is unfinished."""

from __future__ import annotations

import asyncio
import functools
import math
import operator
import time
import weakref
from abc import abstractmethod
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Protocol

from dftracer.asyncflow.backends.base import ExecutionBackend, Report, State, Submission
from dftracer.asyncflow.backends.ending import LOOK_AGAIN_S, Ending
from dftracer.asyncflow.backends.inbox import Inbox
from dftracer.utils import Runtime

if TYPE_CHECKING:
    from typing_extensions import Self

    from dftracer.utils.primitives import Mailbox


class Running(Protocol):
    """What is known of a submission that is queued or runs."""

    @property
    def state(self) -> str: ...
    @property
    def cancel_requested(self) -> bool: ...
    def cancel(self) -> object: ...


class LoopBackend(ExecutionBackend):
    """Serves one event loop at a time, with a runtime and its mailbox.

    Attributes
    ----------
    runtime, mailbox, loop :
        What it runs on, where that posts what becomes of submissions, and the event loop that is
        served; ``None`` while the backend is not started.
    reader :
        What the loop calls when the mailbox holds something.
    is_open :
        Whether it takes submissions.
    unfinished :
        The submissions that will be reported.
    late :
        What runs on though its end is not reported: submissions of earlier engines, and those
        that were reported before they had ended.
    """

    def __init__(self, name: str = "default") -> None:
        super().__init__(name)
        self.runtime: Runtime | None = None
        self.mailbox: Mailbox | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.reader = Reader(self)
        self.is_open = False
        self.unfinished: dict[Submission, Running] = {}
        self.late: dict[Submission, Running] = {}
        self._emptied: asyncio.Future[None] | None = None
        self._inbox: Inbox | None = None
        self._ending = Ending()

    # --- its life -------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, Any, Self]:
        return self._start().__await__()

    async def __aenter__(self) -> Self:
        return await self._start()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.shutdown()

    async def _start(self) -> Self:
        loop = asyncio.get_running_loop()
        if self.loop is not None and self.loop is not loop:
            raise RuntimeError(
                f"backend '{self.name}' serves another event loop: shut it down there, or make "
                "one backend for each loop"
            )
        if self._ending.is_under_way:
            await self.shutdown()
        if self.mailbox is None:
            self.runtime = self.acquire()
            self._inbox = Inbox(loop, self.reader)
            self.mailbox = self._inbox.mailbox
            self.loop = loop
            self.is_open = True
        return self

    @abstractmethod
    def acquire(self) -> Runtime:
        """Get ready to run functions; return the runtime that runs programs."""

    @abstractmethod
    async def release(self) -> None:
        """Give back what :meth:`acquire` has made."""

    async def shutdown(self) -> None:
        """Cancel what can be cancelled and wait for the rest, then release everything.

        Every submission has been reported when this returns. It goes on when a caller is cancelled.
        """
        if self.loop is None:
            return
        if not self._ending.is_under_way:
            self._cancel_all()
        await self._ending.wait(self._close)

    def _cancel_all(self) -> None:
        """Take no more, and cancel what can be cancelled, unless that was done."""
        self.is_open = False
        for submission, running in list(self.unfinished.items()):
            if not running.cancel_requested:
                self.cancel(submission)
        for running in list(self.late.values()):
            if not running.cancel_requested:
                running.cancel()

    async def _close(self) -> None:
        try:
            self._cancel_all()  # if an interrupt has kept it from being done
            await self._wait_until_empty()
            if not self._ending.is_current():
                return
            await self.release()
            if not self._ending.is_current():
                return
            if self._inbox is not None:
                self._inbox.close()
            self.runtime = self.mailbox = self._inbox = self.loop = None
        finally:
            if self._ending.is_current():
                self._emptied = None
                self._ending.forget()

    async def _wait_until_empty(self) -> None:
        patience = self.patience_s()
        deadline = math.inf if patience is None else time.monotonic() + patience
        while self.unfinished or self.late:
            self.look_again()
            seconds = min(LOOK_AGAIN_S, deadline - time.monotonic())
            if seconds <= 0 or not (self.unfinished or self.late):
                return
            self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._emptied], timeout=seconds)
            if not self._ending.is_current():
                return

    def look_again(self) -> None:
        """Report what has ended, also where an interrupt has kept its report away."""
        self.poll()

    def patience_s(self) -> float | None:
        """Return the seconds that a shutdown waits for what was cancelled; ``None``: for ever."""
        return None

    def state(self) -> str:
        return "IDLE" if self.loop is None else "INITIALIZED"

    def held(self) -> list[Submission]:
        return list(self.unfinished)

    def connect(self, report: Report) -> None:
        self.late.update(self.unfinished)
        self.unfinished.clear()
        super().connect(report)

    def stay_while_busy(self) -> None:
        """Let the loop keep this alive until all has ended; then a shutdown goes on that waits."""
        is_busy = bool(self.unfinished or self.late)
        self.reader.kept = self if is_busy else None
        if not is_busy and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def fail(self, submission: Submission, error: BaseException) -> None:
        """Report soon that a submission cannot begin."""
        assert self.loop is not None
        if submission.trace_note is not None:
            submission.describe(is_traced=False)  # the runtime was not given it
        self.loop.call_soon(self._report, [(submission, State.FAILED, error)])


class Reader(functools.partial[None]):
    """What an event loop calls when the mailbox of a backend holds something: its ``poll()``.

    It keeps the backend alive only while something that was begun has not ended, and only then can
    there be something in the mailbox. A backend that nobody else holds then goes, though its loop
    runs on, as in a notebook.
    """

    kept: LoopBackend | None = None

    def __new__(cls, backend: LoopBackend) -> Reader:
        return super().__new__(cls, operator.methodcaller("poll"), weakref.proxy(backend))
