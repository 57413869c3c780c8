"""The counts of tasks, shown while they run; all that is shown at a time shares one display."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field

from dftracer.utils.progress.counts import Meter, Shown, Source
from dftracer.utils.progress.ticker import FIRST_LOOK_S, Ticker
from dftracer.utils.progress.views import View, make_view


@dataclass(eq=False)
class _Group:
    """What one caller shows."""

    source: Source
    meter: Meter = field(default_factory=Meter)
    shown: list[Shown] = field(default_factory=list[Shown])
    is_active: bool = True
    looked_at: float = 0.0

    def look(self) -> None:
        self.looked_at = time.monotonic()
        self.shown = self.meter.measure(self.source())


class Display:
    """What is shown of several groups of tasks, as long as one of them is active."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.pid = os.getpid()
        self.groups: list[_Group] = []
        self.lock = threading.Lock()
        """Held while a group's source is asked."""
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
def show(source: Source, *, is_cheap: bool = True) -> Generator[None, None, None]:
    """Show the rows of ``source`` as long as the body of the ``with`` runs.

    Parameters
    ----------
    is_cheap:
        Whether to ask for the rows at the beginning too, and at the end even if nothing was shown.
    """
    global _display
    group, began = _Group(source), time.monotonic()
    with _lock:
        if _display is None or _display.pid != os.getpid():
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
