"""The future that calling a task or block returns."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from dftracer.asyncflow.decorators import Template
    from dftracer.asyncflow.scheduler import Scheduler

T = TypeVar("T")


class Component(asyncio.Future[T], Generic[T]):
    """One call of a task or block: a future of its result, and a node of the workflow's graph.

    Attributes
    ----------
    task, block : dict
        The description of the call; a task has the one attribute, a block the other.
    """

    # What most components never need differs from these only where it must.
    _dependencies: Sequence[asyncio.Future[Any]] = ()
    _running = False
    _owner = 0
    """The number of the component in whose body this one was called; 0 if in none."""
    _root = ""
    """The label of the component or future whose cancellation was the reason for this one's."""
    _body_released = False
    """Whether its body waits for the end of the engine, which therefore does not wait for it."""

    def __init__(
        self, engine: Scheduler, number: int, description: dict[str, Any], template: Template
    ) -> None:
        super().__init__(loop=engine.loop)
        self._engine = engine
        self._number = number
        self._description = description
        self._template = template

    @property
    def id(self) -> str:
        """Its number within the engine, for example ``"000042"``."""
        return f"{self._number:06d}"

    @property
    def name(self) -> str:
        """The name of the function that was called."""
        name: str = self._description["name"]
        return name

    @property
    def state(self) -> str:
        """``PENDING``, ``RUNNING``, ``DONE``, ``FAILED`` or ``CANCELLED``."""
        if not self.done():
            return "RUNNING" if self._engine._is_running(self) else "PENDING"
        if self.cancelled():
            return "CANCELLED"
        # Not `exception()`: asking for the state must not pass for having seen the error.
        return "DONE" if self._exception is None else "FAILED"

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the call and all that depends on it; stop it where it runs, if that can be done.

        Returns
        -------
        bool
            False if it had ended already. Otherwise it is cancelled when this returns.
        """
        return self._engine._cancel(self, msg)

    def _settle_as_cancelled(self, msg: Any | None) -> None:
        super().cancel(msg)

    def __repr__(self) -> str:
        return f"<{self._description['uid']} '{self.name}' {self.state}>"


class Task(Component[T]):
    """One call of a function, executable or prompt task."""

    @property
    def task(self) -> dict[str, Any]:
        """The description that the backend was given or will be."""
        return self._description


class Block(Component[T]):
    """One call of a block."""

    @property
    def block(self) -> dict[str, Any]:
        """The description of the call."""
        return self._description
