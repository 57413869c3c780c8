"""What decorating a function does: describe it once, and make of each call a component."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar, overload

from dftracer.asyncflow.components import Block, Task
from dftracer.asyncflow.errors import text_of

if TYPE_CHECKING:
    from dftracer.asyncflow.scheduler import Scheduler

P = ParamSpec("P")
R = TypeVar("R")
C_co = TypeVar("C_co", covariant=True)

Kind = Literal["function", "executable", "block"]


@dataclass(frozen=True)
class Template:
    """A decorated function: all that its calls have in common."""

    kind: Kind
    function: Callable[..., Any]
    name: str
    is_async: bool


class Call(Protocol[P, C_co]):
    """A decorated function: keeps the parameters of the body and gives a component.

    The second form is for the futures that may stand in place of any value.
    """

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> C_co: ...
    @overload
    def __call__(self, *args: Any, **kwargs: Any) -> C_co: ...


class FunctionDecorator(Protocol):
    """``@flow.function_task``: what a call gives is an awaitable of the body's result."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Call[P, Task[R]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Call[P, Task[R]]: ...
    @overload
    def __call__(self) -> FunctionDecorator: ...


class ExecutableDecorator(Protocol):
    """``@flow.executable_task``: what a call gives is an awaitable of the program's output."""

    @overload
    def __call__(self, function: Callable[P, Any], /) -> Call[P, Task[str]]: ...
    @overload
    def __call__(self) -> ExecutableDecorator: ...


class BlockDecorator(Protocol):
    """``@flow.block``: what a call gives is an awaitable of the body's result."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Call[P, Block[R]]: ...
    @overload
    def __call__(self) -> BlockDecorator: ...


def make_decorator(engine: Scheduler, kind: Kind) -> Callable[..., Any]:
    """Return the decorator of one kind of component, for use with and without parentheses."""

    def decorate(function: Any) -> Callable[..., Any]:
        template = _describe(kind, function)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return engine._register(template, args, kwargs)

        return call

    def decorator(*functions: Any) -> Callable[..., Any]:
        if len(functions) > 1:
            raise TypeError(f"@flow.{_attribute(kind)} takes one function, not {len(functions)}")
        return decorate(functions[0]) if functions else decorator

    return decorator


def _attribute(kind: Kind) -> str:
    return kind if kind == "block" else f"{kind}_task"


def _describe(kind: Kind, function: Any) -> Template:
    attribute = _attribute(kind)
    if inspect.iscoroutine(function):
        name = function.__qualname__
        function.close()  # or it would warn that it was never awaited
        raise TypeError(
            f"@flow.{attribute} takes a function, not the coroutine that calling '{name}' gave: "
            "pass the function itself"
        )
    if not callable(function):
        raise TypeError(
            f"@flow.{attribute} takes a function, not {type(function).__name__} {text_of(function)}"
        )
    name = getattr(function, "__name__", None) or type(function).__name__
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
    )
    if kind == "block" and not is_async:
        raise TypeError(
            f"@flow.block takes an async function, and '{name}' is none: a block runs in the event "
            "loop, where it awaits its tasks"
        )
    return Template(kind, function, name, is_async)
