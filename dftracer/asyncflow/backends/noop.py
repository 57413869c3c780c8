"""A backend that runs nothing: for dry runs and for measuring the engine alone."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from typing import Any

from dftracer.asyncflow.backends.base import ExecutionBackend, Outcome, State, Submission

OUTPUT = "Dummy Output"
PROMPT_OUTPUT = "Dummy Prompt Output"


class NoopExecutionBackend(ExecutionBackend):
    """Ends every task at once, with ``"Dummy Output"`` as its result: none waits for another.

    As it holds none, its ``tasks`` is an empty dict, which a subclass may fill.
    """

    def __init__(self, name: str = "default") -> None:
        super().__init__(name)
        self.tasks = {}

    def __await__(self) -> Generator[Any, Any, NoopExecutionBackend]:
        return self
        yield  # makes this a generator, which an awaitable needs

    def submit(self, submissions: Sequence[Submission], ahead: int = 0) -> None:
        outcomes: list[Outcome] = []
        if self.report_running:
            outcomes += [(submission, State.RUNNING, None) for submission in submissions]
        for submission in submissions:
            output = OUTPUT
            if submission.function is None:
                if submission.prompt is not None:
                    output = PROMPT_OUTPUT
                submission.describe(**self.describe_result(output))
            outcomes.append((submission, State.DONE, output))
        asyncio.get_running_loop().call_soon(self._report, outcomes)

    def describe_result(self, value: Any) -> dict[str, Any]:
        return {"stdout": value, "return_value": value, "exit_code": 0}

    def cancel(self, submission: Submission) -> bool:
        return False

    async def cancel_task(self, uid: str) -> bool:
        return False

    async def shutdown(self) -> None:
        await asyncio.sleep(0)  # what was submitted is reported

    def state(self) -> str:
        return "IDLE"
