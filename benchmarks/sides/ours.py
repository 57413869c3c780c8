"""dftracer.asyncflow on its default backend, and dftracer.utils.Runtime."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from typing import Any

from sides import Case, engine, in_loop, pools

asyncflow: Any = import_module("dftracer.asyncflow")
utils: Any = import_module("dftracer.utils")


@asynccontextmanager
async def opened_engine() -> AsyncIterator[Any]:
    async with await asyncflow.WorkflowEngine.create() as flow:
        yield flow


@asynccontextmanager
async def opened_noop_engine() -> AsyncIterator[Any]:
    backend = asyncflow.NoopExecutionBackend()
    async with await asyncflow.WorkflowEngine.create(backend=backend) as flow:
        yield flow


@contextmanager
def opened_runtime(threads: int) -> Iterator[Any]:
    with utils.Runtime(threads=2, python_threads=threads) as runtime:
        yield runtime


def wait_for_all(runtime: Any, _handles: list[Any]) -> None:
    runtime.wait_all()


POOL_CASES = pools.cases(opened_runtime, lambda handle: handle.get(), wait_for_all)

CASES: dict[str, Case] = {
    **engine.cases(opened_engine),
    "noop-bag": in_loop(opened_noop_engine, engine.noop_bag),
    **POOL_CASES,
    "submit-all-records": POOL_CASES["submit-all"],
}
