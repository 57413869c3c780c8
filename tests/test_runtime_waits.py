"""`wait_all` inside tasks, while other tasks wait for them: it waits for all that can still end."""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dftracer.utils import Runtime, TaskHandle, as_completed

GUARD_S = 30
"""How long a test waits for what must come."""


@pytest.fixture(name="runtime", params=[1, 2], ids=["one worker", "two workers"])
def make_runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    with Runtime(threads=1, io_threads=1, python_threads=request.param) as runtime:
        yield runtime


def get(runtime: Runtime, body: Callable[[], Any]) -> Any:
    return runtime.submit(body).get()


def get_in_time(runtime: Runtime, body: Callable[[], Any]) -> Any:
    return runtime.submit(body).get(GUARD_S * 2)


def get_first(runtime: Runtime, body: Callable[[], Any]) -> Any:
    return next(as_completed([runtime.submit(body)])).get()


def get_of_map(runtime: Runtime, body: Callable[[], Any]) -> Any:
    return list(runtime.map(lambda _: body(), [1, 2, 3]))[-1]


def get_from_io(runtime: Runtime, body: Callable[[], Any]) -> Any:
    return runtime.submit_io(body).get()


def get_of_executor(runtime: Runtime, body: Callable[[], Any]) -> Any:
    handle = runtime.submit(body)
    runtime.wait(handle)
    return handle.get()


def get_of_coroutine(runtime: Runtime, body: Callable[[], Any]) -> Any:
    async def coroutine() -> Any:
        return body()

    return runtime.submit(coroutine).get()


def get_by_awaiting(runtime: Runtime, body: Callable[[], Any]) -> Any:
    async def coroutine() -> Any:
        return await runtime.submit(body)

    return runtime.submit(coroutine).get()


def get_by_gathering(runtime: Runtime, body: Callable[[], Any]) -> Any:
    async def coroutine() -> Any:
        async def wait(handle: TaskHandle[Any]) -> Any:
            return await handle

        handles = [runtime.submit(body), runtime.submit(int)]
        return (await asyncio.gather(*map(wait, handles)))[0]

    return runtime.submit(coroutine).get()


def get_in_own_loop(runtime: Runtime, body: Callable[[], Any]) -> Any:
    async def coroutine() -> Any:
        return await runtime.submit(body)

    return runtime.submit(lambda: asyncio.run(coroutine())).get()


WAYS = [
    get,
    get_in_own_loop,
    get_in_time,
    get_first,
    get_of_map,
    get_from_io,
    get_of_executor,
    get_of_coroutine,
    get_by_awaiting,
    get_by_gathering,
]


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("way", WAYS)
def test_wait_all_returns_when_tasks_wait_for_the_one_that_calls_it(
    runtime: Runtime, way: Callable[..., Any], depth: int
) -> None:
    def body(level: int) -> int:
        if level == 0:
            runtime.wait_all()
            return 7
        result: int = way(runtime, lambda: body(level - 1))
        return result

    assert runtime.submit(body, depth).get(GUARD_S) == 7


# A coroutine may not block the loop in which another one is suspended.
MIXED = [
    (outer, way)
    for outer in WAYS
    for way in WAYS
    if way is not get_of_coroutine or outer not in (get_by_awaiting, get_by_gathering)
]


@pytest.mark.parametrize(("outer", "way"), MIXED)
def test_wait_all_returns_when_ways_of_waiting_are_mixed(
    outer: Callable[..., Any], way: Callable[..., Any]
) -> None:
    def child() -> int:
        runtime.wait_all()
        return 7

    with Runtime(python_threads=1, io_threads=1) as runtime:
        handle = runtime.submit(lambda: outer(runtime, lambda: way(runtime, child)))
        assert handle.get(GUARD_S) == 7


@pytest.mark.parametrize("way", WAYS)
def test_wait_all_waits_for_others_when_a_task_waits_for_the_one_that_calls_it(
    runtime: Runtime, tmp_path: Path, way: Callable[..., Any]
) -> None:
    # A program: it needs no worker.
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)
    other = runtime.run_process(["head", "-c1"], stdin=fifo)

    def child() -> bool:
        os.write(writer, b"x")
        runtime.wait_all()
        return other.done()

    assert runtime.submit(lambda: way(runtime, child)).get(GUARD_S) is True
    os.close(writer)


def test_everybody_returns_when_a_tree_of_tasks_waits_for_all_in_its_leaves() -> None:
    with Runtime(python_threads=3) as runtime:

        def node(level: int) -> int:
            if level == 0:
                runtime.wait_all()
                return 1
            return sum(handle.get() for handle in [runtime.submit(node, level - 1)] * 2)

        def spread(level: int) -> int:
            if level == 0:
                runtime.wait_all()
                return 1
            handles = [runtime.submit(spread, level - 1) for _ in range(3)]
            return sum(handle.get() for handle in as_completed(handles))

        assert runtime.submit(node, 4).get(GUARD_S) == 16
        assert runtime.submit(spread, 3).get(GUARD_S) == 27


def test_task_goes_on_when_only_one_of_those_it_waits_for_stands_in_wait_all() -> None:
    second = threading.Event()
    parent_ended = threading.Event()

    def child() -> None:
        second.set()
        runtime.wait_all()

    def parent() -> None:
        slow = runtime.submit(child)
        fast = runtime.submit_io(second.wait, GUARD_S)
        assert next(as_completed([slow, fast])) is fast
        for _ in range(3):
            runtime.run_process(["true"]).get()
        parent_ended.set()

    with Runtime(python_threads=2) as runtime:
        handle = runtime.submit(parent)
        handle.get(GUARD_S)
        runtime.wait_all()
        assert parent_ended.is_set()


def test_wait_all_returns_when_a_task_awaits_its_caller_in_a_loop_of_its_own() -> None:
    def child() -> int:
        runtime.wait_all()
        return 7

    async def wait() -> Any:
        return await runtime.submit(child)

    with Runtime(python_threads=2) as runtime:
        assert runtime.submit(lambda: asyncio.run(wait())).get(GUARD_S) == 7


def test_wait_all_returns_when_called_in_a_thread_of_a_coroutine(runtime: Runtime) -> None:
    async def body() -> int:
        await asyncio.to_thread(runtime.wait_all)
        return 7

    assert runtime.submit(body).get(GUARD_S) == 7


def test_wait_all_of_another_runtime_returns_when_its_task_waits_here(runtime: Runtime) -> None:
    with Runtime(python_threads=1) as other:

        def child() -> int:
            other.wait_all()
            return 7

        def parent() -> Any:
            return runtime.submit(child).get()

        assert other.submit(parent).get(GUARD_S) == 7


def test_wait_all_waits_for_those_of_another_runtime_when_they_stand_in_their_own(
    runtime: Runtime,
) -> None:
    with Runtime(python_threads=1) as other:
        gate = threading.Event()

        def elsewhere() -> int:
            gate.set()
            other.wait_all()
            return 7

        handle = other.submit(elsewhere)

        def body() -> bool:
            assert gate.wait(GUARD_S)
            other.wait_all()
            return handle.done()

        assert runtime.submit(body).get(GUARD_S) is True


def test_wait_all_outside_waits_for_all_when_tasks_wait_for_each_other(runtime: Runtime) -> None:
    def child() -> None:
        runtime.wait_all()

    handles = [runtime.submit(lambda: runtime.submit(child).get()) for _ in range(5)]
    runtime.wait_all()
    assert all(handle.done() for handle in handles)


def test_wait_all_in_a_callback_returns_when_a_task_stands_in_it_too(runtime: Runtime) -> None:
    begun, release, called = threading.Event(), threading.Event(), threading.Event()

    def body() -> None:
        begun.set()
        assert release.wait(GUARD_S)
        runtime.wait_all()

    def tell(_: TaskHandle[Any]) -> None:
        release.set()
        runtime.wait_all()
        called.set()

    waiting = runtime.submit(body)
    assert begun.wait(GUARD_S)
    handle = runtime.run_process(["true"])
    handle.add_done_callback(tell)
    waiting.get(GUARD_S)
    assert called.wait(GUARD_S)


def test_wait_all_returns_when_a_task_of_another_runtime_begins_to_wait_for_its_caller() -> None:
    with Runtime(python_threads=2) as here, Runtime(python_threads=1) as there:
        all_there, stands = threading.Event(), threading.Event()
        handles: dict[str, TaskHandle[Any]] = {}

        def caller() -> int:
            assert all_there.wait(GUARD_S)
            stands.set()
            here.wait_all()
            return 7

        def elsewhere() -> Any:
            assert stands.wait(GUARD_S)
            for _ in range(10):  # meanwhile it comes to its wait, most often
                there.run_process(["true"]).get()
            return handles["caller"].get()

        handles["caller"] = here.submit(caller)
        handles["elsewhere"] = there.submit(elsewhere)
        last = here.submit(lambda: handles["elsewhere"].get())
        all_there.set()
        assert handles["caller"].get(GUARD_S) == 7
        assert last.get(GUARD_S) == 7


def wait_by_get(handle: TaskHandle[Any]) -> None:
    with contextlib.suppress(ValueError):
        handle.wait()


def wait_by_as_completed(handle: TaskHandle[Any]) -> None:
    assert next(as_completed([handle])) is handle


async def wait_by_awaiting(handle: TaskHandle[Any]) -> None:
    with contextlib.suppress(ValueError):
        await handle


@pytest.mark.parametrize("wait", [wait_by_get, wait_by_as_completed, wait_by_awaiting])
def test_wait_all_in_the_error_callback_returns_when_a_task_waits_for_the_failed_one(
    wait: Callable[[TaskHandle[Any]], Any],
) -> None:
    begun, release, returned = threading.Event(), threading.Event(), threading.Event()
    with Runtime(python_threads=2) as runtime:

        def fail() -> None:
            begun.set()
            assert release.wait(GUARD_S)
            raise ValueError

        def told(_: TaskHandle[Any], __: BaseException) -> None:
            runtime.wait_all()
            returned.set()

        runtime.set_error_callback(told)
        handle = runtime.submit(fail)
        assert begun.wait(GUARD_S)
        waiter = runtime.submit(wait, handle)
        runtime.run_process(["true"]).get()  # meanwhile it comes to its wait, most often
        release.set()
        assert returned.wait(GUARD_S)
        waiter.get(GUARD_S)


class WaitsWhenItGoes:
    """Calls something when its last reference goes."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def __del__(self) -> None:
        self.call()


@pytest.mark.parametrize("how", ["submit", "map", "io"])
def test_wait_all_in_the_destructor_of_an_argument_returns_when_a_task_waits_for_its_task(
    how: str,
) -> None:
    begun, release, returned = threading.Event(), threading.Event(), threading.Event()
    with Runtime(python_threads=2, io_threads=1) as runtime:

        def wait_for_all() -> None:
            runtime.wait_all()
            returned.set()

        def body(_: object) -> int:
            begun.set()
            assert release.wait(GUARD_S)
            return 7

        def waiter() -> int:
            if how == "map":
                results = runtime.map(body, [WaitsWhenItGoes(wait_for_all)])
                assert begun.wait(GUARD_S)  # not on this thread
                return next(results)
            submit = runtime.submit if how == "submit" else runtime.submit_io
            return submit(body, WaitsWhenItGoes(wait_for_all)).get(GUARD_S * 2)

        handle = runtime.submit(waiter)
        assert begun.wait(GUARD_S)
        release.set()
        assert handle.get(GUARD_S) == 7
        assert returned.is_set()


def test_wait_all_in_the_destructor_of_a_result_waits_for_all_tasks() -> None:
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("without the GIL, it is not settled which thread it dies on")
    release, begun, seen = threading.Event(), threading.Event(), []
    with Runtime(python_threads=2) as runtime:
        other = runtime.submit(release.wait, GUARD_S)

        def wait_for_all() -> None:
            begun.set()
            runtime.wait_all()
            seen.append(other.done())

        # Nobody holds the handle: the result goes when its task has ended.
        runtime.submit(lambda: WaitsWhenItGoes(wait_for_all))
        assert begun.wait(GUARD_S)
        release.set()
        other.get(GUARD_S)
    assert seen == [True]


# --- circles ------------------------------------------------------------------------------------


class Ring:
    """Tasks each of which waits for the next, the last for the first."""

    def __init__(self, runtime: Runtime, lanes: list[str]) -> None:
        self.handles: list[TaskHandle[Any]] = []
        self._are_there = threading.Event()
        for number, lane in enumerate(lanes):
            self.handles.append(getattr(runtime, lane)(self._body, number, name=f"task {number}"))
        self._are_there.set()

    def _body(self, number: int) -> Any:
        self._are_there.wait(GUARD_S)
        return self.handles[(number + 1) % len(self.handles)].get()


@pytest.mark.parametrize(
    "lanes",
    [
        ["submit"],
        ["submit", "submit"],
        ["submit", "submit_io"],
        ["submit", "submit_io", "submit", "submit_io"],
    ],
    ids="itself two two-lanes four".split(),
)
def test_tasks_fail_when_they_wait_for_each_other_in_a_circle(
    runtime: Runtime, lanes: list[str]
) -> None:
    for handle in Ring(runtime, lanes).handles:
        with pytest.raises(RuntimeError, match="waits for the task that waits for it here"):
            handle.get(GUARD_S)
    assert runtime.submit(abs, -1).get(GUARD_S) == 1


def test_tasks_fail_when_one_waits_for_a_circle(runtime: Runtime) -> None:
    ring = Ring(runtime, ["submit_io", "submit_io"])
    beside = runtime.submit(lambda: ring.handles[0].get())
    for handle in (*ring.handles, beside):
        with pytest.raises(RuntimeError, match="waits for the task that waits for it here"):
            handle.get(GUARD_S)


def test_a_circle_is_no_error_when_one_waits_with_a_timeout(runtime: Runtime) -> None:
    handles: list[TaskHandle[Any]] = []
    are_there = threading.Event()

    def patient() -> Any:
        are_there.wait(GUARD_S)
        return handles[1].get()

    def impatient() -> str:
        are_there.wait(GUARD_S)
        try:
            handles[0].wait(2.5)  # longer than it takes to look for circles
        except TimeoutError:
            return "out of time"
        return "in time"

    handles += [runtime.submit_io(patient), runtime.submit(impatient)]
    are_there.set()
    assert [handle.get(GUARD_S) for handle in handles] == ["out of time", "out of time"]


def test_waiting_for_long_is_no_error_when_there_is_no_circle(runtime: Runtime) -> None:
    def outer(depth: int) -> Any:
        return runtime.submit(outer, depth - 1).get() if depth else program.get().exit_code

    program = runtime.run_process(["sleep", "2.5"])  # longer than it takes to look for circles
    handles = [runtime.submit(outer, depth) for depth in range(5)]
    assert [handle.get(GUARD_S) for handle in handles] == [0] * 5
