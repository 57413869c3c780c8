"""The examples that have no file of their own, and what the page about all of them shows."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from trace_support import names_of

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
IMAGES = EXAMPLES.parent / "docs" / "images"


def run_collatz(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the example in ``folder``; a warning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "collatz.py"), *arguments],
        cwd=folder,
        env={**os.environ, "DFTRACER_TRACE": "run.pfw.gz", "DFTRACER_GRAPH": "graph.mmd"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("where", "processes"), [("here", 1), ("workers", 2)])
def test_the_winner_is_the_known_one_when_the_program_is_moved(
    tmp_path: Path, where: str, processes: int
) -> None:
    pytest.importorskip("distributed", reason="distributed is not installed")
    done = run_collatz(tmp_path, "--below", "10000", "--where", where)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "6,171 has the longest sequence below 10,000: 262 numbers\n"
    assert f"16 tasks in {processes} processes" in done.stderr
    assert names_of(tmp_path / "run.pfw.gz") == {"search": 16, "best": 5}
    graph = (tmp_path / "graph.mmd").read_text(encoding="utf-8")
    assert (graph.count("search"), graph.count("best"), graph.count("-->")) == (16, 5, 20)


def test_the_same_is_found_when_it_runs_on_a_cluster_that_is_there(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, dashboard_address=":0"
    ) as cluster:
        done = run_collatz(
            tmp_path, "--below", "1000", "--tasks", "5", "--where", cluster.scheduler_address
        )
        assert cluster.scheduler.workers  # it leaves the cluster as it was
    assert done.returncode == 0, done.stderr
    assert done.stdout == "871 has the longest sequence below 1,000: 179 numbers\n"
    assert "5 tasks in 1 processes" in done.stderr


def test_the_error_is_plain_when_there_is_nothing_to_search(tmp_path: Path) -> None:
    done = run_collatz(tmp_path, "--below", "3", "--tasks", "5")
    assert done.returncode == 2
    assert "at least one number for each task" in done.stderr


def test_every_picture_is_there_and_small_when_a_page_shows_it() -> None:
    pages = [EXAMPLES / "README.md", *(EXAMPLES.parent / "docs").glob("*.md")]
    shown = set()
    for page in pages:
        links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
        shown |= {(page.parent / link).resolve() for link in links}
    assert {path.name for path in shown} >= {"census.svg", "campaign.svg", "collatz.svg"}
    for path in shown:
        assert 1_000 < path.stat().st_size < 150_000, path
    assert {path for path in IMAGES.iterdir() if path.suffix != ".py"} <= shown


def test_every_program_is_told_of_when_it_is_an_example() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for program in EXAMPLES.glob("*.py"):
        assert f"python examples/{program.name}\n" in text
        assert f"../docs/images/{program.stem}.svg" in text
        assert f"../docs/images/{program.stem}.png" in text


def test_the_pictures_are_drawn_again_when_that_is_asked_for(tmp_path: Path) -> None:
    for name in ("plotly", "playwright", "graphviz", "distributed"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    redraw = IMAGES / "redraw.py"
    done = subprocess.run(
        [sys.executable, str(redraw), "collatz", "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        "collatz.svg",
        "collatz.png",
        "report-critical-path.png",
    }
    drawn = (tmp_path / "collatz.svg").read_text(encoding="utf-8")
    assert (drawn.count(">search<"), drawn.count(">best<")) == (16, 5)
    pictures = {path.stem for path in IMAGES.iterdir() if path.suffix != ".py"}
    drawn_by_hand = {"architecture"}
    assert pictures - drawn_by_hand == {
        *runpy.run_path(str(redraw))["RUNS"],
        "report-critical-path",
    }
