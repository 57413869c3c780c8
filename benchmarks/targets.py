"""What a row has to reach. A target is judged on medians, from the results of one run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from results import Results, amount, digits


@dataclass(frozen=True)
class Verdict:
    """`met` is None when the run does not hold the samples the target needs, and
    `stretch_met` also where there is no stretch."""

    measured: str
    spread: str = ""
    met: bool | None = None
    stretch_met: bool | None = None


@dataclass(frozen=True)
class Target(ABC):
    """A bound for the median of some figures of a row, and one further on, if there is a stretch.

    It is an upper bound, but for `TimesFasterThan`.
    """

    limit: float
    stretch: float | None = None
    is_floor: ClassVar[bool] = False

    @property
    @abstractmethod
    def text(self) -> str: ...

    @abstractmethod
    def figures(self, results: Results, row: str) -> list[float]:
        """One figure for each repeat that has what it takes."""

    def show(self, figure: float) -> str:
        return f"{digits(figure)}x"

    def show_bound(self, bound: float) -> str:
        return f"{bound:g}x"

    @property
    def stretch_text(self) -> str:
        return "" if self.stretch is None else self.show_bound(self.stretch)

    def judge(self, results: Results, row: str) -> Verdict:
        figures = self.figures(results, row)
        if not figures:
            return Verdict("no sample")
        middle = median(figures)
        spread = f"{self.show(min(figures))} to {self.show(max(figures))}"
        stretch_met = None if self.stretch is None else self._reaches(middle, self.stretch)
        return Verdict(self.show(middle), spread, self._reaches(middle, self.limit), stretch_met)

    def _reaches(self, figure: float, bound: float) -> bool:
        return figure >= bound if self.is_floor else figure <= bound


@dataclass(frozen=True, kw_only=True)
class TimesFasterThan(Target):
    """The other side takes at least `limit` times as long as ours for each task."""

    side: str
    is_floor: ClassVar[bool] = True

    @property
    def text(self) -> str:
        return f"{self.side} takes at least {self.limit:g}x as long"

    def figures(self, results: Results, row: str) -> list[float]:
        return results.ratios(row, self.side, "ours")


@dataclass(frozen=True, kw_only=True)
class CostsAtMost(Target):
    """Ours takes at most `limit` times what the other side takes."""

    side: str

    @property
    def text(self) -> str:
        return f"ours at most {self.limit:g}x {self.side}"

    def figures(self, results: Results, row: str) -> list[float]:
        return results.ratios(row, "ours", self.side)


@dataclass(frozen=True, kw_only=True)
class Under(Target):
    """What ours takes, in all or for `each` task, is at most `limit` seconds or bytes."""

    unit: str = "seconds"
    each: bool = False

    @property
    def text(self) -> str:
        return f"ours at most {self.show_bound(self.limit)}{' each' if self.each else ''}"

    def show(self, figure: float) -> str:
        return amount(figure, self.unit)

    def show_bound(self, bound: float) -> str:
        return amount(bound, self.unit)

    def figures(self, results: Results, row: str) -> list[float]:
        cell = results.cell(row, "ours")
        if not cell.usable:
            return []
        return [s.per_task if self.each else s.value for s in cell.samples.values()]


@dataclass(frozen=True, kw_only=True)
class GrowthAtMost(Target):
    """Our time per task is at most `limit` times that of another row, in the same repeat."""

    base_row: str

    @property
    def text(self) -> str:
        return f"ours per task at most {self.limit:g}x that of {self.base_row}"

    def figures(self, results: Results, row: str) -> list[float]:
        return results.growth_ratios(row, self.base_row, "ours")
