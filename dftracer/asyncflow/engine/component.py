"""The future that calling a task or block returns.

It is a little longer than most modules: all the states of that future are to be read together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dftracer.asyncflow.data.files import File, names_of

if TYPE_CHECKING:
    from dftracer.asyncflow.backends.base import RemoteValue
    from dftracer.asyncflow.engine.decorators import Template
    from dftracer.asyncflow.engine.retries import Attempts
    from dftracer.asyncflow.engine.scheduler import Scheduler
    from dftracer.asyncflow.observe.counts import Tally

T = TypeVar("T")

EMPTY = Context()
"""Stands for a context of a component's own, where that would be empty. Nothing runs in it."""


class Component(asyncio.Future[T], Generic[T]):
    """One call of a task or block: a future of its result, and a node of the workflow's graph.

    Attributes
    ----------
    task, block : dict
        The description of the call; a task has the one attribute, a block the other.
    """

    __slots__ = (
        "_args",
        "_context",
        "_depended_on",
        "_dependencies",
        "_description",
        "_engine",
        "_is_call",
        "_is_node",
        "_kwargs",
        "_launched_at",
        "_number",
        "_options",
        "_stage",
        "_tally",
        "_template",
    )

    kind = "task"
    """The first part of its identifier."""

    # What most components never need, and only those that do hold for themselves.
    _owner = 0
    """The number of the component in whose body this one was called; 0 if in none."""
    _workflow_id: str | None = None
    _sources: Sequence[int] = ()
    """The numbers of those it was given futures of, if it is among the first of its engine."""
    _files: Collection[File] = ()
    """What its arguments declare that it reads and writes."""
    _producers: Sequence[dict[str, Any]] = ()
    """The descriptions of its dependencies, from their end until its files are linked."""
    _may_have_failed = False
    """Whether the graph does not know of each dependency that it has ended well."""
    _root = ""
    """The label of the component or future whose cancellation was the reason for this one's."""
    _attempts: Attempts | None = None
    """What is kept of its attempts, if its decorator allows several or limits their time."""
    _body_released = False
    """Whether its body waits for the end of the engine, which therefore does not wait for it."""
    _remote: RemoteValue | None = None
    """Its result, as long as that is also, or only, where its backend has made it."""

    # What `new_component` gives each.
    _engine: Scheduler
    _number: int
    _template: Template
    _args: tuple[Any, ...]
    _kwargs: dict[str, Any] | None
    _options: Mapping[str, Any]
    _context: Context | None
    """A copy of the one it was called in, or ``EMPTY``, until a backend has it or it ends."""
    _dependencies: Sequence[asyncio.Future[Any]]
    _depended_on: Sequence[Any]
    """Of its dependencies that are components, in turns the template and the number, once it does
    not hold them any more."""
    _is_node: bool
    """Whether the graph knows it."""
    _is_call: bool
    """Whether its backend was given it as a plain call."""
    _description: dict[str, Any] | None
    _stage: str
    _tally: Tally
    _launched_at: float
    """When, in seconds of the monotonic clock, its last attempt was launched; 0 if none was."""

    # As a future it is given a stand-in for its loop. One in Python, which nest_asyncio puts in the
    # place of those in C, sets and reads this attribute, at first when it has no engine yet. From
    # CPython 3.15 on it looks, before it sets it, that it is not set.
    _has_loop = False

    @property
    def _loop(self) -> Any:
        if hasattr(self, "_engine"):
            return self._engine.loop
        return asyncio.get_running_loop() if self._has_loop else None

    @_loop.setter
    def _loop(self, loop: object) -> None:
        self._has_loop = True

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop of its engine."""
        return self._engine.loop

    @property
    def id(self) -> str:
        """Its number within the engine, for example ``"000042"``."""
        return f"{self._number:06d}"

    @property
    def uid(self) -> str:
        """Its identifier within the engine, for example ``"task.000042"``; with the engine's name
        before it on RHAPSODY's Dask backend, which tells engines apart by that."""
        return self._template.uid_of(self._number)

    @property
    def name(self) -> str:
        """The name of the function that was called."""
        return self._template.name

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

    def set_result(self, result: T) -> None:
        """End the call with ``result``, whatever its body does; for a service that is ready.

        Those that depend on it go on. It may be called in any thread. A call that has ended, or
        waits for others, raises :class:`asyncio.InvalidStateError`.
        """
        self._end_by_hand(result, None)

    def set_exception(self, exception: BaseException | type[BaseException]) -> None:
        """End the call with an error, as :meth:`set_result` does with a result."""
        self._end_by_hand(None, exception() if isinstance(exception, type) else exception)

    def _end_by_hand(self, result: Any, error: BaseException | None) -> None:
        engine = self._engine
        if self.done():
            raise asyncio.InvalidStateError(f"{self!r} has ended already")
        if engine._is_in_other_thread():
            engine.loop.call_soon_threadsafe(engine._end_by_hand, self, result, error)
        else:
            engine._end_by_hand(self, result, error)

    def _describe(self) -> dict[str, Any]:
        """Return the description that a backend gets, made when it is first asked for."""
        if self._description is None:
            template = self._template
            self._description = {
                "uid": self.uid,
                "name": template.name,
                "function": template.function if template.kind in ("function", "block") else None,
                "executable": None,
                "prompt": None,
                "args": self._args,
                "kwargs": self._own_kwargs(),
                "task_backend_specific_kwargs": dict(self._options),
                "capture_stdio": template.capture_stdio,
                "is_service": template.service,
                "target_backend": template.backend_name,
                "workflow_id": self._workflow_id,
                "metadata": {
                    "dependencies": [
                        {"uid": uid, "name": name} for uid, name in self._names_of_dependencies()
                    ],
                    **names_of(self._files),
                },
                "context": self._own_context(),
                "engine": self._engine.uid,
            }
            if template.interrupt:
                self._description["interrupt"] = True
        return self._description

    def _own_kwargs(self) -> dict[str, Any]:
        """Return its keyword arguments as a dict that nothing else has."""
        if self._kwargs is None:
            self._kwargs = {}
        return self._kwargs

    def _own_context(self) -> Context | None:
        """Return its context as one that nothing else has."""
        if self._context is EMPTY:
            self._context = Context()
        return self._context

    @property
    def _key(self) -> Any:
        """What its backend knows it by."""
        return self if self._is_call else self._describe()["uid"]

    def _set_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> None:
        self._args, self._kwargs = args, kwargs
        if self._description is not None:
            self._description.update(args=args, kwargs=self._own_kwargs())

    def _release_arguments(self, *, is_description_shared: bool) -> None:
        """Let go of what an ended call was given, so that its future keeps the result alone.

        A backend that may still run the call has the same description: then the future gets
        another, and the backend's stays as it is.
        """
        if self._files:
            self._describe()  # with their names
            self._files = ()
        if self._producers:
            self._producers = ()
        self._args, self._kwargs = (), None
        if self._description is not None:
            if is_description_shared:
                self._description = dict(self._description)
            self._description.update(args=(), kwargs={}, context=None)

    def _names_of_dependencies(self) -> Sequence[tuple[str, str]]:
        calls = iter(self._depended_on or self._calls_depended_on())
        return [
            (template.uid_of(number), template.name)
            for template, number in zip(calls, calls, strict=True)
        ]

    def _calls_depended_on(self) -> list[Any]:
        calls: list[Any] = []
        for future in self._dependencies:
            if isinstance(future, Component):
                calls += (future._template, future._number)
        return calls

    def _release_dependencies(self) -> None:
        """Let go of the futures it depends on, and keep their names."""
        self._depended_on = self._calls_depended_on()
        self._dependencies = ()

    def __repr__(self) -> str:
        return f"<{self.uid} '{self.name}' {self.state}>"


class Task(Component[T]):
    """One call of a function, executable or prompt task."""

    __slots__ = ()

    @property
    def task(self) -> dict[str, Any]:
        """The description that the backend was given or will be, with what it has told."""
        description = self._describe()
        if self._is_call and self.state == "DONE":
            description.update(self._template.backend.record_of_call(self.result()))
        return description


class RemoteTask(Task[T]):
    """A task that has ended well, and whose result is only where its backend has made it.

    For the engine it has ended. As a future it has not, until somebody asks: then the result is
    fetched, and when that is done it is a :class:`Task` again. Every way to wait for a future adds
    a callback to it; who looks again and again calls :meth:`done`.
    """

    __slots__ = ()

    _fetching: asyncio.Future[T] | None = None

    @property
    def state(self) -> str:
        return "DONE"

    def add_done_callback(
        self, fn: Callable[[Any], object], /, *, context: Context | None = None
    ) -> None:
        super().add_done_callback(fn, context=context)
        self._fetch()

    def done(self) -> bool:
        self._fetch()
        return False

    def result(self) -> T:
        raise asyncio.InvalidStateError(f"the result of {self!r} is not here: await it first")

    def cancel(self, msg: Any | None = None) -> bool:
        """Give the result up. Those that depend on it go on."""
        fetching = self._fetching
        self._become_task()
        self._remote = None
        if fetching is not None:
            fetching.cancel()
        return asyncio.Future.cancel(self, msg)

    def _end_by_hand(self, result: Any, error: BaseException | None) -> None:
        raise asyncio.InvalidStateError(f"{self!r} has ended already")

    def _fetch(self) -> None:
        """Have the result fetched, if that has not been asked for."""
        if self._engine._is_in_other_thread():
            self._engine.loop.call_soon_threadsafe(self._fetch)
        elif self._fetching is None and type(self) is RemoteTask and self._remote is not None:
            self._fetching = asyncio.ensure_future(self._remote.fetch(), loop=self._engine.loop)
            self._fetching.add_done_callback(self._fetched)

    def _fetched(self, fetching: asyncio.Future[T]) -> None:
        error = None if fetching.cancelled() else fetching.exception()
        if type(self) is not RemoteTask:
            return  # cancelled meanwhile
        self._become_task()
        self._fetching = None
        if fetching.cancelled() or error is not None:
            self._remote = None
        if fetching.cancelled():
            asyncio.Future.cancel(self)
        elif error is not None:
            asyncio.Future.set_exception(self, error)
        else:
            asyncio.Future.set_result(self, fetching.result())

    def _become_task(self) -> None:
        self.__class__ = Task  # type: ignore[assignment]


class Block(Component[T]):
    """One call of a block."""

    __slots__ = ()

    kind = "block"

    @property
    def block(self) -> dict[str, Any]:
        """The description of the call."""
        return self._describe()


def new_component(
    engine: Scheduler,
    number: int,
    template: Template,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    options: Mapping[str, Any],
    context: Context,
) -> Component[Any]:
    """Make a component of a call.

    It is no ``__init__``, which takes longer to be called than all that this does.
    """
    loop: Any = engine._callback_loop
    component = template.component(loop=loop)
    component._engine = engine
    component._number = number
    component._template = template
    component._args = args
    component._kwargs = kwargs
    component._options = options
    component._context = context
    component._dependencies = component._depended_on = ()
    component._is_node = False
    component._is_call = False
    component._description = None
    component._stage = "PENDING"
    component._tally = template.tally
    component._launched_at = 0.0
    return component


def number_of(uid: Any) -> int:
    """Return the number of the component with that identifier; -1 for what is no identifier.

    An attempt after the first has its number behind that, as in ``task.000042-2``.
    """
    digits = uid.rpartition(".")[2].partition("-")[0] if isinstance(uid, str) else ""
    return int(digits) if digits.isdecimal() else -1
