"""In which order an engine's tasks begin: in that of the calls, and what has waited goes ahead."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from engine_support import GUARD_S, Gate, launched, reached
from mailbox_support import Call

from dftracer.asyncflow import NoopExecutionBackend, RuntimeExecutionBackend, WorkflowEngine
from dftracer.utils import Runtime
from dftracer.utils.primitives import Mailbox

CHAINS = 30


@asynccontextmanager
async def engine() -> AsyncIterator[tuple[WorkflowEngine, Runtime]]:
    """An engine whose functions run in one thread, and the runtime that has that."""
    with Runtime(python_threads=1) as runtime:
        async with await WorkflowEngine.create(await RuntimeExecutionBackend(runtime)) as flow:
            yield flow, runtime


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GUARD_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# --- what has waited ------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3, 6])
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_what_a_task_has_made_ready_runs_before_what_was_called_earlier(
    depth: int, is_async: bool
) -> None:
    """Each body but the last ends when all that was ready before it was handed over."""
    async with engine() as (flow, runtime):
        begun: list[tuple[int, int]] = []

        def body(chain: int, stage: int) -> int:
            followed = sum(stage + 1 < depth for _, stage in begun)
            wait_until(lambda: runtime.get_progress()["total"] == CHAINS + followed)
            begun.append((chain, stage))
            return chain

        async def async_body(chain: int, stage: int) -> int:
            return body(chain, stage)

        step = flow.function_task(async_body if is_async else body)
        chains: list[Any] = [step(chain, 0) for chain in range(CHAINS)]
        for stage in range(1, depth):
            chains = [step(chain, stage) for chain in chains]
        assert await asyncio.gather(*chains) == list(range(CHAINS))
        assert len(begun) == CHAINS * depth
        unfinished, most = 0, 0
        for _, stage in begun:
            unfinished += (stage == 0) - (stage == depth - 1)
            most = max(most, unfinished)
        assert most <= 3
        assert [chain for chain, stage in begun if stage == 0] == list(range(CHAINS))


async def test_those_that_become_ready_together_begin_in_the_order_of_their_calls() -> None:
    async with engine() as (flow, _):
        begun: list[Any] = []

        def note(value: Any, _: Any = None) -> str:
            begun.append(value)
            return "true"

        function, program = flow.function_task(note), flow.executable_task(note)
        with Gate() as gate:
            tasks: list[Any] = [flow.function_task(gate.hold)()]
            tasks += [function(f"called {n}") for n in range(3)]
            first = asyncio.get_running_loop().create_future()
            tasks += [function(0, first), function(1, first)]
            said = program("said", first)
            tasks += [function(2, first), function(3, first)]
            await launched()
            first.set_result(None)
            await said  # so all of them were handed over
            gate.set()
            await asyncio.gather(*tasks)
        assert begun == ["said", 0, 1, 2, 3, "called 0", "called 1", "called 2"]


async def test_what_is_ready_in_a_later_turn_goes_ahead_of_what_was_ready_earlier() -> None:
    async with engine() as (flow, _):
        begun: list[str] = []
        loop = asyncio.get_running_loop()
        with Gate() as gate:
            started = Gate()

            def hold() -> None:
                started.set()
                gate.hold()

            note = flow.function_task(lambda value, *_: begun.append(value))
            held = flow.function_task(hold)()
            await reached(started)
            futures = [loop.create_future() for _ in range(3)]
            tasks = [note("called")]
            tasks += [note(f"{n}{x}", future) for n, future in enumerate(futures) for x in "ab"]
            for future in futures:
                future.set_result(None)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            tasks.append(note("called later", futures[0]))  # it has nothing to wait for
            await asyncio.sleep(0)
            gate.set()
            await asyncio.gather(held, *tasks)
        assert begun == ["2a", "2b", "1a", "1b", "0a", "0b", "called", "called later"]


@pytest.mark.parametrize("count", [500, 5_000])
async def test_few_inputs_are_there_at_one_time_though_bodies_end_at_once(count: int) -> None:
    """Where bodies are so short, all would have run before the engine hears of the first end."""
    there, most = 0, 0
    async with await WorkflowEngine.create() as flow:
        lock = threading.Lock()

        def load(value: int) -> int:
            nonlocal there, most
            with lock:
                there += 1
                most = max(most, there)
            return value

        def use(value: int) -> int:
            nonlocal there
            with lock:
                there -= 1
            return value

        load_task, use_task = flow.function_task(load), flow.function_task(use)
        calls = [use_task(load_task(n)) for n in range(count)]
        assert await asyncio.gather(*calls) == list(range(count))
    assert there == 0
    assert most < count


async def test_what_is_handed_over_in_slices_can_be_cancelled_before() -> None:
    async with engine() as (flow, _):
        with Gate() as gate:
            step = flow.function_task(gate.hold)
            firsts = [step(n) for n in range(1_000)]
            seconds = [step(first) for first in firsts]
            await launched()
            for first in firsts[1:]:
                first.cancel()
            gate.set()
            assert await seconds[0] == 0
            ends = await asyncio.gather(*seconds, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends[1:])


async def test_nothing_waits_for_reports_of_tasks_that_take_long() -> None:
    """More of them run at a time than are handed over at once."""
    count = 100
    with Runtime(python_threads=count) as runtime:
        async with await WorkflowEngine.create(await RuntimeExecutionBackend(runtime)) as flow:
            meeting = threading.Barrier(count)
            meet = flow.function_task(lambda n: (meeting.wait(GUARD_S), n)[1])
            use = flow.function_task(abs)
            assert await asyncio.gather(*[use(meet(n)) for n in range(count)]) == list(range(count))


# --- one turn -------------------------------------------------------------------------------------


class State:
    """What bodies read and write."""

    def __init__(self) -> None:
        self.value = 0


async def test_all_kinds_begin_in_the_order_of_their_calls() -> None:
    runtime = Runtime(python_threads=1)
    backends = [await RuntimeExecutionBackend(runtime), NoopExecutionBackend("noop")]
    async with await WorkflowEngine.create(backends) as flow:
        seen: list[tuple[str, int]] = []

        def see(kind: str, state: State) -> str:
            seen.append((kind, state.value))
            return "true"

        async def see_later(kind: str, state: State) -> str:
            return see(kind, state)

        async def bump_there(state: State) -> None:
            state.value += 1

        kinds = {
            "program": flow.executable_task(see),
            "async program": flow.executable_task(see_later),
            "prompt": flow.prompt_task(backend="noop")(see),
            "async prompt": flow.prompt_task(backend="noop")(see_later),
            "block": flow.block(see_later),
            "function": flow.function_task(see),
        }
        state = State()
        shows = [show(kind, state) for kind, show in kinds.items() for _ in range(3)]
        bumps = [flow.function_task(bump)(state) for bump in (bump_there,) for _ in range(3)]
        bumps.append(flow.function_task(lambda: setattr(state, "value", state.value + 1))())
        await asyncio.gather(*shows[:-3], *bumps)
        await asyncio.gather(*shows)
    runtime.shutdown()
    in_loop = [(kind, value) for kind, value in seen if kind != "function"]
    assert in_loop == [(kind, 0) for kind in kinds if kind != "function" for _ in range(3)]


async def test_functions_of_one_turn_begin_in_the_order_of_their_calls_around_bodies() -> None:
    async with engine() as (flow, _):
        begun: list[int] = []

        def note(number: int) -> str:
            begun.append(number)
            return "true"

        function, program = flow.function_task(note), flow.executable_task(note)
        calls: list[Any] = [(function if n % 3 else program)(n) for n in range(30)]
        await asyncio.gather(*calls)
        assert [n for n in begun if n % 3] == [n for n in range(30) if n % 3]
        assert [n for n in begun if n % 3 == 0] == list(range(0, 30, 3))


# --- the runtime ----------------------------------------------------------------------------------


async def test_a_batch_goes_ahead_of_what_waits_and_behind_its_own_number() -> None:
    begun: list[str] = []
    with Runtime(python_threads=1) as runtime, Gate() as gate:
        started = Gate()
        mailbox = Mailbox()

        def hold() -> None:
            started.set()
            gate.hold()

        def submit(*names: str, ahead: int = 0) -> None:
            calls = [Call(begun.append, name) for name in names]
            runtime.submit_to(mailbox, calls, ahead=ahead)

        runtime.submit_to(mailbox, [Call(hold)])
        await reached(started)
        submit("a", "b")
        submit("c", "d", ahead=1)
        submit("e", ahead=2)
        submit("f", "g", ahead=2)
        submit("h")
        submit(ahead=3)
        assert runtime.get_progress()["queued"] == 8
        gate.set()
        runtime.wait_all()
        runtime.submit(int).get()
        assert begun == ["e", "f", "g", "c", "d", "a", "b", "h"]


async def test_a_number_must_not_be_negative() -> None:
    with Runtime(python_threads=1) as runtime, pytest.raises(OverflowError):
        runtime.submit_to(Mailbox(), [Call(int)], ahead=-1)


async def test_what_waits_ahead_is_cancelled_as_any_other() -> None:
    begun: list[str] = []
    with Runtime(python_threads=1) as runtime, Gate() as gate:
        mailbox = Mailbox()
        handles = runtime.submit_to(mailbox, [Call(gate.hold)])
        calls = [Call(begun.append, name) for name in "abc"]
        waiting = runtime.submit_to(mailbox, calls, ahead=1)
        assert handles
        assert waiting
        assert waiting[1].cancel()
        gate.set()
        runtime.wait_all()
    assert begun == ["a", "c"]


# --- the window -----------------------------------------------------------------------------------


async def test_results_are_used_before_many_more_are_made_when_bodies_are_short() -> None:
    async with engine() as (flow, _):
        unused = most = 0

        @flow.function_task
        def load(number: int) -> int:
            nonlocal unused, most
            unused += 1
            most = max(most, unused)
            return number

        @flow.function_task
        def use(number: int) -> int:
            nonlocal unused
            unused -= 1
            return number

        used = [use(load(number)) for number in range(500)]
        assert await asyncio.gather(*used) == list(range(500))
        assert flow.backend.window < 50
        assert most <= flow.backend.window


async def test_all_that_wait_for_room_end_when_others_fail_or_are_cancelled() -> None:
    async with engine() as (flow, _):
        door = Gate()

        @flow.function_task
        def load(number: int) -> int:
            if number == 0:
                door.hold()
            if number % 3 == 0:
                raise LookupError(number)
            return number

        use = flow.function_task(lambda number: number)
        loads = [load(number) for number in range(200)]
        used = [use(each) for each in loads]
        await launched()
        for each in loads[100::5]:  # among them those that are with no backend yet
            each.cancel()
        door.set()
        ends = await asyncio.gather(*used, return_exceptions=True)
        assert [end for end in ends if isinstance(end, int)] == [
            n for n in range(200) if n % 3 and (n < 100 or n % 5)
        ]
        assert {each.state for each in used} == {"DONE", "FAILED", "CANCELED"}


async def test_what_waits_for_room_is_cancelled_when_the_engine_is_shut_down() -> None:
    door = Gate()
    async with engine() as (flow, _):
        hold, use = flow.function_task(lambda _: door.hold()), flow.function_task(str)
        held = [hold(number) for number in range(200)]
        used = [use(each) for each in held]
        await launched()
        closing = asyncio.ensure_future(flow.shutdown())
        await launched()
        door.set()
        await closing
        assert all(each.cancelled() for each in used)
