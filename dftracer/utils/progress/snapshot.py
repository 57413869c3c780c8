"""What :meth:`Runtime.get_progress <dftracer.utils.Runtime.get_progress>` returns."""

from __future__ import annotations

from typing import TypedDict


class WorkerProgress(TypedDict):
    """One worker in :meth:`Runtime.get_progress`."""

    id: int
    """No other worker of the runtime has it, of whatever lane."""
    lane: str
    idle: bool
    task: str
    queue_depth: int


class TaskProgress(TypedDict):
    """One task in :meth:`Runtime.get_progress`."""

    task_id: int
    name: str
    state: str
    """``queued``, ``running``, ``completed``, ``failed`` or ``cancelled``."""
    queued_duration_ms: float
    execution_duration_ms: float
    total_subtasks: int
    completed_subtasks: int
    progress_pct: float
    location: str
    children: list[TaskProgress]


class TaskFailure(TypedDict):
    """One failed task in :meth:`Runtime.get_progress`."""

    task_id: int
    name: str
    error: str
    message: str
    """The same as ``error``, as dftracer-utils names it."""


class RuntimeProgress(TypedDict):
    """What :meth:`Runtime.get_progress` returns."""

    total: int
    completed: int
    running: int
    queued: int
    failed: int
    cancelled: int
    workers: list[WorkerProgress]
    tasks: list[TaskProgress]
    errors: list[TaskFailure]
