"""The default backend: our own :class:`~dftracer.utils.Runtime`, in this process."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from typing import Any

from dftracer.asyncflow.backends.base import Report, Task
from dftracer.asyncflow.backends.host import Begun, HostExecutionBackend
from dftracer.utils import Runtime
from dftracer.utils.default import threads_of_environment
from dftracer.utils.tracing import Trace

Note = tuple[int, str]
Call = tuple[Any, Callable[..., Any], tuple[Any, ...], dict[str, Any], str, Context | None]


class RuntimeExecutionBackend(HostExecutionBackend):
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
    at a time, the loop is woken once. After :meth:`shutdown` the backend can be used again.
    """

    def __init__(self, runtime: Runtime | None = None, name: str = "default") -> None:
        super().__init__(name)
        if runtime is not None and not isinstance(runtime, Runtime):
            raise TypeError(f"runtime must be a Runtime or None, not {type(runtime).__name__}")
        self._given_runtime = runtime

    def _acquire(self) -> Runtime:
        return self._given_runtime or Runtime(threads_of_environment())

    async def _release(self) -> None:
        if self._runtime is not None:
            runtime, is_own = self._runtime, self._given_runtime is None
            # Waits for threads; not in the event loop's.
            await asyncio.to_thread(runtime.shutdown if is_own else runtime.wait_for_bodies)

    def call_nowait(
        self,
        tokens: Sequence[Any],
        calls: Iterable[Call],
        report: Report,
        notes: Sequence[Note] | None = None,
    ) -> None:
        """Begin to run functions that are no more than that, at less cost than tasks.

        Parameters
        ----------
        tokens:
            What the calls are known by.
        calls:
            For each its token, the function, its arguments, name and context.
        report:
            Is given lists of tokens, each with ``"done"`` and what the function has returned,
            ``"failed"`` and what it has raised, or ``"cancelled"`` and ``None``. Its answer is
            whether there may soon be more to report, and the event loop nothing else to do.
        notes:
            For each what the trace is told of it.

        Raises
        ------
        RuntimeError
            If the backend is not started; then none of the calls is run.
        """
        if not self._is_open or self._runtime is None or self._mailbox is None:
            raise RuntimeError(f"backend '{self.name}' is not started: await it first")
        self._report_calls = report
        handles = self._runtime.submit_to(self._mailbox, calls, notes)
        self._calls.update(zip(tokens, handles, strict=True))
        self._stay_while_busy()

    def trace_to(self, trace: Trace) -> bool:
        """Let the runtime write its tasks to ``trace`` if it is this backend's own.

        Returns
        -------
        bool
            Whether tasks that have a ``trace_note`` are written there.
        """
        if self._runtime is None:
            return False
        if self._given_runtime is None:
            self._runtime.start_trace(trace)
        return self._runtime.traces_to(trace)

    def _run_functions(self, tasks: list[Task]) -> None:
        assert self._runtime is not None
        assert self._mailbox is not None
        accepted, calls = [], []
        limits: list[tuple[Task, float, Begun]] = []
        for task in tasks:
            function = task["function"]
            if task.get("task_backend_specific_kwargs"):
                try:
                    function = self._limited(task, function, limits)
                except (TypeError, ValueError) as error:
                    self._fail(task, error)
                    continue
            if self.report_running:
                function = _noting(function, functools.partial(self._mailbox.post, task))
            accepted.append(task)
            calls.append(
                (task, function, task["args"], task["kwargs"], task["name"], task.get("context"))
            )
        notes = [task["trace_note"] for task in accepted if "trace_note" in task]
        interrupts = [task.get("interrupt", False) for task in accepted]
        handles = self._runtime.submit_to(
            self._mailbox, calls, notes or None, interrupts if any(interrupts) else None
        )
        for task, handle in zip(accepted, handles, strict=True):
            self._unfinished[task["uid"]] = (task, handle)
            if notes:
                task["is_traced"] = True
        for limit in limits:
            self._limit(*limit)

    def _limited(
        self,
        task: Task,
        function: Callable[..., Any],
        limits: list[tuple[Task, float, Begun]],
    ) -> Callable[..., Any]:
        """Return what to call for a function that may have a timeout, which ``limits`` gets."""
        timeout = self._timeout_of_function(task)
        if timeout is None:
            return function
        begun: list[float] = []
        limits.append((task, timeout, lambda: begun[0] if begun else None))
        return _noting(function, lambda: begun.append(time.monotonic()))


def _noting(function: Callable[..., Any], note: Callable[[], object]) -> Callable[..., Any]:
    """Return ``function`` in a form that calls ``note`` when it begins, of the same kind."""

    def call(*args: Any, **kwargs: Any) -> Any:
        note()
        return function(*args, **kwargs)

    async def call_async(*args: Any, **kwargs: Any) -> Any:
        note()
        return await function(*args, **kwargs)

    return call_async if inspect.iscoroutinefunction(function) else call
