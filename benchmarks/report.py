"""The results of a run as a Markdown table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from catalog import GROUPS, Row, Side
from results import Cell, Results, amount, digits
from targets import Target, Verdict


@dataclass(frozen=True)
class Setting:
    """How and where the samples were taken; `load` is the one-minute load before the first."""

    repeats: int
    quick: bool
    cores: int
    processor: str
    python: str
    system: str
    load: float
    installed: dict[str, str]


def judge(results: Results, row: Row, target: Target, quick: bool) -> Verdict:
    """What a target of the row comes to; at quick sizes nothing is judged."""
    return Verdict("small size") if quick else target.judge(results, row.name)


def as_markdown(
    results: Results, rows: Sequence[Row], sides: Sequence[Side], setting: Setting
) -> str:
    """The setting, and for each group of rows its targets and its times."""
    lines = [_setting_line(setting), ""]
    for group in GROUPS:
        chosen = [row for row in rows if row.group == group]
        if not chosen:
            continue
        lines += [f"### {group.capitalize()}: targets", ""]
        lines += [*_targets(results, chosen, setting), ""]
        lines += [f"### {group.capitalize()}: measured", ""]
        lines += [*_measured(results, chosen, sides, setting), ""]
    lines += [
        "Amounts are medians. `40x [38-43]` is how many times as much as ours it took for each"
        " task: the median and the range of the ratios of pairs run one after the other."
    ]
    failures = [
        f"- {row.name}, {side.name}: {results.cell(row.name, side.name).failure}"
        for row in rows
        for side in sides
        if results.cell(row.name, side.name).failure is not None
    ]
    if failures:
        lines += ["", "Failed:", "", *failures]
    return "\n".join(lines)


def _targets(results: Results, rows: Sequence[Row], setting: Setting) -> list[str]:
    headings = ["row", "target", "measured", "range", "verdict", "stretch", "verdict"]
    lines = [_line(headings), _line(["---"] * len(headings))]
    for row in rows:
        for target in row.targets:
            verdict = judge(results, row, target, setting.quick)
            stretch = "" if target.stretch is None else _word(verdict.stretch_met)
            lines.append(
                _line(
                    [
                        row.name,
                        target.text,
                        verdict.measured,
                        verdict.spread,
                        _word(verdict.met),
                        target.stretch_text,
                        stretch,
                    ]
                )
            )
    return lines


def _measured(
    results: Results, rows: Sequence[Row], sides: Sequence[Side], setting: Setting
) -> list[str]:
    present = [s for s in sides if any(results.cell(row.name, s.name).samples for row in rows)]
    headings = ["row", "what", *[side.label for side in present]]
    lines = [_line(headings), _line(["---"] * len(headings))]
    for row in rows:
        title = row.title
        if setting.quick:
            title += f" (here {row.size_on('ours', quick=True):,})"
        cells = [_side_cell(results, row, side, setting.repeats) for side in present]
        lines.append(_line([row.name, title, *cells]))
    return lines


def as_json(
    results: Results, rows: Sequence[Row], sides: Sequence[Side], setting: Setting
) -> dict[str, Any]:
    return {
        "setting": asdict(setting),
        "rows": [
            {
                "row": row.name,
                "title": row.title,
                "group": row.group,
                "n": row.size_on("ours", quick=setting.quick),
                "unit": row.unit,
                "sides": {side.name: _cell_as_json(results, row, side) for side in sides},
                "targets": [
                    {
                        "target": target.text,
                        "stretch": target.stretch_text,
                        **asdict(judge(results, row, target, setting.quick)),
                    }
                    for target in row.targets
                ],
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
    tasks = next(iter(cell.samples.values())).n
    if side.name in row.sizes:
        text += f" for {tasks:,}"
    if side.name == "ours":
        text += f" ({_per_task(cell, row.unit)} each)"
    else:
        ratios = results.ratios(row.name, side.name, "ours")
        if ratios:
            spread = f"{digits(min(ratios))}-{digits(max(ratios))}"
            text += f", {digits(median(ratios))}x [{spread}]"
    if len(cell.samples) < min(repeats, row.repeats):
        text += f", {len(cell.samples)} runs only"
    return text


def _per_task(cell: Cell, unit: str) -> str:
    return amount(median(sample.per_task for sample in cell.samples.values()), unit)


def _setting_line(setting: Setting) -> str:
    installed = "; ".join(f"{name}: {what}" for name, what in setting.installed.items())
    return (
        f"Repeats: {setting.repeats}. {setting.processor}, {setting.cores} cores. "
        f"{setting.system}, {setting.python}, load {setting.load:.2f} at the start. {installed}."
    )


def _word(met: bool | None) -> str:
    return {True: "met", False: "missed", None: "not judged"}[met]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
