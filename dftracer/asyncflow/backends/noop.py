"""A backend that runs nothing: for dry runs and for measuring the engine alone."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from dftracer.asyncflow.backends.base import ExecutionBackend, Task, TaskStates


class NoopExecutionBackend(ExecutionBackend):
    """Ends every task at once, with ``"Dummy Output"`` as its result."""

    def __await__(self) -> Generator[Any, Any, NoopExecutionBackend]:
        return self
        yield  # makes this a generator, which an awaitable needs

    async def submit_tasks(self, tasks: list[Task]) -> None:
        for task in tasks:
            output = "Dummy Prompt Output" if task.get("prompt") else "Dummy Output"
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
