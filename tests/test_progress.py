"""How far tasks have come, as it is shown on real terminals, to files, and in notebooks."""

import asyncio
import functools
import io
import itertools
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from docs_support import examples
from engine_support import Gate, identity, reached
from terminal_support import Terminal

from dftracer.asyncflow import WorkflowEngine
from dftracer.utils import Runtime
from dftracer.utils.progress.counts import Meter, Row, RuntimeRows, Shown
from dftracer.utils.progress.lines import Lines
from dftracer.utils.progress.texts import fitted, left_of
from dftracer.utils.progress.ticker import SHARE, Ticker

PYTHON = [sys.executable, "-W", "error", "-c"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the directory of the checkout, where programs would take its sources."""
    monkeypatch.chdir(tmp_path)


def row(name: str = "work", total: int = 10, ended: int = 0, failed: int = 0) -> Row:
    return Row(name, total, ended, failed, 0)


def engine_program(body: str, after: str = "") -> str:
    """A program that shows the progress of tasks: ``body`` runs in the ``with``."""
    head = """
    import asyncio, logging, os, sys, threading, time
    from dftracer.asyncflow import WorkflowEngine

    async def main():
        async with await WorkflowEngine.create() as flow:
            @flow.function_task
            def work(number):
                if number % 10 == 3:
                    raise ValueError(number)

            @flow.function_task
            def hold():
                sys.stdin.readline()
    """
    whole = textwrap.dedent(head) + textwrap.indent(
        "with flow.progress():\n" + textwrap.indent(textwrap.dedent(body), "    "), " " * 8
    )
    return f"{whole}\nasyncio.run(main())\n{textwrap.dedent(after)}\n"


WORK = "await asyncio.gather(*map(work, range(100)), return_exceptions=True)\n"


# --- what is counted ------------------------------------------------------------------------------


async def test_rows_count_each_end_when_tasks_end_differently() -> None:
    started = threading.Event()

    def hold(gate: Gate) -> None:
        started.set()
        gate.hold()

    with Gate() as gate:
        async with await WorkflowEngine.create() as flow:

            @flow.function_task
            def fails() -> None:
                raise ValueError

            @flow.block
            async def block() -> Any:
                return await flow.function_task(identity)(2)

            held = flow.function_task(hold)(gate)
            behind = flow.function_task(identity)(held)
            failed = fails()
            after = flow.function_task(identity)(failed)
            await block()
            await asyncio.gather(failed, after, return_exceptions=True)
            await reached(started)
            assert sorted(flow._scheduler.counts.rows()) == [
                Row("fails", 1, 1, 1, 0),
                Row("hold", 1, 0, 0, 0),
                Row("identity", 3, 2, 1, 0),
            ]
            held.cancel()
            gate.set()
            assert sorted(flow._scheduler.counts.rows()) == [
                Row("fails", 1, 1, 1, 0),
                Row("hold", 1, 1, 0, 1),
                Row("identity", 3, 3, 1, 1),
            ]
            assert behind.cancelled()


def test_tasks_of_a_runtime_keep_their_names_when_their_handles_are_gone() -> None:
    with Gate() as gate, Runtime(python_threads=1) as runtime:
        rows = functools.partial(RuntimeRows().of, runtime)
        first = runtime.submit(gate.hold, name="hold")
        for _ in range(5):
            runtime.submit(identity, 1, name="identity")
        assert rows() == [Row("hold", 1, 0, 0, 0), Row("identity", 5, 0, 0, 0)]
        runtime.submit(int, "x", name="fails")
        cancelled = runtime.submit(int, name="cancelled")
        cancelled.cancel()
        gate.set()
        first.wait()
        runtime.wait_all()
        for _ in range(2):
            runtime.submit(identity, 1, name="identity").wait()
        runtime.wait_all()
        assert sorted(rows()) == [
            Row("(ended before)", 2, 2, 0, 0),
            Row("cancelled", 1, 1, 0, 1),
            Row("fails", 1, 1, 1, 0),
            Row("hold", 1, 1, 0, 0),
            Row("identity", 5, 5, 0, 0),
        ]


class Reader:
    def __call__(self, source: int) -> bytes:
        return os.read(source, 1)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (os.read, "posix.read"),
        (lambda source, _: Reader()(source), None),
        (functools.partial(os.read), "posix.read"),
        (Reader(), "Reader"),
    ],
)
def test_a_running_task_has_its_name_when_its_handle_is_gone(body: Any, name: str | None) -> None:
    ours, theirs = os.pipe()
    try:
        with Runtime(python_threads=1) as runtime:
            arguments = (ours,) if isinstance(body, Reader) else (ours, 1)
            for _ in range(2):
                runtime.submit(body, *arguments)
            while not runtime.get_progress()["running"]:
                pass
            names = [task["name"] for task in runtime.get_progress()["tasks"]]
            os.write(theirs, b"xx")
        assert names == [name or f"{__name__}.<lambda>"] * 2
    finally:
        os.close(ours)
        os.close(theirs)


def test_no_name_is_guessed_when_tasks_have_ended_before_the_first_look() -> None:
    with Runtime() as runtime:
        rows = functools.partial(RuntimeRows().of, runtime)
        for _ in range(10):
            runtime.submit(identity, 1, name="early")
        runtime.wait_all()
        kept = runtime.submit(identity, 1, name="late")
        runtime.wait_all()
        assert rows() == [Row("late", 1, 1, 0, 0), Row("(ended before)", 10, 10, 0, 0)]
        del kept


def test_rates_and_times_left_follow_the_last_half_minute_when_a_run_goes_on() -> None:
    meter = Meter()
    start = time.monotonic()

    def measured(ended: int, seconds: float) -> tuple[int, int | None]:
        (shown,) = meter.measure([row(total=1_000, ended=ended)], start + seconds)
        return round(shown.rate), None if shown.left is None else round(shown.left)

    assert measured(0, 0) == (0, None)
    assert measured(200, 10) == (20, 40)
    assert measured(400, 20) == (20, 30)
    assert measured(410, 100) == (0, 4720)
    assert measured(420, 130)[0] == 0
    assert measured(1_000, 131)[1] == 0


def test_few_rows_are_left_when_there_are_many_names() -> None:
    names = [Shown(row(f"n{n}", 10, 10 if n < 40 else 5, 1), 2.0, 3.0) for n in range(50)]
    rows = fitted(names, 6)
    assert [each.row.name for each in rows] == ["n40", "n41", "n42", "n43", "n44", "45 others"]
    assert rows[-1] == Shown(Row("45 others", 450, 425, 45, 0), 90.0, 3.0)
    assert fitted(names[:6], 6) == names[:6]


@pytest.mark.parametrize(
    ("left", "text"),
    [(0.4, "0:00 left"), (61, "1:01 left"), (7_325, "2:02:05 left"), (None, "-:-- left")],
)
def test_a_time_is_written_as_a_clock_shows_it_when_tasks_are_left(
    left: float | None, text: str
) -> None:
    assert left_of(Shown(row(), 1.0, left)) == text
    assert left_of(Shown(row(ended=10), 1.0, left)) == ""


# --- what it costs --------------------------------------------------------------------------------


def test_the_thread_rests_a_hundred_times_as_long_when_a_look_is_dear() -> None:
    looks: list[tuple[float, float]] = []
    enough = threading.Event()

    def act() -> None:
        start, cpu = time.monotonic(), time.thread_time()
        while time.thread_time() < cpu + 0.003:
            pass
        looks.append((start, time.monotonic()))
        if len(looks) == 3:
            enough.set()

    ticker = Ticker(act, 0.0, "test")
    assert enough.wait(20)
    ticker.stop()
    pauses = [later[0] - earlier[1] for earlier, later in itertools.pairwise(looks)]
    assert all(pause >= 0.003 / SHARE for pause in pauses)


def test_nothing_is_looked_at_when_a_wait_is_short(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "dftracer.utils.progress.display.FIRST_LOOK_S", 60.0
    )  # the machine may be busy
    monkeypatch.setattr(RuntimeRows, "of", lambda *_: pytest.fail("it has looked"))
    with Runtime() as runtime:
        runtime.submit(identity, 1)
        runtime.wait_all(progress=True)
    assert capfd.readouterr() == ("", "")


def test_errors_are_raised_as_ever_when_progress_is_shown() -> None:
    with Runtime() as runtime:
        runtime.submit(int, "x", name="fails")
        with pytest.raises(RuntimeError, match="fails"):
            runtime.wait_all(raise_on_error=True, progress=True)


def test_a_program_goes_on_when_what_is_asked_for_progress_fails(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def fail(*_: Any) -> None:
        asked.set()
        raise OSError("no counts")

    monkeypatch.setattr(RuntimeRows, "of", fail)
    with Runtime() as runtime:
        handle = runtime.submit(asked.wait, 20)
        runtime.wait_all(progress=True)
        assert handle.get() is True
    assert capfd.readouterr() == ("", "")


# --- where there is no terminal -------------------------------------------------------------------


def test_lines_tell_only_what_is_new_when_they_are_written_again() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    lines.draw([Shown(row("a", 2_000), 0.0, None), Shown(row("b", 4, 1, 1), 0.5, 6.0)])
    lines.draw([Shown(row("a", 2_000), 0.0, None), Shown(row("b", 4, 3, 1), 1_234.5, 0.8)])
    lines.close([Shown(row("a", 2_000), 0.0, None), Shown(Row("b", 4, 4, 1, 2), 20.0, 0.0)])
    assert stream.getvalue().splitlines() == [
        "a: 0/2,000, 0/s, -:-- left",
        "b: 1/4, 1 failed, 0.5/s, 0:06 left",
        "b: 3/4, 1 failed, 1,234/s, 0:01 left",
        "b: 4/4, 1 failed, 2 cancelled, 20/s",
    ]


def test_a_name_is_on_one_line_when_it_has_several() -> None:
    stream = io.StringIO()
    Lines(stream).draw([Shown(row("one\ntwo \x1b[2J \ud800"), 0.0, None)])
    assert stream.getvalue() == "one\\ntwo \\x1b[2J \\ud800: 0/10, 0/s, -:-- left\n"


def test_lines_go_to_stderr_alone_when_that_is_no_terminal() -> None:
    program = engine_program(WORK + "print('out'); print('err', file=sys.stderr)")
    done = subprocess.run([*PYTHON, program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "out\n")
    first, last = done.stderr.splitlines()
    assert first == "err"
    assert last.startswith("work: 100/100, 10 failed, ")


def test_nothing_breaks_when_stderr_is_closed() -> None:
    program = engine_program(f"sys.stderr.close()\n{WORK}print('out')", "print('end')")
    done = subprocess.run([*PYTHON, program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\nend\n", "")


# --- on a terminal --------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Any:
    with Terminal(width=100, height=30) as terminal:
        yield terminal


def bars(lines: list[str]) -> list[str]:
    return [line for line in lines if "━" in line]


def test_a_bar_for_each_name_is_left_when_all_has_ended(terminal: Terminal) -> None:
    program = engine_program(f"print('before')\n{WORK}", "print('after')")
    assert terminal.run([*PYTHON, program]) == 0
    first, bar, last = terminal.screen()
    assert (first, last) == ("before", "after")
    assert bar.split()[0] == "work"
    assert bar.split()[2] == "100/100"
    assert bar.endswith("10 failed")


def test_bars_move_when_tasks_run_and_output_goes_above_them(terminal: Terminal) -> None:
    program = engine_program(
        """
        held = hold()
        print("from print")
        print("from stderr", file=sys.stderr)
        logging.getLogger().warning("from logging")
        await asyncio.gather(*map(work, range(100)), return_exceptions=True)
        await held
        print("half a line", end="")
        """,
        "print('after')",
    )
    program = program.replace(
        "async def", "logging.basicConfig(format='%(message)s')\nasync def", 1
    )
    with terminal.start([*PYTHON, program]) as process:
        terminal.read_until(lambda: b"100/100" in terminal.written)
        lines = terminal.screen()
        assert lines[:3] == ["from print", "from stderr", "from logging"]
        assert [line.split()[0] for line in bars(lines)] == ["work", "hold"]
        assert lines[3:] == bars(lines)
        assert "-:-- left" in lines[-1]
        terminal.type("\n")
        terminal.read_until(lambda: process.poll() is not None)
    assert process.returncode == 0
    lines = terminal.screen()
    assert lines[-4] == "half a line"
    assert [line.split()[2] for line in lines[-3:-1]] == ["100/100", "1/1"]
    assert lines[-1] == "after"


def test_every_line_is_to_be_seen_when_threads_print_all_the_time(terminal: Terminal) -> None:
    program = engine_program(
        """
        def chatter(name):
            for number in range(300):
                print(f"{name} {number}")

        held = hold()
        await asyncio.gather(*[asyncio.to_thread(chatter, name) for name in "ab"])
        asyncio.get_running_loop().call_later(0.7, print, "end")
        await held
        """
    )
    terminal.height = 700
    with terminal.start([*PYTHON, program]) as process:
        terminal.read_until(lambda: b"0/1" in terminal.written and b"end" in terminal.written)
        terminal.type("\n")
        terminal.read_until(lambda: process.poll() is not None)
    lines = terminal.screen()
    words = " ".join(line for line in lines if "━" not in line).split()
    for name in "ab":
        assert [int(b) for a, b in itertools.pairwise(words) if a == name] == [*range(300)]
    assert len(bars(lines)) == 1


def test_a_part_of_a_line_is_to_be_seen_when_it_is_flushed(terminal: Terminal) -> None:
    program = engine_program(
        """
        held = hold()
        await asyncio.sleep(0.7)
        print("one", end="")
        print("error", file=sys.stderr)
        print(", two", end="", flush=True)
        await held
        print(", three")
        """
    )
    with terminal.start([*PYTHON, program]) as process:
        terminal.read_until(lambda: b"two" in terminal.written)
        assert terminal.screen() == ["error", "one, two"]
        terminal.type("\n")
        terminal.read_until(lambda: process.poll() is not None)
    assert terminal.screen()[:2] == ["error", "one, two, three"]


def test_what_goes_to_a_file_is_not_touched_when_stderr_is_a_terminal(
    terminal: Terminal, tmp_path: Path
) -> None:
    program = engine_program(
        "print('out'); print('no end', end='')\nawait asyncio.sleep(0.6)\n" + WORK
    )
    with (tmp_path / "out").open("wb") as out:
        assert terminal.run([*PYTHON, program], stdout=out.fileno()) == 0
    assert (tmp_path / "out").read_text() == "out\nno end"
    assert len(bars(terminal.screen())) == 1


def test_streams_are_as_before_when_progress_has_ended(terminal: Terminal) -> None:
    program = engine_program(
        """
        streams = sys.stdout, sys.stderr
        assert "write" in vars(sys.stdout) and "write" in vars(sys.stderr)
        """,
        """
        assert "write" not in vars(sys.stdout) and "write" not in vars(sys.stderr)
        assert threading.active_count() == 1, threading.enumerate()
        """,
    )
    assert terminal.run([*PYTHON, program]) == 0, terminal.written


def test_the_terminal_is_usable_when_the_program_is_interrupted(terminal: Terminal) -> None:
    program = engine_program("raise KeyboardInterrupt")
    assert terminal.run([*PYTHON, program]) != 0
    assert terminal.screen()[-1] == "KeyboardInterrupt"
    program = engine_program(WORK + "raise LookupError('mine')")
    assert terminal.run([*PYTHON, program]) == 1
    assert terminal.screen()[-1] == "LookupError: mine"


def test_a_child_prints_when_it_was_forked_under_bars(terminal: Terminal) -> None:
    program = engine_program(
        """
        await asyncio.sleep(0.6)
        import warnings; warnings.simplefilter("ignore")
        if os.fork() == 0:
            print("from the child", flush=True)
            os._exit(0)
        os.wait()
        """
    )
    assert terminal.run([*PYTHON, program]) == 0
    assert any("from the child" in line for line in terminal.screen())


def test_bars_fit_when_the_terminal_is_narrow(terminal: Terminal) -> None:
    terminal.resize(30, 8)
    terminal.width = 30
    program = engine_program(
        """
        for number in range(20):
            def task(): pass
            task.__name__ = f"a_rather_long_name_{number}"
            await flow.function_task(task)()
        """
    )
    assert terminal.run([*PYTHON, program]) == 0
    lines = terminal.screen()
    assert len(lines) == 6
    (name, count), others = (line.split() for line in lines[-2:])
    assert re.fullmatch(r"a_rather_long_n?…", name)  # versions of rich differ by one column
    assert (count, others) == ("1/1", ["15", "others", "15/15"])


def test_two_engines_share_the_bars_when_both_show_progress(terminal: Terminal) -> None:
    program = engine_program(
        """
        async with await WorkflowEngine.create() as other:
            @other.function_task
            def more(number): pass
            with other.progress():
                await asyncio.gather(*map(more, range(7)))
        await asyncio.gather(*map(work, range(100)), return_exceptions=True)
        """
    )
    assert terminal.run([*PYTHON, program]) == 0, terminal.written
    assert [line.split()[2] for line in bars(terminal.screen())] == ["100/100", "7/7"]


def test_an_engine_is_shown_once_when_its_progress_is_asked_for_again(terminal: Terminal) -> None:
    program = engine_program(
        """
        with flow.progress():
            await asyncio.gather(*map(work, range(50)), return_exceptions=True)
        with flow.progress():
            await asyncio.gather(*map(work, range(50)), return_exceptions=True)
        """
    )
    assert terminal.run([*PYTHON, program]) == 0, terminal.written
    assert [line.split()[2] for line in bars(terminal.screen())] == ["100/100"]


def test_lines_and_a_hint_are_written_when_rich_is_missing(terminal: Terminal) -> None:
    program = "import sys; sys.modules['rich'] = None\n" + engine_program(WORK * 2)
    assert terminal.run([*PYTHON, program]) == 0
    hint, line = terminal.written.decode().splitlines()
    assert hint == (
        "progress: for bars instead of lines, which need 'rich': "
        "pip install 'dftracer-asyncflow[progress]'"
    )
    assert line.startswith("work: 200/200, 20 failed, ")


def test_a_runtime_has_bars_when_its_wait_is_long(terminal: Terminal) -> None:
    program = """
import sys
from dftracer.utils import Runtime
with Runtime() as runtime:
    for _ in range(20):
        runtime.submit(int, name="quick")
    runtime.submit(sys.stdin.readline, name="slow")
    runtime.wait_all(progress=True)
"""
    with terminal.start([*PYTHON, program]) as process:
        terminal.read_until(lambda: b"slow" in terminal.written)
        terminal.type("\n")
        terminal.read_until(lambda: process.poll() is not None)
    assert process.returncode == 0
    found = {line.split()[0]: line for line in bars(terminal.screen())}
    assert "1/1" in found["slow"]


# --- elsewhere ------------------------------------------------------------------------------------


def test_bars_are_the_output_of_the_cell_when_a_notebook_is_run(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook()
    source = """
        from dftracer.asyncflow import WorkflowEngine
        flow = await WorkflowEngine.create()
        @flow.function_task
        def work(n): return n
        with flow.progress():
            await asyncio.gather(*map(work, range(50)))
            print("printed")
            await asyncio.sleep(0.7)
        flow.graph()
        """
    notebook.cells = [nbformat.v4.new_code_cell("import asyncio\n" + textwrap.dedent(source))]
    path = tmp_path / "run.ipynb"
    nbformat.write(notebook, path)
    # Elsewhere: what runs notebooks warns of much that is its own business.
    run = "import nbclient, nbformat, sys; n = nbformat.read(sys.argv[1], 4); "
    run += "nbclient.NotebookClient(n, kernel_name='python3').execute(); "
    run += "nbformat.write(n, sys.argv[1])"
    kernels = {"JUPYTER_PATH": os.path.join(sys.prefix, "share", "jupyter")}
    done = subprocess.run(
        [sys.executable, "-c", run, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, **kernels},
    )
    assert done.returncode == 0, done.stderr
    outputs = nbformat.read(path, 4).cells[0].outputs
    shown = [each for each in outputs if each.output_type == "display_data"]
    assert len(shown) == 1  # updated, not repeated
    assert "50/50" in shown[0].data["text/html"]
    assert [each.text for each in outputs if each.output_type == "stream"] == ["printed\n"]
    assert "text/html" in outputs[-1].data


@pytest.mark.parametrize("number", range(len(examples("progress.md"))))
def test_an_example_runs_when_it_is_taken_from_the_page(number: int) -> None:
    done = subprocess.run(
        [*PYTHON, examples("progress.md")[number]], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")
    expected = ["work: 500/500", "nap: 1,000/1,000"][number]
    assert done.stderr.splitlines()[-1].startswith(expected)
