"""Rows of counts as a table with bars, for terminals and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dftracer.utils.progress.counts import Shown
from dftracer.utils.progress.texts import count_of, left_of, pace_of, printable, trouble_of

if TYPE_CHECKING:
    from rich.table import Table

_NARROW = 60
"""Columns; below that there are only names and counts."""


def table_of(shown: Sequence[Shown], width: int) -> Table:
    """Return a row for each name, for a terminal of that width; with bars if it is not narrow."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    is_wide = width >= _NARROW
    wide, narrow = ("left", "left", "right", "right"), ("left", "right")
    for justify in (*(wide if is_wide else narrow), "left", "left"):
        table.add_column(justify=justify, no_wrap=True, overflow="ellipsis")
    table.columns[0].max_width = max(8, width // 3 if is_wide else width // 2)
    for each in shown:
        row = each.row
        cells = [
            Text(printable(row.name), overflow="ellipsis"),
            count_of(row),
            Text(trouble_of(row), "red"),
            Text(left_of(each), "dim"),
        ]
        if is_wide:
            size = max(5, min(30, width - 60))
            cells.insert(1, ProgressBar(max(row.total, 1), row.ended, width=size))
            cells.insert(3, Text(pace_of(each), "cyan"))
        table.add_row(*cells)
    return table
