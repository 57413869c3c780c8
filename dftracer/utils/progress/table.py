"""Rows of counts as a table with bars, for terminals and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from dftracer.utils.progress.counts import Shown
from dftracer.utils.progress.texts import count_of, left_of, pace_of, printable, trouble_of

_NARROW = 60
"""Columns; below that there are only names and counts."""


def table_of(shown: Sequence[Shown], width: int) -> Any:
    """Return a ``rich.table.Table`` of a row for each name, ``width`` columns wide.

    It has bars unless it is narrow.

    Raises
    ------
    ImportError
        If ``rich`` is not installed.
    """
    # Not type-checked: what a type checker reports must not depend on which version is installed.
    progress_bar: Any = import_module("rich.progress_bar").ProgressBar
    text: Any = import_module("rich.text").Text
    table: Any = import_module("rich.table").Table.grid(padding=(0, 1))
    is_wide = width >= _NARROW
    wide, narrow = ("left", "left", "right", "right"), ("left", "right")
    for justify in (*(wide if is_wide else narrow), "left", "left"):
        table.add_column(justify=justify, no_wrap=True, overflow="ellipsis")
    table.columns[0].max_width = max(8, width // 3 if is_wide else width // 2)
    for each in shown:
        row = each.row
        cells: list[Any] = [
            text(printable(row.name), overflow="ellipsis"),
            count_of(row),
            text(trouble_of(row), "red"),
            text(left_of(each), "dim"),
        ]
        if is_wide:
            size = max(5, min(30, width - 60))
            cells.insert(1, progress_bar(max(row.total, 1), row.ended, width=size))
            cells.insert(3, text(pace_of(each), "cyan"))
        table.add_row(*cells)
    return table
