"""How far tasks have come, shown while they run: bars, or lines where no bars can be drawn.

A thread of its own looks at counts and draws them, and rests a hundred times as long as that took.
All that is shown at a time in this process shares one display.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from dftracer.utils.bars import View
    from dftracer.utils.runtime import Runtime

_log = logging.getLogger("dftracer.utils")

SHARE = 0.01
"""Which part of the time looking and drawing may take."""

FIRST_LOOK_S = 0.5
"""How long something must last to be shown while it does."""

_RATE_WINDOW_S = 30.0


class Row(NamedTuple):
    """The tasks of one name."""

    name: str
    total: int
    ended: int
    failed: int
    cancelled: int


Source = Callable[[], Sequence[Row]]
"""What to ask for the rows as they are now; called in the display's thread."""


class Shown(NamedTuple):
    """A row as it is shown."""

    row: Row
    rate: float
    """Ends per second, lately."""
    left: float | None
    """Seconds until all have ended if it goes on like this; ``None`` if nothing goes on."""


class Meter:
    """Tells how fast rows grow, from the second time on that they are measured."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[tuple[float, int]]] = {}
        self._measured_at: float | None = None

    def measure(self, rows: Sequence[Row], now: float | None = None) -> list[Shown]:
        """Take down the rows as they are ``now``, on the monotonic clock; return them to show."""
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


@dataclass(eq=False)
class _Group:
    """What one caller shows."""

    source: Source
    meter: Meter = field(default_factory=Meter)
    shown: list[Shown] = field(default_factory=list)
    is_active: bool = True
    looked_at: float = 0.0

    def look(self) -> None:
        self.looked_at = time.monotonic()
        self.shown = self.meter.measure(self.source())


class Ticker:
    """Calls a function again and again in a thread, which it keeps busy for 1% of the time.

    Parameters
    ----------
    act:
        What to call. When it fails, that is logged and the ticker stops.
    interval:
        Seconds between the calls, at least.
    name:
        That of the thread.
    """

    def __init__(self, act: Callable[[], object], interval: float, name: str) -> None:
        self._act = act
        self._interval = interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for a call that is being made."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        pause = FIRST_LOOK_S
        while not self._stopped.wait(pause):
            start = time.thread_time()
            try:
                self._act()
            except Exception:
                _log.debug("%s has failed", self._thread.name, exc_info=True)
                return
            pause = max(self._interval, (time.thread_time() - start) / SHARE)


class Display:
    """What is shown of several groups of tasks, as long as one of them is active."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.pid = os.getpid()
        self.groups: list[_Group] = []
        self.lock = threading.Lock()
        """Held by who looks."""
        self._ticker = Ticker(self._draw, view.interval, "dft-progress")

    def end(self) -> None:
        """Show how all has ended, and stop."""
        self._ticker.stop()
        with contextlib.suppress(Exception):
            self.view.close(self._shown())

    def _draw(self) -> None:
        for group in list(self.groups):
            with self.lock:
                if group.is_active:
                    group.look()
        self.view.draw(self._shown())

    def _shown(self) -> list[Shown]:
        latest: dict[Source, _Group] = {}  # one may be shown by several callers
        for group in list(self.groups):
            known = latest.setdefault(group.source, group)
            if group.looked_at > known.looked_at:
                latest[group.source] = group
        return [shown for group in latest.values() for shown in group.shown]


_lock = threading.Lock()
_display: Display | None = None


@contextlib.contextmanager
def show(source: Source, *, is_cheap: bool = True) -> Iterator[None]:
    """Show what ``source`` tells, as long as the body of the ``with`` runs.

    Parameters
    ----------
    is_cheap:
        Whether to ask it at once, too, and at the end if that comes before anything was shown.
    """
    global _display
    group, began = _Group(source), time.monotonic()
    with _lock:
        if _display is None or _display.pid != os.getpid():
            from dftracer.utils.bars import make_view

            _display = Display(make_view(sys.stderr))
        display = _display
        display.groups.append(group)
    if is_cheap:
        with contextlib.suppress(Exception), display.lock:
            group.look()
    try:
        yield
    finally:
        if os.getpid() == display.pid:  # and not in the child of a fork
            with _lock:
                group.is_active = False
                is_last = not any(each.is_active for each in display.groups)
                if is_last:
                    _display = None
            if is_cheap or time.monotonic() - began >= FIRST_LOOK_S:
                with contextlib.suppress(Exception), display.lock:
                    group.look()
            if is_last:
                display.end()


def _forget_in_child() -> None:
    """After ``fork()`` the parent's display has no thread here, and the lock may be held."""
    global _display, _lock
    _lock = threading.Lock()
    _display = None


os.register_at_fork(after_in_child=_forget_in_child)


class RuntimeRows:
    """The tasks of a runtime by their names.

    A runtime forgets a task that has ended when nobody holds its handle; those that were seen
    before are counted here. The others have no names any more.
    """

    def __init__(self) -> None:
        self._totals: dict[str, int] = {}
        self._last_id = -1

    def of(self, runtime: Runtime) -> list[Row]:
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
