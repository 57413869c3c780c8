"""Samples of one benchmark run, and the ratios between sides computed from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any


def digits(number: float) -> str:
    """Three significant digits, or whole when larger; never in exponent form."""
    text = f"{number:#.3g}".rstrip(".")
    return f"{number:.0f}" if "e" in text else text


def amount(value: float, unit: str) -> str:
    """A number of seconds or bytes, in the unit that suits its size."""
    scales = {
        "seconds": (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)),
        "bytes": (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)),
    }[unit]
    name, scale = next((pair for pair in scales if abs(value) >= pair[1]), scales[-1])
    return f"{digits(value / scale)} {name}"


@dataclass(frozen=True)
class Sample:
    """One measurement: one child process; seconds of its timed region, or bytes."""

    value: float
    n: int
    wall_seconds: float
    """Of the whole child process."""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def per_task(self) -> float:
        return self.value / self.n


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
    def values(self) -> list[float]:
        return [self.samples[repeat].value for repeat in sorted(self.samples)]

    @property
    def median(self) -> float:
        return median(self.values)


class Results:
    """The table of cells, addressed by row name and side name."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str, str], Cell] = {}

    def cell(self, row: str, side: str) -> Cell:
        return self._cells.setdefault((row, side), Cell())

    def ratios(self, row: str, side: str, base: str) -> list[float]:
        """What `side` took for each task over what `base` took, a ratio for each repeat both ran.

        There is none where one of them took nothing, or gave memory back.
        """
        upper, lower = self.cell(row, side), self.cell(row, base)
        if not (upper.usable and lower.usable):
            return []
        common = sorted(upper.samples.keys() & lower.samples.keys())
        pairs = [(upper.samples[i].per_task, lower.samples[i].per_task) for i in common]
        if any(each <= 0 for pair in pairs for each in pair):
            return []
        return [above / below for above, below in pairs]

    def growth_ratios(self, row: str, base_row: str, side: str) -> list[float]:
        """Seconds per task on `row` over seconds per task on `base_row`, for one side."""
        upper, lower = self.cell(row, side), self.cell(base_row, side)
        if not (upper.usable and lower.usable):
            return []
        common = sorted(upper.samples.keys() & lower.samples.keys())
        return [upper.samples[i].per_task / lower.samples[i].per_task for i in common]
