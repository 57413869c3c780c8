"""The results of a run as a Markdown table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from catalog import Row, Side
from results import Cell, Results, amount, digits
from targets import Verdict


@dataclass(frozen=True)
class Setting:
    """How and where the samples were taken; `load` is the one-minute load before the first."""

    repeats: int
    quick: bool
    cores: int
    python: str
    system: str
    load: float
    installed: dict[str, str]


def judge(results: Results, row: Row, quick: bool) -> Verdict:
    """What the row's target comes to; without a target, or at quick sizes, nothing is judged."""
    if row.target is None:
        return Verdict("", None)
    if quick:
        return Verdict("not judged at --quick sizes", None)
    return row.target.judge(results, row.name)


def as_markdown(
    results: Results, rows: Sequence[Row], sides: Sequence[Side], setting: Setting
) -> str:
    headings = ["row", "what", *[side.label for side in sides], "target", "measured", "met"]
    lines = [_setting_line(setting), "", _line(headings), _line(["---"] * len(headings))]
    failures = []
    for row in rows:
        verdict = judge(results, row, setting.quick)
        cells = [_side_cell(results, row, side, setting.repeats) for side in sides]
        lines.append(
            _line(
                [
                    row.name,
                    f"{row.title} (here {row.quick_n:,})" if setting.quick else row.title,
                    *cells,
                    row.target.text if row.target else "",
                    verdict.measured,
                    _met(row, verdict),
                ]
            )
        )
        failures += [
            f"- {row.name}, {side.name}: {results.cell(row.name, side.name).failure}"
            for side in sides
            if results.cell(row.name, side.name).failure is not None
        ]
    lines += [
        "",
        (
            "Amounts are medians. `40x [38-43]` is how many times as much as ours it took: the"
            " median and the range of the ratios of pairs run one after the other."
        ),
    ]
    if failures:
        lines += ["", "Failed:", "", *failures]
    return "\n".join(lines)


def as_json(
    results: Results, rows: Sequence[Row], sides: Sequence[Side], setting: Setting
) -> dict[str, Any]:
    return {
        "setting": asdict(setting),
        "rows": [
            {
                "row": row.name,
                "title": row.title,
                "n": row.quick_n if setting.quick else row.n,
                "unit": row.unit,
                "sides": {side.name: _cell_as_json(results, row, side) for side in sides},
                "target": row.target.text if row.target else None,
                "verdict": asdict(judge(results, row, setting.quick)) if row.target else None,
            }
            for row in rows
        ],
    }


def _cell_as_json(results: Results, row: Row, side: Side) -> dict[str, Any]:
    cell = results.cell(row.name, side.name)
    ratios = results.ratios(row.name, side.name, "ours")
    return {
        "absent": cell.absent,
        "failure": cell.failure,
        "samples": [
            {"repeat": repeat, **asdict(cell.samples[repeat])} for repeat in sorted(cell.samples)
        ],
        "median": cell.median if cell.samples else None,
        "times_ours": ratios,
        "median_times_ours": median(ratios) if ratios else None,
    }


def _side_cell(results: Results, row: Row, side: Side, repeats: int) -> str:
    cell = results.cell(row.name, side.name)
    if cell.failure is not None:
        return "failed"
    if cell.absent or not cell.samples:
        return "-"
    text = amount(cell.median, row.unit)
    if side.name == "ours":
        text += f" ({_per_task(cell, row.unit)} each)"
    else:
        ratios = results.ratios(row.name, side.name, "ours")
        if ratios:
            spread = f"{digits(min(ratios))}-{digits(max(ratios))}"
            text += f", {digits(median(ratios))}x [{spread}]"
    if len(cell.samples) < repeats:
        text += f", {len(cell.samples)} runs only"
    return text


def _per_task(cell: Cell, unit: str) -> str:
    return amount(median(sample.per_task for sample in cell.samples.values()), unit)


def _setting_line(setting: Setting) -> str:
    installed = "; ".join(f"{name}: {what}" for name, what in setting.installed.items())
    return (
        f"Repeats: {setting.repeats}. Cores: {setting.cores}. "
        f"{setting.system}, {setting.python}, load {setting.load:.2f} at the start. {installed}."
    )


def _met(row: Row, verdict: Verdict) -> str:
    if row.target is None:
        return ""
    return {True: "yes", False: "NO", None: "not judged"}[verdict.met]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
