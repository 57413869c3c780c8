"""A runtime for each worker of a Dask cluster.

>>> from dftracer.utils.dask import DFTracerUtilsDaskWorkerPlugin
>>> client.register_plugin(DFTracerUtilsDaskWorkerPlugin())  # doctest: +SKIP

Inside a task, ``get_default_runtime()`` is then the runtime of the worker that runs it. Sizes, what
teardown does, and workers that share a process: ``docs/dask.md``.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any

from dftracer.utils.default import peek_default_runtime, set_default_runtime
from dftracer.utils.runtime import Runtime

try:
    from dask.distributed import (  # pyright: ignore[reportMissingImports]
        WorkerPlugin,  # pyright: ignore[reportUnknownVariableType]
    )
except ImportError as error:
    raise ImportError(
        "dftracer.utils.dask needs dask.distributed: pip install 'dftracer-asyncflow[dask]'",
        name=error.name,
    ) from error

__all__ = ["DFTracerUtilsDaskWorkerPlugin"]


class DFTracerUtilsDaskWorkerPlugin(WorkerPlugin):  # type: ignore[misc]
    """Gives each worker ``worker.dftracer_utils_runtime``, the default runtime of its process.

    Registering it again changes nothing: unregister ``name`` first to change the sizes.

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
    idempotent = True

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
        """Start a runtime for ``worker``, and make it the default of this process."""
        self.teardown(worker)  # it has one already if the plugin is registered under two names
        share = max(1, worker.state.nthreads)
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
