"""An executor that is replaced by another like it when worker processes of it have died."""

from __future__ import annotations

import asyncio
import concurrent.futures.process
import contextlib
import functools
import logging
import os
import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, wait
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from dftracer.asyncflow.backends.base import State
from dftracer.asyncflow.backends.local.pools import (
    BrokenPool,
    LostThreadError,
    PoolWatch,
    release_writer,
    remake_of,
)
from dftracer.asyncflow.errors import let_out, text_of_error
from dftracer.utils.lifetime.exit import exit_patience_s

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

    from dftracer.asyncflow.backends.local.changes import Changes
    from dftracer.asyncflow.backends.local.work import WorkItem

_log = logging.getLogger("dftracer.asyncflow")

CHECK_S = 1.0
"""How often a pool of processes is checked while it has work."""

BREAKS_IN_A_ROW = 3
"""After how many broken pools in which nothing has begun the items that wait fail."""


class RecoveringPool:
    """Runs work items on an executor; each of them gets exactly one outcome.

    If a worker process dies, its pool breaks. Items that had begun fail then; the others run on
    another pool like it. With an executor of which no other can be made, all items fail.

    Unless said otherwise, methods are called in the event loop's thread.
    """

    def __init__(
        self, executor: Executor, loop: asyncio.AbstractEventLoop, changes: Changes
    ) -> None:
        self.executor = executor
        """Another one after a worker process has died."""
        self.items: set[WorkItem] = set()
        """What it was given, until :meth:`remove`."""
        self._loop = loop
        self._changes = changes
        self._remake = remake_of(executor)
        self._watch = PoolWatch(executor)
        self._next_check: asyncio.TimerHandle | None = None
        self._broken_pool: BrokenPool | None = None
        self._waiting: deque[WorkItem] = deque()
        """What the broken executor held, and what came since. Filled by any thread."""
        self._recovering: asyncio.Task[None] | None = None
        self._breaks = 0
        """How many pools in a row have broken before an item began."""
        self._has_ended_some = False
        """Whether an item has ended since the last break. Set by any thread."""
        self._lock = threading.Lock()
        self._process = os.getpid()
        _alive.add(self)

    def submit(self, item: WorkItem) -> None:
        """Hand an item to the executor, or keep it for the next if that has broken.

        Raises
        ------
        WorkerDiedError
            If the executor has broken and cannot be replaced.
        RuntimeError
            If it takes nothing for another reason.
        """
        item.cancels_future = self._remake is None
        self.items.add(item)
        try:
            self._hand_over(item)
        except BaseException:
            self.items.discard(item)
            raise
        self._check_later()

    def remove(self, item: WorkItem) -> None:
        """Forget an item that has ended."""
        self.items.discard(item)

    async def shut_down(self, is_stuck: bool) -> None:
        """Shut the executor down, which waits for its workers. It must have no items.

        Where bodies do not return (``is_stuck``), processes are killed, and threads left behind.
        """
        if self._recovering is not None:
            await asyncio.wait([self._recovering])
        await asyncio.to_thread(self._watch.shut_down, is_stuck)
        if self._next_check is not None:
            self._next_check.cancel()
            self._next_check = None

    def _hand_over(self, item: WorkItem) -> None:
        if self._broken_pool is not None:
            self._waiting.append(item)
            self._recover()
            return
        try:
            if self._watch.would_lose_calls():
                raise LostThreadError
            self._watch.trim_idle()
            future = item.submit_to(self.executor)
        except BrokenExecutor as error:
            if self._remake is None:
                raise item.executor_error(error) from error
            self._note_break(item, error)
            return
        future.add_done_callback(functools.partial(self._note_end, item))

    def end_at_exit(self) -> None:
        """Let the interpreter exit, whose executors wait for their calls without an end.

        So does this, as long as calls end. When none has for a while, worker processes are killed.
        """
        if os.getpid() != self._process:
            return  # of the parent of a fork
        left = {item.future for item in list(self.items) if item.future is not None}
        try:
            while left:
                ended, left = wait(left, exit_patience_s(), FIRST_COMPLETED)
                if not ended:
                    break
        finally:  # a signal's handler may raise
            if left and self._watch.kill_workers():
                _log.warning(
                    "%d call(s) on a pool of processes were given up at interpreter exit, because "
                    "none had ended for a while (DFTRACER_EXIT_PATIENCE_S)",
                    len(left),
                )

    # --- ends -----------------------------------------------------------------------------------

    def _note_end(self, item: WorkItem, future: Future[Any]) -> None:
        """Take an item's outcome from the executor. Called in any thread."""
        if item.future is not future:
            return  # it was taken for lost before, and the executor has ended it after all
        self._watch.trim_idle()
        error = None if future.cancelled() else future.exception()
        if isinstance(error, BrokenExecutor) and self._remake is not None:
            self._note_break(item, error)
            release_writer(self.executor)
        else:
            item.finish(future)
            self._has_ended_some = True
            self._changes.add_end(item)

    def _note_break(self, item: WorkItem, error: BrokenExecutor) -> None:
        """See what has died, before the executor stops the others. Called in any thread."""
        with self._lock:
            is_first = self._broken_pool is None
            if is_first:
                stop = isinstance(error, LostThreadError)
                self._broken_pool = BrokenPool(self.executor, error, stop)
        item.executor = item.future = None  # from which nothing is expected any more
        self._waiting.append(item)
        if is_first:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._recover)

    # --- pools that need help -------------------------------------------------------------------

    def _check_later(self) -> None:
        if self._next_check is None and self._watch.is_possible:
            self._next_check = self._loop.call_later(CHECK_S, self._check)

    def _check(self) -> None:
        """See that the items that the executor has will end. While there are some, again."""
        self._next_check = None
        if not self.items:
            return
        self._check_later()
        if self._recovering is not None:
            return
        if not self._watch.has_lost_its_thread():
            self._watch.unstick()
            return
        error = LostThreadError()
        for item in self._items_of(self.executor):
            if self._remake is not None:
                self._note_break(item, error)
            else:
                item.fail_with_executor(error)
                self._changes.add_end(item)

    def _items_of(self, executor: Executor) -> list[WorkItem]:
        """Return the items whose ends the executor still owes."""
        return [
            item
            for item in self.items
            if item.executor is executor and item.future is not None and not item.future.done()
        ]

    # --- recovery -------------------------------------------------------------------------------

    def _recover(self) -> None:
        if self._recovering is None and self._broken_pool is not None:
            self._recovering = self._loop.create_task(self._replace())

    async def _replace(self) -> None:
        """Put another executor in the place of one that has broken, and go on with that."""
        broken, remake = self._broken_pool, self._remake
        assert broken is not None
        assert remake is not None
        failure: BaseException | None = None
        try:
            # Then its workers have ended, and all that it held is known to be lost.
            await asyncio.to_thread(broken.close)
            self.executor = remake()
            self._remake = remake_of(self.executor)
            self._watch = PoolWatch(self.executor)
        except BaseException as error:
            let_out(error)
            failure = error
        # Those too that the pool took in while it broke, and forgot.
        self._waiting.extend(self._items_of(broken.executor))
        self._broken_pool = self._recovering = None
        held = [self._waiting.popleft() for _ in range(len(self._waiting))]
        unbegun = [item for item in held if not self._end_if_begun(item, broken)]
        self._breaks = 0 if self._has_ended_some else self._breaks + 1
        self._has_ended_some = False
        if failure is not None:
            why = f"another pool cannot be made: {text_of_error(failure)}"
            self._fail_all(unbegun, broken, why)
        elif self._breaks == BREAKS_IN_A_ROW:
            self._breaks = 0
            why = f"that {BREAKS_IN_A_ROW} times in a row before a task could begin: look at the "
            why += "pool's initializer, and at what its workers import"
            self._fail_all(unbegun, broken, why)
        else:
            for item in unbegun:
                try:
                    self._hand_over(item)
                except BaseException as error:
                    self._fail(item, error)
        self._check_later()

    def _end_if_begun(self, item: WorkItem, broken: BrokenPool) -> bool:
        try:
            if not item.finish_in(broken):
                return False
            self._has_ended_some = True
            self._changes.add_end(item)
        except BaseException as error:
            self._fail(item, error)
        return True

    def _fail(self, item: WorkItem, error: BaseException) -> None:
        item.outcome = State.FAILED, error
        self._has_ended_some = True
        self._changes.add_end(item)

    def _fail_all(self, items: list[WorkItem], broken: BrokenPool, why: str) -> None:
        reason = f"a worker process died ({broken.death})" if broken.deaths else broken.death
        for item in items:
            item.fail(f"cannot begin: {reason}, and {why}", broken.cause)
            self._changes.add_end(item)


_alive: WeakSet[RecoveringPool] = WeakSet()


def _end_all_at_exit() -> None:
    for pool in list(_alive):
        pool.end_at_exit()


# What is registered later is called earlier: this must come before that of the executors, which has
# been registered by importing them.
assert concurrent.futures.process is not None
threading._register_atexit(_end_all_at_exit)  # type: ignore[attr-defined]
