"""What a body is given: values in place of futures, and the context of its call."""

import asyncio
import concurrent.futures
import dataclasses
import functools
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from engine_support import (
    REQUEST,
    Gate,
    add,
    async_identity,
    identity,
)

from dftracer.asyncflow import (
    Component,
    RuntimeExecutionBackend,
    WorkflowEngine,
)
from dftracer.utils import Runtime

pytestmark = pytest.mark.usefixtures("new_loop")


# --- futures as arguments -------------------------------------------------------------------------


@dataclasses.dataclass
class Record:
    left: Any
    right: Any = None


@dataclasses.dataclass(frozen=True)
class FrozenRecord:
    left: Any
    right: Any = None


class Pair(NamedTuple):
    left: Any
    right: Any


SHAPES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda x: x,
    "in a list": lambda x: [0, x],
    "in a tuple": lambda x: (x, 0),
    "in a dict": lambda x: {"key": x, "other": 0},
    "in a dataclass": lambda x: Record(x),
    "in a frozen dataclass": lambda x: FrozenRecord(1, x),
    "in a named tuple": lambda x: Pair(x, 0),
    "in an ordered dict": lambda x: OrderedDict(a=1, b=x),
    "in a defaultdict": lambda x: defaultdict(list, a=x),
    "in all of them": lambda x: [({"a": Record([Pair(FrozenRecord(x), x)], right=(x,))},), x],
    "several times": lambda x: [x, x, {"again": x}, (x, [x])],
    "deep inside": lambda x: functools.reduce(lambda inner, _: [inner], range(50), x),
}


@pytest.mark.parametrize("finished", [False, True], ids=["pending", "finished"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_values_replace_futures_when_these_are_passed(shape: str, finished: bool) -> None:
    make = SHAPES[shape]
    async with await WorkflowEngine.create() as flow:
        task = flow.function_task(lambda *args, **kwargs: (args, kwargs))
        source = flow.function_task(identity)("value")
        if finished:
            await source
        given = make(source)
        expected = make("value")
        args, kwargs = await task(given, keyword=given)
        assert (args, kwargs) == ((expected,), {"keyword": expected})
        assert type(args[0]) is type(expected)
        assert given == make(source)  # what the caller holds is unchanged


@pytest.mark.parametrize("kind", ["function_task", "block"])
async def test_values_replace_futures_when_they_are_plain_ones(kind: str) -> None:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[str] = loop.create_future()
    done.set_result("done")
    pending: asyncio.Future[str] = loop.create_future()

    async def body(*values: str) -> tuple[str, ...]:
        return values

    async with await WorkflowEngine.create() as flow:
        aio_task = asyncio.ensure_future(async_identity("task"))
        future = getattr(flow, kind)(body)(done, pending, aio_task, pending)
        other = getattr(flow, kind)(body)(pending)
        await aio_task
        assert not future.done()
        pending.set_result("pending")
        assert await future == ("done", "pending", "task", "pending")
        assert await other == ("pending",)


async def test_a_future_of_threads_is_handed_on_when_passed() -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    async with await WorkflowEngine.create() as flow:
        assert await flow.function_task(identity)(future) is future


async def test_the_body_gets_the_very_object_when_it_holds_no_future() -> None:
    values: list[Any] = [[1, [2]], {"a": {}}, Record([1]), Pair(1, []), {1, 2}, object(), Record]
    async with await WorkflowEngine.create() as flow:
        for value in values:
            assert await flow.function_task(identity)(value) is value


async def test_a_body_waits_when_its_dependency_still_runs() -> None:
    order: list[str] = []
    with Runtime(python_threads=4) as runtime:
        async with await WorkflowEngine.create(RuntimeExecutionBackend(runtime)) as flow:
            with Gate() as gate:

                @flow.function_task
                def first() -> None:
                    gate.hold()
                    order.append("first")

                @flow.function_task
                def second(_: None) -> None:
                    order.append("second")

                behind = second(first())
                assert await flow.function_task(identity)("unrelated") == "unrelated"
                assert order == []
                gate.set()
                await behind
    assert order == ["first", "second"]


async def test_every_edge_is_kept_when_the_graph_is_wide_or_deep() -> None:
    async with await WorkflowEngine.create() as flow:
        task = flow.function_task(add)
        total = flow.function_task(sum)
        source = task(0, 1)
        assert await total([task(source, i) for i in range(1_000)]) == 500_500
        for _ in range(2_000):
            source = task(source, 1)
        assert await source == 2_001


async def test_the_body_gets_an_argument_when_it_contains_itself() -> None:
    loop: list[Any] = []
    loop.append(loop)
    parent = Record(None)
    parent.left = [Record(parent), Record(parent)]
    async with await WorkflowEngine.create() as flow:
        assert await flow.function_task(identity)(loop) is loop
        assert await flow.function_task(identity)(parent) is parent


async def test_a_container_is_looked_through_once_when_it_is_shared() -> None:
    looks = 0

    class Counted(list[Any]):
        def __iter__(self) -> Any:
            nonlocal looks
            looks += 1
            return super().__iter__()

    value: list[Any] = Counted([1])
    for _ in range(10):
        value = [value, value]
    async with await WorkflowEngine.create() as flow:
        assert await flow.function_task(identity)(value) is value
    assert looks < 10  # and not 2 ** 10: twice as many levels would never end


# --- blocks ---------------------------------------------------------------------------------------


async def test_a_block_gives_its_result_when_it_awaits_tasks() -> None:
    async with await WorkflowEngine.create() as flow:
        task = flow.function_task(add)

        @flow.block
        async def of_tasks(start: int) -> int:
            assert threading.get_ident() == here
            parts = await asyncio.gather(*(task(start, i) for i in range(5)))
            return sum(parts)

        here = threading.get_ident()
        assert await of_tasks(10) == 60
        assert await flow.block()(of_tasks.__wrapped__)(0) == 10  # type: ignore[attr-defined]


async def test_blocks_and_tasks_mix_when_they_depend_on_each_other() -> None:
    async with await WorkflowEngine.create() as flow:
        task = flow.function_task(add)

        @flow.block
        async def triple(value: int) -> int:
            assert not isinstance(value, asyncio.Future)
            return int(await task(task(value, value), value))

        assert await task(triple(task(1, 0)), triple(triple(1))) == 12
        assert await triple(triple(triple(task(1, 1)))) == 54


async def test_blocks_nest_when_they_call_themselves() -> None:
    async with await WorkflowEngine.create() as flow:
        task = flow.function_task(add)

        @flow.block
        async def fibonacci(n: int) -> int:
            if n < 2:
                return n
            return int(await task(fibonacci(n - 1), fibonacci(n - 2)))

        assert await fibonacci(10) == 55


async def test_blocks_take_turns_when_each_waits_for_the_other() -> None:
    ping, pong = asyncio.Event(), asyncio.Event()

    async with await WorkflowEngine.create() as flow:

        @flow.block
        async def one() -> str:
            ping.set()
            await pong.wait()
            return "one"

        @flow.block
        async def other() -> str:
            await ping.wait()
            pong.set()
            return "other"

        assert list(await asyncio.gather(one(), other())) == ["one", "other"]


async def test_members_go_on_when_their_block_has_ended() -> None:
    async with await WorkflowEngine.create() as flow:
        with Gate() as gate:
            futures: list[Component[Any]] = []

            @flow.block
            async def hasty() -> str:
                futures.append(flow.function_task(gate.hold)("member"))
                return "block"

            assert await hasty() == "block"
            gate.set()
            assert await futures[0] == "member"


# --- contextvars ----------------------------------------------------------------------------------


def read_request() -> str:
    return REQUEST.get()


async def async_read_request() -> str:
    await asyncio.sleep(0)
    return REQUEST.get()


@pytest.mark.parametrize("kind", ["function_task", "async function_task", "block"])
async def test_a_body_sees_the_context_of_its_call_when_called_in_one_turn(kind: str) -> None:
    body: Any = read_request if kind == "function_task" else async_read_request
    async with await WorkflowEngine.create() as flow:
        call = getattr(flow, kind.split()[-1])(body)
        futures = []
        for value in ("first", "second", "third"):
            REQUEST.set(value)
            futures.append(call())
        REQUEST.set("later")
        assert await asyncio.gather(*futures) == ["first", "second", "third"]


async def test_a_command_sees_the_context_of_its_call_when_called_in_one_turn() -> None:
    async with await WorkflowEngine.create() as flow:
        call = flow.executable_task(lambda: ["echo", REQUEST.get()])
        futures = []
        for value in ("first", "second"):
            REQUEST.set(value)
            futures.append(call())
        assert await asyncio.gather(*futures) == ["first\n", "second\n"]


@pytest.mark.parametrize("kind", ["function_task", "block"])
async def test_a_body_sees_the_context_of_its_call_when_it_had_to_wait(kind: str) -> None:
    async def body(_: Any) -> str:
        return REQUEST.get()

    async with await WorkflowEngine.create() as flow:
        source: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        REQUEST.set("at the call")
        of_future = getattr(flow, kind)(body)(source)
        of_task = getattr(flow, kind)(body)(flow.function_task(identity)(source))
        REQUEST.set("at the launch")
        source.set_result(None)
        assert (await of_future, await of_task) == ("at the call", "at the call")


async def test_a_body_sees_the_context_of_its_block_when_called_there() -> None:
    async with await WorkflowEngine.create() as flow:

        @flow.block
        async def block(value: str) -> list[str]:
            REQUEST.set(value)
            first = flow.function_task(read_request)()
            return [await first, await flow.function_task(async_read_request)()]

        REQUEST.set("outside")
        results = await asyncio.gather(block("one"), block("two"))
        assert list(results) == [["one", "one"], ["two", "two"]]
        assert REQUEST.get() == "outside"


async def test_the_caller_keeps_its_context_when_bodies_change_theirs() -> None:
    def change() -> None:
        REQUEST.set("changed")

    async def async_change() -> None:
        REQUEST.set("changed")

    async with await WorkflowEngine.create() as flow:
        REQUEST.set("mine")
        await flow.function_task(change)()
        await flow.function_task(async_change)()
        await flow.block(async_change)()
        assert REQUEST.get() == "mine"
        assert await flow.function_task(read_request)() == "mine"
