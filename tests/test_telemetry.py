"""Telemetry with RHAPSODY's real manager: which events and spans there are, in which order."""

import asyncio
import contextvars
import gc
import json
import pickle
import random
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from backend_support import Door, function_task
from engine_support import GUARD_S, Gate, add, async_identity, identity, reached

from dftracer.asyncflow import (
    DaskExecutionBackend,
    EngineShutdownError,
    LocalExecutionBackend,
    NoopExecutionBackend,
    RuntimeExecutionBackend,
    WorkflowEngine,
)
from dftracer.asyncflow.backends.base import DescribedTask, ExecutionBackend, State
from dftracer.asyncflow.backends.local.notes import Notes
from dftracer.asyncflow.backends.local.work import WorkItem
from dftracer.utils import Runtime

trace = pytest.importorskip("opentelemetry.trace", reason="OpenTelemetry is not installed")
pytest.importorskip("rhapsody.telemetry", reason="RHAPSODY is not installed")

Script = Callable[..., str]

BEGINNING = ["TaskCreated", "asyncflow.TaskResolved", "TaskQueued", "TaskSubmitted", "TaskStarted"]
ENDS = {"TaskCompleted", "TaskFailed", "TaskCanceled"}


class Events:
    """What a manager has told, in order."""

    def __init__(self, manager: Any) -> None:
        self.all: list[Any] = []
        self._news = asyncio.Event()
        manager.subscribe(self._take)

    def _take(self, event: Any) -> None:
        self.all.append(event)
        self._news.set()

    async def wait_for(self, kind: str, task: Any) -> Any:
        """Wait until the manager has told that of a task."""
        while True:
            for event in self.all:
                if (event.event_type, event.task_id) == (kind, task.uid):
                    return event
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), GUARD_S)

    def of(self, task: Any) -> list[Any]:
        return [event for event in self.all if event.task_id == task.uid]

    def kinds_of(self, task: Any) -> list[str]:
        return [event.event_type for event in self.of(task)]

    def end_of(self, task: Any) -> Any:
        """Return the one terminal event of a task."""
        (end,) = [event for event in self.of(task) if event.event_type in ENDS]
        assert end is self.of(task)[-1]
        return end


@asynccontextmanager
async def observed(
    backend: Any = None, **options: Any
) -> AsyncIterator[tuple[WorkflowEngine, Events, Any]]:
    """Make an engine with telemetry, whose manager has handled everything afterwards."""
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        manager = await flow.start_telemetry(**options)
        yield flow, Events(manager), manager


@pytest.fixture(autouse=True)
def _nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Any:
    """See that neither RHAPSODY nor OpenTelemetry have reason to complain."""
    yield
    complaints = [
        record.getMessage()
        for record in caplog.get_records("call")
        if record.module not in ("logs", "leaving", "scheduler")  # what is given up or unseen
        and record.name.startswith(("rhapsody", "opentelemetry", "asyncio", "dftracer"))
        and record.name != "rhapsody.telemetry.adapters.concurrent"  # which looks for a GPU
        and "attempt" not in record.getMessage()
        and "its body runs on until it returns" not in record.getMessage()
    ]
    assert complaints == []


@pytest.fixture(autouse=True)
def _no_span_stays_current() -> Any:
    yield
    assert not trace.get_current_span().get_span_context().is_valid


@pytest.fixture(params=["runtime", "threads", "processes", "noop", "rhapsody"])
def backend(request: pytest.FixtureRequest, lent_pool: Callable[[str], Executor]) -> Any:
    if request.param == "runtime":
        return RuntimeExecutionBackend()
    if request.param == "noop":
        return NoopExecutionBackend()
    if request.param == "rhapsody":
        from rhapsody.backends import ConcurrentExecutionBackend

        return ConcurrentExecutionBackend(ThreadPoolExecutor(2), name="default")
    return LocalExecutionBackend(lent_pool(request.param))


# --- events ------------------------------------------------------------------------------------


async def test_events_come_in_order_when_tasks_of_all_kinds_run(backend: Any) -> None:
    async with observed(backend) as (flow, events, manager):
        function = flow.function_task(async_identity)(1)
        program = flow.executable_task(_echo)("x")
        both = flow.function_task(async_identity)([function, program])
        await both
        await asyncio.gather(function, program)
    for task in (function, program, both):
        assert events.kinds_of(task) == [*BEGINNING, "TaskCompleted"]
        times = [event.event_time for event in events.of(task)]
        assert times == sorted(times)
        for event in events.of(task):
            assert event.session_id == flow.uid
            assert event.backend == "default"
            assert event.attributes["task_type"] == (
                "executable" if task is program else "function"
            )
        end = events.end_of(task)
        started = events.of(task)[4]
        assert end.duration_seconds == pytest.approx(end.event_time - started.event_time)
        assert "incomplete_lifecycle" not in end.attributes
    assert events.of(both)[0].attributes["depends_on"] == [function.uid, program.uid]
    assert events.of(function)[0].attributes["depends_on"] == []
    assert events.end_of(function).attributes["executable"] == "async_identity"
    assert events.of(program)[0].attributes["executable"] == "_echo"
    assert {event.attributes["executable"] for event in events.of(program)[2:]} == {"echo"}
    assert manager.task_count() == {
        "submitted": 3,
        "completed": 3,
        "failed": 0,
        "canceled": 0,
        "running": 0,
    }


async def _echo(word: str) -> str:
    return f"echo {word}"


async def test_events_come_in_order_when_a_plain_function_has_a_timeout() -> None:
    async with observed() as (flow, events, _):
        task = flow.function_task(add)(1, 2, task_description={"timeout": 60})
        assert await task == 3
    assert events.kinds_of(task) == [*BEGINNING, "TaskCompleted"]


async def test_events_come_in_order_when_bodies_run_in_the_engines_loop() -> None:
    fails = [ValueError("first"), None]
    began = asyncio.Event()

    async with observed() as (flow, events, manager):

        @flow.function_task(loop="engine")
        async def hold() -> None:
            began.set()
            await asyncio.get_running_loop().create_future()

        @flow.function_task(loop="engine", retries=1, backoff=0)
        async def second_time(value: Any) -> Any:
            if (error := fails.pop(0)) is not None:
                raise error
            return value

        @flow.function_task(loop="engine", timeout=0.01)
        async def endless() -> None:
            await asyncio.get_running_loop().create_future()

        done = second_time(flow.function_task(identity)(1))
        late, held = endless(), hold()
        assert await done == 1
        await asyncio.wait([late])
        await asyncio.wait_for(began.wait(), GUARD_S)
        held.cancel()
    again = ["asyncflow.TaskRetried", "TaskQueued", "TaskSubmitted"]
    assert events.kinds_of(done) == [*BEGINNING, *again, "TaskCompleted"]
    assert events.kinds_of(late) == [*BEGINNING, "TaskFailed"]
    assert events.kinds_of(held) == [*BEGINNING, "TaskCanceled"]
    assert {event.attributes["task_type"] for event in events.of(done)} == {"function"}
    assert manager.task_count()["running"] == 0


async def test_events_come_in_order_when_a_prompt_is_answered() -> None:
    async with observed(NoopExecutionBackend()) as (flow, events, _):

        @flow.prompt_task
        def ask(question: str) -> str:
            return question

        task = ask("why?")
        await task
    assert events.kinds_of(task) == [*BEGINNING, "TaskCompleted"]
    assert {(e.attributes["task_type"], e.attributes["executable"]) for e in events.of(task)} == {
        ("prompt", "ask")
    }


async def test_each_event_names_its_backend_when_there_are_several() -> None:
    backends = [RuntimeExecutionBackend(name="one"), NoopExecutionBackend("two")]
    async with observed(backends) as (flow, events, _):
        here = flow.function_task(identity)(1)
        there = flow.function_task(backend="two")(identity)(2)
        await asyncio.gather(here, there)
    assert {event.backend for event in events.of(here)} == {"one"}
    assert {event.backend for event in events.of(there)} == {"two"}
    assert events.kinds_of(there) == [*BEGINNING, "TaskCompleted"]


async def test_blocks_have_no_events_of_their_own_when_they_run() -> None:
    async with observed() as (flow, events, _):

        @flow.block
        async def outer() -> Any:
            return await flow.function_task(identity)(3)

        block = outer()
        after = flow.function_task(identity)(block)
        assert await after == 3
    assert events.of(block) == []
    assert events.of(after)[0].attributes["depends_on"] == [block.uid]


async def test_workflow_is_named_in_each_event_when_the_call_is_in_its_scope() -> None:
    async with observed() as (flow, events, _):
        function = flow.function_task(identity)

        @flow.block
        async def block() -> Any:
            inside = function(1)
            await inside
            return inside

        async with flow.workflow_scope("campaign") as name:
            assert name == "campaign"
            scoped, own = function(1), function(1, workflow_id="mine")
            future = block()
            inside = await future
        plain = function(2)
        await asyncio.gather(scoped, own, plain)
    names = {
        task.uid: {event.attributes.get("asyncflow.workflow_id") for event in events.of(task)}
        for task in (scoped, own, inside, plain)
    }
    assert names == {
        scoped.uid: {"campaign"},
        own.uid: {"mine"},
        inside.uid: {future.uid},
        plain.uid: {None},
    }


# --- times -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["runtime", "threads"])
@pytest.mark.parametrize("is_async", [False, True])
async def test_start_is_told_while_the_body_runs_when_it_runs_in_this_process(
    kind: str, is_async: bool
) -> None:
    backend: Any = RuntimeExecutionBackend() if kind == "runtime" else LocalExecutionBackend()
    gate = Gate()

    def plain() -> float:
        gate.hold()
        return time.time()

    async def coroutine() -> float:
        return await asyncio.to_thread(plain)

    async with observed(backend) as (flow, events, manager):
        with gate:
            task = flow.function_task(coroutine if is_async else plain)()
            started = await events.wait_for("TaskStarted", task)
            assert not task.done()
            assert task.state == "RUNNING"
            assert manager.summary()["tasks"]["running"] == 1
        assert started.event_time <= await task
        assert manager.summary()["tasks"]["running"] == 0
    assert events.kinds_of(task) == [*BEGINNING, "TaskCompleted"]


async def test_start_is_told_while_the_program_runs_when_it_is_an_executable(
    tmp_path: Path,
) -> None:
    door = Door(tmp_path)
    async with observed() as (flow, events, _):
        task = flow.executable_task(_program_at)(str(tmp_path / "keys"))
        started = await events.wait_for("TaskStarted", task)
        assert not task.done()
        door.open()
        assert started.event_time <= float((await task).split()[0])
    assert events.kinds_of(task) == [*BEGINNING, "TaskCompleted"]
    door.close()


def _program_at(keys: str) -> str:
    return f"date +%s.%N; head -c 1 {keys}"


@pytest.mark.parametrize("kind", ["runtime", "threads", "processes"])
async def test_start_is_that_of_the_body_when_the_task_had_to_wait_for_a_worker(
    kind: str, lent_pool: Callable[[str], Executor], door: Door
) -> None:
    backend: Any
    if kind == "runtime":
        backend = RuntimeExecutionBackend(Runtime(threads=1, python_threads=1))
    else:
        backend = LocalExecutionBackend(lent_pool(kind))
    async with observed(backend) as (flow, events, _):
        first = flow.function_task(_hold_and_tell)(door)
        second = flow.function_task(_tell)()
        await door.reached()
        await events.wait_for("TaskSubmitted", second)
        submitted = time.time()
        door.open()
        first_ended, second_began = await first, await second
    start = events.of(second)[4]
    assert start.event_type == "TaskStarted"
    assert submitted < first_ended <= start.event_time <= second_began
    assert events.of(first)[4].event_time < submitted
    assert events.end_of(first).duration_seconds >= first_ended - submitted


def _hold_and_tell(door: Door) -> float:
    door.hold()
    return time.time()


def _tell() -> float:
    return time.time()


async def test_tasks_and_workers_are_seen_when_the_backend_is_a_dask_cluster() -> None:
    backend = DaskExecutionBackend({"n_workers": 1, "threads_per_worker": 1, "processes": False})
    async with observed(backend, resource_poll_interval=60) as (flow, events, manager):
        first = flow.function_task(identity)(1)
        second = flow.executable_task(lambda value: ["echo", str(value)])(first)
        assert await second == "1\n"
        assert list(manager.summary()["resources"]) != []
    for task in (first, second):
        told = events.kinds_of(task)
        assert told == [*BEGINNING[:4], *told[4:-1], "TaskCompleted"]
        assert events.end_of(task).duration_seconds > 0
    assert manager.task_count()["completed"] == 2


class Silent(ExecutionBackend):
    """Tells of no beginning, and of an end when it is asked to."""

    def __init__(self) -> None:
        super().__init__("silent")
        self.tasks: list[dict[str, Any]] = []

    async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
        self.tasks += tasks

    async def cancel_task(self, uid: str) -> bool:
        return True

    async def shutdown(self) -> None:
        pass

    def state(self) -> str:
        return "IDLE"


async def test_lifecycle_is_incomplete_when_the_backend_tells_of_no_beginning() -> None:
    backend = Silent()
    async with observed(backend) as (flow, events, _):
        task = flow.function_task(identity)(1)
        submitted = await events.wait_for("TaskSubmitted", task)
        (description,) = backend.tasks
        description["return_value"] = 1
        flow.task_callbacks(description, State.DONE)
        await task
    assert events.kinds_of(task) == [*BEGINNING[:4], "TaskCompleted"]
    end = events.end_of(task)
    assert end.attributes["incomplete_lifecycle"] is True
    assert end.duration_seconds == pytest.approx(end.event_time - submitted.event_time)


async def test_first_beginning_counts_when_the_backend_tells_it_twice() -> None:
    backend = Silent()
    async with observed(backend) as (flow, events, _):
        task = flow.function_task(identity)(1)
        await events.wait_for("TaskSubmitted", task)
        (description,) = backend.tasks
        began = description["started_at"] = time.time()
        flow.task_callbacks(description, State.RUNNING)
        description["started_at"] = began + 1
        flow.task_callbacks(description, State.RUNNING)
        flow.task_callbacks(description, State.DONE)
        await task
    assert events.of(task)[4].event_time == began
    assert events.kinds_of(task) == [*BEGINNING, "TaskCompleted"]


async def test_task_starts_when_it_is_submitted_when_the_backend_tells_an_earlier_time() -> None:
    backend = Silent()
    async with observed(backend) as (flow, events, _):
        task = flow.function_task(identity)(1)
        submitted = await events.wait_for("TaskSubmitted", task)
        (description,) = backend.tasks
        description["started_at"] = submitted.event_time - 5
        flow.task_callbacks(description, State.RUNNING)
    assert events.of(task)[4].event_time == submitted.event_time


def test_beginning_in_another_process_is_known_when_its_note_serves_another_call() -> None:
    notes, begun = Notes(), list[WorkItem]()
    task = DescribedTask(function_task("task.000001", identity, 1))
    call = WorkItem(task, "backend", notes, begun.append)
    pickle.dumps(call)  # as an executor of processes does
    position = call._position
    assert position is not None
    began = time.monotonic()
    notes._write(position, began)
    future: Future[None] = Future()
    future.set_result(None)
    call.finish(future)
    assert notes.reserve() == position
    assert call.began_at() == pytest.approx(time.time() - (time.monotonic() - began), abs=1)


# --- failures and cancellations ----------------------------------------------------------------


async def test_error_is_named_when_a_task_fails() -> None:
    async with observed() as (flow, events, manager):

        @flow.function_task
        def raise_key_error() -> None:
            raise KeyError("k")

        @flow.executable_task
        def run(*words: str) -> Any:
            return words

        failing = {
            "KeyError": raise_key_error(),
            "ExecutableError": run("false"),
            "FileNotFoundError": run("./no-such-program"),
            "CommandError": run(),
            "TaskTimeoutError": run("sleep", "60", task_description={"timeout": 0.05}),
        }
        failing["DependencyFailureError"] = flow.function_task(identity)(failing["KeyError"])
        await asyncio.wait(failing.values())
        late = flow.function_task(identity)(failing["KeyError"])  # which has failed before
        await asyncio.wait([late])
    ends = {name: events.end_of(task) for name, task in failing.items()}
    assert {name: end.error_type for name, end in ends.items()} == {name: name for name in ends}
    assert all(end.attributes["error_type"] == name for name, end in ends.items())
    assert {name for name, end in ends.items() if "incomplete_lifecycle" in end.attributes} == {
        "CommandError",
        "DependencyFailureError",
    }
    assert events.kinds_of(failing["KeyError"]) == [*BEGINNING, "TaskFailed"]
    assert events.kinds_of(failing["CommandError"]) == [*BEGINNING[:2], "TaskFailed"]
    for task in (failing["DependencyFailureError"], late):
        assert events.kinds_of(task) == ["TaskCreated", "TaskFailed"]
        assert events.end_of(task).duration_seconds == 0
    assert manager.task_count()["failed"] == 7
    assert manager.task_count()["running"] == 0
    for task in [*failing.values(), late]:
        assert isinstance(task.exception(), Exception)


async def test_task_is_submitted_again_and_ends_once_when_it_is_tried_again() -> None:
    fails = [ValueError("first"), KeyError("second"), None]

    async with observed() as (flow, events, manager):

        @flow.function_task(retries=5, backoff=0)
        def body() -> float:
            if (error := fails.pop(0)) is not None:
                raise error
            return time.time()

        @flow.executable_task(retries=1, backoff=0)
        def program() -> list[str]:
            return ["false"]

        @flow.block(retries=1, backoff=0)
        async def block() -> None:
            raise ValueError

        task, failing, around = body(), program(), block()
        last = await task
        await asyncio.wait([failing, around])
    again = ["asyncflow.TaskRetried", "TaskQueued", "TaskSubmitted"]
    assert events.kinds_of(task) == [*BEGINNING, *again, *again, "TaskCompleted"]
    first, second = events.of(task)[5:9:3]
    assert [first.attributes["attempt"], second.attributes["attempt"]] == [1, 2]
    assert [first.error_type, second.attributes["error_type"]] == ["ValueError", "KeyError"]
    assert events.of(task)[4].event_time + events.end_of(task).duration_seconds >= last
    assert events.kinds_of(failing) == [*BEGINNING, *again, "TaskFailed"]
    assert events.of(around) == []
    assert isinstance(around.exception(), ValueError)
    assert isinstance(failing.exception(), RuntimeError)
    spans = [span.name for span in manager.read_traces()]
    assert sorted(spans) == ["block", "block", "session", "task", "task"]
    counts = manager.task_count()
    assert (counts["completed"], counts["failed"], counts["running"]) == (1, 1, 0)


async def test_cancellation_is_told_once_when_tasks_are_cancelled_at_any_stage() -> None:
    runtime = Runtime(threads=1, python_threads=1)
    gate, began = Gate(), threading.Event()

    def body(_: Any = None) -> None:
        began.set()
        gate.hold()

    async with observed(RuntimeExecutionBackend(runtime)) as (flow, events, manager):
        with gate:
            running = flow.function_task(body)()
            await reached(began)
            await events.wait_for("TaskStarted", running)
            queued = flow.function_task(body)()
            await events.wait_for("TaskSubmitted", queued)
            waiting = flow.function_task(body)(running)
            new = flow.function_task(body)()
            for task in (new, queued, running):
                task.cancel()
                task.cancel()
    assert events.kinds_of(running) == [*BEGINNING, "TaskCanceled"]
    assert events.kinds_of(queued) == [*BEGINNING[:4], "TaskCanceled"]
    assert events.kinds_of(waiting) == ["TaskCreated", "TaskCanceled"]
    assert events.kinds_of(new) == ["TaskCreated", "TaskCanceled"]
    assert manager.task_count()["canceled"] == 4
    assert "incomplete_lifecycle" not in events.end_of(running).attributes
    for task in (queued, waiting, new):
        assert events.end_of(task).attributes["incomplete_lifecycle"] is True
    runtime.shutdown()


async def test_what_is_unfinished_is_cancelled_when_the_engine_is_shut_down() -> None:
    async with observed() as (flow, events, manager):

        @flow.block
        async def block() -> None:
            await flow.function_task(asyncio.sleep)(3600)

        future = block()
        program = flow.executable_task(lambda: ["sleep", "3600"])()
        await events.wait_for("TaskStarted", program)
    (inside,) = [
        e for e in events.all if e.event_type == "TaskCanceled" and e.task_id != program.uid
    ]
    assert inside.attributes["asyncflow.workflow_id"] == future.uid
    assert events.kinds_of(program) == [*BEGINNING, "TaskCanceled"]
    assert manager.task_count()["running"] == 0


async def test_each_task_has_one_end_in_its_order_when_a_storm_of_them_runs() -> None:
    choose = random.Random(7)
    async with observed() as (flow, events, manager):

        @flow.function_task
        def maybe_fail(*_: Any, fails: bool) -> None:
            if fails:
                raise ValueError

        tasks: list[Any] = []
        for number in range(400):
            depends_on = choose.sample(tasks, min(len(tasks), choose.randrange(3)))
            tasks.append(maybe_fail(*depends_on, fails=choose.random() < 0.05))
            if choose.random() < 0.05:
                choose.choice(tasks).cancel()
            if number % 50 == 49:
                await asyncio.sleep(0)
        await asyncio.wait(tasks)
    ends: dict[str, int] = defaultdict(int)
    for task in tasks:
        *before, end = events.kinds_of(task)
        assert end in ENDS
        assert before == BEGINNING[: len(before)]
        assert before
        ends[end] += 1
        if task.cancelled():
            assert end == "TaskCanceled"
        else:
            assert (task.exception() is None) == (end == "TaskCompleted")
    assert min(ends.values()) > 5
    counts = manager.task_count()
    assert (counts["completed"], counts["failed"], counts["canceled"], counts["running"]) == (
        ends["TaskCompleted"],
        ends["TaskFailed"],
        ends["TaskCanceled"],
        0,
    )


async def test_service_has_one_end_when_it_is_ready_before_its_body_ends() -> None:
    gate = Gate()
    async with observed() as (flow, events, _):
        with gate:

            @flow.function_task(service=True)
            def serve() -> None:
                gate.hold()

            task = serve()
            await events.wait_for("TaskStarted", task)
            task.set_result("ready")
    assert events.kinds_of(task) == [*BEGINNING, "TaskCompleted"]


async def test_loop_complains_of_an_error_that_nobody_looks_at_when_telemetry_does() -> None:
    complaints: list[Any] = []
    async with observed() as (flow, _, _):

        @flow.function_task
        def fail() -> None:
            raise ValueError("nobody looks")

        task = fail()
        await asyncio.wait([task])
        asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
        del task
        gc.collect()
    assert [str(told["exception"]) for told in complaints] == ["nobody looks"]


# --- spans -------------------------------------------------------------------------------------


def tree_of(manager: Any) -> dict[str, str]:
    """Return the name of the span around each: of tasks by number, of scopes by workflow."""
    spans = manager.read_traces()
    names = {span.context.span_id: _name_of(span) for span in spans}
    assert len({span.context.trace_id for span in spans}) == 1
    assert len(set(names.values())) == len(spans)
    return {_name_of(s): names[s.parent.span_id] for s in spans if s.parent is not None}


def _name_of(span: Any) -> str:
    key = "task_id" if span.name == "task" else "asyncflow.workflow_id"
    return str(span.attributes.get(key, span.name))


async def test_spans_are_nested_when_blocks_and_workflows_are() -> None:
    async with observed() as (flow, _, manager):
        function = flow.function_task(identity)

        @flow.block
        async def inner() -> None:
            await function(1)

        @flow.block
        async def outer() -> None:
            before = function(2)
            await inner()
            await function(before)

        async with flow.workflow_scope("campaign"):
            await outer()
            await function(3)
        await function(4)
    assert tree_of(manager) == {
        "campaign": "session",
        "block.000001": "campaign",
        "task.000002": "block.000001",
        "block.000003": "block.000001",
        "task.000004": "block.000003",
        "task.000005": "block.000001",
        "task.000006": "campaign",
        "task.000007": "session",
    }
    spans = {_name_of(span): span for span in manager.read_traces()}
    assert spans["task.000002"].attributes["asyncflow.workflow_id"] == "block.000001"
    assert spans["task.000007"].attributes["status"] == "completed"
    outermost, innermost = spans["block.000001"], spans["task.000004"]
    assert outermost.start_time <= innermost.start_time <= innermost.end_time <= outermost.end_time


async def test_span_of_the_block_ends_when_its_body_fails_or_is_cancelled() -> None:
    async with observed() as (flow, _, manager):

        @flow.block
        async def fail() -> None:
            raise ValueError

        @flow.block
        async def wait() -> None:
            await asyncio.sleep(3600)

        failed = fail()
        await asyncio.wait([failed])
        wait()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert isinstance(failed.exception(), ValueError)
    assert tree_of(manager) == {"block.000001": "session", "block.000002": "session"}


async def test_span_of_a_task_is_in_the_session_when_its_caller_knows_of_none() -> None:
    before = contextvars.copy_context()
    async with observed() as (flow, _, manager):
        task = before.run(flow.function_task(identity), 1)
        await task
    assert tree_of(manager) == {task.uid: "session"}


async def test_session_is_in_the_span_of_the_program_when_there_is_one() -> None:
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider().get_tracer("program")
    with tracer.start_as_current_span("program") as span:
        async with observed() as (_, _, manager):
            pass
        assert trace.get_current_span() is span
        async with observed() as (_, _, second):
            pass
        assert trace.get_current_span() is span
    for each in (manager, second):
        (session,) = each.read_traces()
        assert session.parent.span_id == span.get_span_context().span_id


async def test_sessions_are_apart_when_one_engine_follows_another() -> None:
    traces = set()
    for _ in range(2):
        async with observed() as (flow, _, manager):
            await flow.function_task(identity)(1)
        traces |= {span.context.trace_id for span in manager.read_traces()}
    assert len(traces) == 2


async def test_body_sees_the_span_of_its_scope_when_it_makes_its_own() -> None:
    async with observed() as (flow, _, manager):

        @flow.function_task
        def current() -> int:
            number: int = trace.get_current_span().get_span_context().span_id
            return number

        async with flow.workflow_scope("campaign"):
            seen = await current()
    (scope,) = [span for span in manager.read_traces() if span.name == "workflow"]
    assert seen == scope.context.span_id


# --- the manager -------------------------------------------------------------------------------


async def test_options_reach_the_manager_when_they_are_given(tmp_path: Path) -> None:
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from rhapsody.telemetry.manager import TelemetryManager

    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    async with observed(
        checkpoint_interval=60,
        checkpoint_path=tmp_path / "telemetry",
        span_processors=[SimpleSpanProcessor(exporter)],
        metric_readers=[reader],
        resource=Resource({"service.name": "campaign"}),
    ) as (flow, _, manager):
        assert isinstance(manager, TelemetryManager)
        assert manager.session_id == flow.uid
        await flow.function_task(identity)(1)
        await asyncio.sleep(0)
    assert {span.name for span in exporter.get_finished_spans()} == {"session", "task"}
    assert exporter.get_finished_spans()[0].resource.attributes["service.name"] == "campaign"
    (file,) = (tmp_path / "telemetry").iterdir()
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert {line["section"] for line in lines} == {"event", "metric", "span"}
    told = [line["name"] for line in lines if line["section"] == "event"]
    assert told == ["SessionStarted", *BEGINNING, "TaskCompleted", "SessionEnded"]


async def test_stop_does_nothing_more_when_it_is_called_again() -> None:
    flow = await WorkflowEngine.create()
    manager = await flow.start_telemetry()
    events = Events(manager)
    await flow.function_task(identity)(1)
    await flow.shutdown()
    await manager.stop()
    await asyncio.gather(manager.stop(), manager.stop())
    assert [event.event_type for event in events.all].count("SessionEnded") == 1
    assert manager.summary()["tasks"]["completed"] == 1
    assert manager.session_duration() > 0


async def test_engine_goes_on_without_telemetry_when_the_manager_is_stopped_before_it() -> None:
    backend = RuntimeExecutionBackend()
    async with await WorkflowEngine.create(backend) as flow:
        manager = await flow.start_telemetry()
        events = Events(manager)
        await flow.function_task(identity)(1)
        await asyncio.create_task(manager.stop())
        assert (flow._telemetry, backend.report_running) == (None, False)
        count = len(events.all)
        await flow.function_task(identity)(2)

        @flow.block
        async def block() -> None:
            pass

        async with flow.workflow_scope():
            await block()
        assert len(events.all) == count
        await manager.stop()  # in the task that has started it

        again = await flow.start_telemetry()
        assert again is not manager
        await flow.function_task(identity)(3)
    assert again.task_count()["completed"] == 1


def test_telemetry_is_complete_when_a_signal_shuts_the_engine_down(
    run_script: Script, tmp_path: Path
) -> None:
    source = f"""
        import asyncio
        import signal
        from dftracer.asyncflow import WorkflowEngine

        async def main():
            flow = await WorkflowEngine.create()
            await flow.start_telemetry(checkpoint_path={str(tmp_path)!r})
            flow.executable_task(lambda: ["sleep", "3600"])()
            await asyncio.sleep(0)
            signal.raise_signal(signal.SIGTERM)
            await flow.run()
            await flow.shutdown()

        asyncio.run(main())
        """
    run_script(source)
    (file,) = tmp_path.glob("*.jsonl")
    lines = file.read_text(encoding="utf-8").splitlines()
    told = [json.loads(line)["name"] for line in lines if "event_id" in line]
    assert told[-2:] == ["TaskCanceled", "SessionEnded"]


async def test_engine_is_as_before_when_telemetry_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with await WorkflowEngine.create() as flow:
        with pytest.raises(FileExistsError):
            await flow.start_telemetry(checkpoint_path=str(tmp_path / "file"))
        assert flow._telemetry is None
        assert await flow.function_task(identity)(1) == 1
        assert (await flow.start_telemetry()).session_id == flow.uid


async def test_runtime_error_is_raised_when_telemetry_is_started_again_or_too_late() -> None:
    async with await WorkflowEngine.create() as flow:
        await flow.start_telemetry()
        with pytest.raises(RuntimeError, match="has its telemetry already"):
            await flow.start_telemetry()
    with pytest.raises(EngineShutdownError, match="it is shut down"):
        await flow.start_telemetry()


def test_import_error_names_the_extra_when_rhapsody_is_missing(run_script: Script) -> None:
    source = """
        import asyncio
        import sys
        sys.modules["rhapsody"] = None
        from dftracer.asyncflow import WorkflowEngine

        async def main():
            async with await WorkflowEngine.create() as flow:
                try:
                    await flow.start_telemetry()
                except ImportError as error:
                    print(error)

        asyncio.run(main())
        """
    assert "pip install 'dftracer-asyncflow[telemetry]'" in run_script(source)


# --- off ---------------------------------------------------------------------------------------


def test_nothing_is_imported_or_asked_when_telemetry_is_off(run_script: Script) -> None:
    source = """
        import asyncio
        import sys
        from dftracer.asyncflow import RuntimeExecutionBackend, WorkflowEngine

        async def main():
            backend = RuntimeExecutionBackend()
            async with await WorkflowEngine.create(backend) as flow:
                states = []
                backend.register_callback(
                    lambda task, state: (states.append(state), flow.task_callbacks(task, state))
                )
                async with flow.workflow_scope():
                    assert await flow.function_task(pow)(2, 3) == 8
                    await flow.executable_task(lambda: ["true"])()
                assert states == ["DONE", "DONE"], states
                assert not backend.report_running

        asyncio.run(main())
        names = {name.partition(".")[0] for name in sys.modules}
        assert not names & {"rhapsody", "opentelemetry"}, names
        assert "dftracer.asyncflow.observe.telemetry" not in sys.modules
        """
    run_script(source)


async def test_backend_is_not_asked_any_more_when_its_next_engine_has_no_telemetry() -> None:
    backend = await RuntimeExecutionBackend()
    flow = await WorkflowEngine.create(backend)
    await flow.start_telemetry()
    assert backend.report_running
    await flow.shutdown(skip_execution_backend=True)
    assert not backend.report_running
    async with await WorkflowEngine.create(backend) as second:
        assert await second.function_task(identity)(1) == 1
