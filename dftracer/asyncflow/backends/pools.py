"""Pools of worker processes: who has died when one breaks, and another like it.

Executors tell neither, so this looks at what they are made of. It knows those of the standard
library and of loky; all others stay as they are when they break.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import Any

_REAP_S = 1.0
"""How long the exit code of a process that has closed its files may take to be known."""


def remake_of(executor: Executor) -> Callable[[], Executor] | None:
    """Return what makes another pool like ``executor``; ``None`` if that is not known."""
    it: Any = executor
    kind = type(executor)
    if kind is ProcessPoolExecutor:
        options = {"mp_context": it._mp_context}
        if hasattr(it, "_max_tasks_per_child"):  # since Python 3.11
            options["max_tasks_per_child"] = it._max_tasks_per_child
        make: Callable[..., Executor] = ProcessPoolExecutor
    elif kind.__module__ in ("loky.process_executor", "loky.reusable_executor"):
        options = {
            "context": it._context,
            "timeout": it._timeout,
            "env": it._env,
            "job_reducers": it._call_queue._reducers,
            "result_reducers": it._result_queue._reducers,
        }
        loky = sys.modules["loky"]
        is_plain = kind is loky.ProcessPoolExecutor
        make = loky.ProcessPoolExecutor if is_plain else loky.get_reusable_executor
    else:
        return None
    return functools.partial(
        make, it._max_workers, initializer=it._initializer, initargs=it._initargs, **options
    )


class BrokenPool:
    """What has become of the workers of a pool that has broken.

    To be made before the executor ends those that are left: in the callback of a future of it.
    """

    def __init__(self, executor: Any, cause: BaseException) -> None:
        self.executor: Executor = executor
        self.cause = cause
        self.deaths: dict[int, str] = {}
        """How the processes ended that were dead, by their identifiers."""
        processes = dict(executor._processes or {})
        gone = wait([process.sentinel for process in processes.values()], 0)
        for pid, process in processes.items():
            if process.sentinel in gone:
                process.join(_REAP_S)
                self.deaths[pid] = _end_of(process.exitcode)
        if type(executor) is ProcessPoolExecutor:
            # It would ask them to end, which a body may ignore, and wait for ever.
            for pid in processes.keys() - self.deaths.keys():
                with contextlib.suppress(OSError):
                    processes[pid].kill()

    @property
    def death(self) -> str:
        """How its workers have died, or what the executor says if none has."""
        return ", ".join(self.deaths.values()) or str(self.cause)


def release_writer(executor: Any) -> None:
    """Let the thread go on that writes calls for the workers of a broken pool, as none reads them.

    To be called in the callback of a future, which is before the executor waits for that thread.
    Pipes hold little, and CPython 3.10 leaves this one open, so that it would wait for ever.
    """
    if type(executor) is ProcessPoolExecutor:
        with contextlib.suppress(AttributeError, OSError):
            executor._call_queue._reader.close()  # type: ignore[attr-defined]


def _end_of(exit_code: int | None) -> str:
    if exit_code is None:
        return "unknown exit code"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"
