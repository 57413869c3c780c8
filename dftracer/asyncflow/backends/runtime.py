"""The default backend: our own :class:`~dftracer.utils.Runtime`, in this process."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from dftracer.asyncflow.backends.host import HostExecutionBackend
from dftracer.utils import Runtime
from dftracer.utils.default import threads_of_environment

if TYPE_CHECKING:
    from dftracer.utils.tracing import Trace


WINDOW_PER_WORKER = 32
"""Enough that no worker waits for the event loop."""


class RuntimeExecutionBackend(HostExecutionBackend):
    """Runs functions on a runtime's workers and programs through its I/O lane.

    Parameters
    ----------
    runtime:
        Where to run. ``None`` makes a runtime of this backend's own, which :meth:`shutdown` then
        shuts down, with as many Python workers as a ``ThreadPoolExecutor()`` has; a runtime that
        was given is left running.
    name:
        The name by which decorators choose this backend.

    Notes
    -----
    Outcomes come through one file descriptor that the event loop watches: however many tasks end
    at a time, the loop is woken once. After :meth:`shutdown` the backend can be used again.
    """

    def __init__(self, runtime: Runtime | None = None, name: str = "default") -> None:
        super().__init__(name)
        if runtime is not None and not isinstance(runtime, Runtime):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"runtime must be a Runtime or None, not {type(runtime).__name__}")
        self._given_runtime = runtime

    def acquire(self) -> Runtime:
        runtime = self._given_runtime
        if runtime is None:
            threads = threads_of_environment()
            # As `concurrent.futures` has, for bodies that block.
            cpus = getattr(os, "process_cpu_count", os.cpu_count)() or 1
            workers = threads or min(32, cpus + 4)
            runtime = Runtime(threads, python_threads=workers)
        self.window = WINDOW_PER_WORKER * runtime.sizes["python_threads"]
        return runtime

    async def release(self) -> None:
        if self.runtime is not None:
            runtime, is_own = self.runtime, self._given_runtime is None
            # Waits for threads; not in the event loop's.
            await asyncio.to_thread(runtime.shutdown if is_own else runtime.wait_for_bodies)

    def trace_to(self, trace: Trace) -> bool:
        """Let the runtime write its tasks to ``trace`` if it is this backend's own.

        Those that it has not been given, because they could not begin, are described with
        ``is_traced=False``: these the engine has to write.

        Returns
        -------
        bool
            Whether submissions that have a ``trace_note`` are written there.
        """
        if self.runtime is None:
            return False
        if self._given_runtime is None:
            self.runtime.start_trace(trace)
        return self.runtime.traces_to(trace)
