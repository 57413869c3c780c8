"""Each way that is shorter than the general one, against a model of what the general one does.

They are the plain calls of the engine, `Runtime.map`, the asyncio task that coroutine bodies share,
and the mailbox that outcomes go through. What happens is drawn from seeds.
"""

import asyncio
import concurrent.futures
import contextvars
import random
import select
import threading
from collections.abc import Callable
from typing import Any

import pytest
from engine_support import assert_nothing_kept

from dftracer.asyncflow import WorkflowEngine
from dftracer.utils import Runtime
from dftracer.utils.primitives import Mailbox

GUARD_S = 25


class BodyError(Exception):
    """What a body of these tests raises."""


def may_fail(number: int) -> int:
    if number % 7 == 3:
        raise BodyError(number)
    return number * 2


async def may_fail_async(number: int) -> int:
    return may_fail(number)


async def may_fail_later(number: int) -> int:
    await asyncio.sleep(0)
    return may_fail(number)


KINDS: list[Callable[[int], Any]] = [may_fail, may_fail_async, may_fail_later]


def end_of(number: int) -> tuple[str, int]:
    """What becomes of a body that is given ``number``."""
    return ("failed", number) if number % 7 == 3 else ("done", number * 2)


# --- plain calls of the engine -----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
async def test_each_plain_call_ends_once_when_cancels_race_with_outcomes(seed: int) -> None:
    chance, ends = random.Random(seed), dict[int, list[str]]()

    def note(number: int, future: asyncio.Future[int]) -> None:
        if future.cancelled():
            ends.setdefault(number, []).append("cancelled")
        elif (error := future.exception()) is not None:
            assert isinstance(error, BodyError)
            assert ("failed", error.args[0]) == end_of(number)
            ends.setdefault(number, []).append("failed")
        else:
            assert ("done", future.result()) == end_of(number)
            ends.setdefault(number, []).append("done")

    async with await WorkflowEngine.create() as flow:
        tasks = [flow.function_task(kind) for kind in KINDS]
        futures, to_cancel = [], set()
        for number in range(600):
            future = chance.choice(tasks)(number)
            future.add_done_callback(lambda ended, number=number: note(number, ended))
            futures.append(future)
            if chance.random() < 0.2:
                victim = chance.randrange(len(futures))
                if futures[victim].cancel():
                    to_cancel.add(victim)
            if chance.random() < 0.05:
                await asyncio.sleep(0)  # a turn, in which outcomes may come
        await asyncio.gather(*futures, return_exceptions=True)
        assert {n for n, future in enumerate(futures) if future.cancelled()} == to_cancel
        await asyncio.sleep(0)  # the callbacks of the last
        assert ends == {
            n: ["cancelled" if n in to_cancel else end_of(n)[0]] for n in range(len(futures))
        }
        assert_nothing_kept(flow)


async def test_each_plain_call_sees_its_own_context_when_many_are_made_in_turn() -> None:
    where = contextvars.ContextVar("where", default=-1)

    async with await WorkflowEngine.create() as flow:

        @flow.function_task
        def look() -> int:
            return where.get()

        @flow.function_task
        async def look_twice() -> int:
            seen = where.get()
            where.set(-2)  # in its own copy
            await asyncio.sleep(0)
            return seen if where.get() == -2 else -3

        futures = []
        for number in range(500):
            where.set(number)
            futures += [look(), look_twice()]
        seen = await asyncio.gather(*futures)
    assert seen == [number for number in range(500) for _ in range(2)]


# --- map ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_map_yields_what_the_built_in_one_yields_when_calls_may_fail(seed: int) -> None:
    chance = random.Random(seed)
    function = chance.choice(KINDS)
    items = [chance.randrange(200) for _ in range(chance.randrange(300))]
    if chance.random() < 0.5:
        items = [item for item in items if end_of(item)[0] == "done"]
    buffersize = chance.choice([None, 1, 2, 7, 64, 1_000])
    expected: list[Any] = []
    for item in items:
        expected.append(end_of(item))
        if expected[-1][0] == "failed":
            break

    with Runtime(python_threads=chance.choice([1, 2, 4])) as runtime:
        told: list[Any] = []
        results = runtime.map(function, items, buffersize=buffersize)
        try:
            told += (("done", value) for value in results)
        except BodyError as error:
            told.append(("failed", error.args[0]))
        assert told == expected
        assert list(results) == []


def test_each_map_has_its_own_results_when_many_threads_map_and_leave_early() -> None:
    def use(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(15):
            size, taken = chance.randrange(1, 200), chance.randrange(200)
            results = runtime.map(abs, range(-size, 0), buffersize=chance.choice([None, 1, 3, 50]))
            values = [value for value, _ in zip(results, range(taken), strict=False)]
            assert values == [*range(size, 0, -1)][:taken]

    with (
        Runtime(python_threads=2) as runtime,
        concurrent.futures.ThreadPoolExecutor(4) as pool,
    ):
        for future in [pool.submit(use, seed) for seed in range(4)]:
            future.result(GUARD_S)
        runtime.wait_all()
        assert runtime.submit(abs, -1).get(GUARD_S) == 1


# --- the shared task of coroutine bodies -------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_neighbours_end_as_they_would_alone_when_bodies_are_of_every_kind(seed: int) -> None:
    where = contextvars.ContextVar("where", default=-1)
    chance = random.Random(seed)

    async def body(number: int, suspensions: int, end: str) -> int:
        if where.get() != -1:
            return -1  # another body's context
        where.set(number)
        task = asyncio.current_task()
        for _ in range(suspensions):
            await asyncio.sleep(0)
        if asyncio.current_task() is not task or where.get() != number:
            return -2  # another body's task or context
        if end == "raise":
            raise BodyError(number)
        if end == "cancel" and task is not None:
            task.cancel()
            await asyncio.sleep(0)
        return number

    with Runtime(python_threads=chance.choice([1, 2])) as runtime:
        plans = [
            (chance.choice([0, 0, 0, 1, 5]), chance.choice(["return"] * 8 + ["raise", "cancel"]))
            for _ in range(400)
        ]
        handles = [runtime.submit(body, number, *plan) for number, plan in enumerate(plans)]
        for number, (handle, (_, end)) in enumerate(zip(handles, plans, strict=True)):
            if end == "return":
                assert handle.get(GUARD_S) == number
            elif end == "raise":
                with pytest.raises(BodyError) as raised:
                    handle.get(GUARD_S)
                assert raised.value.args == (number,)
            else:
                with pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
                    handle.get(GUARD_S)


# --- the mailbox -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_each_token_is_told_once_when_many_submit_and_cancel_into_one_mailbox(seed: int) -> None:
    mailbox, submitters, each = Mailbox(), 4, 300
    together = threading.Barrier(submitters)
    refused: list[int] = []

    def submit(first: int) -> None:
        chance, numbers = random.Random(seed + first), range(first * each, (first + 1) * each)
        together.wait(GUARD_S)
        for start in range(numbers.start, numbers.stop, 10):
            calls = [
                (number, chance.choice(KINDS), (number,), {}, f"n{number}", None)
                for number in range(start, start + 10)
            ]
            handles = runtime.submit_to(mailbox, calls)
            for (number, *_), handle in zip(calls, handles, strict=True):
                if chance.random() < 0.3 and not handle.cancel():
                    refused.append(number)

    with (
        Runtime(python_threads=2) as runtime,
        concurrent.futures.ThreadPoolExecutor(submitters) as pool,
    ):
        futures = [pool.submit(submit, first) for first in range(submitters)]
        told: dict[int, tuple[str, Any]] = {}
        while len(told) < submitters * each:
            assert select.select([mailbox.fileno()], [], [], GUARD_S)[0], "an outcome is lost"
            for number, state, value in mailbox.drain(17):
                assert number not in told, "an outcome came twice"
                told[number] = (state, value)
        for future in futures:
            future.result(GUARD_S)
        runtime.wait_all()
    assert mailbox.drain(1) == []
    for number, (state, value) in told.items():
        if state != "cancelled":
            outcome = value.args[0] if isinstance(value, BodyError) else value
            assert (state, outcome) == end_of(number)
    assert all(told[number][0] != "cancelled" for number in refused)
