"""Deadlines and interruptions: who is told, what is stopped, and whom they must never reach."""

import asyncio
import concurrent.futures
import contextlib
import functools
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from handle_support import ended

from dftracer.utils import Cancellation, Runtime, TaskHandle, TaskTimeoutError, current_task

GUARD_S = 30
"""How long a body or a test waits for what must come."""

LONG_MS = 3_600_000
"""A deadline that no test lives to see."""


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime(threads=2, io_threads=2, python_threads=4) as runtime:
        yield runtime


@pytest.fixture
def one_worker() -> Iterator[Runtime]:
    with Runtime(threads=1, io_threads=1, python_threads=1) as runtime:
        yield runtime


def echo(value: Any) -> Any:
    return value


async def echo_later(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


def until(release: threading.Event) -> None:
    """Run Python code until released: a body that can be interrupted."""
    while not release.wait(0.001):
        pass


@contextlib.contextmanager
def stuck(submit: Callable[..., TaskHandle[bool]]) -> Iterator[TaskHandle[bool]]:
    """Keep a worker in a body without Python code, where no interruption reaches it."""
    lock = threading.Lock()
    with lock:
        handle = submit(lock.acquire, name="stuck")
        wait_until(lambda: handle.state != "queued")
        yield handle


def wait_until(predicate: Callable[[], bool]) -> None:
    """Wait for what no event tells."""
    guard = time.monotonic() + GUARD_S
    while not predicate():
        assert time.monotonic() < guard
        time.sleep(0.001)


class Deadline:
    """Makes every task run out of time at once, one way or the other."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def before(self, runtime: Runtime) -> None:
        if self.kind == "task":
            runtime.set_default_task_timeout(1)

    def after(self, runtime: Runtime) -> None:
        if self.kind == "global":
            runtime.set_timeout(1)


@pytest.fixture(params=["task", "global"])
def deadline(request: pytest.FixtureRequest) -> Deadline:
    return Deadline(request.param)


# --- what is a time ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["set_timeout", "set_default_task_timeout"])
@pytest.mark.parametrize("value", [0, 1, 2.5, 10**9, 0.001, "30s", "5m", "1.5 h", "250ms", "0s"])
def test_timeout_is_accepted_when_it_is_a_duration(
    runtime: Runtime, method: str, value: Any
) -> None:
    getattr(runtime, method)(value)
    getattr(runtime, method)(0)


@pytest.mark.parametrize("method", ["set_timeout", "set_default_task_timeout"])
@pytest.mark.parametrize(
    "value", [-1, -0.5, math.nan, math.inf, -math.inf, "", "soon", "30", "-5s", "nan", "5 weeks"]
)
def test_timeout_raises_value_error_when_it_is_nonsense(
    runtime: Runtime, method: str, value: Any
) -> None:
    with pytest.raises(ValueError, match="must be a number of milliseconds or a text"):
        getattr(runtime, method)(value)
    assert runtime.submit(echo, 1).get(GUARD_S) == 1


@pytest.mark.parametrize("method", ["set_timeout", "set_default_task_timeout"])
@pytest.mark.parametrize("value", [True, False, None, b"30s", [1]])
def test_timeout_raises_type_error_when_it_is_neither_number_nor_text(
    runtime: Runtime, method: str, value: Any
) -> None:
    with pytest.raises(TypeError, match="must be a number of milliseconds or a text"):
        getattr(runtime, method)(value)


@pytest.mark.parametrize("method", ["set_timeout", "set_default_task_timeout"])
@pytest.mark.parametrize("value", [1e16, 2.0**63, "100000000000d"])
def test_task_runs_when_the_timeout_is_beyond_any_clock(
    runtime: Runtime, method: str, value: Any
) -> None:
    getattr(runtime, method)(value)
    assert runtime.submit(echo, 1).get(GUARD_S) == 1


@pytest.mark.parametrize("method", ["set_timeout", "set_default_task_timeout"])
@pytest.mark.parametrize("value", [1e300, 2**64, "1000000000000d"])
def test_timeout_is_accepted_or_nonsense_when_it_is_astronomical(
    runtime: Runtime, method: str, value: Any
) -> None:
    with contextlib.suppress(ValueError):
        getattr(runtime, method)(value)
    assert runtime.submit(echo, 1).get(GUARD_S) == 1


# --- plain bodies ------------------------------------------------------------------------------


def test_busy_loop_is_interrupted_when_its_time_is_up(
    one_worker: Runtime, deadline: Deadline
) -> None:
    seen: list[BaseException] = []
    release = threading.Event()

    def body() -> None:
        try:
            while not release.is_set():
                pass
        except BaseException as error:
            seen.append(error)
            raise

    deadline.before(one_worker)
    handle = one_worker.submit(body)
    deadline.after(one_worker)
    try:
        with pytest.raises(TaskTimeoutError, match="has run out of time") as caught:
            handle.get(GUARD_S)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value is handle.exception
        assert caught.value.result is None
        assert handle.state == "failed"
        assert handle.cancel_requested
        one_worker.set_timeout(0)
        one_worker.set_default_task_timeout(0)
        assert one_worker.submit(echo, 1).get(GUARD_S) == 1, "the only worker is back"
    finally:
        release.set()
    assert [type(error) for error in seen] in ([], [asyncio.CancelledError])
    with pytest.raises(TaskTimeoutError):
        handle.get()
    assert one_worker.get_failed() == [handle]


def test_body_can_return_early_when_it_looks_whether_it_is_to_stop(one_worker: Runtime) -> None:
    started, looked = threading.Event(), threading.Event()

    def body() -> None:
        task = current_task()
        assert task is not None
        while True:
            try:
                started.set()
                while not task.cancel_requested:
                    pass
                looked.set()
                return
            except asyncio.CancelledError:
                continue

    handle = one_worker.submit(body)
    assert started.wait(GUARD_S)
    assert not handle.cancel_requested
    one_worker.set_timeout(1)
    with pytest.raises(TaskTimeoutError):
        handle.get(GUARD_S)
    assert looked.wait(GUARD_S)


@pytest.mark.parametrize(("method", "lane"), [("submit", "python"), ("submit_io", "io")])
def test_stuck_body_keeps_its_worker_busy_and_others_run_when_its_time_is_up(
    one_worker: Runtime, deadline: Deadline, method: str, lane: str
) -> None:
    submit = getattr(one_worker, method)
    deadline.before(one_worker)
    with stuck(submit) as handle:
        deadline.after(one_worker)
        with pytest.raises(TaskTimeoutError, match="stuck"):
            handle.get(GUARD_S)
        one_worker.set_timeout(0)
        one_worker.set_default_task_timeout(0)
        (worker,) = [w for w in one_worker.get_progress()["workers"] if w["lane"] == lane]
        assert (worker["idle"], worker["task"]) == (False, "stuck")
        follower = submit(echo, 1)
        assert follower.get(GUARD_S) == 1, "another worker stands in for the one that is busy"
    one_worker.shutdown()
    assert handle.state == "failed", "the late result is dropped"
    assert isinstance(handle.exception, TaskTimeoutError)
    counts = one_worker.get_progress()
    assert (counts["total"], counts["completed"], counts["failed"]) == (2, 1, 1)


def test_io_call_is_interrupted_when_it_runs_too_long(
    one_worker: Runtime, deadline: Deadline
) -> None:
    release = threading.Event()
    deadline.before(one_worker)
    handle = one_worker.submit_io(until, release)
    deadline.after(one_worker)
    try:
        with pytest.raises(TaskTimeoutError):
            handle.get(GUARD_S)
        one_worker.set_timeout(0)
        one_worker.set_default_task_timeout(0)
        assert one_worker.submit_io(echo, 1).get(GUARD_S) == 1
    finally:
        release.set()


def test_every_waiter_gets_the_timeout_when_many_wait(one_worker: Runtime) -> None:
    release, called = threading.Event(), threading.Event()
    handle = one_worker.submit(until, release)
    handle.add_done_callback(lambda _: called.set())
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            waits = [pool.submit(handle.get, GUARD_S) for _ in range(8)]
            one_worker.set_timeout(1)
            errors = [wait.exception(GUARD_S) for wait in waits]
        assert errors == [handle.exception] * 8
        assert called.wait(GUARD_S)
    finally:
        release.set()


async def test_await_raises_the_timeout_when_the_task_has_no_time(
    one_worker: Runtime, new_loop: Any
) -> None:
    release = threading.Event()
    one_worker.set_default_task_timeout(1)
    try:
        with pytest.raises(TaskTimeoutError):
            await one_worker.submit(until, release)
    finally:
        release.set()


def test_wait_all_returns_and_names_the_task_when_it_ran_out_of_time(one_worker: Runtime) -> None:
    one_worker.set_default_task_timeout(1)
    with (
        stuck(one_worker.submit),
        pytest.raises(RuntimeError, match=r"1 task\(s\) failed:\nstuck: TaskTimeoutError"),
    ):
        one_worker.wait_all(raise_on_error=True)


@pytest.mark.parametrize("timeout", [None, GUARD_S])
def test_parent_gets_the_timeout_when_it_waits_for_a_child_without_time(
    runtime: Runtime, timeout: float | None
) -> None:
    release = threading.Event()

    def parent() -> bool:
        runtime.set_default_task_timeout(1)
        child = runtime.submit(until, release)
        try:
            child.get(timeout)
        except TaskTimeoutError:
            return True
        return False

    try:
        assert runtime.submit(parent).get(GUARD_S)
    finally:
        release.set()


# --- coroutines --------------------------------------------------------------------------------


def test_suspended_coroutine_is_cancelled_inside_when_its_time_is_up(
    one_worker: Runtime, deadline: Deadline
) -> None:
    seen: concurrent.futures.Future[BaseException] = concurrent.futures.Future()
    started = threading.Event()

    async def body() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            seen.set_result(error)
        return "late"

    deadline.before(one_worker)
    handle = one_worker.submit(body)
    assert started.wait(GUARD_S)
    deadline.after(one_worker)
    with pytest.raises(TaskTimeoutError):
        handle.get(GUARD_S)
    assert isinstance(seen.result(GUARD_S), asyncio.CancelledError)
    one_worker.set_timeout(0)
    one_worker.set_default_task_timeout(0)
    assert one_worker.submit(echo_later, 1).get(GUARD_S) == 1
    one_worker.shutdown()
    assert isinstance(handle.exception, TaskTimeoutError), "the late result is dropped"


def test_coroutine_is_cancelled_where_it_first_waits_when_its_time_was_up_before(
    one_worker: Runtime,
) -> None:
    seen: concurrent.futures.Future[BaseException] = concurrent.futures.Future()
    release = threading.Event()

    async def body() -> None:
        release.wait(GUARD_S)
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            seen.set_result(error)
            raise

    one_worker.set_default_task_timeout(1)
    handle = one_worker.submit(body)
    try:
        with pytest.raises(TaskTimeoutError):
            handle.get(GUARD_S)
    finally:
        release.set()
    assert isinstance(seen.result(GUARD_S), asyncio.CancelledError)


def test_neighbours_go_on_when_one_coroutine_runs_out_of_time(one_worker: Runtime) -> None:
    started, go = threading.Event(), threading.Event()

    async def neighbour() -> int:
        started.set()
        await asyncio.get_running_loop().run_in_executor(None, go.wait, GUARD_S)
        return 1

    beside = one_worker.submit(neighbour)
    assert started.wait(GUARD_S)
    one_worker.set_default_task_timeout(1)
    with pytest.raises(TaskTimeoutError):
        one_worker.submit(asyncio.sleep, GUARD_S).get(GUARD_S)
    assert not beside.done()
    go.set()
    assert beside.get(GUARD_S) == 1


# --- what is queued ----------------------------------------------------------------------------


def test_queued_tasks_never_begin_when_the_global_time_is_up(one_worker: Runtime) -> None:
    begun: list[int] = []
    with stuck(one_worker.submit) as blocker:
        queued = [one_worker.submit(begun.append, number) for number in range(50)]
        one_worker.set_timeout(1)
        for handle in (blocker, *queued):
            with pytest.raises(TaskTimeoutError):
                handle.get(GUARD_S)
        later = one_worker.submit(echo, 7)
    assert later.get(GUARD_S) == 7, "the deadline is over: what comes after it is not bound"
    assert begun == []


def let_time_pass(milliseconds: int) -> None:
    """Wait until a deadline of another runtime has rung."""
    with Runtime(python_threads=1) as other:
        other.set_default_task_timeout(milliseconds)
        with pytest.raises(TaskTimeoutError):
            other.submit(asyncio.sleep, GUARD_S).get(GUARD_S)


def test_time_in_the_queue_does_not_count_when_there_is_a_task_timeout(
    one_worker: Runtime,
) -> None:
    with stuck(one_worker.submit) as blocker:
        one_worker.set_default_task_timeout(1)
        queued = one_worker.submit(echo, 1)
        let_time_pass(20)
        assert queued.state == "queued"
        assert blocker.state == "running", "it began before there was a limit"
        one_worker.set_default_task_timeout(0)
    assert queued.get(GUARD_S) == 1
    assert blocker.get(GUARD_S)


def test_nothing_runs_out_when_the_global_timeout_is_taken_back(one_worker: Runtime) -> None:
    with stuck(one_worker.submit) as handle:
        one_worker.set_timeout(1_000)
        one_worker.set_timeout(0)
        let_time_pass(1_100)
        assert handle.state == "running"
    assert handle.get(GUARD_S)


def test_no_later_task_runs_out_when_the_timeout_is_taken_back_as_it_rings(
    runtime: Runtime,
) -> None:
    for _ in range(300):
        runtime.set_timeout(1)
        started = time.monotonic()
        while time.monotonic() < started + 0.001:
            pass  # hold the interpreter until the moment at which it rings
        runtime.set_timeout(0)
        assert runtime.submit(echo, 1).get(GUARD_S) == 1


def test_later_deadline_holds_when_the_global_timeout_is_set_again(runtime: Runtime) -> None:
    release = threading.Event()
    handle = runtime.submit(until, release)
    runtime.set_timeout(LONG_MS)
    runtime.set_timeout(1)
    try:
        with pytest.raises(TaskTimeoutError):
            handle.get(GUARD_S)
    finally:
        release.set()


# --- processes and files -----------------------------------------------------------------------


def test_whole_group_is_killed_when_the_time_of_a_process_is_up(
    runtime: Runtime, tmp_path: Path, deadline: Deadline
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    if deadline.kind == "task":
        # Long enough for the grandchild to open its pipe on any machine that is not stuck.
        runtime.set_default_task_timeout("2s")
    handle = runtime.run_process(["sh", "-c", 'sleep 600 >"$1" & wait', "sh", str(fifo)])
    with open(fifo, "rb", buffering=0) as pipe:  # returns when the grandchild has opened it
        deadline.after(runtime)
        with pytest.raises(TaskTimeoutError):
            handle.get(GUARD_S)
        assert pipe.read() == b"", "the grandchild has ended"
    assert handle.state == "failed"


def test_error_has_what_was_written_when_a_process_runs_into_its_own_timeout(
    runtime: Runtime,
) -> None:
    handle = runtime.run_process("echo begun; exec sleep 600", timeout=1)
    with pytest.raises(TaskTimeoutError) as caught:
        handle.get(GUARD_S)
    assert caught.value.result is not None
    assert (caught.value.result.stdout, caught.value.result.signal) == (b"begun\n", 9)


@pytest.mark.parametrize("own", [0.001, 600])
def test_shorter_timeout_holds_when_a_process_has_two(runtime: Runtime, own: float) -> None:
    runtime.set_default_task_timeout(LONG_MS if own < 1 else 1)
    with pytest.raises(TaskTimeoutError):
        runtime.run_process(["sleep", "600"], timeout=own).get(GUARD_S)


@contextlib.contextmanager
def stuck_hash(runtime: Runtime, path: Path) -> Iterator[Callable[[], TaskHandle[list[str]]]]:
    """Gives a function that submits file work that is stuck until the end of the block."""
    os.mkfifo(path)
    begun: list[int] = []
    handles: list[TaskHandle[list[str]]] = []

    def submit() -> TaskHandle[list[str]]:
        handles.append(runtime.hash_files([path], name="stuck"))
        if not begun:
            # Succeeds as soon as a reader has the pipe open, and keeps the reader waiting for data.
            begun.append(os.open(path, os.O_WRONLY))
        return handles[-1]

    try:
        yield submit
    finally:
        for descriptor in begun:
            os.close(descriptor)


def test_waiter_gets_the_timeout_and_the_thread_is_free_when_native_file_work_is_stuck(
    one_worker: Runtime, tmp_path: Path, deadline: Deadline
) -> None:
    file = tmp_path / "file"
    file.touch()
    deadline.before(one_worker)
    with stuck_hash(one_worker, tmp_path / "fifo") as submit:
        handle = submit()
        deadline.after(one_worker)
        with pytest.raises(TaskTimeoutError):
            handle.get(GUARD_S)
        assert handle.cancel() is Cancellation.TOO_LATE
        one_worker.set_timeout(0)
        one_worker.set_default_task_timeout(0)
        assert len(one_worker.hash_files([file]).get(GUARD_S)) == 1
    assert isinstance(handle.exception, TaskTimeoutError), "the late result is dropped"


@pytest.mark.parametrize("how", ["written to", "not opened", "endless"])
def test_hashing_ends_at_once_when_it_is_cancelled(
    how: str, one_worker: Runtime, tmp_path: Path
) -> None:
    file, fifo = tmp_path / "file", tmp_path / "fifo"
    file.touch()
    with contextlib.ExitStack() as stack:
        if how == "written to":
            handle = stack.enter_context(stuck_hash(one_worker, fifo))()
        else:
            os.mkfifo(fifo)
            path = fifo if how == "not opened" else Path("/dev/zero")
            handle = one_worker.hash_files([file, path])
            wait_until(lambda: handle.state == "running")
        queued = one_worker.hash_files([])
        assert queued.cancel() is Cancellation.DEQUEUED
        assert handle.cancel() is Cancellation.REQUESTED
        assert handle.state == queued.state == "cancelled"
        assert handle.cancel() is Cancellation.TOO_LATE
        assert len(one_worker.hash_files([file]).get(GUARD_S)) == 1


def test_hashing_waits_when_nobody_has_opened_the_other_end_of_a_pipe(
    one_worker: Runtime, tmp_path: Path
) -> None:
    fifo, file = tmp_path / "fifo", tmp_path / "file"
    os.mkfifo(fifo)
    handle = one_worker.hash_files([fifo])
    for path in (fifo, file):
        path.write_bytes(b"content")  # which waits for a reader of the pipe
    assert handle.get(GUARD_S) == one_worker.hash_files([file]).get(GUARD_S)


# --- alarms of the past ------------------------------------------------------------------------


def test_no_alarm_rings_when_tasks_end_in_time(runtime: Runtime) -> None:
    told: list[TaskHandle[Any]] = []
    runtime.set_error_callback(lambda handle, _: told.append(handle))
    runtime.set_default_task_timeout("20s")
    handles = [runtime.submit(echo, number) for number in range(500)]
    handles += [runtime.submit(echo_later, number) for number in range(500)]
    assert [handle.get(GUARD_S) for handle in handles] == [*range(500)] * 2
    runtime.set_default_task_timeout(1)
    slow = runtime.submit(asyncio.sleep, GUARD_S)
    with pytest.raises(TaskTimeoutError):
        slow.get(GUARD_S)
    runtime.wait_all()  # until the error callback has returned
    assert {handle.state for handle in handles} == {"done"}
    assert not any(handle.cancel_requested for handle in handles)
    assert told == [slow]


def test_alarm_hits_none_but_its_own_task_when_short_tasks_race_with_it(
    one_worker: Runtime,
) -> None:
    """Each body ends at about its deadline. Whoever comes next has none and must see nothing."""
    for round_ in range(150):
        one_worker.set_default_task_timeout(1)
        first = one_worker.submit(threading.Event().wait, 0.0008 + (round_ % 10) * 0.00005)
        assert ended(first).state in ("done", "failed")
        if first.state == "failed":
            assert isinstance(first.exception, TaskTimeoutError)
        one_worker.set_default_task_timeout(0)
        assert one_worker.submit(sum, range(50)).get(GUARD_S) == sum(range(50))
        assert one_worker.submit(count_to, 200).get(GUARD_S) == 200


# --- interruptions -----------------------------------------------------------------------------


def count_to(limit: int) -> int:
    number = 0
    while number < limit:
        number += 1
    return number


@pytest.mark.parametrize("interrupt", [False, True])
@pytest.mark.parametrize("method", ["submit", "submit_io"])
def test_no_interruption_hits_the_next_task_when_short_bodies_are_cancelled(
    one_worker: Runtime, method: str, interrupt: bool
) -> None:
    """Cancels race with the ends of short bodies; between them run bodies that nobody cancels."""
    submit = getattr(one_worker, method)
    answers: set[Cancellation] = set()
    states: set[str] = set()
    for round_ in range(600):
        started = threading.Event()

        def body(started: threading.Event = started, limit: int = round_ % 60) -> int:
            started.set()
            return count_to(limit)

        victim = submit(body, interrupt=interrupt)
        innocent = [submit(count_to, 300) for _ in range(3)]
        if round_ % 4:
            assert started.wait(GUARD_S)
        answers.add(victim.cancel())
        assert [handle.get(GUARD_S) for handle in innocent] == [300] * 3
        assert victim.done()
        assert victim.state in ("done", "cancelled")
        states.add(victim.state)
    one_worker.wait_all(raise_on_error=True)
    assert answers
    assert states


def test_the_process_goes_on_when_the_first_cancellation_looks_up_its_class(tmp_path: Path) -> None:
    """While the class is looked up, the body ends and its worker takes the next one."""
    program = """
import asyncio, sys, threading, types
from dftracer.utils import Runtime

release, next_has_run = threading.Event(), threading.Event()

class Slow(types.ModuleType):
    @property
    def CancelledError(self):
        release.set()
        next_has_run.wait(GUARD_S)
        return asyncio.exceptions.CancelledError

runtime = Runtime(python_threads=1)
runtime.submit(int).get()
sys.modules["asyncio"].__class__ = Slow
del asyncio.__dict__["CancelledError"]
handle = runtime.submit(release.wait, interrupt=True)
behind = runtime.submit(next_has_run.set)
while handle.state == "queued":
    threading.Event().wait(0.001)
handle.cancel()
release.set()
behind.get()
print(handle.state)
""".replace("GUARD_S", str(GUARD_S))
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=4 * GUARD_S,
    )
    assert (ended.stderr, ended.returncode) == ("", 0)
    assert ended.stdout.strip() in ("done", "cancelled")


@pytest.mark.parametrize("depth", ["alone", "below another"])
def test_a_profiled_program_goes_on_when_an_interruption_was_not_raised(
    run_script: Callable[..., str], depth: str
) -> None:
    # CPython notes for all threads that one has an exception to raise. As long as that note stands
    # each looks for it at every call, and on CPython 3.11 none comes further while it is profiled.
    program = """
        import faulthandler
        import sys
        import threading
        from dftracer.utils import Runtime

        faulthandler.dump_traceback_later(GUARD_S, exit=True)
        runtime = Runtime(python_threads=1)
        closed = threading.Lock()
        closed.acquire()
        inner = []

        def submit():
            inner.append(runtime.submit(closed.acquire, interrupt=True))

        def outer():
            submit()
            inner[0].wait()
            return 1

        other = runtime.submit(outer) if "below" in "DEPTH" else submit()
        while not inner or inner[0].state == "queued":
            threading.Event().wait(0.001)
        inner[0].cancel()
        closed.release()
        assert (other or runtime.submit(int, 1)).get() == 1

        def call():
            return 1

        sys.setprofile(lambda *_: None)
        print(sum(call() for _ in range(100)))
        """
    program = program.replace("GUARD_S", str(GUARD_S)).replace("DEPTH", depth)
    assert run_script(program) == "100\n"


@pytest.mark.parametrize("interrupt", [False, True])
def test_no_interruption_hits_the_next_task_when_many_threads_cancel(
    runtime: Runtime, interrupt: bool
) -> None:
    stop = threading.Event()
    victims: list[TaskHandle[int]] = []
    lock = threading.Lock()

    def cancel() -> None:
        while not stop.is_set():
            with lock:
                targets, victims[:] = victims[:], []
            for victim in targets:
                victim.cancel()
            stop.wait(0.0001)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        cancellers = [pool.submit(cancel) for _ in range(3)]
        try:
            for _ in range(300):
                batch = [runtime.submit(count_to, 100, interrupt=interrupt) for _ in range(4)]
                with lock:
                    victims.extend(batch)
                innocent = [runtime.submit(count_to, 100) for _ in range(4)]
                assert [handle.get(GUARD_S) for handle in innocent] == [100] * 4
                for handle in batch:
                    assert ended(handle).state in ("done", "cancelled")
        finally:
            stop.set()
        for canceller in cancellers:
            canceller.result(GUARD_S)


def test_no_interruption_hits_a_callback_when_its_task_is_cancelled(one_worker: Runtime) -> None:
    for round_ in range(200):
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        called: concurrent.futures.Future[int] = concurrent.futures.Future()

        def body(started: concurrent.futures.Future[None] = started) -> None:
            started.set_result(None)
            count_to(20)

        def tell(_: Any, called: concurrent.futures.Future[int] = called) -> None:
            try:
                called.set_result(count_to(300))
            except BaseException as error:
                called.set_exception(error)

        victim = one_worker.submit(body, interrupt=round_ % 2 == 0)
        victim.add_done_callback(tell)
        started.result(GUARD_S)
        victim.cancel()
        assert called.result(GUARD_S) == 300


def test_outer_body_is_not_hit_when_the_one_it_waits_for_is_cancelled(one_worker: Runtime) -> None:
    for _ in range(100):
        running: concurrent.futures.Future[TaskHandle[Any]] = concurrent.futures.Future()
        release = threading.Event()

        def inner(
            running: concurrent.futures.Future[TaskHandle[Any]] = running,
            release: threading.Event = release,
        ) -> None:
            task = current_task()
            assert task is not None
            running.set_result(task)
            until(release)

        def outer(inner: Callable[[], None] = inner) -> int:
            with pytest.raises(concurrent.futures.CancelledError):
                one_worker.submit(inner, interrupt=True).get()
            return count_to(300)

        handle = one_worker.submit(outer)
        child = running.result(GUARD_S)
        assert child.cancel() is Cancellation.REQUESTED
        try:
            assert handle.get(GUARD_S) == 300
        finally:
            release.set()
        assert child.state == "cancelled"


def test_body_is_done_when_it_catches_the_interruption(one_worker: Runtime) -> None:
    started, never = threading.Event(), threading.Event()

    def body() -> str:
        try:
            started.set()
            until(never)
        except asyncio.CancelledError:
            return "caught"
        return "not reached"

    handle = one_worker.submit(body, interrupt=True)
    assert started.wait(GUARD_S)
    assert handle.cancel() is Cancellation.REQUESTED
    try:
        assert handle.get(GUARD_S) == "caught"
    finally:
        never.set()


def test_cancelled_error_is_a_failure_when_the_body_raises_it_itself(one_worker: Runtime) -> None:
    def body() -> None:
        raise asyncio.CancelledError("mine")

    handle = one_worker.submit(body)
    assert ended(handle).state == "failed"
    with pytest.raises(asyncio.CancelledError, match="mine"):
        handle.get()


def test_body_stops_when_it_cancels_its_own_task(one_worker: Runtime) -> None:
    def body() -> None:
        task = current_task()
        assert task is not None
        task.cancel()
        until(threading.Event())

    handle = one_worker.submit(body, interrupt=True)
    with pytest.raises(concurrent.futures.CancelledError):
        handle.get(GUARD_S)
    assert one_worker.submit(count_to, 100).get(GUARD_S) == 100


def test_body_cannot_end_its_task_otherwise_when_it_sees_that_it_is_to_stop() -> None:
    def until_asked() -> None:
        task = current_task()
        assert task is not None
        while not task.cancel_requested:
            """See it at once, where nothing keeps Python code of other threads from running."""

    def is_running(handle: TaskHandle[Any]) -> bool:
        return handle.state == "running"

    with Runtime(python_threads=2) as runtime:
        runtime.set_default_task_timeout(1)
        late = [runtime.submit(until_asked) for _ in range(20)]
        for handle in late:
            with pytest.raises(TaskTimeoutError):
                handle.get(GUARD_S)
        runtime.set_default_task_timeout(0)
        for _ in range(20):
            handle = runtime.submit(until_asked)
            wait_until(functools.partial(is_running, handle))
            handle.cancel()
            with pytest.raises(concurrent.futures.CancelledError):
                handle.get(GUARD_S)
