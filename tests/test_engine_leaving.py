"""The end of ``async with``: what is waited for, and what the log says of calls nobody awaited."""

import asyncio
import contextlib
import gc
import logging
from typing import Any

import pytest
from engine_support import GUARD_S, Gate, identity, launched

from dftracer.asyncflow import NoopExecutionBackend, RuntimeExecutionBackend, WorkflowEngine
from dftracer.asyncflow.engine.waiting import leaving
from dftracer.utils import Runtime


def fail(number: int) -> None:
    raise ValueError(f"number {number}")


def logged(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """Return what our log and that of asyncio say."""
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


async def test_calls_that_nobody_awaits_run_when_the_block_is_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ran: list[Any] = []

    async def step(value: Any) -> Any:
        ran.append(value)
        return value

    async with await WorkflowEngine.create() as flow:
        task = flow.function_task(step)

        @flow.block
        async def block(value: str) -> None:
            await task(value)
            task(task(f"inside {value}"))  # which nobody awaits

        block("a")
        for number in range(20):
            task(task(number))
        program = flow.executable_task(lambda: "exit 0")()
    assert sorted(ran, key=str) == sorted(
        ["a", "inside a", "inside a", *range(20), *range(20)], key=str
    )
    assert program.done()
    assert not program.cancelled()
    assert not logged(caplog)


async def test_a_call_that_is_made_while_the_block_is_left_is_waited_for_too() -> None:
    results: list[asyncio.Future[int]] = []
    async with await WorkflowEngine.create() as flow:
        square = flow.function_task(lambda n: n * n)
        first = square(2)
        first.add_done_callback(lambda _: results.append(square(3)))
    assert results[0].result() == 9


async def test_services_are_stopped_when_the_block_is_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with await WorkflowEngine.create() as flow:

        @flow.function_task(service=True)
        async def serve() -> None:
            await asyncio.sleep(3600)

        service = serve()
        call = flow.function_task(identity)(1)
    assert service.cancelled()
    assert call.result() == 1
    assert not logged(caplog)


async def test_a_block_can_leave_its_engines_block_when_it_runs_in_it() -> None:
    flow = await WorkflowEngine.create()

    @flow.block
    async def inner() -> None:
        async with flow:
            flow.function_task(identity)(1)

    @flow.block
    async def outer() -> None:
        await inner()

    block = outer()
    await asyncio.wait([block])
    await flow.shutdown()


async def test_failures_are_logged_with_their_count_when_nobody_awaited_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "dftracer.asyncflow")
    async with await WorkflowEngine.create(uid="flow") as flow:
        task = flow.function_task(fail)
        seen = task(9)
        with contextlib.suppress(ValueError):
            await seen
        for number in range(3):
            task(number)  # whose future is gone
        kept = [task(number) for number in range(3, 5)]
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("5 call(s) of engine 'flow' have failed")
    assert "ValueError: number 0" in caplog.text
    assert "in fail" in caplog.text
    del kept, seen
    gc.collect()
    assert len(caplog.records) == 1, "told twice"


async def test_failures_are_counted_when_their_futures_died_before_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: told.append(context))
    try:
        async with await WorkflowEngine.create() as flow:
            task, add = flow.function_task(fail), flow.function_task(identity)
            for number in range(4):
                task(number)
            while flow.components and flow._scheduler.state.unfinished:
                await add(1)
        gc.collect()
    finally:
        loop.set_exception_handler(before)
    # The first that dies is told at once, by asyncio.
    assert len(told) == 1
    assert [line.split(" of ")[0] for line in logged(caplog)] == ["4 call(s)"]


async def test_dependents_are_counted_when_they_fail_with_what_they_depend_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with await WorkflowEngine.create() as flow:
        flow.function_task(identity)(flow.function_task(fail)(7))
    [line] = logged(caplog)
    assert line.startswith("1 call(s)")  # that of the other was seen by this one
    assert "ValueError: number 7" in caplog.text


async def test_the_rest_is_cancelled_and_counted_when_the_block_ends_with_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = []

    async def body() -> None:
        async with await WorkflowEngine.create(uid="flow") as flow:
            source: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            calls.extend(flow.function_task(identity)(source) for _ in range(3))
            raise KeyError("x")

    with pytest.raises(KeyError):
        await body()
    assert all(call.cancelled() for call in calls)
    assert logged(caplog) == ["engine 'flow' is shut down: cancelling 3 call(s)"]


async def test_the_rest_is_cancelled_and_counted_when_shutdown_is_called(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with await WorkflowEngine.create(uid="flow") as flow:
        source: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        call = flow.function_task(identity)(source)
        await flow.shutdown()
    assert call.cancelled()
    assert logged(caplog) == ["engine 'flow' is shut down: cancelling 1 call(s)"]


async def test_nothing_is_logged_when_nothing_is_left(caplog: pytest.LogCaptureFixture) -> None:
    async with await WorkflowEngine.create() as flow:
        await flow.function_task(identity)(1)
    flow = await WorkflowEngine.create()
    await flow.function_task(identity)(1)
    await flow.shutdown()
    assert not logged(caplog)


async def test_the_rest_is_cancelled_when_the_waiting_is_cancelled() -> None:
    flow = await WorkflowEngine.create()
    entered = asyncio.Event()

    async def body() -> None:
        async with flow:
            source: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            calls.append(flow.function_task(identity)(source))
            entered.set()

    calls: list[asyncio.Future[int]] = []
    task = asyncio.create_task(body())
    await entered.wait()
    await launched()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert calls[0].cancelled()
    assert flow.is_closed


async def test_what_is_waited_for_is_logged_when_no_call_has_begun(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "_SILENCE_S", 0.0)
    source: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    said = asyncio.Event()
    monkeypatch.setattr(logging.getLogger("dftracer.asyncflow"), "warning", lambda *_: said.set())

    async def release() -> None:
        await said.wait()
        source.set_result(3)

    releasing = asyncio.create_task(release())
    async with await WorkflowEngine.create() as flow:
        call = flow.function_task(identity)(source)
    assert call.result() == 3
    await releasing


async def test_many_calls_are_waited_for_when_they_end_one_by_one() -> None:
    with Gate() as gate:
        async with await WorkflowEngine.create() as flow:
            held = [flow.function_task(gate.hold)(number) for number in range(5)]
            many = [flow.function_task(identity)(each) for each in held for _ in range(200)]
            asyncio.get_running_loop().call_soon(gate.set)
        assert [each.result() for each in many] == [n for n in range(5) for _ in range(200)]


async def test_a_dry_run_ends_too_when_nobody_awaits_its_calls() -> None:
    async with await WorkflowEngine.create(NoopExecutionBackend()) as flow:
        calls = [flow.function_task(fail)(number) for number in range(10)]
    assert all(call.done() and not call.cancelled() for call in calls)


async def test_shutdown_is_refused_when_it_is_asked_for_in_another_event_loop() -> None:
    async with await WorkflowEngine.create() as flow:

        def stop_elsewhere() -> None:
            asyncio.run(flow.shutdown())

        with pytest.raises(RuntimeError, match=f"'{flow.uid}' belongs to another event loop"):
            await asyncio.to_thread(stop_elsewhere)
        assert await flow.function_task(identity)(1) == 1, "the engine goes on"


async def test_an_error_says_what_it_can_when_a_value_has_no_text() -> None:
    class Silent:
        def __repr__(self) -> str:
            raise LookupError("of the text")

    async with await WorkflowEngine.create() as flow:
        given: Any = Silent()
        with pytest.raises(TypeError, match="must be a whole number, not <Silent without a text>"):
            flow.function_task(retries=given)(identity)


async def test_a_burst_of_all_kinds_of_ends_is_counted_when_the_block_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leaving, "_SILENCE_S", 10 * GUARD_S)  # nothing is looked at anew sooner

    async def leave() -> None:
        with Runtime(python_threads=1) as runtime, Gate() as gate:
            async with await WorkflowEngine.create(await RuntimeExecutionBackend(runtime)) as flow:
                hold = flow.function_task(gate.hold)
                fail = flow.function_task(lambda: 1 // 0)
                calls = [call for _ in range(5) for call in (hold(1), hold(2), fail())]
                await launched()

                def let_all_end() -> None:
                    """Have all ends in the mailbox before the loop takes the first."""
                    gate.set()
                    runtime.submit(abs, 1).get()

                asyncio.get_running_loop().call_soon(let_all_end)
            assert [call.state for call in calls] == ["DONE", "DONE", "FAILED"] * 5

    await asyncio.wait_for(leave(), GUARD_S)
