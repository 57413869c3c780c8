"""What a future of the event loop waits for, and whether a timeout may interrupt it.

asyncio knows the future that a task waits for. What stands behind that is found for ``gather``,
``wait``, ``wait_for``, ``shield``, ``as_completed`` and ``TaskGroup``, as CPython makes them from
3.10 on; where it is not found, nothing is said to be waited for.
"""

from __future__ import annotations

import asyncio
import gc
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from dftracer.asyncflow.engine.component import Component, is_left
from dftracer.asyncflow.engine.interfaces import Unsearched

_Future = asyncio.Future[Any]

# New in CPython 3.11; nothing is an instance of no class.
_TASK_GROUP: Any = getattr(asyncio, "TaskGroup", ())
_TIMEOUT: Any = getattr(asyncio, "Timeout", ())


def awaited_by(future: _Future) -> Sequence[_Future]:
    """Return what a future waits for; nothing if it may be about to end, or that is not known."""
    if isinstance(future, Component):
        body = body_of(future)
        if body is not None:
            return [body]
        awaited = future.dependencies if future.place is None else ()
        # The graph hears of the ends of other futures in the next turn of the loop.
        others = any(not isinstance(f, Component) for f in awaited)
        return _unless_one_ends_it(awaited, by_failing=others)
    if isinstance(future, asyncio.Task):
        return _awaited_by_task(future)
    children: list[Any] | None = getattr(future, "_children", None)  # of `gather`
    if isinstance(children, list):
        return _unless_one_ends_it(children, by_failing=not _takes_errors(future, children))
    for callback, _ in getattr(future, "_callbacks", None) or ():
        if _is_of_asyncio(callback, "shield.<locals>._outer_done_callback"):
            return _unless_one_ends_it([_variables_of(callback)["inner"]], by_failing=True)
    return ()


def _awaited_by_task(task: asyncio.Task[Any]) -> Sequence[_Future]:
    awaited: _Future | None = getattr(task, "_fut_waiter", None)
    if awaited is None or _has_ended(awaited):
        return ()
    if isinstance(awaited, (Component, asyncio.Task)) or awaited_by(awaited):
        return [awaited]
    # A future that asyncio has made for this one wait.
    for coroutine in _coroutines_of(task):
        frame = _frame_of(coroutine)
        variables = frame.f_locals if frame is not None and _is_waiting_code(frame) else {}
        if variables.get("waiter") is awaited:
            return _awaited_in(variables)
        group: Any = variables.get("self")
        if _is_task_group(group) and group._on_completed_fut is awaited:
            return _unless_one_ends_it(group._tasks, by_failing=True)
    left, _ = _left_of_as_completed(task)
    # When one has ended, the next turn of the loop is for this task.
    return () if any(map(_has_ended, left)) else list(left)


def _left_of_as_completed(task: asyncio.Task[Any]) -> tuple[Collection[_Future], bool]:
    """Return what a task that waits for the next of ``as_completed`` waits for, and whether there
    is a timeout."""
    coroutines = list(_coroutines_of(task))
    frames = [_frame_of(coroutine) for coroutine in coroutines]
    for frame in frames:
        if frame is None or frame.f_code.co_name != "_wait_for_one" or not _is_waiting_code(frame):
            continue
        variables = frame.f_locals
        if "self" in variables:
            iterator = variables["self"]
            return iterator._todo, iterator._timeout_handle is not None
        # Up to CPython 3.12 it is a generator's, which the `for` holds.
        for held in (held for coroutine in coroutines for held in _held_by(coroutine)):
            outer = held.gi_frame if isinstance(held, types.GeneratorType) else None
            if outer is not None and outer.f_locals.get("done") is variables["done"]:
                return outer.f_locals["todo"], outer.f_locals["timeout"] is not None
    return (), False


def _awaited_in(variables: Mapping[str, Any]) -> Sequence[_Future]:
    """Return what ``wait``, or ``wait_for`` as it is up to CPython 3.11, waits for."""
    if "fut" in variables:
        return _unless_one_ends_it([variables["fut"]], by_failing=True)
    awaited, how = variables["fs"], variables["return_when"]
    if how == asyncio.FIRST_COMPLETED and any(map(_has_ended, awaited)):
        return ()
    return _unless_one_ends_it(awaited, by_failing=how == asyncio.FIRST_EXCEPTION)


def _unless_one_ends_it(awaited: Collection[_Future], *, by_failing: bool) -> Sequence[_Future]:
    """Return those of ``awaited`` that have not ended; none if one of the others may be about to
    end the wait ``by_failing``."""
    ended = [future for future in awaited if _has_ended(future)]
    if by_failing and any(is_left(f) or _has_failed(f) for f in ended):
        return ()
    return [future for future in awaited if not _has_ended(future)]


def _has_ended(future: _Future) -> bool:
    if isinstance(future, Component):  # not `done()`, which would have the result fetched
        return not future.engine.is_unfinished(future)
    return future.done()


def _has_failed(future: _Future) -> bool:
    # Not `exception()`: this must not pass for having seen the error.
    return future.cancelled() or getattr(future, "_exception", None) is not None


def body_of(component: Component[Any]) -> asyncio.Task[None] | None:
    """Return what runs of a component in the event loop."""
    return component.engine.body_of(component)


def _takes_errors(gathering: _Future, children: Sequence[_Future]) -> bool:
    """Tell whether ``gather`` was called with ``return_exceptions``."""
    for child in children:
        for callback, _ in getattr(child, "_callbacks", None) or ():
            if _is_of_asyncio(callback, "gather.<locals>._done_callback"):
                variables = _variables_of(callback)
                if variables.get("outer") is gathering:
                    return bool(variables.get("return_exceptions"))
    return False


def _is_of_asyncio(callback: Any, name: str) -> bool:
    return (
        isinstance(callback, types.FunctionType)
        and callback.__qualname__ == name
        and callback.__module__ == "asyncio.tasks"
    )


def _variables_of(callback: types.FunctionType) -> dict[str, Any]:
    """Return the variables that a function has of the one around it."""
    cells = callback.__closure__ or ()
    return {
        name: cell.cell_contents
        for name, cell in zip(callback.__code__.co_freevars, cells, strict=True)
    }


def _is_task_group(value: Any) -> bool:
    return isinstance(value, _TASK_GROUP)


def _frame_of(coroutine: Any) -> types.FrameType | None:
    for name in ("cr_frame", "gi_frame", "ag_frame"):
        frame: types.FrameType | None = getattr(coroutine, name, None)
        if frame is not None:
            return frame
    return None


def _held_by(coroutine: Any) -> list[Any]:
    """Return what a coroutine holds, also what a ``with`` or a ``for`` in it holds without a name:
    up to CPython 3.10 by its frame."""
    frame = _frame_of(coroutine)
    return gc.get_referents(coroutine) if frame is None else gc.get_referents(coroutine, frame)


def _is_waiting_code(frame: types.FrameType) -> bool:
    return frame.f_globals.get("__name__") in ("asyncio.tasks", "asyncio.taskgroups")


def _coroutines_of(task: asyncio.Task[Any]) -> Iterator[Any]:
    """Give the coroutine of a task, the one that this awaits, and so on; and what is no coroutine
    but awaited by the last, unless that waits for a future."""
    coroutine: Any = task.get_coro()
    while coroutine is not None:
        yield coroutine
        awaited = None
        for name in ("cr_await", "gi_yieldfrom", "ag_await"):
            awaited = getattr(coroutine, name, None) or awaited
        if awaited is not None and not isinstance(awaited, _COROUTINES):
            if type(awaited).__name__ == "FutureIter":
                return
            # What stands between an async generator, or an `__await__`, and who awaits it.
            behind = (each for each in gc.get_referents(awaited) if isinstance(each, _COROUTINES))
            awaited = next(behind, awaited)
        coroutine = awaited


_COROUTINES: tuple[type[Any], ...] = (
    types.CoroutineType,
    types.GeneratorType,
    types.AsyncGeneratorType,
)


def has_a_limit(future: _Future) -> bool:
    """Tell whether a timeout may end a wait, or, with a service, its body by hand."""
    if isinstance(future, Component):
        policy = future.definition.policy
        return future.definition.service or (policy is not None and policy.timeout is not None)
    if not isinstance(future, asyncio.Task):
        return False
    if _left_of_as_completed(future)[1]:
        return True
    for coroutine in _coroutines_of(future):
        if not isinstance(coroutine, _COROUTINES):
            return True  # compiled, and so unknown
        frame = _frame_of(coroutine)
        if (
            frame is not None
            and _is_waiting_code(frame)
            and frame.f_locals.get("timeout") is not None
        ):
            return True
        if any(_may_interrupt(held, future) for held in _held_by(coroutine)):
            return True
    return False


_METHODS = (types.MethodType, types.BuiltinMethodType)
_NO_WAY = (type, types.ModuleType, types.FunctionType, types.CodeType, Component, Unsearched)
"""What does not lead from a timeout to the task that it cancels."""
_DEPTH, _WIDTH = 8, 1_000


def _may_interrupt(held: Any, task: asyncio.Task[Any]) -> bool:
    """Tell whether an object is a timeout of a task, by whomever: a context manager that knows
    it."""
    manager: Any = held.__self__ if isinstance(held, _METHODS) else held
    kind: type[object] = type(manager)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(manager, _NO_WAY) or not (
        hasattr(kind, "__aexit__") or hasattr(kind, "__exit__")
    ):
        return False
    if isinstance(manager, _TIMEOUT):
        return manager.when() is not None
    if _is_task_group(manager):  # a task that fails cancels who is still in the block
        return bool(manager._tasks) and not manager._exiting
    seen: set[int] = set()
    layer = [manager]
    for _ in range(_DEPTH):
        layer = [
            each
            for each in gc.get_referents(*layer)
            if id(each) not in seen
            and not isinstance(each, _NO_WAY)
            and not isinstance(each, asyncio.AbstractEventLoop)
        ]
        seen.update(map(id, layer))
        if id(task) in seen or len(seen) > _WIDTH:
            return True
        layer = [each for each in layer if not isinstance(each, asyncio.Future)]
    return False
