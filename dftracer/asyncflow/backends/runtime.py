"""The default backend: our own :class:`~dftracer.utils.Runtime`, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

from dftracer.asyncflow.backends.base import Callback, ExecutionBackend, Task, TaskStates
from dftracer.asyncflow.backends.staging import StagesFiles
from dftracer.asyncflow.commands import to_text
from dftracer.asyncflow.errors import ExecutableError
from dftracer.utils import ProcessResult, Runtime, TaskHandle
from dftracer.utils.primitives import Mailbox

_DELIVERIES_PER_TURN = 1_000
"""How many outcomes are handled before the event loop gets to do something else."""


class RuntimeExecutionBackend(StagesFiles, ExecutionBackend):
    """Runs functions on a runtime's workers and programs through its I/O lane.

    Parameters
    ----------
    runtime:
        Where to run. ``None`` makes a runtime of this backend's own, with default sizes, which
        :meth:`shutdown` then shuts down; a runtime that was given is left running.
    name:
        The name by which decorators choose this backend.

    Notes
    -----
    Outcomes come through one file descriptor that the event loop watches: however many tasks end
    at a time, the loop is woken once.
    """

    def __init__(self, runtime: Runtime | None = None, name: str = "default") -> None:
        super().__init__(name)
        if runtime is not None and not isinstance(runtime, Runtime):
            raise TypeError(f"runtime must be a Runtime or None, not {type(runtime).__name__}")
        self._given_runtime = runtime
        self._runtime: Runtime | None = None
        self._mailbox: Mailbox | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_open = False
        self._closing: asyncio.Task[None] | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._handles: dict[str, tuple[Task, TaskHandle[Any]]] = {}
        """The unfinished tasks of the engine that is served, by their identifiers."""
        self._late: dict[int, tuple[Task, TaskHandle[Any]]] = {}
        """The unfinished tasks of earlier engines, by the identity of the task."""

    def __await__(self) -> Generator[Any, Any, RuntimeExecutionBackend]:
        return self._start().__await__()

    async def __aenter__(self) -> RuntimeExecutionBackend:
        return await self._start()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.shutdown()

    async def _start(self) -> RuntimeExecutionBackend:
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise RuntimeError(
                f"backend '{self.name}' serves another event loop: shut it down there, or make "
                "one backend for each loop"
            )
        if self._closing is not None:
            await asyncio.shield(self._closing)
        if self._mailbox is None:
            self._mailbox = Mailbox()
            self._runtime = self._given_runtime or Runtime()
            self._loop = loop
            self._is_open = True
            loop.add_reader(self._mailbox.fileno(), self._deliver)
        return self

    async def submit_tasks(self, tasks: list[Task]) -> None:
        await self
        self.submit_nowait(tasks)

    def submit_nowait(self, tasks: list[Task]) -> None:
        """Begin to run ``tasks``, like :meth:`submit_tasks` on a backend that has started."""
        if not self._is_open or self._runtime is None or self._mailbox is None:
            raise RuntimeError(f"backend '{self.name}' is not started: await it first")
        functions, calls = [], []
        for task in tasks:
            function = task.get("function")
            if function is None:
                self._run_program(task, self._runtime, self._mailbox)
                continue
            functions.append(task)
            calls.append(
                (task, function, task["args"], task["kwargs"], task["name"], task.get("context"))
            )
        if calls:
            handles = self._runtime.submit_to(self._mailbox, calls)
            for task, handle in zip(functions, handles, strict=True):
                self._handles[task["uid"]] = (task, handle)

    def _run_program(self, task: Task, runtime: Runtime, mailbox: Mailbox) -> None:
        try:
            if not task.get("executable"):
                raise NotImplementedError(
                    f"backend '{self.name}' cannot run task '{task['name']}': it runs functions "
                    "and programs; name another backend for prompts"
                )
            argv = [task["executable"], *task["arguments"]]
            handle = runtime.start_process(
                argv,
                cwd=task["task_backend_specific_kwargs"].get("cwd"),
                name=task["name"],
                mailbox=mailbox,
                token=task,
            )
            self._handles[task["uid"]] = (task, handle)
        except Exception as error:
            task["exception"] = error
            self._callback_func(task, TaskStates.FAILED)

    def _deliver(self) -> None:
        """Report what has ended. Called by the event loop when the mailbox holds something."""
        if self._mailbox is None:
            return
        for task, end, value in self._mailbox.drain(_DELIVERIES_PER_TURN):
            if self._late and self._late.pop(id(task), None) is not None:
                continue
            self._handles.pop(task["uid"], None)
            self._callback_func(task, _record(task, end, value))
        emptied = self._emptied
        if emptied is not None and not (emptied.done() or self._handles or self._late):
            emptied.set_result(None)

    def register_callback(self, func: Callback) -> None:
        # What still runs was another's: its identifiers may be used anew.
        self._late.update((id(entry[0]), entry) for entry in self._handles.values())
        self._handles.clear()
        super().register_callback(func)

    async def cancel_task(self, uid: str) -> bool:
        return self.cancel_nowait(uid)

    def cancel_nowait(self, uid: str) -> bool:
        """Stop a task, like :meth:`cancel_task`."""
        entry = self._handles.get(uid)
        return entry is not None and bool(entry[1].cancel())

    def is_running(self, uid: str) -> bool:
        entry = self._handles.get(uid)
        return entry is not None and entry[1].state == "running"

    async def shutdown(self) -> None:
        """Cancel what can be cancelled and wait for the rest; then the backend can be reused.

        Every task has been reported when this returns. It goes on when a caller is cancelled.
        """
        if self._loop is None:
            return
        if self._closing is None:
            if self._is_open:
                self._is_open = False
                for _, handle in [*self._handles.values(), *self._late.values()]:
                    if not handle.cancel_requested:
                        handle.cancel()
            self._closing = self._loop.create_task(self._close(self._loop))
        await asyncio.shield(self._closing)

    async def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            if self._handles or self._late:
                self._emptied = loop.create_future()
                await self._emptied
            if self._runtime is not None and self._given_runtime is None:
                # Waits for its threads; not in the event loop's.
                await asyncio.to_thread(self._runtime.shutdown)
            if self._mailbox is not None:
                loop.remove_reader(self._mailbox.fileno())
            self._runtime = self._mailbox = self._loop = None
        finally:
            self._closing = self._emptied = None

    def state(self) -> str:
        return "IDLE" if self._runtime is None else "INITIALIZED"


def _record(task: Task, end: str, value: Any) -> str:
    """Put the end of a task into it and return the state that it means."""
    if end == "cancelled":
        return TaskStates.CANCELED
    if end == "failed":
        task["exception"] = _with_task(task, value)
        return TaskStates.FAILED
    if isinstance(value, ProcessResult):
        return _record_process(task, value)
    task["return_value"] = value
    return TaskStates.DONE


def _record_process(task: Task, result: ProcessResult) -> str:
    """Put the end of a program into its task and return the state that it means."""
    stdout = result.stdout.decode(errors="replace")
    stderr = result.stderr.decode(errors="replace")
    task.update(stdout=stdout, stderr=stderr, exit_code=result.exit_code)
    if result.exit_code == 0:
        return TaskStates.DONE
    command = to_text([task["executable"], *task["arguments"]])
    task["exception"] = ExecutableError(
        task["name"], command, result.exit_code, result.signal, stdout, stderr
    )
    return TaskStates.FAILED


def _with_task(task: Task, error: BaseException) -> BaseException:
    """Say of a program that could not be started which task it was for."""
    if not task.get("executable") or not isinstance(error, OSError):
        return error
    return type(error)(
        error.errno,
        f"task '{task['name']}': cannot start the program: {error.strerror}",
        task["executable"],
    )
