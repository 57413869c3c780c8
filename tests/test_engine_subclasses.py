"""Subclasses of the engine: the steps that they override are taken through their methods."""

import asyncio
from typing import Any

import pytest
from engine_support import GUARD_S, ForeignBackend, add, async_identity, identity, launched

from dftracer.asyncflow import DependencyFailureError, WorkflowEngine

pytestmark = pytest.mark.usefixtures("new_loop")


def fail(*_: Any) -> None:
    raise LookupError("mine")


class Noting(WorkflowEngine):
    """Notes each end, under whichever of the two names it was told to override."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.ends: list[tuple[str, str, Any]] = []
        super().__init__(*args, **kwargs)


class NotingTasks(Noting):
    def handle_task_success(self, task: dict[str, Any], task_fut: Any) -> None:
        value = task["stdout"] if task.get("executable") else task["return_value"]
        self.ends.append(("success", task["uid"], value))
        super().handle_task_success(task, task_fut)

    def handle_task_failure(
        self, task: dict[str, Any], task_fut: Any, override_error_message: Any = None
    ) -> None:
        error = override_error_message or task["exception"]
        self.ends.append(("failure", task["uid"], type(error)))
        super().handle_task_failure(task, task_fut, override_error_message)

    def handle_task_cancellation(self, task: dict[str, Any], task_fut: Any) -> Any:
        self.ends.append(("cancellation", task["uid"], task_fut.done()))
        return super().handle_task_cancellation(task, task_fut)


class NotingComponents(Noting):
    def handle_component_success(self, component: dict[str, Any], component_fut: Any) -> None:
        value = component["stdout"] if component.get("executable") else component["return_value"]
        self.ends.append(("success", component["uid"], value))
        super().handle_component_success(component, component_fut)

    def handle_component_failure(
        self, component: dict[str, Any], component_fut: Any, override_error_message: Any = None
    ) -> None:
        error = override_error_message or component["exception"]
        self.ends.append(("failure", component["uid"], type(error)))
        super().handle_component_failure(component, component_fut, override_error_message)

    def handle_component_cancellation(self, component: dict[str, Any], component_fut: Any) -> Any:
        self.ends.append(("cancellation", component["uid"], component_fut.done()))
        return super().handle_component_cancellation(component, component_fut)


@pytest.mark.parametrize("kind", [NotingTasks, NotingComponents])
async def test_every_end_goes_through_the_methods_of_a_subclass(kind: Any) -> None:
    async with await kind.create() as flow:
        one = flow.function_task(identity)(1)
        program = flow.executable_task(lambda n: ["echo", str(n)])(one)
        group = flow.block(async_identity)(one)
        local = flow.function_task(loop="engine")(async_identity)(2)
        assert await asyncio.gather(one, program, group, local) == [1, "1\n", 1, 2]
        assert sorted(flow.ends) == [
            ("success", group.uid, 1),
            ("success", one.uid, 1),
            ("success", program.uid, "1\n"),
            ("success", local.uid, 2),
        ]
        flow.ends.clear()

        broken = flow.function_task(fail)()
        behind = flow.function_task(identity)(broken)
        last = flow.function_task(identity)(behind)
        ended = await asyncio.gather(broken, behind, last, return_exceptions=True)
        assert list(map(type, ended)) == [
            LookupError,
            DependencyFailureError,
            DependencyFailureError,
        ]
        assert flow.ends == [
            ("failure", each.uid, type(error))
            for each, error in zip((broken, behind, last), ended, strict=True)
        ]


@pytest.mark.parametrize("kind", [NotingTasks, NotingComponents])
async def test_every_cancellation_goes_through_the_methods_of_a_subclass(kind: Any) -> None:
    backend = ForeignBackend()
    flow = await kind.create(backend)
    task = flow.function_task(identity)(1)
    behind = flow.function_task(identity)(task)
    await backend.given(task)
    assert task.cancel("enough")
    assert task.cancelled()
    assert behind.cancelled()
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await task
    assert flow.ends == [("cancellation", each.uid, False) for each in (task, behind)]
    flow.ends.clear()
    reported = flow.function_task(identity)(1)
    await backend.end(reported, "CANCELED")
    left = flow.function_task(identity)(1)
    await backend.given(left)
    await flow.shutdown()
    assert left.cancelled()
    assert flow.ends == [("cancellation", each.uid, False) for each in (reported, left)]


async def test_only_the_last_attempt_goes_through_the_methods_of_a_subclass() -> None:
    async with await NotingTasks.create() as flow:
        task = flow.function_task(retries=2, backoff=0)(fail)()
        with pytest.raises(LookupError):
            await task
        assert flow.ends == [("failure", task.key, LookupError)]


async def test_what_a_method_leaves_unfinished_can_be_ended_later() -> None:
    left: list[Any] = []

    class Engine(WorkflowEngine):
        def handle_task_failure(
            self, task: dict[str, Any], task_fut: Any, override_error_message: Any = None
        ) -> None:
            left.append(task_fut)

    async with await Engine.create() as flow:
        first = flow.function_task(fail)()
        second = flow.function_task(identity)(first)
        third = flow.function_task(add)(second, 1)
        while not left:
            await launched()
        first.set_exception(LookupError("after all"))
        while len(left) < 2:
            await launched()
        assert left == [first, second]
        assert not third.done()
        second.set_result(1)
        assert await third == 2


async def test_a_task_fails_when_a_method_of_a_subclass_raises() -> None:
    class Engine(WorkflowEngine):
        def handle_task_success(self, task: dict[str, Any], task_fut: Any) -> None:
            raise KeyError("in the method")

        def handle_task_cancellation(self, task: dict[str, Any], task_fut: Any) -> bool:
            raise KeyError("in the other")

    async with await Engine.create() as flow:
        task = flow.function_task(identity)(1)
        with pytest.raises(KeyError, match="in the method"):
            await task
        with pytest.raises(KeyError, match="in the method"):
            await flow.block(async_identity)(1)
        task = flow.function_task(identity)(1)
        task.cancel()
        with pytest.raises(KeyError, match="in the other"):
            await task


async def test_components_go_through_the_submit_of_a_subclass() -> None:
    seen: list[list[tuple[str, Any]]] = []

    class Engine(WorkflowEngine):
        async def submit(self, objects: Any) -> None:
            seen.append([(each["name"], each["args"]) for each in objects])
            await super().submit(objects)

    async with await Engine.create() as flow:
        one = flow.function_task(identity)(1)
        two = flow.block(async_identity)(2)
        three = flow.function_task(add)(one, two)
        assert await three == 3
        assert await flow.executable_task(async_identity)("echo 4") == "4\n"
        assert seen == [
            [("identity", (1,)), ("async_identity", (2,))],
            [("add", (1, 2))],
            [("async_identity", ("echo 4",))],
        ]


async def test_components_fail_when_the_submit_of_a_subclass_raises() -> None:
    class Engine(WorkflowEngine):
        async def submit(self, objects: Any) -> None:
            raise KeyError("not now")

    async with await Engine.create() as flow:
        with pytest.raises(KeyError, match="not now"):
            await flow.function_task(identity)(1)


async def test_blocks_run_through_the_execute_block_of_a_subclass() -> None:
    seen: list[Any] = []

    class Engine(WorkflowEngine):
        async def execute_block(self, block_fut: Any, func: Any, *args: Any, **kwargs: Any) -> None:
            seen.append((block_fut.uid, args, kwargs))
            await super().execute_block(block_fut, func, *args, **kwargs)
            seen.append(block_fut.done())

    async with await Engine.create() as flow:

        async def body(value: int, *, more: int) -> int:
            inner = flow.function_task(identity)(value)
            assert inner.task["workflow_id"] == block.uid
            return more + await inner

        block = flow.block(body)(1, more=2)
        assert await block == 3
        assert seen == [(block.uid, (1,), {"more": 2}), True]

        async def broken() -> None:
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            await flow.block(broken)()


async def test_the_run_of_a_subclass_is_called_and_ends_with_the_engine() -> None:
    seen: list[str] = []

    class Engine(WorkflowEngine):
        async def run(self) -> None:
            seen.append("begun")
            try:
                await super().run()
                await asyncio.get_running_loop().create_future()
            finally:
                seen.append("ended")

    async with await Engine.create() as flow:
        assert await flow.function_task(identity)(1) == 1
        assert seen == ["begun"]
        assert not flow.is_run
    assert seen == ["begun", "ended"]


async def test_reports_go_through_the_task_callbacks_of_a_subclass() -> None:
    seen: list[tuple[str, str]] = []

    class Engine(WorkflowEngine):
        def task_callbacks(self, task: Any, state: str, service_callback: Any = None) -> None:
            seen.append((task["uid"], str(state)))
            super().task_callbacks(task, state, service_callback)

    async with await Engine.create() as flow:
        task = flow.function_task(identity)(1)
        assert await asyncio.wait_for(task, GUARD_S) == 1
        assert (task.uid, "DONE") in seen


async def test_shutdown_ends_when_the_submit_of_a_subclass_waits() -> None:
    class Engine(WorkflowEngine):
        async def submit(self, objects: Any) -> None:
            await asyncio.get_running_loop().create_future()

    flow = await Engine.create()
    task = flow.function_task(identity)(1)
    await asyncio.sleep(0)
    await asyncio.wait_for(flow.shutdown(), GUARD_S)
    assert task.cancelled()


def test_a_task_runs_once_when_a_subclass_leaves_it_open_and_the_loop_runs_again() -> None:
    runs: list[int] = []

    class Engine(WorkflowEngine):
        def handle_task_success(self, task: dict[str, Any], task_fut: Any) -> None:
            ended.set()

    loop = asyncio.new_event_loop()
    ended = asyncio.Event()
    flow = loop.run_until_complete(Engine.create())

    @flow.function_task
    async def body() -> None:
        runs.append(1)

    async def first() -> Any:
        task = body()
        await asyncio.wait_for(ended.wait(), GUARD_S)
        return task

    async def second() -> None:
        ended.clear()
        flow.function_task(identity)(1)  # behind what would be launched again
        await asyncio.wait_for(ended.wait(), GUARD_S)

    task = loop.run_until_complete(first())
    loop.run_until_complete(second())
    assert runs == [1]
    assert not task.done()
    loop.run_until_complete(asyncio.wait_for(flow.shutdown(), GUARD_S))
    loop.close()


# --- futures that are no components ---------------------------------------------------------------


async def test_a_plain_future_ends_as_the_body_that_is_executed_for_it() -> None:
    async with await WorkflowEngine.create() as flow:
        loop = asyncio.get_running_loop()
        future: Any = loop.create_future()
        future.block = {"uid": "block.mine"}
        await flow.execute_block(future, async_identity, 1)
        assert future.result() == 1
        threads: list[Any] = []

        def plain(value: int) -> int:
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
            threads.append(value)
            return value + 1

        future = loop.create_future()
        await flow.execute_block(future, plain, 2)
        assert (future.result(), threads) == (3, [2])
        future = loop.create_future()
        await flow.execute_block(future, fail)
        assert isinstance(future.exception(), LookupError)


async def test_plain_futures_are_ended_by_hand_with_the_keywords_of_either_name() -> None:
    async with await WorkflowEngine.create() as flow:
        loop = asyncio.get_running_loop()
        one, two, three, four = (loop.create_future() for _ in range(4))
        flow.handle_component_success(component={"return_value": 1}, component_fut=one)
        flow.handle_task_success(task={"stdout": "2"}, task_fut=two)
        flow.handle_component_failure(component={"stderr": "as it is\n"}, component_fut=three)
        assert flow.handle_component_cancellation(component={}, component_fut=four) is True
        assert (one.result(), two.result(), four.cancelled()) == (1, "2", True)
        assert type(three.exception()) is RuntimeError
        assert str(three.exception()) == "as it is\n"
        flow.handle_task_failure({}, three)  # it has ended
        assert str(three.exception()) == "as it is\n"
