"""What an engine shows of its components, and that it keeps none of them alive for that."""

import asyncio
import gc
import weakref
from typing import Any

import pytest
from engine_support import (
    ForeignBackend,
    add,
    assert_nothing_kept,
    async_identity,
    identity,
    launched,
)

from dftracer.asyncflow import NoopExecutionBackend, RuntimeExecutionBackend, WorkflowEngine
from dftracer.asyncflow.observe.history import HISTORY_SIZE

pytestmark = pytest.mark.usefixtures("new_loop")


def uids(*futures: Any) -> set[str]:
    return {future.uid for future in futures}


async def test_each_stage_is_shown_when_a_component_goes_through_it() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        source: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = flow.function_task(identity)(source)
        behind = flow.function_task(identity)(task)
        assert (flow.running, flow.resolved) == (set(), set())
        source.set_result(1)
        await backend.given(task)
        assert (flow.running, flow.resolved) == (uids(task), uids(task))
        assert flow.components[task.uid]["state"] == "PENDING"
        backend.report(task.task, "RUNNING")
        assert flow.components[task.uid]["state"] == "RUNNING"
        await backend.end(task, return_value=1)
        await backend.given(behind)
        assert (flow.running, flow.resolved) == (uids(behind), uids(task, behind))
        assert [entry["state"] for entry in flow.components.values()] == ["DONE", "PENDING"]
        behind.cancel()
        assert (flow.running, flow.resolved) == (set(), uids(task, behind))
        assert flow.components[behind.uid]["state"] == "CANCELED"


async def test_a_component_is_described_when_its_future_is_held() -> None:
    async with await WorkflowEngine.create() as flow:
        source = flow.function_task(identity)(1)
        block = flow.block(async_identity)(source)
        program = flow.executable_task(lambda _: "true")(block)
        components = [source, block, program]
        for _ in "unfinished", "ended":
            assert list(flow.components) == [component.uid for component in components]
            assert len(flow.components) == len(flow.dependencies) == 3
            for component in components:
                entry = flow.components[component.uid]
                assert entry["future"] is component
                assert entry["type"] == component.kind
                assert entry["description"] is getattr(component, component.kind)
                assert entry["description"]["name"] == component.name
                assert entry["state"] == component.state
            assert dict(flow.dependencies) == {
                source.uid: [],
                block.uid: [{"uid": source.uid, "name": "identity"}],
                program.uid: [{"uid": block.uid, "name": "async_identity"}],
            }
            await program
        assert program.task["executable"] == "true"


async def test_name_and_end_are_remembered_when_the_future_is_gone() -> None:
    def fail() -> None:
        raise LookupError("mine")

    async with await WorkflowEngine.create() as flow:
        futures: list[Any] = [
            flow.function_task(identity)(1),
            flow.block(async_identity)(2),
            flow.function_task(fail)(),
            flow.function_task(identity)(asyncio.get_running_loop().create_future()),
        ]
        futures.append(flow.function_task(identity)(futures[2]))
        futures[3].cancel()
        await asyncio.gather(*futures, return_exceptions=True)
        expected = [
            (futures[0].uid, "task", "identity", "DONE"),
            (futures[1].uid, "block", "async_identity", "DONE"),
            (futures[2].uid, "task", "fail", "FAILED"),
            (futures[3].uid, "task", "identity", "CANCELED"),
            (futures[4].uid, "task", "identity", "FAILED"),
        ]
        del futures
        await launched()
        gc.collect()
        shown = []
        for uid in sorted(flow.components):
            entry = flow.components[uid]
            assert entry["future"] is None
            assert entry["description"] == {"uid": uid, "name": entry["description"]["name"]}
            assert flow.dependencies[uid] == []
            shown.append((uid, entry["type"], entry["description"]["name"], entry["state"]))
        assert shown == sorted(expected)


class Tracked:
    """A value that tells when it dies."""


async def test_results_and_arguments_die_when_nobody_holds_the_future() -> None:
    def make(_: Tracked) -> Tracked:
        return Tracked()

    async with await WorkflowEngine.create() as flow:
        argument = Tracked()
        first = flow.function_task(make)(argument)
        second = flow.function_task(make)(first)
        assert flow.components[first.uid]["description"]["args"] == (argument,)
        living = [weakref.ref(argument), weakref.ref(await first), weakref.ref(await second)]
        assert [entry["future"] for entry in flow.components.values()] == [first, second]
        del argument, first, second
        await launched()
        gc.collect()
        assert [reference() for reference in living] == [None] * 3
        assert len(flow.components) == 2


async def test_a_mapping_behaves_as_one_when_asked_for_odd_things() -> None:
    async with await WorkflowEngine.create(ForeignBackend(), cancel_on_exit=True) as flow:
        future = flow.function_task(identity)(1)
        ended = flow.function_task(identity)(2)
        ended.cancel()
        odd: list[Any] = [None, 1, 1.0, b"task.000001", (), object(), "", ".", "task", "task."]
        odd += ["task.1", "block.000001", "task.000099", "task.000001 ", "1", "task.-00001", "²"]
        for mapping in (flow.components, flow.dependencies):
            assert future.uid in mapping
            assert ended.uid in mapping
            assert mapping.get(future.uid) is not None
            for key in odd:
                assert key not in mapping
                assert mapping.get(key, "none") == "none"
                with pytest.raises(KeyError):
                    mapping[key]
            assert mapping.keys() == uids(future, ended)
            assert len(list(mapping.items())) == len(mapping) == 2
        with pytest.raises(TypeError):
            flow.components["task.000001"] = {}  # type: ignore[index]


async def test_the_oldest_are_forgotten_when_thousands_have_ended() -> None:
    async with await WorkflowEngine.create(NoopExecutionBackend(), cancel_on_exit=True) as flow:
        task = flow.function_task(identity)
        futures = [task(number) for number in range(HISTORY_SIZE + 500)]
        waiting = task(asyncio.get_running_loop().create_future())
        await asyncio.gather(*futures)
        assert len(flow.components) == HISTORY_SIZE + 1
        assert len(flow.resolved) == HISTORY_SIZE
        assert futures[499].uid not in flow.components
        assert flow.components[futures[500].uid]["future"] is futures[500]
        assert flow.components[waiting.uid]["future"] is waiting
        assert len(dict(flow.components)) == len(dict(flow.dependencies)) == HISTORY_SIZE + 1
        assert not flow.running


async def test_the_last_are_remembered_when_the_engine_is_shut_down() -> None:
    flow = await WorkflowEngine.create()
    done = flow.function_task(identity)(1)
    assert await done == 1
    left = flow.function_task(identity)(asyncio.get_running_loop().create_future())
    await flow.shutdown()
    assert [entry["state"] for entry in flow.components.values()] == ["DONE", "CANCELED"]
    assert (flow.running, flow.resolved) == (set(), uids(done, left))
    assert flow.backend.state() == "IDLE"


async def test_engines_do_not_show_each_other_s_when_there_are_several() -> None:
    backends = [RuntimeExecutionBackend(name=name) for name in ("one", "two")]
    one, other = [await WorkflowEngine.create(backend) for backend in backends]
    async with one, other:
        source = one.function_task(add)(1, 1)
        behind = other.function_task(add)(source, 1)
        also = other.function_task(identity)(behind)
        assert await also == 3
        assert list(one.components) == [source.uid]
        assert list(other.components) == [behind.uid, also.uid]
        assert one.components[source.uid]["future"] is source
        assert other.dependencies[also.uid] == [{"uid": behind.uid, "name": "add"}]


async def test_memory_is_bounded_when_one_engine_lives_for_thousands_of_rounds() -> None:
    async with await WorkflowEngine.create(ForeignBackend(), cancel_on_exit=True) as flow:
        backend: ForeignBackend = flow.backend
        task, block = flow.function_task(add), flow.block(async_identity)
        sizes: list[int] = []
        for turn in range(3_000):
            first = task(turn, 1)
            second = task(block(first), first)
            dropped = task(first, second)
            await backend.end(first, return_value=turn)
            await backend.given(second)
            dropped.cancel()
            backend.report({**second.task, "return_value": -turn}, "DONE")
            assert (await second, first.result()) == (-turn, turn)
            backend.tasks.clear()
            backend.cancelled.clear()
            if turn % 1_000 == 999:
                gc.collect()
                sizes.append(len(gc.get_objects()))
        del first, second, dropped
        assert_nothing_kept(flow)
        assert len(flow.components) == HISTORY_SIZE
        # All that there is was there after the first thousand rounds.
        assert sizes[2] - sizes[0] < 200
