"""Results that stay with their backend until somebody asks: futures, edges, the end."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from engine_support import GUARD_S, add, assert_nothing_kept, identity, launched

from dftracer.asyncflow import DependencyFailureError, RuntimeExecutionBackend, WorkflowEngine
from dftracer.asyncflow.backends.base import ExecutionBackend, RemoteValue, State


class Kept(RemoteValue):
    """A result that its backend keeps."""

    __slots__ = ("__weakref__", "backend", "value")

    def __init__(self, backend: "Keeper", value: Any) -> None:
        self.backend = backend
        self.value = value

    def is_on(self, backend: Any) -> bool:
        return backend is self.backend

    async def fetch(self) -> Any:
        self.backend.fetched.append(self.value)
        self.backend.asked.set()
        await self.backend.may_send.wait()
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Keeper(ExecutionBackend):
    """Runs functions at once and keeps what they return."""

    def __init__(self, name: str = "keeper") -> None:
        super().__init__(name)
        self.fetched: list[Any] = []
        self.given: list[Any] = []
        """The arguments that were results of its own tasks, in the order of their arrival."""
        self.asked = asyncio.Event()
        self.may_send = asyncio.Event()
        self.may_send.set()

    async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
        self.submit_nowait(tasks)

    def submit_nowait(self, tasks: list[dict[str, Any]]) -> None:
        """Run tasks, which have ended when this returns."""
        for task in tasks:
            args = [self._open(value) for value in task["args"]]
            task["return_value"] = Kept(self, task["function"](*args))
            self._callback_func(task, State.DONE)

    def _open(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._open(item) for item in value]
        if not isinstance(value, Kept):
            return value
        self.given.append(value.value)
        return value.value

    async def cancel_task(self, uid: str) -> bool:
        return False

    async def shutdown(self) -> None:
        pass

    def state(self) -> str:
        return "INITIALIZED"


@asynccontextmanager
async def engine(*others: Any) -> AsyncIterator[tuple[WorkflowEngine, Keeper]]:
    """Give an engine on a :class:`Keeper`; see that nothing is left in it."""
    keeper = Keeper()
    async with await WorkflowEngine.create([keeper, *others]) as flow:
        yield flow, keeper
    assert_nothing_kept(flow)


# --- where results go ---------------------------------------------------------------------------


async def test_result_stays_when_only_tasks_of_the_same_backend_need_it(new_loop):
    async with engine() as (flow, keeper):
        double = flow.function_task(lambda value: value * 2)
        total = flow.function_task(sum)
        first = double(1)
        assert await total([double(first), first]) == 6
        assert keeper.given == [2, 4, 2]
        assert keeper.fetched == [6]


@pytest.mark.parametrize("kind", ["executable_task", "block", "other backend"])
async def test_result_is_fetched_when_a_body_elsewhere_needs_it(kind):
    async with engine(RuntimeExecutionBackend(name="here")) as (flow, keeper):
        value = flow.function_task(identity)(20)
        if kind == "executable_task":

            @flow.executable_task(backend="here")
            def body(number: int) -> list[str]:
                return ["echo", f"{number + 1}"]

        elif kind == "block":

            @flow.block
            async def body(number: int) -> int:
                return number + 1

        else:

            @flow.function_task(backend="here")
            def body(number: int) -> int:
                return number + 1

        assert int(await body(value)) == 21
        assert keeper.fetched == [20]


async def test_result_is_fetched_once_when_many_ask():
    async with engine() as (flow, keeper):
        value = flow.function_task(identity)(5)

        @flow.block
        async def body(number: int) -> int:
            return number

        assert await asyncio.gather(value, body(value), body(value), value) == [5] * 4
        assert await value == value.result() == 5
        assert keeper.fetched == [5]


async def test_reference_is_passed_on_when_the_value_is_here_too():
    async with engine() as (flow, keeper):
        task = flow.function_task(identity)
        value = task(3)
        assert await value == 3
        assert await task([value, task(4)]) == [3, 4]
        assert keeper.given == [3, 4]


async def test_value_is_used_when_the_backend_does_not_take_its_reference_any_more():
    async with engine() as (flow, keeper):
        task = flow.function_task(identity)
        value = task(3)
        await value
        value.remote.backend = None
        assert await task(value) == 3
        assert keeper.given == []


# --- the future ---------------------------------------------------------------------------------


async def wait_for(future: Any) -> Any:
    return await asyncio.wait_for(future, GUARD_S)


async def wait(future: Any) -> Any:
    done, pending = await asyncio.wait([future])
    assert not pending
    return done.pop().result()


async def as_completed(future: Any) -> Any:
    return await next(iter(asyncio.as_completed([future])))


async def shield(future: Any) -> Any:
    return await asyncio.shield(future)


async def gather(future: Any) -> Any:
    return (await asyncio.gather(future))[0]


async def callback(future: Any) -> Any:
    called = asyncio.get_running_loop().create_future()
    future.add_done_callback(called.set_result)
    assert await called is future
    return future.result()


async def look_again(future: Any) -> Any:
    while not future.done():  # noqa: ASYNC110 - that is the point
        await asyncio.sleep(0)
    assert future.exception() is None
    return future.result()


WAYS = [identity, wait_for, wait, as_completed, shield, gather, callback, look_again]


@pytest.mark.parametrize("has_ended", [False, True], ids=["running", "ended"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_value_comes_when_it_is_awaited_in_any_way(way, has_ended, new_loop):
    async with engine() as (flow, keeper):
        future = flow.function_task(identity)("value")
        if has_ended:
            await launched()
            assert not keeper.fetched
        result = way(future)
        assert (await result) == "value"
        assert keeper.fetched == ["value"]


async def test_state_is_done_and_nothing_is_fetched_when_nobody_has_asked():
    async with engine() as (flow, keeper):
        future = flow.function_task(identity)(1)
        await launched()
        assert future.state == flow.components[future.uid]["state"] == "DONE"
        assert repr(future) == "<task.000001 'identity' DONE>"
        assert future.uid in flow.resolved
        with pytest.raises(asyncio.InvalidStateError, match="await it first"):
            future.result()
        with pytest.raises(asyncio.InvalidStateError, match="has ended already"):
            future.set_result(2)
        flow.handle_task_success({"return_value": 2}, future)
        assert not flow.handle_task_cancellation({}, future)
        assert not keeper.fetched


async def test_error_is_raised_and_blamed_when_the_value_cannot_be_fetched():
    async with engine() as (flow, _):
        task = flow.function_task(identity)
        value, other = task(OSError("gone")), task(OSError("gone too"))

        @flow.block
        async def body(value: Any) -> None:
            pass

        with pytest.raises(DependencyFailureError, match="identity failed: OSError: gone"):
            await body(value)
        with pytest.raises(OSError, match="gone"):
            await value
        with pytest.raises(OSError, match="too"):
            await other
        assert value.state == "FAILED"


async def test_other_dependencies_are_not_fetched_when_one_fails():
    async with engine() as (flow, keeper):
        value = flow.function_task(identity)(1)
        await launched()
        failed = asyncio.get_running_loop().create_future()
        failed.set_exception(ValueError("no"))
        with pytest.raises(DependencyFailureError, match="ValueError: no"):
            await flow.function_task(add)(value, failed)
        assert not keeper.fetched


# --- giving up ----------------------------------------------------------------------------------


async def test_dependents_go_on_when_the_future_of_an_ended_task_is_cancelled():
    async with engine() as (flow, keeper):
        value = flow.function_task(identity)(1)
        await launched()
        other = flow.function_task(add)(value, 1)
        await launched()
        assert value.cancel()
        assert value.cancelled()
        assert value.state == "CANCELED"
        assert not value.cancel()
        assert await other == 2
        with pytest.raises(asyncio.CancelledError):
            await flow.function_task(identity)(value)
        assert keeper.fetched == [2]


async def test_waiting_ends_at_once_when_it_is_cancelled_during_the_fetch():
    async with engine() as (flow, keeper):
        keeper.may_send.clear()
        value = flow.function_task(identity)(1)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(value, 0.01)
        assert value.cancelled()
        keeper.may_send.set()


async def test_dependent_is_cancelled_when_it_waits_for_a_fetch():
    async with engine() as (flow, keeper):
        keeper.may_send.clear()
        value = flow.function_task(identity)(1)

        @flow.block
        async def body(number: int) -> int:
            return number

        block = body(value)
        await keeper.asked.wait()
        assert block.cancel()
        keeper.may_send.set()
        assert await value == 1
        assert block.cancelled()


async def test_futures_are_cancelled_when_the_engine_ends_before_anybody_asked():
    async with engine() as (flow, keeper):
        asked, unasked = map(flow.function_task(identity), (1, 2))
        keeper.may_send.clear()
        waiter = asyncio.ensure_future(gather(asked))
        await launched()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    with pytest.raises(asyncio.CancelledError):
        await unasked
    assert "had awaited <task.000002 'identity' DONE>" in unasked._cancel_message


async def test_result_is_let_go_when_nobody_holds_the_future():
    async with engine() as (flow, _):
        value = flow.function_task(identity)(1)
        await launched()
        remote = weakref.ref(value.remote)
        gc.disable()
        try:
            del value
            assert remote() is None
        finally:
            gc.enable()


async def test_value_is_fetched_when_another_engine_depends_on_it():
    async with engine() as (flow, keeper), engine() as (other, _):
        value = flow.function_task(identity)(1)
        await launched()
        assert await other.function_task(add)(value, 1) == 2
        assert keeper.fetched == [1]


async def test_fetch_begins_in_the_engines_thread_when_another_one_asks():
    async with engine() as (flow, keeper):
        value = flow.function_task(identity)(1)
        await launched()
        assert not await asyncio.to_thread(value.done)
        assert await look_again(value) == 1
        assert keeper.fetched == [1]


async def test_components_launch_by_hand_when_they_depend_on_what_has_ended():
    async with engine() as (flow, _):
        value = flow.function_task(identity)(1)
        await launched()
        other = flow.function_task(add)(value, 1)
        await flow.submit([other.task])
        assert await other == 2
