"""What is handed to a backend, and what is reported of it: submissions, states, outcomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from enum import Enum
from typing import Any, Protocol, TypedDict


class State(str, Enum):
    """How far a task has come.

    Programs for radical.asyncflow compare the state of a future with ``"CANCELLED"``, its backends
    report ``"CANCELED"``. The member compares equal to both; in sets and as a key it is the second.
    """

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELED = "CANCELED"

    def __str__(self) -> str:
        return self.value

    def __repr__(self) -> str:
        return repr(self.value)

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True or (
            self is State.CANCELED and isinstance(other, str) and str(other) == "CANCELLED"
        )

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


class StateMapper:
    """The names of the states that a backend reports, as ``get_task_states_map()`` returns them.

    Every one is a member of :class:`State`, and so a text too: ``"DONE" in
    mapper.terminal_states``. Backends of others may have such an object with names of their own.
    """

    PENDING = State.PENDING
    RUNNING = State.RUNNING
    DONE = State.DONE
    FAILED = State.FAILED
    CANCELED = State.CANCELED

    terminal_states = frozenset({State.DONE, State.FAILED, State.CANCELED})
    """Those in which a task has ended."""


class TaskDescription(TypedDict, total=False):
    """A task as a dict, which the dictionary protocol and ``future.task`` give.

    The engine fills in the first part, the backend the second.
    """

    uid: str
    """Its identifier within the engine, for example ``task.000042``."""
    name: str
    """Its function's name."""
    function: Callable[..., Any] | None
    """What to call, plain or a coroutine function; ``None`` for the other kinds."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    """Values without futures."""
    executable: str | None
    """The program to run, without a shell; ``None`` for the other kinds."""
    arguments: list[str]
    prompt: str | None
    """What to ask; ``None`` for the other kinds."""
    task_backend_specific_kwargs: dict[str, Any]
    """The call's ``task_description``: what the user wants of the backend. Ours know ``cwd``,
    ``env``, ``stdin`` and ``timeout`` (seconds)."""
    capture_stdio: bool
    """Whether a program's output goes to the files ``<_work_dir>/<uid>.stdout`` and ``.stderr``,
    whose paths are then its ``stdout`` and ``stderr``."""
    is_service: bool
    target_backend: str | None
    """The name of the backend, if the decorator gave one."""
    workflow_id: str | None
    metadata: dict[str, Any]
    """The names of what it depends on, and of its files."""
    context: Context | None
    """What its function runs in, if the backend can do that; nothing else runs in it."""
    attempt: int
    """The number of the attempt, from 1, if the decorator allows several or limits their time. Each
    attempt is another task, with a ``uid`` of its own."""
    interrupt: bool
    """True, if an exception is to be thrown into the thread of a plain body when the task is
    cancelled or runs out of time, and the backend can do that."""
    engine: str
    """The engine's name. Identifiers repeat between engines."""

    return_value: Any
    """What a function has returned. It may be a :class:`RemoteValue`."""
    stdout: str
    stderr: str
    exit_code: int | None
    """Of a program; a prompt's answer is its ``stdout``."""
    exception: Any
    """Why it has failed."""
    started_at: float
    """Since when it runs, in seconds since the epoch, if that is not when this is reported."""


class Submission(Protocol):
    """What a backend is given: a task that is ready to run, or an attempt at one.

    Its attributes may not be changed, nor kept for longer than it runs. It is known by identity.
    """

    @property
    def uid(self) -> str:
        """Its identifier within the engine; another one for each attempt."""
        ...

    @property
    def name(self) -> str:
        """Its function's name, for messages."""
        ...

    @property
    def function(self) -> Callable[..., Any] | None:
        """What to call, plain or a coroutine function; ``None`` for programs and prompts."""

    @property
    def args(self) -> tuple[Any, ...]: ...
    @property
    def kwargs(self) -> dict[str, Any] | None:
        """Values without futures; ``None`` for no keywords."""

    @property
    def context(self) -> Context | None:
        """What the function runs in, if the backend can do that. Where it is the empty context
        :data:`EMPTY`, several share it: run in a new one."""

    @property
    def command(self) -> Sequence[str] | None:
        """The words of the program to run, without a shell; ``None`` for the other kinds."""

    @property
    def prompt(self) -> str | None:
        """What to ask; ``None`` for the other kinds."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The call's ``task_description``; with ``timeout`` (seconds) where the decorator has one
        and the backend keeps timeouts."""
        ...

    @property
    def interrupt(self) -> bool:
        """Whether a plain body that is cancelled gets an exception thrown into its thread."""
        ...

    @property
    def capture_stdio(self) -> bool:
        """Whether a program's output goes to files."""
        ...

    @property
    def trace_note(self) -> tuple[int, str] | None:
        """What a backend that writes the trace itself is to write of it besides; see
        :meth:`ExecutionBackend.trace_to`."""

    def as_dict(self) -> dict[str, Any]:
        """Return its :class:`TaskDescription`, always the same dict."""
        ...

    def describe(self, **facts: Any) -> None:
        """Add facts to its description."""


Outcome = tuple[Any, State, Any]
"""A submission, its state, and the value that goes with that."""

Report = Callable[[Sequence[Outcome]], bool]
"""Takes states of submissions, in the event loop's thread. True if nobody waits for any of them,
and more may come soon: then it is worth a moment to wait for that."""

Callback = Callable[[dict[str, Any], str], None]
"""Takes a state in the dictionary protocol."""

EMPTY = Context()
"""Stands for a context of a task's own, where that would be empty. Nothing runs in it."""


class DescribedTask:
    """A submission that is a dict of the dictionary protocol."""

    __slots__ = ("task",)

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task

    @property
    def uid(self) -> str:
        uid: str = self.task["uid"]
        return uid

    @property
    def name(self) -> str:
        return str(self.task.get("name") or self.task["uid"])

    @property
    def function(self) -> Callable[..., Any] | None:
        return self.task.get("function")

    @property
    def args(self) -> tuple[Any, ...]:
        return tuple(self.task.get("args") or ())

    @property
    def kwargs(self) -> dict[str, Any] | None:
        return self.task.get("kwargs")

    @property
    def context(self) -> Context | None:
        return self.task.get("context")

    @property
    def command(self) -> Sequence[str] | None:
        program = self.task.get("executable")
        return [program, *(self.task.get("arguments") or ())] if program else None

    @property
    def prompt(self) -> str | None:
        return self.task.get("prompt")

    @property
    def options(self) -> Mapping[str, Any]:
        return self.task.get("task_backend_specific_kwargs") or {}

    @property
    def interrupt(self) -> bool:
        return bool(self.task.get("interrupt"))

    @property
    def capture_stdio(self) -> bool:
        return bool(self.task.get("capture_stdio"))

    @property
    def trace_note(self) -> tuple[int, str] | None:
        return self.task.get("trace_note")

    def as_dict(self) -> dict[str, Any]:
        return self.task

    def describe(self, **facts: Any) -> None:
        self.task.update(facts)


def add_outcome(
    submission: Submission,
    state: State,
    value: Any,
    describe_result: Callable[[Any], dict[str, Any]],
) -> dict[str, Any]:
    """Return the description of a submission with what has become of it."""
    task = submission.as_dict()
    if state is State.RUNNING:
        if value is not None:
            task["started_at"] = value
    elif state is State.FAILED:
        task["exception"] = value
    elif state is State.DONE:
        if submission.function is None:
            task["stdout"] = value
        else:
            task.update(describe_result(value))
    return task
