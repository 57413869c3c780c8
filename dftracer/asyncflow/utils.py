"""What programs for radical.asyncflow import from its module of this name.

The engine itself uses :func:`get_event_loop_or_raise`. It counts its tasks by itself, so that the
numbers of :func:`get_next_uid` are the program's own.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import Any

_lock = threading.Lock()
_numbers = itertools.count(1)


def get_next_uid() -> str:
    """Return the next number of this process, of six digits: ``"000001"`` at first.

    It may be called in any thread. No number is given twice, unless :func:`reset_uid_counter` has
    been called in between.
    """
    with _lock:
        return f"{next(_numbers):06d}"


def reset_uid_counter() -> None:
    """Let :func:`get_next_uid` begin at ``"000001"`` again. Engines do not call this."""
    global _numbers
    with _lock:
        _numbers = itertools.count(1)


def get_event_loop_or_raise(
    context_name: str = "AsyncWorkflowEngine",
) -> asyncio.AbstractEventLoop:
    """Return the event loop that runs in this thread.

    Parameters
    ----------
    context_name:
        The class that needs it, for the message of the error.

    Raises
    ------
    RuntimeError
        If none runs.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            f"{context_name} must be created within an async context, and no event loop is "
            f"running: use 'await {context_name}.create()' inside an async function, for example "
            "under asyncio.run()"
        ) from None


class NoProfiler:
    """A profiler that records nothing, with the methods of ``radical.utils.Profiler``.

    It is :attr:`WorkflowEngine.prof <dftracer.asyncflow.WorkflowEngine>`. What a workflow does is
    recorded by a trace, see ``docs/tracing.md``, or by telemetry.
    """

    enabled = False

    def prof(self, event: str, *args: Any, **kwargs: Any) -> None:
        """Record nothing of an event."""

    def enable(self) -> None:
        """Do nothing: it stays disabled."""

    def disable(self) -> None:
        """Do nothing: it is disabled."""

    def flush(self, verbose: bool = False) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Do nothing: there is nothing open."""
