"""How a component's end is told to others: names, messages, results, errors a future can hold."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from types import CodeType
from typing import Any

from dftracer.asyncflow.commands import to_text
from dftracer.asyncflow.engine.component import Component, RemoteTask
from dftracer.asyncflow.errors import (
    DependencyFailureError,
    ExecutableError,
    text_of,
    text_of_error,
)
from dftracer.utils.redaction import keep_environment

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
    return (isinstance(future, Component) and future._root) or label_of(future)


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
        if not isinstance(f, RemoteTask)  # it has not, and is not to be fetched for being asked
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
        f"cannot run '{component.name}': {shown} failed: {text_of_error(root)}",
        failed_dependencies=names,
        root_cause=root,
    )
    error.__cause__ = cause
    if isinstance(cause, DependencyFailureError):
        error._link = cause._link + 1
        if error._link == _LINKS:
            error._link, error.__cause__ = 0, root
    return error


def fit_for_future(component: Component[Any], error: Any) -> Exception:
    """Return an error that a future can hold without harm to whoever awaits it.

    A future refuses ``StopIteration``, and ``SystemExit`` or ``KeyboardInterrupt`` raised by a
    task's body would end the event loop of the program that awaits it.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    if not isinstance(error, BaseException):
        return RuntimeError(f"task '{component.name}' failed: {text_of(error)}")
    stand_in = RuntimeError(f"task '{component.name}' raised {text_of_error(error)}")
    stand_in.__cause__ = error
    return stand_in


def without_frames_of(error: BaseException, codes: Collection[CodeType]) -> None:
    """Take off the traceback of ``error`` those of its first frames that run these codes."""
    entry = error.__traceback__
    while entry is not None and entry.tb_frame.f_code in codes:
        entry = entry.tb_next
    if entry is not None:
        error.__traceback__ = entry


def result_on_backend(component: Component[Any], record: Mapping[str, Any]) -> Any:
    """Return what a backend says that a task has given."""
    if component._template.kind in ("function", "block"):
        return record.get("return_value")
    text = record.get("stdout")
    return record.get("return_value") if text is None else text


def failure_on_backend(component: Component[Any], record: Mapping[str, Any]) -> Any:
    """Return the error of a task that a backend calls failed, as it or its program has told it."""
    error = record.get("exception")
    is_program = component._template.kind == "executable"
    # Some backends give a text or what ends an interpreter as the error of a program.
    if error is not None and not (is_program and isinstance(error, (str, SystemExit))):
        return error
    backend = component._template.backend.name
    stdout, stderr = str(record.get("stdout") or ""), str(record.get("stderr") or "")
    exit_code = record.get("exit_code")
    if exit_code is None and isinstance(error, SystemExit):
        exit_code = error.code
    if not is_program or not isinstance(exit_code, int):
        reason = stderr.strip() or error or "which gave no reason"
        return RuntimeError(f"task '{component.name}' failed on backend '{backend}': {reason}")
    description = component._describe()
    command = to_text([description["executable"], *description["arguments"]])
    signal = -exit_code if exit_code < 0 else None  # as in `subprocess`
    keep_environment()
    return ExecutableError(
        component.name, command, None if signal else exit_code, signal, stdout, stderr
    )
