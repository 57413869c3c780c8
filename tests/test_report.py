"""Reports: what a trace is taken to mean, and the page that shows it in a real browser."""

import asyncio
import builtins
import gzip
import json
import random
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dftracer.asyncflow import WorkflowEngine
from dftracer.asyncflow.__main__ import main
from dftracer.asyncflow.report import analysis, write_report
from dftracer.asyncflow.report.reader import Trace, read_trace

SECOND = 1_000_000
BEGIN = 1_700_000_000 * SECOND


def event(name: str, start: float, end: float, **more: Any) -> dict[str, Any]:
    """Return a task that ran between two seconds."""
    arguments = {"state": "done", "engine": "e", **more}
    return {
        "name": name,
        "cat": arguments.pop("cat", "python"),
        "pid": 1,
        "tid": arguments.pop("tid", 1),
        "ts": BEGIN + int(start * SECOND),
        "dur": int((end - start) * SECOND),
        "ph": "X",
        "args": arguments,
    }


def write(path: Path, events: list[dict[str, Any]]) -> Path:
    """Write a trace; each event is a line."""
    lines = [json.dumps({"id": number, **each}) for number, each in enumerate(events)]
    path.write_bytes(gzip.compress("\n".join(["[", *lines, "]", ""]).encode()))
    return path


def read(folder: Path, *events: dict[str, Any]) -> Trace:
    """Return what is read of a trace of ``events``."""
    return read_trace([write(folder / "run.pfw.gz", list(events))])


def shift(seconds: float) -> int:
    return int(seconds * SECOND)


# --- what it means --------------------------------------------------------------------------------


def test_load_is_the_average_of_each_moment_when_tasks_overlap(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        event("a", 0, 6, tid=1),
        event("b", 3, 6, tid=2, queued_us=shift(3)),
        event("whole", 0, 6, tid=3, cat="block"),
    )
    load = analysis.load_of(trace)
    half = len(load.running) // 2
    assert load.running[:half] == pytest.approx([1.0] * half)
    assert load.running[half:] == pytest.approx([2.0] * half)
    assert load.queued[:half] == pytest.approx([1.0] * half)
    assert sum(load.ended_per_second) * load.width / 1e6 == pytest.approx(2)


def test_load_is_exact_in_total_when_times_are_random(tmp_path: Path) -> None:
    chance = random.Random(4)
    events = []
    for number in range(500):
        start = chance.random() * 10
        events.append(event("a", start, start + chance.random() ** 4 * 5, tid=number))
    trace = read(tmp_path, *events)
    load = analysis.load_of(trace)
    busy = sum(task.duration for task in trace.tasks)
    assert sum(load.running) * load.width == pytest.approx(busy, rel=1e-6)


def test_critical_path_follows_the_reason_of_each_beginning_when_there_are_several_kinds(
    tmp_path: Path,
) -> None:
    wait = {"wait_us": shift(2)}
    trace = read(
        tmp_path,
        event("outer", 0, 9, uid="block.1", cat="block", tid=9),
        event("early", 0, 1, uid="task.2", owner="block.1", tid=1),
        event("slow", 0, 2, uid="task.3", owner="block.1", tid=2),
        event("joined", 2, 3, uid="task.4", owner="block.1", deps="task.2 task.3", tid=1, **wait),
        event("after", 3, 5, uid="task.5", owner="block.1", tid=2),
        event("queued", 5, 7, uid="task.6", owner="block.1", tid=2, queued_us=shift(1.5)),
        event("aside", 3, 6, uid="task.7", owner="block.1", tid=1),
    )
    steps = analysis.critical_path_of(trace)
    assert [(step.task.name, step.reason) for step in steps] == [
        ("slow", "beginning"),
        ("joined", "dependency"),
        ("after", "block"),
        ("queued", "worker was busy"),
    ]
    assert sum(step.task.duration + step.wait for step in steps) == shift(7)


def test_critical_path_ends_when_dependencies_and_owners_are_circular(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        event("a", 0, 1, uid="1", deps="2", owner="2"),
        event("b", 0, 1, uid="2", deps="1", owner="1"),
        event("c", 0, 1, uid="3", deps="3 none", owner="3"),
    )
    assert 1 <= len(analysis.critical_path_of(trace)) <= 3


def test_waits_are_put_down_to_the_dependency_that_ended_last(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        event("fast", 0, 1, uid="1", tid=1),
        event("slow", 0, 3, uid="2", tid=2),
        event("waiter", 3, 4, uid="3", deps="1 2", wait_us=shift(3), tid=1),
        event("waiter", 1, 2, uid="4", deps="1", wait_us=shift(1), tid=1),
    )
    waits = [(w.waiter, w.awaited, w.count, w.longest) for w in analysis.waits_of(trace)]
    assert waits == [("waiter", "slow", 1, shift(3)), ("waiter", "fast", 1, shift(1))]


def test_a_trace_of_another_tool_is_read_when_it_lacks_what_only_ours_tell(tmp_path: Path) -> None:
    other = {"name": "read", "cat": "POSIX", "pid": 3, "tid": 4, "ts": 5, "dur": 6, "ph": "X"}
    numbered = {**other, "name": "write", "ph": 1, "args": {"fhash": "1"}}
    trace = read(tmp_path, other, numbered, {"name": "HH", "ph": "M", "args": {"value": "h"}})
    assert [task.name for task in trace.tasks] == ["read", "write"]
    assert list(trace.rows.values()) == ["thread 4"]
    assert analysis.critical_path_of(trace)


def test_what_is_there_is_read_when_the_end_of_a_file_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "run.pfw.gz", [event("a", 0, 1)])
    whole = path.read_bytes()
    path.write_bytes(whole + gzip.compress(b'{"name":"b"' * 1_000)[:-20])
    assert [task.name for task in read_trace([path]).tasks] == ["a"]


def test_the_error_says_what_is_wrong_when_there_is_nothing_to_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("plotly")
    empty = write(tmp_path / "empty.pfw.gz", [])
    page = str(tmp_path / "page.html")
    for arguments, reason in (
        (["report", str(tmp_path / "no.pfw.gz")], "there is no trace"),
        (["report", str(empty)], "there is no task in the trace"),
        (["merge", str(empty), "-o", "out.txt"], "must end in .pfw.gz"),
    ):
        if arguments[0] == "report":
            arguments += ["-o", page]
        assert main(arguments) == 1
        assert reason in capsys.readouterr().err
    assert not Path(page).exists()


def test_the_extra_is_named_when_the_charts_are_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_plotly(name: str, *rest: Any) -> Any:
        if name.startswith("plotly"):
            raise ImportError("no plotly", name="plotly")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_plotly)
    with pytest.raises(ImportError, match=r"pip install 'dftracer-asyncflow\[viz\]'"):
        write_report(write(tmp_path / "run.pfw.gz", [event("a", 0, 1)]), tmp_path / "page.html")


# --- the page, in a browser -----------------------------------------------------------------------


class Browser:
    """A page in Chromium, which must neither complain nor ask for anything else."""

    def __init__(self, chromium: Any, path: Path) -> None:
        self.page = chromium.new_page(viewport={"width": 1400, "height": 1000})
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_function("window.report && report.drawn > 0")

    def ask(self, script: str) -> Any:
        """Return the value of an expression."""
        return self.page.evaluate(script)

    def settle(self) -> None:
        """Wait until everything that was ordered is on the screen."""
        self.page.evaluate("() => new Promise(r => requestAnimationFrame(() => setTimeout(r, 0)))")

    def span(self) -> float:
        """Return how much time the chart shows, in µs."""
        return float(self.ask("report.view.to - report.view.from"))

    def check(self, path: Path) -> None:
        """See that nothing went wrong."""
        assert self.complaints == []
        assert [url for url in self.requests if not url.startswith("data:")] == [path.as_uri()]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Return a browser; the tests are skipped where none can be had."""
    pytest.importorskip("plotly", reason="plotly is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no chromium here")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def run_workflow(path: Path) -> None:
    """Trace a small workflow with a block, a program, and a failure."""

    async def workflow() -> None:
        async with await WorkflowEngine.create(trace=path) as flow:

            @flow.function_task
            def load(number: int) -> int:
                return number

            @flow.function_task
            async def fetch(number: int) -> int:
                await asyncio.sleep(0.01)
                return number

            @flow.function_task
            def combine(*numbers: int) -> int:
                if sum(numbers) == 6:
                    raise ValueError("</script><b>six</b> & more")
                return sum(numbers)

            @flow.executable_task
            def show(number: int) -> list[str]:
                return ["echo", str(number)]

            @flow.block
            async def part(number: int) -> str:
                return await show(combine(load(number), fetch(number)))

            await asyncio.gather(*[part(n) for n in range(10)], return_exceptions=True)

    asyncio.run(workflow())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("plotly", reason="plotly is not installed")
    folder = tmp_path_factory.mktemp("report")
    # In another thread: in this one the browser's driver has an event loop.
    with ThreadPoolExecutor(1) as executor:
        executor.submit(run_workflow, folder / "run.pfw.gz").result()
    page = folder / "page.html"
    assert main(["report", str(folder), "-o", str(page), "--title", "<Small> & run"]) == 0
    return page


def test_the_page_shows_the_run_when_it_is_opened(chromium: Any, small: Path) -> None:
    browser = Browser(chromium, small)
    page = browser.page
    assert page.inner_text("h1") == page.title() == "<Small> & run"
    assert page.inner_text("#summary").startswith("40 tasks")
    assert browser.ask("report.drawn") > 10
    assert browser.ask("document.querySelectorAll('#load .scatterlayer .trace').length") == 3
    assert "</script><b>six</b> & more" in page.inner_text("#table-frame")
    assert re.search(r"test_report\.py:\d+ in combine", page.inner_text("#table-frame"))
    for tab, word in {
        "Critical path": "beginning",
        "By name": "combine",
        "Slowest": "task.0000",
        "Dependency waits": "combine",
        "Failures": "DependencyFailureError",
    }.items():
        page.click(f"#tabs >> text={tab}")
        assert word in page.inner_text("#table-frame")
    browser.check(small)


def test_search_and_choice_move_the_view_when_they_are_used(chromium: Any, small: Path) -> None:
    browser = Browser(chromium, small)
    page = browser.page
    whole = browser.span()
    page.fill("#search", "comb")
    assert page.inner_text("#found") == "10 found"
    page.press("#search", "Enter")
    browser.settle()
    assert "combine" in page.inner_text("#selected")
    assert browser.span() < whole / 2
    first = browser.ask("report.view.selected")
    page.press("#search", "Enter")
    assert browser.ask("report.view.selected") > first
    page.fill("#search", "BLOCK.0")
    assert page.inner_text("#found") == "10 found"
    page.click("#reset")
    assert browser.span() == whole
    page.select_option("#rows", "name")
    page.check("#show-path")
    page.select_option("#state", "1")
    browser.settle()
    assert browser.ask("report.drawn") >= 1
    page.click("#tabs >> text=Failures")
    page.click("#table-frame tr[data-task]")
    assert "failed" in page.inner_text("#selected")
    browser.check(small)


def test_the_charts_zoom_together_when_the_wheel_is_turned_or_a_time_is_dragged(
    chromium: Any, small: Path
) -> None:
    browser = Browser(chromium, small)
    page = browser.page
    whole = browser.span()
    box = page.locator("#gantt").bounding_box()
    page.mouse.move(box["x"] + 700, box["y"] + 100)
    for _ in range(5):
        page.mouse.wheel(0, -120)
    page.wait_for_function(f"report.view.to - report.view.from < {whole} / 2")
    zoomed = browser.span()
    page.wait_for_function(
        "Math.abs(document.getElementById('load').layout.xaxis.range[1] * 1e6 - report.view.to) < 1"
    )
    page.keyboard.down("Shift")
    page.mouse.down()
    page.mouse.move(box["x"] + 800, box["y"] + 100, steps=3)
    page.mouse.up()
    page.keyboard.up("Shift")
    assert browser.span() < zoomed / 5
    page.mouse.dblclick(box["x"] + 700, box["y"] + 100)
    assert browser.span() == whole
    page.wait_for_function(
        "Math.abs(document.getElementById('load').layout.xaxis.range[1] * 1e6 - report.view.to) < 1"
    )
    box = page.locator("#load").bounding_box()
    page.mouse.move(box["x"] + 600, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 800, box["y"] + 60, steps=5)
    page.mouse.up()
    page.wait_for_function(f"report.view.to - report.view.from < {whole} / 3")
    browser.check(small)


@pytest.mark.timeout(120)
def test_the_page_stays_quick_when_there_are_100_000_tasks(chromium: Any, tmp_path: Path) -> None:
    chance = random.Random(1)
    events, ends = [], [0.0] * 16
    for number in range(100_000):
        row = min(range(16), key=ends.__getitem__)
        start = ends[row] + chance.random() * 1e-4
        ends[row] = start + chance.expovariate(500)
        name = f"step {number % 12}"
        deps = {"deps": f"t{number - 9}"} if number % 10 == 9 else {}
        state = "failed" if number % 1_000 == 7 else "done"
        task = event(name, start, ends[row], tid=row, uid=f"t{number}", queued_us=50, **deps)
        task["args"]["state"] = state
        events.append(task)
    page_file = write_report(write(tmp_path / "run.pfw.gz", events), tmp_path / "page.html")
    browser = Browser(chromium, page_file)
    page = browser.page
    assert page.inner_text("#summary").startswith("100,000 tasks")
    page.fill("#search", "step 11")
    assert page.inner_text("#found") == "8,333 found"
    page.press("#search", "Enter")
    paint = """() => {
        const begun = performance.now();
        for (let turn = 0; turn < 10; turn++) report.paint();
        return (performance.now() - begun) / 10;
    }"""
    page.click("#reset")
    whole = browser.ask(paint)
    page.fill("#search", "")
    page.select_option("#rows", "name")
    browser.settle()
    by_name = browser.ask(paint)
    # Generous: a tenth of a second is what feels immediate, and the machine may be busy.
    assert max(whole, by_name) < 250
    browser.check(page_file)
