"""The page of a report, in a real browser."""

import asyncio
import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from report_support import Browser, event, write

from dftracer.asyncflow import WorkflowEngine
from dftracer.asyncflow.cli.main import main
from dftracer.asyncflow.observe.report import write_report


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
    assert re.search(r"test_report_page\.py:\d+ in combine", page.inner_text("#table-frame"))
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
    assert page.inner_text("#found") == "12 found"  # with the errors of those that needed it
    page.fill("#search", "LOAD")
    assert page.inner_text("#found") == "10 found"
    page.press("#search", "Enter")
    browser.settle()
    assert "load" in page.inner_text("#selected")
    assert browser.span() < whole / 2
    first = browser.ask("report.view.selected")
    page.press("#search", "Enter")
    assert browser.ask("report.view.selected") > first
    page.fill("#search", "ValueError: </SCRIPT>")
    assert page.inner_text("#found") == "3 found"  # it, and the two that it failed
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


HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "{{library}} {{data}} {{no}}",
    "\"quoted\" 'twice' `${window.hacked = 1}` \\u003c &amp;",
    "größer als 数据 🚀 \u2028 \u202eleft",
    "__proto__",
    "half a \ud83d pair",
    "long " * 1_000,
    "",
]


def test_names_are_only_text_when_they_look_like_something_else(
    chromium: Any, tmp_path: Path
) -> None:
    events = [
        event(name, n, n + 1, uid=name, state="failed", error=name, message=name, traceback=name)
        for n, name in enumerate(HOSTILE)
    ]
    trace = write(tmp_path / "run.pfw.gz", events)
    title = "{{data}} <b>&amp; \\1"
    page_file = write_report(trace, tmp_path / "page.html", title)
    browser = Browser(chromium, page_file)
    page = browser.page
    assert page.title() == title
    assert page.inner_text("#summary").startswith(f"{len(HOSTILE)} tasks")
    shown = "#table-frame td:first-child"
    texts = "cells => cells.map(cell => cell.textContent)"
    for tab in ("By name", "Slowest", "Failures"):
        page.click(f"#tabs >> text={tab}")
        names = page.eval_on_selector_all(shown, texts)
        assert sorted(names) == sorted(HOSTILE)
    page.fill("#search", "🚀")
    page.press("#search", "Enter")
    assert page.inner_text("#found") == "1 found"
    assert "数据 🚀" in page.inner_text("#selected")
    page.select_option("#rows", "name")
    browser.settle()
    assert browser.ask("window.hacked") is None
    browser.check(page_file)


def test_the_page_has_the_colours_of_the_night_when_the_browser_prefers_them(
    chromium: Any, small: Path
) -> None:
    browser = Browser(chromium, small)
    corner = (
        "document.getElementById('gantt').getContext('2d').getImageData(2, 2, 1, 1).data.join()"
    )
    paper = "getComputedStyle(document.body).backgroundColor"
    words = "getComputedStyle(document.querySelector('#load .xtick text')).fill"
    day = "rgb(27, 31, 36)"
    browser.wait_until(corner, "255,255,255,255")
    browser.wait_until(words, day)
    browser.page.emulate_media(color_scheme="dark")  # the page hears of it later
    browser.wait_until(corner, "21,24,28,255")
    browser.wait_until(paper, "rgb(21, 24, 28)")
    browser.wait_until(f"{words} !== '{day}'", True)
    browser.page.emulate_media(color_scheme="light")
    browser.wait_until(corner, "255,255,255,255")
    browser.wait_until(paper, "rgb(255, 255, 255)")
    browser.wait_until(words, day)
    advice = "willReadFrequently"  # for the pixels that are read here
    browser.complaints = [text for text in browser.complaints if advice not in text]
    browser.check(small)


def test_everything_is_reached_when_there_is_only_a_keyboard(chromium: Any, small: Path) -> None:
    browser = Browser(chromium, small)
    page, press = browser.page, browser.page.keyboard.press
    whole = browser.span()
    press("/")
    page.keyboard.type("fetch")
    press("Enter")
    assert page.inner_text("#found") == "10 found"
    assert "fetch" in page.inner_text("#selected")
    for _ in range(7):  # rows, state, critical path, three buttons, the chart
        press("Tab")
    assert browser.ask("document.activeElement.id") == "gantt"
    press("Escape")
    assert not page.is_visible("#selected")
    press("Home")
    press("+")
    assert browser.span() < whole
    at = browser.ask("report.view.from")
    press("ArrowRight")
    assert browser.ask("report.view.from") > at
    page.focus("#tabs [aria-selected=true]")
    assert page.inner_text(":focus") == "Failures"
    press("ArrowRight")
    press("ArrowRight")
    assert page.inner_text(":focus") == "Critical path"
    assert "beginning" in page.inner_text("#table-frame")
    press("Tab")
    press("Enter")
    assert page.is_visible("#selected")
    browser.check(small)


def test_times_can_be_told_apart_when_the_view_is_narrow(chromium: Any, small: Path) -> None:
    browser = Browser(chromium, small)
    for microseconds, step, text in (
        (12_345_600, 100, "12.3456 s"),
        (20_000_000, 10_000_000, "20 s"),
        (61_000_500, 500, "1 min 1.0005 s"),
        (1_234, 1, "1.234 ms"),
        (0, 1, "0 µs"),
    ):
        assert browser.ask(f"report.time({microseconds}, {step})") == text


def test_a_view_draws_no_more_than_it_can_show_when_there_are_100_000_tasks(
    chromium: Any, tmp_path: Path
) -> None:
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
    page.click("#reset")
    page.fill("#search", "")
    browser.settle()
    # Of tasks that would share half a pixel one is drawn, but for the hundred that have failed.
    half_pixels = 2 * 1_400
    assert 1_000 < browser.ask("report.drawn") < 16 * half_pixels + 100
    page.select_option("#rows", "name")
    browser.settle()
    assert 1_000 < browser.ask("report.drawn") < 50_000
    browser.check(page_file)
