"""How functions and arguments are pickled for a worker, with other tasks' results left out.

A result that is on the cluster is not sent: where it was among the arguments, a call of
:func:`value_here` is pickled, which the worker answers with the result that Dask brings it.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

from dftracer.utils import payload

values_here: ContextVar[Sequence[Any]] = ContextVar("dftracer.dask.values")
"""The results of other tasks that are among the arguments that are being unpickled."""


class Output(NamedTuple):
    """The result of a program, of which those that depend on it are given ``stdout``."""

    stdout: str
    stderr: str


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


def loads(data: bytes, values: Sequence[Any]) -> Any:
    """Unpickle arguments, with ``values`` in the place of other tasks' results."""
    token = values_here.set(values)
    try:
        return pickle.loads(data)
    finally:
        values_here.reset(token)


def value_here(index: int) -> Any:
    """Stand, in pickled arguments, for the result of another task."""
    value = values_here.get()[index]
    return value.stdout if type(value) is Output else value
