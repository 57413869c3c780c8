"""Progress as bars in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from dftracer.utils.progress.counts import Shown
from dftracer.utils.progress.table import table_of
from dftracer.utils.progress.texts import fitted

_INTERVAL_S = 0.5


class NotebookBars:
    """Bars in the output of a notebook's cell."""

    interval = _INTERVAL_S

    def __init__(self) -> None:
        import_module("rich.jupyter")  # to fail here if it is not there
        self._display: Callable[..., Any] = import_module("IPython.display").display
        self._handle: Any = None

    def draw(self, shown: Sequence[Shown]) -> None:
        table = table_of(fitted(shown), 100)
        if self._handle is None:
            self._handle = self._display(table, display_id=True)
        else:
            self._handle.update(table)

    close = draw
