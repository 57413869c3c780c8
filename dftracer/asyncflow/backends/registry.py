"""What an engine asks of every backend, ours and others': names, states, and whom it serves."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from dftracer.asyncflow.backends.base import TaskStates
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


async def end_of(work: Any) -> Any:
    """Wait for what a method of a backend has begun; of a plain method, this is its result."""
    return await work if inspect.isawaitable(work) else work


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


def state_names(backends: Sequence[Any]) -> dict[Any, str]:
    """Return which of our states is meant by each state that these backends may report."""
    names: dict[Any, str] = {state: state for state in TaskStates.all_states}
    for backend in backends:
        get_map = getattr(backend, "get_task_states_map", None)
        if get_map is None:
            continue
        theirs = get_map()
        for state in TaskStates.all_states:
            name = getattr(theirs, state, state)
            names[name] = names[getattr(name, "value", name)] = state
    return names


def shares_names(backend: Any) -> bool:
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


def attach(backend: Any, engine: str, callback: Callable[..., None], work_dir: str) -> None:
    """Let a backend serve an engine, and no other until that is shut down."""
    attached_to = list(getattr(backend, "attached_to", None) or ())
    if getattr(backend, "is_attached", False):
        other = f"engine '{attached_to[-1]}'" if attached_to else "another engine"
        raise RuntimeError(
            f"backend '{backend.name}' serves {other}: shut that engine down first, or make one "
            "backend for each engine"
        )
    backend.register_callback(callback)
    _note(backend, is_attached=True, attached_to=[*attached_to, engine], _work_dir=work_dir)


def detach(backend: Any) -> None:
    """Let go of an engine that is shut down: of its late tasks nobody is told."""
    _note(backend, is_attached=False)
    backend.register_callback(_ignore)


def _note(backend: Any, **facts: Any) -> None:
    """Set attributes of a backend, if it is an object that takes them."""
    for name, fact in facts.items():
        with contextlib.suppress(AttributeError):
            setattr(backend, name, fact)


def _ignore(_task: Any, _state: str, _service_callback: Any = None) -> None:
    """Stand in for the callback of an engine."""
