"""The asyncio tasks that run in the event loop on behalf of an engine."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dftracer.asyncflow.engine.component import Component


class Bodies:
    """The parts of components that run in the event loop, by their numbers, and work beside them.

    Parameters
    ----------
    loop:
        Where they run.
    on_end:
        Called with the number of a component whose body has ended, or is not waited for any more.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_end: Callable[[int], object]) -> None:
        self._loop = loop
        self._on_end = on_end
        self._bodies: dict[int, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._quiet: asyncio.Future[None] | None = None

    def __contains__(self, number: int) -> bool:
        return number in self._bodies

    def __len__(self) -> int:
        return len(self._bodies)

    def __iter__(self) -> Iterator[int]:
        return iter(self._bodies)

    def get(self, number: int) -> asyncio.Task[None] | None:
        """Return the body of a component, if it runs here."""
        return self._bodies.get(number)

    def start(
        self, component: Component[Any], body: Coroutine[Any, Any, None]
    ) -> asyncio.Task[None]:
        """Run the body of ``component``."""
        context, number = component._own_context(), component._number
        assert context is not None, "a component that has not ended has its context"
        # In a copy of the call's context, which holds for any task factory and Python version.
        create = functools.partial(self._loop.create_task, body, name=component.uid)
        task = context.run(create)
        if not task.done() and not component._body_released:
            self._bodies[number] = task
            task.add_done_callback(functools.partial(self._ended, number))
        return task

    def cancel(self, number: int, msg: Any | None = None) -> None:
        """Cancel the body of a component, if it runs and is not the one that calls this."""
        body = self._bodies.get(number)
        if body is not None and body is not asyncio.current_task(self._loop):
            body.cancel(msg)

    def run_in_background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run what is part of no component; the engine does not end before it."""
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background_ended)
        return task

    def release(self, owner: Component[Any] | None) -> None:
        """Do not wait for the body that calls this, nor for that of ``owner``."""
        current = asyncio.current_task(self._loop)
        if owner is not None:
            owner._body_released = True
            self._ended(owner._number)
        for number in [n for n, body in self._bodies.items() if body is current]:
            self._ended(number)

    async def wait_until_quiet(self) -> None:
        """Wait until nothing runs here any more."""
        while self._bodies or self._background:
            self._quiet = self._loop.create_future()
            await self._quiet

    def _ended(self, number: int, _task: asyncio.Task[None] | None = None) -> None:
        self._bodies.pop(number, None)
        self._on_end(number)
        self._tell_if_quiet()

    def _background_ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        self._tell_if_quiet()

    def _tell_if_quiet(self) -> None:
        quiet = self._quiet
        if quiet is not None and not quiet.done() and not self._bodies and not self._background:
            quiet.set_result(None)
