"""What an engine asks of every backend, ours and others': names, states, and whom it serves."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from dftracer.asyncflow.backends.base import ExecutionBackend, Report, ignore_report
from dftracer.asyncflow.errors import text_of

_NEEDED = ("submit_tasks", "cancel_task", "register_callback", "shutdown")


def check(backend: Any) -> None:
    """Raise ``TypeError`` unless ``backend`` has what an engine needs."""
    missing = [name for name in _NEEDED if not callable(getattr(backend, name, None))]
    if missing or isinstance(backend, type):
        raise TypeError(
            "backend must be an execution backend or a list of them, not "
            f"{type(backend).__name__} {text_of(backend)}"
            + (f": it has no {', '.join(missing)}()" if missing else ", a class: make one of it")
        )
    if not isinstance(getattr(backend, "name", None), str):
        raise TypeError(f"backend {text_of(backend)} has no name, by which decorators choose it")


async def start(backend: Any) -> None:
    """Await a backend that is awaitable. One that has started takes no harm."""
    if inspect.isawaitable(backend):
        await backend


def by_name(backends: Sequence[Any]) -> dict[str, Any]:
    """Return the backends by their names, which must differ."""
    named: dict[str, Any] = {}
    for backend in backends:
        if backend.name in named:
            raise ValueError(
                f"two backends are named '{backend.name}': give each a name of its own, with "
                "name='...'"
            )
        named[backend.name] = backend
    return named


def shares_names(backend: object) -> bool:
    """Tell whether a backend takes tasks of the same name, of whatever engine, for the same task.

    RHAPSODY's Dask backend does: the ``uid`` is the key on the scheduler.
    """
    kind = type(backend)
    return kind.__name__ == "DaskExecutionBackend" and kind.__module__.startswith("rhapsody.")


def guarded(backend: Any, function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return what a backend is given for the function of a task of that name.

    RHAPSODY's expect an ``Exception`` at most. Of anything else that a body raises they never
    report the end, or end with it.
    """
    if not any(each.__module__.startswith("rhapsody.") for each in type(backend).__mro__):
        return function
    passes = (Exception, GeneratorExit, asyncio.CancelledError)

    # Both go to other processes by value: they need nothing of ours there.
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except passes:
            raise
        except BaseException as error:
            text = f"task '{name}' raised {type(error).__name__}: {error}"
            raise RuntimeError(text) from error

    @functools.wraps(function)
    async def call_async(*args: Any, **kwargs: Any) -> Any:
        try:
            return await function(*args, **kwargs)
        except passes:
            raise
        except BaseException as error:
            text = f"task '{name}' raised {type(error).__name__}: {error}"
            raise RuntimeError(text) from error

    return call_async if inspect.iscoroutinefunction(function) else call


def attach(
    backend: Any,
    target: ExecutionBackend,
    engine: str,
    report: Report,
    callback: Callable[..., None],
    work_dir: str,
) -> None:
    """Let a backend serve an engine, and no other until that is shut down."""
    attached_to = list(_value(backend, "attached_to", ()))
    if _value(backend, "is_attached", False) is True:
        other = f"engine '{attached_to[-1]}'" if attached_to else "another engine"
        raise RuntimeError(
            f"backend '{backend.name}' serves {other}: shut that engine down first, or make one "
            "backend for each engine"
        )
    target.connect(report)
    if target is not backend:
        backend.register_callback(callback)
    _note(backend, is_attached=True, attached_to=[*attached_to, engine], _work_dir=work_dir)


def detach(backend: Any, target: ExecutionBackend) -> None:
    """End the service of an engine that is shut down: what ends late is reported to nobody."""
    _note(backend, is_attached=False)
    if target is backend:
        target.connect(ignore_report)
    else:
        backend.register_callback(_ignore)


def _value(backend: Any, name: str, otherwise: Any) -> Any:
    """Return an attribute of a backend; a mock has every one, none of which means anything."""
    value = getattr(backend, name, None)
    if isinstance(value, (bool, list, tuple)):
        return value  # pyright: ignore[reportUnknownVariableType]
    return otherwise


def _note(backend: Any, **facts: Any) -> None:
    """Set attributes of a backend, if it is an object that takes them."""
    for name, fact in facts.items():
        with contextlib.suppress(AttributeError):
            setattr(backend, name, fact)


def _ignore(_task: Any, _state: str, _service_callback: Any = None) -> None:
    """Stand in for the callback of an engine."""
