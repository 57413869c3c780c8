"""What backends in this process share: an event loop, unfinished tasks, programs, timeouts.

It is longer than most modules: all of it reads and writes the same books of unfinished tasks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any, Protocol

from dftracer.asyncflow.backends.base import (
    Callback,
    ExecutionBackend,
    Report,
    Task,
    TaskStates,
)
from dftracer.asyncflow.backends.inbox import Inbox
from dftracer.asyncflow.backends.programs import (
    PROGRAM_OPTIONS,
    name_of,
    options_of,
    record_failure,
    record_program,
    start_program,
    timeout_of,
)
from dftracer.asyncflow.data.staging import StagesFiles
from dftracer.asyncflow.errors import let_out
from dftracer.utils import ProcessResult, Runtime, TaskTimeoutError

if TYPE_CHECKING:
    from typing_extensions import Self

    from dftracer.utils.primitives import Mailbox

FUNCTION_OPTIONS = frozenset({"timeout"})
"""What a function's ``task_backend_specific_kwargs`` may say."""

DELIVERIES_PER_TURN = 1_000
"""How many outcomes are handled before the event loop gets to do something else."""

LOOKS_PER_TURN = 16
"""How often in a row the next outcome may be waited for without a turn of the event loop, which
takes longer than a short function."""

Begun = Callable[[], "float | None"]
"""Tells since when a task runs, by ``time.monotonic()``; ``None`` if it does not."""

_log = logging.getLogger("dftracer.asyncflow")


class Running(Protocol):
    """What is known of a task that was begun."""

    @property
    def state(self) -> str: ...
    @property
    def cancel_requested(self) -> bool: ...
    def cancel(self) -> object: ...


class HostExecutionBackend(StagesFiles, ExecutionBackend):
    """Runs programs through a runtime. How functions run is the subclass's business.

    Outcomes of programs come through one file descriptor that the event loop watches: however many
    end at a time, the loop is woken once.
    """

    keeps_timeouts = True

    def __init__(self, name: str = "default") -> None:
        super().__init__(name)
        self._runtime: Runtime | None = None
        self._mailbox: Mailbox | None = None
        self._inbox: Inbox | None = None
        """The mailbox as the event loop knows it. The loop holds the backend while something that
        was begun has not ended, and no longer: one that nobody else holds then goes."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_open = False
        self._closing: asyncio.Task[None] | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._unfinished: dict[str, tuple[Task, Running]] = {}
        """The unfinished tasks of the engine that is served, by their identifiers."""
        self._calls: dict[Any, Running] = {}
        """The unfinished plain calls, by their tokens."""
        self._report_calls: Report | None = None
        self._late: dict[int, tuple[Task, Running]] = {}
        """What runs on though nobody will be told, by the identity of the task: tasks of earlier
        engines, and those that were given up."""
        self._deadlines: dict[int, asyncio.TimerHandle] = {}
        """Those of functions, by the identity of the task."""
        self._ignored: set[tuple[str, str]] = set()

    # --- its life -------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, Any, Self]:
        return self._start().__await__()

    async def __aenter__(self) -> Self:
        return await self._start()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.shutdown()

    async def _start(self) -> Self:
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise RuntimeError(
                f"backend '{self.name}' serves another event loop: shut it down there, or make "
                "one backend for each loop"
            )
        if self._closing is not None:
            await asyncio.shield(self._closing)
        if self._mailbox is None:
            self._runtime = self._acquire()
            self._inbox = Inbox(loop, self._deliver)
            self._mailbox = self._inbox.mailbox
            self._loop = loop
            self._is_open = True
        return self

    @abstractmethod
    def _acquire(self) -> Runtime:
        """Get ready to run functions; return the runtime that runs programs."""

    @abstractmethod
    async def _release(self) -> None:
        """Give back what :meth:`_acquire` has made."""

    async def shutdown(self) -> None:
        """Cancel what can be cancelled and wait for the rest, then release everything.

        Every task has been reported when this returns. It goes on when a caller is cancelled.
        """
        if self._loop is None:
            return
        if self._closing is None:
            if self._is_open:
                self._is_open = False
                self._cancel_everything()
            self._closing = self._loop.create_task(self._close(self._loop))
        await asyncio.shield(self._closing)

    def _cancel_everything(self) -> None:
        for uid, (_, running) in list(self._unfinished.items()):
            if not running.cancel_requested:
                self.cancel_nowait(uid)
        for running in [*self._calls.values(), *(running for _, running in self._late.values())]:
            if not running.cancel_requested:
                running.cancel()

    async def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            if self._unfinished or self._calls or self._late:
                self._emptied = loop.create_future()
                await asyncio.wait([self._emptied], timeout=self._patience_s())
            await self._release()
            if self._inbox is not None:
                self._inbox.close()
            self._runtime = self._mailbox = self._inbox = self._loop = None
        finally:
            self._closing = self._emptied = None

    def _patience_s(self) -> float | None:
        """How many seconds a shutdown waits for what was cancelled; ``None`` for ever."""
        return None

    def state(self) -> str:
        return "IDLE" if self._loop is None else "INITIALIZED"

    # --- tasks ----------------------------------------------------------------------------------

    async def submit_tasks(self, tasks: list[Task]) -> None:
        await self
        self.submit_nowait(tasks)

    def submit_nowait(self, tasks: list[Task]) -> None:
        """Begin to run ``tasks``, like :meth:`submit_tasks` on a backend that has started."""
        if not self._is_open or self._runtime is None or self._mailbox is None:
            raise RuntimeError(f"backend '{self.name}' is not started: await it first")
        functions = []
        for task in tasks:
            if task.get("function") is not None:
                functions.append(task)
            else:
                self._run_program(task, self._runtime, self._mailbox)
        if functions:
            self._run_functions(functions)
        self._stay_while_busy()

    def _stay_while_busy(self) -> None:
        """Be held by the event loop as long as something that was begun has not ended."""
        if self._inbox is not None:
            is_busy = self._unfinished or self._calls or self._late
            self._inbox.hold(self if is_busy else None)

    @abstractmethod
    def _run_functions(self, tasks: list[Task]) -> None:
        """Begin to run function tasks; whatever happens to one must not concern the others."""

    def _run_program(self, task: Task, runtime: Runtime, mailbox: Mailbox) -> None:
        try:
            if not task.get("executable"):
                raise NotImplementedError(
                    f"backend '{self.name}' ({type(self).__name__}) cannot run task "
                    f"'{name_of(task)}': it runs functions and programs, not prompts; name another "
                    "backend for those"
                )
            if options_of(task):
                self._ignore_unknown(task, "program", PROGRAM_OPTIONS | {"shell"})
            running = start_program(task, runtime, mailbox, self._work_dir, self.report_running)
        except BaseException as error:
            self._fail(task, error)
            let_out(error)
        else:
            self._unfinished[task["uid"]] = (task, running)
            if "trace_note" in task:
                task["is_traced"] = True

    def _timeout_of_function(self, task: Task) -> float | None:
        """Return the seconds that a function may run; raises as :func:`timeout_of` does."""
        if not options_of(task):
            return None
        self._ignore_unknown(task, "function", FUNCTION_OPTIONS)
        return timeout_of(task)

    def _ignore_unknown(self, task: Task, kind: str, known: frozenset[str]) -> None:
        for key in options_of(task):
            if key not in known and (kind, key) not in self._ignored:
                self._ignored.add((kind, key))
                _log.warning(
                    "backend '%s' ignores '%s' in the task_description of a %s, first of task "
                    "'%s': it knows %s",
                    self.name,
                    key,
                    kind,
                    name_of(task),
                    ", ".join(sorted(known)),
                )

    # --- ends -----------------------------------------------------------------------------------

    def look(self) -> None:
        """Wait for a moment for what one call comes to, if that was worth it lately.

        A short function takes less time than to wake the event loop from its sleep.
        """
        self._deliver(look=True)

    def _deliver(self, look: bool = False) -> None:
        """Report what has ended. Called by the event loop when the mailbox holds something."""
        if self._mailbox is None:
            return
        calls, mailbox = self._calls, self._mailbox
        for _ in range(LOOKS_PER_TURN):
            ended = []
            for delivery in mailbox.drain(DELIVERIES_PER_TURN, look=look):
                token, end, value = delivery
                if type(token) is not dict:
                    del calls[token]
                    ended.append(delivery)
                elif end == "running":
                    self._begin(token, value)
                else:
                    self._end(token, end, value)
            if not ended or self._report_calls is None or not self._report_calls(ended):
                break
            look = True
        self._tell_if_empty()

    def _begin(self, task: Task, since: float) -> None:
        """Report that a task has begun, unless it was given up or has ended."""
        entry = self._unfinished.get(task["uid"])
        if entry is not None and entry[0] is task:
            task["started_at"] = since
            self._tell(task, TaskStates.RUNNING)

    def _end(self, task: Task, end: str, value: Any) -> None:
        """Report how a task has ended, unless it was given up."""
        if self._deadlines and (deadline := self._deadlines.pop(id(task), None)) is not None:
            deadline.cancel()
        if self._late and self._late.pop(id(task), None) is not None:
            return
        self._unfinished.pop(task["uid"], None)
        if end == "cancelled":
            state = TaskStates.CANCELED
        elif task.get("executable"):
            if isinstance(value, ProcessResult):
                state = record_program(task, value, self._work_dir)
            else:
                state = record_failure(task, value, self._work_dir)
        elif end == "failed":
            task["exception"] = value
            state = TaskStates.FAILED
        else:
            task["return_value"] = value
            state = TaskStates.DONE
        self._tell(task, state)

    def _fail(self, task: Task, error: BaseException) -> None:
        task["exception"] = error
        self._tell(task, TaskStates.FAILED)

    def _give_up(self, task: Task) -> None:
        """Tell nobody how a task that still runs will end."""
        self._late[id(task)] = self._unfinished.pop(task["uid"])

    def _tell(self, task: Task, state: str) -> None:
        try:
            self._callback_func(task, state)
        except BaseException as error:  # one task's trouble, not that of those that come after it
            let_out(error)
            if self._loop is None:
                raise
            message = f"backend '{self.name}': the callback failed for task '{name_of(task)}'"
            self._loop.call_exception_handler({"message": message, "exception": error})

    def _tell_if_empty(self) -> None:
        emptied = self._emptied
        is_empty = not (self._unfinished or self._calls or self._late)
        self._stay_while_busy()
        if emptied is not None and is_empty and not emptied.done():
            emptied.set_result(None)

    def register_callback(self, func: Callback) -> None:
        # What still runs was another's: its identifiers may be used anew.
        self._late.update((id(entry[0]), entry) for entry in self._unfinished.values())
        self._unfinished.clear()
        if not self._calls:
            self._report_calls = None
        super().register_callback(func)

    # --- deadlines of functions -----------------------------------------------------------------

    def _limit(self, task: Task, timeout: float, begun: Begun, after: float | None = None) -> None:
        """Let a task that was begun fail when it has run for ``timeout`` seconds.

        That is looked at ``after`` seconds for the first time, by default when these are over.
        """
        assert self._loop is not None
        wait = timeout if after is None else after
        # The loop may keep the context of a cancelled timer until that is due.
        deadline = self._loop.call_later(
            wait, self._check_deadline, task, timeout, begun, context=Context()
        )
        self._deadlines[id(task)] = deadline

    def _check_deadline(self, task: Task, timeout: float, begun: Begun) -> None:
        # What has not begun is looked at again when it may at the earliest have run for so long.
        since = begun()
        left = timeout if since is None else since + timeout - time.monotonic()
        if left > 0:
            self._limit(task, timeout, begun, left)
            return
        del self._deadlines[id(task)]
        if id(task) in self._late:
            _, running = self._late[id(task)]
            if not running.cancel_requested:
                running.cancel()
            return
        _, running = self._unfinished[task["uid"]]
        self._give_up(task)
        running.cancel()
        self._fail(
            task,
            TaskTimeoutError(
                f"task '{name_of(task)}' on backend '{self.name}' has run out of time, which was "
                f"{timeout:g} s: {self._after_timeout}"
            ),
        )

    _after_timeout = "it was asked to stop"
    """What becomes of a body that has run out of time."""

    # --- cancellation ---------------------------------------------------------------------------

    async def cancel_task(self, uid: str) -> bool:
        return self.cancel_nowait(uid)

    def cancel_nowait(self, uid: Any) -> bool:
        """Stop a task, like :meth:`cancel_task`; or a plain call, by its token."""
        running = self._running(uid)
        return running is not None and bool(running.cancel())

    async def cancel_all_tasks(self) -> int:
        """Stop all tasks, like :meth:`cancel_task`; return how many."""
        return sum([self.cancel_nowait(uid) for uid in list(self._unfinished)])

    def is_running(self, uid: Any) -> bool:
        running = self._running(uid)
        return running is not None and running.state == "running"

    def _running(self, uid: Any) -> Running | None:
        entry = self._unfinished.get(uid)
        return entry[1] if entry is not None else self._calls.get(uid)

    # --- nothing to do --------------------------------------------------------------------------

    def build_task(self, uid: Any = None, task_desc: Any = None, specific: Any = None) -> None:
        """Do nothing: a task needs no preparation."""

    def link_implicit_data_deps(self, src_task: Any = None, dst_task: Any = None) -> None:
        """Do nothing: all tasks see the same files."""

    def task_state_cb(self, task: Any = None, state: Any = None) -> None:
        """Do nothing: states go to the registered callback."""
