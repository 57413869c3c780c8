"""The engine as its users see it: how it begins and ends, and what it decorates."""

from __future__ import annotations

import asyncio
import os
import uuid
from typing import TYPE_CHECKING

from dftracer.asyncflow.backends.base import ExecutionBackend
from dftracer.asyncflow.backends.noop import NoopExecutionBackend
from dftracer.asyncflow.backends.runtime import RuntimeExecutionBackend
from dftracer.asyncflow.decorators import (
    BlockDecorator,
    ExecutableDecorator,
    FunctionDecorator,
    make_decorator,
)
from dftracer.asyncflow.scheduler import Scheduler

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


class WorkflowEngine(Scheduler):
    """Runs workflows of decorated functions in the current event loop.

    Make one with ``await WorkflowEngine.create()`` and end it with :meth:`shutdown`, or use it as
    ``async with await WorkflowEngine.create() as flow:``.

    Parameters
    ----------
    backend:
        An execution backend that has been awaited. Only for :meth:`create`: ``None``.
    dry_run:
        Run nothing: every task ends at once with a dummy result.
    uid:
        The name of the engine; ``asyncflow.session.`` and 8 random hex digits by default.
    work_dir:
        The directory below which outputs go; the current one by default.

    Raises
    ------
    RuntimeError
        If no event loop runs, or the backend serves an engine that is not shut down.
    TypeError
        If ``backend`` is no execution backend.
    """

    function_task: FunctionDecorator
    """Decorates a function, plain or async, that runs on a worker; with or without ``()``."""
    executable_task: ExecutableDecorator
    """Decorates a function that returns a command; the result is what the program writes."""
    block: BlockDecorator
    """Decorates an async function that runs in the event loop and calls tasks and blocks."""

    def __init__(
        self,
        backend: ExecutionBackend | None = None,
        dry_run: bool = False,
        uid: str | None = None,
        work_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        loop = _running_loop()
        if not isinstance(backend, ExecutionBackend):
            raise TypeError(
                f"backend must be an execution backend, not {type(backend).__name__}: use "
                "'await WorkflowEngine.create()', which makes the default one"
            )
        super().__init__(loop, backend, uid or f"asyncflow.session.{uuid.uuid4().hex[:8]}")
        self.dry_run = dry_run
        self.work_dir = os.fspath(work_dir) if work_dir is not None else os.getcwd()
        self._closing: asyncio.Task[None] | None = None

        self.function_task = make_decorator(self, "function")
        self.executable_task = make_decorator(self, "executable")
        self.block = make_decorator(self, "block")

        backend.attach(self.uid, self.task_callbacks)
        backend._work_dir = os.path.join(self.work_dir, self.uid)

    @classmethod
    async def create(
        cls,
        backend: ExecutionBackend | None = None,
        dry_run: bool = False,
        uid: str | None = None,
        work_dir: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Make an engine in the running event loop, and its default backend if none is given."""
        _running_loop()
        if backend is None:
            backend = NoopExecutionBackend() if dry_run else await RuntimeExecutionBackend()
        elif isinstance(backend, RuntimeExecutionBackend):
            await backend
        return cls(backend, dry_run, uid, work_dir)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.shutdown()

    async def shutdown(self, skip_execution_backend: bool = False) -> None:
        """Cancel all that is unfinished, wait until it is gone, and shut the backend down.

        Calling it again waits for the same and does nothing more: it is begun once, goes on when
        a caller is cancelled, and only if it has failed does the next call try again. Afterwards,
        calling a task or block raises :class:`EngineShutdownError`. The body of a block may call
        it too; nobody waits for that body then.

        Parameters
        ----------
        skip_execution_backend:
            Leave the backend running, for another engine to use, and do not wait for it.
        """
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError(
                f"engine '{self.uid}' belongs to another event loop: shut it down there"
            )
        if not self._is_closed:
            self._close()
        self._release_caller()
        closing = self._closing
        if closing is None or (closing.done() and (closing.cancelled() or closing.exception())):
            closing = self._closing = self.loop.create_task(self._end(skip_execution_backend))
        await asyncio.shield(closing)

    async def _end(self, skip_execution_backend: bool) -> None:
        await self._wait_until_quiet()
        if not skip_execution_backend:
            await self.backend.shutdown()
        self.backend.detach(self.uid)


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "a WorkflowEngine lives in an event loop and none is running: use "
            "'await WorkflowEngine.create()' inside an async function, for example under "
            "asyncio.run()"
        ) from None
