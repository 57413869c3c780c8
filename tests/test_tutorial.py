"""The tutorial, executed as a notebook: what its cells show, and what they leave behind."""

import asyncio
import email
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from docs_support import DOCS
from report_support import Browser
from trace_support import names_of

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")
pytest.importorskip("plotly", reason="plotly is not installed")
pytest.importorskip("rich", reason="rich is not installed")

STRICT = """import warnings

warnings.simplefilter("error")
warnings.filterwarnings("ignore", module="ipykernel")  # which warns of itself
"""


class Tutorial:
    """The notebook as it is after all of its cells have run in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        notebook = nbformat.read(DOCS / "tutorial.ipynb", as_version=4)
        nbformat.validate(notebook)
        notebook.cells.insert(0, nbformat.v4.new_code_cell(STRICT))
        client = nbclient.NotebookClient(
            notebook, timeout=50, resources={"metadata": {"path": str(folder)}}
        )
        asyncio.run(client.async_execute())
        self.cells: dict[str, Any] = {cell.id: cell for cell in notebook.cells}

    def printed(self, cell: str) -> str:
        """Return what a cell has written to its standard output."""
        outputs = self.cells[cell].outputs
        return "".join(each.text for each in outputs if each.get("name") == "stdout")

    def shown(self, cell: str) -> dict[str, str]:
        """Return the value of the last line of a cell, by media type."""
        [result] = [
            each.data for each in self.cells[cell].outputs if each.output_type == "execute_result"
        ]
        return dict(result)


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tutorial]:
    """Run it once, in a thread without an event loop: the browser's driver has one in this."""
    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(Tutorial, tmp_path_factory.mktemp("tutorial")).result()


def test_no_output_is_kept_when_the_notebook_is_committed() -> None:
    notebook = nbformat.read(DOCS / "tutorial.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)


def test_every_page_is_there_when_the_tutorial_names_it(tutorial: Tutorial) -> None:
    links = re.findall(r"\]\((.*?)\)", tutorial.cells["next"].source)
    assert links
    assert [link for link in links if not (DOCS / link).exists()] == []


def test_the_values_are_right_when_the_cells_have_run(tutorial: Tutorial) -> None:
    files = sorted(Path(email.__file__).parent.rglob("*.py"))
    lines = sum(path.read_bytes().count(b"\n") for path in files)
    assert tutorial.shown("square")["text/plain"] == "49"
    assert tutorial.shown("chain")["text/plain"] == "25"
    assert tutorial.printed("map") == f"{len(files)} files, {lines} lines\n"
    assert tutorial.shown("program")["text/plain"] == "True"
    assert tutorial.printed("failure") == "int\nFileNotFoundError\nDependencyFailureError\n"
    assert "no_such_file.py" in tutorial.printed("message")
    assert tutorial.shown("progress")["text/plain"] == str(sum(range(200)))


def test_nothing_is_written_to_the_standard_error_when_the_cells_run(tutorial: Tutorial) -> None:
    streams = [
        (name, output.text)
        for name, cell in tutorial.cells.items()
        for output in cell.get("outputs", ())
        if output.get("name") == "stderr"
    ]
    assert streams == []


def test_progress_and_the_graph_are_shown_when_the_notebook_displays_them(
    tutorial: Tutorial,
) -> None:
    bars = str(tutorial.cells["progress"].outputs)
    assert "fetch" in bars
    assert "200/200" in bars
    picture = tutorial.shown("graph")
    drawn = picture["image/svg+xml"] if shutil.which("dot") else picture["text/html"]
    for name in ("square", "add", "count_lines", "total", "wc", "compare", "fetch"):
        assert name in drawn


def test_the_trace_has_every_task_and_the_report_opens_when_the_notebook_has_ended(
    tutorial: Tutorial, chromium: Any
) -> None:
    files = int(tutorial.printed("map").split()[0])
    assert dict(names_of(tutorial.folder / "tutorial.pfw.gz")) == {
        "square": 3,
        "add": 1,
        "count_lines": files + 2,
        "total": 2,
        "wc": 1,
        "compare": 1,
        "fetch": 200,
    }
    assert "tutorial.html" in tutorial.shown("report")["text/html"]
    page = tutorial.folder / "tutorial.html"
    browser = Browser(chromium, page)
    browser.page.fill("#search", "no_such_file")
    assert browser.page.inner_text("#found") == "2 found"
    browser.check(page)
