"""What a worker process does with a call. It travels as source code does, by value.

So a worker needs ``cloudpickle`` and nothing else of ours: it starts faster, and subinterpreters,
which cannot import native modules such as ours, can be workers too. Nothing here may refer to
another module of this project.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import io
import os
import struct
import sys
import time
import traceback
from types import CodeType
from typing import Any

import cloudpickle

MARK = "an outcome of dftracer.asyncflow"
"""The first item of what :func:`run` returns, to be told from what a body returns."""

NOTE = "dq"
"""A note is a double, 0 before a call begins, then the clock when it did, and the worker's pid."""
CANCELLED = -1.0

FILENAME = 10
"""The position of ``co_filename`` among the arguments of :class:`~types.CodeType`."""


def dumps(
    value: Any, protocol: int | None = None, buffer_callback: Any = None, replace: Any = None
) -> bytes:
    """Pickle as ``cloudpickle.dumps`` does; functions by value keep the names of their files.

    Some cloudpickles leave these out, and then tracebacks have neither file nor source text.
    ``replace`` may reduce an object in another way, or return ``NotImplemented``.
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
            args = (*args[:FILENAME], part.co_filename, *args[FILENAME + 1 :])
        return make, args

    pickler.reducer_override = reduce
    try:
        pickler.dump(value)
    finally:
        del pickler.reducer_override  # and with it a cycle, which would hold the value
    return file.getvalue()


THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
"""What tells native libraries how many threads each process may have."""


def limit_native_threads(share: int) -> None:
    """Let native libraries in this worker have ``share`` threads, unless the user has said it.

    Libraries that are loaded already, as in the child of a fork, read no environment any more: they
    are limited by ``threadpoolctl``, where that is installed.
    """
    is_said = any(name in os.environ for name in THREADS)
    for name in THREADS:
        os.environ.setdefault(name, str(share))
    if not is_said and not {"numpy", "torch"}.isdisjoint(sys.modules):
        try:
            importlib.import_module("threadpoolctl").threadpool_limits(share)
        except Exception:
            return  # it is not there, or does not know what is loaded


def run(call: bytes, notes: str, host: str, position: int) -> tuple[str, str, Any]:
    """Run a pickled call in a worker; return the mark, how it ended, and with what."""
    if not _may_begin(notes, host, position):
        return MARK, "cancelled", None
    try:
        function, args, kwargs = cloudpickle.loads(call)
    except BaseException as error:
        return MARK, "unreadable", (_summary(error), _describe(error))
    try:
        value = function(*args, **kwargs)
        if inspect.iscoroutine(value):
            value = asyncio.run(value)
    except BaseException as error:
        return MARK, "failed", (pack_error(error), _summary(error), _describe(error))
    try:
        return MARK, "done", dumps(value)
    except BaseException as error:
        return MARK, "unsendable", (_summary(error), _describe(error))


def _may_begin(notes: str, host: str, position: int) -> bool:
    """Note that a call begins, unless it was cancelled."""
    if host != os.uname().nodename:
        return True  # another clock, and another file if any
    size = struct.calcsize(NOTE)
    try:
        file = os.open(notes, os.O_RDWR)
    except OSError:
        return True
    try:
        note = os.pread(file, size, position * size)
        if struct.unpack(NOTE, note)[0] == CANCELLED:
            return False
        os.pwrite(file, struct.pack(NOTE, time.monotonic(), os.getpid()), position * size)
    finally:
        os.close(file)
    return True


def pack_error(error: BaseException, links: bool = False) -> bytes | None:
    """Pickle an error and those that it groups, each so that it is made again of what it has.

    With ``links``, those that have caused them and all tracebacks are kept, if these can be
    pickled; without, attributes are left out if they cannot. ``None`` if that is not enough.
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
            return remake_error, whole

        try:
            packed = dumps(error, replace=replace)
            if type(cloudpickle.loads(packed)) is type(error):
                return packed
        except BaseException:
            continue
    return None


def remake_error(
    make: Any, args: Any, attributes: Any, kind: Any, parts: tuple[Any, ...], links: Any
) -> BaseException:
    """Make an error as it says itself, or of its parts, if its constructor wants others."""
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
