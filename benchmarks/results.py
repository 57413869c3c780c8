"""Samples of one benchmark run, and the ratios between sides computed from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any


def digits(number: float) -> str:
    """Three significant digits, or whole when larger; never in exponent form."""
    text = f"{number:#.3g}".rstrip(".")
    return f"{number:.0f}" if "e" in text else text


@dataclass(frozen=True)
class Sample:
    """One measurement: one child process, one timed region."""

    seconds: float
    n: int
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def per_task(self) -> float:
        return self.seconds / self.n


@dataclass
class Cell:
    """All samples of one side on one row, keyed by the number of the repeat."""

    samples: dict[int, Sample] = field(default_factory=dict)
    failure: str | None = None
    absent: bool = False

    @property
    def usable(self) -> bool:
        """True when every run so far gave a right answer in time."""
        return bool(self.samples) and self.failure is None

    @property
    def seconds(self) -> list[float]:
        return [self.samples[repeat].seconds for repeat in sorted(self.samples)]

    @property
    def median_seconds(self) -> float:
        return median(self.seconds)


class Results:
    """The table of cells, addressed by row name and side name."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str, str], Cell] = {}

    def cell(self, row: str, side: str) -> Cell:
        return self._cells.setdefault((row, side), Cell())

    def time_ratios(self, row: str, side: str, base: str) -> list[float]:
        """Seconds of `side` over seconds of `base`, one ratio for each repeat both ran."""
        upper, lower = self.cell(row, side), self.cell(row, base)
        if not (upper.usable and lower.usable):
            return []
        common = sorted(upper.samples.keys() & lower.samples.keys())
        return [upper.samples[i].seconds / lower.samples[i].seconds for i in common]

    def growth_ratios(self, row: str, base_row: str, side: str) -> list[float]:
        """Seconds per task on `row` over seconds per task on `base_row`, for one side."""
        upper, lower = self.cell(row, side), self.cell(base_row, side)
        if not (upper.usable and lower.usable):
            return []
        common = sorted(upper.samples.keys() & lower.samples.keys())
        return [upper.samples[i].per_task / lower.samples[i].per_task for i in common]
