"""Cases for any workflow engine with `function_task` and `executable_task` decorators.

The same bodies run on ours and on peers with this interface, so what differs is the engine.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
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
    resident_bytes,
)


async def bag(flow: Any, n: int, watch: Stopwatch) -> None:
    noop = flow.function_task(bodies.same_async)
    with watch:
        values = await asyncio.gather(*[noop(i) for i in range(n)])
    check_counted(values, n)


async def bags(flow: Any, n: int, watch: Stopwatch) -> None:
    noop = flow.function_task(bodies.same_async)
    with watch:
        for start in range(0, n, 1_000):
            last = await asyncio.gather(*[noop(i) for i in range(start, min(start + 1_000, n))])
    check_equal(last[-1], n - 1)


async def kept(flow: Any, n: int, watch: Stopwatch) -> None:
    gc.collect()
    before = resident_bytes()
    await bags(flow, n, watch)
    gc.collect()
    watch.bytes = resident_bytes() - before


async def layers(flow: Any, n: int, watch: Stopwatch) -> None:
    node = flow.function_task(bodies.add_first_async)
    with watch:
        values = await asyncio.gather(*layered(node, n))
    check_all_equal(values, depth_of(n))


async def layers_pending(flow: Any, n: int, watch: Stopwatch) -> None:
    node = flow.function_task(bodies.add_first_async)
    before = resident_bytes()
    last = layered(node, n)
    watch.bytes = resident_bytes() - before
    check_all_equal(await asyncio.gather(*last), depth_of(n))


async def noop_bag(flow: Any, n: int, watch: Stopwatch) -> None:
    noop = flow.function_task(bodies.same_async)
    with watch:
        values = await asyncio.gather(*[noop(i) for i in range(n)])
    check_equal(len(values), n)


async def plain_bag(flow: Any, n: int, watch: Stopwatch) -> None:
    noop = flow.function_task(bodies.same)
    with watch:
        values = await asyncio.gather(*[noop(i) for i in range(n)])
    check_counted(values, n)


async def chain(flow: Any, n: int, watch: Stopwatch) -> None:
    stage = flow.function_task(bodies.add_one_async)
    with watch:
        last = stage(0)
        for _ in range(n - 1):
            last = stage(last)
        value = await last
    check_equal(value, n)


async def awaits(flow: Any, n: int, watch: Stopwatch) -> None:
    noop = flow.function_task(bodies.same_async)
    values = []
    with watch:
        for i in range(n):
            values.append(await noop(i))
    check_counted(values, n)


async def executables(flow: Any, n: int, watch: Stopwatch) -> None:
    echo = flow.executable_task(bodies.echo_command)
    with watch:
        outputs = await asyncio.gather(*[echo(i) for i in range(n)])
    check_counted([int(output) for output in outputs], n)


async def sleep_programs(flow: Any, n: int, watch: Stopwatch) -> None:
    sleep = flow.executable_task(bodies.sleep_command)
    with watch:
        outputs = await asyncio.gather(*[sleep(i) for i in range(n)])
    check_equal(len(outputs), n)


async def sleeps(flow: Any, n: int, watch: Stopwatch) -> None:
    nap = flow.function_task(bodies.nap)
    with watch:
        values = await asyncio.gather(*[nap(i) for i in range(n)])
    check_counted(values, n)


_BODIES: dict[str, Callable[[Any, int, Stopwatch], Awaitable[None]]] = {
    "bag": bag,
    "bags": bags,
    "kept": kept,
    "layers": layers,
    "layers-pending": layers_pending,
    "plain-bag": plain_bag,
    "chain": chain,
    "awaits": awaits,
    "executables": executables,
    "sleep-programs": sleep_programs,
    "sleeps": sleeps,
}


def cases(
    opened: Callable[[], AbstractAsyncContextManager[Any]], without: tuple[str, ...] = ()
) -> dict[str, Case]:
    """All cases of this module on the engine that `opened` gives, but those named `without`."""
    return {name: in_loop(opened, body) for name, body in _BODIES.items() if name not in without}
