"""dftracer-utils' Runtime, which runs Python callables on a ThreadPoolExecutor of its own.

It has no map. A task that waits for another on its only worker waits for ever: no nested case.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from sides import pools

utils: Any = import_module("dftracer.utils.runtime")


@contextmanager
def opened_runtime(threads: int) -> Iterator[Any]:
    with utils.Runtime(threads=2, io_threads=2, python_threads=threads) as runtime:
        yield runtime


def wait_for_all(runtime: Any, _handles: list[Any]) -> None:
    runtime.wait_all()


CASES = pools.cases(
    opened_runtime, lambda handle: handle.get(), wait_for_all, without=("map", "nested")
)
