"""The same work written with asyncio alone: tasks on one event loop, no engine."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

from sides import Case, Stopwatch, bodies, check_counted, check_equal, in_loop, usable_cores


@asynccontextmanager
async def nothing_to_open() -> AsyncIterator[None]:
    yield


async def bag(_: None, n: int, watch: Stopwatch) -> None:
    with watch:
        tasks = [asyncio.create_task(bodies.same_async(i)) for i in range(n)]
        values = await asyncio.gather(*tasks)
    check_counted(values, n)


async def chain(_: None, n: int, watch: Stopwatch) -> None:
    async def stage(before: Awaitable[int]) -> int:
        return await bodies.add_one_async(await before)

    with watch:
        last: Awaitable[int] = asyncio.create_task(bodies.add_one_async(0))
        for _stage in range(n - 1):
            last = asyncio.create_task(stage(last))
        value = await last
    check_equal(value, n)


async def awaits(_: None, n: int, watch: Stopwatch) -> None:
    values = []
    with watch:
        for i in range(n):
            values.append(await asyncio.create_task(bodies.same_async(i)))
    check_counted(values, n)


async def executables(_: None, n: int, watch: Stopwatch) -> None:
    free = asyncio.Semaphore(usable_cores())

    async def echo(i: int) -> str:
        async with free:
            process = await asyncio.create_subprocess_exec(
                "/bin/echo", str(i), stdout=PIPE, stderr=PIPE
            )
            output, _errors = await process.communicate()
        return output.decode()

    with watch:
        outputs = await asyncio.gather(*[echo(i) for i in range(n)])
    check_counted([int(output) for output in outputs], n)


async def sleeps(_: None, n: int, watch: Stopwatch) -> None:
    with watch:
        values = await asyncio.gather(*[bodies.nap(i) for i in range(n)])
    check_counted(values, n)


CASES: dict[str, Case] = {
    "bag": in_loop(nothing_to_open, bag),
    "chain": in_loop(nothing_to_open, chain),
    "awaits": in_loop(nothing_to_open, awaits),
    "executables": in_loop(nothing_to_open, executables),
    "sleeps": in_loop(nothing_to_open, sleeps),
}
