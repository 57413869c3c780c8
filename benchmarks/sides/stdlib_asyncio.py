"""The same work written with asyncio alone: tasks on one event loop, no engine."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

from sides import (
    Case,
    Stopwatch,
    bodies,
    check_all_equal,
    check_counted,
    check_equal,
    depth_of,
    in_loop,
    layered,
)


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


async def bags(_: None, n: int, watch: Stopwatch) -> None:
    with watch:
        for start in range(0, n, 1_000):
            numbers = range(start, min(start + 1_000, n))
            tasks = [asyncio.create_task(bodies.same_async(i)) for i in numbers]
            last = await asyncio.gather(*tasks)
    check_equal(last[-1], n - 1)


async def layers(_: None, n: int, watch: Stopwatch) -> None:
    async def stage(*before: Any) -> int:
        values = await asyncio.gather(*before) if isinstance(before[0], asyncio.Task) else before
        return await bodies.add_first_async(*values)

    with watch:
        values = await asyncio.gather(
            *layered(lambda *before: asyncio.create_task(stage(*before)), n)
        )
    check_all_equal(values, depth_of(n))


async def output_of(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    output, _errors = await process.communicate()
    return output.decode()


async def executables(_: None, n: int, watch: Stopwatch) -> None:
    with watch:
        outputs = await asyncio.gather(*[output_of("/bin/echo", str(i)) for i in range(n)])
    check_counted([int(output) for output in outputs], n)


async def sleep_programs(_: None, n: int, watch: Stopwatch) -> None:
    with watch:
        outputs = await asyncio.gather(*[output_of("sleep", "1") for _ in range(n)])
    check_equal(len(outputs), n)


async def sleeps(_: None, n: int, watch: Stopwatch) -> None:
    with watch:
        values = await asyncio.gather(*[bodies.nap(i) for i in range(n)])
    check_counted(values, n)


CASES: dict[str, Case] = {
    "bag": in_loop(nothing_to_open, bag),
    "chain": in_loop(nothing_to_open, chain),
    "awaits": in_loop(nothing_to_open, awaits),
    "bags": in_loop(nothing_to_open, bags),
    "layers": in_loop(nothing_to_open, layers),
    "sleep-programs": in_loop(nothing_to_open, sleep_programs),
    "executables": in_loop(nothing_to_open, executables),
    "sleeps": in_loop(nothing_to_open, sleeps),
}
