"""What the workers of a Dask cluster run for :mod:`dftracer.asyncflow.backends.dask.backend`.

Each task is one coroutine in the event loop of its Dask worker. It hands the body to the worker's
runtime and awaits the handle: it takes one of the slots (``nthreads``) by which Dask counts what a
worker does, and none of Dask's threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import pickle
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from distributed import Reschedule, WorkerPlugin, get_worker

from dftracer.asyncflow.backends.base import Task, TaskStates
from dftracer.asyncflow.backends.programs import record_failure, record_program, start_program
from dftracer.asyncflow.errors import text_of_error
from dftracer.utils import Runtime, TaskHandle, TaskTimeoutError, get_default_runtime, payload

if TYPE_CHECKING:
    from distributed import Worker

_KEPT_FRAMES = 25
"""How many of the first, and of the last, frames of a traceback are sent."""

Telling = tuple[str, float]
"""Under which topic it is told that a task has begun, and after how many seconds."""

values_here: ContextVar[Sequence[Any]] = ContextVar("dftracer.dask.values")
"""The results of other tasks that are among the arguments that are being unpickled."""


class Output(NamedTuple):
    """The result of a program, of which those that depend on it are given ``stdout``."""

    stdout: str
    stderr: str


class BodyCancelledError(Exception):
    """A body has ended with :class:`asyncio.CancelledError`, and nobody had asked for that."""


class Inputs(list[Any]):
    """The futures of Dask that are found among arguments while these are pickled."""

    def replace(self, part: Any) -> Any:
        """Let a future stand for its value; called with each object that is pickled."""
        raise NotImplementedError


def dumps(value: Any, inputs: Inputs | None = None) -> bytes:
    """Pickle ``value`` for another process, which does not know our ``__main__``."""
    replace = None if inputs is None else inputs.replace
    data = payload.dumps_by_reference(value, replace)
    if data is None:
        if inputs is not None:
            inputs.clear()
        data = payload.dumps(value, replace=replace)
    return data


def value_here(index: int) -> Any:
    """Stand, in pickled arguments, for the result of another task."""
    value = values_here.get()[index]
    return value.stdout if type(value) is Output else value


@dataclass(slots=True, repr=False)
class Call:
    """A function task."""

    key: str
    name: str
    uid: str
    telling: Telling
    function: bytes
    arguments: bytes
    is_async: bool
    timeout: float | None
    """Seconds."""
    interrupt: bool = False

    def start(self, runtime: Runtime, values: Sequence[Any]) -> TaskHandle[Any]:
        """Have it run by ``runtime``, with ``values`` in the place of other tasks' results."""
        body: Callable[..., Any] = _call_async if self.is_async else _call
        return runtime.submit(body, self, values, name=self.name, interrupt=self.interrupt)

    def result_of(self, value: Any) -> Any:
        """Return the task's result, given that of the handle."""
        return value

    def error_of(self, error: BaseException) -> BaseException:
        """Return the task's error, given that of the handle."""
        return error

    def unpickle(self, values: Sequence[Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """Return function, positional and keyword arguments."""
        token = values_here.set(values)
        try:
            args, kwargs = pickle.loads(self.arguments)
            return _load_function(self.function), args, kwargs
        except BaseException as error:
            raise RuntimeError(
                f"{self!r}: function or arguments cannot be unpickled on a worker: "
                f"{text_of_error(error)}: is its environment the same?"
            ) from error
        finally:
            values_here.reset(token)

    def __repr__(self) -> str:
        return f"task '{self.name}' ({self.uid})"


@dataclass(slots=True, repr=False)
class Program:
    """An executable task."""

    key: str
    name: str
    uid: str
    telling: Telling
    packed: bytes
    """Its description, as far as that matters here, and the engine's directory."""

    timeout = None  # of which the runtime takes care
    _task: Task = field(init=False, default_factory=dict)
    _work_dir: str = field(init=False, default="")

    def start(self, runtime: Runtime, _values: Sequence[Any]) -> TaskHandle[Any]:
        """Have it run by ``runtime``."""
        self._task, self._work_dir = pickle.loads(self.packed)
        return start_program(self._task, runtime, None, self._work_dir, tell_begin=False)

    def result_of(self, value: Any) -> Any:
        """Return what it has written, or raise what says that it has not ended well."""
        if record_program(self._task, value, self._work_dir) != TaskStates.DONE:
            raise self._task["exception"]
        return Output(self._task["stdout"], self._task["stderr"])

    def error_of(self, error: BaseException) -> BaseException:
        """Return the task's error, which knows what the program has written."""
        record_failure(self._task, error, self._work_dir)
        error = self._task["exception"]
        if isinstance(error, TaskTimeoutError):
            error.result = None  # it cannot be pickled
        names = ("stdout", "stderr", "exit_code")
        outcome = {name: self._task[name] for name in names if name in self._task}
        error._outcome = outcome  # type: ignore[attr-defined]
        return error

    def __repr__(self) -> str:
        return f"task '{self.name}' ({self.uid})"


_running: dict[str, TaskHandle[Any]] = {}
"""What this process runs, by its Dask key."""
_stopped: set[str] = set()
"""Those that Dask wants no more."""


class TaskStopper(WorkerPlugin):  # type: ignore[misc]
    """Stops what Dask only forgets: a task whose future was cancelled, or whose client is gone."""

    name = "dftracer-asyncflow-tasks"
    idempotent = True

    def transition(self, key: Any, start: str, finish: str, **_kwargs: Any) -> None:
        """Called by the worker whenever a task changes its state."""
        if finish == "released" and key in _running:
            _stopped.add(key)
            _running[key].cancel()


async def run(order: Call | Program, values: Sequence[Any] = ()) -> Any:
    """Run a task; ``values`` are the results of others that are among its arguments."""
    worker = get_worker()
    state = worker.state.tasks.get(order.key)
    if state is not None and state.state == "cancelled":
        raise Reschedule  # released before it could begin; Dask asks for it again if need be
    runtime = getattr(worker, "dftracer_utils_runtime", None) or get_default_runtime()
    since = time.time()
    handle = _running[order.key] = order.start(runtime, values)
    telling = _tell_begin(worker, order, handle, since)
    try:
        return order.result_of(await _wait(order, handle))
    except asyncio.CancelledError:
        if order.key in _stopped:
            raise Reschedule from None
        if handle.cancel_requested:
            raise  # the worker closes
        raise BodyCancelledError from None
    except BaseException as error:
        failure = _fit_to_send(order.error_of(handle.exception or error))
    finally:
        if telling is not None:
            telling.cancel()
        del _running[order.key]
        _stopped.discard(order.key)
    raise failure  # not where it would get a context, which may be what cannot be sent


def _tell_begin(
    worker: Worker, order: Call | Program, handle: TaskHandle[Any], since: float
) -> asyncio.TimerHandle | None:
    """Tell the engine that a task runs, at once or when it does so for some time."""
    topic, after_s = order.telling
    if not after_s:
        worker.log_event(topic, [order.key, order.uid, since])
        return None

    def tell_later(since: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(after_s, tell, since)

    def tell(since: float) -> None:
        if handle.state == "running":
            worker.log_event(topic, [order.key, order.uid, since])
        elif handle.state == "queued":  # behind a body that was cancelled and does not heed it
            tell_later(time.time())

    return tell_later(since)


async def _wait(order: Call | Program, handle: TaskHandle[Any]) -> Any:
    if order.timeout is None:
        return await handle
    ended = asyncio.ensure_future(handle)
    try:
        await asyncio.wait([ended], timeout=order.timeout)
    finally:
        if not ended.done():
            ended.cancel()  # and with it the task
    if ended.done():
        return ended.result()
    raise TaskTimeoutError(
        f"{order!r} has run out of time, which was {order.timeout:g} s: it was asked to stop"
    )


def _call(call: Call, values: Sequence[Any]) -> Any:
    function, args, kwargs = call.unpickle(values)
    result = function(*args, **kwargs)
    if inspect.iscoroutine(result):
        return _finish(call, result)  # which the runtime awaits
    return _check(call, result)


async def _call_async(call: Call, values: Sequence[Any]) -> Any:
    function, args, kwargs = call.unpickle(values)
    return _check(call, await function(*args, **kwargs))


async def _finish(call: Call, body: Any) -> Any:
    return _check(call, await body)


def _check(call: Call, result: Any) -> Any:
    """Return ``result`` if it can leave this process. Dask would try again and again."""
    error = payload.why_unsendable(result)
    if error is not None:
        raise pickle.PicklingError(
            f"{call!r}: its result of type {type(result).__name__} cannot be pickled, so it cannot "
            f"leave its worker: {text_of_error(error)}"
        ) from error
    return result


@functools.lru_cache(maxsize=256)
def _load_function(data: bytes) -> Any:
    return pickle.loads(data)


class SentError(Exception):
    """What leaves a worker in the place of an error, which Dask need not understand.

    Its client would know nothing of a task whose error cannot be read where it is.
    """

    def __init__(self, packed: bytes | None, summary: str, outcome: dict[str, Any]) -> None:
        super().__init__(packed, summary, outcome)

    def __str__(self) -> str:
        return str(self.args[1])

    __repr__ = __str__

    def open(self, label: str) -> BaseException:
        """Return the error, or what can be had of it."""
        packed, summary, outcome = self.args
        error = payload.read_error(label, packed, summary)
        if outcome:
            error._outcome = outcome  # type: ignore[attr-defined]
        return error


def _fit_to_send(error: BaseException) -> SentError:
    """Return what can be sent in the place of an error, and ends no event loop here."""
    error.__traceback__ = _shortened(error.__traceback__)
    packed = None
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        with contextlib.suppress(BaseException):
            str(error)  # which those ask for who report it
            packed = payload.pack_error(error, links=True)
    sent = SentError(packed, text_of_error(error), getattr(error, "_outcome", {}))
    return sent.with_traceback(error.__traceback__)


def _shortened(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without what is in the middle of a long one, as of a recursion.

    Dask cannot pickle a deep one, and its client then never learns that the task has failed.
    """
    entries = []
    while trace is not None:
        entries.append(trace)
        trace = trace.tb_next
    if len(entries) > 2 * _KEPT_FRAMES:
        entries = [*entries[:_KEPT_FRAMES], *entries[-_KEPT_FRAMES:]]
    kept = None
    for entry in reversed(entries):
        kept = TracebackType(kept, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return kept
