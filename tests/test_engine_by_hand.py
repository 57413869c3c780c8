"""The engine's steps, taken by hand: launching, running a block's body, ending components."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from engine_support import (
    GUARD_S,
    ForeignBackend,
    assert_nothing_kept,
    async_identity,
    identity,
    launched,
)

from dftracer.asyncflow import DependencyFailureError, WorkflowEngine
from dftracer.asyncflow.backends.base import RemoteValue

pytestmark = pytest.mark.usefixtures("new_loop")


async def forever(*_: Any) -> None:
    await asyncio.get_running_loop().create_future()


async def begin(flow: WorkflowEngine, body: Any) -> tuple[Any, "asyncio.Future[None]"]:
    """Call a block and execute that body for it. Return the block and the execution."""
    blocks = []

    async def execute() -> None:
        blocks.append(flow.block(async_identity)("its own body does not run"))
        await flow.execute_block(blocks[0], body)

    execution = asyncio.ensure_future(execute())
    while not blocks or blocks[0].state != "RUNNING":
        await launched()
    return blocks[0], execution


# --- run ------------------------------------------------------------------------------------------


async def test_run_lasts_until_shutdown_when_awaited() -> None:
    flow = await WorkflowEngine.create()
    running = [asyncio.ensure_future(flow.run()) for _ in range(2)]
    assert await flow.function_task(identity)(1) == 1
    assert not any(task.done() for task in running)
    await flow.shutdown()
    await asyncio.wait_for(asyncio.gather(*running), GUARD_S)
    await flow.run()


# --- submit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("decorator", ["function_task", "executable_task", "prompt_task"])
async def test_a_task_is_submitted_once_when_also_by_hand(decorator: str) -> None:
    submitted: list[str] = []

    class Backend(ForeignBackend):
        async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
            submitted.extend(task["uid"] for task in tasks)
            await super().submit_tasks(tasks)

    backend = Backend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        future = getattr(flow, decorator)(async_identity)("text")
        for _ in range(2):
            await flow.submit([future.task, future.task])
        await backend.given(future)
        await flow.submit([future.task])
        await backend.end(future, return_value=1)
        await future
        await flow.submit([future.task])
        for _ in range(3):
            await launched()
        assert submitted == [future.uid]


async def test_a_body_runs_once_when_its_block_is_submitted_by_hand() -> None:
    calls: list[int] = []

    async def body(number: int) -> None:
        calls.append(number)

    async with await WorkflowEngine.create(ForeignBackend(), cancel_on_exit=True) as flow:
        blocks = [flow.block(body)(number) for number in range(3)]
        await flow.submit([block.block for block in reversed(blocks)])
        await asyncio.gather(*blocks)
    assert sorted(calls) == [0, 1, 2]


async def test_nothing_is_submitted_when_one_still_waits() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        source: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        ready = flow.function_task(identity)(1)
        waiting = flow.function_task(identity)(source)
        with pytest.raises(ValueError, match=rf"{waiting.uid} 'identity' PENDING.*waits for"):
            await flow.submit([ready.task, waiting.task])
        assert not flow.running
        source.set_result(2)
        await flow.submit([waiting.task])
        await backend.given(waiting)
        await backend.given(ready)
        assert len(backend.tasks) == 2


async def test_nothing_happens_when_what_is_submitted_is_unknown_or_cancelled() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        cancelled = flow.function_task(identity)(1)
        cancelled.cancel()
        await flow.submit([cancelled.task, {"uid": "task.000099"}, {"uid": None}])
        await flow.submit([])
        await launched()
        assert not backend.tasks


# --- execute_block --------------------------------------------------------------------------------


async def test_a_block_ends_as_the_given_body_does_when_executed_by_hand() -> None:
    async def fail(text: str) -> None:
        raise LookupError(text)

    async with await WorkflowEngine.create(cancel_on_exit=True) as flow:
        seen: list[Any] = []

        async def call_a_task(value: int) -> int:
            member = flow.function_task(identity)(value)
            seen.append(member.task["workflow_id"])
            return int(await member)

        done = flow.block(forever)()
        await flow.execute_block(done, call_a_task, value=7)
        failed = flow.block(forever)()
        await flow.execute_block(failed, fail, "mine")
        assert await done == 7
        assert seen == [done.uid]
        with pytest.raises(LookupError, match="mine"):
            await failed
        await launched()
        assert_nothing_kept(flow)


async def test_the_caller_is_cancelled_when_it_executes_a_block_and_is_told_to_stop() -> None:
    async with await WorkflowEngine.create(cancel_on_exit=True) as flow:
        block, execution = await begin(flow, forever)
        behind = flow.block(async_identity)(block)
        execution.cancel()
        with pytest.raises(asyncio.CancelledError):
            await execution
        await asyncio.wait([behind])
        assert (block.cancelled(), behind.cancelled()) == (True, True)


async def test_the_given_body_is_cancelled_when_its_block_is() -> None:
    async with await WorkflowEngine.create(cancel_on_exit=True) as flow:
        ended: list[str] = []

        async def body() -> None:
            try:
                await forever()
            finally:
                ended.append("body")

        block, execution = await begin(flow, body)
        block.cancel()
        await asyncio.wait_for(execution, GUARD_S)
        assert ended == ["body"]


async def test_the_given_body_is_cancelled_when_the_engine_is_shut_down() -> None:
    flow = await WorkflowEngine.create()
    block, execution = await begin(flow, forever)
    await flow.shutdown()
    assert block.cancelled()
    await asyncio.wait_for(execution, GUARD_S)


async def test_no_body_runs_when_the_block_runs_waits_or_has_ended() -> None:
    calls: list[str] = []

    async def body() -> None:
        calls.append("body")

    async with await WorkflowEngine.create(cancel_on_exit=True) as flow:
        source: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        ended, running = flow.block(async_identity)(1), flow.block(forever)()
        waiting = flow.block(async_identity)(source)
        cancelled = flow.block(async_identity)(1)
        cancelled.cancel()
        await ended
        for block, match in (
            (ended, "DONE.*has begun"),
            (running, "RUNNING.*has begun"),
            (cancelled, "CANCELED.*has begun"),
            (waiting, "PENDING.*waits"),
        ):
            with pytest.raises(asyncio.InvalidStateError, match=match):
                await flow.execute_block(block, body)
        assert calls == []


# --- the end of a component -----------------------------------------------------------------------


def names_of(flow: WorkflowEngine, verb: str) -> list[Callable[..., Any]]:
    return [getattr(flow, f"handle_{what}_{verb}") for what in ("task", "component")]


async def test_components_end_well_when_that_is_said_by_hand() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        for handle in names_of(flow, "success"):
            task = flow.function_task(identity)(1)
            program = flow.executable_task(lambda: "true")()
            block = flow.block(forever)()
            behind = flow.block(async_identity)([task, program, block])
            handle({"return_value": 1, "stdout": "no"}, task)
            handle({**await backend.given(program), "return_value": 2, "stdout": "out"}, program)
            handle({"return_value": 3}, block)
            assert await behind == [1, "out", 3]
            handle({"return_value": 4}, task)  # it has ended
            handle({"return_value": 4}, behind)
            assert (task.result(), behind.result()) == (1, [1, "out", 3])


async def test_components_fail_when_that_is_said_by_hand() -> None:
    backend = ForeignBackend()
    error = LookupError("mine")
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        for handle in names_of(flow, "failure"):
            for record, override, expected in (
                ({"exception": error, "stderr": "no"}, None, error),
                ({"exception": ValueError("no")}, error, error),
                ({"exception": ValueError("no")}, "in words", "RuntimeError('in words')"),
                ({"stderr": "what it wrote"}, None, "RuntimeError('what it wrote')"),
                ({}, None, "unknown error"),
            ):
                task = flow.function_task(identity)(1)
                behind = flow.function_task(identity)(task)
                handle(record, task, override)
                handle({}, task, "too late")
                await asyncio.wait([task, behind])
                if isinstance(expected, str):
                    assert expected in repr(task.exception())
                    notes = getattr(task.exception(), "__notes__", [""])
                    assert override or (notes == ["of task 'identity' on backend 'foreign'"])
                else:
                    assert task.exception() is expected
                assert isinstance(behind.exception(), DependencyFailureError)
                assert behind.exception().root_cause is task.exception()


async def test_components_are_cancelled_when_that_is_said_by_hand() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        for handle in names_of(flow, "cancellation"):
            task = flow.function_task(identity)(1)
            behind = flow.function_task(identity)(task)
            await backend.given(task)
            assert handle({}, task) is True
            assert (task.cancelled(), behind.cancelled()) == (True, True)
            assert handle({}, task) is False
            assert handle({}, behind) is False
            await launched()
            assert backend.cancelled.pop() == task.uid


async def test_nothing_happens_by_hand_when_a_result_is_still_where_it_was_made() -> None:
    class Far(RemoteValue):
        def is_on(self, backend: Any) -> bool:
            return False

        async def fetch(self) -> str:
            return "from afar"

    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        task = flow.function_task(identity)(1)
        await backend.end(task, return_value=Far())
        assert task.state == "DONE"
        flow.handle_task_success({"return_value": "by hand"}, task)
        flow.handle_task_failure({}, task, "by hand")
        assert not flow.handle_task_cancellation({}, task)
        backend.report({**task.task, "return_value": "again"}, "DONE")
        await flow.submit([task.task])
        with pytest.raises(asyncio.InvalidStateError, match="has ended already"):
            task.set_result("by hand")
        behind = flow.block(async_identity)(task)
        await flow.submit([behind.block])
        assert await behind == "from afar"
        await launched()
        assert_nothing_kept(flow)


@pytest.mark.parametrize("verb", ["success", "failure"])
async def test_a_component_goes_its_way_when_it_waits_and_is_ended_by_hand(verb: str) -> None:
    async with await WorkflowEngine.create(cancel_on_exit=True) as flow:
        source: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiting = flow.function_task(identity)(source)
        behind = flow.function_task(identity)(waiting)
        with pytest.raises(asyncio.InvalidStateError, match="waits for others"):
            getattr(flow, f"handle_task_{verb}")({"return_value": 0}, waiting)
        assert not waiting.done()
        source.set_result(7)
        assert await behind == 7
        assert_nothing_kept(flow)
