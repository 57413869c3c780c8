"""A runtime for each worker of a Dask cluster.

>>> from dftracer.utils.dask import DFTracerUtilsDaskWorkerPlugin
>>> client.register_plugin(DFTracerUtilsDaskWorkerPlugin())  # doctest: +SKIP

Inside a task, ``get_default_runtime()`` is then the runtime of the worker that runs it. Sizes, what
teardown does, and workers that share a process: ``docs/dask.md``.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from dftracer.utils._native import available_cpus
from dftracer.utils.default import peek_default_runtime, set_default_runtime
from dftracer.utils.runtime import Runtime

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

try:
    from dask.distributed import (  # pyright: ignore[reportMissingImports]
        WorkerPlugin,  # pyright: ignore[reportUnknownVariableType]
        get_client,  # pyright: ignore[reportUnknownVariableType]
    )
except ImportError as error:
    raise ImportError(
        "dftracer.utils.dask needs dask.distributed: pip install 'dftracer-asyncflow[dask]'",
        name=error.name,
    ) from error

__all__ = [
    "DFTracerUtilsDaskWorkerPlugin",
    "ProgressAggregator",
    "register_auto_thread_plugin",
    "resolve_local_staging",
]

PROGRESS_TOPIC = "dft-progress"
"""The topic of Dask's events that :class:`ProgressAggregator` adds up."""

_STAGING = "dftracer-sst-staging"

_log = logging.getLogger("dftracer.utils.dask")


class DFTracerUtilsDaskWorkerPlugin(WorkerPlugin):  # type: ignore[misc]
    """Gives each worker ``worker.dftracer_utils_runtime``, the default runtime of its process.

    Registering it again, as with other sizes, replaces the runtimes: the tasks of those before go
    on, and they take no more.

    Parameters
    ----------
    threads, io_threads:
        As for :class:`dftracer.utils.Runtime`, except that 0 means as many as the worker runs Dask
        tasks at a time, which is its share of the node. ``python_threads`` is always that.
    trace:
        A directory in which each worker process writes a trace of its runtime's tasks; made if it
        is not there.

    Raises
    ------
    ValueError
        If a size is negative.
    """

    name = "dftracer-utils-runtime"
    idempotent = False

    def __init__(
        self,
        threads: int = 0,
        io_threads: int = 0,
        trace: str | os.PathLike[str] | None = None,
    ) -> None:
        for size, value in (("threads", threads), ("io_threads", io_threads)):
            if value < 0:
                raise ValueError(f"{size} must not be negative, but is {value}")
        # Nothing else is kept here: the plugin is sent to every worker, and workers of one process
        # can share one.
        self.threads = threads
        self.io_threads = io_threads
        self.trace = None if trace is None else os.path.abspath(trace)

    def setup(self, worker: Any) -> None:
        """Start a runtime for ``worker``, and make it the default of this process.

        ``worker`` is any object that takes attributes. What it has no ``nthreads`` for is sized by
        the CPUs that this process may use.
        """
        self.teardown(worker)  # it has one already if the plugin is registered under two names
        share = _share_of(worker)
        if self.trace is not None:
            os.makedirs(self.trace, exist_ok=True)
        runtime = Runtime(
            threads=self.threads or share,
            io_threads=self.io_threads or share,
            python_threads=share,
            trace=self.trace,
        )
        _install(runtime)
        worker.dftracer_utils_runtime = runtime

    def teardown(self, worker: Any) -> None:
        """Take the runtime from ``worker``, and put the default of before in its place.

        A default that somebody else has set meanwhile stays. The runtime takes no more tasks; those
        that it has go on, and nobody waits for them here.
        """
        runtime: Runtime | None = getattr(worker, "dftracer_utils_runtime", None)
        if runtime is None:
            return
        del worker.dftracer_utils_runtime
        _uninstall(runtime)
        runtime.shutdown(wait=False)


def register_auto_thread_plugin() -> Any:
    """Give each worker of the active client a runtime, sized by the worker's own ``nthreads``.

    Nothing happens if the plugin is registered there already, or there is no active client. With
    an asynchronous client, await what this returns.
    """
    try:
        client = cast("Any", get_client())
    except ValueError:
        return None
    plugin = DFTracerUtilsDaskWorkerPlugin()
    plugin.idempotent = True
    return client.register_plugin(plugin)


def resolve_local_staging(client: Any) -> str:
    """Return a directory for scratch files on each node: below the workers' own scratch space.

    All workers are taken to have the path of the first. It is below ``/tmp`` if none is known.
    """
    workers: dict[str, Any] = client.scheduler_info().get("workers") or {}
    for first in workers.values():
        return os.path.join(first.get("local_directory") or "/tmp", _STAGING)
    return os.path.join("/tmp", _STAGING)


class ProgressAggregator:
    """In its ``with`` block, calls ``callback(done, total, phase)`` as tasks report progress.

    They do so with ``get_worker().log_event("dft-progress", {"phase": ..., "batch": ..., "done":
    ..., "total": ...})``; the numbers of all batches of a phase are added up, the last of each.
    What the callback raises is logged.

    Parameters
    ----------
    client:
        A Dask client. Of another object, without topics, nothing is heard.
    callback:
        Called in the client's thread; ``None`` for nobody.
    """

    def __init__(self, client: Any, callback: Callable[[int, int, str], object] | None) -> None:
        self._client = client if callback and hasattr(client, "subscribe_topic") else None
        self._callback = callback
        self._reported: dict[str, dict[str, tuple[int, int]]] = {}

    def __enter__(self) -> Self:
        if self._client is not None:
            self._client.subscribe_topic(PROGRESS_TOPIC, self._hear)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._client is not None:
            self._client.unsubscribe_topic(PROGRESS_TOPIC)

    def _hear(self, event: tuple[float, Any]) -> None:
        try:
            _, message = event
            phase, batch = message["phase"], message["batch"]
            batches = self._reported.setdefault(phase, {})
            batches[batch] = int(message["done"]), int(message["total"])
            done, total = (sum(counts) for counts in zip(*batches.values(), strict=True))
            if self._callback is not None:
                self._callback(done, total, phase)
        except Exception:
            _log.exception("The progress %r could not be passed on.", event)


def _share_of(worker: Any) -> int:
    """Return how many Dask tasks ``worker`` runs at a time."""
    # The attribute of the worker itself is out of use in Dask, which warns of it.
    for holder in (getattr(worker, "state", None), worker):
        nthreads: object = getattr(holder, "nthreads", None)
        if isinstance(nthreads, int):
            return max(1, nthreads)
    return available_cpus()


@dataclass
class _Installed:
    runtime: Runtime
    previous: Runtime | None
    """The default to restore. Never the runtime of a worker that has left."""


_lock = threading.Lock()
_installed: list[_Installed] = []
"""The runtimes of all workers in this process, which come and go in any order."""


def _install(runtime: Runtime) -> None:
    with _lock:
        _installed.append(_Installed(runtime, previous=peek_default_runtime()))
        set_default_runtime(runtime)


def _uninstall(runtime: Runtime) -> None:
    with _lock:
        leaving = next((each for each in _installed if each.runtime is runtime), None)
        if leaving is None:
            return
        _installed.remove(leaving)
        for other in _installed:
            if other.previous is runtime:
                other.previous = leaving.previous
        if peek_default_runtime() is runtime:
            set_default_runtime(leaving.previous)


def _forget_in_child() -> None:
    """After ``fork()`` the parent's runtimes have no threads here, and the lock may be held."""
    global _lock
    _lock = threading.Lock()
    _installed.clear()


os.register_at_fork(after_in_child=_forget_in_child)
