"""Exceptions to be kept for later: their content, without the variables that they hold.

The traceback of an exception leads to the frame of each function that it passed, and so to all of
their variables. A copy made here has tracebacks with the same files, functions and lines, and
frames that are empty.
"""

from __future__ import annotations

import builtins
import sys
import types
from typing import TYPE_CHECKING, Any

from dftracer.utils._native import bare_frame

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType, TracebackType

_MOST_LINES = 100
"""How many lines of a traceback are kept: as many at its beginning as at its end."""

_MOST_CAUSES = 100
"""How many exceptions are copied along with one: its causes, contexts and members of a group."""

_OF_MODULE = ("__name__", "__file__", "__loader__", "__spec__")
"""What those who print a traceback ask of a frame, to find its source."""

_GROUP: Any = getattr(builtins, "BaseExceptionGroup", ())
"""The class of groups of exceptions, or none before CPython 3.11."""


def stand_in(failure: tuple[BaseException, TracebackType | None]) -> BaseException:
    """Return a copy of an exception, with that traceback, which shares no frame with it.

    It is of the same class and has the same arguments and attributes. The exceptions that it leads
    to, in these too, are copied in the same way. Code of the exception's class is not run.
    """
    error, traceback = failure
    return _Copies().of(error, traceback)


def release_variables(error: BaseException) -> None:
    """Put empty frames in the place of those that an exception, and those that it leads to, have
    passed: the same functions and lines, without the variables."""
    seen: set[int] = set()
    errors: list[BaseException | None] = [error]
    while errors and len(seen) <= _MOST_CAUSES:
        each = errors.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if each.__traceback__ is not None:
            each.__traceback__ = _without_frames(each.__traceback__)
        group: Any = each
        members = group.exceptions if isinstance(each, _GROUP) else ()
        errors += (*members, each.__context__, each.__cause__)


class _Copies:
    """The copies of one exception and of those that it leads to."""

    def __init__(self) -> None:
        self._made: dict[int, BaseException] = {}

    def of(self, error: BaseException, traceback: TracebackType | None) -> BaseException:
        copy = self._of_content(error)
        self._made[id(error)] = copy
        copy.__traceback__ = _without_frames(traceback)
        # Set only here, since to set a cause also hides the context.
        copy.__context__ = self._of_other(error.__context__)
        copy.__cause__ = self._of_other(error.__cause__)
        copy.__suppress_context__ = error.__suppress_context__
        return copy

    def _of_other(self, value: Any) -> Any:
        """Return a copy of what is an exception, nothing if there are too many, or the value."""
        if not isinstance(value, BaseException):
            return value
        known = self._made.get(id(value))
        if known is None and len(self._made) <= _MOST_CAUSES:
            known = self.of(value, value.__traceback__)
        return known

    def _of_content(self, error: BaseException) -> BaseException:
        kind = type(error)
        arguments = tuple([self._of_value(value) for value in error.args])
        try:
            copy = self._new(kind, error, arguments)
            copy.__dict__.update({key: self._of_value(value) for key, value in vars(error).items()})
        except Exception:
            # Its class has a form that cannot be made from outside.
            copy = RuntimeError(f"{kind.__qualname__}: {_text_of(error)}")
        return copy

    def _new(
        self, kind: type[BaseException], error: BaseException, arguments: tuple[Any, ...]
    ) -> BaseException:
        """Make an exception as the built-in class does that its class comes from."""
        base: Any = next(each for each in kind.__mro__ if each.__module__ == "builtins")
        if isinstance(error, _GROUP):
            given_group: Any = error
            members = [self._of_other(each) for each in given_group.exceptions]
            group: BaseException = base.__new__(
                kind, given_group.message, [each for each in members if each is not None]
            )
            return group
        given = arguments
        if base not in (Exception, BaseException):
            # Some keep arguments elsewhere, such as the name of a file, and say how to get it back.
            given = tuple([self._of_value(value) for value in base.__reduce__(error)[1]])
        copy: Any = base.__new__(kind, *given)
        base.__init__(copy, *given)
        copy.args = arguments
        if isinstance(error, (ImportError, NameError)):
            for key in ("name", "path"):
                if hasattr(error, key):
                    setattr(copy, key, getattr(error, key))
        made: BaseException = copy
        return made

    def _of_value(self, value: Any) -> Any:
        if isinstance(value, BaseException):
            copy = self._of_other(value)
            return copy if copy is not None else _text_of(value)
        return value


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(no text)"


def _without_frames(traceback: TracebackType | None) -> TracebackType | None:
    lines: list[tuple[FrameType, int]] = []
    while traceback is not None:
        lines.append((traceback.tb_frame, traceback.tb_lineno))
        traceback = traceback.tb_next
    if len(lines) > _MOST_LINES:
        half = _MOST_LINES // 2
        lines = lines[:half] + lines[-half:]
    copy: TracebackType | None = None
    for frame, line in reversed(lines):
        empty = _empty_frame(frame.f_code, frame.f_globals)
        copy = types.TracebackType(copy, empty, -1, line)
    return copy


_frames: dict[tuple[str, str, Any], FrameType] = {}
"""Empty frames that can stand in any traceback, which has the line itself."""

_MOST_FRAMES = 1_024


def _empty_frame(code: CodeType, module: dict[str, Any]) -> FrameType:
    key = (code.co_filename, code.co_name, module.get("__name__"))
    frame = _frames.get(key)
    if frame is None:
        if len(_frames) >= _MOST_FRAMES:
            _frames.clear()
        globals_ = {name: module[name] for name in _OF_MODULE if name in module}
        frame = _frames[key] = _new_frame(code, globals_)
    return frame


if sys.version_info >= (3, 11):

    def _new_frame(code: CodeType, module: dict[str, Any]) -> FrameType:
        # Code of its own, since a frame looks for free variables in a function that is not there.
        stub = compile("", code.co_filename, "exec")
        return bare_frame(stub.replace(co_name=code.co_name, co_qualname=code.co_qualname), module)

else:

    def _new_frame(code: CodeType, module: dict[str, Any]) -> FrameType:
        # A new frame would hold that of its caller. That of a generator that does not run does not.
        stub = _generate.__code__.replace(co_filename=code.co_filename, co_name=code.co_name)
        generator = types.FunctionType(stub, module)()
        frame: FrameType = generator.gi_frame
        return frame

    def _generate() -> Iterator[None]:
        yield
