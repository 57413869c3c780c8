"""What stands on top of tasks: awaiting, callbacks, map, executors, programs, files, adoption."""

import asyncio
import concurrent.futures
import functools
import hashlib
import itertools
import logging
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dftracer.utils import (
    Cancellation,
    Runtime,
    TaskHandle,
    TaskTimeoutError,
    as_completed,
    available_cpus,
    current_task,
)

GUARD_S = 30
"""How long a body or a test waits for what must come."""

NewLoop = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime(threads=2, io_threads=2, python_threads=4) as runtime:
        yield runtime


@pytest.fixture
def one_worker() -> Iterator[Runtime]:
    with Runtime(threads=1, io_threads=1, python_threads=1) as runtime:
        yield runtime


@contextmanager
def busy(runtime: Runtime, workers: int = 1) -> Iterator[list[TaskHandle[None]]]:
    """Keep that many workers of ``runtime`` inside a body for the time of the block."""
    started, release = threading.Barrier(workers + 1), threading.Event()

    def body() -> None:
        started.wait(GUARD_S)
        assert release.wait(GUARD_S)

    handles = [runtime.submit(body) for _ in range(workers)]
    started.wait(GUARD_S)
    try:
        yield handles
    finally:
        release.set()
        for handle in handles:
            handle.get(GUARD_S)


def echo(value: Any) -> Any:
    return value


def fail(error: BaseException) -> None:
    raise error


async def echo_later(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


def until(release: threading.Event) -> None:
    """Run Python code until released: a body that can be interrupted."""
    while not release.wait(0.001):
        pass


# --- await handle ------------------------------------------------------------------------------


async def test_await_gives_the_result_when_the_task_ends_later(
    runtime: Runtime, new_loop: NewLoop
) -> None:
    release, result = threading.Event(), object()

    def body() -> object:
        assert release.wait(GUARD_S)
        return result

    handle = runtime.submit(body)
    asyncio.get_running_loop().call_soon(release.set)  # only a loop that turns releases the body
    assert await handle is result


async def test_await_gives_the_result_when_the_task_has_ended(
    runtime: Runtime, new_loop: NewLoop
) -> None:
    handle = runtime.submit(echo, 3)
    handle.wait(GUARD_S)
    assert [await handle, await handle] == [3, 3]


async def test_await_gives_results_when_tasks_are_of_every_kind(
    runtime: Runtime, new_loop: NewLoop, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    assert await runtime.submit(echo, 1) == 1
    assert await runtime.submit(echo_later, 2) == 2
    assert await runtime.submit_io(echo, 3) == 3
    assert (await runtime.run_process(["echo", "4"])).stdout == b"4\n"
    assert await runtime.hash_files([file]) == [hashlib.sha256(b"abc").hexdigest()]
    assert await runtime.stage_file(file, tmp_path / "copy") == tmp_path / "copy"
    assert await TaskHandle() is None


async def test_await_gives_each_its_own_when_many_are_awaited_at_once(
    runtime: Runtime, new_loop: NewLoop
) -> None:
    handles = [runtime.submit(echo, number) for number in range(3_000)]
    assert await asyncio.gather(*handles) == list(range(3_000))


async def test_await_gives_the_result_to_all_when_many_await_one_handle(
    runtime: Runtime, new_loop: NewLoop
) -> None:
    release = threading.Event()
    handle = runtime.submit(lambda: release.wait(GUARD_S))

    async def wait() -> bool:
        return await handle

    waits = [asyncio.ensure_future(wait()) for _ in range(50)]
    await asyncio.sleep(0)
    release.set()
    assert await asyncio.gather(*waits) == [True] * 50


@pytest.mark.parametrize("ended", [True, False])
async def test_await_raises_what_the_body_raised_when_it_failed(
    runtime: Runtime, new_loop: NewLoop, ended: bool
) -> None:
    release, error = threading.Event(), LookupError("missing")

    def body() -> None:
        assert release.wait(GUARD_S)
        raise error

    handle = runtime.submit(body)
    if ended:
        release.set()
        next(as_completed([handle], GUARD_S))
    else:
        asyncio.get_running_loop().call_soon(release.set)
    with pytest.raises(LookupError) as caught:
        await handle
    assert caught.value is error


@pytest.mark.parametrize("before", [True, False])
async def test_await_raises_cancelled_when_the_task_is_cancelled(
    one_worker: Runtime, new_loop: NewLoop, before: bool
) -> None:
    with busy(one_worker):
        handle = one_worker.submit(echo, 1)
        if before:
            handle.cancel()
        else:
            asyncio.get_running_loop().call_soon(handle.cancel)
        with pytest.raises(asyncio.CancelledError):
            await handle


async def test_queued_task_never_begins_when_its_awaiter_is_cancelled(
    one_worker: Runtime, new_loop: NewLoop
) -> None:
    begun: list[int] = []
    with busy(one_worker):
        handle = one_worker.submit(begun.append, 1)

        async def wait() -> None:
            await handle

        awaiter = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        awaiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaiter
        assert handle.state == "cancelled"
    one_worker.wait_all()
    assert begun == []


async def test_running_body_is_interrupted_when_its_awaiter_is_cancelled(
    runtime: Runtime, new_loop: NewLoop
) -> None:
    started, release = threading.Event(), threading.Event()

    def body() -> None:
        started.set()
        until(release)

    handle = runtime.submit(body)

    async def wait() -> None:
        await handle

    awaiter = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    assert started.wait(GUARD_S)
    awaiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await awaiter
    try:
        with pytest.raises(concurrent.futures.CancelledError):
            handle.wait(GUARD_S)
        assert handle.state == "cancelled"
    finally:
        release.set()


async def test_queued_task_never_begins_when_wait_for_gives_it_up(
    one_worker: Runtime, new_loop: NewLoop
) -> None:
    with busy(one_worker):
        handle = one_worker.submit(echo, 1)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(handle, 0.001)
        assert handle.state == "cancelled"


async def test_task_goes_on_when_it_is_shielded_from_the_cancelled_awaiter(
    one_worker: Runtime, new_loop: NewLoop
) -> None:
    with busy(one_worker):
        handle = one_worker.submit(echo, 1)
        shielded = asyncio.shield(handle)
        await asyncio.sleep(0)
        shielded.cancel()
        with pytest.raises(asyncio.CancelledError):
            await shielded
        assert handle.state == "queued"
        assert not handle.cancel_requested
    assert await handle == 1


async def test_gather_returns_errors_in_their_places_when_asked(
    runtime: Runtime, new_loop: NewLoop
) -> None:
    error = ValueError("x")
    handles = [runtime.submit(echo, 0), runtime.submit(fail, error), runtime.submit(echo, 2)]
    assert await asyncio.gather(*handles, return_exceptions=True) == [0, error, 2]


async def test_loop_turns_when_an_awaited_task_never_ends(
    one_worker: Runtime, new_loop: NewLoop
) -> None:
    release = threading.Event()
    handle = one_worker.submit(lambda: release.wait(GUARD_S))

    async def wait() -> bool:
        return await handle

    awaiter = asyncio.ensure_future(wait())
    for _ in range(100):
        await asyncio.sleep(0)
    assert not awaiter.done()
    release.set()
    assert await awaiter


def test_each_loop_gets_its_results_when_two_threads_await_the_same_handles(
    runtime: Runtime, new_loop: NewLoop
) -> None:
    together = threading.Barrier(3)
    handles = [runtime.submit(echo_later, number) for number in range(200)]
    gate = runtime.submit(together.wait, GUARD_S)

    def serve() -> list[int]:
        async def main() -> list[int]:
            waits = [asyncio.ensure_future(_wait(handle)) for handle in (*handles, gate)]
            await asyncio.sleep(0)
            await asyncio.get_running_loop().run_in_executor(None, together.wait, GUARD_S)
            return list(await asyncio.gather(*waits[:-1]))

        loop = new_loop()
        try:
            return loop.run_until_complete(asyncio.wait_for(main(), GUARD_S))
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        both = [pool.submit(serve) for _ in range(2)]
        assert [future.result(GUARD_S) for future in both] == [list(range(200))] * 2


async def _wait(handle: TaskHandle[Any]) -> Any:
    return await handle


def test_await_works_in_every_loop_when_loops_come_and_go(
    runtime: Runtime, new_loop: NewLoop
) -> None:
    for number in range(30):
        loop = new_loop()
        try:
            assert loop.run_until_complete(_wait(runtime.submit(echo_later, number))) == number
        finally:
            loop.close()


def test_task_ends_in_peace_when_the_loop_that_awaits_it_is_closed(
    one_worker: Runtime, new_loop: NewLoop
) -> None:
    with busy(one_worker):
        handle = one_worker.submit(echo, 1)
        loop = new_loop()
        task = loop.create_task(_wait(handle))
        loop.run_until_complete(asyncio.sleep(0))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()
        other = one_worker.submit(echo, 2)
    assert other.get(GUARD_S) == 2


# --- add_done_callback -------------------------------------------------------------------------


def test_callbacks_get_the_ended_handle_in_order_when_the_task_ends(one_worker: Runtime) -> None:
    seen: list[tuple[int, TaskHandle[int], str]] = []
    with busy(one_worker):
        handle = one_worker.submit(echo, 1)
        for number in range(5):
            handle.add_done_callback(lambda h, number=number: seen.append((number, h, h.state)))  # type: ignore[misc]
        assert seen == []
    one_worker.shutdown()
    assert seen == [(number, handle, "done") for number in range(5)]


def test_callback_is_called_on_this_thread_when_the_task_has_ended(runtime: Runtime) -> None:
    handle = runtime.submit(echo, 1)
    handle.wait(GUARD_S)
    seen: list[tuple[threading.Thread, TaskHandle[int]]] = []
    handle.add_done_callback(lambda h: seen.append((threading.current_thread(), h)))
    assert seen == [(threading.current_thread(), handle)]


@pytest.mark.parametrize("function", ["plain", "coroutine"])
def test_callback_is_called_on_the_tasks_thread_when_the_body_ends_it(
    one_worker: Runtime, function: str
) -> None:
    release, called = threading.Event(), threading.Event()
    seen: list[threading.Thread] = []

    def plain() -> threading.Thread:
        assert release.wait(GUARD_S)
        return threading.current_thread()

    async def coroutine() -> threading.Thread:
        assert release.wait(GUARD_S)
        return threading.current_thread()

    def tell(_: TaskHandle[threading.Thread]) -> None:
        seen.append(threading.current_thread())
        called.set()

    handle = one_worker.submit(coroutine if function == "coroutine" else plain)
    handle.add_done_callback(tell)
    release.set()
    assert called.wait(GUARD_S)
    assert seen == [handle.get(GUARD_S)]


def test_callback_is_called_once_when_the_task_is_cancelled_or_fails(one_worker: Runtime) -> None:
    seen: list[str] = []
    with busy(one_worker):
        cancelled, failed = one_worker.submit(echo, 1), one_worker.submit(fail, ValueError())
        for handle in (cancelled, failed):
            handle.add_done_callback(lambda h: seen.append(h.state))
        cancelled.cancel()
        assert seen == ["cancelled"], "called by the thread that cancels"
    one_worker.shutdown()
    assert seen == ["cancelled", "failed"]


def test_callback_is_called_when_a_native_task_ends(runtime: Runtime, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    handles: list[TaskHandle[Any]] = [
        runtime.run_process(["true"]),
        runtime.hash_files([file]),
        runtime.stage_file(file, tmp_path / "link", how="link"),
        runtime.run_process(["/nowhere/program"]),
    ]
    ended = threading.Semaphore(0)
    seen: dict[TaskHandle[Any], str] = {}

    def tell(handle: TaskHandle[Any]) -> None:
        seen[handle] = handle.state
        ended.release()

    for handle in handles:
        handle.add_done_callback(tell)
    for _ in handles:
        assert ended.acquire(timeout=GUARD_S)
    assert [seen[handle] for handle in handles] == ["done", "done", "done", "failed"]


@pytest.mark.parametrize(
    "kind", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]
)
@pytest.mark.parametrize("body", [echo, echo_later])
def test_error_is_logged_and_stops_nothing_when_a_callback_raises(
    one_worker: Runtime,
    caplog: pytest.LogCaptureFixture,
    kind: type[BaseException],
    body: Callable[[int], Any],
) -> None:
    caplog.set_level(logging.ERROR, "dftracer.utils")
    release, seen = threading.Event(), []

    def blocker() -> None:
        assert release.wait(GUARD_S)

    async def blocking() -> None:
        assert release.wait(GUARD_S)

    one_worker.submit(blocker if body is echo else blocking)
    handle = one_worker.submit(body, 1)
    error = kind("of the callback")
    handle.add_done_callback(lambda _: fail(error))
    handle.add_done_callback(lambda _: seen.append(1))
    release.set()
    assert handle.get(GUARD_S) == 1
    assert one_worker.submit(body, 2).get(GUARD_S) == 2, "the worker lives"
    assert seen == [1]
    logged = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert logged == [error]
    if isinstance(error, Exception):
        handle.add_done_callback(lambda _: fail(error))
        assert len(caplog.records) == 2


OF_THREADS = [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]


@pytest.mark.parametrize("kind", OF_THREADS)
def test_caller_gets_what_a_callback_raises_when_it_is_called_at_once(
    runtime: Runtime, caplog: pytest.LogCaptureFixture, kind: type[BaseException]
) -> None:
    handle, error = runtime.submit(echo, 1), kind("of the callback")
    handle.get(GUARD_S)
    with pytest.raises(kind) as raised:
        handle.add_done_callback(lambda _: fail(error))
    assert raised.value is error
    assert caplog.records == []


@pytest.mark.parametrize("kind", OF_THREADS)
@pytest.mark.parametrize("has_begun", [False, True])
def test_caller_gets_what_a_callback_raises_when_it_cancels_the_task(
    one_worker: Runtime, kind: type[BaseException], has_begun: bool
) -> None:
    release, begun, seen = threading.Event(), threading.Event(), []

    def blocker() -> None:
        begun.set()
        assert release.wait(GUARD_S)

    running = one_worker.submit(blocker)
    handle = running if has_begun else one_worker.submit(echo, 1)
    assert begun.wait(GUARD_S)
    errors = [kind("of the first"), ValueError("of the second"), kind("of the third")]
    for error in errors:
        handle.add_done_callback(lambda _, error=error: fail(error))
    handle.add_done_callback(seen.append)
    with pytest.raises(kind) as raised:
        handle.cancel()
    release.set()
    assert raised.value is errors[0]
    assert seen == [handle]
    assert handle.state == "cancelled"


def test_ctrl_c_reaches_the_caller_when_a_callback_is_called_at_once(runtime: Runtime) -> None:
    handle = runtime.submit(echo, 1)
    handle.get(GUARD_S)
    with pytest.raises(KeyboardInterrupt):
        handle.add_done_callback(lambda _: signal.raise_signal(signal.SIGINT))


@pytest.mark.parametrize("thing", [None, 3, "text"])
def test_type_error_is_raised_when_the_callback_is_not_callable(
    runtime: Runtime, thing: Any
) -> None:
    with pytest.raises(TypeError, match="callable"):
        runtime.submit(echo, 1).add_done_callback(thing)


def test_callback_may_submit_and_add_callbacks_when_called(one_worker: Runtime) -> None:
    second: concurrent.futures.Future[int] = concurrent.futures.Future()

    def tell(handle: TaskHandle[int]) -> None:
        child = one_worker.submit(echo, handle.get() + 1)
        child.add_done_callback(lambda h: second.set_result(h.get()))

    one_worker.submit(echo, 1).add_done_callback(tell)
    assert second.result(GUARD_S) == 2


def test_every_callback_is_called_once_when_added_while_tasks_end(runtime: Runtime) -> None:
    count = itertools.count()
    for _ in range(1_000):
        runtime.submit(echo, 1).add_done_callback(lambda _: next(count))
    runtime.wait_all()
    runtime.shutdown()
    assert next(count) == 1_000


# --- as_completed ------------------------------------------------------------------------------


def test_as_completed_yields_in_order_of_ending_when_tasks_end_one_by_one(
    runtime: Runtime,
) -> None:
    gates = [threading.Event() for _ in range(3)]
    handles = [runtime.submit(gate.wait, GUARD_S) for gate in gates]
    ended = as_completed(handles, GUARD_S)
    for number in (2, 0, 1):
        gates[number].set()
        assert next(ended) is handles[number]
    assert list(ended) == []


def test_as_completed_yields_ended_ones_first_when_others_run(runtime: Runtime) -> None:
    release = threading.Event()
    running = runtime.submit(release.wait, GUARD_S)
    good, bad = runtime.submit(echo, 1), runtime.submit(fail, ValueError())
    for handle in (good, bad):
        next(as_completed([handle], GUARD_S))
    ended = as_completed([running, bad, good], GUARD_S)
    assert [next(ended), next(ended)] == [bad, good]
    release.set()
    assert list(ended) == [running]


def test_as_completed_yields_once_when_a_handle_is_given_twice(runtime: Runtime) -> None:
    handle = runtime.submit(echo, 1)
    assert list(as_completed([handle, handle, handle], GUARD_S)) == [handle]


@pytest.mark.parametrize("timeout", [None, 0, GUARD_S])
def test_as_completed_yields_nothing_when_given_nothing(timeout: float | None) -> None:
    assert list(as_completed([], timeout)) == []


def test_as_completed_yields_cancelled_and_failed_ones_when_they_end(one_worker: Runtime) -> None:
    with busy(one_worker):
        handle = one_worker.submit(echo, 1)
        ended = as_completed([handle], GUARD_S)
        handle.cancel()
        assert [h.state for h in ended] == ["cancelled"]


@pytest.mark.parametrize("timeout", [0, 0.001, -1])
def test_as_completed_raises_timeout_when_some_have_not_ended(
    one_worker: Runtime, timeout: float
) -> None:
    done = one_worker.submit(echo, 1)
    done.wait(GUARD_S)
    with busy(one_worker) as running:
        ended = as_completed([*running, done], timeout)
        assert next(ended) is done, "what has ended is yielded even when time is up"
        with pytest.raises(TimeoutError, match="1 of 2"):
            next(ended)
    assert running[0].get() is None


def test_as_completed_yields_all_when_tasks_are_of_every_kind(
    runtime: Runtime, tmp_path: Path
) -> None:
    handles: set[TaskHandle[Any]] = {
        runtime.submit(echo, 1),
        runtime.submit(echo_later, 1),
        runtime.submit_io(echo, 1),
        runtime.run_process(["true"]),
        runtime.hash_files([]),
        runtime.stage_file(tmp_path / "missing", tmp_path / "file"),
        TaskHandle(),
    }
    assert set(as_completed(iter(handles), GUARD_S)) == handles


def test_as_completed_ends_when_a_task_waits_for_its_children_on_the_only_worker(
    one_worker: Runtime,
) -> None:
    def body() -> list[int]:
        children = [one_worker.submit(echo, number) for number in range(3)]
        return sorted(child.get() for child in as_completed(children, 2))

    assert one_worker.submit(body).get(GUARD_S) == [0, 1, 2]


# --- map ---------------------------------------------------------------------------------------


def test_map_yields_in_order_of_the_items_when_calls_end_in_another(runtime: Runtime) -> None:
    second_done = threading.Event()

    def body(number: int) -> int:
        if number == 0:
            assert second_done.wait(GUARD_S)
        if number == 1:
            second_done.set()
        return number

    assert list(runtime.map(body, range(4))) == [0, 1, 2, 3]


@pytest.mark.parametrize("buffersize", [None, 1, 2, 100])
def test_map_ends_with_the_shortest_when_iterables_differ(
    runtime: Runtime, buffersize: int | None
) -> None:
    results = runtime.map(pow, [2, 3, 4], (3, 2), itertools.repeat(5), buffersize=buffersize)
    assert list(results) == [3, 4]


@pytest.mark.parametrize("buffersize", [None, 1])
def test_map_yields_nothing_when_there_are_no_items(
    runtime: Runtime, buffersize: int | None
) -> None:
    assert list(runtime.map(echo, [], buffersize=buffersize)) == []


def test_map_yields_results_when_given_a_coroutine_function(runtime: Runtime) -> None:
    assert list(runtime.map(echo_later, range(20), buffersize=3)) == list(range(20))


@pytest.mark.parametrize("buffersize", [1, 2, 7])
def test_map_draws_no_more_than_the_buffer_when_the_iterable_is_endless(
    runtime: Runtime, buffersize: int
) -> None:
    drawn = 0

    def endless() -> Iterator[int]:
        nonlocal drawn
        while True:
            drawn += 1
            yield drawn

    results = runtime.map(echo, endless(), buffersize=buffersize)
    assert drawn <= buffersize
    for taken in range(1, 30):
        assert next(results) == taken
        assert drawn <= taken + buffersize
    results.close()  # type: ignore[attr-defined]
    drawn_at_close = drawn
    runtime.wait_all()
    assert drawn == drawn_at_close


def test_map_raises_in_its_turn_when_a_call_fails(runtime: Runtime) -> None:
    def body(number: int) -> int:
        if number == 1:
            raise LookupError("one")
        return number

    results = runtime.map(body, range(3))
    assert next(results) == 0
    with pytest.raises(LookupError, match="one"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_calls_of_map_that_have_not_begun_are_cancelled_when_one_has_failed(
    one_worker: Runtime,
) -> None:
    started, release = threading.Event(), threading.Event()
    begun: list[int] = []

    def body(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise LookupError("zero")
        started.set()
        assert release.wait(GUARD_S)

    results = one_worker.map(body, range(3))
    assert started.wait(GUARD_S)  # the second runs and the third waits
    try:
        with pytest.raises(LookupError, match="zero"):
            next(results)
    finally:
        release.set()
    one_worker.wait_all()
    assert begun == [0, 1]
    with pytest.raises(StopIteration):
        next(results)


def test_map_raises_what_the_iterable_raises_when_it_fails_later(runtime: Runtime) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(runtime.map(echo, items(), buffersize=1))
    runtime.wait_all()


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("taken", [0, 1])
def test_queued_calls_of_map_never_begin_when_the_iterator_is_closed_or_dropped(
    one_worker: Runtime, drop: bool, taken: int
) -> None:
    begun: list[int] = []
    started, release = threading.Event(), threading.Event()

    def body(number: int) -> None:
        begun.append(number)
        if number == taken:
            started.set()
            assert release.wait(GUARD_S)

    results = one_worker.map(body, range(10))
    try:
        for _ in range(taken):
            next(results)
        assert started.wait(GUARD_S)
        if drop:
            del results
        else:
            results.close()  # type: ignore[attr-defined]
    finally:
        release.set()
    one_worker.wait_all()
    assert begun == list(range(taken + 1))


@pytest.mark.parametrize("buffersize", [0, -1])
def test_map_refuses_when_the_buffer_is_too_small(runtime: Runtime, buffersize: int) -> None:
    with pytest.raises(ValueError, match="buffersize"):
        runtime.map(echo, [1], buffersize=buffersize)


def test_map_refuses_when_there_is_no_iterable(runtime: Runtime) -> None:
    with pytest.raises(TypeError, match="iterable"):
        runtime.map(echo)


def test_map_submits_at_once_when_there_is_no_buffer(runtime: Runtime) -> None:
    together = threading.Barrier(4)
    results = runtime.map(lambda _: together.wait(GUARD_S), range(3))
    together.wait(GUARD_S)  # reached although nothing was taken
    assert len(list(results)) == 3


def test_map_ends_when_nested_in_a_task_on_the_only_worker(one_worker: Runtime) -> None:
    body = lambda: sum(one_worker.map(echo, range(50), buffersize=4))  # noqa: E731
    assert one_worker.submit(body).get(GUARD_S) == sum(range(50))


# --- submit_io ---------------------------------------------------------------------------------


def test_plain_bodies_run_when_the_io_lane_is_blocked(one_worker: Runtime) -> None:
    started, release = threading.Event(), threading.Event()

    def block() -> str:
        started.set()
        assert release.wait(GUARD_S)
        return threading.current_thread().name

    blocked = one_worker.submit_io(block)
    queued = one_worker.submit_io(echo, 2)
    assert started.wait(GUARD_S)
    try:
        assert one_worker.submit(echo, 1).get(GUARD_S) == 1
        assert one_worker.submit(echo_later, 1).get(GUARD_S) == 1
        assert one_worker.run_process(["true"]).get(GUARD_S).exit_code == 0
        assert queued.state == "queued"
    finally:
        release.set()
    assert blocked.get(GUARD_S).startswith("dft-io-")
    assert queued.get(GUARD_S) == 2


def test_io_calls_run_when_the_python_lane_is_blocked(one_worker: Runtime) -> None:
    with busy(one_worker):
        assert one_worker.submit_io(echo, 1).get(GUARD_S) == 1


def test_io_calls_run_side_by_side_when_there_are_threads() -> None:
    together = threading.Barrier(3)
    with Runtime(threads=1, io_threads=3, python_threads=1) as runtime:
        handles = [runtime.submit_io(together.wait, GUARD_S) for _ in range(3)]
        assert sorted(handle.get(GUARD_S) for handle in handles) == [0, 1, 2]


def test_io_calls_behave_as_tasks_when_submitted(one_worker: Runtime) -> None:
    named = one_worker.submit_io(echo, 1, name="given")
    assert (named.get(GUARD_S), named.name) == (1, "given")
    assert one_worker.submit_io(dict, value=2).get(GUARD_S) == {"value": 2}
    assert one_worker.submit_io(echo_later, 3).get(GUARD_S) == 3
    handle = one_worker.submit_io(current_task)
    assert handle.get(GUARD_S) is handle
    failed = one_worker.submit_io(fail, ValueError("x"))
    with pytest.raises(ValueError, match="x"):
        failed.get(GUARD_S)
    assert one_worker.get_failed() == [failed]
    with pytest.raises(TypeError):
        one_worker.submit_io(3)  # type: ignore[arg-type]


def test_nested_io_calls_end_when_there_is_one_io_thread(one_worker: Runtime) -> None:
    def nest(depth: int) -> int:
        if depth == 0:
            return 0
        submit = one_worker.submit if depth % 2 else one_worker.submit_io
        return submit(nest, depth - 1).get() + 1

    assert one_worker.submit_io(nest, 60).get(GUARD_S) == 60


# --- executor ----------------------------------------------------------------------------------


def test_executor_runs_calls_when_submitted_and_mapped(runtime: Runtime) -> None:
    executor = runtime.executor()
    assert isinstance(executor, concurrent.futures.Executor)
    with executor:
        future = executor.submit(dict, value=1)
        assert isinstance(future, concurrent.futures.Future)
        assert future.result(GUARD_S) == {"value": 1}
        assert list(executor.map(pow, [2, 3], [3, 2], timeout=GUARD_S)) == [8, 9]
        name = executor.submit(lambda: threading.current_thread().name).result(GUARD_S)
        assert name.startswith("dft-python-")


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_executor_future_has_the_error_when_the_call_raises(
    one_worker: Runtime, kind: type[BaseException]
) -> None:
    error = kind("x")
    executor = one_worker.executor()
    assert executor.submit(fail, error).exception(GUARD_S) is error
    assert executor.submit(echo, 1).result(GUARD_S) == 1


async def test_run_in_executor_gives_results_when_the_loop_uses_the_runtime(
    runtime: Runtime, new_loop: NewLoop
) -> None:
    loop, executor = asyncio.get_running_loop(), runtime.executor()
    calls = [loop.run_in_executor(executor, echo, number) for number in range(200)]
    assert await asyncio.gather(*calls) == list(range(200))
    with pytest.raises(LookupError):
        await loop.run_in_executor(executor, fail, LookupError())


def test_executor_future_never_runs_when_cancelled_in_the_queue(one_worker: Runtime) -> None:
    executor, begun = one_worker.executor(), []
    with busy(one_worker):
        future = executor.submit(begun.append, 1)
        assert future.cancel()
    one_worker.wait_all(raise_on_error=True)
    assert begun == []


def test_executor_future_cannot_be_cancelled_when_it_runs(one_worker: Runtime) -> None:
    started, release = threading.Event(), threading.Event()

    def body() -> int:
        started.set()
        assert release.wait(GUARD_S)
        return 1

    future = one_worker.executor().submit(body)
    assert started.wait(GUARD_S)
    assert future.running()
    assert not future.cancel()
    release.set()
    assert future.result(GUARD_S) == 1


def test_executor_refuses_and_the_runtime_goes_on_when_it_is_shut_down(
    one_worker: Runtime,
) -> None:
    executor = one_worker.executor()
    future = executor.submit(echo, 1)
    executor.shutdown()
    assert future.done()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(echo, 1)
    assert one_worker.submit(echo, 1).get(GUARD_S) == 1
    assert one_worker.executor().submit(echo, 2).result(GUARD_S) == 2


def test_executor_refuses_when_the_runtime_is_shut_down() -> None:
    runtime = Runtime(python_threads=1)
    executor = runtime.executor()
    runtime.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(echo, 1)
    executor.shutdown()


def test_executor_shutdown_cancels_what_is_queued_when_asked(one_worker: Runtime) -> None:
    executor, other = one_worker.executor(), one_worker.executor()
    started, release = threading.Event(), threading.Event()

    def body() -> bool:
        started.set()
        return release.wait(GUARD_S)

    running = executor.submit(body)
    assert started.wait(GUARD_S)
    queued = [executor.submit(echo, number) for number in range(5)]
    others = other.submit(echo, 7)
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in queued)
    assert not running.done()
    release.set()
    assert running.result(GUARD_S)
    assert others.result(GUARD_S) == 7


def test_executor_shutdown_waits_for_its_own_only_when_other_tasks_run(runtime: Runtime) -> None:
    executor = runtime.executor()
    with busy(runtime) as others:
        futures = [executor.submit(echo, number) for number in range(20)]
        executor.shutdown()
        assert all(future.done() for future in futures)
        assert not others[0].done()


def test_executor_future_ends_when_the_global_timeout_ends_its_queued_task(
    one_worker: Runtime,
) -> None:
    executor, lock = one_worker.executor(), threading.Lock()
    with lock:
        blocker = one_worker.submit(lock.acquire)  # no Python code: cannot be interrupted
        give_up_at = time.monotonic() + GUARD_S
        while blocker.state == "queued":
            assert time.monotonic() < give_up_at
            os.sched_yield()
        future = executor.submit(echo, 1)
        one_worker.set_timeout(1)
        with pytest.raises(TaskTimeoutError):
            blocker.get(GUARD_S)
    one_worker.wait_all()
    with pytest.raises(TaskTimeoutError):
        future.result(2)


def test_executor_future_ends_at_the_deadline_when_its_body_is_stuck(one_worker: Runtime) -> None:
    lock = threading.Lock()
    one_worker.set_default_task_timeout(1)
    with lock:
        future = one_worker.executor().submit(lock.acquire)
        with pytest.raises(TaskTimeoutError):
            future.result(2)


# --- as_completed and asyncio --------------------------------------------------------------------


async def test_as_completed_is_refused_when_it_is_given_futures_of_an_event_loop(
    runtime: Runtime,
) -> None:
    future: Any = asyncio.get_running_loop().create_future()
    handle = runtime.submit(echo, 1)
    with pytest.raises(TypeError, match=r"use asyncio\.as_completed\(\)"):
        as_completed([handle, future], timeout=GUARD_S)
    future.cancel()
    assert next(as_completed([handle], timeout=GUARD_S)) is handle


# --- run_process -------------------------------------------------------------------------------


def test_command_reaches_the_shell_unchanged_when_it_is_a_string(runtime: Runtime) -> None:
    result = runtime.run_process("printf '%s|' \"a  b\" $((1+2)) *'?'; exit 3").get(GUARD_S)
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"a  b|3|*?|", b"")


def test_command_is_the_name_when_it_is_a_string(runtime: Runtime) -> None:
    assert runtime.run_process("exit 0").name == "exit 0"
    assert runtime.run_process("exit 0", name="given").name == "given"


def test_words_reach_the_program_unchanged_when_they_are_a_list(runtime: Runtime) -> None:
    words: list[Any] = ["printf", "%s|", "$HOME", "a b", "*", "", b"\xff\xfe", Path("/x/y")]
    result = runtime.run_process(words).get(GUARD_S)
    assert result.stdout == b"$HOME|a b|*||\xff\xfe|/x/y|"


@pytest.mark.parametrize(
    ("command", "shell"), [("true", False), (["true"], True), (("true",), True)]
)
def test_run_process_refuses_when_command_and_shell_do_not_fit(
    runtime: Runtime, command: Any, shell: bool
) -> None:
    with pytest.raises(TypeError, match="command"):
        runtime.run_process(command, shell=shell)
    runtime.wait_all()


@pytest.mark.parametrize("command", ["", " \n", []])
def test_run_process_refuses_when_the_command_is_empty(runtime: Runtime, command: Any) -> None:
    with pytest.raises(ValueError, match="name a program"):
        runtime.run_process(command)


@pytest.mark.parametrize("kind", [str, Path])
def test_program_runs_in_the_directory_when_cwd_is_given(
    runtime: Runtime, tmp_path: Path, kind: Callable[[Path], Any]
) -> None:
    result = runtime.run_process("pwd -P", cwd=kind(tmp_path)).get(GUARD_S)
    assert os.fsdecode(result.stdout.rstrip(b"\n")) == os.path.realpath(tmp_path)


@pytest.mark.parametrize("command", ["true", ["true"], ["/bin/sh", "-c", "true"]])
def test_error_names_the_directory_when_cwd_does_not_exist(
    runtime: Runtime, tmp_path: Path, command: Any
) -> None:
    missing = tmp_path / "missing"
    handle = runtime.run_process(command, cwd=missing)
    with pytest.raises(FileNotFoundError) as caught:
        handle.get(GUARD_S)
    assert caught.value.filename == str(missing)


def test_error_names_the_directory_when_cwd_is_a_file(runtime: Runtime, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError) as caught:
        runtime.run_process(["true"], cwd=file).get(GUARD_S)
    assert caught.value.filename == str(file)


def test_program_sees_exactly_the_mapping_when_env_is_given(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFTRACER_TEST_SECRET", "1")
    env = types.MappingProxyType({"ONE": "a b", "TWO": "ä=ö", "EMPTY": ""})
    result = runtime.run_process(["/usr/bin/env"], env=env).get(GUARD_S)
    assert sorted(result.stdout.decode().splitlines()) == ["EMPTY=", "ONE=a b", "TWO=ä=ö"]
    assert runtime.run_process(["/usr/bin/env"], env={}).get(GUARD_S).stdout == b""


@pytest.mark.parametrize("data", [b"", b"a\0b\n", bytes(range(256)) * 4_000])
def test_program_reads_the_bytes_when_stdin_is_bytes(runtime: Runtime, data: bytes) -> None:
    result = runtime.run_process(["cat"], stdin=data).get(GUARD_S)
    assert result.stdout == data


@pytest.mark.parametrize("kind", [str, Path])
def test_program_reads_the_file_when_stdin_is_a_path(
    runtime: Runtime, tmp_path: Path, kind: Callable[[Path], Any]
) -> None:
    file = tmp_path / "input"
    file.write_bytes(b"from a file\n")
    assert runtime.run_process(["cat"], stdin=kind(file)).get(GUARD_S).stdout == b"from a file\n"


@pytest.mark.parametrize("parameter", ["stdin", "stdout", "stderr"])
def test_error_names_the_file_when_it_cannot_be_opened(
    runtime: Runtime, tmp_path: Path, parameter: str
) -> None:
    path = tmp_path / "missing" / "file"
    handle = runtime.run_process(["true"], **{parameter: path})  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError) as caught:
        handle.get(GUARD_S)
    assert caught.value.filename == str(path)


def test_output_goes_to_files_when_paths_are_given(runtime: Runtime, tmp_path: Path) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    out.write_bytes(b"longer than what comes")
    result = runtime.run_process("echo out; echo err >&2", stdout=out, stderr=str(err)).get(GUARD_S)
    assert (out.read_bytes(), err.read_bytes()) == (b"out\n", b"err\n")
    assert (result.stdout, result.stderr) == (b"", b"")


def test_output_is_gone_when_discarded(runtime: Runtime) -> None:
    command = "echo out; echo err >&2"
    result = runtime.run_process(command, stdout=False).get(GUARD_S)
    assert (result.stdout, result.stderr) == (b"", b"err\n")
    result = runtime.run_process(command, stderr=False).get(GUARD_S)
    assert (result.stdout, result.stderr) == (b"out\n", b"")


@pytest.mark.parametrize(
    "arguments", [{"stdin": 3}, {"stdout": 3}, {"stderr": True}, {"stdout": b"\0"}, {"cwd": 3}]
)
def test_run_process_refuses_when_an_argument_is_of_another_kind(
    runtime: Runtime, arguments: dict[str, Any]
) -> None:
    with pytest.raises((TypeError, ValueError)):
        runtime.run_process(["true"], **arguments)
    runtime.wait_all(raise_on_error=True)


def test_output_is_whole_when_both_pipes_are_full(runtime: Runtime) -> None:
    size = 300_000
    script = f"import os; os.write(2, b'e' * {size}); os.write(1, b'o' * {size})"
    script += f"; os.write(2, b'e' * {size})"
    result = runtime.run_process([sys.executable, "-S", "-c", script]).get(GUARD_S)
    assert (result.exit_code, len(result.stdout), len(result.stderr)) == (0, size, 2 * size)


@pytest.mark.parametrize("word", ["a\0b", b"a\0b"])
def test_process_fails_when_a_word_holds_a_null(runtime: Runtime, word: Any) -> None:
    with pytest.raises((ValueError, OSError)):
        runtime.run_process(["echo", word]).get(GUARD_S)
    runtime.wait_all()


# --- files -------------------------------------------------------------------------------------


def test_digests_are_those_of_hashlib_when_files_are_of_many_sizes(
    runtime: Runtime, tmp_path: Path
) -> None:
    block = 256 << 10
    contents = [os.urandom(size) for size in (0, 1, 63, 64, block - 1, block, block + 1, 3_000_000)]
    paths: list[str | Path] = []
    for number, content in enumerate(contents * 3):
        path = tmp_path / f"file {number} ä"
        path.write_bytes(content)
        paths.append(path if number % 2 else str(path))
    digests = runtime.hash_files(paths).get(GUARD_S)
    assert digests == [hashlib.sha256(content).hexdigest() for content in contents * 3]


def test_digest_comes_twice_when_a_file_is_given_twice(runtime: Runtime, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert runtime.hash_files([file, file]).get(GUARD_S) == [digest, digest]
    assert runtime.hash_files([]).get(GUARD_S) == []
    assert runtime.hash_files([], name="given").name == "given"


def test_error_names_the_file_when_one_cannot_be_hashed(runtime: Runtime, tmp_path: Path) -> None:
    file, missing = tmp_path / "file", tmp_path / "missing"
    file.touch()
    with pytest.raises(FileNotFoundError) as caught:
        runtime.hash_files([file, missing, file]).get(GUARD_S)
    assert caught.value.filename == str(missing)
    with pytest.raises(IsADirectoryError) as caught_directory:
        runtime.hash_files([tmp_path]).get(GUARD_S)
    assert caught_directory.value.filename == str(tmp_path)


@pytest.mark.parametrize("how", ["copy", "link", "symlink"])
def test_file_is_staged_with_its_directories_when_nothing_is_there(
    runtime: Runtime, tmp_path: Path, how: Any
) -> None:
    source, target = tmp_path / "source", tmp_path / "a" / "b" / "target"
    source.write_bytes(b"content")
    source.chmod(0o640)
    assert runtime.stage_file(source, str(target), how=how).get(GUARD_S) == target
    assert target.read_bytes() == b"content"
    assert target.stat().st_mode & 0o777 == 0o640
    assert target.is_symlink() == (how == "symlink")
    assert (target.stat().st_ino == source.stat().st_ino) == (how != "copy")
    assert os.listdir(target.parent) == ["target"], "nothing else is left"


@pytest.mark.parametrize("how", ["copy", "link", "symlink"])
@pytest.mark.parametrize("there", ["file", "directory", "dangling"])
def test_staging_replaces_nothing_when_something_is_there(
    runtime: Runtime, tmp_path: Path, how: Any, there: str
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    if there == "file":
        target.write_bytes(b"old")
    elif there == "directory":
        target.mkdir()
    else:
        target.symlink_to("nowhere")
    with pytest.raises(FileExistsError) as caught:
        runtime.stage_file(source, target, how=how).get(GUARD_S)
    assert caught.value.filename == str(target)
    if there == "file":
        assert target.read_bytes() == b"old"
    elif there == "directory":
        assert os.listdir(target) == []
    else:
        assert os.readlink(target) == "nowhere"
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


@pytest.mark.parametrize("how", ["copy", "link", "symlink"])
def test_error_names_the_source_when_it_does_not_exist(
    runtime: Runtime, tmp_path: Path, how: Any
) -> None:
    source, target = tmp_path / "missing", tmp_path / "target"
    with pytest.raises(FileNotFoundError) as caught:
        runtime.stage_file(source, target, how=how).get(GUARD_S)
    assert caught.value.filename == str(source)
    assert not os.path.lexists(target)


def test_error_names_the_directory_when_it_cannot_be_made(runtime: Runtime, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.touch()
    handle = runtime.stage_file(source, source / "under" / "target")
    with pytest.raises(NotADirectoryError) as caught:
        handle.get(GUARD_S)
    assert str(caught.value.filename).startswith(str(source))


def test_staging_refuses_when_the_way_is_unknown(runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'copy', 'link' or 'symlink', not 'move'"):
        runtime.stage_file(tmp_path, tmp_path, how="move")  # type: ignore[arg-type]
    runtime.wait_all()


def test_one_wins_when_many_stage_to_the_same_target(runtime: Runtime, tmp_path: Path) -> None:
    sources = [tmp_path / f"source{number}" for number in range(20)]
    for number, source in enumerate(sources):
        source.write_bytes(bytes([number]) * 100_000)
    target = tmp_path / "target"
    handles = [runtime.stage_file(source, target) for source in sources]
    runtime.wait_all()
    winners = [number for number, handle in enumerate(handles) if handle.state == "done"]
    assert len(winners) == 1
    assert target.read_bytes() == bytes(winners) * 100_000
    errors = {type(handle.exception) for handle in handles if handle.state != "done"}
    assert errors == {FileExistsError}


def test_staging_is_too_late_to_cancel_when_it_has_ended(runtime: Runtime, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.touch()
    handle = runtime.stage_file(source, tmp_path / "target")
    handle.wait(GUARD_S)
    assert handle.cancel() is Cancellation.TOO_LATE
    assert handle.get() == tmp_path / "target"


# --- handles around others' tasks --------------------------------------------------------------


def test_handle_has_ended_with_none_when_made_around_nothing() -> None:
    handle: TaskHandle[None] = TaskHandle()
    assert (handle.done(), handle.state, handle.get(0), handle.exception) == (
        True,
        "done",
        None,
        None,
    )
    assert handle.task_id == -1
    assert TaskHandle(name="given", task_id=7).name == "given"
    assert TaskHandle(name="given", task_id=7).task_id == 7


def test_handle_ends_as_the_future_when_it_is_done_later() -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    handle = TaskHandle(future=future, name="future")
    assert (handle.done(), handle.exception, handle.name) == (False, None, "future")
    with pytest.raises(TimeoutError):
        handle.get(0)
    future.set_result(3)
    assert (handle.done(), handle.state, handle.get(GUARD_S)) == (True, "done", 3)


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_handle_fails_as_the_future_when_it_fails(kind: type[BaseException]) -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    handle, error = TaskHandle(future=future), kind("x")
    future.set_exception(error)
    assert handle.state == "failed"
    assert handle.exception is error
    with pytest.raises(kind) as caught:
        handle.get(GUARD_S)
    assert caught.value is error


def test_handle_has_ended_when_the_future_has() -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    future.set_result(3)
    assert TaskHandle(future=future).get(0) == 3
    cancelled: concurrent.futures.Future[int] = concurrent.futures.Future()
    cancelled.cancel()
    assert TaskHandle(future=cancelled).state == "cancelled"


def test_future_is_cancelled_when_the_handle_around_it_is() -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    handle = TaskHandle(future=future)
    assert handle.cancel()
    assert future.cancelled()
    assert handle.state == "cancelled"
    with pytest.raises(concurrent.futures.CancelledError):
        handle.get(GUARD_S)
    assert handle.cancel() is Cancellation.TOO_LATE


def test_cancel_is_too_late_when_the_future_runs() -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()
    handle = TaskHandle(future=future)
    assert handle.cancel() is Cancellation.TOO_LATE
    future.set_result(1)
    assert handle.get(GUARD_S) == 1


def test_waiters_wake_when_the_future_of_a_thread_pool_ends() -> None:
    release = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        handle = TaskHandle(future=pool.submit(release.wait, GUARD_S))
        waits = [pool.submit(handle.get, GUARD_S) for _ in range(2)]
        release.set()
        assert [wait.result(GUARD_S) for wait in waits] == [True, True]
        assert list(as_completed([handle], GUARD_S)) == [handle]


async def test_await_gives_the_futures_result_when_the_handle_is_around_one(
    new_loop: NewLoop,
) -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    handle = TaskHandle(future=future)
    asyncio.get_running_loop().call_soon(future.set_result, 3)
    assert await handle == 3


def test_handle_ends_as_the_other_when_made_around_a_handle(
    runtime: Runtime, one_worker: Runtime
) -> None:
    good, bad = one_worker.submit(echo, 3), one_worker.submit(fail, ValueError("x"))
    around = TaskHandle(good)
    assert around is not good
    assert around.get(GUARD_S) == 3
    assert (around.name, around.task_id) == (good.name, good.task_id)
    failed = TaskHandle(native=bad, name="other", task_id=9)
    assert (failed.name, failed.task_id) == ("other", 9)
    with pytest.raises(ValueError, match="x"):
        failed.get(GUARD_S)
    assert failed.exception is bad.exception
    assert runtime.submit(around) is around


def test_queued_task_is_cancelled_when_the_handle_around_it_is(one_worker: Runtime) -> None:
    with busy(one_worker):
        inner = one_worker.submit(echo, 1)
        outer = TaskHandle(inner)
        assert outer.cancel()
        assert (inner.state, outer.state) == ("cancelled", "cancelled")
        second = one_worker.submit(echo, 1)
        around = TaskHandle(second)
        second.cancel()
        assert around.state == "cancelled"


def test_process_is_killed_when_the_handle_around_it_is_cancelled(runtime: Runtime) -> None:
    inner = runtime.run_process(["sleep", "600"])
    outer = TaskHandle(inner)
    assert outer.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        outer.get(GUARD_S)
    assert inner.state == "cancelled"


def test_constructor_refuses_when_its_arguments_do_not_fit(runtime: Runtime) -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    with pytest.raises((TypeError, ValueError)):
        TaskHandle(runtime.submit(echo, 1), future)
    for thing in (3, object(), asyncio.Queue):
        with pytest.raises(TypeError, match="Future"):
            TaskHandle(future=thing)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        TaskHandle(native=future)  # type: ignore[arg-type]


def test_wait_of_a_runtime_waits_when_the_handle_is_of_any_kind(
    runtime: Runtime, one_worker: Runtime
) -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    around = TaskHandle(future=future)
    with pytest.raises(TimeoutError):
        runtime.wait(around, 0)
    future.set_result(1)
    runtime.wait(around)
    failed = one_worker.submit(fail, ValueError())
    with pytest.raises(ValueError):  # noqa: PT011
        runtime.wait(failed)
    assert failed.state == "failed"


def test_handle_class_can_be_subscripted_when_used_as_a_type() -> None:
    alias = TaskHandle[int]
    assert isinstance(alias, types.GenericAlias)
    assert (alias.__origin__, alias.__args__) == (TaskHandle, (int,))
    assert isinstance(alias(), TaskHandle)


# --- sizes -------------------------------------------------------------------------------------


def test_sizes_are_the_given_ones_when_given() -> None:
    with Runtime(threads=3, io_threads=5, python_threads=7) as runtime:
        assert (runtime.threads, runtime.io_threads) == (3, 5)
        assert runtime.sizes == {"threads": 3, "io_threads": 5, "python_threads": 7}


def test_sizes_follow_the_cpus_when_none_is_given() -> None:
    with Runtime() as runtime:
        cpus = available_cpus()
        assert (runtime.threads, runtime.io_threads) == (cpus, cpus)
        assert runtime.sizes["python_threads"] == min(32, cpus)
    with Runtime(threads=100) as runtime:
        assert runtime.sizes["python_threads"] == 32


@pytest.mark.parametrize("function", [echo, echo_later])
def test_python_threads_are_none_until_the_lane_starts_when_asked(
    function: Callable[[int], Any],
) -> None:
    with Runtime(threads=1, io_threads=1, python_threads=3) as runtime:
        assert runtime.python_threads == 0
        runtime.run_process(["true"]).get(GUARD_S)
        runtime.submit_io(echo, 1).get(GUARD_S)
        assert runtime.python_threads == 0
        runtime.submit(function, 1).get(GUARD_S)
        assert runtime.python_threads == 3


@pytest.mark.parametrize("name", ["threads", "io_threads", "python_threads"])
def test_runtime_refuses_when_a_size_is_no_size(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Runtime(**{name: -1})
    with pytest.raises(TypeError):
        Runtime(**{name: 1.5})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["threads", "io_threads", "sizes"])
def test_sizes_are_read_only_when_set(runtime: Runtime, name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(runtime, name, 3)


def test_partial_of_a_coroutine_function_is_awaited_when_submitted_to_io(
    runtime: Runtime,
) -> None:
    assert runtime.submit_io(functools.partial(echo_later, 4)).get(GUARD_S) == 4


# --- subclasses --------------------------------------------------------------------------------


class Named(Runtime):
    """A runtime whose constructor has other parameters."""

    def __init__(self, label: str, *, size: int = 2) -> None:
        super().__init__(threads=size, io_threads=1, python_threads=size)
        self.label = label

    def double(self, number: int) -> TaskHandle[int]:
        return self.submit(lambda: 2 * number)


def test_runtime_works_when_a_subclass_has_other_parameters() -> None:
    with Named("mine", size=3) as named:
        assert (named.label, named.threads, named.double(4).get()) == ("mine", 3, 8)
        assert list(named.map(abs, [-1, -2])) == [1, 2]
        assert named.run_process(["true"]).get().exit_code == 0
        assert named.sizes == {"threads": 3, "io_threads": 1, "python_threads": 3}
    assert "mine" in vars(named).values()


def test_runtime_has_default_sizes_when_a_subclass_never_sets_it_up() -> None:
    class Careless(Runtime):
        def __init__(self) -> None:
            pass

    with Careless() as careless:
        assert careless.threads == available_cpus()
        assert careless.submit(abs, -1).get() == 1


def test_setting_up_is_refused_when_the_runtime_was_set_up(runtime: Runtime) -> None:
    with pytest.raises(RuntimeError, match="set up before"):
        runtime.__init__(threads=1)  # type: ignore[misc]
    assert runtime.submit(abs, -1).get() == 1


def test_constructor_of_a_runtime_refuses_when_a_parameter_is_unknown() -> None:
    with pytest.raises(TypeError):
        Runtime(workers=3)  # type: ignore[call-arg]


class Labelled(TaskHandle[Any]):
    """A handle with more to tell."""

    label = "none"

    def shout(self) -> str:
        return self.name.upper()


@pytest.mark.parametrize("end", ["value", "error", "cancelled"])
def test_subclass_of_the_handle_follows_its_future(end: str) -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    handle = Labelled(future=future, name="followed")
    handle.label = "mine"
    assert (type(handle), handle.shout(), handle.done()) == (Labelled, "FOLLOWED", False)
    if end == "value":
        future.set_result(7)
        assert (handle.get(), handle.wait()) == (7, None)  # type: ignore[func-returns-value]
    elif end == "error":
        future.set_exception(LookupError("its"))
        with pytest.raises(LookupError, match="its"):
            handle.wait()
    else:
        assert handle.cancel()
        assert future.cancelled()
        with pytest.raises(concurrent.futures.CancelledError):
            handle.wait()
    assert handle.done()


def test_subclass_of_the_handle_is_passed_on_when_it_is_submitted(runtime: Runtime) -> None:
    handle = Labelled(native=runtime.submit(abs, -1))
    assert runtime.submit(handle) is handle
    assert handle.get(GUARD_S) == 1


def test_subclass_of_the_handle_may_have_a_constructor_of_its_own() -> None:
    class Own(TaskHandle[Any]):
        def __init__(self, future: concurrent.futures.Future[Any], name: str = "own") -> None:
            super().__init__(future=future, name=name)

    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    handle = Own(future)
    future.set_result(3)
    assert handle.get(GUARD_S) == 3


class Doubling(concurrent.futures.Future[int]):
    def result(self, timeout: float | None = None) -> int:
        return 2 * super().result(timeout)


class Refusing(concurrent.futures.Future[int]):
    def result(self, timeout: float | None = None) -> int:
        raise LookupError(f"no result after {timeout}")


def test_handle_follows_the_future_when_that_is_of_a_subclass() -> None:
    future = Doubling()
    handle = TaskHandle(future=future)
    future.set_result(4)
    assert handle.get(GUARD_S) == 8


def test_handle_fails_when_its_future_raises_what_it_was_not_given() -> None:
    future = Refusing()
    handle = TaskHandle(future=future)
    future.set_result(4)
    with pytest.raises(LookupError, match="no result"):
        handle.get(GUARD_S)


def test_runtimes_own_task_follows_nobody_when_it_is_set_up_again(runtime: Runtime) -> None:
    handle = runtime.submit(abs, -1)
    with pytest.raises(TypeError, match="ends by itself"):
        handle.__init__(future=concurrent.futures.Future())  # type: ignore[misc]
    assert handle.get(GUARD_S) == 1


# --- sizes from the environment ----------------------------------------------------------------


def sizes_of(*sizes: int) -> tuple[int, ...]:
    with Runtime(*sizes) as runtime:
        return tuple(runtime.sizes.values())


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (3, 2, 4)),
        ({"DFTRACER_UTILS_THREADS": "5"}, (5, 2, 4)),
        ({"DFTRACER_UTILS_IO_THREADS": " 7 "}, (3, 7, 4)),
        ({"DFTRACER_UTILS_THREADS": "5", "DFTRACER_UTILS_IO_THREADS": "7"}, (5, 7, 4)),
        ({"DFTRACER_UTILS_THREADS": "0"}, (3, 2, 4)),
        ({"DFTRACER_UTILS_THREADS": "-1", "DFTRACER_UTILS_IO_THREADS": "many"}, (3, 2, 4)),
    ],
)
def test_sizes_are_the_environments_when_it_gives_some(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: tuple[int, ...]
) -> None:
    for name in ("DFTRACER_UTILS_THREADS", "DFTRACER_UTILS_IO_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert sizes_of(3, 2, 4) == expected


def test_python_threads_follow_when_the_environment_gives_the_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DFTRACER_UTILS_THREADS", "40")
    assert sizes_of(3, 2)[::2] == (40, 32)
