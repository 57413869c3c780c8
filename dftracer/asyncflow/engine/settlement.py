"""How the end of a component looks from outside: labels, messages, results, errors of futures."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from types import CodeType
from typing import Any

from dftracer.asyncflow.engine.component import Component, is_left
from dftracer.asyncflow.errors import (
    DependencyFailureError,
    text_of,
    text_of_error,
)

_NAMED = 10
"""How many failed dependencies a message names; the error knows all."""
_LINKS = 20
"""How many links of a chain of failures are printed one by one."""


def label_of(future: asyncio.Future[Any]) -> str:
    """Return how messages speak of a future."""
    if isinstance(future, Component):
        return f"{future.uid} '{future.name}'"
    return text_of(future)


def root_of(future: asyncio.Future[Any]) -> str:
    """Return the label of what was cancelled first, and ``future`` because of it."""
    return (isinstance(future, Component) and future.root) or label_of(future)


def first_cancelled(futures: Sequence[asyncio.Future[Any]]) -> asyncio.Future[Any] | None:
    """Return the first of ``futures`` that was cancelled."""
    for future in futures:
        if future.cancelled():
            return future
    return None


def all_failed(futures: Sequence[asyncio.Future[Any]]) -> list[asyncio.Future[Any]]:
    """Return those of ``futures`` that have failed."""
    return [
        f
        for f in futures
        if not is_left(f)  # it has not, and is not to be fetched for being asked
        and f.done()
        and not f.cancelled()
        and f.exception() is not None
    ]


def dependency_failure(
    component: Component[Any], failed: list[asyncio.Future[Any]]
) -> DependencyFailureError:
    """Say which dependencies failed, and how it began."""
    names = [f.name if isinstance(f, Component) else text_of(f) for f in failed]
    cause = failed[0].exception()
    root = cause.root_cause if isinstance(cause, DependencyFailureError) else cause
    if root is None:  # a body has raised a DependencyFailureError without one
        root = cause
    shown = ", ".join(names[:_NAMED])
    if len(names) > _NAMED:
        shown += f" and {len(names) - _NAMED} more"
    error = DependencyFailureError(
        f"Cannot execute '{component.name}' due to dependency failure: {shown} failed: "
        f"{text_of_error(root)}",
        failed_dependencies=names,
        root_cause=root,
    )
    error.__cause__ = cause
    if isinstance(cause, DependencyFailureError):
        number = cause._link + 1  # pyright: ignore[reportPrivateUsage]
        if number == _LINKS:
            number, error.__cause__ = 0, root
        error._link = number  # pyright: ignore[reportPrivateUsage]
    return error


def fit_for_future(component: asyncio.Future[Any], error: Any) -> Exception:
    """Return an error that a future can hold without harm to whoever awaits it.

    A future refuses ``StopIteration``, and ``SystemExit`` or ``KeyboardInterrupt`` raised by a
    task's body would end the event loop of the program that awaits it.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    name = component.name if isinstance(component, Component) else text_of(component)
    if not isinstance(error, BaseException):
        return RuntimeError(f"task '{name}' failed: {text_of(error)}")
    stand_in = RuntimeError(f"task '{name}' raised {text_of_error(error)}")
    stand_in.__cause__ = error
    return stand_in


def without_frames_of(error: BaseException, codes: Collection[CodeType]) -> None:
    """Take off the traceback of ``error`` those of its first frames that run these codes."""
    entry = error.__traceback__
    while entry is not None and entry.tb_frame.f_code in codes:
        entry = entry.tb_next
    if entry is not None:
        error.__traceback__ = entry
