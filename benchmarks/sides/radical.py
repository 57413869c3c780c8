"""radical.asyncflow with LocalExecutionBackend on two threads. It takes async bodies only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from sides import Case, engine, in_loop

asyncflow: Any = import_module("radical.asyncflow")


@asynccontextmanager
async def opened_engine() -> AsyncIterator[Any]:
    backend = await asyncflow.LocalExecutionBackend(ThreadPoolExecutor(2))
    flow = await asyncflow.WorkflowEngine.create(backend=backend)
    try:
        yield flow
    finally:
        await flow.shutdown()


@asynccontextmanager
async def opened_noop_engine() -> AsyncIterator[Any]:
    backend = asyncflow.NoopExecutionBackend()
    flow = await asyncflow.WorkflowEngine.create(backend=backend)
    try:
        yield flow
    finally:
        await flow.shutdown()


# A task that it has ended stays with it, and a large graph takes it hours.
_WITHOUT = ("plain-bag", "kept", "layers-pending", "sleep-programs")

CASES: dict[str, Case] = {
    **engine.cases(opened_engine, without=_WITHOUT),
    "noop-bag": in_loop(opened_noop_engine, engine.noop_bag),
}
