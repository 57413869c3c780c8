"""How a failure leaves a worker: an error that can be sent, and is opened where the engine is."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from dftracer.asyncflow.errors import text_of_error
from dftracer.utils import payload

_KEPT_FRAMES = 25
"""How many of the first, and of the last, frames of a traceback are sent."""


class BodyCancelledError(Exception):
    """A body has ended with :class:`asyncio.CancelledError`, and nobody had asked for that."""


class SentError(Exception):
    """What leaves a worker in the place of an error, which Dask need not understand.

    Its client would know nothing of a task whose error cannot be read where it is.
    """

    def __init__(self, packed: bytes | None, summary: str, facts: Mapping[str, Any]) -> None:
        super().__init__(packed, summary, facts)

    def __str__(self) -> str:
        return str(self.args[1])

    __repr__ = __str__

    @property
    def facts(self) -> Mapping[str, Any]:
        """What else is known of the task, for its description."""
        facts: Mapping[str, Any] = self.args[2]
        return facts

    def open(self, label: str) -> BaseException:
        """Return the error, or what can be had of it, of the task that messages call ``label``."""
        packed, summary, _ = self.args
        return payload.read_error(label, packed, summary)


def sendable(error: BaseException, facts: Mapping[str, Any]) -> SentError:
    """Return what can be sent in the place of an error, and ends no event loop here."""
    error.__traceback__ = _shortened(error.__traceback__)
    packed = None
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        with contextlib.suppress(BaseException):
            str(error)  # which those ask for who report it
            packed = payload.pack_error(error, links=True)
    sent = SentError(packed, text_of_error(error), facts)
    return sent.with_traceback(error.__traceback__)


def _shortened(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without what is in the middle of a long one, as of a recursion.

    Dask cannot pickle a deep one, and its client then never learns that the task has failed.
    """
    entries: list[TracebackType] = []
    while trace is not None:
        entries.append(trace)
        trace = trace.tb_next
    if len(entries) > 2 * _KEPT_FRAMES:
        entries = [*entries[:_KEPT_FRAMES], *entries[-_KEPT_FRAMES:]]
    kept = None
    for entry in reversed(entries):
        kept = TracebackType(kept, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return kept
