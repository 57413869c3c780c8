"""What breaks task runtimes: waiting inside tasks, storms, leaks, and objects with a mind."""

import asyncio
import concurrent.futures
import gc
import os
import random
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from handle_support import ended

from dftracer.utils import Cancellation, Runtime, TaskHandle

GUARD_S = 30
"""How long a body or a test waits for what must come."""

Script = Callable[..., str]


@pytest.fixture(name="runtime")
def make_runtime() -> Iterator[Runtime]:
    with Runtime(python_threads=2) as runtime:
        yield runtime


@pytest.fixture(name="one_worker")
def make_one_worker() -> Iterator[Runtime]:
    with Runtime(python_threads=1) as runtime:
        yield runtime


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What dies in such a test dies because nobody refers to it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Thing:
    """Something that weak references can watch."""


def fail(error: BaseException) -> None:
    raise error


def echo(value: Any) -> Any:
    return value


async def echo_async(value: Any) -> Any:
    return value


async def echo_later(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


def flush(runtime: Runtime) -> None:
    """Make the worker of each lane let go of the task before: it has turned to this one.

    Without the GIL, it also drops what it has made and others have let go of.
    """
    for function in (echo, echo_async, echo_later):
        runtime.submit(function, None).get(GUARD_S)


def wait_until(condition: Callable[[], bool]) -> None:
    """Give others the processor until ``condition`` holds, which nothing announces."""
    late = threading.Event()
    timer = threading.Timer(GUARD_S, late.set)
    timer.start()
    try:
        while not condition():
            assert not late.is_set(), "this never came true"
            os.sched_yield()
    finally:
        timer.cancel()
        timer.join()


# --- waiting inside tasks ----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_nested_get_returns_when_far_deeper_than_there_are_workers(workers: int) -> None:
    def level(depth: int) -> int:
        return 0 if depth == 0 else 1 + runtime.submit(level, depth - 1).get()

    with Runtime(python_threads=workers) as runtime:
        assert runtime.submit(level, 200).get(GUARD_S) == 200


@pytest.mark.parametrize("suspensions", [0, 1])
def test_nested_get_returns_when_every_body_is_a_coroutine(
    one_worker: Runtime, suspensions: int
) -> None:
    async def level(depth: int) -> int:
        for _ in range(suspensions):
            await asyncio.sleep(0)
        # The timeout lets the test end when it fails, and is far off when it does not.
        return 0 if depth == 0 else 1 + one_worker.submit(level, depth - 1).get(GUARD_S / 3)

    assert one_worker.submit(level, 60).get(GUARD_S) == 60


def test_nested_get_returns_when_plain_and_coroutine_bodies_alternate(one_worker: Runtime) -> None:
    def plain(depth: int) -> int:
        return 0 if depth == 0 else 1 + one_worker.submit(coroutine, depth - 1).get()

    async def coroutine(depth: int) -> int:
        return 0 if depth == 0 else 1 + one_worker.submit(plain, depth - 1).get()

    assert one_worker.submit(plain, 200).get(GUARD_S) == 200
    assert one_worker.submit(coroutine, 200).get(GUARD_S) == 200


def test_nested_get_returns_when_two_runtimes_alternate(one_worker: Runtime) -> None:
    def level(depth: int) -> int:
        other = runtimes[depth % 2]
        return 0 if depth == 0 else 1 + other.submit(level, depth - 1).get()

    with Runtime(python_threads=1) as second:
        runtimes = (one_worker, second)
        assert one_worker.submit(level, 100).get(GUARD_S) == 100


def test_nested_get_returns_when_it_has_a_timeout(one_worker: Runtime) -> None:
    def level(depth: int) -> int:
        return 0 if depth == 0 else 1 + one_worker.submit(level, depth - 1).get(GUARD_S)

    assert one_worker.submit(level, 60).get(GUARD_S) == 60


def test_nested_wait_returns_when_the_tasks_fail(one_worker: Runtime) -> None:
    def level(depth: int) -> None:
        if depth == 0:
            raise ValueError("the deepest")
        one_worker.submit(level, depth - 1).get()

    with pytest.raises(ValueError, match="the deepest"):
        one_worker.submit(level, 150).get(GUARD_S)


def test_tree_of_tasks_is_added_up_when_every_node_waits_for_its_children(
    runtime: Runtime,
) -> None:
    def fibonacci(number: int) -> int:
        if number < 2:
            return number
        handles = [runtime.submit(fibonacci, number - 1), runtime.submit(fibonacci, number - 2)]
        return sum(handle.get() for handle in handles)

    assert runtime.submit(fibonacci, 14).get(GUARD_S) == 377


def test_many_tasks_may_wait_for_one_when_there_is_one_worker(one_worker: Runtime) -> None:
    shared: list[TaskHandle[int]] = []

    def wait_for_shared() -> int:
        return shared[0].get()

    def submit_shared() -> None:
        handles.extend(one_worker.submit(wait_for_shared) for _ in range(100))
        shared.append(one_worker.submit(echo, 3))

    handles: list[TaskHandle[int]] = []
    one_worker.submit(submit_shared).get(GUARD_S)
    assert [handle.get(GUARD_S) for handle in handles] == [3] * 100


def test_recursion_limit_is_each_bodys_own_when_it_is_waited_for(one_worker: Runtime) -> None:
    # Each body needs less than the half of what the interpreter grants to a thread.
    frames = sys.getrecursionlimit() * 2 // 5

    def recurse(left: int, then: Callable[[], int]) -> int:
        return then() if left == 0 else recurse(left - 1, then)

    def level(depth: int) -> int:
        if depth == 0:
            return recurse(frames, lambda: 0)
        return recurse(frames, lambda: 1 + one_worker.submit(level, depth - 1).get())

    assert one_worker.submit(level, 5).get(GUARD_S) == 5


def test_body_sees_no_error_of_another_when_that_waits_while_handling_one(
    one_worker: Runtime,
) -> None:
    def handled() -> type[BaseException] | None:
        return sys.exc_info()[0]

    def wait_while_handling() -> tuple[type[BaseException] | None, BaseException | None]:
        try:
            raise LookupError("of the one who waits")
        except LookupError:
            seen = one_worker.submit(handled).get()
            failing = ended(one_worker.submit(fail, ValueError("of the other")))
        error = failing.exception
        assert error is not None
        return seen, error.__context__

    assert one_worker.submit(wait_while_handling).get(GUARD_S) == (None, None)


def test_context_is_each_bodys_own_when_one_waits_for_the_other(one_worker: Runtime) -> None:
    async def name() -> str:
        task = asyncio.current_task()
        assert task is not None
        return task.get_name()

    async def outer() -> tuple[str, str, str]:
        before = await name()
        inner = one_worker.submit(name).get(GUARD_S)
        return before, inner, await name()

    before, inner, after = one_worker.submit(outer).get(GUARD_S)
    assert before == after
    assert before != inner


def test_wait_all_inside_a_task_returns_when_the_others_have_ended(one_worker: Runtime) -> None:
    done: list[int] = []

    def body() -> int:
        for number in range(100):
            one_worker.submit(done.append, number)
        one_worker.wait_all()
        return len(done)

    assert one_worker.submit(body).get(GUARD_S) == 100


def test_wait_all_inside_a_task_returns_when_several_call_it() -> None:
    together = threading.Barrier(3)

    def body() -> None:
        together.wait(GUARD_S)
        runtime.wait_all()

    with Runtime(python_threads=3) as runtime:
        for handle in [runtime.submit(body) for _ in range(3)]:
            handle.get(GUARD_S)


def test_everything_is_done_when_wait_all_outside_returns_and_tasks_called_it_too() -> None:
    with Runtime(python_threads=4) as runtime:
        for _ in range(100):
            gate = threading.Event()
            handles: list[TaskHandle[Any]] = [runtime.submit(gate.wait, GUARD_S)]
            handles += [runtime.submit(runtime.wait_all) for _ in range(3)]
            runtime.submit(gate.set)
            runtime.wait_all()
            assert [handle.done() for handle in handles] == [True] * 4


def test_another_runtime_can_be_used_whole_when_inside_a_task(one_worker: Runtime) -> None:
    def body() -> list[int]:
        with Runtime(python_threads=1) as other:
            handles = [other.submit(abs, -number) for number in range(50)]
            other.wait_all()
            results = [handle.get() for handle in handles]
            other.submit(echo_later, 3)
        return results

    assert one_worker.submit(body).get(GUARD_S) == list(range(50))


def test_a_runtime_may_shut_another_down_when_inside_its_task(one_worker: Runtime) -> None:
    async def coroutine_body() -> None:
        others[1].shutdown()

    others = [Runtime(python_threads=1), Runtime(python_threads=1)]
    handles = [other.submit(abs, -3) for other in others]
    one_worker.submit(others[0].shutdown).get(GUARD_S)
    one_worker.submit(coroutine_body).get(GUARD_S)
    assert [handle.done() for handle in handles] == [True, True]
    for other in others:
        with pytest.raises(RuntimeError, match="shutdown"):
            other.submit(abs, -3)


# --- storms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 4])
def test_every_task_runs_once_when_many_threads_submit(workers: int) -> None:
    each, submitters = 1_500, 8
    ran: list[int] = []
    together = threading.Barrier(submitters)

    async def run_async(number: int) -> int:
        ran.append(number)
        return number

    def run(number: int) -> int:
        ran.append(number)
        return number

    def submit(submitter: int) -> list[TaskHandle[int]]:
        together.wait(GUARD_S)
        numbers = range(submitter * each, (submitter + 1) * each)
        return [runtime.submit(run_async if n % 3 == 0 else run, n) for n in numbers]

    with (
        Runtime(python_threads=workers) as runtime,
        concurrent.futures.ThreadPoolExecutor(submitters) as pool,
    ):
        handles = [handle for part in pool.map(submit, range(submitters)) for handle in part]
        assert [handle.get(GUARD_S) for handle in handles] == list(range(submitters * each))
    assert sorted(ran) == list(range(submitters * each))
    assert sorted(handle.task_id for handle in handles) == list(range(submitters * each))


def test_every_task_runs_once_when_tasks_submit_tasks(runtime: Runtime) -> None:
    ran: list[int] = []

    def run(number: int) -> None:
        ran.append(number)
        if number < 2_000:
            runtime.submit(run, number * 2)
            runtime.submit(run, number * 2 + 1)

    runtime.submit(run, 1)
    runtime.wait_all()
    assert sorted(ran) == list(range(1, 4_000))


@pytest.mark.parametrize("function", [echo, echo_async, echo_later])
def test_no_wake_up_is_lost_when_tasks_trickle(
    runtime: Runtime, function: Callable[[int], Any]
) -> None:
    for number in range(2_000):
        assert runtime.submit(function, number).get(GUARD_S) == number


def test_no_wake_up_is_lost_when_several_threads_play_ping_pong(runtime: Runtime) -> None:
    def play(seed: int) -> None:
        chance = random.Random(seed)
        for number in range(500):
            function = chance.choice((echo, echo_async, echo_later))
            assert runtime.submit(function, number).get(GUARD_S) == number

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(play, seed) for seed in range(4)]:
            future.result(GUARD_S)


def test_accepted_tasks_end_and_others_are_refused_when_shut_down_in_a_storm() -> None:
    def submit() -> list[TaskHandle[int]]:
        accepted: list[TaskHandle[int]] = []
        while True:
            number = len(accepted)
            try:
                accepted.append(runtime.submit(echo if number % 2 else echo_async, number))
            except RuntimeError:
                return accepted
            storm.set()

    for wait in (True, False):
        storm = threading.Event()
        runtime = Runtime(python_threads=2)
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(submit) for _ in range(3)]
            assert storm.wait(GUARD_S)
            runtime.shutdown(wait=wait)
            for future in futures:
                handles = future.result(GUARD_S)
                assert [h.get(GUARD_S) for h in handles] == list(range(len(handles)))
        runtime.shutdown()


def test_shutdown_returns_to_every_thread_when_many_call_it() -> None:
    gate = threading.Event()
    runtime = Runtime(python_threads=2)
    handles = [runtime.submit(gate.wait, GUARD_S) for _ in range(4)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(runtime.shutdown) for _ in range(8)]
        gate.set()
        for future in futures:
            future.result(GUARD_S)
            assert all(handle.done() for handle in handles)


@pytest.mark.parametrize("function", ["plain", "coroutine"])
def test_each_task_either_runs_or_is_cancelled_when_cancels_race_with_workers(
    runtime: Runtime, function: str
) -> None:
    ran: set[int] = set()

    async def coroutine(number: int) -> None:
        ran.add(number)

    body = coroutine if function == "coroutine" else ran.add
    for start in range(0, 3_000, 100):
        numbers = range(start, start + 100)
        handles = {number: runtime.submit(body, number) for number in numbers}
        cancelled = {n for n in reversed(numbers) if handles[n].cancel() is Cancellation.DEQUEUED}
        runtime.wait_all()
        assert cancelled.isdisjoint(ran)
        assert cancelled | ran >= set(numbers)
        states = {number: handle.state for number, handle in handles.items()}
        assert states == {n: "cancelled" if n in cancelled else "done" for n in numbers}


def test_suspended_tasks_end_once_when_cancels_race_with_their_end(runtime: Runtime) -> None:
    handles = [runtime.submit(echo_later, number) for number in range(2_000)]
    for handle in handles:
        handle.cancel()
    runtime.wait_all()
    for number, handle in enumerate(handles):
        if handle.state == "cancelled":
            with pytest.raises(concurrent.futures.CancelledError):
                handle.get(0)
        else:
            assert handle.get(0) == number


# --- who dies when -----------------------------------------------------------------------------

FUNCTIONS = [echo, echo_async, echo_later]


@pytest.mark.usefixtures("no_collector")
def test_argument_is_released_when_a_plain_body_has_returned(one_worker: Runtime) -> None:
    for _ in range(100):
        thing, keyword = Thing(), Thing()
        references = (weakref.ref(thing), weakref.ref(keyword))
        handle = one_worker.submit(lambda thing, keyword: None, thing, keyword=keyword)
        del thing, keyword
        handle.get()
        assert [reference() for reference in references] == [None, None]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("suspensions", [0, 1])
def test_argument_is_released_when_a_coroutine_body_has_returned(
    one_worker: Runtime, suspensions: int
) -> None:
    async def body(_thing: Thing) -> None:
        for _ in range(suspensions):
            await asyncio.sleep(0)

    thing = Thing()
    reference = weakref.ref(thing)
    handle = one_worker.submit(body, thing)
    del thing
    handle.get()
    flush(one_worker)
    assert reference() is None
    assert handle.done()


@pytest.mark.usefixtures("no_collector")
def test_arguments_and_callable_are_released_when_a_queued_task_is_cancelled(
    one_worker: Runtime,
) -> None:
    started, release = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        assert release.wait(GUARD_S)

    one_worker.submit(hold)
    assert started.wait(GUARD_S)
    thing, function = Thing(), lambda thing: thing
    references = (weakref.ref(thing), weakref.ref(function))
    handle = one_worker.submit(function, thing)
    del thing, function
    assert references[0]() is not None
    handle.cancel()
    assert [reference() for reference in references] == [None, None]
    release.set()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_result_dies_with_its_handle_when_nobody_else_holds_it(
    one_worker: Runtime, function: Callable[[Any], Any]
) -> None:
    handle = one_worker.submit(function, Thing())
    reference = weakref.ref(handle.get())
    flush(one_worker)
    assert reference() is not None, "the handle keeps it"
    del handle
    flush(one_worker)
    assert reference() is None


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_result_dies_when_nobody_holds_the_handle(
    one_worker: Runtime, function: Callable[[Any], Any]
) -> None:
    thing = Thing()
    reference = weakref.ref(thing)
    one_worker.submit(function, thing)
    del thing
    flush(one_worker)
    assert reference() is None


class WatchedError(Exception):
    """An exception of our own, which weak references can watch."""


# None of them keeps its error in a variable: its own frame would be a cycle.
def fail_watched() -> None:
    raise WatchedError


async def fail_watched_async() -> None:
    raise WatchedError


async def fail_watched_later() -> None:
    await asyncio.sleep(0)
    raise WatchedError


FAILING = [fail_watched, fail_watched_async, fail_watched_later]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("function", FAILING)
def test_error_dies_with_its_handle_when_the_failure_was_reported(
    one_worker: Runtime, function: Callable[[], Any]
) -> None:
    handle = one_worker.submit(function)
    with pytest.raises(RuntimeError, match="WatchedError"):
        one_worker.wait_all(raise_on_error=True)
    one_worker.clear_failed()
    flush(one_worker)
    reference = weakref.ref(handle.exception)
    assert reference() is not None, "the handle keeps it"
    del handle
    flush(one_worker)
    assert reference() is None


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("function", FAILING)
def test_error_dies_when_the_failures_were_cleared(
    one_worker: Runtime, function: Callable[[], Any]
) -> None:
    handle = ended(one_worker.submit(function))
    reference = weakref.ref(handle.exception)
    flush(one_worker)
    one_worker.clear_failed()
    del handle
    flush(one_worker)
    assert reference() is None


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("function", FAILING)
def test_error_dies_when_it_was_raised_and_caught_elsewhere(
    one_worker: Runtime, function: Callable[[], Any]
) -> None:
    def get() -> "weakref.ref[BaseException]":
        handle = one_worker.submit(function)
        try:
            handle.get()
        except WatchedError as error:
            # As with every exception caught: its frames hold what they hold, until it lets go.
            error.__traceback__ = None
            return weakref.ref(error)
        raise AssertionError

    reference = get()
    one_worker.wait_all()
    one_worker.clear_failed()
    flush(one_worker)
    assert reference() is None


@pytest.mark.usefixtures("no_collector")
def test_runtime_dies_when_its_handles_and_failures_are_alive() -> None:
    runtime = Runtime(python_threads=1)
    handles = [runtime.submit(echo, 1), runtime.submit(fail_watched)]
    runtime.wait_all()
    reference = weakref.ref(runtime)
    del runtime
    assert reference() is None
    assert [handle.done() for handle in handles] == [True, True]


def test_cycle_through_a_result_is_collected_when_the_collector_runs(one_worker: Runtime) -> None:
    box: dict[str, Any] = {"thing": Thing()}
    reference = weakref.ref(box["thing"])
    box["handle"] = one_worker.submit(echo, box)
    box["handle"].wait()
    flush(one_worker)
    del box
    gc.collect()
    assert reference() is None


def test_cycle_through_an_error_is_collected_when_the_collector_runs(one_worker: Runtime) -> None:
    def use() -> "weakref.ref[Thing]":
        thing = Thing()  # held by this frame, which the error's traceback holds
        handle = one_worker.submit(fail_watched)
        with pytest.raises(WatchedError):
            handle.get()
        return weakref.ref(thing)

    reference = use()
    one_worker.wait_all()
    one_worker.clear_failed()
    flush(one_worker)
    gc.collect()
    assert reference() is None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_stays_flat_when_many_tasks_have_ended(run_script: Script) -> None:
    out = run_script(
        """
        import asyncio
        from pathlib import Path
        from dftracer.utils import Runtime

        def plain(number):
            return number

        async def coroutine(number):
            return number

        async def suspends(number):
            await asyncio.sleep(0)

        def fails(number):
            raise ValueError(number)

        def run(tasks):
            for _ in range(tasks // 1000):
                for number in range(1000):
                    runtime.submit(FUNCTIONS[number % 10 % len(FUNCTIONS)], number)
                runtime.wait_all()
                runtime.clear_failed()

        def resident_kib():
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4

        FUNCTIONS = (plain, plain, plain, plain, plain, plain, plain, coroutine, suspends, fails)
        with Runtime(python_threads=2) as runtime:
            run(30_000)
            before = resident_kib()
            run(200_000)
            print(resident_kib() - before)
        """
    )
    # A pending task takes 168 bytes or more: 200,000 of them left behind would be 33 MB.
    assert int(out) < 8_000


# --- tracebacks --------------------------------------------------------------------------------


def frame_names(error: BaseException | None) -> list[str]:
    assert error is not None
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def test_traceback_begins_with_the_users_code_when_a_body_fails(one_worker: Runtime) -> None:
    def outer() -> None:
        inner()

    def inner() -> None:
        raise ValueError

    handle = ended(one_worker.submit(outer))
    assert frame_names(handle.exception) == ["outer", "inner"]


def test_traceback_does_not_grow_when_the_error_is_raised_again(one_worker: Runtime) -> None:
    def raise_it() -> list[str]:
        try:
            handle.get()
        except WatchedError as error:
            return frame_names(error)
        raise AssertionError

    handle = one_worker.submit(fail_watched)
    assert [raise_it() for _ in range(5)] == [["raise_it", "fail_watched"]] * 5


def test_traceback_shows_every_task_when_one_fails_because_of_another(one_worker: Runtime) -> None:
    def outer() -> None:
        one_worker.submit(inner).get()

    def inner() -> None:
        raise ValueError

    handle = ended(one_worker.submit(outer))
    assert frame_names(handle.exception) == ["outer", "inner"]


# --- objects with a mind of their own ----------------------------------------------------------


class RaisesInDel:
    def __del__(self) -> None:
        raise LookupError("of a destructor")


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    caught: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: caught.append(args.exc_type))
    return caught


@pytest.mark.parametrize("function", [*FUNCTIONS, lambda value: None])
def test_workers_go_on_when_a_destructor_raises(
    one_worker: Runtime, unraisable: list[Any], function: Callable[[Any], Any]
) -> None:
    for _ in range(10):
        one_worker.submit(function, RaisesInDel())
    one_worker.wait_all(raise_on_error=True)
    flush(one_worker)
    assert unraisable == [LookupError] * 10


def test_destructor_can_submit_when_it_runs_on_a_worker(one_worker: Runtime) -> None:
    class SubmitsInDel:
        def __del__(self) -> None:
            handles.append(one_worker.submit(abs, -3))

    handles: list[TaskHandle[int]] = []
    for function in FUNCTIONS:
        one_worker.submit(function, SubmitsInDel())
    flush(one_worker)
    assert [handle.get(GUARD_S) for handle in handles] == [3, 3, 3]


def test_destructor_can_wait_when_it_runs_on_a_worker(one_worker: Runtime) -> None:
    class WaitsInDel:
        def __del__(self) -> None:
            results.append(one_worker.submit(abs, -3).get(GUARD_S))

    results: list[int] = []
    one_worker.submit(lambda thing: None, WaitsInDel()).get(GUARD_S)
    assert results == [3]


def test_get_raises_the_error_when_it_does_not_let_itself_be_changed(one_worker: Runtime) -> None:
    class UnchangeableError(Exception):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(f"cannot set {name}")

    error = UnchangeableError()
    handle = one_worker.submit(fail, error)
    for _ in range(2):
        with pytest.raises(UnchangeableError) as caught:
            handle.get()
        assert caught.value is error


@pytest.mark.parametrize(
    "definition",
    [
        "from unittest.mock import Mock\nfunction = Mock(return_value=3)",
        """
class Wrapper:
    def __call__(self):
        return 3
function = Wrapper()
function.func = function
""",
        """
class Proxy:
    def __getattr__(self, name):
        return self
    def __call__(self):
        return 3
function = Proxy()
""",
        """
class Proxy:
    def __getattr__(self, name):
        raise LookupError(name)
    def __call__(self):
        return 3
function = Proxy()
""",
    ],
    ids=["mock", "wraps itself", "has every attribute", "raises on every attribute"],
)
def test_callable_is_called_when_its_attributes_are_strange(
    run_script: Script, definition: str
) -> None:
    program = """
from dftracer.utils import Runtime
with Runtime(python_threads=1) as runtime:
    handle = runtime.submit(function)
    print(handle.get(), isinstance(handle.name, str))
"""
    assert run_script(definition + program) == "3 True\n"


def test_worker_goes_on_when_a_body_recurses_without_end(one_worker: Runtime) -> None:
    def recurse() -> None:
        recurse()

    with pytest.raises(RecursionError):
        one_worker.submit(recurse).get(GUARD_S)
    assert one_worker.submit(abs, -3).get(GUARD_S) == 3


def test_handle_ends_when_no_descriptor_is_left_for_an_event_loop(run_script: Script) -> None:
    out = run_script(
        """
        import os
        import resource
        import sys
        from dftracer.utils import Runtime

        async def body():
            return "result"

        runtime = Runtime(python_threads=1)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")), hard))
        handle = runtime.submit(body)
        try:
            handle.get(10)
        except TimeoutError:
            print("never ended")
        except Exception as error:
            print("failed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        try:
            print(runtime.submit(body).get(10))
        except TimeoutError:
            print("never ended")
        sys.stdout.flush()
        os._exit(0)
        """,
        stderr=None,
    )
    assert out == "failed\nresult\n"


# --- the threads' end --------------------------------------------------------------------------


class Farewell:
    """What a thread-local holds dies with its thread, and tells."""

    def __init__(self) -> None:
        self.local = threading.local()
        self.gone = threading.Event()

    def enter(self) -> None:
        self.local.thing = Thing()
        weakref.finalize(self.local.thing, self.gone.set).atexit = False

    async def enter_async(self) -> None:
        self.enter()


def native_threads() -> set[str]:
    """The numbers of the threads of this process that the runtime has named."""
    numbers: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            if (task / "comm").read_text().startswith("dft-"):
                numbers.add(task.name)
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has just ended
    return numbers


def use_every_lane(runtime: Runtime) -> None:
    def wait_for_another() -> None:
        runtime.submit(echo_later, 1).get()

    handles: list[TaskHandle[Any]] = [
        runtime.submit(function, 1) for function in FUNCTIONS for _ in range(5)
    ]
    handles += [runtime.submit(wait_for_another) for _ in range(5)]
    handles += [runtime.run_process(["true"]) for _ in range(5)]
    for handle in handles:
        handle.get(GUARD_S)


def test_workers_are_gone_when_shutdown_returns() -> None:
    before = set(threading.enumerate())
    runtime = Runtime(python_threads=4)
    use_every_lane(runtime)
    assert set(threading.enumerate()) > before
    runtime.shutdown()
    assert set(threading.enumerate()) <= before


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("failures", [False, True])
@pytest.mark.parametrize("end", ["shutdown", "shutdown without wait", "drop"])
def test_every_thread_leaves_when_the_runtime_ends(end: str, failures: bool) -> None:
    before = native_threads()
    runtime = Runtime(io_threads=2, python_threads=4)
    use_every_lane(runtime)
    assert len(native_threads() - before) >= 4
    if failures:
        ended(runtime.submit(fail, ValueError()))
        ended(runtime.run_process(["./no-such-program"]))
    if end == "drop":
        del runtime
    else:
        runtime.shutdown(wait=end == "shutdown")
    wait_until(lambda: native_threads() <= before)


@pytest.mark.parametrize("end", ["shutdown", "drop"])
def test_workers_leave_when_the_last_task_ends_after_its_runtime(end: str) -> None:
    gate, farewell, farewell_async = threading.Event(), Farewell(), Farewell()
    runtime = Runtime(python_threads=1)
    held = runtime.submit(gate.wait, GUARD_S)
    runtime.submit(farewell.enter)
    runtime.submit(farewell_async.enter_async)
    if end == "shutdown":
        runtime.shutdown(wait=False)
    else:
        del runtime
    gate.set()
    assert held.get(GUARD_S)
    assert farewell.gone.wait(GUARD_S)
    assert farewell_async.gone.wait(GUARD_S)


def test_queued_tasks_run_when_the_runtime_is_dropped() -> None:
    gate = threading.Event()
    runtime = Runtime(python_threads=1)
    runtime.submit(gate.wait, GUARD_S)
    handles = [runtime.submit(function, 3) for function in FUNCTIONS for _ in range(50)]
    process = runtime.run_process(["true"])
    del runtime
    gate.set()
    assert [handle.get(GUARD_S) for handle in handles] == [3] * 150
    assert process.get(GUARD_S).exit_code == 0


def test_task_ends_when_nobody_ever_held_its_runtime() -> None:
    for _ in range(50):
        assert Runtime(python_threads=1).submit(abs, -3).get(GUARD_S) == 3
        assert Runtime(python_threads=1).submit(echo_later, 3).get(GUARD_S) == 3
    assert Runtime(io_threads=1).run_process(["true"]).get(GUARD_S).exit_code == 0


def test_task_may_hold_its_own_runtime_when_it_is_the_last_to() -> None:
    farewell = Farewell()

    def body(runtime: Runtime) -> int:
        farewell.enter()
        result: int = runtime.submit(abs, -3).get()
        return result

    def submit() -> TaskHandle[int]:
        runtime = Runtime(python_threads=1)
        return runtime.submit(body, runtime)

    assert submit().get(GUARD_S) == 3
    assert farewell.gone.wait(GUARD_S)


@pytest.mark.parametrize("wait", [True, False])
def test_shutdown_inside_a_task_returns_when_the_task_is_its_own(wait: bool) -> None:
    async def close_async() -> None:
        runtimes[1].shutdown(wait=wait)

    runtimes = [Runtime(python_threads=1), Runtime(python_threads=1)]
    bodies: list[Callable[[], Coroutine[Any, Any, None] | None]] = [
        lambda: runtimes[0].shutdown(wait=wait),
        close_async,
    ]
    for runtime, body in zip(runtimes, bodies, strict=True):
        queued = [runtime.submit(echo, 1), runtime.submit(body), runtime.submit(echo, 2)]
        assert [handle.get(GUARD_S) for handle in queued] == [1, None, 2]
        with pytest.raises(RuntimeError, match="shutdown"):
            runtime.submit(abs, -3)
        runtime.shutdown()


def test_with_block_ends_when_a_task_closes_the_runtime_inside_it() -> None:
    with Runtime(python_threads=1) as runtime:
        runtime.submit(runtime.shutdown).get(GUARD_S)


def test_many_runtimes_come_and_go_when_each_is_used_once() -> None:
    before = set(threading.enumerate())
    for number in range(100):
        with Runtime(python_threads=2) as runtime:
            handle = runtime.submit(FUNCTIONS[number % 3], number)
        assert handle.get() == number
    assert set(threading.enumerate()) <= before


def test_nothing_is_reported_when_runtimes_with_processes_are_dropped_early(
    run_script: Script,
) -> None:
    out = run_script(
        """
        from dftracer.utils import Runtime, as_completed

        lasting = Runtime(io_threads=1)
        for _ in range(100):
            passing = Runtime(io_threads=1)
            handles = [lasting.run_process(["./no-such-program"]) for _ in range(5)]
            passing.run_process(["true"])
            del passing
            handles += [lasting.run_process(["./no-such-program"]) for _ in range(5)]
            sum(range(100_000))
            for handle in as_completed(handles, 10):
                pass
            lasting.wait_all()
            lasting.clear_failed()
        print("over")
        """
    )
    assert out == "over\n"
