"""Coroutine functions as tasks: asyncio is all there, and a suspended body holds no worker."""

import asyncio
import concurrent.futures
import contextvars
import functools
import gc
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import AsyncMock

import pytest
from handle_support import ended

from dftracer.utils import Cancellation, Runtime, TaskHandle
from dftracer.utils.from_native.event_loop import start_now

GUARD_S = 30
"""How long a body or a test waits for what must come."""

Script = Callable[..., str]

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

needs_3_11 = pytest.mark.skipif(sys.version_info < (3, 11), reason="came with Python 3.11")


@pytest.fixture(name="runtime")
def make_runtime() -> Iterator[Runtime]:
    with Runtime(python_threads=2) as runtime:
        yield runtime


@pytest.fixture(name="one_worker")
def make_one_worker() -> Iterator[Runtime]:
    with Runtime(python_threads=1) as runtime:
        yield runtime


class Rendezvous:
    """Where coroutine bodies of one loop wait until a plain thread lets them go."""

    def __init__(self, bodies: int) -> None:
        self._bodies = bodies
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gate = asyncio.Event()
        self.arrived = threading.Event()

    async def wait(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._bodies -= 1
        if not self._bodies:
            self.arrived.set()
        await self._gate.wait()

    def open(self) -> None:
        assert self.arrived.wait(GUARD_S)
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._gate.set)


async def echo(value: Any) -> Any:
    return value


async def echo_later(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


async def fail(error: BaseException) -> None:
    raise error


async def fail_later(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


# --- asyncio is all there ----------------------------------------------------------------------


async def use_current_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    assert task in asyncio.all_tasks()
    await asyncio.sleep(0)
    assert asyncio.current_task() is task


async def use_get_running_loop() -> None:
    loop = asyncio.get_running_loop()
    assert loop.is_running()
    await asyncio.sleep(0)
    assert asyncio.get_running_loop() is loop


async def use_wait_for_in_time() -> None:
    assert await asyncio.wait_for(echo_later(3), GUARD_S) == 3


async def use_wait_for_too_late() -> None:
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 0.01)


async def use_timeout_in_time() -> None:
    async with asyncio.timeout(GUARD_S):  # type: ignore[attr-defined,unused-ignore]
        await asyncio.sleep(0)


async def use_timeout_too_late() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):  # type: ignore[attr-defined,unused-ignore]
            await asyncio.Event().wait()


async def use_task_group() -> None:
    async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined,unused-ignore]
        tasks = [group.create_task(echo_later(number)) for number in range(5)]
    assert [task.result() for task in tasks] == list(range(5))


async def use_task_group_that_fails() -> None:
    caught: list[BaseException] = []
    try:
        async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined,unused-ignore]
            group.create_task(fail_later(ValueError("of a child")))
            group.create_task(asyncio.Event().wait())
    except BaseException as error:
        caught += error.exceptions  # type: ignore[attr-defined]
    assert [str(error) for error in caught] == ["of a child"]


async def use_gather() -> None:
    assert await asyncio.gather(*map(echo_later, range(5))) == list(range(5))


async def use_create_task() -> None:
    task = asyncio.create_task(echo_later(1), name="child")
    assert await task == 1


async def use_shield_and_cancel() -> None:
    task = asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.shield(task)


async def use_to_thread() -> None:
    assert await asyncio.to_thread(threading.get_ident) != threading.get_ident()


async def use_queue() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue(1)

    async def produce() -> None:
        for number in range(5):
            await queue.put(number)

    producer = asyncio.create_task(produce())
    assert [await queue.get() for _ in range(5)] == list(range(5))
    await producer


async def use_lock() -> None:
    lock = asyncio.Lock()
    async with lock:
        assert lock.locked()


async def use_async_generator() -> None:
    async def count() -> AsyncIterator[int]:
        for number in range(3):
            await asyncio.sleep(0)
            yield number

    assert [number async for number in count()] == [0, 1, 2]


async def use_async_context_manager() -> None:
    @asynccontextmanager
    async def manage() -> AsyncIterator[int]:
        await asyncio.sleep(0)
        yield 1
        await asyncio.sleep(0)

    async with manage() as value:
        assert value == 1


async def use_call_later() -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()
    loop.call_later(0.001, future.set_result, 3)
    assert await future == 3


async def use_subprocess() -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("echo", "text", stdout=pipe)
    out, _ = await process.communicate()
    assert (out, process.returncode) == (b"text\n", 0)


async def use_streams() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"text\n")
    assert await reader.read() == b"text\n"
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


USES = [
    use_current_task,
    use_get_running_loop,
    use_wait_for_in_time,
    use_wait_for_too_late,
    pytest.param(use_timeout_in_time, marks=needs_3_11),
    pytest.param(use_timeout_too_late, marks=needs_3_11),
    pytest.param(use_task_group, marks=needs_3_11),
    pytest.param(use_task_group_that_fails, marks=needs_3_11),
    use_gather,
    use_create_task,
    use_shield_and_cancel,
    use_to_thread,
    use_queue,
    use_lock,
    use_async_generator,
    use_async_context_manager,
    use_call_later,
    use_subprocess,
    use_streams,
]


@pytest.mark.parametrize("use", USES)
def test_asyncio_works_when_used_in_the_first_step(
    runtime: Runtime, use: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    runtime.submit(use).get(GUARD_S)


@pytest.mark.parametrize("use", USES)
def test_asyncio_works_when_used_after_a_suspension(
    runtime: Runtime, use: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    async def body() -> None:
        await asyncio.sleep(0)
        await use()

    runtime.submit(body).get(GUARD_S)


@pytest.mark.parametrize("use", USES)
def test_asyncio_works_when_a_plain_body_calls_run(
    runtime: Runtime, use: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    def body() -> None:
        asyncio.run(use())

    runtime.submit(body).get(GUARD_S)


def test_asyncio_run_is_refused_when_a_coroutine_body_calls_it(runtime: Runtime) -> None:
    async def body() -> None:
        coroutine = echo(1)
        try:
            asyncio.run(coroutine)
        finally:
            coroutine.close()

    with pytest.raises(RuntimeError, match="running event loop"):
        runtime.submit(body).get(GUARD_S)


def test_there_is_no_running_loop_when_the_body_is_plain(one_worker: Runtime) -> None:
    one_worker.submit(echo_later, 1).get()
    with pytest.raises(RuntimeError, match="no running event loop"):
        one_worker.submit(asyncio.get_running_loop).get()


def test_each_body_is_a_task_of_its_own_when_none_suspends(one_worker: Runtime) -> None:
    async def body() -> asyncio.Task[Any] | None:
        return asyncio.current_task()

    tasks = [handle.get() for handle in [one_worker.submit(body) for _ in range(10)]]
    assert None not in tasks
    assert len(set(tasks)) == 10


def test_the_next_body_is_spared_when_one_cancels_its_own_task(one_worker: Runtime) -> None:
    async def cancel_itself() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return "returned"

    handles = []
    for _ in range(20):
        handles.append((one_worker.submit(cancel_itself), "returned"))
        handles.append((one_worker.submit(echo_later, 3), 3))
        handles.append((one_worker.submit(echo, 4), 4))
    assert [handle.get(GUARD_S) for handle, _ in handles] == [result for _, result in handles]


def test_a_callback_on_the_task_runs_when_its_body_has_ended(one_worker: Runtime) -> None:
    ended: list[int] = []

    async def body(number: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _: ended.append(number))

    async def hold() -> list[int]:
        await asyncio.sleep(0)  # what has ended before tells so now
        return list(ended)

    first, second = one_worker.submit(body, 1), one_worker.submit(body, 2)
    assert one_worker.submit(hold).get(GUARD_S) == [1, 2]
    assert first.get() is second.get() is None


def test_each_body_has_its_own_context_when_they_share_a_task(one_worker: Runtime) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    async def add(number: int, suspend: bool) -> tuple[int, int]:
        before = variable.get()
        variable.set(before + number)
        if suspend:
            await asyncio.sleep(0)
        return before, variable.get()

    variable.set(100)
    handles = [one_worker.submit(add, n, suspend=n % 3 == 0) for n in range(60)]
    assert [handle.get(GUARD_S) for handle in handles] == [(100, 100 + n) for n in range(60)]
    assert variable.get() == 100


# --- what is awaited ---------------------------------------------------------------------------


class Awaiting:
    async def __call__(self, value: Any) -> Any:
        return await echo_later(value)

    async def method(self, value: Any) -> Any:
        return await echo_later(value)


@functools.wraps(echo_later)
def wrapped(value: Any) -> Coroutine[Any, Any, Any]:
    return echo_later(value)


@pytest.mark.parametrize(
    "function",
    [
        echo,
        echo_later,
        lambda value: echo_later(value),
        functools.partial(echo_later),
        functools.partial(asyncio.sleep, 0),
        Awaiting(),
        Awaiting().method,
        wrapped,
        AsyncMock(side_effect=echo_later),
    ],
)
def test_result_is_what_the_coroutine_returns_when_a_callable_makes_one(
    one_worker: Runtime, function: Callable[..., Any]
) -> None:
    result = object()
    handle = one_worker.submit(function, result)
    assert handle.get(GUARD_S) is result
    assert handle.state == "done"


def test_error_is_what_the_coroutine_raises_when_a_plain_callable_makes_one(
    one_worker: Runtime,
) -> None:
    for function in (fail, fail_later):
        with pytest.raises(ValueError, match="of the coroutine"):
            one_worker.submit(functools.partial(function, ValueError("of the coroutine"))).get()
    assert len(one_worker.get_failed()) == 2


def test_coroutine_runs_in_the_loop_when_a_waiting_task_has_called_its_maker(
    one_worker: Runtime,
) -> None:
    def body() -> int:
        handle = one_worker.submit(functools.partial(echo_later, 3))
        result: int = handle.get(GUARD_S)
        return result

    assert one_worker.submit(body).get(GUARD_S) == 3


class LooksAwaitable:
    def __await__(self) -> Generator[None, None, int]:
        yield
        return 3


@pytest.mark.parametrize("make", [LooksAwaitable, lambda: (number for number in range(3))])
def test_result_is_returned_as_it_is_when_it_is_no_coroutine(
    one_worker: Runtime, make: Callable[[], Awaitable[int] | Generator[int, None, None]]
) -> None:
    thing = make()
    assert one_worker.submit(lambda: thing).get() is thing
    assert one_worker.submit(echo, thing).get() is thing


def test_get_raises_type_error_when_arguments_do_not_fit(one_worker: Runtime) -> None:
    with pytest.raises(TypeError, match="positional argument"):
        one_worker.submit(echo, 1, 2, 3).get(GUARD_S)
    with pytest.raises(TypeError, match="unexpected"):
        one_worker.submit(echo, 1, unexpected=2).get(GUARD_S)


def test_name_and_thread_tell_the_coroutine_when_it_runs(one_worker: Runtime) -> None:
    async def body() -> str:
        return threading.current_thread().name

    handle = one_worker.submit(body)
    assert handle.get().startswith("dft-")
    assert handle.name == f"{__name__}.{body.__qualname__}"


# --- context -----------------------------------------------------------------------------------


def test_body_sees_context_of_submit_when_it_suspends(one_worker: Runtime) -> None:
    async def body() -> list[str]:
        before = variable.get()
        await asyncio.sleep(0)
        return [before, variable.get(), await asyncio.create_task(read())]

    async def read() -> str:
        return variable.get()

    handles = []
    for text in ("one", "two", "three"):
        token = variable.set(text)
        handles.append(one_worker.submit(body))
        variable.reset(token)
    assert [handle.get() for handle in handles] == [["one"] * 3, ["two"] * 3, ["three"] * 3]


def test_context_stays_the_bodys_own_when_several_change_it_in_turn(one_worker: Runtime) -> None:
    meeting = Rendezvous(3)

    async def body(text: str) -> str:
        variable.set(text)
        await meeting.wait()
        return variable.get()

    handles = [one_worker.submit(body, text) for text in "abc"]
    meeting.open()
    assert [handle.get() for handle in handles] == ["a", "b", "c"]
    assert one_worker.submit(echo_later, None).get() is None
    assert variable.get() == "unset"


def test_coroutine_sees_what_its_maker_has_set_when_a_plain_callable_made_it(
    one_worker: Runtime,
) -> None:
    async def read() -> str:
        return variable.get()

    def make() -> Coroutine[Any, Any, str]:
        variable.set("by the maker")
        return read()

    handle: TaskHandle[Any] = one_worker.submit(make)
    assert handle.get() == "by the maker"


# --- who holds a worker ------------------------------------------------------------------------


def test_first_steps_run_side_by_side_when_they_block() -> None:
    together = threading.Barrier(4)

    async def body() -> int:
        return together.wait(GUARD_S)

    with Runtime(python_threads=4) as runtime:
        handles = [runtime.submit(body) for _ in range(4)]
        assert sorted(handle.get() for handle in handles) == [0, 1, 2, 3]


def test_new_body_begins_when_a_resumed_one_blocks(runtime: Runtime) -> None:
    resumed, release = threading.Event(), threading.Event()

    async def blocks() -> bool:
        await asyncio.sleep(0)
        resumed.set()
        return release.wait(GUARD_S / 3)

    async def releases() -> None:
        release.set()

    handle = runtime.submit(blocks)
    assert resumed.wait(GUARD_S)
    runtime.submit(releases)
    assert handle.get(), "the second of two workers was free and did not take the task"


def test_suspended_bodies_share_a_loop_when_there_is_one_worker(one_worker: Runtime) -> None:
    meeting = Rendezvous(200)

    async def body(number: int) -> int:
        await meeting.wait()
        return number

    handles = [one_worker.submit(body, number) for number in range(200)]
    assert meeting.arrived.wait(GUARD_S)
    assert not any(handle.done() for handle in handles)
    assert one_worker.submit(echo, "coroutine").get(GUARD_S) == "coroutine"
    assert one_worker.submit(str, "plain").get(GUARD_S) == "plain"
    meeting.open()
    assert [handle.get(GUARD_S) for handle in handles] == list(range(200))


def test_bodies_of_one_loop_can_wait_for_one_another_when_there_is_one_worker(
    one_worker: Runtime,
) -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def consume() -> int:
        return sum([await queue.get() for _ in range(100)])

    async def produce(number: int) -> None:
        await queue.put(number)

    total = one_worker.submit(consume)
    for number in range(100):
        one_worker.submit(produce, number)
    assert total.get(GUARD_S) == sum(range(100))


def test_queued_bodies_begin_when_a_body_never_stops_yielding(one_worker: Runtime) -> None:
    stop: list[bool] = []

    async def spin() -> None:
        while not stop:  # noqa: ASYNC110 - never waiting for anything is what it is here for
            await asyncio.sleep(0)

    async def end() -> None:
        stop.append(True)

    spinner = one_worker.submit(spin)
    one_worker.submit(end).get(GUARD_S)
    spinner.get(GUARD_S)


def leave_timer(done: threading.Event) -> None:
    asyncio.get_running_loop().call_later(0.02, done.set)


def leave_background_task(done: threading.Event) -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        done.set()

    _kept.append(asyncio.get_running_loop().create_task(work()))


def leave_reader(done: threading.Event) -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()

    def read() -> None:
        ours.recv(1)
        loop.remove_reader(ours)
        ours.close()
        theirs.close()
        done.set()

    loop.add_reader(ours, read)
    timer = threading.Timer(0.02, theirs.send, (b"x",))
    timer.daemon = True
    timer.start()


def leave_call_of_a_thread(done: threading.Event) -> None:
    loop = asyncio.get_running_loop()
    timer = threading.Timer(0.02, loop.call_soon_threadsafe, (done.set,))
    timer.daemon = True
    timer.start()


_kept: list[Any] = []


@pytest.mark.parametrize(
    "leave", [leave_timer, leave_background_task, leave_reader, leave_call_of_a_thread]
)
def test_what_a_body_leaves_in_the_loop_goes_on_when_the_loop_was_looking_for_tasks(
    one_worker: Runtime, leave: Callable[[threading.Event], None]
) -> None:
    async def body(number: int) -> int:
        return number

    async def leaving(done: threading.Event) -> None:
        leave(done)

    for _ in range(10):
        # So many in a row that the worker does not sleep between them, but looks for the next.
        for number in range(300):
            assert one_worker.submit(body, number).get(GUARD_S) == number
        done = threading.Event()
        one_worker.submit(leaving, done).get(GUARD_S)
        assert done.wait(GUARD_S)


def test_a_suspended_body_goes_on_when_the_next_task_always_comes_at_once(
    one_worker: Runtime,
) -> None:
    count = 0

    async def block() -> None:
        nonlocal count
        time.sleep(0.005)  # noqa: ASYNC251 - to block is what it is for
        count += 1

    async def neighbour() -> int:
        begun.set()
        await asyncio.sleep(0)
        return count

    begun = threading.Event()
    for _ in range(20):  # until it is worth while to look for the next
        one_worker.submit(block).get(GUARD_S)
    resumed = one_worker.submit(neighbour)
    assert begun.wait(GUARD_S)
    before = count
    for _ in range(40):
        one_worker.submit(block).get(GUARD_S)
    assert resumed.get(GUARD_S) - before < 20


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="tasks can make their first step eagerly")
def test_first_step_is_made_at_once_when_another_thread_adds_to_the_loop_meanwhile() -> None:
    class Disturbed(asyncio.SelectorEventLoop):
        def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
            handle = super().call_soon(callback, *args, context=context)
            if callback != self.stop:
                self.call_soon_threadsafe(order.append, "stranger")
            return handle

    async def body() -> None:
        order.append("body")

    def begin() -> None:
        order.clear()
        begun.append(start_now(loop, body()))
        order.append("begun")

    order: list[str] = []
    begun: list[asyncio.Task[None]] = []
    loop = Disturbed()
    try:
        loop.call_soon(begin)
        loop.call_soon(loop.stop)
        loop.run_forever()
    finally:
        loop.close()
    assert order == ["body", "begun", "stranger"]
    assert begun[0].done()


def test_every_body_ends_when_a_burst_is_larger_than_any_batch(runtime: Runtime) -> None:
    functions = (echo, echo_later)
    handles = [runtime.submit(functions[number % 2], number) for number in range(3_000)]
    assert [handle.get(GUARD_S) for handle in handles] == list(range(3_000))


def test_bodies_begin_in_order_when_there_is_one_worker(one_worker: Runtime) -> None:
    begun: list[int] = []

    async def body(number: int) -> None:
        begun.append(number)

    for number in range(500):
        one_worker.submit(body, number)
    one_worker.wait_all()
    assert begun == list(range(500))


def test_a_background_task_goes_on_when_the_body_that_made_it_has_ended(
    one_worker: Runtime,
) -> None:
    kept: list[asyncio.Task[None]] = []
    go_on, ended = asyncio.Event(), threading.Event()

    async def background() -> None:
        await go_on.wait()
        ended.set()

    async def begin() -> None:
        kept.append(asyncio.create_task(background()))

    async def let_go_on() -> None:
        go_on.set()

    one_worker.submit(begin).get(GUARD_S)
    one_worker.submit(let_go_on).get(GUARD_S)
    assert ended.wait(GUARD_S)


def test_a_background_task_is_cancelled_when_the_runtime_shuts_down() -> None:
    kept: list[asyncio.Task[None]] = []
    told: list[str] = []

    async def background() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    async def begin() -> None:
        kept.append(asyncio.create_task(background()))
        await asyncio.sleep(0)

    with Runtime(python_threads=1) as runtime:
        runtime.submit(begin).get(GUARD_S)
    assert told == ["cancelled"]
    assert kept[0].cancelled()


# --- get inside a coroutine body ---------------------------------------------------------------


@pytest.mark.parametrize("function", [abs, echo, echo_later, functools.partial(echo_later)])
@pytest.mark.parametrize("suspensions", [0, 2])
@pytest.mark.parametrize("workers", [1, 2])
def test_get_inside_a_body_returns_when_the_task_was_just_submitted(
    workers: int, suspensions: int, function: Callable[[int], Any]
) -> None:
    async def body() -> Any:
        for _ in range(suspensions):
            await asyncio.sleep(0)
        return runtime.submit(function, 3).get(GUARD_S / 3)

    with Runtime(python_threads=workers) as runtime:
        assert runtime.submit(body).get(GUARD_S) == 3


def test_get_inside_a_body_does_not_hang_when_the_task_waits_in_the_same_loop(
    run_script: Script,
) -> None:
    # The loop cannot run the one while it blocks in the other: a result or an error will do.
    out = run_script(
        """
        import asyncio
        from dftracer.utils import Runtime

        async def inner():
            begun.set()
            await asyncio.sleep(0)
            return "result"

        async def outer():
            global begun
            begun = asyncio.Event()
            handle = runtime.submit(inner)
            await begun.wait()
            return handle.get()

        with Runtime(python_threads=1) as runtime:
            try:
                print(runtime.submit(outer).get())
            except RuntimeError:
                print("result")
        """
    )
    assert out == "result\n"


def test_wait_all_inside_a_body_does_not_hang_when_another_waits_in_the_same_loop(
    run_script: Script,
) -> None:
    out = run_script(
        """
        import asyncio
        from dftracer.utils import Runtime

        async def inner():
            begun.set()
            await asyncio.sleep(0)

        async def outer():
            global begun
            begun = asyncio.Event()
            runtime.submit(inner)
            await begun.wait()
            runtime.wait_all()

        with Runtime(python_threads=1) as runtime:
            try:
                runtime.submit(outer).get()
            except RuntimeError:
                pass
        print("over")
        """
    )
    assert out == "over\n"


# --- errors ------------------------------------------------------------------------------------

KINDS = [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit]


@pytest.mark.parametrize("function", [fail, fail_later])
@pytest.mark.parametrize("kind", KINDS)
def test_get_raises_what_the_body_raised_when_it_failed(
    one_worker: Runtime,
    kind: type[BaseException],
    function: Callable[[BaseException], Coroutine[Any, Any, None]],
) -> None:
    meeting, error = Rendezvous(1), kind("reason")
    neighbour = one_worker.submit(meeting.wait)
    handle = one_worker.submit(function, error)
    with pytest.raises(kind) as caught:
        handle.get(GUARD_S)
    assert caught.value is error
    assert handle.state == "failed"
    assert handle.exception is error
    assert not neighbour.done(), "the loop goes on for those that wait in it"
    meeting.open()
    neighbour.get(GUARD_S)
    assert one_worker.submit(echo_later, 3).get(GUARD_S) == 3
    assert one_worker.get_failed() == [handle]


@pytest.mark.parametrize("kind", KINDS)
def test_every_body_ends_when_a_child_task_of_one_raises(
    run_script: Script, kind: type[BaseException]
) -> None:
    # asyncio lets SystemExit and KeyboardInterrupt of a task out through its loop.
    out = run_script(
        f"""
        import asyncio
        import os
        import sys
        from dftracer.utils import Runtime

        async def child():
            raise {kind.__name__}("of the child")

        async def body():
            await asyncio.create_task(child())

        async def neighbour():
            begun.set()
            await gate.wait()
            return "neighbour"

        async def begin():
            global begun, gate
            begun, gate = asyncio.Event(), asyncio.Event()

        async def let_go():
            await begun.wait()
            gate.set()

        async def later():
            await asyncio.sleep(0)
            return "later"

        runtime = Runtime(python_threads=1)
        runtime.submit(begin).get()
        beside = runtime.submit(neighbour)
        handle = runtime.submit(body)
        try:
            handle.get(10)
        except TimeoutError:
            print("never ended")
        except BaseException as error:
            print(type(error).__name__)
        try:
            print(runtime.submit(later).get(10))
            runtime.submit(let_go)
            print(beside.get(10))
        except TimeoutError as error:
            print(error)
        sys.stdout.flush()
        os._exit(0)
        """,
        stderr=None,  # a note about the child is welcome
    )
    assert out == f"{kind.__name__}\nlater\nneighbour\n"


def test_every_body_ends_when_one_stops_the_loop(run_script: Script) -> None:
    out = run_script(
        """
        import asyncio
        import os
        import sys
        from dftracer.utils import Runtime

        async def neighbour():
            await asyncio.sleep(0.01)
            return "neighbour"

        async def stop():
            asyncio.get_running_loop().stop()
            return "stop"

        runtime = Runtime(python_threads=1)
        handles = [runtime.submit(body) for body in (neighbour, stop, neighbour)]
        try:
            print(*(handle.get(10) for handle in handles), runtime.submit(neighbour).get(10))
        except TimeoutError as error:
            print(error)
        sys.stdout.flush()
        os._exit(0)
        """
    )
    assert out == "neighbour stop neighbour neighbour\n"


def test_body_fails_with_runtime_error_when_it_raises_stop_iteration(one_worker: Runtime) -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        one_worker.submit(fail, StopIteration(3)).get(GUARD_S)


def test_handle_ends_when_the_error_does_not_let_itself_be_changed(run_script: Script) -> None:
    out = run_script(
        """
        import asyncio
        import dataclasses
        import os
        import sys
        from dftracer.utils import Runtime

        @dataclasses.dataclass(frozen=True)
        class FrozenError(Exception):
            code: int

        async def body():
            raise FrozenError(1)

        async def body_later():
            await asyncio.sleep(0)
            raise FrozenError(2)

        runtime = Runtime(python_threads=1)
        for function in (body, body_later):
            try:
                runtime.submit(function).get(10)
            except Exception as error:
                print(type(error).__name__, getattr(error, "code", error))
        sys.stdout.flush()
        os._exit(0)
        """
    )
    assert out == "FrozenError 1\nFrozenError 2\n"


@pytest.mark.parametrize("suspensions", [0, 1])
def test_traceback_begins_with_the_users_code_when_a_body_fails(
    one_worker: Runtime, suspensions: int
) -> None:
    async def body() -> None:
        for _ in range(suspensions):
            await asyncio.sleep(0)
        await inner()

    async def inner() -> None:
        raise ValueError

    def frames() -> list[str]:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            handle.get(GUARD_S)
        return [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]

    handle = ended(one_worker.submit(body))
    assert handle.exception is not None
    names = [frame.name for frame in traceback.extract_tb(handle.exception.__traceback__)]
    assert names == ["body", "inner"]
    assert frames() == ["frames", "body", "inner"]
    assert frames() == ["frames", "body", "inner"], "raising does not add to it"


# --- cancel ------------------------------------------------------------------------------------


def test_suspended_body_is_cancelled_where_it_waits_when_asked(one_worker: Runtime) -> None:
    told: list[str] = []
    meeting = Rendezvous(1)

    async def body() -> None:
        try:
            await meeting.wait()
        except asyncio.CancelledError:
            told.append("cancelled")
            raise
        finally:
            await asyncio.sleep(0)
            told.append("cleaned up")

    handle = one_worker.submit(body)
    assert meeting.arrived.wait(GUARD_S)
    one_worker.submit(echo, 1).get(GUARD_S)  # the first body's first step is over
    outcome = handle.cancel()
    assert outcome is Cancellation.REQUESTED
    assert outcome
    with pytest.raises(concurrent.futures.CancelledError):
        handle.get(GUARD_S)
    assert told == ["cancelled", "cleaned up"]
    assert (handle.state, handle.exception) == ("cancelled", None)
    assert handle.cancel() is Cancellation.TOO_LATE
    one_worker.wait_all(raise_on_error=True)
    assert one_worker.get_failed() == []


def test_body_ends_as_it_likes_when_it_does_not_let_itself_be_cancelled(
    one_worker: Runtime,
) -> None:
    meeting, gate = Rendezvous(2), asyncio.Event()

    async def survives() -> str:
        try:
            await meeting.wait()
        except asyncio.CancelledError:
            await gate.wait()
        return "survived"

    async def fails() -> None:
        try:
            await meeting.wait()
        except asyncio.CancelledError:
            raise ValueError("instead") from None

    async def let_go() -> None:
        gate.set()

    survivor, failing = one_worker.submit(survives), one_worker.submit(fails)
    assert meeting.arrived.wait(GUARD_S)
    one_worker.submit(echo, 1).get(GUARD_S)
    assert survivor.cancel() is Cancellation.REQUESTED
    assert failing.cancel() is Cancellation.REQUESTED
    with pytest.raises(ValueError, match="instead"):
        failing.get(GUARD_S)
    assert not survivor.done()
    one_worker.submit(let_go)
    assert survivor.get(GUARD_S) == "survived"
    assert survivor.state == "done"


def test_body_is_cancelled_when_it_cancels_itself(one_worker: Runtime) -> None:
    async def through_its_task() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    for handle in (
        one_worker.submit(through_its_task),
        one_worker.submit(fail, asyncio.CancelledError()),
    ):
        with pytest.raises(concurrent.futures.CancelledError):
            handle.get(GUARD_S)
        assert handle.state == "cancelled"


def test_neighbours_stay_when_one_of_a_loop_is_cancelled(one_worker: Runtime) -> None:
    meeting = Rendezvous(20)
    handles = [one_worker.submit(meeting.wait) for _ in range(20)]
    assert meeting.arrived.wait(GUARD_S)
    one_worker.submit(echo, 1).get(GUARD_S)
    assert handles[7].cancel() is Cancellation.REQUESTED
    ended(handles[7])
    assert [handle.done() for handle in handles].count(True) == 1
    meeting.open()
    one_worker.wait_all()
    states = [handle.state for handle in handles]
    assert (states[7], states.count("done")) == ("cancelled", 19)


def test_queued_body_is_never_made_when_it_is_cancelled(one_worker: Runtime) -> None:
    started, release = threading.Event(), threading.Event()

    async def holds_the_worker() -> None:
        started.set()
        assert release.wait(GUARD_S)

    one_worker.submit(holds_the_worker)
    assert started.wait(GUARD_S)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a coroutine that nobody has awaited
        handle = one_worker.submit(echo, 1)
        assert handle.cancel() is Cancellation.DEQUEUED
        gc.collect()
    release.set()
    with pytest.raises(concurrent.futures.CancelledError):
        handle.get()


# --- the end of the runtime --------------------------------------------------------------------


def test_shutdown_waits_when_bodies_are_suspended() -> None:
    ended: list[int] = []

    async def body(number: int) -> None:
        for _ in range(number % 7):
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        ended.append(number)

    with Runtime(python_threads=2) as runtime:
        for number in range(100):
            runtime.submit(body, number)
    assert sorted(ended) == list(range(100))


@pytest.mark.parametrize("end", ["shutdown", "drop"])
def test_suspended_bodies_go_on_when_nobody_waits_for_the_runtime(end: str) -> None:
    meeting = Rendezvous(10)
    runtime = Runtime(python_threads=1)
    handles = [runtime.submit(meeting.wait) for _ in range(10)]
    assert meeting.arrived.wait(GUARD_S)
    if end == "shutdown":
        runtime.shutdown(wait=False)
    else:
        del runtime
    meeting.open()
    for handle in handles:
        handle.get(GUARD_S)


def test_body_may_shut_its_runtime_down_when_it_is_suspended_in_between() -> None:
    async def body() -> str:
        await asyncio.sleep(0)
        runtime.shutdown()
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="shutdown"):
            runtime.submit(echo, 1)
        return "done"

    runtime = Runtime(python_threads=1)
    assert runtime.submit(body).get(GUARD_S) == "done"
    runtime.shutdown()
