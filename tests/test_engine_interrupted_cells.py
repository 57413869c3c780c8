"""Each test of ``interrupted_cells.py`` in a process of its own.

They raise ``KeyboardInterrupt`` with the profiler's hook. On CPython 3.11 code that has one makes
no progress while some thread of its process has yet to raise what another has sent to it, and
bodies that other tests have left behind may never do so.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from interrupted_cells import STRIDE

TESTS = Path(__file__).with_name("interrupted_cells.py")
GUARD_S = 100


@pytest.mark.parametrize("first", range(1, STRIDE + 1))
@pytest.mark.parametrize(
    "name",
    [
        "test_next_cell_runs_when_one_was_interrupted[{}]",
        "test_shutdown_ends_when_an_interrupt_came_anywhere[a cell-{}]",
        "test_shutdown_ends_when_an_interrupt_came_anywhere[the shutdown-{}]",
    ],
)
def test_it_passes_when_it_is_alone(name: str, first: int) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "DFTRACER_FIGURES"}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"{TESTS}::{name.format(first)}"],
        cwd=TESTS.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=GUARD_S,
    )
    assert ended.returncode == 0, ended.stdout
