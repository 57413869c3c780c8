"""Handles around tasks of others: futures of executors, handles of other runtimes."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from dftracer.utils._native import TaskHandle


def settle_with(handle: TaskHandle[Any], source: Future[Any] | TaskHandle[Any]) -> None:
    """End ``handle`` as soon as ``source`` has ended, and in the same way."""
    if isinstance(source, TaskHandle):
        source.add_done_callback(lambda ended: handle._adopt(*ended._report()))
    else:
        source.add_done_callback(lambda ended: _settle_with_future(handle, ended))


def _settle_with_future(handle: TaskHandle[Any], future: Future[Any]) -> None:
    # As those see it who ask the future: a subclass may give another result than it was given.
    # Whatever that raises ends the handle: in a callback nobody would hear of it.
    try:
        value = future.result()
    except BaseException as error:
        if future.cancelled():
            handle._adopt("cancelled", None)
        else:
            handle._adopt("failed", error)
    else:
        handle._adopt("done", value)
