"""What the tests of the engine share."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from dftracer.asyncflow import Component, WorkflowEngine

GUARD_S = 25
"""How long a test waits for what comes at once, unless the engine is broken."""

REQUEST: contextvars.ContextVar[str] = contextvars.ContextVar("REQUEST", default="unset")


class Gate(threading.Event):
    """Holds bodies back. Leaving its ``with`` block lets them go, whatever has failed inside."""

    def __enter__(self) -> "Gate":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.set()

    def hold(self, value: Any = None) -> Any:
        """Return ``value`` when the gate is open."""
        assert self.wait(GUARD_S)
        return value

    def hold_firmly(self, started: threading.Event) -> None:
        """Tell that a body runs and hold it, even if it is interrupted before it waits."""
        try:
            started.set()
            self.hold()
        finally:
            self.hold()


async def reached(event: threading.Event) -> None:
    """Wait for what happens in another thread."""
    assert await asyncio.to_thread(event.wait, GUARD_S)


class ForeignBackend:
    """A backend of somebody else: no base class, no more than a name and four methods.

    It runs nothing. The test says what becomes of the tasks.
    """

    def __init__(self, name: str = "foreign") -> None:
        self.name = name
        self.tasks: dict[str, dict[str, Any]] = {}
        self.cancelled: list[str] = []
        self.shutdowns = 0
        self._changed = asyncio.Event()

    def register_callback(self, report: Callable[..., None]) -> None:
        self.report = report

    async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
        self.tasks.update((task["uid"], task) for task in tasks)
        self._changed.set()

    async def cancel_task(self, uid: str) -> bool:
        self.cancelled.append(uid)
        return True

    async def shutdown(self) -> None:
        self.shutdowns += 1

    async def given(self, future: Component[Any]) -> dict[str, Any]:
        """Return the description of ``future``, when the engine has handed it over."""
        while future.uid not in self.tasks:
            self._changed.clear()
            await self._changed.wait()
        return self.tasks[future.uid]

    async def end(self, future: Component[Any], state: str = "DONE", **outcome: Any) -> None:
        """Report the end of ``future``."""
        task = await self.given(future)
        self.report({**task, **outcome}, state)


async def launched() -> None:
    """Wait until the engine has handed on what was called before this."""
    turn = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(turn.set_result, None)
    await turn


def add(a: Any, b: Any) -> Any:
    """Add two values."""
    return a + b


def identity(value: Any) -> Any:
    """Give back what was given."""
    return value


async def async_identity(value: Any) -> Any:
    """Give back what was given, after a turn of the event loop."""
    await asyncio.sleep(0)
    return value


def assert_nothing_kept(flow: WorkflowEngine) -> None:
    """See that an engine whose components have all ended knows none of them."""
    scheduler, state = flow._scheduler, flow._scheduler.state
    assert not state.unfinished
    assert not scheduler.services
    assert not state.foreign
    assert not scheduler._ready
    assert not state.members
    assert not scheduler.bodies
    assert len(state.graph) == 0
