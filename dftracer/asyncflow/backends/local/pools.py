"""Pools of worker processes: which have died when one breaks, and another like it.

Executors offer neither, so this reads their private attributes. It knows those of the standard
library and of loky; all others stay as they are when they break.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import Any

from dftracer.asyncflow.backends import remote
from dftracer.asyncflow.errors import text_of_error
from dftracer.utils import available_cpus
from dftracer.utils.payload import ByValue

_REAP_S = 1.0
"""How long the exit code of a process that has closed its files may take to be known."""
_CLOSE_S = 5.0
"""How long a broken executor, and each of its dying workers, may take to end."""
_STUCK_CHECKS = 3
"""In so many checks in a row a worker must be dead before its executor's thread counts as stuck."""
_FILLER = bytes(65536)

_log = logging.getLogger("dftracer.asyncflow")


def make_process_pool(workers: int | None) -> ProcessPoolExecutor:
    """Make a pool whose workers share the cores also where they call native libraries."""
    share = max(1, available_cpus() // (workers or os.cpu_count() or 1))
    limit = ByValue(remote.limit_native_threads)
    return ProcessPoolExecutor(workers, initializer=limit, initargs=(share,))


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


class LostThreadError(BrokenExecutor):
    """The executor's own thread has ended, and its calls have not."""

    def __init__(self) -> None:
        super().__init__("the executor's own thread has died")


class BrokenPool:
    """What has become of the workers of a pool that has broken.

    To be made in the callback of a future of it: before the executor ends those that are left.
    """

    def __init__(self, executor: Any, cause: BaseException, stop: bool = False) -> None:
        """Find out which workers are dead; with ``stop``, or where the executor may wait for ever
        for the others, kill those."""
        self.executor: Executor = executor
        self.cause = cause
        self.deaths: dict[int, str] = {}
        """How the processes ended that were dead, by their identifiers."""
        self._processes: dict[int, Any] = {}
        # Whatever cannot be seen of somebody else's workers, the pool has broken.
        with contextlib.suppress(Exception):
            self._processes.update(executor._processes or {})
            self._find_deaths()
        if stop or type(executor) is ProcessPoolExecutor:
            # It would ask them to end, which a body may ignore, and wait for ever.
            for pid in self._processes.keys() - self.deaths.keys():
                _kill(self._processes[pid])

    def _find_deaths(self) -> None:
        gone = wait([process.sentinel for process in self._processes.values()], 0)
        for pid, process in self._processes.items():
            if process.sentinel in gone:
                process.join(_REAP_S)
                self.deaths[pid] = _end_of(process.exitcode)

    @property
    def death(self) -> str:
        """How its workers have died, or what the executor says if none has."""
        return ", ".join(self.deaths.values()) or text_of_error(self.cause)

    def close(self) -> None:
        """Wait until the executor and its workers have ended, but not for ever. Blocks."""
        # It waits for its own thread, which may be stuck.
        closing = threading.Thread(target=self.executor.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_S)
        _end_all(self._processes)


class PoolWatch:
    """Finds out when a pool of processes cannot end its calls and does not say so.

    It knows what the standard library's pools and loky's do not handle: that their own thread has
    died; that no process is left; that the thread waits for the rest of what a worker was writing
    when it died. About other executors it knows nothing.
    """

    def __init__(self, executor: Any) -> None:
        self.is_possible = hasattr(executor, "_executor_manager_thread")
        self._executor = executor
        self._thread: threading.Thread | None = None
        """The executor's own, which the executor forgets when it is shut down."""
        self._unnoticed = 0
        """In how many checks in a row the executor had dead workers and took them for alive."""
        self._has_warned = False
        self._loses_workers = getattr(executor, "_max_tasks_per_child", None) is not None

    def has_lost_its_thread(self) -> bool:
        """Return whether nobody will end the calls of the executor that have not ended."""
        if self._thread is None:
            self._thread = getattr(self._executor, "_executor_manager_thread", None)
            if self._thread is None:
                return False
        if self._thread.is_alive():
            return False
        with self._executor._shutdown_lock:  # another thread may just be starting it
            return not self._thread.is_alive()

    def would_lose_calls(self) -> bool:
        """Return whether the executor takes calls that nobody would end."""
        if not self.has_lost_its_thread():
            return False
        flags = getattr(self._executor, "_flags", None)
        is_shut = self._executor._shutdown_thread if flags is None else flags.shutdown
        return not is_shut  # then it refuses them itself

    def shut_down(self, is_stuck: bool = False) -> None:
        """Shut the executor down, and end the workers that it has left behind. Blocks.

        Where bodies do not return (``is_stuck``), kill processes and do not wait for threads.
        """
        processes = dict(getattr(self._executor, "_processes", None) or {})
        self.has_lost_its_thread()  # which it knows of only before it is shut down
        for process in processes.values() if is_stuck else ():
            _kill(process)
        self._executor.shutdown(wait=bool(processes) or not is_stuck)
        if self.has_lost_its_thread():  # which would have seen to that
            _end_all(processes)

    def kill_workers(self) -> bool:
        """Kill the worker processes, if the executor has some; its calls end with it then."""
        processes = dict(getattr(self._executor, "_processes", None) or {})
        for process in processes.values():
            _kill(process)
        return bool(processes)

    def trim_idle(self) -> None:
        """Correct the executor's count of idle workers, before a submission and when a call ends.

        Where workers end after a number of calls, CPython counts them as idle after each, whatever
        waits, and starts no others in the place of those that it believes idle (gh-115634).
        """
        if self._loses_workers:
            with contextlib.suppress(Exception):  # another version, which has no such count
                executor = self._executor
                idle = len(executor._processes) - len(executor._pending_work_items)
                count = executor._idle_worker_semaphore
                while count._value > max(idle, 0) and count.acquire(blocking=False):
                    pass

    def unstick(self) -> None:
        """Help the executor where it is stuck. To be called regularly while it has calls."""
        try:
            self._unstick(self._executor)
        except Exception as error:
            if not self._has_warned:
                self._has_warned = True
                kind, why = type(self._executor).__name__, text_of_error(error)
                _log.warning("%s has no worker process, and none can be started: %s", kind, why)

    def _unstick(self, executor: Any) -> None:
        processes = dict(executor._processes or {})
        # With exit code 0 they may have ended as they should.
        dead = [process for process in processes.values() if process.exitcode]
        self._unnoticed = self._unnoticed + 1 if dead else 0
        if self._unnoticed == _STUCK_CHECKS:
            for process in processes.values():
                _kill(process)
            threading.Thread(target=self._release_reader, args=(executor,), daemon=True).start()
            return
        waiting = len(executor._pending_work_items)
        least = min(waiting, executor._max_workers if self._loses_workers else 1)
        if len(processes) < least:
            self.trim_idle()
            with _lock_of(executor):
                executor._adjust_process_count()
            with executor._shutdown_lock:
                executor._executor_manager_thread_wakeup.wakeup()

    def _release_reader(self, executor: Any) -> None:
        """Let the executor's thread go on, which reads what a dead worker has left unfinished.

        The pipe has no end while processes that were forked since have it too. What is written here
        completes a message that cannot be read, and so the pool breaks.
        """
        assert self._thread is not None
        with contextlib.suppress(Exception):  # closed, as by the end of that thread
            pipe = executor._result_queue._writer.fileno()
            os.set_blocking(pipe, False)
            while self._thread.is_alive() and not _is_broken(executor):
                try:
                    os.write(pipe, _FILLER)
                except BlockingIOError:
                    self._thread.join(0.01)


def _kill(process: Any) -> None:
    with contextlib.suppress(Exception):  # it has ended, or is another's
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)


def _end_all(processes: dict[int, Any]) -> None:
    for process in processes.values():
        _kill(process)
    for process in processes.values():
        with contextlib.suppress(Exception):
            process.join(_CLOSE_S)


def _is_broken(executor: Any) -> bool:
    broken = executor._flags.broken if hasattr(executor, "_flags") else executor._broken
    return bool(broken)


def _lock_of(executor: Any) -> Any:
    """Return the lock under which an executor starts processes."""
    return getattr(executor, "_processes_management_lock", None) or executor._shutdown_lock


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
