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
    if future.cancelled():
        handle._adopt("cancelled", None)
    elif (error := future.exception()) is not None:
        handle._adopt("failed", error)
    else:
        handle._adopt("done", future.result())
