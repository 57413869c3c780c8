"""Plain bodies that are cancelled or run out of time: nothing is thrown into their threads.

Their tasks have ended for everybody; the bodies go on, others take their place meanwhile, and the
end of the program does not wait for them for ever.
"""

import asyncio
import concurrent.futures
import logging
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

from dftracer.asyncflow import WorkflowEngine
from dftracer.utils import (
    Cancellation,
    Runtime,
    TaskHandle,
    TaskTimeoutError,
    current_task,
    sleep,
)

GUARD_S = 30
"""How long a body or a test waits for what must come."""

PYTHONS = ["submit", "submit_io"]


@pytest.fixture
def one_worker() -> Iterator[Runtime]:
    with Runtime(threads=1, io_threads=1, python_threads=1) as runtime:
        yield runtime


class Held:
    """Bodies that go on until they are released, whoever wants them to stop."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.seen: list[BaseException] = []
        self.returned: list[int] = []
        self._started = threading.Semaphore(0)

    def body(self, number: int = 0) -> str:
        try:
            self._started.release()
            while not self.release.wait(0.001):
                pass  # Python code, where an exception would be raised
        except BaseException as error:
            self.seen.append(error)
            raise
        self.returned.append(number)
        return "late"

    def reached(self) -> None:
        assert self._started.acquire(timeout=GUARD_S)


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    held.release.set()


def wait_until(predicate: Callable[[], bool]) -> None:
    """Wait for what no event tells."""
    guard = time.monotonic() + GUARD_S
    while not predicate():
        assert time.monotonic() < guard
        time.sleep(0.001)


def by_cancel(_runtime: Runtime, handle: TaskHandle[Any]) -> None:
    assert handle.cancel() is Cancellation.REQUESTED
    assert handle.state == "cancelled"
    with pytest.raises(concurrent.futures.CancelledError):
        handle.get()


def by_timeout(runtime: Runtime, handle: TaskHandle[Any]) -> None:
    runtime.set_timeout(1)
    with pytest.raises(TaskTimeoutError):
        handle.get(GUARD_S)
    runtime.set_timeout(0)


Stop = Callable[[Runtime, TaskHandle[Any]], None]
stops = pytest.mark.parametrize("stop", [by_cancel, by_timeout])


# --- the task and its body ---------------------------------------------------------------------


@stops
@pytest.mark.parametrize("method", PYTHONS)
def test_the_task_ends_at_once_and_the_body_goes_on_when_it_is_to_stop(
    one_worker: Runtime, held: Held, stop: Stop, method: str
) -> None:
    called: list[str] = []
    submit = getattr(one_worker, method)
    handle = submit(held.body)
    handle.add_done_callback(lambda ended: called.append(ended.state))
    held.reached()
    stop(one_worker, handle)
    assert handle.cancel_requested
    assert [submit(abs, -n).get(GUARD_S) for n in range(3)] == [0, 1, 2]
    assert not held.returned
    wait_until(lambda: bool(called))
    state = handle.state
    held.release.set()
    one_worker.shutdown()
    assert (held.seen, held.returned) == ([], [0])
    assert (handle.state, called) == (state, [state]), "what the body returned is dropped"


@stops
def test_every_body_has_another_worker_in_its_place_when_many_are_given_up(
    one_worker: Runtime, held: Held, stop: Stop
) -> None:
    for number in range(8):
        handle = one_worker.submit(held.body, number)
        held.reached()
        stop(one_worker, handle)
    assert one_worker.submit(abs, -1).get(GUARD_S) == 1
    held.release.set()
    wait_until(lambda: sorted(held.returned) == list(range(8)))
    wait_until(lambda: one_worker.python_threads == 1)
    assert one_worker.submit(abs, -2).get(GUARD_S) == 2


def test_the_other_items_are_run_when_one_of_a_map_is_given_up(
    one_worker: Runtime, held: Held
) -> None:
    found: list[TaskHandle[Any]] = []

    def call(number: int) -> int:
        if number == 1:
            task = current_task()
            assert task is not None
            found.append(task)
            held.body()
        return number

    results = one_worker.map(call, range(6))
    assert next(results) == 0
    held.reached()
    by_cancel(one_worker, found[0])
    one_worker.wait_all()
    assert one_worker.get_progress()["completed"] == 5
    with pytest.raises(concurrent.futures.CancelledError):
        next(results)


def test_nothing_queued_begins_when_all_run_out_of_time(one_worker: Runtime, held: Held) -> None:
    begun: list[int] = []
    running = one_worker.submit(held.body)
    held.reached()
    queued = [one_worker.submit(begun.append, n) for n in range(50)]
    one_worker.set_timeout(1)
    for handle in [running, *queued]:
        with pytest.raises(TaskTimeoutError):
            handle.get(GUARD_S)
    one_worker.set_timeout(0)
    assert one_worker.submit(abs, -1).get(GUARD_S) == 1
    assert begun == []


def test_everybody_can_log_when_bodies_that_log_run_out_of_time(one_worker: Runtime) -> None:
    """An exception in the thread would sooner or later leave the handler's lock held."""
    log = logging.Logger("of this test")
    log.addHandler(handler := logging.StreamHandler(open(os.devnull, "w")))  # noqa: SIM115

    def body() -> None:
        task = current_task()
        assert task is not None
        while not task.cancel_requested:
            log.info("a line")

    one_worker.set_default_task_timeout(2)
    handles = [one_worker.submit(body) for _ in range(100)]
    for handle in handles:
        with pytest.raises(TaskTimeoutError):
            handle.get(GUARD_S)
    one_worker.shutdown()
    assert handler.lock is not None
    assert handler.lock.acquire(timeout=GUARD_S)
    handler.lock.release()
    handler.stream.close()


def test_a_coroutine_is_closed_when_a_body_returns_it_to_nobody(
    one_worker: Runtime, recwarn: pytest.WarningsRecorder
) -> None:
    started, release = threading.Event(), threading.Event()

    async def never() -> None:
        raise AssertionError("nobody awaits it")

    def body() -> Any:
        started.set()
        assert release.wait(GUARD_S)
        return never()

    handle = one_worker.submit(body)
    assert started.wait(GUARD_S)
    assert handle.cancel() is Cancellation.REQUESTED
    release.set()
    one_worker.shutdown()
    assert [str(warning.message) for warning in recwarn] == []


def test_it_is_said_once_when_bodies_are_given_up(
    one_worker: Runtime, held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> list[logging.LogRecord]:
        # What other runtimes say may come late.
        return [each for each in caplog.records if "'held body'" in each.getMessage()]

    for _ in range(3):
        handle = one_worker.submit(held.body, name="held body")
        held.reached()
        handle.cancel()
    wait_until(lambda: bool(said()))
    held.release.set()
    one_worker.shutdown()
    (record,) = said()
    assert (record.name, record.levelno) == ("dftracer.utils", logging.WARNING)


# --- waits of ours -----------------------------------------------------------------------------

other = threading.Event()
SLEEP = ["sleep", str(GUARD_S)]
programs: list[TaskHandle[Any]] = []

WAITS: dict[str, Callable[[Runtime, Runtime], object]] = {
    "get": lambda _, elsewhere: elsewhere.submit(other.wait, GUARD_S).get(),
    "get with a timeout": lambda _, elsewhere: elsewhere.submit(other.wait, GUARD_S).get(GUARD_S),
    "wait": lambda _, elsewhere: elsewhere.submit(other.wait, GUARD_S).wait(),
    "get of a program": lambda own, _: programs.append(p := own.run_process(SLEEP)) or p.get(),
    "map": lambda _, elsewhere: list(elsewhere.map(lambda _: other.wait(GUARD_S), range(3))),
    "wait_all": lambda _, elsewhere: (elsewhere.submit(other.wait, GUARD_S), elsewhere.wait_all()),
    "sleep": lambda *_: sleep(GUARD_S),
}


@pytest.mark.parametrize("interrupt", [False, True])
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
@pytest.mark.parametrize("method", PYTHONS)
def test_a_wait_of_ours_ends_at_once_when_its_body_is_cancelled(
    one_worker: Runtime,
    wait: Callable[[Runtime, Runtime], object],
    method: str,
    interrupt: bool,
) -> None:
    other.clear()
    seen: concurrent.futures.Future[type[BaseException]] = concurrent.futures.Future()
    about_to_wait = threading.Event()

    with Runtime(python_threads=5) as elsewhere:

        def body() -> None:
            about_to_wait.set()
            try:
                wait(one_worker, elsewhere)
            except BaseException as error:
                # What it does then may wait, too.
                elsewhere.submit(abs, -1).get(GUARD_S)
                sleep(0)
                seen.set_result(type(error))
                raise

        handle = getattr(one_worker, method)(body, interrupt=interrupt)
        try:
            assert about_to_wait.wait(GUARD_S)
            assert handle.cancel() is Cancellation.REQUESTED
            assert seen.result(GUARD_S) is asyncio.CancelledError
            ended(handle)
            assert handle.state == "cancelled"
        finally:
            other.set()
            while programs:
                programs.pop().cancel()


def test_a_wait_is_not_ended_when_another_body_is_cancelled(one_worker: Runtime) -> None:
    started, release = threading.Event(), threading.Event()

    def child() -> int:
        started.set()
        assert release.wait(GUARD_S)
        return 1

    parent = one_worker.submit(lambda: one_worker.submit(child).get(GUARD_S))
    assert started.wait(GUARD_S)
    bystander = one_worker.submit(sleep, GUARD_S)
    bystander.cancel()
    release.set()
    assert parent.get(GUARD_S) == 1


def test_wait_all_waits_for_others_when_one_that_waits_too_is_cancelled(
    held: Held,
) -> None:
    """One that has ended does not count among those that wait for all."""
    with Runtime(python_threads=4) as runtime:
        states: list[str] = []
        running = runtime.submit(held.body)
        held.reached()

        def wait() -> None:
            runtime.wait_all()
            states.append(running.state)

        waits = [runtime.submit(wait) for _ in range(2)]
        wait_until(lambda: all(handle.state == "running" for handle in waits))
        waits[0].cancel()
        wait_until(waits[0].done)
        assert not waits[1].done()
        held.release.set()
        waits[1].get(GUARD_S)
        assert states == ["done"]


def test_sleep_takes_its_time_when_nobody_stops_it(one_worker: Runtime) -> None:
    begin = time.monotonic()
    one_worker.submit(sleep, 0.01).get(GUARD_S)
    sleep(0.01)
    assert time.monotonic() - begin >= 0.02
    sleep(-1)
    with pytest.raises(ValueError, match="nan"):
        sleep(float("nan"))


# --- where exceptions are asked for ------------------------------------------------------------


@pytest.mark.parametrize("method", PYTHONS)
@pytest.mark.parametrize("of_runtime", [False, True])
def test_a_body_gets_the_error_when_it_was_asked_for(
    held: Held, method: str, of_runtime: bool
) -> None:
    with Runtime(io_threads=1, python_threads=1, interrupt=of_runtime) as runtime:
        options = {} if of_runtime else {"interrupt": True}
        handle = getattr(runtime, method)(held.body, **options)
        held.reached()
        assert handle.cancel() is Cancellation.REQUESTED
        assert ended(handle).state == "cancelled"
        assert [type(error) for error in held.seen] == [asyncio.CancelledError]


async def test_interrupt_is_refused_when_it_is_no_option_of_the_decorator() -> None:
    async with await WorkflowEngine.create() as flow:
        for decorator in (flow.executable_task, flow.prompt_task, flow.block):
            with pytest.raises(TypeError, match="interrupt=True is for"):
                decorator(interrupt=True)
        wrong: Any = "yes"
        with pytest.raises(TypeError, match="interrupt must be True or False"):
            flow.function_task(interrupt=wrong)


# --- the end of programs -----------------------------------------------------------------------

PRELUDE = """
import asyncio, threading, time
from dftracer.asyncflow import WorkflowEngine
from dftracer.utils import Runtime

started = threading.Event()

def endless():
    started.set()
    while True:
        time.sleep(0.001)
"""

PROGRAMS = {
    "exit": """
runtime = Runtime(python_threads=1)
handle = runtime.submit(endless)
started.wait()
handle.cancel()
print(handle.state)
""",
    "shutdown": """
with Runtime(python_threads=1) as runtime:
    handle = runtime.submit(endless)
    started.wait()
    handle.cancel()
    assert runtime.submit(abs, -1).get() == 1
print(handle.state)
""",
    "engine": """
async def main():
    async with await WorkflowEngine.create() as flow:
        try:
            await flow.function_task(timeout=0.05)(endless)()
        except TimeoutError:
            print("cancelled")

asyncio.run(main())
""",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_ends_when_a_body_that_was_given_up_never_does(
    tmp_path: Path, program: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PRELUDE + program],
        cwd=tmp_path,
        env={**os.environ, "DFTRACER_EXIT_PATIENCE_S": "0.2"},
        capture_output=True,
        text=True,
        timeout=4 * GUARD_S,
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("cancelled\n", "", 0)


def test_shutdown_says_so_when_it_leaves_a_body_behind(
    held: Held, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFTRACER_EXIT_PATIENCE_S", "0.01")
    runtime = Runtime(python_threads=2)
    handle = runtime.submit(held.body)
    held.reached()
    handle.cancel()
    runtime.shutdown()
    assert not held.returned
    assert any("1 thread(s)" in record.getMessage() for record in caplog.records)
