"""The end of an engine or a backend: work in the event loop that several may wait for."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

LOOK_AGAIN_S = 1.0
"""How often who waits looks whether what he waits for has ended. An interrupt may have taken along
what would wake him."""


class Ending:
    """Work that goes on when one of those who wait for it is cancelled.

    Of what was begun in an earlier run of the loop, an interrupt may have taken along what wakes
    it. Who asks in another run therefore begins the work anew, which must be such that this can be
    done. The earlier one then has to leave: it can ask :meth:`is_current`.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._run: object = None

    @property
    def is_under_way(self) -> bool:
        """Whether it has begun and is not forgotten."""
        return self._task is not None

    def is_current(self) -> bool:
        """Whether the task that asks does the work, and no other instead."""
        return self._task is asyncio.current_task()

    def forget(self) -> None:
        """Begin anew when it is asked for again."""
        self._task = None

    def begin(self, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Return the task that does the work; a new one unless one does, or has done it well."""
        run, task = sys.get_asyncgen_hooks().firstiter, self._task
        if task is not None and task.done():
            is_needed = task.cancelled() or task.exception() is not None
        else:
            is_needed = task is None or run is not self._run
        if is_needed:
            self._task, self._run = asyncio.get_running_loop().create_task(work()), run
            if task is not None and not task.done():
                task.cancel()
        assert self._task is not None
        return self._task

    async def wait(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Wait until the work is done; raises what it raises.

        But for ``KeyboardInterrupt`` and ``SystemExit``, which have ended a run of the loop when
        they were raised: then it is begun anew.
        """
        while True:
            task = self.begin(work)
            while not task.done():
                await asyncio.wait([task], timeout=LOOK_AGAIN_S)
            if task.cancelled():
                if self._task is task:
                    raise asyncio.CancelledError
            elif isinstance(error := task.exception(), (type(None), Exception)):
                if error is not None:
                    raise error
                return
