"""How a task is packed for a worker of a Dask cluster, and how its result is spoken of here."""

from __future__ import annotations

import contextlib
import inspect
import pickle
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dask.base import tokenize
from distributed import Client, Future

from dftracer.asyncflow.backends.base import RemoteValue, Task
from dftracer.asyncflow.backends.dask import worker as dask_worker
from dftracer.asyncflow.backends.dask.options import Options, parse
from dftracer.asyncflow.backends.programs import PROGRAM_OPTIONS, argv_of, name_of, options_of
from dftracer.asyncflow.errors import text_of_error

if TYPE_CHECKING:
    from dftracer.asyncflow.backends.dask.backend import DaskExecutionBackend


class _Inputs(dask_worker.Inputs):
    """The results on the cluster that are among the arguments that are being pickled."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    def replace(self, part: Any) -> Any:
        if type(part) is DaskValue:
            future = part.future
        elif isinstance(part, Future):
            future = self._of_our_client(part)
        else:
            return NotImplemented
        self.append(future)
        return dask_worker.value_here, (len(self) - 1,)

    def _of_our_client(self, future: Future) -> Future:
        if future.client is self._client:
            return future
        addresses = [_scheduler_of(client) for client in (future.client, self._client)]
        if addresses[0] is None or addresses[0] != addresses[1]:
            raise ValueError(
                f"{future!r} is a Dask future of {addresses[0] or 'no client'}, and this backend's "
                f"scheduler is at {addresses[1]}: await it, and give its result"
            )
        return Future(future.key, self._client)


def _scheduler_of(client: Client | None) -> str | None:
    address: str | None = getattr(getattr(client, "scheduler", None), "address", None)
    return address


class DaskValue(RemoteValue):
    """The result of a task, on the worker that ran it. It stays there as long as this lives."""

    __slots__ = ("_backend", "_program", "future", "label")

    def __init__(self, backend: DaskExecutionBackend, future: Future, task: Task) -> None:
        self._backend = backend
        self.future = future
        self.label = label_of(task)
        # The task holds this, unless it is a program's.
        self._program = task if task.get("executable") else None

    def is_on(self, backend: Any) -> bool:
        return backend is self._backend and self._backend.has(self.future)

    def fetch(self) -> Awaitable[Any]:
        return self._backend.fetch(self)

    def taken(self, value: Any) -> Any:
        """Return the task's result, given what has been fetched."""
        if type(value) is not dask_worker.Output:
            return value
        if self._program is not None:
            self._program.update(stdout=value.stdout, stderr=value.stderr)
        return value.stdout

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("the result of a Dask task can only be sent to Dask tasks")


def label_of(task: Task) -> str:
    """Return how messages speak of a task."""
    return f"task '{name_of(task)}' ({task['uid']})"


@dataclass(slots=True)
class Job:
    """A task on its way to the cluster."""

    label: str
    task: Task
    order: dask_worker.Call | dask_worker.Program
    inputs: list[Future]
    """The results on the cluster that are among its arguments."""
    options: Options

    @property
    def size(self) -> int:
        """About how many bytes it has."""
        order = self.order
        return len(order.arguments) if isinstance(order, dask_worker.Call) else 0


def pack(
    backend: DaskExecutionBackend,
    task: Task,
    client: Client,
    token: str,
    telling: dask_worker.Telling,
    pickled: dict[int, bytes],
) -> Job:
    """Make of a task what its worker needs.

    Parameters
    ----------
    client:
        To whose futures the inputs belong.
    token:
        Makes keys of this engine's tasks differ from others'.
    telling:
        How its worker tells that it has begun.
    pickled:
        The functions that have been pickled, by their ``id()``: those of one batch need that once.

    Raises
    ------
    Exception
        If the task cannot be run on a cluster; the message says why.
    """
    name, uid = name_of(task), task["uid"]
    label = f"backend '{backend.name}': {label_of(task)}"
    options = parse(label, task)
    key = options.key or f"{name}-{token}-{uid}"
    try:
        key.encode()
    except UnicodeEncodeError as error:  # with which Dask's client would lose its connection
        raise ValueError(f"{label}: Dask cannot take {key!a} as a key: {error}") from error
    order: dask_worker.Call | dask_worker.Program
    if task.get("function") is not None:
        function, arguments, inputs = _pickle_call(label, task, pickled, client)
        if options.pure and not options.key:
            key = f"{name}-{tokenize(function, arguments, [future.key for future in inputs])}"
        is_async = inspect.iscoroutinefunction(task["function"])
        interrupt = task.get("interrupt", False)
        order = dask_worker.Call(
            key, name, uid, telling, function, arguments, is_async, options.timeout, interrupt
        )
        return Job(label, task, order, inputs, options)
    if not task.get("executable"):
        raise NotImplementedError(
            f"{label}: this backend runs functions and programs; name another one for prompts"
        )
    packed = _pickle_program(label, task, backend._work_dir)
    if options.pure and not options.key:
        key = f"{name}-{tokenize(argv_of(task), dict(options_of(task)))}"
    return Job(label, task, dask_worker.Program(key, name, uid, telling, packed), [], options)


def _pickle_call(
    label: str, task: Task, pickled: dict[int, bytes], client: Client
) -> tuple[bytes, bytes, list[Future]]:
    """Return function and arguments as bytes, and the results that are among the arguments."""
    function, inputs = task["function"], _Inputs(client)
    if id(function) not in pickled:
        pickled[id(function)] = _dumps(label, "function", function)
    try:
        arguments = dask_worker.dumps((task["args"], task["kwargs"]), inputs)
    except BaseException:
        for argument, value in _arguments_of(task).items():
            _dumps(label, f"argument {argument}", value, inputs)
        raise
    return pickled[id(function)], arguments, list(inputs)


def _pickle_program(label: str, task: Task, work_dir: str) -> bytes:
    """Return as bytes what a worker has to know of a program."""
    own = {key: value for key, value in options_of(task).items() if key in PROGRAM_OPTIONS}
    description = {
        "name": name_of(task),
        "uid": task["uid"],
        "executable": task["executable"],
        "arguments": argv_of(task)[1:],
        "capture_stdio": task.get("capture_stdio", False),
        "task_backend_specific_kwargs": own,
    }
    return _dumps(label, "task_description", (description, work_dir))


def _dumps(label: str, what: str, value: Any, inputs: _Inputs | None = None) -> bytes:
    try:
        return dask_worker.dumps(value, inputs)
    except BaseException as error:
        raise pickle.PicklingError(
            f"{label}: its {what}, of type {type(value).__name__}, cannot be pickled, so it cannot "
            f"be sent to a worker: {text_of_error(error)}"
        ) from error


def _arguments_of(task: Task) -> dict[str, Any]:
    """Return the arguments of a call by the names of their parameters, or their positions."""
    named = {f"{index}": value for index, value in enumerate(task["args"])}
    with contextlib.suppress(TypeError, ValueError):  # a builtin, or arguments that do not fit
        parameters = list(inspect.signature(task["function"]).parameters.values())
        for index, parameter in enumerate(parameters[: len(task["args"])]):
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                named[f"'{parameter.name}'"] = named.pop(f"{index}")
    return {**named, **{f"'{key}'": value for key, value in task["kwargs"].items()}}
