"""Where the main thread is when a signal arrives: in which run of a loop, and in whose code."""

from __future__ import annotations

import asyncio
import sys
from types import FrameType
from typing import Any

_CALLED_BY_THE_COLLECTOR = frozenset({"weakref", "_weakrefset"})
"""Modules whose functions are called when objects die. What they raise nobody gets."""


def current_run() -> object:
    """Return what names the run of the loop in this thread: it sets a hook of its own."""
    return sys.get_asyncgen_hooks().firstiter


def runs_for_ever(frame: FrameType | None) -> bool:
    """Tell whether a loop runs without an end, and not until a task has ended.

    Of a loop that is no Python code (uvloop's) that is not known, and false.
    """
    is_for_ever = False
    while frame is not None:
        name = frame.f_code.co_name
        if name == "run_until_complete":
            return False
        is_for_ever = is_for_ever or name == "run_forever"
        frame = frame.f_back
    return is_for_ever


def main_task(loop: asyncio.AbstractEventLoop) -> asyncio.Task[Any] | None:
    """Return the task that a loop is run for, if it is run for one.

    Every kind of loop knows it by the callback alone that stops the loop at its end.
    """
    for task in asyncio.all_tasks(loop):
        for callback, _ in getattr(task, "_callbacks", None) or ():
            if "run_until_complete" in getattr(callback, "__qualname__", ""):
                return task
    return None


def may_be_cut(frame: FrameType | None, *, also_in_library: bool) -> bool:
    """Tell whether an exception that is raised here leaves everybody's work whole.

    It does in the program's own code. In the middle of a step of asyncio's or the engine's it could
    take along what wakes a task, for ever. In the standard library it could keep a lock: there an
    exception is raised only if that takes long (``also_in_library``). In ``__del__`` it gets lost.
    """
    whose: bool | None = None
    while frame is not None:
        module: str = frame.f_globals.get("__name__") or ""
        if frame.f_code.co_name == "__del__" or module in _CALLED_BY_THE_COLLECTOR:
            return False
        if whose is None:
            root = module.partition(".")[0]
            if root == "asyncio" or module.startswith("dftracer.asyncflow"):
                return False
            if root not in sys.stdlib_module_names and not module.startswith("dftracer.utils"):
                whose = True
            elif not also_in_library:
                return False
        frame = frame.f_back
    return True
