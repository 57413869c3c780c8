"""The engine as its users see it: how it begins and ends, what may be decorated, and where."""

import asyncio
import concurrent.futures
import functools
import inspect
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_support import (
    GUARD_S,
    Gate,
    add,
    async_identity,
    identity,
    launched,
    reached,
)

from dftracer.asyncflow import (
    EngineShutdownError,
    NoopExecutionBackend,
    RuntimeExecutionBackend,
    WorkflowEngine,
)
from dftracer.utils import Runtime, get_default_runtime

pytestmark = pytest.mark.usefixtures("new_loop")


# --- create, use, shut down -----------------------------------------------------------------------


async def test_results_arrive_when_tasks_depend_on_each_other() -> None:
    async with await WorkflowEngine.create() as flow:
        task = flow.function_task(add)
        a, b = task(1, 2), task(3, 4)
        assert await task(task(a, b), task(b, a)) == 20


async def test_names_and_directory_are_kept_when_given(tmp_path: Path) -> None:
    async with await WorkflowEngine.create(uid="mine", work_dir=tmp_path) as flow:
        assert (flow.uid, flow.work_dir) == ("mine", str(tmp_path))


async def test_uids_differ_when_none_is_given() -> None:
    async with await WorkflowEngine.create() as one, await WorkflowEngine.create() as other:
        assert re.fullmatch(r"asyncflow\.session\.[0-9a-f]{8}", one.uid)
        assert one.uid != other.uid


async def test_the_error_passes_when_a_context_is_left_by_one() -> None:
    flow = await WorkflowEngine.create()
    with pytest.raises(LookupError, match="mine"):
        async with flow:
            raise LookupError("mine")
    with pytest.raises(EngineShutdownError):
        flow.function_task(identity)(1)


async def test_shutdown_does_nothing_more_when_repeated() -> None:
    flow = await WorkflowEngine.create()
    assert await flow.function_task(identity)(1) == 1
    for _ in range(3):
        await flow.shutdown()
    async with flow:
        pass
    assert flow.backend.state() == "IDLE"


@pytest.mark.parametrize("given", [False, True], ids=["own runtime", "given runtime"])
async def test_every_shutdown_waits_for_running_bodies_when_several_are_called(
    given: bool,
) -> None:
    backend = RuntimeExecutionBackend(get_default_runtime()) if given else None
    flow = await WorkflowEngine.create(backend)
    ended: list[str] = []
    with Gate() as gate:
        started = threading.Event()

        @flow.function_task
        def body() -> None:
            try:
                gate.hold_firmly(started)
            finally:  # it may be interrupted
                ended.append("body")

        async def shut_down() -> list[str]:
            await flow.shutdown()
            return list(ended)

        future = body()
        await reached(started)
        calls = [asyncio.ensure_future(shut_down()) for _ in range(3)]
        await asyncio.wait([future])
        for _ in range(10):
            await launched()
        early = [call.done() for call in calls]
        gate.set()
        assert await asyncio.gather(*calls) == [["body"]] * 3
    assert early == [False] * 3
    assert future.cancelled()


async def test_shutdown_ends_when_a_block_calls_it() -> None:
    flow = await WorkflowEngine.create()
    after: list[str] = []

    @flow.block
    async def suicidal() -> None:
        await flow.shutdown()
        after.append(flow.backend.state())

    future = suicidal()
    await asyncio.wait([future])
    await flow.shutdown()
    assert future.cancelled()
    assert flow.backend.state() == "IDLE"
    await launched()
    assert after == ["IDLE"]


async def test_shutdown_ends_when_a_block_calls_it_with_a_time_limit() -> None:
    flow = await WorkflowEngine.create()

    @flow.block
    async def suicidal() -> None:
        await asyncio.wait_for(flow.shutdown(), GUARD_S)

    future = suicidal()
    await asyncio.wait([future])
    await flow.shutdown()
    assert flow.backend.state() == "IDLE"


async def test_shutdown_ends_when_a_cancelled_block_calls_it_too() -> None:
    flow = await WorkflowEngine.create()
    begun = asyncio.Event()
    left = asyncio.Event()

    @flow.block
    async def tidy() -> None:
        try:
            begun.set()
            await asyncio.get_running_loop().create_future()
        finally:
            await flow.shutdown()
            left.set()

    future = tidy()
    await begun.wait()
    await asyncio.wait_for(flow.shutdown(), GUARD_S)
    assert future.cancelled()
    await asyncio.wait_for(left.wait(), GUARD_S)


async def test_shutdown_is_completed_when_an_earlier_one_was_cancelled() -> None:
    flow = await WorkflowEngine.create()
    ended: list[str] = []
    with Gate() as gate:
        started = threading.Event()

        @flow.function_task
        def body() -> None:
            try:
                gate.hold_firmly(started)
            finally:  # it may be interrupted
                ended.append("body")

        future = body()
        await reached(started)
        first = asyncio.ensure_future(flow.shutdown())
        await asyncio.wait([future])
        await launched()  # the shutdown has begun, and waits for the body
        first.cancel()
        await asyncio.wait([first])
        second = asyncio.ensure_future(flow.shutdown())
        for _ in range(10):
            await launched()
        early = second.done()
        gate.set()
        await second
    assert not early
    assert ended == ["body"]
    async with await WorkflowEngine.create(flow.backend) as again:
        assert await again.function_task(identity)(1) == 1


def worker_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("dft-")}


async def test_no_worker_is_left_when_the_engine_is_shut_down() -> None:
    before = worker_threads()
    async with await WorkflowEngine.create() as flow:
        assert await flow.function_task(async_identity)(flow.function_task(identity)(1)) == 1
        assert worker_threads() > before
    assert worker_threads() <= before


async def test_unfinished_tasks_are_cancelled_when_the_context_shall_not_wait() -> None:
    async with await WorkflowEngine.create(cancel_on_exit=True) as flow:
        source: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiting = flow.function_task(identity)(source)
        behind = flow.function_task(identity)(waiting)
    assert waiting.cancelled()
    assert behind.cancelled()
    assert not source.done()


async def test_the_backend_lives_on_when_shutdown_skips_it() -> None:
    backend = await RuntimeExecutionBackend()
    first = await WorkflowEngine.create(backend)
    assert await first.function_task(identity)(1) == 1
    await first.shutdown(skip_execution_backend=True)
    assert backend.state() == "INITIALIZED"
    async with await WorkflowEngine.create(backend) as second:
        assert await second.function_task(identity)(2) == 2
    assert backend.state() == "IDLE"


async def test_late_outcomes_are_ignored_when_the_next_engine_uses_the_backend() -> None:
    with Runtime(python_threads=1) as runtime, Gate() as gate:
        backend = await RuntimeExecutionBackend(runtime)
        first = await WorkflowEngine.create(backend)
        started = threading.Event()

        @first.function_task
        def late() -> str:
            started.set()
            return str(gate.hold("from the first engine"))

        late()
        await reached(started)
        await first.shutdown(skip_execution_backend=True)
        async with await WorkflowEngine.create(backend) as second:
            future = second.function_task(identity)("from the second engine")
            await launched()  # it is queued behind the body of the first engine
            gate.set()
            assert await future == "from the second engine"


async def test_outcomes_reach_their_own_engine_when_two_share_a_backend() -> None:
    backend = await RuntimeExecutionBackend()
    async with await WorkflowEngine.create(backend) as one:
        try:
            other = await WorkflowEngine.create(backend)
        except (RuntimeError, ValueError):
            return  # to refuse is as good
        async with other:
            futures = [flow.function_task(identity)(flow.uid) for flow in (one, other)]
            done, _ = await asyncio.wait(futures, timeout=GUARD_S)
            assert done == set(futures)
            assert await asyncio.gather(*futures) == [one.uid, other.uid]


async def test_a_given_runtime_is_left_running_when_the_engine_is_shut_down() -> None:
    with Runtime(python_threads=1) as runtime:
        for number in range(3):
            async with await WorkflowEngine.create(RuntimeExecutionBackend(runtime)) as flow:
                assert await flow.function_task(identity)(number) == number
        assert runtime.submit(identity, "alive").get(timeout=GUARD_S) == "alive"


async def test_no_body_runs_when_the_engine_makes_a_dry_run() -> None:
    ran: list[str] = []

    def body(_: Any = None) -> str:
        ran.append("body")
        return "real output"

    async with await WorkflowEngine.create(dry_run=True) as flow:
        first = flow.function_task(body)()
        assert await flow.function_task(body)(first) == await first != "real output"
    assert isinstance(flow.backend, NoopExecutionBackend)
    assert ran == []


async def test_engines_do_not_mix_when_two_share_a_loop() -> None:
    async with await WorkflowEngine.create() as one, await WorkflowEngine.create() as other:
        mine, theirs = one.function_task(add), other.function_task(add)
        first = mine(1, 1)
        assert first.id == theirs(2, 2).id  # numbers are an engine's own
        chain: Any = first
        for number in range(20):
            chain = (mine, theirs)[number % 2](chain, 1)
        assert await chain == 22


def test_engines_do_not_mix_when_each_has_a_thread() -> None:
    def work(start: int) -> list[int]:
        async def main() -> list[int]:
            async with await WorkflowEngine.create() as flow:
                task = flow.function_task(add)
                return list(await asyncio.gather(*(task(task(start, i), 0) for i in range(200))))

        both.wait(GUARD_S)
        return asyncio.run(main())

    both = threading.Barrier(2)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(work, (0, 1_000)))
    assert results == [list(range(200)), list(range(1_000, 1_200))]


def test_the_interpreter_ends_quietly_when_an_engine_was_never_shut_down(
    run_script: Callable[..., str],
) -> None:
    script = """
        import asyncio
        from dftracer.asyncflow import WorkflowEngine
        async def main():
            flow = await WorkflowEngine.create()
            print(await flow.function_task(pow)(2, 5))
        asyncio.run(main())
    """
    assert run_script(script) == "32\n"


# --- what may be decorated ------------------------------------------------------------------------


class Doubler:
    """A callable object, with methods of every kind."""

    def __init__(self, factor: int = 2) -> None:
        self.factor = factor

    def __call__(self, value: int) -> int:
        return self.factor * value

    def method(self, value: int) -> int:
        return self.factor * value

    async def async_method(self, value: int) -> int:
        await asyncio.sleep(0)
        return self.factor * value

    @staticmethod
    def static(value: int) -> int:
        return 2 * value

    @classmethod
    def of_class(cls, value: int) -> int:
        return 2 * value


class AsyncDoubler:
    async def __call__(self, value: int) -> int:
        await asyncio.sleep(0)
        return 2 * value


class Doubled(int):
    def __new__(cls, value: int) -> "Doubled":
        return super().__new__(cls, 2 * value)


def double(value: int) -> int:
    return 2 * value


async def async_double(value: int) -> int:
    await asyncio.sleep(0)
    return 2 * value


def double_by_coroutine(value: int) -> Any:
    return async_double(value)


DOUBLERS: dict[str, Callable[..., Any]] = {
    "function": double,
    "async function": async_double,
    "lambda": lambda value: 2 * value,
    "partial": functools.partial(add, 21),
    "partial with a keyword": functools.partial(add, b=21),
    "partial of an async function": functools.partial(async_double),
    "method": Doubler().method,
    "async method": Doubler().async_method,
    "static method": Doubler.static,
    "class method": Doubler.of_class,
    "callable object": Doubler(),
    "async callable object": AsyncDoubler(),
    "class": Doubled,
    "cached function": functools.lru_cache(double),
    "built-in method": (2).__mul__,
    "function that returns a coroutine": double_by_coroutine,
}


@pytest.mark.parametrize("parentheses", [False, True], ids=["bare", "called"])
@pytest.mark.parametrize("kind", DOUBLERS)
async def test_the_body_is_called_when_this_is_decorated(kind: str, parentheses: bool) -> None:
    async with await WorkflowEngine.create() as flow:
        decorate = flow.function_task() if parentheses else flow.function_task
        task = decorate(DOUBLERS[kind])
        future = task(21)
        assert await future == 42
        assert isinstance(future.name, str)
        assert future.name
        assert await task(future) == 84 - (21 if "partial" in kind and "async" not in kind else 0)


@pytest.mark.parametrize(
    "function",
    [functools.partial(async_double), Doubler().async_method, AsyncDoubler()],
    ids=["partial", "method", "callable object"],
)
async def test_a_block_runs_when_its_body_is_no_plain_function(function: Any) -> None:
    async with await WorkflowEngine.create() as flow:
        assert await flow.block(function)(21) == 42


async def test_self_is_bound_when_a_method_is_decorated_in_its_class() -> None:
    async with await WorkflowEngine.create() as flow:

        class Counter:
            def __init__(self, start: int) -> None:
                self.start = start

            @flow.function_task
            def after(self, steps: int) -> int:
                return self.start + steps

            @flow.function_task()
            async def async_after(self, steps: int) -> int:
                return self.start + steps

            @flow.block
            async def twice(self, steps: int) -> int:
                return int(await self.after(self.after(steps)))

        counter = Counter(40)
        assert (await counter.after(1), await counter.async_after(2)) == (41, 42)
        assert await counter.twice(1) == 81


@pytest.mark.parametrize("kind", ["function_task", "executable_task", "block"])
async def test_metadata_is_that_of_the_function_when_decorated(kind: str) -> None:
    async def body(first: int, *, second: str = "x") -> str:
        """Say what it does."""
        return second * first

    body.mark = "kept"  # type: ignore[attr-defined]
    async with await WorkflowEngine.create() as flow:
        for task in (getattr(flow, kind)(body), getattr(flow, kind)()(body)):
            assert task.__wrapped__ is body
            assert (task.__name__, task.__qualname__) == ("body", body.__qualname__)
            assert (task.__doc__, task.__module__) == ("Say what it does.", __name__)
            assert task.__annotations__ == body.__annotations__
            assert task.mark == "kept"
            assert inspect.signature(task) == inspect.signature(body)
            assert not inspect.iscoroutinefunction(task)


async def test_the_decorator_can_be_reused_when_called_once() -> None:
    async with await WorkflowEngine.create() as flow:
        decorate = flow.function_task()
        one, other = decorate(double), decorate(add)
        assert await other(one(1), one(2)) == 6
        assert await flow.function_task()()(double)(4) == 8


async def test_each_wrapper_keeps_its_kind_when_one_function_is_decorated_twice() -> None:
    threads: list[int] = []

    async def body() -> int:
        threads.append(threading.get_ident())
        return len(threads)

    async with await WorkflowEngine.create() as flow:
        assert await flow.block(body)() == 1
        assert await flow.function_task(body)() == 2
    assert threads[0] == threading.get_ident()
    assert threads[1] != threading.get_ident()


@pytest.mark.parametrize(
    "value",
    [None, False, "", NotImplemented, ..., ValueError("a value"), [], lambda: 1, ValueError],
    ids=lambda value: type(value).__name__,
)
async def test_the_very_object_comes_back_when_a_body_returns_it(value: Any) -> None:
    async with await WorkflowEngine.create() as flow:
        assert await flow.function_task(lambda: value)() is value
        assert await flow.function_task(identity)(flow.function_task(identity)(value)) is value


async def test_keywords_reach_the_body_when_named_like_parts_of_the_engine() -> None:
    words = "name function args kwargs task uid executable template engine component kind state"

    def body(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    given: dict[str, Any] = {word: word.upper() for word in words.split()}
    async with await WorkflowEngine.create() as flow:
        task = flow.function_task(body)
        assert await task(1, *"ab", self=2, **given) == ((1, "a", "b"), {"self": 2, **given})
        assert await task(**{**given, "name": task()}) == ((), {**given, "name": ((), {})})


# --- threads and loops ----------------------------------------------------------------------------


def assert_refused(call: Callable[[], Any], name: str) -> None:
    with pytest.raises(RuntimeError, match=f"'{name}'.*event loop") as caught:
        call()
    assert not isinstance(caught.value, EngineShutdownError)


async def test_a_call_is_refused_when_it_comes_from_another_thread() -> None:
    async with await WorkflowEngine.create() as flow:
        task, block = flow.function_task(identity), flow.block(async_identity)
        await asyncio.to_thread(assert_refused, lambda: task(1), "identity")
        await asyncio.to_thread(assert_refused, lambda: block(1), "async_identity")
        assert await task(1) == 1


async def test_a_call_is_refused_when_it_comes_from_the_body_of_a_task() -> None:
    async with await WorkflowEngine.create() as flow:
        task = flow.function_task(identity)

        @flow.function_task
        def body() -> None:
            assert_refused(lambda: task(1), "identity")

        @flow.function_task
        async def async_body() -> None:
            assert_refused(lambda: task(1), "identity")

        await asyncio.gather(body(), async_body())


async def test_a_call_is_refused_when_it_comes_from_another_loop() -> None:
    async with await WorkflowEngine.create() as flow:
        task = flow.function_task(identity)

        async def elsewhere() -> None:
            assert_refused(lambda: task(1), "identity")

        await asyncio.to_thread(asyncio.run, elsewhere())


async def test_a_future_is_refused_when_it_belongs_to_another_loop() -> None:
    other = asyncio.new_event_loop()
    future: asyncio.Future[int] = other.create_future()
    done: asyncio.Future[int] = other.create_future()
    done.set_result(1)
    try:
        async with await WorkflowEngine.create() as flow:
            with pytest.raises(ValueError, match="another event loop"):
                flow.function_task(identity)([future])
            assert await flow.function_task(identity)([done]) == [1]
            assert not flow._scheduler.state.unfinished
    finally:
        other.close()


async def test_a_body_has_a_task_of_its_own_when_it_is_async() -> None:
    tasks: list[asyncio.Task[object] | None] = []

    async with await WorkflowEngine.create() as flow:

        @flow.executable_task
        def plain() -> list[str]:
            tasks.append(asyncio.current_task())
            return ["true"]

        @flow.executable_task
        async def suspends() -> list[str]:
            tasks.append(asyncio.current_task())
            await asyncio.sleep(0)
            return ["true"]

        await asyncio.gather(plain(), suspends())
    assert tasks[0] is None
    assert tasks[1] not in (None, asyncio.current_task())
