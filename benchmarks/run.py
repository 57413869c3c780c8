"""Run ours, the peers and the standard library side by side and print how they compare."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from catalog import GROUPS, ROWS, SIDES, Row, Side, find_row, find_side
from environments import EnvironmentNotMadeError, child_environment, draw, prepare, python_of
from page import write_figures
from report import Setting, as_json, as_markdown, judge
from results import Results, Sample, amount
from sides import usable_cores

CASES = Path(__file__).resolve().parent / "cases.py"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"

SLOW_SECONDS = 20.0
SLOW_REPEATS = 2

Entry = TypeVar("Entry")


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    installed: dict[str, str] = {}
    results = Results()
    for side in options.sides:
        try:
            installed[side.name] = prepare(side, options.wheel)
        except EnvironmentNotMadeError as error:
            print(f"the environment of {side.name} was not made:\n{error}", file=sys.stderr)
            if side.name == "ours":
                return 2
            for row in options.rows:
                results.cell(row.name, side.name).failure = "could not be installed"

    setting = Setting(
        repeats=options.repeats,
        quick=options.quick,
        cores=usable_cores(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        processor=_processor(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        load=os.getloadavg()[0],
        installed=installed,
    )
    measure_all(options, results)

    table = as_markdown(results, options.rows, options.sides, setting)
    print(table)
    if options.output is not None:
        content = as_json(results, options.rows, options.sides, setting)
        options.output.write_text(json.dumps(content, indent=2) + "\n")
    if options.table is not None:
        options.table.write_text(table + "\n")
    if options.docs:
        write_figures(PAGE, table)
        options.plot = PAGE.with_suffix(".svg")
    if options.plot is not None:
        draw(as_json(results, options.rows, options.sides, setting), options.plot)

    verdicts = [
        judge(results, row, target, options.quick) for row in options.rows for target in row.targets
    ]
    if any(results.cell(row.name, "ours").failure for row in options.rows):
        return 1
    if options.check and any(verdict.met is False for verdict in verdicts):
        return 1
    return 0


def _processor() -> str:
    """The model of the processor, where Linux tells it."""
    with suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def measure_all(options: argparse.Namespace, results: Results) -> None:
    """All rows once, then all rows again, ...; within a row the sides take turns."""
    for repeat in range(options.repeats):
        for row in options.rows:
            for side in options.sides:
                if side.name in row.without:
                    continue
                cell = results.cell(row.name, side.name)
                if cell.absent or cell.failure is not None or repeat >= row.repeats:
                    continue
                slow = any(sample.wall_seconds > SLOW_SECONDS for sample in cell.samples.values())
                if repeat >= SLOW_REPEATS and slow:
                    continue
                outcome = measure(side, row, quick=options.quick, timeout=options.timeout)
                if outcome is None:
                    cell.absent = True
                    continue
                if isinstance(outcome, Sample):
                    cell.samples[repeat] = outcome
                    said = amount(outcome.value, row.unit)
                else:
                    cell.failure = said = outcome
                where = f"{repeat + 1}/{options.repeats} {row.name} {side.name}"
                print(f"{where}: {said}", file=sys.stderr, flush=True)


def measure(side: Side, row: Row, *, quick: bool, timeout: float) -> Sample | str | None:
    """One child process: its sample, or why there is none, or None without such a case."""
    command = [str(python_of(side)), str(CASES), side.name, row.name]
    if quick:
        command.append("--quick")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with child:
            try:
                output, errors = child.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                _kill(child)
                return f"over {timeout:g} s"
            except BaseException:
                _kill(child)
                raise
    if child.returncode != 0:
        return _why(child.returncode, errors)
    try:
        answer: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return "ended well but printed no result"
    if answer.get("absent"):
        return None
    seconds = time.monotonic() - began
    return Sample(float(answer["value"]), int(answer["n"]), seconds, dict(answer["extra"]))


def _kill(child: subprocess.Popen[str]) -> None:
    """End the child and what it started; the child leads a process group of its own."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _why(code: int, errors: str) -> str:
    lines = [line for line in errors.strip().splitlines() if line.strip()]
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return lines[-1].strip() if lines else f"exit code {code}"


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/run.py",
        description="Compare ours with radical.asyncflow and the standard library.",
    )
    parser.add_argument(
        "--rows",
        type=_names(find_row),
        default=list(ROWS),
        metavar="ROW,...",
        help="only these rows: " + ", ".join(row.name for row in ROWS),
    )
    parser.add_argument("--only", choices=GROUPS, help="only the rows of this group")
    parser.add_argument(
        "--sides",
        type=_names(find_side),
        default=list(SIDES),
        metavar="SIDE,...",
        help="only these sides: " + ", ".join(side.name for side in SIDES),
    )
    parser.add_argument("--repeats", type=_positive, default=5, help="samples per cell (5)")
    parser.add_argument("--quick", action="store_true", help="small sizes, no target judged")
    parser.add_argument("--wheel", type=_wheel, help="our wheel, instead of building one")
    parser.add_argument(
        "--timeout", type=float, default=300.0, metavar="SECONDS", help="per measurement (300)"
    )
    parser.add_argument("--output", type=Path, help="write every sample to this file as JSON")
    parser.add_argument("--table", type=Path, help="write the table to this file as Markdown")
    parser.add_argument("--plot", type=Path, help="draw the ratios into this file as SVG")
    parser.add_argument(
        "--docs", action="store_true", help="write table and plot into docs/performance.md"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    options = parser.parse_args(arguments)
    if options.only is not None:
        options.rows = [row for row in options.rows if row.group == options.only]
    return options


def _names(find: Callable[[str], Entry]) -> Callable[[str], list[Entry]]:
    def parsed(text: str) -> list[Entry]:
        try:
            return [find(name.strip()) for name in text.split(",")]
        except KeyError as error:
            raise argparse.ArgumentTypeError(error.args[0]) from None

    return parsed


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _wheel(text: str) -> Path:
    path = Path(text).resolve()
    if not path.is_file() or path.suffix != ".whl":
        raise argparse.ArgumentTypeError(f"{text} is not a wheel file")
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
