"""What parts of an engine ask of each other without knowing each other."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from dftracer.asyncflow.backends.base import State


class Place(Enum):
    """Where a component runs, or is about to."""

    LOOP = "the event loop of the engine"
    BACKEND = "its backend"


class TaskRecord(NamedTuple):
    """What observers get of a task or block: it stays as it was when the call was made."""

    number: int
    """Its number within the engine."""
    uid: str
    name: str
    kind: str
    """``function``, ``executable``, ``prompt`` or ``block``."""
    backend: str
    workflow_id: str | None
    owner: str | None
    """The identifier of the block in whose body it was called."""
    dependencies: tuple[str, ...]
    """The identifiers of the tasks of this engine that it depends on."""


class Observer:
    """What is called for each step of every task, in the event loop's thread.

    An observer overrides what it wants to know. It never raises, and changes nothing.
    """

    def created(self, task: TaskRecord) -> None:
        """A call was made."""

    def resolved(self, task: TaskRecord) -> None:
        """All that it depends on has ended well."""

    def submitted(self, task: TaskRecord, program: str | None) -> None:
        """It is handed to its backend; an executable task with the program it runs."""

    def started(self, task: TaskRecord, since: float | None) -> None:
        """It runs, since that time in seconds since the epoch, or now."""

    def retried(self, task: TaskRecord, attempt: int, error: BaseException) -> None:
        """The attempt of that number has failed, and there will be another."""

    def ended(
        self, task: TaskRecord, state: State, error: BaseException | None, is_traced: bool
    ) -> None:
        """It is ``DONE``, ``FAILED`` or ``CANCELED``; maybe its backend has written it already."""

    def scope(self, kind: str, name: str) -> AbstractContextManager[object]:
        """Return what is entered around the body of a block, or around a workflow."""
        return nullcontext()


class Unsearched:
    """What is not searched for what a body waits for: it knows all components of an engine."""


class Owner(Protocol):
    """What a component asks of the scheduler that it belongs to."""

    uid: str
    loop: asyncio.AbstractEventLoop
    get_loop: Any

    def cancel(self, component: Any, msg: Any | None, root: str = "") -> bool: ...
    def settle(self, component: Any, result: Any = None, *, error: Any = None) -> None: ...
    def end_by_hand(self, component: Any, result: Any, error: Any) -> None: ...
    def is_running(self, component: Any) -> bool: ...
    def is_in_other_thread(self) -> bool: ...
    def is_unfinished(self, component: Any) -> bool: ...
    def body_of(self, component: Any) -> asyncio.Task[None] | None: ...


class Keeper(Protocol):
    """What attempts and launches ask of the scheduler."""

    def enqueue(self, component: Any) -> None: ...
    def settle(self, component: Any, result: Any = None, *, error: Any = None) -> None: ...
    def fail(self, component: Any, error: Any) -> None: ...
    def stop_submission(self, target: Any, submission: Any) -> None: ...
    def cancel_members(self, component: Any, msg: str) -> None: ...
