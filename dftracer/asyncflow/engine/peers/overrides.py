"""The steps of an engine that a subclass has overridden, which are then called for every component.

An engine without a subclass has none of this: its scheduler takes each step itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

from dftracer.asyncflow.engine.component import Component, RemoteTask
from dftracer.asyncflow.errors import let_out

_OUTCOMES = ("success", "failure", "cancellation")
_STEPS = ("run", "submit", "execute_block")


class Settles(Protocol):
    """What is asked of the scheduler."""

    loop: asyncio.AbstractEventLoop

    def settle(self, component: Any, result: Any = None, *, error: Any = None) -> None: ...
    def is_unfinished(self, component: Any) -> bool: ...


def overrides_of(engine: Any, base: type, scheduler: Settles) -> Overrides | None:
    """Return the steps that the class of an engine overrides; ``None`` if there are none."""
    names = [f"handle_{kind}_{end}" for kind in ("component", "task") for end in _OUTCOMES]
    own_kind: type = type(engine)  # pyright: ignore[reportUnknownVariableType]
    # A subclass that inherits a method has the very same function.
    own = {n for n in (*names, *_STEPS) if getattr(own_kind, n) is not getattr(base, n)}
    return Overrides(engine, own, scheduler) if own else None


class Overrides:
    """Takes the steps of an engine through the methods of its class.

    A method that ends nothing leaves the component unfinished: it can be ended later, by hand. If
    one raises, the component fails with that error.
    """

    def __init__(self, engine: Any, own: set[str], scheduler: Settles) -> None:
        def method(*names: str) -> Any:
            return next((getattr(engine, name) for name in names if name in own), None)

        self._scheduler = scheduler
        self._success, self._failure, self._cancellation = (
            method(f"handle_component_{end}", f"handle_task_{end}") for end in _OUTCOMES
        )
        self.run: Callable[[], Awaitable[None]] | None = method("run")
        self.submit: Callable[[list[dict[str, Any]]], Awaitable[None]] | None = method("submit")
        self.execute_block: Callable[..., Awaitable[None]] | None = method("execute_block")
        self.offered: WeakSet[Component[Any]] = WeakSet()
        """Those that were given to ``submit`` and are not launched."""
        self.executing: WeakSet[Component[Any]] = WeakSet()
        """The blocks that were given to ``execute_block``, and whose body has not begun."""
        self._asked: WeakKeyDictionary[Component[Any], tuple[Any, str]] = WeakKeyDictionary()
        """Those whose cancellation was given to its method, with what is said of it."""

    def succeeded(self, component: Component[Any], value: Any) -> None:
        """End a component that has ended well."""
        if self._success is None:
            self._scheduler.settle(component, value)
            return
        description = component.as_dict()
        is_text = component.command is not None or component.prompt is not None
        description["stdout" if is_text else "return_value"] = value
        self._call(component, self._success, description)
        if isinstance(component, RemoteTask):
            description.pop("return_value", None)  # which is fetched when it is asked for

    def failed(self, component: Component[Any], error: Exception, is_of_task: bool) -> None:
        """End a component that has failed, by itself or with a dependency."""
        if self._failure is None:
            self._scheduler.settle(component, error=error)
            return
        description = component.as_dict()
        if is_of_task:
            description["exception"] = error
            self._call(component, self._failure, description)
        else:
            self._call(component, self._failure, description, error)

    def cancelled(
        self, component: Component[Any], msg: Any | None, root: str
    ) -> tuple[Any | None, str] | None:
        """Give a cancellation to its method, unless it comes from there.

        Returns
        -------
        tuple or None
            What is said of a cancellation that is to be carried out.
        """
        if self._cancellation is None:
            return msg, root
        asked = self._asked.pop(component, None)
        if asked is not None:
            return asked[0] if msg is None else msg, root or asked[1]
        self._asked[component] = msg, root
        self._call(component, self._cancellation, component.as_dict())
        return None

    def _call(self, component: Component[Any], method: Callable[..., object], *args: Any) -> None:
        description, *rest = args
        try:
            method(description, component, *rest)
        except BaseException as error:
            if self._scheduler.is_unfinished(component):
                self._scheduler.settle(component, error=error)
            else:
                message = f"{getattr(method, '__qualname__', method)} failed for {component!r}"
                self._scheduler.loop.call_exception_handler(
                    {"message": message, "exception": error}
                )
            let_out(error)
