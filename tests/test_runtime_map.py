"""The calls of one map are kept as one record: what that leaves out must not be missed."""

import _thread
import asyncio
import contextvars
import gc
import operator
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from handle_support import ended
from trace_support import names_of

from dftracer.utils import Cancellation, Runtime, TaskHandle, TaskTimeoutError, current_task

GUARD_S = 30
"""How long a body or a test waits for what must come."""

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime(threads=2, python_threads=4) as made:
        yield made


@pytest.fixture
def one_worker() -> Iterator[Runtime]:
    with Runtime(threads=1, python_threads=1) as made:
        yield made


def echo(value: Any) -> Any:
    return value


def own() -> TaskHandle[Any]:
    handle = current_task()
    assert handle is not None
    return handle


# --- items as tasks ------------------------------------------------------------------------------


def test_items_have_handles_of_their_own_when_they_ask(runtime: Runtime) -> None:
    handles = list(runtime.map(lambda _: (own(), own()), range(50)))
    assert all(one is other for one, other in handles)
    ids = [one.task_id for one, _ in handles]
    assert ids == list(range(ids[0], ids[0] + 50))
    assert {one.state for one, _ in handles} == {"done"}
    assert {one.name.rpartition(".")[2] for one, _ in handles} == {"<lambda>"}
    assert handles[3][0].get() == handles[3]


def test_failed_item_is_reported_when_its_map_goes_on(runtime: Runtime) -> None:
    told: list[tuple[TaskHandle[Any], BaseException]] = []
    runtime.set_error_callback(lambda handle, error: told.append((handle, error)))
    results = runtime.map(lambda number: 1 // (number - 4), range(9))
    with pytest.raises(ZeroDivisionError):
        list(results)
    with pytest.raises(RuntimeError, match=r"lambda.*ZeroDivisionError"):
        runtime.wait_all(raise_on_error=True)
    (failed,) = runtime.get_failed()
    assert isinstance(failed.exception, ZeroDivisionError)
    assert told == [(failed, failed.exception)]


def test_running_item_ends_when_it_is_cancelled(one_worker: Runtime) -> None:
    handles: list[TaskHandle[Any]] = []
    running = threading.Event()

    def body(number: int) -> int:
        if number == 1:
            handles.append(own())
            running.set()
            deadline = time.monotonic() + GUARD_S
            while time.monotonic() < deadline and not own().cancel_requested:
                pass
        return number

    results = one_worker.map(body, range(4))
    assert running.wait(GUARD_S)
    assert handles[0].cancel() is Cancellation.REQUESTED
    assert next(results) == 0
    assert ended(handles[0]).state == "cancelled"
    one_worker.wait_all()
    assert one_worker.get_progress()["completed"] == 3


def test_items_are_counted_when_progress_is_asked_for_in_the_middle(one_worker: Runtime) -> None:
    started, release = threading.Event(), threading.Event()

    def body(number: int) -> None:
        if number == 2:
            started.set()
            assert release.wait(GUARD_S)

    results = one_worker.map(body, range(10))
    assert started.wait(GUARD_S)
    try:
        next(results)
        progress = one_worker.get_progress()
        assert (progress["total"], progress["completed"]) == (10, 2)
        assert (progress["running"], progress["queued"]) == (1, 7)
        states = [task["state"] for task in progress["tasks"]]
        assert states == ["completed", "running", *["queued"] * 7]  # the first was taken
        assert all(task["name"].endswith("body") for task in progress["tasks"])
        assert all(
            task["location"].startswith("test_runtime_map.py:") for task in progress["tasks"]
        )
        (worker,) = [worker for worker in progress["workers"] if worker["lane"] == "python"]
        assert worker["queue_depth"] == 7
        assert worker["task"].endswith("body")
    finally:
        release.set()
    assert len(list(results)) == 9


def test_items_are_children_when_a_task_maps(one_worker: Runtime) -> None:
    def body() -> int:
        assert sum(one_worker.map(echo, range(5))) == 10
        (mine,) = one_worker.get_progress()["tasks"]
        return mine["total_subtasks"] * 100 + mine["completed_subtasks"]

    assert one_worker.submit(body).get(GUARD_S) == 505


def test_trace_tells_of_each_item_when_it_runs_and_when_it_is_cancelled(tmp_path: Path) -> None:
    started, release = threading.Event(), threading.Event()

    def body(number: int) -> None:
        if number == 5:
            started.set()
            assert release.wait(GUARD_S)

    path = tmp_path / "trace.pfw.gz"
    with Runtime(threads=1, python_threads=1, trace=path) as runtime:
        list(runtime.map(echo, range(300)))
        results = runtime.map(body, range(20))
        assert started.wait(GUARD_S)
        results.close()  # type: ignore[attr-defined]
        release.set()
    names = names_of(path)
    assert sorted(names.values()) == [20, 300]


# --- contexts ------------------------------------------------------------------------------------


def test_contexts_are_apart_when_items_set_variables_and_keep_tokens(one_worker: Runtime) -> None:
    other: contextvars.ContextVar[int] = contextvars.ContextVar("other")
    tokens: list[contextvars.Token[int]] = []

    def body(number: int) -> tuple[int, str]:
        seen = (len(contextvars.copy_context()), variable.get())
        if number % 3 == 0:
            variable.set("mine")
        elif number % 3 == 1:
            first = other.set(1)
            tokens.append(other.set(2))
            other.reset(first)  # nothing is set any more, but the second token is still good here
        elif tokens:
            with pytest.raises(ValueError, match="different Context"):
                other.reset(tokens.pop())
        return seen

    results = contextvars.Context().run(one_worker.map, body, range(600))
    assert set(results) == {(0, "unset")}
    variable_set = contextvars.Context()
    variable_set.run(variable.set, "outside")
    results = variable_set.run(one_worker.map, body, range(600))
    assert set(results) == {(1, "outside")}
    assert variable_set[variable] == "outside"


# --- waiting, limits, ends -----------------------------------------------------------------------


def test_blocking_items_run_side_by_side_when_short_ones_went_before(runtime: Runtime) -> None:
    together = threading.Barrier(4)
    results = runtime.map(lambda n: n < 100 or together.wait(GUARD_S) >= 0, range(108))
    assert all(results)


def test_items_go_on_when_another_item_waits_on_the_only_worker(one_worker: Runtime) -> None:
    last = threading.Event()

    async def until_last() -> None:
        await asyncio.to_thread(last.wait, GUARD_S)

    def body(number: int) -> int:
        if number == 9:
            last.set()
        elif number % 3 == 0:
            one_worker.submit(until_last).get(GUARD_S)
        return number

    assert list(one_worker.map(body, range(10))) == list(range(10))


def test_item_runs_out_of_time_when_tasks_have_a_limit(one_worker: Runtime) -> None:
    one_worker.set_default_task_timeout(50)
    release = threading.Event()
    results = one_worker.map(lambda n: n != 1 or release.wait(GUARD_S), range(3))
    assert next(results)
    try:
        with pytest.raises(TaskTimeoutError, match="lambda"):
            next(results)
    finally:
        release.set()


def test_running_and_queued_items_run_out_of_time_when_all_do(one_worker: Runtime) -> None:
    started, release = threading.Event(), threading.Event()
    begun: list[int] = []
    told: list[bool] = []

    def body(number: int) -> None:
        begun.append(number)
        started.set()
        assert release.wait(GUARD_S)
        told.append(own().cancel_requested)

    results = one_worker.map(body, range(5))
    assert started.wait(GUARD_S)
    try:
        one_worker.set_timeout(1)
        with pytest.raises(TaskTimeoutError):
            next(results)
    finally:
        release.set()
    one_worker.wait_all()
    progress = one_worker.get_progress()
    # Those that were still waiting when the first failure was read are cancelled.
    assert progress["failed"] >= 1
    assert (progress["failed"] + progress["cancelled"], progress["completed"]) == (5, 0)
    assert begun == [0]
    one_worker.set_timeout(0)
    assert one_worker.submit(echo, 1).get(GUARD_S) == 1
    one_worker.shutdown()  # waits for the body
    assert told == [True]


def test_all_items_run_when_the_runtime_is_shut_down_without_waiting() -> None:
    ran: list[int] = []
    runtime = Runtime(threads=1, python_threads=2)
    results = runtime.map(ran.append, range(2_000))
    runtime.shutdown(wait=False)
    assert len(list(results)) == 2_000
    assert sorted(ran) == list(range(2_000))
    with pytest.raises(RuntimeError, match="shut down"):
        runtime.map(ran.append, range(2_000))


class Thing:
    """Something that can be watched, and can refer to anything."""

    held: Any = None


def test_arguments_and_results_are_released_when_they_were_taken(one_worker: Runtime) -> None:
    things = [Thing() for _ in range(10)]
    gone = [weakref.ref(thing) for thing in things]
    gc.disable()
    try:
        results = one_worker.map(echo, things)
        things.clear()
        one_worker.wait_all()
        for index, reference in enumerate(gone):
            assert next(results) is reference()
            assert [reference() is None for reference in gone[:index]] == [True] * index
        assert gone[-1]() is None
    finally:
        gc.enable()


def test_results_are_collected_when_they_lead_to_their_iterator(one_worker: Runtime) -> None:
    def lead() -> weakref.ref[Thing]:
        things = [Thing() for _ in range(5)]
        results = one_worker.map(echo, things)
        one_worker.wait_all()
        things[2].held = results
        return weakref.ref(things[2])

    gone = lead()
    gc.collect()
    assert gone() is None


def test_child_of_a_fork_is_refused_when_it_reads_results_of_before(
    run_script: Callable[..., str],
) -> None:
    source = """
        import os, threading
        from dftracer.utils import Runtime

        runtime = Runtime(threads=1, python_threads=1)
        started, release = threading.Event(), threading.Event()

        def body(number):
            if number == 1:
                started.set()
                release.wait(20)
            return number

        results = runtime.map(body, range(5))
        started.wait(20)
        child = os.fork()
        if child == 0:
            said = [next(results)]
            try:
                next(results)
            except RuntimeError as error:
                said.append("fork" in str(error))
            del results
            os._exit(0 if said == [0, True] else 1)
        print(os.waitpid(child, 0)[1])
        release.set()
        print(list(results))
    """
    options = ("-W", "ignore::DeprecationWarning")
    assert run_script(source, options=options) == "0\n[0, 1, 2, 3, 4]\n"


def test_unfinished_items_are_given_up_when_the_interpreter_exits(
    run_script: Callable[..., str],
) -> None:
    source = """
        import logging, os, sys, time, atexit
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        os.environ["DFTRACER_EXIT_PATIENCE_S"] = "0.1"
        from dftracer.utils import Runtime

        def for_ever(number):
            while True:
                time.sleep(0.001)

        runtime = Runtime(threads=1, python_threads=1)
        results = runtime.map(for_ever, range(3))
    """
    assert "3 task(s) were given up" in run_script(source)


def test_ctrl_c_is_the_programs_when_it_comes_while_results_are_dropped(
    one_worker: Runtime,
) -> None:
    gate = threading.Event()
    one_worker.submit(gate.wait, GUARD_S)
    held = [one_worker.map(abs, range(10))]
    call = operator.methodcaller("__call__")
    try:
        with pytest.raises(KeyboardInterrupt):
            # No Python code runs between the two, in which a signal would be handled.
            list(map(call, [_thread.interrupt_main, held.clear]))
    finally:
        gate.set()
    assert not held
    one_worker.wait_all()
    assert one_worker.get_progress()["cancelled"] == 10


# --- the interpreter is shared -------------------------------------------------------------------


def lengths_until_end(appended: list[int], end: TaskHandle[Any], gate: threading.Event) -> set[int]:
    """Open the gate, and return what this thread sees of a list to which a worker appends."""
    seen = set()
    gate.set()
    while not end.done():
        seen.add(len(appended))
    return seen


def test_other_threads_get_their_turn_when_items_are_no_python_code(one_worker: Runtime) -> None:
    gate, appended, items = threading.Event(), list[int](), range(1_000_000)
    one_worker.submit(gate.wait, GUARD_S)
    results = one_worker.map(appended.append, items)
    end = one_worker.submit(abs, 1)
    assert lengths_until_end(appended, end, gate) - {0, len(items)}
    assert appended == list(items)
    assert not any(results)


def test_other_threads_get_their_turn_when_tasks_are_no_python_code(one_worker: Runtime) -> None:
    gate, appended, numbers = threading.Event(), list[int](), range(100_000)
    one_worker.submit(gate.wait, GUARD_S)
    for number in numbers:
        one_worker.submit(appended.append, number)
    end = one_worker.submit(abs, 1)
    assert lengths_until_end(appended, end, gate) - {0, len(numbers)}
    assert appended == list(numbers)
