"""The tasks in trace files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dftracer.utils.tracing import LeftOut, ProcessNumbers, read_events, trace_files

_log = logging.getLogger("dftracer.asyncflow")

Key = tuple[Any, ...]


@dataclass(slots=True)
class TaskSpan:
    """One task: where and when it ran, how it ended, and what it waited for. Times in µs."""

    name: str
    category: str
    row: tuple[int, int]
    """Process and thread, or what stands for a thread."""
    start: int
    duration: int
    state: str
    key: Key
    """Tells it from all others; dependencies, owners and parents refer to it."""
    queued: int = 0
    """From being submitted to the start."""
    waited: int = 0
    """From being called to being submitted: for dependencies."""
    dependencies: list[Key] = field(default_factory=list)  # pyright: ignore[reportUnknownVariableType]
    owner: Key | None = None
    """The block in whose body it was called."""
    parent: Key | None = None
    """The task of a runtime that submitted it."""
    details: dict[str, Any] = field(default_factory=dict)  # pyright: ignore[reportUnknownVariableType]

    @property
    def end(self) -> int:
        return self.start + self.duration

    @property
    def submitted(self) -> int:
        return self.start - self.queued

    @property
    def created(self) -> int:
        return self.submitted - self.waited

    @property
    def is_block(self) -> bool:
        """Whether it only waits for others."""
        return self.category == "block"


@dataclass
class Trace:
    """What is in some trace files."""

    tasks: list[TaskSpan]
    """By their start."""
    rows: dict[tuple[int, int], str]
    """What each row is called."""
    lost: int
    """How many tasks are missing, because they could not be written."""
    left_out: str = ""
    """What could not be read."""


_MAX_KEPT = 2_000_000
"""How many tasks and names of rows are read: what a gibibyte or two of memory can hold."""

_DETAILS = ("uid", "engine", "workflow_id", "error", "message", "traceback", "exit_code")


def read_trace(paths: Iterable[str | os.PathLike[str]]) -> Trace:
    """Read trace files, and those in directories.

    Any trace of DFTracer can be read; what only our runtimes and engines write is missing in those
    of others.

    Raises
    ------
    FileNotFoundError
        If one of them does not exist.
    ValueError
        If there is no task in any of them.
    """
    tasks: list[TaskSpan] = []
    threads: dict[tuple[int, int], str] = {}
    processes: dict[int, str] = {}
    number_of, left_out = ProcessNumbers(), LeftOut()
    lost = 0
    for file_number, path in enumerate(trace_files(paths)):
        for event in read_events(path, left_out):
            if len(tasks) + len(threads) + len(processes) >= _MAX_KEPT:
                left_out.rest(path, f"what comes after the first {_MAX_KEPT:,} tasks of all")
                break
            given = event.get("args")
            arguments: dict[str, Any] = {}
            if isinstance(given, dict):
                arguments = given  # pyright: ignore[reportUnknownVariableType]
            pid, tid = _whole(event.get("pid")), _whole(event.get("tid"))
            pid = number_of(arguments.get("hhash"), pid)
            phase, name = event.get("ph"), str(event.get("name", ""))
            if phase in ("X", 1):
                key = (file_number, pid)
                tasks.append(_span(event, name, arguments, (pid, tid), key))
            elif name == "thread_name":
                threads[pid, tid] = str(arguments.get("name", tid))
            elif name == "process_name":
                processes[pid] = str(arguments.get("name", pid))
            elif name == "dropped":
                lost += _whole(arguments.get("value"))
    if not tasks:
        why = str(left_out) or "nothing has ended, or nothing was traced"
        raise ValueError(f"there is no task in the trace: {why}")
    if text := str(left_out):
        _log.warning("%s", text)
    tasks.sort(key=lambda task: (task.start, -task.duration))
    return Trace(tasks, _label(tasks, threads, processes), lost, str(left_out))


def _span(
    event: dict[str, Any],
    name: str,
    arguments: dict[str, Any],
    row: tuple[int, int],
    process: Key,
) -> TaskSpan:
    engine, runtime = arguments.get("engine"), arguments.get("runtime")
    if "uid" in arguments:
        key: Key = (engine, arguments["uid"])
    else:
        key = (*process, runtime, arguments.get("task", event.get("id")))
    owner, parent = arguments.get("owner"), arguments.get("parent")
    return TaskSpan(
        name=name,
        category=str(event.get("cat", "")),
        row=row,
        start=_whole(event.get("ts")),
        duration=_whole(event.get("dur")),
        state=str(arguments.get("state", "done")),
        key=key,
        queued=_whole(arguments.get("queued_us")),
        waited=_whole(arguments.get("wait_us")),
        dependencies=[(engine, uid) for uid in str(arguments.get("deps", "")).split()],
        owner=None if owner is None else (engine, owner),
        parent=None if parent is None else (*process, runtime, parent),
        details={name: arguments[name] for name in _DETAILS if name in arguments},
    )


def _label(
    tasks: list[TaskSpan], threads: dict[tuple[int, int], str], processes: dict[int, str]
) -> dict[tuple[int, int], str]:
    """Name the rows that tasks are in, with the process if there are several."""
    rows = {task.row for task in tasks}
    is_one = len({pid for pid, _ in rows}) == 1
    labels: dict[tuple[int, int], str] = {}
    for pid, tid in rows:
        label = threads.get((pid, tid), f"thread {tid}")
        labels[pid, tid] = label if is_one else f"{label} · {processes.get(pid, pid)}"
    return labels


def _whole(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return 0
