"""The future that calling a task or block returns, which is also what its backend is given.

It is a little longer than most modules: all that one future may be is to be read together.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import Context
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dftracer.asyncflow.backends.base import EMPTY, State
from dftracer.asyncflow.data.files import File, names_of
from dftracer.asyncflow.engine.definition import Definition
from dftracer.asyncflow.observe.counts import Tally

if TYPE_CHECKING:
    from dftracer.asyncflow.backends.base import RemoteValue
    from dftracer.asyncflow.engine.interfaces import Owner, Place, TaskRecord

T = TypeVar("T")

_NO_FILES: dict[str, list[str]] = names_of(())

finish = asyncio.Future[Any].set_result
fail = asyncio.Future[Any].set_exception
drop = asyncio.Future[Any].cancel
"""The methods of the base class: a component's own are for its users."""
_has_result: Callable[[asyncio.Future[Any]], bool] = asyncio.Future[Any].done


def returning(value: Any) -> Callable[[], Any]:
    """Return a function without a Python frame that returns ``value``."""
    return functools.partial(itemgetter(0), (value,))


class Component(asyncio.Future[T], Generic[T]):
    """One call of a task or block: a future of its result, and a node of the workflow's graph.

    Attributes
    ----------
    task, block : dict
        The description of the call; a task has the one attribute, a block the other.
    """

    __slots__ = (
        "args",
        "context",
        "definition",
        "depended_on",
        "dependencies",
        "description",
        "engine",
        "files",
        "function",
        "has_waited",
        "interrupt",
        "is_node",
        "is_running",
        "kwargs",
        "launched_at",
        "name",
        "number",
        "options",
        "place",
        "tally",
    )

    kind = "task"
    """The first part of its identifier."""

    # What most components never need, and only those that do hold for themselves.
    owner = 0
    """The number of the component in whose body this one was called; 0 if in none."""
    workflow_id: str | None = None
    sources: Sequence[int] = ()
    """The numbers of those it was given futures of, if it is among the first of its engine."""
    producers: Sequence[dict[str, Any]] = ()
    """The descriptions of its dependencies, from their end until its files are linked."""
    may_have_failed = False
    """Whether the graph does not know of each dependency that it has ended well."""
    root = ""
    """The label of the component or future whose cancellation was the reason for this one's."""
    attempts: Any = None
    """What is kept of its attempts, if its decorator allows several or limits their time."""
    attempt = 0
    """The number of the last attempt, from 1, if it has attempts."""
    submission: Any = None
    """What its backend was given instead of this, if it has attempts: the last one."""
    body_released = False
    """Whether its body waits for the end of the engine, which therefore does not wait for it."""
    remote: RemoteValue | None = None
    """Its result, as long as that is also, or only, where its backend has made it."""
    record: TaskRecord | None = None
    """What observers get of it, if there are any."""

    # What the scheduler gives each.
    engine: Owner
    number: int
    definition: Definition
    args: tuple[Any, ...]
    kwargs: dict[str, Any] | None
    options: Mapping[str, Any]
    files: Collection[File]
    """What its arguments declare that it reads and writes."""
    name: str
    """The name of the function that was called."""
    function: Callable[..., Any] | None
    """What its backend calls."""
    interrupt: bool
    """Whether a plain body that is cancelled gets an exception."""
    context: Context | None
    """A copy of the one it was called in, or ``EMPTY``, until it is launched or ends."""
    dependencies: Sequence[asyncio.Future[Any]]
    depended_on: Sequence[Any]
    """Of its dependencies that are components, in turns the definition and the number, once it does
    not hold them any more."""
    is_node: bool
    """Whether the graph knows it."""
    has_waited: bool
    """Whether it was called with something that had not ended."""
    description: dict[str, Any] | None
    place: Place | None
    """Where something runs of it, or is about to."""
    is_running: bool
    """Whether it is known that its body runs."""
    tally: Tally
    launched_at: float
    """When, in seconds of the monotonic clock, its last attempt was launched; 0 if none was."""

    # As a submission.
    capture_stdio: Any = property(attrgetter("definition.capture_stdio"))
    command: Sequence[str] | None = None
    prompt: str | None = None
    trace_note: tuple[int, str] | None = None

    get_loop: Any = property(attrgetter("engine.get_loop"))
    """Returns the event loop of its engine. asyncio asks each future that is awaited."""

    # As a future it is given a stand-in for its loop. One in Python, which nest_asyncio puts in the
    # place of those in C, sets and reads this attribute, at first when it has no engine yet. From
    # CPython 3.15 on it looks, before it sets it, that it is not set.
    _has_loop = False

    @property
    def _loop(self) -> Any:
        if hasattr(self, "engine"):
            return self.engine.loop
        return asyncio.get_running_loop() if self._has_loop else None

    @_loop.setter
    def _loop(self, loop: object) -> None:
        self._has_loop = True

    @property
    def id(self) -> str:
        """Its number within the engine, for example ``"000042"``."""
        return f"{self.number:06d}"

    @property
    def uid(self) -> str:
        """Its identifier within the engine, for example ``"task.000042"``; with the engine's name
        before it on RHAPSODY's Dask backend, where engines share the names of tasks."""
        return f"{self.definition.uid_prefix}{self.kind}.{self.number:06d}"

    @property
    def key(self) -> str:
        """The identifier of its last attempt, by which a backend knows it."""
        return self.uid if self.attempt < 2 else f"{self.uid}-{self.attempt}"

    @property
    def state(self) -> State:
        """``PENDING``, ``RUNNING``, ``DONE``, ``FAILED`` or ``CANCELED``."""
        if not _has_result(self) and self.remote is None:
            return State.RUNNING if self.engine.is_running(self) else State.PENDING
        if self.cancelled():
            return State.CANCELED
        # Not `exception()`: asking for the state must not pass for having seen the error.
        return State.DONE if self._exception is None else State.FAILED

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the call and all that depends on it; stop it where it runs, if that can be done.

        Returns
        -------
        bool
            False if it had ended already. Otherwise it is cancelled when this returns.
        """
        return self.engine.cancel(self, msg)

    def original_cancel(self, msg: Any | None = None) -> bool:
        """Cancel the call, even where somebody has put another ``cancel`` on this future."""
        return type(self).cancel(self, msg)

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
        engine = self.engine
        if _has_result(self) or self.remote is not None:
            raise asyncio.InvalidStateError(f"{self!r} has ended already")
        if engine.is_in_other_thread():
            engine.loop.call_soon_threadsafe(engine.end_by_hand, self, result, error)
        else:
            engine.end_by_hand(self, result, error)

    # --- the description ------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Return the description of the call, made when it is first asked for.

        For its keys see :class:`~dftracer.asyncflow.backends.base.TaskDescription`.
        """
        if self.description is None:
            definition = self.definition
            command = self.command
            self.description = {
                "uid": self.key,
                "name": definition.name,
                "function": definition.body if definition.kind == "block" else definition.function,
                "executable": command[0] if command else None,
                "prompt": self.prompt,
                "args": self.args,
                "kwargs": self.own_kwargs(),
                "task_backend_specific_kwargs": dict(self.options),
                "capture_stdio": definition.capture_stdio,
                "is_service": definition.service,
                "target_backend": definition.backend_name,
                "workflow_id": self.workflow_id,
                "metadata": {
                    "dependencies": [
                        {"uid": uid, "name": name} for uid, name in self.names_of_dependencies()
                    ],
                    **(names_of(self.files) if self.files else _NO_FILES),
                },
                "context": self.own_context(),
                "engine": self.engine.uid,
            }
            if command:
                self.description["arguments"] = list(command[1:])
            if self.attempt:
                self.description["attempt"] = self.attempt
            if definition.interrupt:
                self.description["interrupt"] = True
        return self.description

    def describe(self, **facts: Any) -> None:
        """Add facts to the description."""
        self.as_dict().update(facts)

    def own_kwargs(self) -> dict[str, Any]:
        """Return its keyword arguments as a dict that nothing else has."""
        if self.kwargs is None:
            self.kwargs = {}
        return self.kwargs

    def own_context(self) -> Context | None:
        """Return its context as one that nothing else has."""
        if self.context is EMPTY:
            self.context = Context()
        return self.context

    def set_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> None:
        """Put other arguments in the place of its own."""
        self.args, self.kwargs = args, kwargs
        if self.description is not None:
            self.description.update(args=args, kwargs=self.own_kwargs())

    def set_work(self, command: Sequence[str] | None, prompt: str | None) -> None:
        """Say what the task runs or asks, once its body has said so."""
        self.command, self.prompt = command, prompt
        if self.options and "shell" in self.options:  # what is run is run directly
            self.options = {key: self.options[key] for key in self.options if key != "shell"}
        if self.description is not None:
            self.description["task_backend_specific_kwargs"].pop("shell", None)
            self.description["prompt"] = prompt
            if command is not None:
                self.description["executable"] = command[0]
                self.description["arguments"] = list(command[1:])

    def release_arguments(self, *, is_description_shared: bool) -> None:
        """Keep none of what an ended call was given, so that its future keeps the result alone.

        A backend that may still run the call has the same description: then the future gets
        another, and the backend's stays as it is.
        """
        if self.files:
            self.as_dict()  # with their names
            self.files = ()
        if self.producers:
            self.producers = ()
        self.args, self.kwargs = (), None
        if self.description is not None:
            if is_description_shared:
                self.description = dict(self.description)
            self.description.update(args=(), kwargs={}, context=None)

    def names_of_dependencies(self) -> Sequence[tuple[str, str]]:
        """Return the identifiers and names of the components it depends on, or has depended on."""
        if not self.depended_on and not self.dependencies:
            return ()
        calls = iter(self.depended_on or calls_among(self.dependencies))
        return [
            (definition.uid_of(number), definition.name)
            for definition, number in zip(calls, calls, strict=True)
        ]

    def __repr__(self) -> str:
        return f"<{self.uid} '{self.name}' {self.state}>"


def calls_among(futures: Sequence[asyncio.Future[Any]]) -> list[Any]:
    """Return of those futures that are components, in turns, the definition and the number."""
    calls: list[Any] = []
    for future in futures:
        if isinstance(future, Component):
            calls += (future.definition, future.number)
    return calls


class Task(Component[T]):
    """One call of a function, executable or prompt task."""

    __slots__ = ()

    @property
    def task(self) -> dict[str, Any]:
        """The description that the backend was given or will be, with what it has added."""
        description = self.as_dict()
        if (
            self.definition.kind == "function"
            and "return_value" not in description
            and _has_result(self)
            and self.state is State.DONE
        ):
            description.update(self.definition.target.describe_result(self.result()))
        return description


class RemoteTask(Task[T]):
    """A task of a backend that may leave results where it has made them.

    For the engine it has ended when its result is there. As a future it has not, until somebody
    asks: then the result is fetched. Every way to wait for a future adds a callback to it; who
    polls calls :meth:`done`.
    """

    __slots__ = ()

    _fetching: asyncio.Future[T] | None = None
    is_left = False
    """Whether the result is only where the backend has made it."""

    def leave(self, remote: RemoteValue) -> None:
        """End the task for the engine, with its result elsewhere."""
        self.remote = remote
        self.is_left = True
        if self._callbacks:  # somebody has asked
            self._fetch()

    def add_done_callback(
        self, fn: Callable[[Any], object], /, *, context: Context | None = None
    ) -> None:
        super().add_done_callback(fn, context=context)
        if self.is_left:
            self._fetch()

    def done(self) -> bool:
        if self.is_left:
            self._fetch()
            return False
        return super().done()

    def result(self) -> T:
        if self.is_left:
            raise asyncio.InvalidStateError(f"the result of {self!r} is not here: await it first")
        return super().result()

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the call; or give up its result, and those that depend on it go on."""
        if not self.is_left:
            return super().cancel(msg)
        fetching, self._fetching = self._fetching, None
        self.is_left, self.remote = False, None
        if fetching is not None:
            fetching.cancel()
        return drop(self, msg)

    def _fetch(self) -> None:
        """Have the result fetched, if that has not been asked for."""
        if self.engine.is_in_other_thread():
            self.engine.loop.call_soon_threadsafe(self._fetch)
        elif self._fetching is None and self.is_left and self.remote is not None:
            self._fetching = asyncio.ensure_future(self.remote.fetch(), loop=self.engine.loop)
            self._fetching.add_done_callback(self._fetched)

    def _fetched(self, fetching: asyncio.Future[T]) -> None:
        error = None if fetching.cancelled() else fetching.exception()
        if not self.is_left:
            return  # cancelled meanwhile
        self.is_left = False
        self._fetching = None
        if fetching.cancelled() or error is not None:
            self.remote = None
        if fetching.cancelled():
            drop(self)
        elif error is not None:
            fail(self, error)
        else:
            finish(self, fetching.result())


class Block(Component[T]):
    """One call of a block."""

    __slots__ = ()

    kind = "block"

    @property
    def block(self) -> dict[str, Any]:
        """The description of the call."""
        return self.as_dict()


def is_left(future: asyncio.Future[Any]) -> bool:
    """Tell whether a future's result is only where a backend has made it: for the engine the task
    has ended, and to ask the future for its state would have the result fetched."""
    return isinstance(future, RemoteTask) and future.is_left


def number_of(uid: Any) -> int:
    """Return the number of the component with that identifier; -1 for what is no identifier.

    An attempt after the first has its number behind that, as in ``task.000042-2``.
    """
    digits = uid.rpartition(".")[2].partition("-")[0] if isinstance(uid, str) else ""
    return int(digits) if digits.isdecimal() else -1
