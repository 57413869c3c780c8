"""The same work on concurrent.futures.ThreadPoolExecutor with two threads."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager, contextmanager

from sides import (
    Case,
    Stopwatch,
    bodies,
    check_counted,
    check_equal,
    in_loop,
    pools,
    without_loop,
)


@contextmanager
def opened_pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@asynccontextmanager
async def opened_pool_in_loop() -> AsyncIterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def bag(pool: ThreadPoolExecutor, n: int, watch: Stopwatch) -> None:
    with watch:
        futures = [pool.submit(bodies.same, i) for i in range(n)]
        values = [future.result() for future in futures]
    check_counted(values, n)


def chain(pool: ThreadPoolExecutor, n: int, watch: Stopwatch) -> None:
    # The pool starts its items in order, so the stage waited for has always been started.
    def stage(before: Future[int]) -> int:
        return bodies.add_one(before.result())

    with watch:
        last = pool.submit(bodies.add_one, 0)
        for _ in range(n - 1):
            last = pool.submit(stage, last)
        value = last.result()
    check_equal(value, n)


async def awaits(pool: ThreadPoolExecutor, n: int, watch: Stopwatch) -> None:
    loop = asyncio.get_running_loop()
    values = []
    with watch:
        for i in range(n):
            values.append(await loop.run_in_executor(pool, bodies.same, i))
    check_counted(values, n)


def executables(pool: ThreadPoolExecutor, n: int, watch: Stopwatch) -> None:
    def echo(i: int) -> str:
        command = ["/bin/echo", str(i)]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout

    with watch:
        futures = [pool.submit(echo, i) for i in range(n)]
        outputs = [future.result() for future in futures]
    check_counted([int(output) for output in outputs], n)


@contextmanager
def opened_pool_of(threads: int) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(threads) as pool:
        yield pool


def wait_for_all(_pool: ThreadPoolExecutor, futures: list[Future[int]]) -> None:
    wait(futures)


CASES: dict[str, Case] = {
    "bag": without_loop(opened_pool, bag),
    "plain-bag": without_loop(opened_pool, bag),
    "chain": without_loop(opened_pool, chain),
    "awaits": in_loop(opened_pool_in_loop, awaits),
    "executables": without_loop(opened_pool, executables),
    # On its only thread a task would wait for ever for another one.
    **pools.cases(
        opened_pool_of, lambda future: future.result(), wait_for_all, without=("nested",)
    ),
}
