"""How a submission is packed for a worker of a Dask cluster."""

from __future__ import annotations

import contextlib
import inspect
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dask.base import tokenize
from distributed import Client, Future

from dftracer.asyncflow.backends.base import Submission
from dftracer.asyncflow.backends.dask import arguments
from dftracer.asyncflow.backends.dask.options import Options, parse
from dftracer.asyncflow.backends.dask.results import DaskValue
from dftracer.asyncflow.backends.dask.work import BeginEvent, FunctionWork, ProgramWork
from dftracer.asyncflow.backends.programs import PROGRAM_OPTIONS
from dftracer.asyncflow.errors import text_of_error

_BATCH_TASKS = 1_000
_BATCH_BYTES = 4_000_000
"""How much goes to the scheduler at a time, so that the first tasks run while others are sent."""


@dataclass(slots=True)
class Packed:
    """A submission on its way to the cluster."""

    label: str
    submission: Submission
    work: FunctionWork | ProgramWork
    inputs: list[Future]
    """The results on the cluster that are among its arguments."""
    options: Options

    @property
    def size(self) -> int:
        """About how many bytes it has."""
        work = self.work
        return len(work.arguments) if isinstance(work, FunctionWork) else 0


class Packer:
    """Packs submissions that are handed over together.

    Parameters
    ----------
    backend:
        How messages call the backend.
    client:
        To whose futures the inputs belong.
    token:
        Makes keys of this engine's tasks differ from others'.
    begin_event:
        How workers make known that these tasks have begun.
    work_dir:
        Where programs put captured output.
    """

    def __init__(
        self, backend: str, client: Client, token: str, begin_event: BeginEvent, work_dir: str
    ) -> None:
        self._backend = backend
        self._client = client
        self._token = token
        self._begin_event = begin_event
        self._work_dir = work_dir
        self._functions: dict[int, bytes] = {}
        """The functions that have been pickled, by their ``id()``: once is enough for each."""

    def pack(self, submission: Submission) -> Packed:
        """Make of a submission what its worker needs.

        Raises
        ------
        Exception
            If it cannot be run on a cluster; the message says why.
        """
        name, uid, function = submission.name, submission.uid, submission.function
        label = f"backend '{self._backend}': task '{name}' ({uid})"
        options = parse(label, submission)
        key = options.key or f"{name}-{self._token}-{uid}"
        try:
            key.encode()
        except UnicodeEncodeError as error:  # with which Dask's client would lose its connection
            raise ValueError(f"{label}: Dask cannot take {key!a} as a key: {error}") from error
        named_by_content = options.pure and not options.key
        if function is not None:
            pickled, inputs = self._pickle_function(label, function), _Inputs(self._client)
            data = _pickle_arguments(label, submission, inputs)
            if named_by_content:
                key = f"{name}-{tokenize(pickled, data, [future.key for future in inputs])}"
            work = FunctionWork(
                key,
                name,
                uid,
                self._begin_event,
                pickled,
                data,
                inspect.iscoroutinefunction(function),
                options.timeout,
                submission.interrupt,
            )
            return Packed(label, submission, work, list(inputs), options)
        command = submission.command
        if not command:
            raise NotImplementedError(
                f"{label}: this backend runs functions and programs; name another one for prompts"
            )
        own = {key: value for key, value in submission.options.items() if key in PROGRAM_OPTIONS}
        description = {
            "name": name,
            "uid": uid,
            "executable": command[0],
            "arguments": list(command[1:]),
            "capture_stdio": submission.capture_stdio,
            "task_backend_specific_kwargs": own,
        }
        data = _dumps(label, "task_description", (description, self._work_dir))
        if named_by_content:
            key = f"{name}-{tokenize(list(command), dict(submission.options))}"
        program = ProgramWork(key, name, uid, self._begin_event, data)
        return Packed(label, submission, program, [], options)

    def _pickle_function(self, label: str, function: Any) -> bytes:
        if id(function) not in self._functions:
            self._functions[id(function)] = _dumps(label, "function", function)
        return self._functions[id(function)]


def batches(tasks: list[Packed]) -> Iterator[list[Packed]]:
    """Yield tasks that can be sent together."""
    alike: dict[Any, list[Packed]] = {}
    for task in tasks:
        # Those with keys that others may have too get futures of their own, which can be released.
        alone = id(task) if task.options.key or task.options.pure else None
        alike.setdefault((repr(task.options.dask), bool(task.inputs), alone), []).append(task)
    for group in alike.values():
        batch: list[Packed] = []
        size = 0
        for task in group:
            batch.append(task)
            size += task.size
            if len(batch) == _BATCH_TASKS or size > _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch


class _Inputs(arguments.Inputs):
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
        return arguments.value_here, (len(self) - 1,)

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


def _pickle_arguments(label: str, submission: Submission, inputs: _Inputs) -> bytes:
    try:
        return arguments.dumps((submission.args, submission.kwargs or {}), inputs)
    except BaseException:
        for argument, value in _arguments_of(submission).items():
            _dumps(label, f"argument {argument}", value, inputs)
        raise


def _dumps(label: str, what: str, value: Any, inputs: _Inputs | None = None) -> bytes:
    try:
        return arguments.dumps(value, inputs)
    except BaseException as error:
        raise pickle.PicklingError(
            f"{label}: its {what}, of type {type(value).__name__}, cannot be pickled, so it cannot "
            f"be sent to a worker: {text_of_error(error)}"
        ) from error


def _arguments_of(submission: Submission) -> dict[str, Any]:
    """Return the arguments of a call by the names of their parameters, or their positions."""
    args, function = submission.args, submission.function
    named = {f"{index}": value for index, value in enumerate(args)}
    if function is not None:
        with contextlib.suppress(TypeError, ValueError):  # a builtin, or arguments do not fit
            parameters = list(inspect.signature(function).parameters.values())
            for index, parameter in enumerate(parameters[: len(args)]):
                if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                    named[f"'{parameter.name}'"] = named.pop(f"{index}")
    return {**named, **{f"'{key}'": value for key, value in (submission.kwargs or {}).items()}}
