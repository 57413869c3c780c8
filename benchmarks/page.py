"""Puts figures into a page of the documentation, in place of those of an earlier run."""

from __future__ import annotations

from pathlib import Path

BEGIN = "<!-- figures: written by the command above -->"
END = "<!-- end of figures -->"


def write_figures(page: Path, figures: str) -> None:
    """Replace what stands between the two marks of `page`; it must have both."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no place for figures: a line {BEGIN!r}, a line {END!r}")
    page.write_text(f"{before}{BEGIN}\n\n{figures.strip()}\n\n{END}{after}")
