"""One page that shows a trace, with all that it needs inside: it loads nothing from anywhere."""

from __future__ import annotations

import html
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from dftracer.asyncflow.observe.report import analysis
from dftracer.asyncflow.observe.report.reader import TaskSpan, Trace, read_trace
from dftracer.utils.whole_file import replacing

_SLOWEST = 200
_FAILURES = 1_000
_WAITS = 200
_STEPS = 2_000
"""How many lines each table has at most; the page says how many there are in all."""


def write_report(
    traces: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
    output: str | os.PathLike[str],
    title: str | None = None,
) -> Path:
    """Make a page of traces, to be opened in any browser, without a network.

    Parameters
    ----------
    traces:
        A trace file (``.pfw.gz`` or ``.pfw``), a directory of them, or several of both, which are
        shown on one timeline.
    output:
        The HTML file to write.
    title:
        What the page is called; the names of the traces by default.

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    ImportError
        If the extra ``[viz]`` is not installed.
    FileNotFoundError
        If there is no such trace.
    ValueError
        If there is no task in the traces.
    OSError
        If the page cannot be written.
    """
    paths = [traces] if isinstance(traces, (str, os.PathLike)) else list(traces)
    library = _chart_library()
    title = title or ", ".join(os.path.basename(os.path.abspath(path)) for path in paths)
    page = render(read_trace(paths), title, library)
    target = Path(output)
    with replacing(target) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace")
    return target


def _chart_library() -> str:
    """Return the program text of Plotly, as its package ships it."""
    try:
        from plotly import offline as library  # pyright: ignore[reportMissingImports,reportUnknownVariableType]
    except ImportError as error:
        raise ImportError(
            "a report needs plotly, whose charts it shows: pip install 'dftracer-asyncflow[viz]'",
            name=error.name,
        ) from error
    return str(library.get_plotlyjs())  # pyright: ignore[reportUnknownMemberType,reportUnknownArgumentType]


def render(trace: Trace, title: str, library: str) -> str:
    """Return the page of a trace."""
    folder = resources.files("dftracer.asyncflow.observe.report")
    parts = {
        "title": html.escape(title),
        "style": folder.joinpath("page.css").read_text(encoding="utf-8"),
        # Text that ends a script early would be run as part of the page.
        "data": json.dumps(_data_of(trace), separators=(",", ":")).replace("<", "\\u003c"),
        "library": library,
        "script": folder.joinpath("page.js").read_text(encoding="utf-8"),
    }
    page = folder.joinpath("page.html").read_text(encoding="utf-8")
    # In one go: a title or the name of a task may look like a place.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], page)


def _data_of(trace: Trace) -> dict[str, Any]:
    """Return all that the page shows: columns for the many, records for the few."""
    begin, end = analysis.span_of(trace)
    tasks = trace.tasks
    numbers = {id(task): number for number, task in enumerate(tasks)}
    names = _numbered(task.name for task in tasks)
    rows = {row: number for number, row in enumerate(_ordered_rows(trace))}
    states = ["done", "failed", "cancelled"]
    load = analysis.load_of(trace)
    path = analysis.critical_path_of(trace)
    waits = analysis.waits_of(trace)
    failed = [task for task in tasks if task.state == "failed" or "exit_code" in task.details]
    plain = [task for task in tasks if not task.is_block]
    slowest = sorted(plain, key=lambda task: -task.duration)[:_SLOWEST]
    return {
        "begin_us": begin,
        "span_us": end - begin,
        "lost": trace.lost,
        "left_out": trace.left_out,
        "blocks": len(tasks) - len(plain),
        "states": Counter(task.state for task in plain),
        "busy_us": sum(task.duration for task in plain),
        "names": list(names),
        "rows": [trace.rows[row] for row in rows],
        "tasks": {
            "name": [names[task.name] for task in tasks],
            "row": [rows[task.row] for task in tasks],
            "start": [task.start - begin for task in tasks],
            "duration": [task.duration for task in tasks],
            "queued": [task.queued for task in tasks],
            "waited": [task.waited for task in tasks],
            "state": [states.index(task.state) if task.state in states else 0 for task in tasks],
            "block": [number for number, task in enumerate(tasks) if task.is_block],
        },
        "uids": _uids(tasks),
        "load": {
            "width_us": load.width,
            "running": _rounded(load.running),
            "queued": _rounded(load.queued),
            "ended": _rounded(load.ended_per_second),
        },
        "statistics": [
            {
                "name": names[each.name],
                "count": len(each.durations),
                "total": sum(each.durations),
                "median": each.percentile(0.5),
                "p95": each.percentile(0.95),
                "longest": max(each.durations),
                "queued": each.queued,
                "failed": each.failed,
            }
            for each in analysis.statistics_of(trace)
        ],
        "path": [[numbers[id(step.task)], step.reason, step.wait] for step in path[-_STEPS:]],
        "waits": [vars(wait) for wait in waits[:_WAITS]],
        "slowest": [numbers[id(task)] for task in slowest],
        "failures": [
            [numbers[id(task)], {key: str(value) for key, value in task.details.items()}]
            for task in failed[:_FAILURES]
        ],
        "totals": {
            "path": len(path),
            "work_us": sum(step.task.duration for step in path),
            "between_us": sum(step.wait for step in path),
            "failures": len(failed),
        },
    }


def _numbered(items: Iterable[str]) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for item in items:
        numbers.setdefault(item, len(numbers))
    return numbers


def _uids(tasks: list[TaskSpan]) -> list[str]:
    """Return the identifier of each task; an empty list if none has one."""
    uids = [str(task.details.get("uid", "")) for task in tasks]
    return uids if any(uids) else []


def _ordered_rows(trace: Trace) -> list[tuple[int, int]]:
    """Return the rows by name, with numbers in their order; blocks, which only wait, are last."""
    blocks = {task.row for task in trace.tasks if task.is_block}

    def place(row: tuple[int, int]) -> tuple[Any, ...]:
        label = trace.rows[row]
        words = [(part.isdigit(), part.zfill(12)) for part in label.replace("-", " ").split()]
        return (row in blocks, words, row)

    return sorted(trace.rows, key=place)


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]
