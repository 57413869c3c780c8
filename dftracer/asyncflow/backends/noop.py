"""A backend that runs nothing: for dry runs and for measuring the engine alone."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from typing import Any

from dftracer.asyncflow.backends.base import ExecutionBackend, Report, Task, TaskStates

OUTPUT = "Dummy Output"


class NoopExecutionBackend(ExecutionBackend):
    """Ends every task at once, with ``"Dummy Output"`` as its result."""

    def __await__(self) -> Generator[Any, Any, NoopExecutionBackend]:
        return self
        yield  # makes this a generator, which an awaitable needs

    def call_nowait(
        self, tokens: Sequence[Any], calls: Iterable[Any], report: Report, notes: Any = None
    ) -> None:
        """Take functions that are no more than that, at less cost than tasks."""
        deque(calls, maxlen=0)
        outcomes = [(token, "done", OUTPUT) for token in tokens]
        asyncio.get_running_loop().call_soon(report, outcomes)

    def look(self) -> None:
        """Do nothing: outcomes come in the next turn of the event loop."""

    def record_of_call(self, value: Any) -> dict[str, Any]:
        return {"stdout": value, "return_value": value, "exit_code": 0}

    async def submit_tasks(self, tasks: list[Task]) -> None:
        for task in tasks:
            output = "Dummy Prompt Output" if task.get("prompt") else OUTPUT
            task.update(stdout=output, return_value=output, exit_code=0)
            if self.report_running:
                self._callback_func(task, TaskStates.RUNNING)
            self._callback_func(task, TaskStates.DONE)

    async def cancel_task(self, uid: str) -> bool:
        return False

    async def shutdown(self) -> None:
        pass

    def state(self) -> str:
        return "IDLE"
