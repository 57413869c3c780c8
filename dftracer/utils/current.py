"""Which task is running here."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any

from dftracer.utils._native import TaskHandle, running_task

# A coroutine worker runs many bodies by turns; the context of each knows whose it is.
coroutine_task: ContextVar[TaskHandle[Any] | None] = ContextVar("dftracer.task", default=None)


def current_task() -> TaskHandle[Any] | None:
    """Return the handle of the task whose body calls this, or ``None`` outside of tasks.

    A long body can check ``current_task().cancel_requested`` now and then, and return early.
    """
    return running_task() or coroutine_task.get()


def name_log_records() -> None:
    """Give every log record ``task_name`` and ``task_id``: of the task that logs, else ``None``."""
    make = logging.getLogRecordFactory()

    def make_named(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        task = current_task()
        record.task_name = task.name if task is not None else None
        record.task_id = task.task_id if task is not None else None
        return record

    logging.setLogRecordFactory(make_named)


name_log_records()
