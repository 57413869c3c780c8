"""How progress looks: bars on a terminal or in a notebook, and lines everywhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Protocol, TextIO

from dftracer.utils.progress.bars import TerminalBars
from dftracer.utils.progress.counts import Shown
from dftracer.utils.progress.lines import Lines
from dftracer.utils.progress.notebook import NotebookBars

_hint_given = False


class View(Protocol):
    """Shows rows. Drawing is never done by two threads at a time."""

    interval: float
    """Seconds between two drawings, at least."""

    def draw(self, shown: Sequence[Shown]) -> None:
        """Show rows in place of those before."""

    def close(self, shown: Sequence[Shown]) -> None:
        """Show rows for the last time."""


def make_view(stream: TextIO | None) -> View:
    """Return what suits a standard stream of this process."""
    is_notebook = _in_notebook()
    if not is_notebook and not _is_terminal(stream):
        return Lines(stream)
    try:
        return NotebookBars() if is_notebook else TerminalBars(stream)
    except ImportError:
        global _hint_given
        if not _hint_given:
            _hint_given = True
            print(
                "progress: for bars instead of lines, which need 'rich': "
                "pip install 'dftracer-asyncflow[progress]'",
                file=sys.stderr,
            )
        return Lines(stream)


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # it is closed
        return False


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"
