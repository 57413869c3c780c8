"""One module for each side. A side module has CASES, a dict from case name to `Case`.

A case body is called on one subject (an engine, an executor, ...): first with a small n, to warm
up, then with the size of the row, several times if that is short; the time is the median of these.
It puts the work under `with watch:` and checks the answers after it, so that a wrong answer ends in
a failure and not in a time.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, TypeVar

Subject = TypeVar("Subject")


class WrongAnswerError(Exception):
    """A case came to an end with the wrong result."""


class Stopwatch:
    """Times the body of a `with` block: elapsed seconds and CPU seconds, children included."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self.bytes: float | None = None
        """What a case about memory has measured, set by its body."""
        self.cpu_seconds = 0.0
        self._started = 0.0
        self._cpu_started = 0.0

    def __enter__(self) -> None:
        self._cpu_started = _cpu_seconds()
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._started
        self.cpu_seconds = _cpu_seconds() - self._cpu_started


Case = Callable[[int, int], Stopwatch]
"""Runs a case: takes the size of the warm-up and the size to time, returns the stopwatch."""

ROUNDS = 25
ROUNDS_S = 0.5
"""What is short is measured so often, or for so long: one sample is the median. A machine that does
something else for a moment would otherwise be seen in it."""


def _needs_another(rounds: list[Stopwatch]) -> bool:
    """Tell whether a sample needs another round. One of memory does not: it keeps what it got."""
    return not rounds or (
        rounds[-1].seconds is not None
        and rounds[-1].bytes is None
        and len(rounds) < ROUNDS
        and sum(watch.seconds or 0 for watch in rounds) < ROUNDS_S
    )


def _middle(rounds: list[Stopwatch]) -> Stopwatch:
    return sorted(rounds, key=lambda watch: watch.seconds or 0)[len(rounds) // 2]


def in_loop(
    opened: Callable[[], AbstractAsyncContextManager[Subject]],
    body: Callable[[Subject, int, Stopwatch], Awaitable[None]],
) -> Case:
    """A case whose body is a coroutine function. Opening and closing are not timed."""

    async def measure(warm_up: int, n: int) -> Stopwatch:
        rounds: list[Stopwatch] = []
        async with opened() as subject:
            await body(subject, warm_up, Stopwatch())
            while _needs_another(rounds):
                gc.collect()
                rounds.append(Stopwatch())
                await body(subject, n, rounds[-1])
        return _middle(rounds)

    def case(warm_up: int, n: int) -> Stopwatch:
        return asyncio.run(measure(warm_up, n))

    return case


def without_loop(
    opened: Callable[[], AbstractContextManager[Subject]],
    body: Callable[[Subject, int, Stopwatch], None],
) -> Case:
    """A case whose body is a plain function. Opening and closing are not timed."""

    def case(warm_up: int, n: int) -> Stopwatch:
        rounds: list[Stopwatch] = []
        with opened() as subject:
            body(subject, warm_up, Stopwatch())
            while _needs_another(rounds):
                gc.collect()
                rounds.append(Stopwatch())
                body(subject, n, rounds[-1])
        return _middle(rounds)

    return case


def check_counted(values: list[int], n: int) -> None:
    """The values must be 0, 1, ... n - 1 in this order."""
    if values != list(range(n)):
        raise WrongAnswerError(f"{len(values)} values, not the numbers below {n} in order")


def check_equal(value: int, expected: int) -> None:
    if value != expected:
        raise WrongAnswerError(f"{value!r} instead of {expected!r}")


def check_all_equal(values: list[int], expected: int) -> None:
    if not values or any(value != expected for value in values):
        raise WrongAnswerError(f"{len(values)} values, not all of them {expected}")


LAYER = 100


def depth_of(n: int) -> int:
    """The number of layers that so many tasks make, 100 in each."""
    return max(1, n // LAYER)


def layered(node: Callable[..., Any], n: int) -> list[Any]:
    """Call `node` for the tasks of all layers with three of the layer before; return the last."""
    width = min(n, LAYER)
    layer = [node(0, 0, 0) for _ in range(width)]
    for _ in range(depth_of(n) - 1):
        layer = [
            node(layer[i], layer[(i + 1) % width], layer[(i + 7) % width]) for i in range(width)
        ]
    return layer


def usable_cores() -> int:
    """The cores this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resident_bytes() -> int:
    """The memory of this process that no other has, as it is now. Linux only."""
    with open("/proc/self/smaps_rollup") as rollup:
        private = [line.split()[1] for line in rollup if line.startswith("Private_")]
    return 1024 * sum(map(int, private))


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
