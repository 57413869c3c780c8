"""What an execution backend is, in words and in types.

A backend is given tasks that are ready to run and tells what became of them. It knows nothing of
dependencies. RHAPSODY's backends keep the same contract.

A *task* is a dict. The engine fills in:

``uid``, ``name``
    Its identifier within the engine, for example ``task.000042``, and its function's name.
``function``, ``args``, ``kwargs``
    What to call, for a function task: a plain or a coroutine function, and values without futures.
    ``function`` is ``None`` for the other kinds.
``executable``, ``arguments``
    What to run, for an executable task: the program and its words, without any shell.
    ``executable`` is ``None`` for the other kinds.
``prompt``
    What to ask, for a prompt task; ``None`` for the other kinds.
``task_backend_specific_kwargs``
    The call's ``task_description``: what the user wants to tell the backend. Ours know ``cwd``,
    ``env``, ``stdin`` and ``timeout`` (seconds).
``capture_stdio``
    Whether a program's output goes to the files ``<_work_dir>/<uid>.stdout`` and ``.stderr``, whose
    paths are then its ``stdout`` and ``stderr``.
``is_service``, ``target_backend``, ``workflow_id``, ``metadata``
    Whether it is a service, the name of the backend if the decorator gave one, the workflow it is
    part of, and the names of what it depends on.
``context``
    What its function runs in, if the backend can do that: a :class:`contextvars.Context` that
    nothing else runs in, copied at the call.
``attempt``
    The number of the attempt, from 1, if the decorator allows several or limits their time. Each
    attempt is another task, with a ``uid`` of its own.
``interrupt``
    True, if the decorator says so: when the task is cancelled or runs out of time, an exception is
    to be thrown into the thread of a plain body, if the backend can do that. Otherwise left out.
``engine``
    The engine's name. Identifiers repeat between engines.

The backend adds the outcome, then calls the callback with the task and a state, once per task:

``DONE``
    ``return_value`` of a function; ``stdout``, ``stderr`` (text) and ``exit_code`` of a program;
    ``stdout`` for a prompt. A ``return_value`` may be a :class:`RemoteValue`.
``FAILED``
    ``exception``, and for a program also ``stdout``, ``stderr`` and ``exit_code``.
``CANCELED``
    Nothing.

It may call it with ``RUNNING`` before, and does so for each task that begins if it has an attribute
``report_running`` that is true. The task's ``started_at``, in seconds since the epoch, tells then
since when it runs, if that is not now. The callback may be called in any thread, best in the event
loop's, and ignores what it is told of a task that has ended.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

Task = dict[str, Any]
Callback = Callable[[Task, str], None]

Report = Callable[[Sequence[tuple[Any, str, Any]]], bool]
"""Takes what has become of plain calls; true if more may come soon, and nobody else is waiting."""


class TaskStates:
    """The names of the states that a backend reports."""

    DONE = "DONE"
    RUNNING = "RUNNING"
    CANCELED = "CANCELED"
    FAILED = "FAILED"

    terminal_states = frozenset({DONE, CANCELED, FAILED})
    all_states = terminal_states | {RUNNING}


class RemoteValue:
    """A result that its backend has left where it was made.

    The engine passes it on as it is to function tasks that can have it so. For everybody else it
    fetches the value, when that is first asked for.
    """

    __slots__ = ()

    def is_on(self, backend: Any) -> bool:
        """Tell whether tasks on ``backend`` take this among their arguments, for the value."""
        raise NotImplementedError

    def fetch(self) -> Awaitable[Any]:
        """Bring the value here, or raise an ``Exception`` that says why that cannot be done.

        Called in the engine's event loop, once.
        """
        raise NotImplementedError


class ExecutionBackend(ABC):
    """The parts that all of our backends share."""

    supports_implicit_data_linking = False
    supports_explicit_data_linking = False
    report_running = False
    """Whether somebody wants to know when tasks begin, at some cost. Set by the engine."""
    keeps_timeouts = False
    """Whether it ends a task itself that runs for longer than the ``timeout`` in its
    ``task_backend_specific_kwargs``, counted from when it begins to run. For other backends the
    engine does, counted from when it hands the task over."""

    def __init__(self, name: str = "default") -> None:
        self.name = name
        self.is_attached = False
        self.attached_to: list[str] = []
        self._callback_func: Callback = _ignore
        self._work_dir = os.getcwd()

    @abstractmethod
    async def submit_tasks(self, tasks: list[Task]) -> None:
        """Begin to run ``tasks``; return before they end."""

    @abstractmethod
    async def cancel_task(self, uid: str) -> bool:
        """Stop a task; true if it will not, or may not, come to its end by itself."""

    @abstractmethod
    async def shutdown(self) -> None:
        """Stop what runs and release everything."""

    @abstractmethod
    def state(self) -> str:
        """Return ``IDLE``, ``INITIALIZED`` or ``SHUTDOWN``."""

    def register_callback(self, func: Callback) -> None:
        """Name the one who is told of every task's states."""
        self._callback_func = func

    def get_task_states_map(self) -> TaskStates:
        """Return the names of the states."""
        return TaskStates()

    def record_of_call(self, value: Any) -> Task:
        """Return what it would have added to a task for a call that has ended well."""
        return {"return_value": value}

    def is_running(self, uid: Any) -> bool:
        """Tell whether a task has begun, if this backend reports no ``RUNNING`` state."""
        return False


def _ignore(_task: Task, _state: str) -> None:
    """Stand in for a callback until one is registered."""
