"""Run the examples again and draw their pictures: ``python docs/images/redraw.py [NAME ...]``.

For each example it writes ``NAME.svg``, the graph of the run, and ``NAME.png``, the report on it.
It needs ``pip install 'dftracer-asyncflow[dask,prompt,test,viz]'`` and the programs ``dot`` and
``chromium``. The model that the campaign asks is the server that answers in the tests.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MANY = """
from dftracer.utils import Runtime

def step(number):
    return sum(range(number % 9_700))

with Runtime(python_threads=8, trace="run.pfw.gz") as runtime:
    for number in range(100_000):
        runtime.submit(step, number, name=f"step {number % 12}")
"""


def run(folder: Path, *command: str) -> None:
    """Run a program in ``folder``, which leaves its trace and its graph there."""
    environment = {**os.environ, "DFTRACER_TRACE": "run.pfw.gz", "DFTRACER_GRAPH": "graph.svg"}
    null = subprocess.DEVNULL
    line = [sys.executable, *command]
    subprocess.run(line, cwd=folder, env=environment, check=True, stdout=null)


def example(name: str, *arguments: str) -> Callable[[Path], None]:
    """Return what runs one of the examples."""
    return lambda folder: run(folder, str(ROOT / "examples" / f"{name}.py"), *arguments)


def campaign(folder: Path) -> None:
    """Run the campaign with all of its three backends."""
    sys.path.insert(0, str(ROOT / "tests"))
    from prompt_server import PromptServer

    async def with_a_model() -> None:
        async with PromptServer() as server:
            start = example("campaign", "--base-url", server.url)
            await asyncio.to_thread(start, folder)

    asyncio.run(with_a_model())


def tutorial(folder: Path) -> None:
    """Execute the notebook; the graph is that which it shows."""
    import nbclient
    import nbformat

    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    asyncio.run(nbclient.NotebookClient(notebook, resources=resources).async_execute())
    [cell] = [cell for cell in notebook.cells if cell.id == "graph"]
    (folder / "graph.svg").write_text(cell.outputs[0].data["image/svg+xml"], encoding="utf-8")
    (folder / "tutorial.pfw.gz").rename(folder / "run.pfw.gz")


RUNS: dict[str, Callable[[Path], None]] = {
    "census": example("census", "--quiet"),
    "campaign": campaign,
    "collatz": example("collatz", "--where", "workers"),
    "tutorial": tutorial,
    "report-100000-tasks": lambda folder: run(folder, "-c", MANY),
}


def photograph(report: Path, picture: Path, critical_path: Path | None = None) -> None:
    """Open a report in the browser and take its picture."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 1000})
        page.goto(report.as_uri())
        page.wait_for_function("window.report && report.drawn > 0")
        page.wait_for_selector("#load .scatterlayer .trace path")
        page.click("#tabs >> text=By name")
        page.screenshot(path=picture)
        if critical_path is not None:
            page.check("#show-path")
            page.click("#tabs >> text=Critical path")
            page.screenshot(path=critical_path)
        browser.close()


def draw(name: str, start: Callable[[Path], None], output: Path) -> None:
    """Run one example and write its pictures to ``output``."""
    from dftracer.asyncflow.observe.report import write_report

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        start(folder)
        if (folder / "graph.svg").exists():
            shutil.copy(folder / "graph.svg", output / f"{name}.svg")
        report = write_report(folder / "run.pfw.gz", folder / "report.html", name)
        path = output / "report-critical-path.png" if name == "collatz" else None
        photograph(report, output / f"{name}.png", path)


def main(arguments: list[str] | None = None) -> None:
    """Draw what is asked for on the command line, or everything."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the examples again.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}")
    parser.add_argument("--output", type=Path, default=HERE, help="directory (default: this one)")
    args: Any = parser.parse_args(arguments)
    for name in args.names or RUNS:
        draw(name, RUNS[name], args.output)
        print(name)


if __name__ == "__main__":
    main()
