"""What becomes of a workflow when parts of it are cancelled, at any point of their lives."""

import asyncio
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
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

from dftracer.asyncflow import Component, RuntimeExecutionBackend, WorkflowEngine
from dftracer.utils import Runtime

KINDS = ["function_task", "block", "executable_task"]


def message_of(future: "asyncio.Future[Any]") -> str:
    """Return what the cancellation of ``future`` says."""
    with pytest.raises(asyncio.CancelledError) as caught:
        future.result()
    return str(caught.value)


def states(*futures: Component[Any]) -> set[str]:
    return {future.state for future in futures}


class Body:
    """A body that counts its calls."""

    def __init__(self) -> None:
        self.__name__ = "body"
        self.calls = 0

    async def __call__(self, *_: Any) -> str:
        self.calls += 1
        return "true"


# --- before it runs -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_the_body_never_runs_when_cancelled_in_the_turn_of_the_call(kind: str) -> None:
    body = Body()
    async with await WorkflowEngine.create() as flow:
        future = getattr(flow, kind)(body)()
        assert future.cancel()
        assert future.cancelled()
        assert future.state == "CANCELED"
        assert not future.cancel()
        assert await flow.function_task(identity)(1) == 1
        assert_nothing_kept(flow)
    assert body.calls == 0


@pytest.mark.parametrize("kind", ["block", "executable_task"])
async def test_the_body_never_runs_when_cancelled_in_the_turn_of_the_launch(kind: str) -> None:
    body = Body()
    async with await WorkflowEngine.create() as flow:
        future = getattr(flow, kind)(body)()
        asyncio.get_running_loop().call_soon(future.cancel)
        await asyncio.wait([future])
        assert future.cancelled()
        assert await flow.function_task(identity)(1) == 1
        assert_nothing_kept(flow)
    assert body.calls == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_the_body_never_runs_when_cancelled_while_it_waits(kind: str) -> None:
    body = Body()
    async with await WorkflowEngine.create() as flow:
        source: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        before = flow.function_task(identity)(source)
        future = getattr(flow, kind)(body)(before)
        sibling = flow.function_task(identity)(before)
        await launched()
        assert future.cancel("not needed")
        assert message_of(future) == "not needed"
        assert not before.done()
        assert not source.done()
        source.set_result(1)
        assert (await before, await sibling) == (1, 1)
        assert_nothing_kept(flow)
    assert body.calls == 0


async def test_the_body_never_runs_when_cancelled_in_the_queue() -> None:
    body = Body()
    with Runtime(python_threads=1) as runtime:
        async with await WorkflowEngine.create(RuntimeExecutionBackend(runtime)) as flow:
            with Gate() as gate:
                started = threading.Event()

                @flow.function_task
                def first() -> str:
                    started.set()
                    return str(gate.hold("first"))

                def second() -> None:
                    body.calls += 1

                ahead = first()
                await reached(started)
                future, behind = flow.function_task(second)(), flow.function_task(identity)("last")
                await launched()
                assert states(ahead) == {"RUNNING"}
                assert states(future, behind) == {"PENDING"}
                assert future.cancel()
                assert states(future) == {"CANCELED"}
                gate.set()
                assert (await ahead, await behind) == ("first", "last")
            assert_nothing_kept(flow)
    assert body.calls == 0


async def test_nothing_changes_when_a_finished_component_is_cancelled() -> None:
    async with await WorkflowEngine.create() as flow:
        for future in (
            flow.function_task(identity)("value"),
            flow.block(async_identity)("value"),
            flow.executable_task(lambda: ["printf", "value"])(),
        ):
            assert await future == "value"
            assert not future.cancel()
            assert (future.state, future.result()) == ("DONE", "value")
        failed = flow.function_task(int)("x")
        await asyncio.wait([failed])
        assert not failed.cancel()
        assert failed.state == "FAILED"
        assert isinstance(failed.exception(), ValueError)


# --- while it runs ------------------------------------------------------------------------------


async def test_the_task_is_cancelled_at_once_when_a_plain_body_runs() -> None:
    async with await WorkflowEngine.create() as flow:
        with Gate() as gate:
            started, ended = threading.Event(), threading.Event()

            @flow.function_task
            def body() -> str:
                try:
                    gate.hold_firmly(started)
                finally:
                    ended.set()
                return "too late"

            future = body()
            behind = flow.function_task(identity)(future)
            await reached(started)
            assert future.cancel("not needed")
            assert states(future, behind) == {"CANCELED"}
            assert message_of(future) == "not needed"
            assert not ended.is_set()
            gate.set()
            await reached(ended)
            assert await flow.function_task(identity)(1) == 1
            assert future.cancelled()
            assert_nothing_kept(flow)


@pytest.mark.parametrize("interrupt", [False, True])
async def test_a_plain_body_is_interrupted_only_when_its_decorator_says_so(interrupt: bool) -> None:
    async with await WorkflowEngine.create() as flow:
        with Gate() as gate:
            started, ended = threading.Event(), threading.Event()
            seen: list[type[BaseException]] = []

            @flow.function_task(interrupt=interrupt)
            def body() -> None:
                try:
                    started.set()
                    gate.hold()
                except BaseException as error:
                    seen.append(type(error))
                    raise
                finally:
                    ended.set()

            future = body()
            await reached(started)
            future.cancel()
            gate.set()
            await reached(ended)
            assert seen == ([asyncio.CancelledError] if interrupt else [])
            assert await flow.function_task(identity)(1) == 1  # and nobody else is


async def test_the_body_is_cancelled_when_an_async_one_is_suspended() -> None:
    async with await WorkflowEngine.create() as flow:
        started, ended = threading.Event(), threading.Event()
        seen: list[str] = []

        @flow.function_task
        async def body() -> None:
            # Called when this body has suspended.
            asyncio.get_running_loop().call_soon(started.set)
            try:
                await asyncio.sleep(2 * GUARD_S)
                seen.append("slept")
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
            finally:
                ended.set()

        future = body()
        behind = flow.function_task(identity)(future)
        await reached(started)
        assert future.state == "RUNNING"
        assert future.cancel()
        assert states(future, behind) == {"CANCELED"}
        await reached(ended)
        assert seen == ["cancelled"]


async def test_the_body_is_cancelled_when_an_async_one_is_about_to_suspend() -> None:
    async with await WorkflowEngine.create() as flow:
        with Gate() as gate:
            started, ended = threading.Event(), threading.Event()
            seen: list[str] = []

            @flow.function_task
            async def body() -> None:
                started.set()
                gate.hold()
                try:
                    await asyncio.sleep(GUARD_S / 2)
                    seen.append("slept")
                except asyncio.CancelledError:
                    seen.append("cancelled")
                    raise
                finally:
                    ended.set()

            future = body()
            await reached(started)
            assert future.cancel()
            assert future.cancelled()
            gate.set()
            await reached(ended)
            assert seen == ["cancelled"]


async def test_the_task_stays_cancelled_when_its_async_body_goes_on() -> None:
    async with await WorkflowEngine.create() as flow:
        started, ended = threading.Event(), threading.Event()

        @flow.function_task
        async def stubborn() -> str:
            asyncio.get_running_loop().call_soon(started.set)
            try:
                await asyncio.sleep(2 * GUARD_S)
            except asyncio.CancelledError:
                await asyncio.sleep(0)
            ended.set()
            return "too late"

        future = stubborn()
        await reached(started)
        future.cancel()
        await reached(ended)
        assert await flow.function_task(identity)(1) == 1
        assert future.cancelled()
        assert_nothing_kept(flow)


async def test_the_members_are_cancelled_when_their_block_is() -> None:
    async with await WorkflowEngine.create() as flow:
        with Gate() as gate:
            started = threading.Event()
            body = Body()
            members: dict[str, Component[Any]] = {}
            seen: list[str] = []

            def running() -> None:
                started.set()
                gate.hold()

            @flow.block
            async def inner() -> None:
                members["pending"] = flow.function_task(body)(members["running"])
                await members["pending"]

            @flow.block
            async def outer() -> None:
                members["finished"] = flow.function_task(identity)("finished")
                await members["finished"]
                members["running"] = flow.function_task(running)()
                members["inner"] = inner()
                try:
                    await asyncio.get_running_loop().create_future()
                except asyncio.CancelledError as error:
                    seen.append(str(error))
                    raise

            future = outer()
            behind = flow.function_task(identity)(future)
            outsider = flow.function_task(identity)("outsider")
            await reached(started)
            assert future.state == "RUNNING"
            assert future.cancel("not needed")
            finished = members.pop("finished")
            assert states(future, behind, *members.values()) == {"CANCELED"}
            assert message_of(members["running"]) == message_of(members["inner"]) == "not needed"
            gate.set()
            assert (await outsider, await finished) == ("outsider", "finished")
            await launched()
            assert seen == ["not needed"]
            assert body.calls == 0
            assert_nothing_kept(flow)


async def test_members_name_their_block_when_its_cancellation_says_nothing() -> None:
    async with await WorkflowEngine.create() as flow:
        called = asyncio.Event()
        members: list[Component[Any]] = []

        @flow.block
        async def surrounding() -> None:
            never = asyncio.get_running_loop().create_future()
            members.append(flow.function_task(identity)(never))
            called.set()
            await never

        future = surrounding()
        await called.wait()
        future.cancel()
        assert f"block.{future.id}" in message_of(members[0])
        assert "'surrounding'" in message_of(members[0])


async def test_a_block_stays_cancelled_when_its_body_goes_on() -> None:
    async with await WorkflowEngine.create() as flow:
        called, ended = asyncio.Event(), asyncio.Event()
        cleaned: list[Any] = []

        @flow.block
        async def stubborn() -> str:
            called.set()
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                cleaned.append(await flow.function_task(identity)("cleaned"))
            ended.set()
            return "too late"

        future = stubborn()
        await called.wait()
        future.cancel()
        await ended.wait()
        await launched()
        assert cleaned == ["cleaned"]
        assert future.cancelled()
        assert_nothing_kept(flow)


async def test_the_awaited_task_is_cancelled_when_blocks_nest_deeply() -> None:
    async with await WorkflowEngine.create() as flow:
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        deepest = asyncio.Event()
        members: list[Component[Any]] = []

        @flow.block
        async def nest(depth: int) -> None:
            if depth:
                members.append(nest(depth - 1))
            else:
                members.append(flow.function_task(identity)(never))
                deepest.set()
            await members[-1]

        future = nest(100)
        await deepest.wait()
        assert future.cancel()
        assert states(future, *members) == {"CANCELED"}
        await launched()
        assert not never.done()
        never.set_result(None)
        await launched()
        assert_nothing_kept(flow)


def test_all_ends_when_the_cancelled_blocks_nest_deeper_than_python_recurses(
    run_script: Callable[..., str],
) -> None:
    script = """
        import asyncio
        from dftracer.asyncflow import WorkflowEngine

        async def main():
            async with await WorkflowEngine.create() as flow:
                never = asyncio.get_running_loop().create_future()
                deepest = asyncio.Event()
                blocks = []

                @flow.block
                async def nest(depth):
                    if depth == 0:
                        deepest.set()
                        await never
                    blocks.append(nest(depth - 1))
                    await blocks[-1]

                blocks.append(nest(1_000))
                await deepest.wait()
                blocks[0].cancel()
                print({block.state for block in blocks}, len(flow._scheduler.state.unfinished))

        asyncio.run(main())
    """
    assert run_script(script) == "{'CANCELED'} 0\n"


async def test_an_async_command_body_is_cancelled_when_it_runs() -> None:
    async with await WorkflowEngine.create() as flow:
        called, ended = asyncio.Event(), asyncio.Event()

        @flow.executable_task
        async def command() -> str:
            called.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ended.set()
            return "true"

        future = command()
        await called.wait()
        assert future.cancel()
        assert future.cancelled()
        await ended.wait()


class Program:
    """A program that tells when it runs, and whose end can be seen, with that of its children."""

    def __init__(self, directory: Path, name: str) -> None:
        self.pipe = directory / name
        os.mkfifo(self.pipe)

    def command(self) -> list[str]:
        # Three processes hold the pipe until they end.
        script = f'exec 3>"$0"; echo running >&3; (sleep {4 * GUARD_S}; :) & sleep {4 * GUARD_S}'
        return ["/bin/sh", "-c", script, str(self.pipe)]

    async def started(self) -> None:
        """Wait until it runs."""
        self._file = await asyncio.to_thread(self.pipe.open)
        assert await asyncio.to_thread(self._file.readline) == "running\n"

    async def gone(self) -> None:
        """Wait until none of its processes is left."""
        assert await asyncio.to_thread(self._file.read) == ""
        self._file.close()


async def test_the_process_group_dies_when_an_executable_is_cancelled(tmp_path: Path) -> None:
    program = Program(tmp_path, "pipe")
    async with await WorkflowEngine.create() as flow:
        future = flow.executable_task(program.command)()
        behind = flow.function_task(identity)(future)
        await program.started()
        assert future.state == "RUNNING"
        assert future.cancel()
        assert states(future, behind) == {"CANCELED"}
        await program.gone()
        assert await flow.executable_task(lambda: "echo fine")() == "fine\n"
        assert_nothing_kept(flow)


async def test_the_process_group_dies_when_the_surrounding_block_is_cancelled(
    tmp_path: Path,
) -> None:
    programs = [Program(tmp_path, f"pipe {number}") for number in range(3)]
    async with await WorkflowEngine.create() as flow:

        @flow.block
        async def block() -> None:
            await asyncio.gather(*(flow.executable_task(p.command)() for p in programs))

        future = block()
        for program in programs:
            await program.started()
        future.cancel()
        for program in programs:
            await program.gone()


async def test_the_process_group_dies_when_the_engine_is_shut_down(tmp_path: Path) -> None:
    program = Program(tmp_path, "pipe")
    async with await WorkflowEngine.create() as flow:
        future = flow.executable_task(program.command)()
        await program.started()
        await flow.shutdown()
    assert future.cancelled()
    await program.gone()


async def test_the_process_group_dies_when_waiting_for_it_times_out(tmp_path: Path) -> None:
    program = Program(tmp_path, "pipe")
    async with await WorkflowEngine.create() as flow:
        future = flow.executable_task(program.command)()
        await program.started()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(future, 0)
        assert future.cancelled()
        await program.gone()


# --- what depends on it -------------------------------------------------------------------------


async def test_dependents_name_the_root_when_it_is_cancelled() -> None:
    async with await WorkflowEngine.create() as flow:
        source: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        root = flow.function_task(identity)(source)
        chain: list[Component[Any]] = [root]
        for kind in ("function_task", "block", "executable_task") * 5:
            chain.append(getattr(flow, kind)(async_identity)([chain[-1]]))
        chain.append(flow.function_task(add)(chain[2], chain[3]))
        assert root.cancel()
        assert states(*chain) == {"CANCELED"}
        for future in chain[1:]:
            assert f"task.{root.id} 'identity'" in message_of(future)
        assert not source.done()
        source.set_result(1)
        await launched()
        assert_nothing_kept(flow)


async def test_dependents_name_the_root_when_another_dependency_ends_later() -> None:
    async with await WorkflowEngine.create() as flow:
        source: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        slow = flow.function_task(identity)(source)
        root = flow.function_task(identity)(source)
        behind = flow.function_task(add)(slow, root)
        last = flow.function_task(identity)(behind)
        root.cancel()
        source.set_result(1)
        await asyncio.wait([slow, behind, last])
        assert slow.result() == 1
        assert states(behind, last) == {"CANCELED"}
        for future in (behind, last):
            assert f"task.{root.id} 'identity'" in message_of(future)


async def test_a_dependent_names_the_root_when_called_after_the_cancellation() -> None:
    async with await WorkflowEngine.create() as flow:
        root = flow.function_task(identity)(1)
        root.cancel()
        for kind in KINDS:
            behind = getattr(flow, kind)(async_identity)(root)
            await asyncio.wait([behind])
            assert f"task.{root.id} 'identity'" in message_of(behind)
        assert_nothing_kept(flow)


@pytest.mark.parametrize("finished", [False, True], ids=["pending", "finished"])
async def test_dependents_are_cancelled_when_a_plain_future_is(finished: bool) -> None:
    async with await WorkflowEngine.create() as flow:
        source: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if finished:
            source.cancel()
        future = flow.function_task(identity)([source])
        behind = flow.block(async_identity)(future)
        source.cancel()
        await asyncio.wait([future, behind])
        assert states(future, behind) == {"CANCELED"}
        assert "Future" in message_of(future)
        assert_nothing_kept(flow)


async def failed_one(flow: WorkflowEngine, kind: str) -> Any:
    """Return a dependency that fails, or has failed: ``kind`` says which and when."""
    if "plain" in kind:
        source: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if "finished" in kind:
            source.set_exception(LookupError("mine"))
        else:
            asyncio.get_running_loop().call_soon(source.set_exception, LookupError("mine"))
        return source
    future = flow.function_task(int)("x")
    if "finished" in kind:
        await asyncio.wait([future])
    return future


async def cancelled_one(flow: WorkflowEngine, kind: str) -> Any:
    """Return a dependency that is cancelled, now or soon: ``kind`` says which and when."""
    never: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future = never if "plain" in kind else flow.function_task(asyncio.sleep)(GUARD_S)
    if "finished" in kind:
        future.cancel()
    else:
        asyncio.get_running_loop().call_soon(future.cancel)
    return future


MOMENTS = ["pending task", "finished task", "pending plain future", "finished plain future"]


@pytest.mark.parametrize("failed", MOMENTS)
@pytest.mark.parametrize("cancelled", MOMENTS)
async def test_a_cancellation_outweighs_a_failure_when_both_are_dependencies(
    failed: str, cancelled: str
) -> None:
    async with await WorkflowEngine.create() as flow:
        one, other = await failed_one(flow, failed), await cancelled_one(flow, cancelled)
        futures = [flow.function_task(add)(one, other), flow.function_task(add)(other, one)]
        behind = [flow.function_task(identity)(future) for future in futures]
        await asyncio.wait([one, other, *futures, *behind])
        assert one.exception() is not None
        assert states(*futures, *behind) == {"CANCELED"}
        assert_nothing_kept(flow)


async def test_siblings_go_on_when_one_dependent_is_cancelled() -> None:
    async with await WorkflowEngine.create() as flow:
        source: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        siblings = [flow.function_task(identity)(source) for _ in range(10)]
        for future in siblings[::2]:
            future.cancel()
        source.set_result(1)
        await asyncio.wait(siblings)
        assert [future.cancelled() for future in siblings] == [True, False] * 5


async def test_all_are_cancelled_when_a_long_chain_loses_its_root() -> None:
    async with await WorkflowEngine.create() as flow:
        chain = [flow.function_task(identity)(1)]
        for _ in range(3_000):
            chain.append(flow.function_task(identity)(chain[-1]))
        chain[0].cancel()
        assert states(*chain) == {"CANCELED"}
        await launched()
        assert_nothing_kept(flow)


# --- from asyncio -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_only_the_awaited_is_cancelled_when_waiting_for_it_times_out(kind: str) -> None:
    async with await WorkflowEngine.create() as flow:
        source: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        before = flow.function_task(identity)(source)
        future = getattr(flow, kind)(async_identity)(before)
        behind = flow.function_task(identity)(future)
        sibling = flow.function_task(identity)(before)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(future, 0)
        assert states(future, behind) == {"CANCELED"}
        source.set_result(1)
        assert (await before, await sibling) == (1, 1)


async def test_the_component_is_cancelled_when_the_task_awaiting_it_is() -> None:
    async with await WorkflowEngine.create() as flow:
        future = flow.function_task(identity)(asyncio.get_running_loop().create_future())

        async def wait_for_it() -> Any:
            return await future

        waiting = asyncio.ensure_future(wait_for_it())
        await launched()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert future.cancelled()


async def test_all_components_are_cancelled_when_their_gather_is() -> None:
    async with await WorkflowEngine.create() as flow:
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        futures = [flow.function_task(identity)(never) for _ in range(5)]
        gathered = asyncio.gather(*futures)
        gathered.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gathered
        assert states(*futures) == {"CANCELED"}
        assert not never.done()


async def test_messages_name_the_engine_when_it_is_shut_down() -> None:
    async with await WorkflowEngine.create(uid="the engine") as flow:
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        futures = [flow.function_task(identity)(never), flow.block(async_identity)(never)]
        await flow.shutdown()
    assert states(*futures) == {"CANCELED"}
    assert all("'the engine'" in message_of(future) for future in futures)


# --- a storm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
async def test_every_component_ends_once_when_cancellations_come_at_random(seed: int) -> None:
    chance = random.Random(seed)
    ends: dict[str, int] = {}

    def count(future: Component[Any]) -> None:
        ends[future.id] = ends.get(future.id, 0) + 1

    async with await WorkflowEngine.create() as flow:
        calls: list[Any] = [
            flow.function_task(lambda *_: None),
            flow.function_task(Body()),
            flow.block(Body()),
        ]
        futures: list[Component[Any]] = []
        for _ in range(1_000):
            recent = chance.sample(futures[-30:], min(len(futures), chance.randrange(3)))
            futures.append(chance.choice(calls)(*recent))
            futures[-1].add_done_callback(count)
            if chance.random() < 0.05:
                chance.choice(futures[-50:]).cancel()
            if chance.random() < 0.2:
                await launched()
        await asyncio.wait(futures)
        await launched()
        assert ends == {future.id: 1 for future in futures}
        assert states(*futures) == {"DONE", "CANCELED"}
        assert_nothing_kept(flow)
