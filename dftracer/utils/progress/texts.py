"""Rows of counts as text."""

from __future__ import annotations

from collections.abc import Sequence

from dftracer.utils.progress.counts import Row, Shown

MOST_ROWS = 12
"""How many names are shown one by one."""


def fitted(shown: Sequence[Shown], most: int = MOST_ROWS) -> list[Shown]:
    """Return at most so many rows: the first that are not complete, and the rest as one."""
    if len(shown) <= most:
        return list(shown)
    by_need = sorted(shown, key=lambda each: each.row.ended >= each.row.total)
    single = set(map(id, by_need[: most - 1]))
    rest = [each for each in shown if id(each) not in single]
    sums = [sum(values) for values in zip(*[each.row[1:] for each in rest], strict=True)]
    known = [each.left for each in rest if each.left is not None]
    left = max(known) if len(known) == len(rest) else None
    total = Shown(Row(f"{len(rest)} others", *sums), sum(each.rate for each in rest), left)
    return [each for each in shown if id(each) in single] + [total]


def printable(text: str) -> str:
    """Return a text with invisible characters as Python writes them, for example ``"\\\\n"``."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def count_of(row: Row) -> str:
    """Return for example ``"5/1,000"``."""
    return f"{row.ended:,}/{row.total:,}"


def trouble_of(row: Row) -> str:
    """Return for example ``"3 failed"``; nothing if all went well."""
    parts: list[str] = []
    if row.failed:
        parts.append(f"{row.failed:,} failed")
    if row.cancelled:
        parts.append(f"{row.cancelled:,} cancelled")
    return ", ".join(parts)


def pace_of(shown: Shown) -> str:
    """Return for example ``"1,234/s"``; nothing if all had ended before anybody looked."""
    if not shown.rate and shown.row.ended >= shown.row.total:
        return ""
    return f"{shown.rate:,.0f}/s" if shown.rate >= 10 else f"{shown.rate:.2g}/s"


def left_of(shown: Shown) -> str:
    """Return for example ``"0:42 left"``; nothing if nothing is left."""
    if shown.row.ended >= shown.row.total:
        return ""
    if shown.left is None:
        return "-:-- left"
    minutes, seconds = divmod(round(shown.left), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f"{text} left"
