"""A Dask client for a backend: made for a target or given, and the way into its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import dask.config as dask_config
from dask.utils import parse_timedelta
from distributed import Client, LocalCluster
from distributed.deploy import Cluster

from dftracer.asyncflow.backends import remote
from dftracer.asyncflow.backends.base import Submission
from dftracer.asyncflow.backends.dask.worker import TaskStopper
from dftracer.asyncflow.errors import text_of_error
from dftracer.utils import available_cpus
from dftracer.utils.dask import DFTracerUtilsDaskWorkerPlugin

_TCP_TIMEOUT_S = 20
"""How long a scheduler may be silent, if the client is ours. With Dask's own 30 s it would take
longer than these to say that it is gone."""
_CLOSE_TIMEOUT_S = 20

_log = logging.getLogger("dftracer.asyncflow")


def check_target(target: Any) -> None:
    """Raise ``TypeError`` unless there can be a client for ``target``."""
    if not isinstance(target, (str, Client, Cluster, Mapping)):
        raise TypeError(
            "DaskExecutionBackend takes a scheduler's address, a Client, a cluster or a mapping of "
            f"arguments for a LocalCluster, not {type(target).__name__}"
        )


def label_of(submission: Submission) -> str:
    """Return how messages speak of a task."""
    return f"task '{submission.name}' ({submission.uid})"


def lost_task(
    backend: str, client: Client | None, label: str, error: BaseException | None
) -> ConnectionError:
    """Return the error of a task of which Dask knows nothing any more.

    Parameters
    ----------
    backend, label:
        How messages call the backend and the task.
    client:
        Through which the task was sent, if the backend still has it.
    error:
        What has made this known, if anything.
    """
    what = "is gone"
    if client is not None and client.status == "running":
        what = "has been told to forget it: was it restarted?"
    scheduler = getattr(getattr(client, "scheduler", None), "address", "an unknown address")
    why = f" ({text_of_error(error)})" if error is not None else ""
    return ConnectionError(
        f"backend '{backend}': {label} is lost: the scheduler at {scheduler} {what}{why}"
    )


class _LocalCluster(LocalCluster):  # type: ignore[misc]
    """Workers that come back however often they die.

    Dask's own gives a worker up that is not there some time after it was lost
    (``distributed.deploy.lost-worker-timeout``), even if it was there in between, or is just being
    started again by its nanny. With the last one, tasks would wait for ever.
    """

    def _update_worker_status(self, op: str, msg: Any) -> None:
        Cluster._update_worker_status(self, op, msg)


def _make_cluster(arguments: dict[str, Any]) -> _LocalCluster:
    """Make workers that share the cores also where they call native libraries. Blocks."""
    workers, threads = arguments.get("n_workers"), arguments.get("threads_per_worker")
    share = 1  # as many threads as there are cores
    if workers and threads:
        share = max(1, available_cpus() // (workers * threads))
    key = "distributed.nanny.environ"
    said = dict(dask_config.get(key, None) or {})
    limits = {name: share for name in remote.THREADS if name not in os.environ}
    with dask_config.set({key: {**limits, **said}}):
        return _LocalCluster(**arguments)


class Connection:
    """A client in whose event loop work is done for a backend, which lives in another, or not.

    Parameters
    ----------
    name:
        How messages call the backend.
    """

    client: Client

    def __init__(self, name: str) -> None:
        self._name = name
        self.loop = asyncio.get_running_loop()
        """The backend's event loop."""
        self._own: list[Any] = []
        """What is to be closed, in this order."""
        self._background: set[asyncio.Task[None]] = set()
        """Belongs to the client's event loop."""

    @property
    def _client_loop(self) -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = self.client.loop.asyncio_loop
        return loop

    @property
    def owns_client(self) -> bool:
        """Whether the client is closed with this."""
        return self.client in self._own

    # --- begin and end --------------------------------------------------------------------------

    async def open(self, target: Any) -> None:
        """Connect to a target, and give its workers what they need."""
        try:
            self.client = await self._client_of(target)
            await self.run(_register_plugins(self.client))
        except BaseException:
            await self.close()
            raise

    async def _client_of(self, target: Any) -> Client:
        if isinstance(target, Client):
            if not target.loop.asyncio_loop.is_running():
                raise RuntimeError(
                    f"backend '{self._name}': the event loop of its Client does not run: make an "
                    "async Client in the engine's event loop, or a sync one"
                )
            return await target if target.asynchronous else target
        if isinstance(target, Mapping) and target.keys() == {"address"}:
            target = target["address"]
        elif isinstance(target, Mapping):
            arguments = {"dashboard_address": ":0", **target}
            target = await asyncio.to_thread(_make_cluster, arguments)
            self._own.append(target)
        if isinstance(target, Cluster) and target.asynchronous:
            client = await Client(target, asynchronous=True, set_as_default=False)
        else:
            client = await asyncio.to_thread(self._make_client, target)
        self._own.insert(0, client)
        return client

    def _make_client(self, target: Any) -> Client:
        """Make a client with a thread and an event loop of its own. Blocks."""
        tcp = "distributed.comm.timeouts.tcp"
        timeout = min(parse_timedelta(dask_config.get(tcp)), _TCP_TIMEOUT_S)
        with dask_config.set({tcp: f"{timeout}s"}):
            try:
                return Client(target, set_as_default=False)
            except OSError as error:
                raise ConnectionError(
                    f"backend '{self._name}' cannot reach the scheduler at {target}: {error}"
                ) from error

    async def close(self) -> None:
        """Stop what runs in the background, and close what was not given."""
        if hasattr(self, "client"):
            self.call_in_client_loop(_cancel_all, self._background)
        own, self._own = self._own, []
        for each in own:
            try:
                if each.asynchronous:
                    await asyncio.wait_for(each.close(), _CLOSE_TIMEOUT_S)
                else:
                    await asyncio.to_thread(each.close, timeout=_CLOSE_TIMEOUT_S)
            except Exception as error:
                kind, why = type(each).__name__, text_of_error(error)
                _log.warning("backend '%s' could not close its %s: %s", self._name, kind, why)

    # --- there and back -------------------------------------------------------------------------

    async def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Await ``work`` in the client's event loop."""
        if self._client_loop is self.loop:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._client_loop))

    def call_in_client_loop(self, function: Callable[..., None], *args: Any) -> None:
        """Call ``function`` in the client's event loop, soon, unless that is closed."""
        with contextlib.suppress(RuntimeError):
            self._client_loop.call_soon_threadsafe(function, *args)

    def call_in_backend_loop(self, function: Callable[..., None], *args: Any) -> None:
        """Call ``function`` in the backend's event loop, soon, unless that is closed."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(function, *args)

    def run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` in the background. Called in the client's event loop."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _register_plugins(client: Client) -> None:
    runtimes = DFTracerUtilsDaskWorkerPlugin()
    runtimes.idempotent = True  # where the program has registered it, its sizes stay
    await client.register_plugin(runtimes)
    await client.register_plugin(TaskStopper())


def _cancel_all(tasks: set[asyncio.Task[None]]) -> None:
    for task in list(tasks):
        task.cancel()
