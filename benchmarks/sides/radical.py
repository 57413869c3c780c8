"""radical.asyncflow with LocalExecutionBackend on two threads. It takes async bodies only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from sides import engine

asyncflow: Any = import_module("radical.asyncflow")


@asynccontextmanager
async def opened_engine() -> AsyncIterator[Any]:
    backend = await asyncflow.LocalExecutionBackend(ThreadPoolExecutor(2))
    flow = await asyncflow.WorkflowEngine.create(backend=backend)
    try:
        yield flow
    finally:
        await flow.shutdown()


CASES = engine.cases(opened_engine, without=("plain-bag",))
