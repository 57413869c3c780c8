"""The future that a call returns, as one of asyncio, and that nothing of it is kept."""

import asyncio
import gc
import re
import sys
import threading
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
from engine_support import (
    GUARD_S,
    Gate,
    add,
    assert_nothing_kept,
    async_identity,
    identity,
    launched,
    reached,
)

from dftracer.asyncflow import (
    Component,
    RuntimeExecutionBackend,
    WorkflowEngine,
)
from dftracer.utils import Runtime

aio: Any = asyncio
"""With what came after Python 3.10."""

pytestmark = pytest.mark.usefixtures("new_loop")


# --- the future that a call returns ---------------------------------------------------------------


async def test_ids_are_numbers_of_the_engine_when_components_are_called() -> None:
    async with await WorkflowEngine.create() as flow:
        futures: list[Component[Any]] = [flow.function_task(identity)(i) for i in range(10)]
        futures += [flow.block(async_identity)(i) for i in range(10)]
        ids = [future.id for future in futures]
        assert all(re.fullmatch(r"\d{6}", number) for number in ids)
        assert ids == sorted(set(ids))
        await asyncio.gather(*futures)


async def test_descriptions_name_the_call_when_asked_for() -> None:
    async with await WorkflowEngine.create() as flow:
        task, block = flow.function_task(identity)(1), flow.block(async_identity)(2)
        assert (task.task["uid"], task.task["name"]) == (f"task.{task.id}", "identity")
        assert (block.block["uid"], block.block["name"]) == (f"block.{block.id}", "async_identity")
        assert (task.name, block.name) == ("identity", "async_identity")
        assert not hasattr(task, "block")
        assert not hasattr(block, "task")
        for future in (task, block):
            assert isinstance(future, (asyncio.Future, Component))
            assert asyncio.isfuture(future)
            assert future.get_loop() is asyncio.get_running_loop()
            assert f"'{future.name}'" in repr(future)
            assert "PENDING" in repr(future)
        await asyncio.gather(task, block)
        assert "DONE" in repr(task)


async def test_the_state_follows_the_body_when_a_task_succeeds() -> None:
    async with await WorkflowEngine.create() as flow:
        with Gate() as gate:
            started = threading.Event()

            @flow.function_task
            def body() -> None:
                started.set()
                gate.hold()

            future = body()
            behind = flow.function_task(identity)(future)
            assert (future.state, behind.state) == ("PENDING", "PENDING")
            await reached(started)
            assert (future.state, behind.state) == ("RUNNING", "PENDING")
            gate.set()
            await future
            assert future.state == "DONE"
            await behind
            assert behind.state == "DONE"


async def test_the_state_follows_the_body_when_it_is_a_block() -> None:
    async with await WorkflowEngine.create() as flow:
        states: list[str] = []

        @flow.block
        async def block() -> None:
            states.append(future.state)

        future = block()
        states.append(future.state)
        await future
        assert [*states, future.state] == ["PENDING", "RUNNING", "DONE"]


@pytest.mark.parametrize("kind", ["function_task", "block", "executable_task"])
async def test_the_state_is_final_when_done_callbacks_run(kind: str) -> None:
    async def succeed() -> str:
        return "true"

    async def fail() -> str:
        raise LookupError("mine")

    seen: dict[str, list[str]] = {"DONE": [], "FAILED": [], "CANCELED": []}
    async with await WorkflowEngine.create() as flow:
        decorate = getattr(flow, kind)
        futures = {
            "DONE": decorate(succeed)(),
            "FAILED": decorate(fail)(),
            "CANCELED": decorate(succeed)(),
        }
        for expected, future in futures.items():
            future.add_done_callback(lambda f, seen=seen[expected]: seen.append(f.state))
        futures["CANCELED"].cancel()
        await asyncio.gather(*futures.values(), return_exceptions=True)
        await launched()
    assert seen == {state: [state] for state in seen}


async def test_asking_for_the_state_does_not_hide_the_error_when_nobody_sees_it() -> None:
    complaints: list[str] = []
    loop = asyncio.get_running_loop()
    async with await WorkflowEngine.create() as flow:

        def fail() -> None:
            raise LookupError("unseen")

        future = flow.function_task(fail)()
        await asyncio.wait([future])
        assert future.state == "FAILED"
        loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))
        del future
        gc.collect()
    assert len(complaints) == 1
    assert "never retrieved" in complaints[0]


# --- with the rest of asyncio ---------------------------------------------------------------------


async def test_a_result_is_seen_by_all_when_awaited_often() -> None:
    async with await WorkflowEngine.create() as flow:
        future = flow.function_task(add)([1], [2])

        async def wait_for_it() -> Any:
            return await future

        results = await asyncio.gather(*(wait_for_it() for _ in range(10)), future, future)
        assert all(result is results[0] for result in results)
        assert await future is future.result()
        assert asyncio.ensure_future(future) is future


async def test_gather_collects_when_given_components() -> None:
    async with await WorkflowEngine.create() as flow:
        task = flow.function_task(int)
        assert list(await asyncio.gather(task("1"), task("2"))) == [1, 2]
        results = await asyncio.gather(task("1"), task("x"), return_exceptions=True)
        assert results[0] == 1
        assert isinstance(results[1], ValueError)
        with pytest.raises(ValueError, match="invalid literal"):
            await asyncio.gather(task("1"), task("x"))


async def test_wait_returns_the_first_when_others_are_held() -> None:
    with Runtime(python_threads=2) as runtime:
        async with await WorkflowEngine.create(RuntimeExecutionBackend(runtime)) as flow:
            with Gate() as gate:
                slow, quick = flow.function_task(gate.hold)(1), flow.function_task(identity)(2)
                first = asyncio.FIRST_COMPLETED
                done, pending = await asyncio.wait([slow, quick], return_when=first)
                assert (done, pending) == ({quick}, {slow})
                gate.set()
                done, pending = await asyncio.wait([slow, quick])
                assert (done, pending) == ({slow, quick}, set())


async def test_as_completed_yields_in_order_of_completion_when_given_components() -> None:
    async with await WorkflowEngine.create() as flow:
        source: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        last = flow.function_task(identity)(source)
        first = flow.function_task(identity)(1)
        results = []
        for future in asyncio.as_completed([last, first]):
            results.append(await future)
            if not source.done():
                source.set_result(2)
        assert results == [1, 2]


async def test_wait_for_gives_the_result_when_in_time() -> None:
    async with await WorkflowEngine.create() as flow:
        assert await asyncio.wait_for(flow.function_task(identity)(1), GUARD_S) == 1
        assert await asyncio.wait_for(flow.block(async_identity)(2), None) == 2


async def test_the_task_goes_on_when_its_shield_is_cancelled() -> None:
    async with await WorkflowEngine.create() as flow:
        with Gate() as gate:
            future = flow.function_task(gate.hold)("kept")
            shield = asyncio.shield(future)
            shield.cancel()
            with pytest.raises(asyncio.CancelledError):
                await shield
            assert not future.done()
            gate.set()
            assert await future == "kept"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout came with Python 3.11")
async def test_a_task_is_cancelled_when_a_timeout_around_it_expires() -> None:
    async with await WorkflowEngine.create() as flow:
        never = flow.function_task(identity)(asyncio.get_running_loop().create_future())
        with pytest.raises(TimeoutError):
            async with aio.timeout(0):
                await never
        assert never.cancelled()
        async with aio.timeout(GUARD_S):
            assert await flow.function_task(identity)(1) == 1


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.TaskGroup came with Python 3.11")
async def test_a_task_is_cancelled_when_its_task_group_fails() -> None:
    async def wait_for_it(future: "asyncio.Future[Any]") -> Any:
        return await future

    async with await WorkflowEngine.create() as flow:
        never = flow.function_task(identity)(asyncio.get_running_loop().create_future())

        async def group_them() -> None:
            async with aio.TaskGroup() as group:
                group.create_task(wait_for_it(never))
                group.create_task(wait_for_it(flow.function_task(int)("x")))

        with pytest.raises(BaseException, match="unhandled errors") as caught:
            await group_them()
        assert [type(e) for e in caught.value.exceptions] == [ValueError]  # type: ignore[attr-defined]
        assert never.cancelled()


async def test_results_stream_when_an_async_generator_awaits_tasks() -> None:
    async with await WorkflowEngine.create() as flow:
        task = flow.function_task(add)

        async def stream() -> AsyncIterator[int]:
            for number in range(5):
                yield await task(number, number)

        assert [value async for value in stream()] == [0, 2, 4, 6, 8]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_blocks_and_commands_run_when_the_loop_starts_tasks_eagerly() -> None:
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.SelectorEventLoop):
        pytest.skip("uvloop gives task factories arguments that some versions do not take")
    loop.set_task_factory(aio.eager_task_factory)
    async with await WorkflowEngine.create() as flow:

        async def at_once() -> str:
            return "now"

        @flow.block
        async def later() -> Any:
            return await flow.executable_task(lambda text: ["echo", text])(flow.block(at_once)())

        assert await later() == "now\n"
        assert await flow.function_task(async_identity)(flow.block(at_once)()) == "now"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_the_body_never_runs_when_an_eager_block_cancels_it_in_the_launch() -> None:
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.SelectorEventLoop):
        pytest.skip("uvloop gives task factories arguments that some versions do not take")
    loop.set_task_factory(aio.eager_task_factory)
    calls: list[int] = []
    with Runtime(python_threads=1) as runtime:
        async with await WorkflowEngine.create(RuntimeExecutionBackend(runtime)) as flow:
            task = flow.function_task(calls.append)
            futures = [task(1), task(2, task_description={"timeout": GUARD_S})]

            async def cancel() -> None:
                for future in futures:
                    future.cancel()

            await flow.block(cancel)()
            assert all(future.cancelled() for future in futures)
            await task(3)  # behind them, if they were there
    assert calls == [3]


# --- nothing is lost, doubled or kept -------------------------------------------------------------


class Tracked:
    """A value that tells when it dies."""


async def test_nothing_is_lost_or_kept_when_there_are_thousands_of_rounds() -> None:
    calls: list[int] = []

    def body(number: int, *_: Any) -> int:
        calls.append(number)
        return number

    async def async_body(number: int, *_: Any) -> int:
        calls.append(number)
        return number

    async with await WorkflowEngine.create() as flow:
        sync, async_, block = (
            flow.function_task(body),
            flow.function_task(async_body),
            flow.block(async_body),
        )
        numbers = 0
        for _ in range(1_000):
            first = sync(numbers)
            second = async_(numbers + 1, first)
            third = block(numbers + 2, [first, second])
            last = sync(numbers + 3, third, second)
            assert await last == numbers + 3
            assert [first.result(), second.result(), third.result()] == [
                numbers,
                numbers + 1,
                numbers + 2,
            ]
            numbers += 4
        await launched()
        assert_nothing_kept(flow)
        assert calls == list(range(numbers))


async def test_nothing_is_lost_or_doubled_when_all_are_called_at_once() -> None:
    count = 5_000
    calls: list[int] = []

    def body(number: int) -> int:
        calls.append(number)
        return number

    async with await WorkflowEngine.create() as flow:
        task = flow.function_task(body)
        ended: list[int] = []
        futures = [task(number) for number in range(count)]
        for future in futures:
            future.add_done_callback(lambda f: ended.append(f.result()))
        assert await asyncio.gather(*futures) == list(range(count))
        assert_nothing_kept(flow)
    assert sorted(calls) == sorted(ended) == list(range(count))


async def test_components_die_when_they_have_ended_and_nobody_holds_them() -> None:
    def fail(*_: Any) -> None:
        raise LookupError("mine")

    async with await WorkflowEngine.create() as flow:
        source: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        argument = Tracked()
        failed = flow.function_task(fail)(argument)
        futures = {
            "done": flow.function_task(identity)(argument),
            "block": flow.block(async_identity)(argument),
            "executable": flow.executable_task(lambda _: "true")(argument),
            "failed": failed,
            "failed by dependency": flow.function_task(identity)([failed, argument]),
            "cancelled": flow.function_task(identity)([source, argument]),
        }
        futures["behind a cancelled one"] = flow.function_task(identity)(futures["cancelled"])
        futures["cancelled"].cancel()
        await asyncio.gather(*futures.values(), return_exceptions=True)
        await launched()
        references: dict[str, weakref.ref[Any]] = {
            name: weakref.ref(future) for name, future in futures.items()
        }
        references["the argument"] = weakref.ref(argument)
        del failed, futures, argument
        await launched()
        gc.collect()
        assert [name for name, reference in references.items() if reference() is not None] == []
        assert not flow._scheduler.state.unfinished
        source.set_result(None)
        await launched()
        assert_nothing_kept(flow)


async def test_members_die_when_they_have_ended_before_their_block() -> None:
    async with await WorkflowEngine.create() as flow:

        @flow.block
        async def long() -> list[Any]:
            references = []
            for number in range(3):
                future = flow.function_task(identity)(number)
                references.append(weakref.ref(future))
                await future
                del future
            await launched()
            gc.collect()
            return [reference() for reference in references]

        assert await long() == [None] * 3


async def test_results_die_when_nobody_holds_them() -> None:
    async with await WorkflowEngine.create() as flow:
        result = await flow.function_task(Tracked)()
        reference = weakref.ref(result)
        del result
        await launched()
        gc.collect()
        assert reference() is None


async def test_the_engine_dies_when_it_is_shut_down_and_nobody_holds_it() -> None:
    flow = await WorkflowEngine.create()
    task = flow.function_task(identity)
    assert await task(flow.block(async_identity)(1)) == 1
    await flow.shutdown()
    reference = weakref.ref(flow)
    del flow, task
    gc.collect()
    assert reference() is None
