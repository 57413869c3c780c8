"""dftracer-utils' Runtime, which runs Python callables on a ThreadPoolExecutor of its own.

It has no map: its users submit each item and get the results in order. A task that waits for
another on its only worker waits for ever: no nested case.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from sides import Case, Stopwatch, bodies, check_counted, pools, without_loop

utils: Any = import_module("dftracer.utils.runtime")


@contextmanager
def opened_runtime(threads: int) -> Iterator[Any]:
    with utils.Runtime(threads=2, io_threads=2, python_threads=threads) as runtime:
        yield runtime


def wait_for_all(runtime: Any, _handles: list[Any]) -> None:
    runtime.wait_all()


def map_by_hand(runtime: Any, n: int, watch: Stopwatch) -> None:
    with watch:
        values = [handle.get() for handle in [runtime.submit(bodies.same, i) for i in range(n)]]
    check_counted(values, n)


CASES: dict[str, Case] = {
    **pools.cases(
        opened_runtime, lambda handle: handle.get(), wait_for_all, without=("map", "nested")
    ),
    "map": without_loop(lambda: opened_runtime(2), map_by_hand),
}
