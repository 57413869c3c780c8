"""What is sent to a worker for a task, and how the worker's runtime runs it."""

from __future__ import annotations

import functools
import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dftracer.asyncflow.backends.base import DescribedTask, State
from dftracer.asyncflow.backends.dask.arguments import Output, loads
from dftracer.asyncflow.backends.programs import end_of_program, start_program
from dftracer.asyncflow.errors import text_of_error
from dftracer.utils import Runtime, TaskHandle, TaskTimeoutError, payload

BeginEvent = tuple[str, float]
"""The topic of the event by which a worker makes known that a task has begun, and after how many
seconds it does."""


@dataclass(slots=True, repr=False)
class FunctionWork:
    """A call of a function."""

    key: str
    """Dask's, by which it knows the task."""
    name: str
    uid: str
    begin_event: BeginEvent
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

    def failure_of(self, error: BaseException) -> tuple[BaseException, Mapping[str, Any]]:
        """Return the task's error, given that of the handle, and facts for its description."""
        return error, {}

    def unpickle(self, values: Sequence[Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """Return function, positional and keyword arguments."""
        try:
            args, kwargs = loads(self.arguments, values)
            return _load_function(self.function), args, kwargs
        except BaseException as error:
            raise RuntimeError(
                f"{self!r}: function or arguments cannot be unpickled on a worker: "
                f"{text_of_error(error)}: is its environment the same?"
            ) from error

    def __repr__(self) -> str:
        return f"task '{self.name}' ({self.uid})"


@dataclass(slots=True, repr=False)
class ProgramWork:
    """A program."""

    key: str
    """Dask's, by which it knows the task."""
    name: str
    uid: str
    begin_event: BeginEvent
    packed: bytes
    """Its description, as far as that matters here, and the engine's directory."""

    timeout = None  # of which the runtime takes care
    _submission: DescribedTask = field(init=False)
    _work_dir: str = field(init=False, default="")

    def start(self, runtime: Runtime, _values: Sequence[Any]) -> TaskHandle[Any]:
        """Have it run by ``runtime``."""
        task, self._work_dir = pickle.loads(self.packed)
        self._submission = DescribedTask(task)
        return start_program(self._submission, runtime, None, self._work_dir, tell_begin=False)

    def result_of(self, value: Any) -> Any:
        """Return what it has written, or raise what says that it has not ended well."""
        state, value = end_of_program(self._submission, value, self._work_dir)
        if state is not State.DONE:
            raise value
        task = self._submission.task
        return Output(task["stdout"], task["stderr"])

    def failure_of(self, error: BaseException) -> tuple[BaseException, Mapping[str, Any]]:
        """Return the task's error, given that of the handle, and what the program has written."""
        _, error = end_of_program(self._submission, error, self._work_dir)
        if isinstance(error, TaskTimeoutError):
            error.result = None  # it cannot be pickled
        names = ("stdout", "stderr", "exit_code")
        task = self._submission.task
        return error, {name: task[name] for name in names if name in task}

    def __repr__(self) -> str:
        return f"task '{self.name}' ({self.uid})"


def _call(work: FunctionWork, values: Sequence[Any]) -> Any:
    function, args, kwargs = work.unpickle(values)
    result = function(*args, **kwargs)
    if inspect.iscoroutine(result):
        return _finish(work, result)  # which the runtime awaits
    return _check(work, result)


async def _call_async(work: FunctionWork, values: Sequence[Any]) -> Any:
    function, args, kwargs = work.unpickle(values)
    return _check(work, await function(*args, **kwargs))


async def _finish(work: FunctionWork, body: Any) -> Any:
    return _check(work, await body)


def _check(work: FunctionWork, result: Any) -> Any:
    """Return ``result`` if it can leave this process. Dask would try again and again."""
    error = payload.why_unsendable(result)
    if error is not None:
        raise pickle.PicklingError(
            f"{work!r}: its result of type {type(result).__name__} cannot be pickled, so it cannot "
            f"leave its worker: {text_of_error(error)}"
        ) from error
    return result


@functools.lru_cache(maxsize=256)
def _load_function(data: bytes) -> Any:
    return pickle.loads(data)
