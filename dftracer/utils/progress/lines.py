"""Progress as lines of text, for streams on which no bars can be drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TextIO

from dftracer.utils.progress.counts import Row, Shown
from dftracer.utils.progress.texts import (
    count_of,
    fitted,
    left_of,
    pace_of,
    printable,
    trouble_of,
)

LINES_INTERVAL_S = 5.0


class Lines:
    """A line for each name whose counts have changed, every few seconds."""

    def __init__(self, stream: TextIO | None, interval: float = LINES_INTERVAL_S) -> None:
        self.interval = interval
        self._stream = stream
        self._written: dict[str, Row] = {}

    def draw(self, shown: Sequence[Shown]) -> None:
        lines: list[str] = []
        for each in fitted(shown):
            if self._written.get(each.row.name) != each.row:
                self._written[each.row.name] = each.row
                parts = [count_of(each.row), trouble_of(each.row), pace_of(each), left_of(each)]
                lines.append(f"{printable(each.row.name)}: {', '.join(filter(None, parts))}\n")
        if lines and self._stream is not None:
            with contextlib.suppress(OSError, ValueError):  # it is closed
                self._stream.write("".join(lines))
                self._stream.flush()

    close = draw
