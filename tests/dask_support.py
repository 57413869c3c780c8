"""What the tests of the Dask backend share."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from dask.distributed import LocalCluster
from engine_support import assert_nothing_kept

from dftracer.asyncflow import DaskExecutionBackend, WorkflowEngine


@asynccontextmanager
async def engine(target: Any, *others: Any, **options: Any) -> AsyncIterator[WorkflowEngine]:
    """Give an engine on a Dask backend; see that nothing is left of it."""
    backend = DaskExecutionBackend(target)
    async with await WorkflowEngine.create([backend, *others], **options) as flow:
        yield flow
    assert_nothing_kept(flow)
    assert not backend._sent
    assert not backend._sender.unsent
    assert backend.state() == "IDLE"


def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` under another name, by which messages and keys call it."""

    def call(first: Any = None, data: Any = None) -> Any:
        return function(*(value for value in (first, data) if value is not None))

    call.__name__ = name
    return call


def keys_of(cluster: LocalCluster) -> Callable[[], list[str]]:
    """Return what tells which tasks the scheduler of a cluster knows."""
    return lambda: list(map(str, list(cluster.scheduler.tasks)))
