"""dftracer.asyncflow on its default backend, and dftracer.utils.Runtime."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from typing import Any

from sides import Case, Stopwatch, bodies, check_counted, engine, without_loop

asyncflow: Any = import_module("dftracer.asyncflow")
utils: Any = import_module("dftracer.utils")


@asynccontextmanager
async def opened_engine() -> AsyncIterator[Any]:
    async with await asyncflow.WorkflowEngine.create() as flow:
        yield flow


@contextmanager
def opened_runtime() -> Iterator[Any]:
    runtime = utils.Runtime(threads=2, io_threads=0, python_threads=2)
    try:
        yield runtime
    finally:
        runtime.shutdown()


def submit_all(runtime: Any, n: int, watch: Stopwatch) -> None:
    with watch:
        handles = [runtime.submit(bodies.same, i) for i in range(n)]
        runtime.wait_all()
    check_counted([handle.get() for handle in handles], n)


def submit_get(runtime: Any, n: int, watch: Stopwatch) -> None:
    with watch:
        values = [runtime.submit(bodies.same, i).get() for i in range(n)]
    check_counted(values, n)


CASES: dict[str, Case] = {
    **engine.cases(opened_engine),
    "submit-all": without_loop(opened_runtime, submit_all),
    "submit-get": without_loop(opened_runtime, submit_get),
}
