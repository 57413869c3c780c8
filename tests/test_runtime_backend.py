"""What the runtime's backend does with submissions, beyond what every backend must do."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from backend_support import GUARD_S, function_task, program_task

from dftracer.asyncflow import RuntimeExecutionBackend
from dftracer.asyncflow.backends.base import DescribedTask, Outcome, State
from dftracer.utils import Runtime, TaskTimeoutError


class Reports:
    """Takes the reports of a backend."""

    def __init__(self, backend: RuntimeExecutionBackend) -> None:
        self.outcomes: list[Outcome] = []
        self._changed = asyncio.Event()
        backend.connect(self._take)

    def _take(self, outcomes: Sequence[Outcome]) -> bool:
        self.outcomes += outcomes
        self._changed.set()
        return False

    async def ends(self, count: int) -> dict[str, tuple[State, Any]]:
        """Wait for so many ends; return them by the identifiers of the submissions."""

        async def wait() -> dict[str, tuple[State, Any]]:
            while True:
                ends = {s.uid: (x, v) for s, x, v in self.outcomes if x is not State.RUNNING}
                if len(ends) >= count:
                    return ends
                self._changed.clear()
                await self._changed.wait()

        return await asyncio.wait_for(wait(), GUARD_S)


def function(uid: str, body: Callable[..., Any], *args: Any, **description: Any) -> DescribedTask:
    """Submit a function."""
    return DescribedTask(function_task(uid, body, *args, description=description))


async def test_what_cannot_begin_fails_alone_and_not_inside_submit() -> None:
    async with RuntimeExecutionBackend(Runtime(python_threads=1)) as backend:
        reports = Reports(backend)
        odd: Any = 5
        uncallable = function("odd", abs, -1)
        uncallable.task["function"] = odd
        backend.submit(
            [
                function("first", abs, -1),
                uncallable,
                function("never", abs, -1, timeout=-1),
                DescribedTask(program_task("program", "echo", "here")),
                DescribedTask({"uid": "prompt", "prompt": "Why?"}),
                function("last", abs, -2, timeout=GUARD_S),
            ]
        )
        assert reports.outcomes == []
        ends = await reports.ends(6)
    assert {uid: value for uid, (state, value) in ends.items() if state is State.DONE} == {
        "first": 1,
        "program": "here\n",
        "last": 2,
    }
    errors = {uid: type(value) for uid, (state, value) in ends.items() if state is State.FAILED}
    assert errors == {"odd": TypeError, "never": ValueError, "prompt": NotImplementedError}
    assert len(reports.outcomes) == 6


async def test_what_cannot_begin_is_reported_when_the_shutdown_has_returned() -> None:
    backend = await RuntimeExecutionBackend()
    reports = Reports(backend)
    backend.submit([function("never", abs, -1, timeout="soon")])
    await backend.shutdown()
    ((_, state, error),) = reports.outcomes
    assert state is State.FAILED
    assert isinstance(error, TypeError)


async def test_none_is_run_when_the_backend_is_not_started() -> None:
    backend = RuntimeExecutionBackend()
    with pytest.raises(RuntimeError, match="not started"):
        backend.submit([function("task", abs, -1)])


async def test_earlier_submissions_are_nobodys_when_a_client_comes() -> None:
    held = threading.Event()
    async with RuntimeExecutionBackend(Runtime(python_threads=1)) as backend:
        first = Reports(backend)
        of_first = [function("task.1", held.wait, GUARD_S), function("task.2", abs, -1)]
        backend.submit(of_first)
        second = Reports(backend)
        backend.submit([function("task.1", abs, -3)])
        assert not backend.cancel(of_first[1])
        held.set()
        assert await second.ends(1) == {"task.1": (State.DONE, 3)}
    assert first.outcomes == []
    assert len(second.outcomes) == 1


async def test_running_comes_before_the_end_of_each_kind() -> None:
    async with RuntimeExecutionBackend(Runtime(python_threads=1)) as backend:
        reports = Reports(backend)
        backend.report_running = True
        backend.submit(
            [
                function("plain", abs, -1),
                function("coroutine", asyncio.sleep, 0),
                function("limited", abs, -1, timeout=GUARD_S),
                DescribedTask(program_task("program", "true")),
            ]
        )
        await reports.ends(4)
    for uid in ("plain", "coroutine", "limited", "program"):
        states = [state for submission, state, _ in reports.outcomes if submission.uid == uid]
        assert states == [State.RUNNING, State.DONE]


async def test_the_error_names_task_backend_and_time_when_a_body_runs_for_too_long() -> None:
    held = threading.Event()
    async with RuntimeExecutionBackend(Runtime(python_threads=1), "here") as backend:
        reports = Reports(backend)
        late = function("late", held.wait, GUARD_S, timeout=0.05)
        backend.submit([late])
        state, error = (await reports.ends(1))["late"]
        assert not backend.has_begun(late)
        assert not backend.cancel(late)
        held.set()
    assert state is State.FAILED
    assert type(error) is TaskTimeoutError
    assert str(error) == (
        "task 'wait' on backend 'here' has run out of time, which was 0.05 s: it was asked to stop"
    )
