"""What the tests of backends share: descriptions of tasks, who is told of their ends, and doors."""

import asyncio
import contextvars
import multiprocessing
import os
import select
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dftracer.utils import Runtime

_requested = os.environ.get("DFTRACER_TEST_BACKENDS", "")
ON_REQUEST_KINDS = [kind for kind in _requested.split(",") if kind]
"""The slow kinds of backends to test besides the others."""
GUARD_S = 60 if ON_REQUEST_KINDS else 25
"""How long a test waits for what comes at once, unless the backend is broken."""


def function_task(
    uid: str, function: Callable[..., Any], *args: Any, description: Any = None, **kwargs: Any
) -> dict[str, Any]:
    """Describe a call as an engine does."""
    return {
        "uid": uid,
        "name": getattr(function, "__name__", "call"),
        "function": function,
        "args": args,
        "kwargs": kwargs,
        "executable": None,
        "prompt": None,
        "task_backend_specific_kwargs": description or {},
        "capture_stdio": False,
        "context": contextvars.copy_context(),
    }


def program_task(
    uid: str, *words: str, description: Any = None, capture_stdio: bool = False
) -> dict[str, Any]:
    """Describe a program as an engine does."""
    return {
        "uid": uid,
        "name": words[0],
        "function": None,
        "executable": words[0],
        "arguments": list(words[1:]),
        "prompt": None,
        "task_backend_specific_kwargs": description or {},
        "capture_stdio": capture_stdio,
    }


def has_begun(backend: Any, uid: str) -> bool:
    """Tell whether a task runs on a backend, as far as that knows."""
    return any(backend.has_begun(each) for each in backend.unfinished if each.uid == uid)


class Recorder:
    """Is told of every state by a backend, as an engine would be."""

    def __init__(self, backend: Any) -> None:
        self.states: dict[str, list[str]] = {}
        self._ends: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._loop = asyncio.get_running_loop()
        backend.register_callback(self.note)

    def note(self, task: dict[str, Any], state: str) -> None:
        """Take a state, in whatever thread."""
        # As it is now: a backend may take out of it later what only the engine needs.
        self._loop.call_soon_threadsafe(self._note, dict(task), state)

    def _note(self, task: dict[str, Any], state: str) -> None:
        self.states.setdefault(task["uid"], []).append(state)
        end = self._end_of(task["uid"])
        if state != "RUNNING" and not end.done():
            end.set_result(task)

    def _end_of(self, uid: str) -> asyncio.Future[dict[str, Any]]:
        return self._ends.setdefault(uid, self._loop.create_future())

    async def end_of(self, uid: str) -> dict[str, Any]:
        """Wait for the end of a task and return its description."""
        return await asyncio.wait_for(asyncio.shield(self._end_of(uid)), GUARD_S)

    async def result_of(self, uid: str) -> Any:
        """Wait for the end of a function and return its result, or raise its error."""
        task = await self.end_of(uid)
        if self.states[uid][-1] == "DONE":
            return task["return_value"]
        raise task["exception"]


class Door:
    """Holds bodies back, in whatever process of this machine they run."""

    def __init__(self, folder: Path) -> None:
        self._knocks, self._keys = str(folder / "knocks"), str(folder / "keys")
        os.mkfifo(self._knocks)
        os.mkfifo(self._keys)
        self._files = [os.open(path, os.O_RDWR) for path in (self._knocks, self._keys)]

    def __reduce__(self) -> tuple[Any, ...]:
        return _door_of, (self._knocks, self._keys)

    def hold(self, value: Any = None) -> Any:
        """Knock, and return ``value`` when the door is opened for one more."""
        _with(self._knocks, lambda file: os.write(file, b"!"))
        _with(self._keys, _read_one)
        return value

    async def hold_async(self, value: Any = None) -> Any:
        """As :meth:`hold`, without blocking an event loop."""
        # At once: a body that is stopped early may not get as far as another thread.
        _with(self._knocks, lambda file: os.write(file, b"!"))
        await asyncio.to_thread(_with, self._keys, _read_one)
        return value

    async def reached(self, times: int = 1) -> None:
        """Wait until so many bodies have knocked."""
        for _ in range(times):
            await asyncio.to_thread(_read_one, self._files[0])

    def open(self, times: int = 1) -> None:
        """Let so many bodies pass."""
        os.write(self._files[1], b"." * times)

    def close(self) -> None:
        """Let all pass that still wait."""
        self.open(1_000)
        for file in self._files:
            os.close(file)


def _door_of(knocks: str, keys: str) -> Door:
    door = object.__new__(Door)
    door._knocks, door._keys = knocks, keys
    return door


def _with(path: str, use: Callable[[int], object]) -> None:
    file = os.open(path, os.O_RDWR)
    try:
        use(file)
    finally:
        os.close(file)


def _read_one(file: int) -> None:
    assert select.select([file], [], [], GUARD_S)[0], "nobody has come to the door"
    os.read(file, 1)


class Lent(Executor):
    """An executor that survives the shutdown of a backend, for the next test."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._executor.submit(fn, *args, **kwargs)


def make_pool(kind: str, workers: int = 1) -> Executor:
    """Return a pool of that kind."""
    if kind == "threads":
        return ThreadPoolExecutor(workers)
    if kind == "runtime":
        return Runtime(python_threads=workers).executor()
    if kind == "processes":
        # Not by fork, which from Python 3.12 on warns of the threads that there are.
        return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("forkserver"))
    loky = pytest.importorskip("loky", reason="loky is not installed")
    pool: Executor = loky.ProcessPoolExecutor(workers)
    return pool
