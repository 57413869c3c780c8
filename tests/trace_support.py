"""What the tests of traces and reports share."""

import gzip
import json
import os
import subprocess
import sys
import venv
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

TOOLS = "DFTRACER_UTILS_VENV"
"""In the environment: a virtual environment in which dftracer-utils is installed already."""


def lines_of(path: Path) -> list[str]:
    """Return the lines of a trace, all of whose members must be complete."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()
    assert lines[0] == "["
    return lines[1:]


def events_of(path: Path) -> list[dict[str, Any]]:
    """Return the events of a trace; every line of it must be one."""
    return [json.loads(line) for line in lines_of(path)]


def tasks_of(path: Path) -> list[dict[str, Any]]:
    """Return the events that stand for tasks."""
    return [event for event in events_of(path) if event["ph"] == "X"]


def by_name(path: Path) -> dict[str, dict[str, Any]]:
    """Return the events of tasks by name, which must all be different."""
    tasks = tasks_of(path)
    named = {task["name"]: task for task in tasks}
    assert len(named) == len(tasks)
    return named


def names_of(path: Path) -> Counter[str]:
    """Return how many tasks there are of each name."""
    return Counter(task["name"] for task in tasks_of(path))


def assert_nested(tasks: Iterable[dict[str, Any]]) -> None:
    """See that on each row a task lies inside of another or beside it, as viewers demand."""
    rows: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for task in tasks:
        row = rows.setdefault((task["pid"], task["tid"]), [])
        row.append((task["ts"], task["ts"] + task["dur"]))
    for row in rows.values():
        around: list[int] = []
        for start, end in sorted(row, key=lambda span: (span[0], -span[1])):
            while around and around[-1] <= start:
                around.pop()
            assert not around or end <= around[-1]
            around.append(end)


@pytest.fixture(scope="session")
def peer_tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the programs of dftracer-utils, in an environment of its own."""
    if given := os.environ.get(TOOLS):
        return Path(given, "bin")
    folder = tmp_path_factory.mktemp("dftracer-utils")
    venv.create(folder, with_pip=True)
    install = [str(folder / "bin" / "pip"), "install", "-q", "dftracer-utils>=0.0.14"]
    try:
        subprocess.run(install, check=True, capture_output=True, timeout=50)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"dftracer-utils cannot be installed here: {error}")
    return folder / "bin"


def run_tool(*command: str | Path) -> str:
    """Run a program of dftracer-utils; return what it says."""
    # Away from here: the checkout would stand in for the package.
    result = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=30)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run_child(source: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python source as a program of its own in ``folder``."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **environment},
        timeout=30,
    )
