"""How far the tasks of each name have come, and how fast they end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from dftracer.utils import _native

_RATE_WINDOW_S = 30.0


class Row(NamedTuple):
    """The tasks of one name."""

    name: str
    total: int
    ended: int
    failed: int
    cancelled: int


Source = Callable[[], Sequence[Row]]
"""Returns the rows as they are now; called in the display's thread."""


class Shown(NamedTuple):
    """A row as it is shown."""

    row: Row
    rate: float
    """Ends per second, lately."""
    left: float | None
    """Seconds until all have ended if it goes on like this; ``None`` if nothing goes on."""


class Meter:
    """Measures how fast rows grow, from the second time on that they are measured."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[tuple[float, int]]] = {}
        self._measured_at: float | None = None

    def measure(self, rows: Sequence[Row], now: float | None = None) -> list[Shown]:
        """Note rows as they are ``now``, on the monotonic clock; return them with their rates."""
        now = time.monotonic() if now is None else now
        shown = [self._measure(row, now) for row in rows]
        self._measured_at = now
        return shown

    def _measure(self, row: Row, now: float) -> Shown:
        samples = self._samples.get(row.name)
        if samples is None:
            before = self._measured_at
            samples = self._samples[row.name] = deque()
            if before is not None:  # there was nothing of that name then
                samples.append((before, 0))
        samples.append((now, row.ended))
        while len(samples) > 2 and samples[1][0] <= now - _RATE_WINDOW_S:
            samples.popleft()
        (then, count), rate = samples[0], 0.0
        if now > then:
            rate = max(0.0, (row.ended - count) / (now - then))
        missing = row.total - row.ended
        return Shown(row, rate, missing / rate if rate else None if missing else 0.0)


class RuntimeRows:
    """The tasks of a runtime by their names.

    A runtime forgets a task that has ended when nobody holds its handle; those that were seen
    before are counted here. The others have no names any more.
    """

    def __init__(self) -> None:
        self._totals: dict[str, int] = {}
        self._last_id = -1

    def of(self, runtime: _native.Runtime) -> list[Row]:
        """Return the rows as they are now; always of the same runtime."""
        progress = runtime.get_progress()
        last_id = self._last_id
        unfinished: dict[str, int] = {}
        ends: dict[str, dict[str, int]] = {"failed": {}, "cancelled": {}}
        tasks: list[Any] = list(progress["tasks"])
        listed: set[int] = set()
        for task in tasks:  # to which their children are added meanwhile
            tasks += task["children"]
            listed.add(task["task_id"])
            name, state = task["name"], task["state"]
            if task["task_id"] > last_id:
                self._totals[name] = self._totals.get(name, 0) + 1
                self._last_id = max(self._last_id, task["task_id"])
            if state in ("queued", "running"):
                unfinished[name] = unfinished.get(name, 0) + 1
            elif state in ends:
                ends[state][name] = ends[state].get(name, 0) + 1
        for failure in progress["errors"]:
            name, task_id = failure["name"], failure["task_id"]
            if task_id in listed:
                continue
            if task_id > last_id:
                self._totals[name] = self._totals.get(name, 0) + 1
                self._last_id = max(self._last_id, task_id)
            ends["failed"][name] = ends["failed"].get(name, 0) + 1
        unseen = progress["total"] - sum(self._totals.values())
        rows = [
            Row(
                name,
                total,
                max(0, total - unfinished.get(name, 0)),
                ends["failed"].get(name, 0),
                ends["cancelled"].get(name, 0),
            )
            for name, total in self._totals.items()
        ]
        if unseen > 0:
            rows.append(Row("(ended before)", unseen, unseen, 0, 0))
        return rows
