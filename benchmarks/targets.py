"""What a row has to reach. A target is judged on medians, from the results of one run."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Protocol

from results import Results, amount, digits


@dataclass(frozen=True)
class Verdict:
    """`met` is None when the run does not hold the samples the target needs."""

    measured: str
    met: bool | None


class Target(Protocol):
    @property
    def text(self) -> str: ...

    def judge(self, results: Results, row: str) -> Verdict: ...


@dataclass(frozen=True)
class TimesFasterThan:
    """The other side takes at least `factor` times as long as ours."""

    side: str
    factor: float

    @property
    def text(self) -> str:
        return f"{self.side} takes at least {self.factor:g}x as long"

    def judge(self, results: Results, row: str) -> Verdict:
        ratios = results.ratios(row, self.side, "ours")
        if not ratios:
            return Verdict("no pair", None)
        ratio = median(ratios)
        return Verdict(f"{digits(ratio)}x", ratio >= self.factor)


@dataclass(frozen=True)
class SecondsUnder:
    """Our whole timed region takes less than `limit` seconds."""

    limit: float

    @property
    def text(self) -> str:
        return f"ours under {self.limit:g} s"

    def judge(self, results: Results, row: str) -> Verdict:
        cell = results.cell(row, "ours")
        if not cell.usable:
            return Verdict("no sample", None)
        return Verdict(f"{digits(cell.median)} s", cell.median < self.limit)


@dataclass(frozen=True)
class EachUnder:
    """What ours takes for each task, in seconds or bytes, is less than `limit`."""

    limit: float
    unit: str

    @property
    def text(self) -> str:
        return f"ours under {amount(self.limit, self.unit)} each"

    def judge(self, results: Results, row: str) -> Verdict:
        cell = results.cell(row, "ours")
        if not cell.usable:
            return Verdict("no sample", None)
        each = median(sample.per_task for sample in cell.samples.values())
        return Verdict(amount(each, self.unit), each < self.limit)


@dataclass(frozen=True)
class BytesUnder:
    """Our whole row leaves less than `limit` bytes."""

    limit: float

    @property
    def text(self) -> str:
        return f"ours under {amount(self.limit, 'bytes')}"

    def judge(self, results: Results, row: str) -> Verdict:
        cell = results.cell(row, "ours")
        if not cell.usable:
            return Verdict("no sample", None)
        return Verdict(amount(cell.median, "bytes"), cell.median < self.limit)


@dataclass(frozen=True)
class CostsAtMost:
    """Ours takes at most `percent` more than the other side."""

    side: str
    percent: float

    @property
    def text(self) -> str:
        return f"ours at most {self.percent:g}% above {self.side}"

    def judge(self, results: Results, row: str) -> Verdict:
        ratios = results.ratios(row, "ours", self.side)
        if not ratios:
            return Verdict("no pair", None)
        above = 100 * (median(ratios) - 1)
        return Verdict(f"{above:+.1f}%", above <= self.percent)


@dataclass(frozen=True)
class GrowthAtMost:
    """Our time per task is at most `factor` times that of the smaller row.

    The same growth of `compared_with`, where it was measured, is told beside ours.
    """

    base_row: str
    factor: float
    compared_with: str

    @property
    def text(self) -> str:
        return f"ours per task at most {self.factor:g}x that of {self.base_row}"

    def judge(self, results: Results, row: str) -> Verdict:
        ratios = results.growth_ratios(row, self.base_row, "ours")
        if not ratios:
            return Verdict(f"no pair with {self.base_row}", None)
        ratio = median(ratios)
        measured = f"{digits(ratio)}x"
        theirs = results.growth_ratios(row, self.base_row, self.compared_with)
        if theirs:
            measured += f" ({self.compared_with}: {digits(median(theirs))}x)"
        return Verdict(measured, ratio <= self.factor)
