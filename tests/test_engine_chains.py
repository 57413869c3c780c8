"""Chains: the outcome that makes the next link ready is often taken without a turn of the loop."""

import asyncio
import random
from collections import Counter

import pytest

from dftracer.asyncflow import Component, WorkflowEngine
from dftracer.asyncflow.backends.host import LOOKS_PER_TURN

LINKS = 1_000


async def test_other_tasks_get_their_turns_when_a_chain_is_long() -> None:
    async with await WorkflowEngine.create() as flow:
        plus_one = flow.function_task(lambda n: n + 1)
        last = plus_one(0)
        for _ in range(LINKS - 1):
            last = plus_one(last)
        turns = 0
        while not last.done():
            turns += 1
            await asyncio.sleep(0)
        assert await last == LINKS
    assert turns >= LINKS // LOOKS_PER_TURN - 1


async def test_who_awaits_a_link_is_told_before_the_links_after_the_next_have_ended() -> None:
    async with await WorkflowEngine.create() as flow:
        plus_one = flow.function_task(lambda n: n + 1)
        links = [plus_one(0)]
        for _ in range(LINKS):
            links.append(plus_one(links[-1]))
        for number in range(100, LINKS - 2, 100):
            assert await links[number] == number + 1
            assert not links[number + 2].done()


@pytest.mark.parametrize("seed", range(4))
async def test_each_link_runs_once_when_chains_run_side_by_side_and_some_are_cancelled(
    seed: int,
) -> None:
    fate, runs = random.Random(seed), Counter[tuple[int, int]]()
    async with await WorkflowEngine.create() as flow:

        @flow.function_task
        def link(chain: int, number: int, before: int) -> int:
            runs[chain, number] += 1
            return before + 1

        chains: list[list[Component[int]]] = []
        for chain in range(20):
            links = [link(chain, 0, 0)]
            for number in range(1, 60):
                links.append(link(chain, number, links[-1]))
            chains.append(links)
        doomed = {chain: fate.randrange(60) for chain in fate.sample(range(20), 5)}
        for chain, number in doomed.items():
            await chains[fate.randrange(20)][fate.randrange(10)]
            chains[chain][number].cancel()
        ends = await asyncio.gather(*[c[-1] for c in chains], return_exceptions=True)
    for chain, (links, end) in enumerate(zip(chains, ends, strict=True)):
        states = [one.state for one in links]
        done = states.count("DONE")
        assert states == ["DONE"] * done + ["CANCELED"] * (60 - done)
        assert done == 60 or (chain in doomed and isinstance(end, asyncio.CancelledError))
        assert [runs[chain, number] for number in range(done)] == [1] * done
        assert all(runs[chain, number] <= 1 for number in range(60))
