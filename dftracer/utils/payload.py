"""A call, an outcome, an error as bytes: what crosses the border to another process.

The process at the other end needs ``cloudpickle`` and nothing else of ours: it starts faster, and
subinterpreters, which cannot import native modules such as ours, can be at the other end too. What
runs there travels as source code does, by value (:class:`ByValue`). So nothing above the mark in
this file may refer to another module of this project.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import io
import linecache
import os
import pickle
import re
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import CodeType
from typing import Any, TypeGuard, cast

import cloudpickle  # pyright: ignore[reportMissingTypeStubs]

from dftracer.utils.failures.texts import text_of_error

Outcome = tuple[str, Any]
"""How a call ended, ``done``, ``failed`` or ``cancelled``, and its value or error."""

PackedOutcome = tuple[str, str, Any]
"""The mark of packed outcomes, how the call ended, and what :func:`read_outcome` makes more of."""

Replacement = Callable[[Any], Any]
"""The ``reducer_override`` of a pickler: returns a reduction of an object or ``NotImplemented``."""

_MARK = "an outcome of dftracer.asyncflow"

_cloudpickle: Any = cloudpickle  # which has no types

_FILENAME = 10
"""The position of ``co_filename`` among the arguments of :class:`~types.CodeType`."""


def dumps(
    value: Any,
    protocol: int | None = None,
    buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
    replace: Replacement | None = None,
) -> bytes:
    """Pickle with ``cloudpickle``; functions that go by value keep the names of their files.

    Some versions of ``cloudpickle`` leave these out, and then tracebacks have neither file nor
    source text.
    """
    file = io.BytesIO()
    pickler: Any = cloudpickle.Pickler(file, protocol, buffer_callback)
    reduce_others = pickler.reducer_override

    def reduce(part: Any) -> Any:
        if type(part) is not CodeType:
            reduced = NotImplemented if replace is None else replace(part)
            return reduce_others(part) if reduced is NotImplemented else reduced
        reduction: Any = cloudpickle.Pickler.dispatch_table[CodeType](part)
        make, args = reduction
        if make is CodeType:
            args = (*args[:_FILENAME], part.co_filename, *args[_FILENAME + 1 :])
        return make, args

    pickler.reducer_override = reduce
    try:
        pickler.dump(value)
    finally:
        del pickler.reducer_override  # and with it a cycle, which would hold the value
    return file.getvalue()


def run_call(call: bytes) -> PackedOutcome:
    """Run what :func:`pack_call` has packed, and pack its outcome for :func:`read_outcome`."""
    try:
        function, args, kwargs = cloudpickle.loads(call)
    except BaseException as error:
        return _MARK, "unreadable", (_summary(error), _describe(error))
    try:
        value = function(*args, **kwargs)
        if inspect.iscoroutine(value):
            value = asyncio.run(value)
    except BaseException as error:
        return _MARK, "failed", (pack_error(error), _summary(error), _describe(error))
    try:
        return _MARK, "done", dumps(value)
    except BaseException as error:
        return _MARK, "unsendable", (_summary(error), _describe(error))


def pack_cancelled() -> PackedOutcome:
    """Pack the outcome of a call that was cancelled before it began."""
    return _MARK, "cancelled", None


def pack_error(error: BaseException, links: bool = False) -> bytes | None:
    """Pickle an error and the members of a group, so that each is made again of what it has.

    With ``links``, causes, contexts and tracebacks are kept if they can be pickled; without,
    attributes are left out if they cannot. ``None`` if that is not enough.
    """
    for state, linked in ((True, links), (links, False)):

        def replace(part: Any, state: bool = state, linked: bool = linked) -> Any:
            if not isinstance(part, BaseException):
                return NotImplemented
            reduced: Any = part.__reduce_ex__(4)
            make, args, *rest = reduced
            links = part.__cause__, part.__context__, part.__suppress_context__, part.__traceback__
            attributes = rest[0] if state and rest else None
            whole = (make, args, attributes, type(part), part.args, links if linked else None)
            return _remake_error, whole

        try:
            packed = dumps(error, replace=replace)
            if type(cloudpickle.loads(packed)) is type(error):
                return packed
        except BaseException:
            continue
    return None


def _remake_error(
    make: Any, args: Any, attributes: Any, kind: Any, parts: tuple[Any, ...], links: Any
) -> BaseException:
    """Make an error by its own reduction, or of its parts, if its constructor wants others."""
    error: BaseException
    try:
        error = make(*args)
        if type(error) is not kind:
            raise TypeError
    except Exception:
        error = kind.__new__(kind, *parts)
        error.args = parts
    if attributes:
        error.__setstate__(attributes)
    if links is not None:
        error.__cause__, error.__context__, error.__suppress_context__, error.__traceback__ = links
    return error


def _summary(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:
        return type(error).__name__


def _describe(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except BaseException:
        return f"{_summary(error)}\n"


# --- the mark: what is above may run in a process without our packages ----------------------------


class ByValue:
    """A function that becomes itself where it is unpickled, though its module is not there.

    Its module, and this one, may refer to no other that is not there.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return cloudpickle.loads, (_packed_by_value(self._function),)


_lock = threading.RLock()
"""Held while modules are registered, which threads that pickle for different pools may want to do
at the same time."""


@functools.cache
def _packed_by_value(function: Callable[..., Any]) -> bytes:
    modules = [sys.modules[name] for name in {function.__module__, __name__}]
    with _lock:
        for module in modules:
            _cloudpickle.register_pickle_by_value(module)
        try:
            return dumps(function)
        finally:
            for module in modules:
                _cloudpickle.unregister_pickle_by_value(module)


def _forget_in_child() -> None:
    """After ``fork()`` the lock may be held by a thread that is not here."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_forget_in_child)


def dumps_by_reference(value: Any, replace: Replacement | None = None) -> bytes | None:
    """Pickle for a process that can import the same modules: smaller, and soon done.

    Returns
    -------
    bytes | None
        ``None`` if a part of ``value`` must go by value, which :func:`dumps` can do: it is of
        ``__main__``, of a module that ``cloudpickle`` was asked to send by value, or of no module.
    """
    file = io.BytesIO()
    pickler = _Pickler(file, pickle.HIGHEST_PROTOCOL)
    if replace is not None:
        pickler.reducer_override = replace  # type: ignore[method-assign]
    try:
        pickler.dump(value)
    except Exception:
        return None
    data = file.getvalue()
    registered: set[str] = _cloudpickle.list_registry_pickle_by_value()
    by_value = {"__main__", *registered}
    return None if any(module.encode() in data for module in by_value) else data


class _Pickler(pickle.Pickler):
    """Its ``reducer_override`` is an attribute of each object."""


_NEVER_FAIL = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types whose objects can always be pickled."""


def why_unsendable(value: Any) -> BaseException | None:
    """Return why ``value`` cannot be pickled; ``None`` if it can.

    Large buffers, such as those of arrays, are not copied for this.
    """
    if type(value) in _NEVER_FAIL:
        return None
    try:
        pickle.dumps(value, 5, buffer_callback=_leave_out)
    except BaseException:
        try:
            dumps(value, 5, buffer_callback=_leave_out)
        except BaseException as error:
            return error
    return None


def _leave_out(_buffer: pickle.PickleBuffer) -> None:
    """Take a buffer that is not to be part of the pickle."""


def pack_call(label: str, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Pack a call for :func:`run_call`.

    Parameters
    ----------
    label:
        What messages call the task, such as ``"task 'f' on backend 'b'"``.

    Raises
    ------
    pickle.PicklingError
        If it cannot be pickled; the message says which part of it.
    """
    try:
        return dumps((function, args, kwargs))
    except BaseException as error:
        parts = [("its function", function)]
        parts += [(f"argument {n}", value) for n, value in enumerate(args, 1)]
        parts += [(f"argument '{name}'", value) for name, value in kwargs.items()]
        reasons = ((name, _why_not_by_value(value)) for name, value in parts)
        found = ((name, reason) for name, reason in reasons if reason is not None)
        what, reason = next(found, ("its function with its arguments", error))
        raise pickle.PicklingError(
            f"{label}: {what} cannot be sent to a worker process: {text_of_error(reason)}"
        ) from error


def _why_not_by_value(value: Any) -> BaseException | None:
    try:
        dumps(value)
    except BaseException as error:
        return error
    return None


def is_packed_outcome(value: object) -> TypeGuard[PackedOutcome]:
    """Return whether ``value`` was made by :func:`run_call`, and not by a body."""
    if type(value) is not tuple:
        return False
    items = cast("tuple[object, ...]", value)
    return len(items) == 3 and items[0] == _MARK


def read_outcome(label: str, packed: PackedOutcome) -> Outcome:
    """Return the outcome of a call in another process.

    An error has the traceback there as its cause, a :class:`RemoteTracebackError`.
    """
    _, state, content = packed
    if state == "cancelled":
        return state, None
    if state == "done":
        try:
            return state, cloudpickle.loads(content)
        except BaseException as error:
            what = f"has a result that cannot be read here: {text_of_error(error)}"
            raised: BaseException = pickle.UnpicklingError(f"{label} {what}")
            raised.__cause__ = error
            return "failed", raised
    *found, summary, text = content
    if state == "unsendable":
        what = f"has a result that cannot be sent from its worker process: {summary}"
        raised = pickle.PicklingError(f"{label} {what}")
    elif state == "unreadable":
        what = f"cannot begin: a worker process cannot read what to call or with what: {summary}"
        raised = pickle.UnpicklingError(f"{label} {what}")
    else:
        raised = read_error(label, found[0], summary)
    raised.__cause__ = RemoteTracebackError(_with_source(text))
    return "failed", raised


def read_error(label: str, packed: bytes | None, summary: str) -> BaseException:
    """Return what :func:`pack_error` has packed, or an error that says what can be had of it."""
    why = ""
    if packed is not None:
        try:
            raised: BaseException = cloudpickle.loads(packed)
            return raised
        except BaseException as error:
            why = f" ({text_of_error(error)})"
    return RuntimeError(f"{label} raised {summary}, which cannot be read here{why}")


class RemoteTracebackError(Exception):
    """The traceback of an error in another process: the ``__cause__`` of that error here."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


_FRAME = re.compile(
    r'^(?P<indent>[ |]*)File "(?P<file>.+)", line (?P<line>\d+), in .*\n(?!(?P=indent)  )',
    re.MULTILINE,
)
"""A frame of a traceback whose source text was not to be had, as traceback prints it."""


def _with_source(text: str) -> str:
    """Add the source text that only this process has to a traceback, as of a notebook's cells."""

    def add(frame: re.Match[str]) -> str:
        source = linecache.getline(frame["file"], int(frame["line"])).strip()
        return frame[0] + (f"{frame['indent']}  {source}\n" if source else "")

    return _FRAME.sub(add, text)
