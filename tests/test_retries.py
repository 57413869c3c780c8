"""Attempts: retries, pauses between them, and timeouts, on every kind of backend and task."""

import asyncio
import contextvars
import gc
import logging
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import NewLoop
from engine_support import (
    GUARD_S,
    REQUEST,
    Gate,
    assert_nothing_kept,
    async_identity,
    identity,
    launched,
    reached,
)
from prompt_server import PromptServer, error

from dftracer.asyncflow import (
    DependencyFailureError,
    ExecutableError,
    InputFile,
    NoopExecutionBackend,
    OpenAIBackend,
    OutputFile,
    PromptError,
    RuntimeExecutionBackend,
    WorkflowEngine,
)
from dftracer.asyncflow.engine.retries import Policy
from dftracer.utils import Runtime, TaskTimeoutError

LONG_S = 3_600.0
"""Longer than any test: what waits for it must be cancelled."""


class Flaky:
    """A body that fails as often as told, and then gives the number of its calls."""

    __name__ = "flaky"

    def __init__(self, failures: int, fault: type[Exception] = ValueError) -> None:
        self.failures = failures
        self.fault = fault
        self.calls = 0

    def __call__(self, *_: Any) -> int:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.fault(f"failure {self.calls}")
        return self.calls


class ForeignBackend:
    """Another project's backend: no more than what an engine needs, and it reports copies.

    A test says when a task ends and how, by the number of its submission.
    """

    def __init__(self, name: str = "foreign") -> None:
        self.name = name
        self.submitted: list[dict[str, Any]] = []
        self.cancelled: list[str] = []
        self.refusals = 0
        self.keeps_timeouts = False
        self._changed = asyncio.Condition()

    def register_callback(self, callback: Callable[[Any, str], None]) -> None:
        self.callback = callback

    async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
        async with self._changed:
            self.submitted += [_copy_of(task) for task in tasks]
            self._changed.notify_all()
        for task in tasks:  # as some do
            task["kwargs"].clear()
            task["task_backend_specific_kwargs"].clear()
            task["args"] = ("spoilt",)
        if self.refusals:
            self.refusals -= 1
            raise ConnectionError("no such host")

    async def cancel_task(self, uid: str) -> bool:
        async with self._changed:
            self.cancelled.append(uid)
            self._changed.notify_all()
        return True

    async def shutdown(self) -> None:
        pass

    async def until(self, submitted: int = 0, cancelled: int = 0) -> None:
        async with self._changed:
            await self._changed.wait_for(
                lambda: len(self.submitted) >= submitted and len(self.cancelled) >= cancelled
            )

    def report(self, number: int, state: str, **outcome: Any) -> None:
        self.callback({**self.submitted[number], **outcome}, state)


def _copy_of(task: dict[str, Any]) -> dict[str, Any]:
    return {key: dict(item) if type(item) is dict else item for key, item in task.items()}


# --- retries ------------------------------------------------------------------------------------


async def test_dependents_see_only_the_success_when_earlier_attempts_failed(
    new_loop: NewLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async with await WorkflowEngine.create() as flow:
        body = Flaky(failures=2)
        future = flow.function_task(retries=2, backoff=0)(body)()
        dependent = flow.function_task(identity)([future])
        assert await dependent == [3]
        assert future.task["attempt"] == 3
        assert future.uid == "task.000001"
        assert_nothing_kept(flow)
    told = [record.getMessage() for record in caplog.records]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert told[0].startswith("task.000001 'flaky': attempt 1 of 3 failed")
    assert "ValueError: failure 2" in told[1]


async def test_call_fails_with_the_last_error_when_its_retries_are_used_up() -> None:
    async with await WorkflowEngine.create() as flow:
        body = Flaky(failures=9)
        future = flow.function_task(retries=2, backoff=0)(body)()
        dependent = flow.function_task(identity)(future)
        with pytest.raises(DependencyFailureError) as caught:
            await dependent
        assert str(caught.value.root_cause) == "failure 3"
        assert future.exception() is caught.value.root_cause
        assert body.calls == 3
        assert_nothing_kept(flow)


@pytest.mark.parametrize(
    ("retry_on", "calls"),
    [
        (ValueError, 2),
        (KeyError, 1),
        (LookupError, 1),
        ((KeyError, ValueError), 2),
        (lambda fault: "failure 1" in str(fault), 2),
        (lambda fault: "failure 2" in str(fault), 1),
    ],
)
async def test_retried_is_only_what_the_decorator_says_when_it_says_so(
    retry_on: Any, calls: int
) -> None:
    async with await WorkflowEngine.create() as flow:
        body = Flaky(failures=1)
        future = flow.function_task(retries=5, retry_on=retry_on, backoff=0)(body)()
        await asyncio.wait([future])
        assert body.calls == calls
        assert (future.exception() is None) == (calls == 2)


async def test_call_fails_with_its_error_when_the_filter_itself_fails() -> None:
    def spoilt(fault: Exception) -> bool:
        raise ZeroDivisionError("in the filter")

    async with await WorkflowEngine.create() as flow:
        body = Flaky(failures=1)
        with pytest.raises(ZeroDivisionError) as caught:
            await flow.function_task(retries=1, retry_on=spoilt)(body)()
        assert str(caught.value.__cause__) == "failure 1"


@pytest.mark.parametrize("pause", [-1, None, float("nan"), "1"])
async def test_call_fails_when_its_backoff_returns_no_pause(pause: Any) -> None:
    async with await WorkflowEngine.create() as flow:
        with pytest.raises((TypeError, ValueError), match=r"what backoff\(\) returns must be"):
            await flow.function_task(retries=1, backoff=lambda attempt: pause)(Flaky(failures=1))()


async def test_backoff_gets_the_number_of_the_attempt_when_it_is_a_function() -> None:
    attempts: list[int] = []

    def pause(attempt: int) -> float:
        attempts.append(attempt)
        return 0.001 * attempt

    async with await WorkflowEngine.create() as flow:
        assert await flow.function_task(retries=3, backoff=pause)(Flaky(failures=3))() == 4
    assert attempts == [1, 2, 3]


def test_pause_doubles_up_to_a_minute_when_backoff_is_a_number() -> None:
    policy = Policy(retries=99, retry_on=Exception, backoff=1.0, timeout=None)
    pauses = [policy.pause_after(attempt) for attempt in range(1, 100)]
    for attempt, pause in enumerate(pauses):
        whole = min(2.0**attempt, 60.0)
        assert whole / 2 <= pause <= whole
    assert len(set(pauses)) > 90, "there is nothing random in it"
    assert Policy(1, Exception, 0.0, None).pause_after(7) == 0
    assert 150 <= Policy(1, Exception, 300.0, None).pause_after(7) <= 300


async def test_next_attempt_waits_for_its_pause_when_there_is_one() -> None:
    loop = asyncio.get_running_loop()
    times: list[float] = []

    def body() -> None:
        times.append(loop.time())
        if len(times) < 3:
            raise ValueError

    async with await WorkflowEngine.create() as flow:
        await flow.function_task(retries=2, backoff=lambda attempt: 0.05 * attempt)(body)()
    assert times[1] - times[0] >= 0.05
    assert times[2] - times[1] >= 0.1


async def test_all_succeed_in_the_end_when_many_fail_at_first(new_loop: NewLoop) -> None:
    async with await WorkflowEngine.create() as flow:
        bodies = [Flaky(failures=number % 4) for number in range(400)]
        futures = [flow.function_task(retries=3, backoff=0.001)(body)() for body in bodies]
        results = await asyncio.gather(*futures)
        assert results == [number % 4 + 1 for number in range(400)]
        assert_nothing_kept(flow)


# --- what an attempt is made of -----------------------------------------------------------------


async def test_each_attempt_gets_what_the_call_was_given_when_an_earlier_one_spoilt_it() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend) as flow:

        @flow.function_task(retries=1, backoff=0)
        async def body(*args: Any, **kwargs: Any) -> None: ...

        first = flow.function_task(identity)("value")
        await backend.until(submitted=1)
        future = body(first, key=2, task_description={"gpus": 1})
        backend.report(0, "DONE", return_value="value")
        await backend.until(submitted=2)
        backend.report(1, "FAILED", exception=ValueError("once"))
        await backend.until(submitted=3)
        backend.report(2, "DONE", return_value="well")
        assert await future == "well"
        one, two = backend.submitted[1:]
        for key in ("args", "kwargs", "task_backend_specific_kwargs", "metadata", "function"):
            assert one[key] == two[key]
        assert one["args"] == ("value",)
        assert one["kwargs"] == {"key": 2}
        assert one["metadata"]["dependencies"] == [{"uid": "task.000001", "name": "identity"}]
        assert (one["uid"], one["attempt"]) == ("task.000002", 1)
        assert (two["uid"], two["attempt"]) == ("task.000002-2", 2)
        assert "exception" not in two


async def test_each_attempt_has_the_context_of_the_call_when_an_earlier_one_changed_it() -> None:
    seen: list[str] = []

    def body() -> None:
        seen.append(REQUEST.get())
        REQUEST.set("changed by the body")
        if len(seen) < 3:
            raise ValueError

    async with await WorkflowEngine.create() as flow:
        token = REQUEST.set("of the call")
        future = flow.function_task(retries=2, backoff=0)(body)()
        REQUEST.reset(token)
        await future
    assert seen == ["of the call"] * 3


async def test_description_is_the_same_dict_when_the_first_attempt_does_it() -> None:
    async with await WorkflowEngine.create() as flow:
        future = flow.function_task(retries=1)(identity)(1)
        held = future.task
        assert await future == 1
        assert future.task is held
        assert held["return_value"] == 1


async def test_nothing_is_kept_of_attempts_when_a_task_has_no_such_options() -> None:
    async with await WorkflowEngine.create(NoopExecutionBackend()) as flow:
        future = flow.function_task(identity)(1)
        await launched()
        assert await future == "Dummy Output"
        assert future.attempts is None
        assert "attempt" not in future.task


async def test_ended_calls_are_freed_when_their_timeout_is_far_away() -> None:
    async with await WorkflowEngine.create(NoopExecutionBackend()) as flow:
        kinds = (flow.function_task, flow.prompt_task, flow.block)
        futures = [kind(timeout=LONG_S, retries=1)(async_identity)("x") for kind in kinds]
        outputs = [await future for future in futures]
        assert outputs == ["Dummy Output", "Dummy Prompt Output", "x"]
    references = [weakref.ref(future) for future in futures]
    futures.clear()
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


async def test_later_attempt_shows_as_running_when_it_runs() -> None:
    begun = threading.Event()
    calls: list[int] = []

    async with await WorkflowEngine.create() as flow:

        @flow.function_task(retries=1, backoff=0)
        async def body() -> None:
            calls.append(1)
            if len(calls) == 1:
                raise ValueError
            begun.set()
            await asyncio.Event().wait()

        future = body()
        await reached(begun)
        assert future.state == "RUNNING"
        future.cancel()


# --- every kind of task -------------------------------------------------------------------------


async def test_program_runs_again_when_it_has_failed(tmp_path: Path, new_loop: NewLoop) -> None:
    async with await WorkflowEngine.create(work_dir=tmp_path) as flow:

        @flow.executable_task(retries=2, backoff=0, retry_on=ExecutableError)
        def count(path: Path) -> str:
            return f"echo x >> {path}; wc -l < {path}; test $(wc -l < {path}) -ge 3"

        future = count(tmp_path / "tries")
        assert (await future).strip() == "3"
        assert future.task["attempt"] == 3


async def test_files_are_brought_again_and_handed_on_when_a_later_attempt_writes_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "in.txt").write_text("content")
    tried = tmp_path / "tried"
    async with await WorkflowEngine.create(work_dir=tmp_path) as flow:

        @flow.executable_task(retries=1, backoff=0)
        def convert(source: InputFile, target: OutputFile) -> str:
            body = f"cat {source.filename} {source.filepath} > {target.filename}"
            return f"{body}; test -e {tried} || {{ touch {tried}; exit 1; }}"

        paths: list[Path] = []

        @flow.function_task(retries=1, backoff=0)
        def read(source: InputFile, _: Any) -> str:
            paths.append(source.filepath)
            if len(paths) == 1:
                raise ValueError
            return source.filepath.read_text()

        converted = convert(InputFile(tmp_path / "in.txt"), OutputFile("out.txt"))
        assert await read(InputFile("out.txt"), converted) == "contentcontent"
        assert converted.task["attempt"] == 2
        assert len(set(paths)) == 2, "the second attempt was given the files of the first"
        assert_nothing_kept(flow)


async def test_command_is_asked_for_again_when_its_function_has_failed() -> None:
    async with await WorkflowEngine.create() as flow:
        body = Flaky(failures=1)

        @flow.executable_task(retries=1, backoff=0)
        async def command() -> list[str]:
            return ["echo", str(body())]

        assert await command() == "2\n"


async def test_prompt_is_asked_again_when_the_server_has_refused_it() -> None:
    async with PromptServer() as server:
        server.plan.extend([error(400, "no"), error(400, "no")])
        async with await WorkflowEngine.create(OpenAIBackend(server.url, "small")) as flow:
            ask = flow.prompt_task(retries=2, backoff=0, retry_on=PromptError)(identity)
            assert await ask("hello") == "answer to hello"
            assert_nothing_kept(flow)
        assert len(server.requests) == 3


async def test_block_runs_again_without_its_old_members_when_it_has_failed(
    new_loop: NewLoop,
) -> None:
    async with await WorkflowEngine.create() as flow:
        members: list[asyncio.Future[Any]] = []

        @flow.function_task
        async def endless() -> None:
            await asyncio.Event().wait()

        @flow.block(retries=1, backoff=0)
        async def block(value: int) -> int:
            members.append(endless())
            if len(members) == 1:
                raise ValueError("once")
            members[-1].cancel()
            return value

        future = block(flow.function_task(identity)(5))
        assert await future == 5
        assert [member.cancelled() for member in members] == [True, True]
        assert future.block["attempt"] == 2
        await launched()
        assert_nothing_kept(flow)


async def test_tasks_are_tried_again_in_time_when_the_backend_is_rhapsody_s() -> None:
    backends = pytest.importorskip("rhapsody.backends", reason="RHAPSODY is not installed")
    backend = backends.ConcurrentExecutionBackend()
    async with await WorkflowEngine.create(backend) as flow:
        body, slowly = Flaky(failures=2), Flaky(failures=1)
        gate = Gate()  # it cannot stop what runs

        @flow.function_task(retries=2, backoff=0)
        async def flaky() -> int:
            return body()

        @flow.function_task(retries=1, backoff=0, timeout=0.2)
        async def slow() -> int:
            try:
                return slowly()
            except ValueError:
                return gate.hold(-1)

        with gate:
            assert await asyncio.gather(flaky(), slow()) == [3, 2]
        assert_nothing_kept(flow)


async def test_task_is_submitted_again_when_its_backend_refused_it() -> None:
    backend = ForeignBackend()
    backend.refusals = 1
    async with await WorkflowEngine.create(backend) as flow:
        future = flow.function_task(retries=1, backoff=0, retry_on=ConnectionError)(identity)(1)
        await backend.until(submitted=2)
        backend.report(1, "DONE", return_value=1)
        assert await future == 1


# --- cancellation and the end -------------------------------------------------------------------


async def paused(flow: WorkflowEngine) -> "asyncio.Future[Any]":
    """Return a call that waits for its next attempt."""
    begun = asyncio.Event()

    def pause(attempt: int) -> float:
        begun.set()
        return LONG_S

    future = flow.function_task(retries=1, backoff=pause)(Flaky(failures=9))()
    await begun.wait()
    return future


async def test_call_and_dependents_end_at_once_when_cancelled_in_a_pause() -> None:
    async with await WorkflowEngine.create() as flow:
        future = await paused(flow)
        assert future.state == "PENDING"  # type: ignore[attr-defined]
        dependent = flow.function_task(identity)(future)
        assert future.cancel()
        assert future.cancelled()
        assert dependent.cancelled()
        assert_nothing_kept(flow)


async def test_shutdown_does_not_wait_when_calls_are_in_a_pause(new_loop: NewLoop) -> None:
    flow = await WorkflowEngine.create()
    futures = [await paused(flow) for _ in range(3)]
    await asyncio.wait_for(flow.shutdown(), GUARD_S)
    assert all(future.cancelled() for future in futures)


async def test_attempt_that_runs_is_cancelled_under_its_own_name_when_it_is_not_the_first() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend) as flow:
        future = flow.function_task(retries=1, backoff=0)(identity)(1)
        await backend.until(submitted=1)
        backend.report(0, "FAILED", exception=ValueError("once"))
        await backend.until(submitted=2)
        backend.report(1, "RUNNING")
        assert future.state == "RUNNING"
        future.cancel()
        await backend.until(cancelled=1)
        assert backend.cancelled == ["task.000001-2"]


async def test_call_ends_by_hand_when_it_is_in_a_pause() -> None:
    async with await WorkflowEngine.create() as flow:
        future = await paused(flow)
        flow.handle_task_success({"return_value": 7}, future)  # type: ignore[arg-type]
        assert await future == 7
        assert_nothing_kept(flow)


# --- timeouts -----------------------------------------------------------------------------------


async def test_async_body_is_stopped_and_tried_again_when_it_takes_too_long(
    new_loop: NewLoop,
) -> None:
    stopped = threading.Event()
    calls: list[int] = []

    async def body() -> str:
        calls.append(1)
        if len(calls) == 1:
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
        return "in time"

    async with await WorkflowEngine.create() as flow:
        future = flow.function_task(retries=1, backoff=0, timeout=0.1)(body)()
        assert await future == "in time"
        await reached(stopped)
        assert_nothing_kept(flow)


async def test_call_fails_with_name_and_seconds_when_its_only_attempt_takes_too_long() -> None:
    async with await WorkflowEngine.create() as flow:

        @flow.function_task(timeout=0.05)
        async def endless() -> None:
            await asyncio.Event().wait()

        with pytest.raises(TaskTimeoutError) as caught:
            await endless()
        assert isinstance(caught.value, TimeoutError)
        assert "'endless'" in str(caught.value)
        assert "0.05 s" in str(caught.value)


async def test_program_is_killed_when_it_takes_too_long(tmp_path: Path) -> None:
    async with await WorkflowEngine.create() as flow:

        @flow.executable_task(timeout=0.2)
        def endless(path: Path) -> str:
            return f"echo $$ > {path}; sleep 600; true"

        with pytest.raises(TaskTimeoutError, match="'endless'"):
            await endless(tmp_path / "pid")
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_command_function_is_cancelled_when_it_takes_too_long() -> None:
    async with await WorkflowEngine.create() as flow:
        calls: list[int] = []

        @flow.executable_task(timeout=0.05, retries=1, backoff=0)
        async def command() -> list[str]:
            calls.append(1)
            if len(calls) == 1:
                await asyncio.Event().wait()
            return ["echo", "in time"]

        assert await command() == "in time\n"


async def test_block_and_its_members_are_cancelled_when_it_takes_too_long(
    new_loop: NewLoop,
) -> None:
    async with await WorkflowEngine.create() as flow:
        members: list[asyncio.Future[Any]] = []
        told: list[str] = []

        @flow.function_task
        async def endless() -> None:
            await asyncio.Event().wait()

        @flow.block(timeout=0.05)
        async def block() -> None:
            members.extend([endless(), endless()])
            try:
                await members[0]
            except asyncio.CancelledError:
                told.append("cancelled")
                raise

        with pytest.raises(TaskTimeoutError, match=r"block\.000001 'block'.*0\.05 seconds"):
            await block()
        assert told == ["cancelled"]
        assert [member.cancelled() for member in members] == [True, True]
        await launched()
        assert_nothing_kept(flow)


async def test_block_is_cancelled_not_timed_out_when_somebody_cancels_it() -> None:
    async with await WorkflowEngine.create() as flow:
        begun = asyncio.Event()

        @flow.block(timeout=LONG_S, retries=3)
        async def block() -> None:
            begun.set()
            await asyncio.Event().wait()

        future = block()
        await begun.wait()
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        await launched()
        assert_nothing_kept(flow)


async def test_block_is_cancelled_not_timed_out_when_what_it_awaits_is_cancelled() -> None:
    async with await WorkflowEngine.create() as flow:

        @flow.function_task
        async def endless() -> None:
            await asyncio.Event().wait()

        @flow.block(timeout=LONG_S, retries=3)
        async def block() -> None:
            member = endless()
            member.cancel()
            await member

        future = block()
        await asyncio.wait([future])
        assert future.cancelled()


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        ("DONE", {"return_value": "late"}),
        ("FAILED", {"exception": KeyError("late")}),
        ("CANCELED", {}),
        ("RUNNING", {}),
    ],
)
async def test_late_outcome_is_not_taken_for_the_next_attempt_s_when_one_has_timed_out(
    state: str, outcome: dict[str, Any]
) -> None:
    backend = ForeignBackend()
    paused = asyncio.Event()

    def pause(attempt: int) -> float:
        paused.set()
        return 0.02

    async with await WorkflowEngine.create(backend) as flow:
        future = flow.function_task(retries=1, backoff=pause, timeout=0.5)(identity)(1)
        await backend.until(submitted=1, cancelled=1)
        assert paused.is_set()
        backend.report(0, state, **outcome)  # while the next attempt waits
        assert future.state == "PENDING"
        await backend.until(submitted=2)
        backend.report(0, state, **outcome)  # while it is under way
        assert not future.done()
        assert backend.cancelled == ["task.000001"]
        backend.report(1, "DONE", return_value="in time")
        assert await future == "in time"


async def test_backend_keeps_the_time_itself_when_it_says_that_it_does() -> None:
    backend = ForeignBackend()
    backend.keeps_timeouts = True
    async with await WorkflowEngine.create(backend) as flow:

        @flow.function_task(timeout=0.01)
        def body() -> None: ...

        futures = [body(), body(task_description={"timeout": 5, "gpus": 1})]
        await backend.until(submitted=2)
        told = [task["task_backend_specific_kwargs"] for task in backend.submitted]
        assert told == [{"timeout": 0.01}, {"timeout": 5, "gpus": 1}]
        assert [f.attempts._timer for f in futures if f.attempts is not None] == [None, None]
        for number in range(2):
            backend.report(number, "DONE", return_value=number)
        assert await asyncio.gather(*futures) == [0, 1]


async def test_waiting_for_a_place_is_not_timed_when_the_backend_keeps_the_time() -> None:
    async with PromptServer() as server:
        server.is_open.clear()
        backend = OpenAIBackend(server.url, "small", max_concurrency=1)
        async with await WorkflowEngine.create(backend) as flow:
            first = flow.prompt_task(identity)("one")
            await server.until(running=1)
            second = flow.prompt_task(timeout=0.1)(identity)("two")

            @flow.block(timeout=0.2)
            async def clock() -> None:
                await asyncio.Event().wait()

            with pytest.raises(TaskTimeoutError):
                await clock()
            assert not second.done()
            server.is_open.set()
            assert await asyncio.gather(first, second) == ["answer to one", "answer to two"]


async def test_prompt_times_out_and_is_asked_again_when_the_answer_is_slow() -> None:
    async with PromptServer() as server:
        server.is_open.clear()
        async with await WorkflowEngine.create(OpenAIBackend(server.url, "small")) as flow:
            ask = flow.prompt_task(timeout=0.3, retries=1, backoff=0)(identity)
            future = ask("hello")
            await server.until(running=0, abandoned=1)
            server.is_open.set()
            assert await future == "answer to hello"
            assert future.task["attempt"] == 2


async def test_waiting_for_a_worker_is_not_timed_when_the_backend_keeps_the_time() -> None:
    begun = threading.Event()
    with Gate() as gate, Runtime(python_threads=1) as runtime:
        async with await WorkflowEngine.create(RuntimeExecutionBackend(runtime)) as flow:

            def hold() -> None:
                begun.set()
                gate.hold()

            first = flow.function_task(hold)()
            await reached(begun)
            second = flow.function_task(timeout=0.1)(identity)("in time")

            @flow.block(timeout=0.2)
            async def clock() -> None:
                await asyncio.Event().wait()

            with pytest.raises(TaskTimeoutError):
                await clock()
            assert not second.done()
            gate.set()
            await first
            assert await second == "in time"


@pytest.mark.parametrize("keeps_timeouts", [False, True])
async def test_service_goes_on_when_it_was_ready_before_its_timeout(keeps_timeouts: bool) -> None:
    backend = ForeignBackend()
    backend.keeps_timeouts = keeps_timeouts
    async with await WorkflowEngine.create(backend) as flow:
        future = flow.function_task(service=True, timeout=0.05)(identity)(1)
        await backend.until(submitted=1)
        future.set_result("ready")
        assert backend.submitted[0]["task_backend_specific_kwargs"] == {}

        @flow.block(timeout=0.1)
        async def clock() -> None:
            await asyncio.Event().wait()

        with pytest.raises(TaskTimeoutError):
            await clock()
        assert backend.cancelled == []
        assert future.result() == "ready"


async def test_service_is_stopped_at_the_end_when_an_earlier_attempt_ended_late() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend) as flow:
        future = flow.function_task(service=True, timeout=0.05, retries=1, backoff=0)(identity)(1)
        await backend.until(submitted=2, cancelled=1)
        future.set_result("ready")
        backend.report(0, "CANCELED")
    assert backend.cancelled == ["task.000001", "task.000001-2"]


# --- what decorators refuse ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["function_task", "executable_task", "prompt_task", "block"])
@pytest.mark.parametrize(
    ("option", "value", "fault"),
    [
        ("retries", -1, ValueError),
        ("retries", 1.5, TypeError),
        ("retries", True, TypeError),
        ("retry_on", "ValueError", TypeError),
        ("retry_on", str, TypeError),
        ("retry_on", (), TypeError),
        ("retry_on", (ValueError, "KeyError"), TypeError),
        ("retry_on", asyncio.sleep, TypeError),
        ("backoff", -0.1, ValueError),
        ("backoff", None, TypeError),
        ("backoff", float("inf"), ValueError),
        ("timeout", 0, ValueError),
        ("timeout", float("nan"), ValueError),
        ("timeout", "1", TypeError),
    ],
)
async def test_decorator_says_what_it_wants_when_an_option_makes_no_sense(
    kind: str, option: str, value: Any, fault: type[Exception]
) -> None:
    async with await WorkflowEngine.create(NoopExecutionBackend()) as flow:
        with pytest.raises(fault, match=rf"^@flow\.{kind}: {option} must be"):
            getattr(flow, kind)(**{option: value})


async def test_call_runs_in_its_own_context_when_that_has_been_left() -> None:
    """The copies are taken when a call is launched, which may be in whatever context."""
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    async with await WorkflowEngine.create() as flow:
        gate = asyncio.get_running_loop().create_future()

        @flow.function_task(retries=1)
        def body(_: Any) -> int:
            return variable.get()

        token = variable.set(1)
        future = body(gate)
        variable.reset(token)
        gate.set_result(None)
        assert await future == 1
