"""Futures that are made, gathered and ended, and nothing else: what no engine on asyncio can avoid.

An engine gives a future for each call and ends it later; who calls many gathers them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sides import Case, Stopwatch, check_counted, check_equal, in_loop
from sides.stdlib_asyncio import nothing_to_open


async def _gather(numbers: Sequence[int]) -> list[int]:
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[int]] = [loop.create_future() for _ in numbers]
    all_of_them = asyncio.gather(*futures)
    for number, future in zip(numbers, futures, strict=True):
        future.set_result(number)
    return await all_of_them


async def bag(_: None, n: int, watch: Stopwatch) -> None:
    with watch:
        values = await _gather(range(n))
    check_counted(values, n)


async def bags(_: None, n: int, watch: Stopwatch) -> None:
    with watch:
        for start in range(0, n, 1_000):
            last = await _gather(range(start, min(start + 1_000, n)))
    check_equal(last[-1], n - 1)


CASES: dict[str, Case] = {
    "bag": in_loop(nothing_to_open, bag),
    "bags": in_loop(nothing_to_open, bags),
    "noop-bag": in_loop(nothing_to_open, bag),
}
