"""What a runtime tells of itself: progress, failures, log records, and who is running here."""

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from handle_support import ended

from dftracer.utils import Runtime, TaskHandle, TaskTimeoutError, current_task

GUARD_S = 30
"""How long a body or a test waits for what must come."""

PROGRESS_KEYS = set("total completed running queued failed cancelled workers tasks errors".split())
WORKER_KEYS = set("id lane idle task queue_depth".split())
TASK_KEYS = set(
    "task_id name state queued_duration_ms execution_duration_ms total_subtasks "
    "completed_subtasks progress_pct location children".split()
)


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime(threads=2, io_threads=2, python_threads=4) as runtime:
        yield runtime


@pytest.fixture
def one_worker() -> Iterator[Runtime]:
    with Runtime(threads=1, io_threads=1, python_threads=1) as runtime:
        yield runtime


def wait_until(predicate: Callable[[], bool]) -> None:
    """Wait for what no event tells."""
    guard = time.monotonic() + GUARD_S
    while not predicate():
        assert time.monotonic() < guard
        time.sleep(0.001)


@contextmanager
def stuck(submit: Callable[..., TaskHandle[bool]], name: str = "stuck") -> Iterator[Any]:
    """Keep a worker inside a body for the time of the block."""
    lock = threading.Lock()
    with lock:
        handle = submit(lock.acquire, name=name)
        wait_until(lambda: handle.state == "running")
        yield handle
    ended(handle)


@contextmanager
def stuck_file(path: Path) -> Iterator[Callable[[], None]]:
    """Make a file whose readers are stuck until the block ends; gives what waits for the first."""
    os.mkfifo(path)
    descriptors: list[int] = []
    try:
        yield lambda: descriptors.append(os.open(path, os.O_WRONLY))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def echo(value: Any) -> Any:
    return value


async def echo_later(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


def fail(error: BaseException) -> None:
    raise error


async def fail_later(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


def flat(tasks: Any) -> dict[str, Any]:
    """All tasks of a report by name."""
    found: dict[str, Any] = {}
    for task in tasks:
        found[task["name"]] = task
        found.update(flat(task["children"]))
    return found


def counts(runtime: Runtime) -> dict[str, int]:
    progress: dict[str, Any] = dict(runtime.get_progress())
    names = ("total", "completed", "failed", "cancelled", "running", "queued")
    return {name: progress[name] for name in names if progress[name]}


# --- keys, counts and states -------------------------------------------------------------------


def test_progress_has_its_keys_when_nothing_was_submitted() -> None:
    with Runtime(threads=3, io_threads=2, python_threads=2) as runtime:
        progress = runtime.get_progress()
        assert set(progress) == PROGRESS_KEYS
        assert counts(runtime) == {}
        assert (progress["tasks"], progress["errors"]) == ([], [])
        assert [worker["lane"] for worker in progress["workers"]] == ["compute"] * 3
        assert len({worker["id"] for worker in progress["workers"]}) == 3
        for worker in progress["workers"]:
            assert set(worker) == WORKER_KEYS
            assert (worker["idle"], worker["task"], worker["queue_depth"]) == (True, "", 0)


def test_every_task_is_listed_when_tasks_are_of_every_kind(
    runtime: Runtime, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    handles: list[TaskHandle[Any]] = [
        runtime.submit(echo, 1, name="plain"),
        runtime.submit(echo_later, 1, name="coroutine"),
        runtime.submit(functools.partial(echo_later, 1), name="passed on"),
        runtime.submit_io(echo, 1, name="io"),
        runtime.run_process(["true"], name="process"),
        runtime.hash_files([file], name="hash"),
        runtime.stage_file(file, tmp_path / "copy", name="stage"),
    ]
    runtime.wait_all()
    tasks = runtime.get_progress()["tasks"]
    assert [task["name"] for task in tasks] == [handle.name for handle in handles]
    assert [task["task_id"] for task in tasks] == [handle.task_id for handle in handles]
    for task in tasks:
        assert set(task) == TASK_KEYS
        assert (task["state"], task["progress_pct"], task["children"]) == ("completed", 100.0, [])
        assert task["queued_duration_ms"] >= 0
        assert task["execution_duration_ms"] >= 0
    assert counts(runtime) == {"total": 7, "completed": 7}


def test_states_are_told_when_tasks_are_in_each(one_worker: Runtime) -> None:
    done = one_worker.submit(echo, 1, name="done")
    failed = one_worker.submit(fail, ValueError("x"), name="failed")
    ended(failed)
    with stuck(one_worker.submit, "running"):
        queued = one_worker.submit(echo, 1, name="queued")
        cancelled = one_worker.submit(echo, 1, name="cancelled")
        cancelled.cancel()
        tasks = flat(one_worker.get_progress()["tasks"])
        assert {name: task["state"] for name, task in tasks.items()} == {
            "done": "completed",
            **{name: name for name in ("failed", "running", "queued", "cancelled")},
        }
        assert tasks["queued"]["execution_duration_ms"] == 0
        assert tasks["queued"]["queued_duration_ms"] > 0
        assert tasks["running"]["execution_duration_ms"] > 0
        assert {name: task["progress_pct"] for name, task in tasks.items()} == {
            "done": 100.0,
            "failed": 100.0,
            "cancelled": 100.0,
            "running": 0.0,
            "queued": 0.0,
        }
        assert counts(one_worker) == {
            "total": 5,
            "completed": 1,
            "failed": 1,
            "cancelled": 1,
            "running": 1,
            "queued": 1,
        }
    del done, failed, queued, cancelled


def test_durations_stand_still_when_a_task_has_ended(one_worker: Runtime) -> None:
    handle = one_worker.submit(echo, 1)
    handle.wait(GUARD_S)
    (before,) = one_worker.get_progress()["tasks"]
    (after,) = one_worker.get_progress()["tasks"]
    assert before == after


def test_durations_grow_when_a_task_waits_or_runs(one_worker: Runtime) -> None:
    with stuck(one_worker.submit, "running"):
        queued = one_worker.submit(echo, 1, name="queued")
        before = flat(one_worker.get_progress()["tasks"])
        after = flat(one_worker.get_progress()["tasks"])
        assert (
            after["running"]["execution_duration_ms"] > before["running"]["execution_duration_ms"]
        )
        assert after["running"]["queued_duration_ms"] == before["running"]["queued_duration_ms"]
        assert after["queued"]["queued_duration_ms"] > before["queued"]["queued_duration_ms"]
    queued.wait(GUARD_S)


def test_ended_tasks_disappear_and_stay_counted_when_their_handles_are_gone(
    one_worker: Runtime,
) -> None:
    handle = one_worker.submit(echo, 1)
    with stuck(one_worker.submit, "held by nobody"):
        one_worker.submit(echo, 2, name="queued and held by nobody")
        names = set(flat(one_worker.get_progress()["tasks"]))
        assert names >= {"held by nobody", "queued and held by nobody"}
    one_worker.wait_all()
    del handle
    one_worker.shutdown()  # the workers have let go of theirs
    assert one_worker.get_progress()["tasks"] == []
    assert counts(one_worker) == {"total": 3, "completed": 3}


def test_counts_add_up_when_tasks_of_every_kind_come_and_go(
    runtime: Runtime, tmp_path: Path
) -> None:
    """The total is the number of tasks accepted so far: never one less, nor one counted twice."""
    stop, seen = threading.Event(), 0
    lock = threading.Lock()
    accepted = 0
    wrong: list[Any] = []

    def watch() -> int:
        looks = 0
        while not stop.is_set():
            with lock:  # nothing is accepted meanwhile; tasks begin and end as they like
                progress: dict[str, Any] = dict(runtime.get_progress())
                expected = accepted
            looks += 1
            kinds = ("completed", "failed", "cancelled", "running", "queued")
            if not progress["total"] == sum(progress[kind] for kind in kinds) == expected:
                wrong.append((expected, {kind: progress[kind] for kind in ("total", *kinds)}))
        return looks

    kinds: list[Callable[[], Any]] = [
        lambda: runtime.submit(echo, 1),
        lambda: runtime.submit(echo_later, 1),
        lambda: runtime.submit_io(echo, 1),
        lambda: runtime.hash_files([]),
        lambda: runtime.stage_file(tmp_path / "missing", tmp_path / "target"),
        lambda: runtime.submit(fail, ValueError()),
        lambda: runtime.submit(echo, 1).cancel(),
    ]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        watchers = [pool.submit(watch) for _ in range(2)]
        try:
            for number in range(700):
                with lock:
                    kinds[number % len(kinds)]()
                    accepted += 1
            runtime.wait_all()
        finally:
            stop.set()
        seen = sum(watcher.result(GUARD_S) for watcher in watchers)
    assert seen
    assert wrong == []


def test_total_is_right_when_native_tasks_end_while_it_is_counted(runtime: Runtime) -> None:
    wrong: list[tuple[int, int]] = []
    accepted = 0
    for _ in range(150):
        batch = [runtime.hash_files([]) for _ in range(20)]
        accepted += len(batch)
        while True:
            over = all(handle.done() for handle in batch)
            total = runtime.get_progress()["total"]
            if total != accepted:
                wrong.append((total, accepted))
            if over:
                break
    assert wrong == []


# --- children ----------------------------------------------------------------------------------


def test_task_is_a_child_when_submitted_inside_a_plain_body(runtime: Runtime) -> None:
    handles: list[TaskHandle[Any]] = []

    def leaf() -> None: ...

    def middle() -> None:
        handles.extend(runtime.submit(leaf, name=f"leaf {number}") for number in range(2))

    def root() -> None:
        handles.append(runtime.submit(middle, name="middle"))

    handles.append(runtime.submit(root, name="root"))
    runtime.wait_all()
    (top,) = runtime.get_progress()["tasks"]
    assert top["name"] == "root"
    assert (top["total_subtasks"], top["completed_subtasks"]) == (1, 1)
    (child,) = top["children"]
    assert child["name"] == "middle"
    assert (child["total_subtasks"], child["completed_subtasks"]) == (2, 2)
    assert [leaf["name"] for leaf in child["children"]] == ["leaf 0", "leaf 1"]


@pytest.mark.parametrize("wait", [False, True])
def test_task_is_a_child_when_submitted_inside_a_coroutine(runtime: Runtime, wait: bool) -> None:
    handles: list[TaskHandle[Any]] = []

    async def inner(name: str) -> None:
        await asyncio.sleep(0)
        handles.append(runtime.submit(echo, 1, name=f"first of {name}"))
        if wait:
            await handles[-1]
        handles.append(runtime.submit(echo_later, 1, name=f"second of {name}"))

    async def root(name: str) -> None:
        await asyncio.gather(inner(name), asyncio.create_task(asyncio.sleep(0)))

    roots = [runtime.submit(root, f"root {n}", name=f"root {n}") for n in range(5)]
    runtime.wait_all()
    tasks = runtime.get_progress()["tasks"]
    assert [task["name"] for task in tasks] == [f"root {n}" for n in range(5)]
    for task in tasks:
        names = [child["name"] for child in task["children"]]
        assert names == [f"first of {task['name']}", f"second of {task['name']}"]
    assert all(handle.state == "done" for handle in roots)


def test_native_and_io_tasks_are_children_when_submitted_inside_a_task(
    runtime: Runtime, tmp_path: Path
) -> None:
    def body() -> list[TaskHandle[Any]]:
        return [
            runtime.submit_io(echo, 1, name="io"),
            runtime.run_process(["true"], name="process"),
            runtime.hash_files([], name="hash"),
            runtime.stage_file(tmp_path / "missing", tmp_path / "x", name="stage"),
        ]

    handle = runtime.submit_io(body, name="root")
    runtime.wait_all()
    (root,) = runtime.get_progress()["tasks"]
    assert [child["name"] for child in root["children"]] == ["io", "process", "hash", "stage"]
    assert (root["total_subtasks"], root["completed_subtasks"]) == (4, 4)
    handle.get(GUARD_S)


def test_child_is_the_waiters_own_when_the_body_runs_on_the_waiters_stack(
    one_worker: Runtime,
) -> None:
    handles: list[TaskHandle[Any]] = []

    def inner() -> None:
        handles.append(one_worker.submit(echo, 1, name="grandchild"))

    def root() -> None:
        child = one_worker.submit(inner, name="child")
        handles.append(child)
        child.get()
        handles.append(one_worker.submit(echo, 1, name="second child"))

    handles.append(one_worker.submit(root, name="root"))
    one_worker.wait_all()
    (top,) = one_worker.get_progress()["tasks"]
    assert [child["name"] for child in top["children"]] == ["child", "second child"]
    assert [child["name"] for child in top["children"][0]["children"]] == ["grandchild"]


def test_progress_grows_when_one_child_after_the_other_ends(runtime: Runtime) -> None:
    gates = [threading.Event() for _ in range(2)]
    begun: concurrent.futures.Future[list[TaskHandle[bool]]] = concurrent.futures.Future()
    release = threading.Event()

    def root() -> None:
        begun.set_result([runtime.submit(gate.wait, GUARD_S) for gate in gates])
        assert release.wait(GUARD_S)

    handle = runtime.submit(root, name="root")
    children = begun.result(GUARD_S)
    for count in range(3):
        task = flat(runtime.get_progress()["tasks"])["root"]
        assert (task["state"], task["total_subtasks"]) == ("running", 2)
        assert (task["completed_subtasks"], task["progress_pct"]) == (count, 50.0 * count)
        if count < 2:
            gates[count].set()
            children[count].wait(GUARD_S)
    release.set()
    handle.wait(GUARD_S)
    assert runtime.get_progress()["tasks"][0]["progress_pct"] == 100.0


def test_child_is_at_the_top_when_its_parent_is_gone(runtime: Runtime) -> None:
    child = runtime.submit(lambda: runtime.submit(echo, 1, name="child")).get(GUARD_S)
    runtime.shutdown()
    assert [task["name"] for task in runtime.get_progress()["tasks"]] == ["child"]
    assert child.get(GUARD_S) == 1


def test_task_of_another_runtime_is_no_child_here_when_submitted_inside_a_task(
    runtime: Runtime, one_worker: Runtime
) -> None:
    other = runtime.submit(lambda: one_worker.submit(echo, 1, name="other")).get(GUARD_S)
    same_id = one_worker.submit(echo, 1, name="same id as the parent")
    one_worker.wait_all()
    assert {task["name"] for task in one_worker.get_progress()["tasks"]} == {
        "other",
        "same id as the parent",
    }
    del other, same_id


# --- location, workers, errors -----------------------------------------------------------------


def test_location_is_the_place_of_the_definition_when_there_is_one(runtime: Runtime) -> None:
    class Pipeline:
        def run(self) -> None: ...

    functions: list[Callable[..., Any]] = [echo, echo_later, Pipeline().run]
    handles = [runtime.submit(f, *([1] if f != functions[2] else [])) for f in functions]
    handles.append(runtime.submit(abs, -1))
    handles.append(runtime.run_process(["true"]))
    runtime.wait_all()
    locations = [task["location"] for task in runtime.get_progress()["tasks"]]
    codes = [function.__code__ for function in functions]  # type: ignore[attr-defined]
    file = os.path.basename(__file__)
    assert locations == [*(f"{file}:{code.co_firstlineno}" for code in codes), "", ""]


@pytest.mark.parametrize(("method", "lane"), [("submit", "python"), ("submit_io", "io")])
def test_worker_is_listed_with_its_lane_when_it_has_started(
    one_worker: Runtime, method: str, lane: str
) -> None:
    submit = getattr(one_worker, method)
    with stuck(submit, "the task"):
        queued = [submit(echo, number) for number in range(3)]
        workers = one_worker.get_progress()["workers"]
        assert [worker["lane"] for worker in workers] == ["compute", lane]
        assert set(workers[1]) == WORKER_KEYS
        assert (workers[1]["idle"], workers[1]["task"]) == (False, "the task")
        assert workers[1]["queue_depth"] == 3
        assert (workers[0]["idle"], workers[0]["queue_depth"]) == (True, 0)
    for handle in queued:
        handle.wait(GUARD_S)
    wait_until(lambda: one_worker.get_progress()["workers"][1]["idle"])
    worker = one_worker.get_progress()["workers"][1]
    assert (worker["task"], worker["queue_depth"]) == ("", 0)


def test_coroutine_worker_is_idle_when_its_body_is_suspended(one_worker: Runtime) -> None:
    started, suspend = threading.Event(), threading.Event()
    go: concurrent.futures.Future[Callable[[], Any]] = concurrent.futures.Future()

    async def body() -> None:
        event, loop = asyncio.Event(), asyncio.get_running_loop()
        go.set_result(lambda: loop.call_soon_threadsafe(event.set))
        started.set()
        assert suspend.wait(GUARD_S)
        await event.wait()

    def worker() -> Any:
        (found,) = [w for w in one_worker.get_progress()["workers"] if w["lane"] == "coroutine"]
        return found

    handle = one_worker.submit(body, name="body")
    assert started.wait(GUARD_S)
    try:
        assert (worker()["idle"], worker()["task"]) == (False, "body")
        suspend.set()
        wait_until(lambda: bool(worker()["idle"]))
        assert handle.state == "running"
    finally:
        suspend.set()
        go.result(GUARD_S)()
    handle.get(GUARD_S)


def test_compute_workers_are_busy_when_file_work_runs(runtime: Runtime, tmp_path: Path) -> None:
    with stuck_file(tmp_path / "fifo") as wait_for_reader:
        handle = runtime.hash_files([tmp_path / "fifo"])
        wait_for_reader()
        workers = runtime.get_progress()["workers"]
        assert [worker["lane"] for worker in workers] == ["compute", "compute"]
        assert sum(not worker["idle"] for worker in workers) == 1
    handle.wait(GUARD_S)
    wait_until(lambda: all(worker["idle"] for worker in runtime.get_progress()["workers"]))


def test_errors_are_listed_until_cleared_when_tasks_fail(runtime: Runtime) -> None:
    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    failed = [
        runtime.submit(fail, ValueError("text"), name="plain"),
        runtime.submit(fail_later, KeyError("key"), name="coroutine"),
        runtime.submit(fail, SystemExit(), name="exit"),
        runtime.submit(fail, UnprintableError(), name="unprintable"),
        runtime.run_process(["/nowhere/program"], name="process"),
    ]
    runtime.wait_all()
    errors = runtime.get_progress()["errors"]
    assert {error["name"]: error["task_id"] for error in errors} == {
        handle.name: handle.task_id for handle in failed
    }
    assert all(error["message"] == error["error"] for error in errors)
    texts = {error["name"]: error["message"] for error in errors}
    assert (texts["plain"], texts["exit"]) == ("ValueError: text", "SystemExit")
    assert texts["coroutine"] == "KeyError: 'key'"
    assert "UnprintableError" in texts["unprintable"]
    assert "/nowhere/program" in texts["process"]
    runtime.clear_failed()
    assert runtime.get_progress()["errors"] == []
    assert counts(runtime)["failed"] == 5


# --- error callback ----------------------------------------------------------------------------


@pytest.mark.parametrize("lane", ["python", "coroutine", "io"])
async def test_error_callback_has_returned_when_waiters_wake(runtime: Runtime, lane: str) -> None:
    calls: list[Any] = []
    gate, error = threading.Event(), ValueError("x")

    def plain() -> None:
        assert gate.wait(GUARD_S)
        raise error

    async def coroutine() -> None:
        plain()

    def tell(handle: TaskHandle[Any], exception: BaseException) -> None:
        for _ in range(200):
            runtime.get_progress()  # time for a waiter to wake, were it not for this
        calls.append((handle, exception, handle.state))
        calls.append(threading.current_thread().name)

    async def wait() -> int:
        with contextlib.suppress(ValueError):
            await handle
        return len(calls)

    runtime.set_error_callback(tell)
    handle: TaskHandle[None]
    if lane == "io":
        handle = runtime.submit_io(plain)
    else:
        handle = runtime.submit(plain if lane == "python" else coroutine)
    handle.add_done_callback(lambda _: calls.append("done callback"))
    waiter = asyncio.ensure_future(wait())
    await asyncio.sleep(0)  # now it waits
    gate.set()
    assert await waiter >= 2
    runtime.wait_all()
    assert calls[0] == (handle, error, "failed")
    assert calls[1].startswith(f"dft-{lane}-")
    assert calls[2] == "done callback"


def test_error_callback_is_told_of_native_tasks_when_they_fail(
    runtime: Runtime, tmp_path: Path
) -> None:
    told: dict[str, str] = {}
    runtime.set_error_callback(lambda h, e: told.__setitem__(h.name, type(e).__name__))
    missing = tmp_path / "missing"
    runtime.run_process(["/nowhere/program"], name="process")
    runtime.run_process(["sleep", "600"], timeout=0.001, name="timeout")
    runtime.hash_files([missing], name="hash")
    runtime.stage_file(missing, tmp_path / "target", name="stage")
    runtime.submit_io(fail, OSError(), name="io")
    runtime.submit(echo, 1, name="good")
    runtime.run_process(["false"], name="exit code")
    runtime.wait_all()
    assert told == {
        "process": "FileNotFoundError",
        "timeout": "TaskTimeoutError",
        "hash": "FileNotFoundError",
        "stage": "FileNotFoundError",
        "io": "OSError",
    }


def test_error_callback_is_told_of_a_deadline_but_not_of_a_cancellation(
    one_worker: Runtime,
) -> None:
    told: list[Any] = []
    one_worker.set_error_callback(lambda handle, error: told.append((handle, type(error))))
    with stuck(one_worker.submit) as blocker:
        one_worker.submit(echo, 1).cancel()
        one_worker.set_timeout(1)
        with contextlib.suppress(TaskTimeoutError):
            blocker.get(GUARD_S)
        one_worker.wait_all()  # a task counts as ended when its error callback has returned
    assert told == [(blocker, TaskTimeoutError)]


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("body", [fail, fail_later])
def test_error_is_logged_and_stops_nothing_when_the_error_callback_raises(
    one_worker: Runtime,
    caplog: pytest.LogCaptureFixture,
    kind: type[BaseException],
    body: Callable[..., Any],
) -> None:
    caplog.set_level(logging.ERROR, "dftracer.utils")
    error, original = kind("of the callback"), LookupError("of the task")
    one_worker.set_error_callback(lambda *_: fail(error))
    handle = one_worker.submit(body, original)
    with pytest.raises(LookupError) as caught:
        handle.get(GUARD_S)
    assert caught.value is original
    assert one_worker.submit(echo, 1).get(GUARD_S) == 1
    assert one_worker.submit(echo_later, 1).get(GUARD_S) == 1
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [error]


def test_error_callback_is_not_called_when_taken_back(one_worker: Runtime) -> None:
    told: list[str] = []
    one_worker.set_error_callback(lambda handle, _: told.append(handle.name))
    one_worker.submit(fail, ValueError(), name="before")
    one_worker.wait_all()
    one_worker.set_error_callback(None)
    one_worker.submit(fail, ValueError(), name="after")
    one_worker.wait_all()
    assert told == ["before"]


def test_error_callback_may_use_the_runtime_when_called(one_worker: Runtime) -> None:
    seen: list[Any] = []

    def tell(handle: TaskHandle[Any], _: BaseException) -> None:
        seen.append(one_worker.get_progress()["failed"])
        seen.append(one_worker.get_failed() == [handle])
        one_worker.set_error_callback(None)
        seen.append(one_worker.submit(echo, 3))

    one_worker.set_error_callback(tell)
    one_worker.submit(fail, ValueError())
    one_worker.wait_all()
    assert seen[:2] == [1, True]
    assert seen[2].get(GUARD_S) == 3


# --- is_responsive -----------------------------------------------------------------------------


def test_runtime_is_responsive_when_idle_or_busy_for_a_moment(one_worker: Runtime) -> None:
    assert one_worker.is_responsive()
    with stuck(one_worker.submit):
        assert one_worker.is_responsive()
        queued = one_worker.submit(echo, 1)
        assert one_worker.is_responsive()
    queued.wait(GUARD_S)
    assert one_worker.is_responsive()


@pytest.fixture(scope="module")
def unresponsive(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bool]:
    """Of runtimes with one stuck lane each and a task that waits there, after the patience."""

    async def blocking(lock: Any) -> None:
        lock.acquire()

    lock, fifo = threading.Lock(), tmp_path_factory.mktemp("stuck") / "fifo"
    with contextlib.ExitStack() as stack:
        new = functools.partial(Runtime, threads=1, io_threads=1, python_threads=1)
        lanes = ("compute", "coroutine", "io", "nothing waits", "python")
        runtimes = {name: stack.enter_context(new()) for name in lanes}
        wait_for_reader = stack.enter_context(stuck_file(fifo))
        lock.acquire()
        stack.callback(lock.release)
        second = threading.Semaphore(0)
        stack.callback(second.release, 10)
        stuck_tasks = [
            runtimes["compute"].hash_files([fifo]),
            runtimes["coroutine"].submit(blocking, second),
            runtimes["io"].submit_io(second.acquire),
            runtimes["nothing waits"].submit(second.acquire),
        ]
        wait_for_reader()
        wait_until(lambda: all(handle.state == "running" for handle in stuck_tasks))
        last = runtimes["python"].submit(second.acquire)
        wait_until(lambda: last.state == "running")
        runtimes["compute"].hash_files([])
        runtimes["coroutine"].submit(echo_later, 1)
        runtimes["io"].submit_io(echo, 1)
        runtimes["python"].submit(echo, 1)
        wait_until(lambda: not runtimes["python"].is_responsive())
        # The others were stuck before.
        answers = {name: runtime.is_responsive() for name, runtime in runtimes.items()}
        stack.pop_all().close()
    return answers


@pytest.mark.parametrize("lane", ["python", "coroutine", "io", "compute"])
def test_runtime_is_not_responsive_when_all_workers_of_a_lane_are_stuck(
    unresponsive: dict[str, bool], lane: str
) -> None:
    assert not unresponsive[lane]


def test_runtime_is_responsive_when_its_worker_is_stuck_and_nothing_waits(
    unresponsive: dict[str, bool],
) -> None:
    assert unresponsive["nothing waits"]


# --- log records and the current task ----------------------------------------------------------


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Any, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        who: Any = record
        self.seen.append((record.getMessage(), who.task_name, who.task_id))


@pytest.fixture
def records() -> Iterator[Records]:
    handler, logger = Records(), logging.getLogger("test.progress")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)


def log(text: str) -> None:
    logging.getLogger("test.progress").info(text)


async def log_later(text: str) -> None:
    log(text)
    await asyncio.sleep(0)
    log(text)


def test_records_have_name_and_id_when_a_task_logs(runtime: Runtime, records: Records) -> None:
    log("outside")
    expected: list[tuple[str, Any, Any]] = [("outside", None, None)]
    for submit, body in ((runtime.submit, log), (runtime.submit_io, log)):
        handle = submit(body, "inside", name="näme")
        handle.wait(GUARD_S)
        expected.append(("inside", "näme", handle.task_id))
    unnamed = runtime.submit(log, "unnamed")
    unnamed.wait(GUARD_S)
    assert records.seen == [*expected, ("unnamed", unnamed.name, unnamed.task_id)]


def test_records_have_their_own_task_when_coroutines_share_a_loop(
    one_worker: Runtime, records: Records
) -> None:
    handles = [
        one_worker.submit(log_later, str(number), name=f"task {number}") for number in range(50)
    ]
    one_worker.wait_all()
    expected = [(str(n), f"task {n}", handle.task_id) for n, handle in enumerate(handles)]
    assert sorted(records.seen) == sorted(expected * 2)


def test_records_have_the_inner_task_when_a_body_runs_on_its_waiters_stack(
    one_worker: Runtime, records: Records
) -> None:
    def outer() -> None:
        log("before")
        one_worker.submit(log, "inner", name="inner").get()
        log("after")

    one_worker.submit(outer, name="outer").get(GUARD_S)
    named = [(text, name) for text, name, _ in records.seen]
    assert named == [("before", "outer"), ("inner", "inner"), ("after", "outer")]


def test_current_task_is_the_handle_when_asked_inside_a_body(runtime: Runtime) -> None:
    async def ask() -> list[Any]:
        before = current_task()
        await asyncio.sleep(0)
        beside = asyncio.create_task(echo_current())
        return [before, current_task(), await beside, await asyncio.to_thread(current_task)]

    async def echo_current() -> Any:
        return current_task()

    plain = runtime.submit(current_task)
    assert plain.get(GUARD_S) is plain
    coroutine = runtime.submit(ask)
    assert all(task is coroutine for task in coroutine.get(GUARD_S))
    partial = runtime.submit(functools.partial(ask))
    assert all(task is partial for task in partial.get(GUARD_S))
    assert current_task() is None


def test_current_task_is_the_plain_one_when_submitted_by_a_coroutine(runtime: Runtime) -> None:
    async def body() -> bool:
        child = runtime.submit(current_task)
        return (await child) is child

    assert runtime.submit(body).get(GUARD_S)


def test_cancel_is_seen_when_a_coroutine_looks_without_awaiting(one_worker: Runtime) -> None:
    started = threading.Event()

    async def body() -> bool:
        task = current_task()
        assert task is not None
        assert not task.cancel_requested
        started.set()
        while not task.cancel_requested:
            pass
        return True

    handle = one_worker.submit(body)
    assert started.wait(GUARD_S)
    assert handle.cancel()
    assert handle.get(GUARD_S)


def test_runtime_is_not_responsive_when_it_is_shut_down() -> None:
    for wait in (True, False):
        runtime = Runtime(threads=1, io_threads=1, python_threads=1)
        assert runtime.is_responsive()
        runtime.shutdown(wait=wait)
        assert not runtime.is_responsive()


def test_ids_of_workers_differ_when_every_lane_has_some(runtime: Runtime) -> None:
    together = threading.Barrier(3)
    handles = [runtime.submit(together.wait, GUARD_S) for _ in range(2)]
    handles += [runtime.submit_io(together.wait, GUARD_S)]
    runtime.submit(echo_later, 1).get(GUARD_S)
    for handle in handles:
        handle.wait(GUARD_S)
    workers = runtime.get_progress()["workers"]
    assert {worker["lane"] for worker in workers} >= {"compute", "python", "io", "coroutine"}
    ids = [worker["id"] for worker in workers]
    assert len(set(ids)) == len(ids) >= 6
