"""Draws the ratios of a run: `python plot.py RESULTS.json FIGURE.svg`.

Started by run.py in an environment that has matplotlib. Each row is a line, each peer a point on
it: the median of how many times as much as ours it took, and the range over pairs.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from statistics import median


def main(source: Path, figure_path: Path) -> None:
    matplotlib = import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "dftracer"  # the same picture from the same numbers
    plt = import_module("matplotlib.pyplot")

    content = json.loads(source.read_text())
    rows = [row for row in reversed(content["rows"]) if any(_ratios(row, s) for s in _peers(row))]
    peers = sorted({peer for row in rows for peer in _peers(row) if _ratios(row, peer)})
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.35 * len(rows)), layout="constrained")
    for number, peer in enumerate(peers):
        points = [(line, _ratios(row, peer)) for line, row in enumerate(rows)]
        points = [(line, ratios) for line, ratios in points if ratios]
        middles = [median(ratios) for _, ratios in points]
        below = [mid - min(r) for mid, (_, r) in zip(middles, points, strict=True)]
        above = [max(r) - mid for mid, (_, r) in zip(middles, points, strict=True)]
        axes.errorbar(
            middles,
            [line + 0.12 * (number - (len(peers) - 1) / 2) for line, _ in points],
            xerr=[below, above],
            fmt="os^Dv"[number % 5],
            markersize=5,
            capsize=2,
            label=peer,
        )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [row["row"] for row in rows])
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("times as much as ours (right of 1: ours takes less); median and range")
    axes.legend(loc="lower right", fontsize="small")
    figure.savefig(figure_path, metadata={"Date": None})


def _peers(row: dict[str, dict[str, dict[str, list[float]]]]) -> list[str]:
    return [side for side in row["sides"] if side != "ours"]


def _ratios(row: dict[str, dict[str, dict[str, list[float]]]], side: str) -> list[float]:
    return row["sides"][side]["times_ours"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
