"""What a trace is taken to mean in reports."""

import builtins
import gzip
import random
from pathlib import Path
from typing import Any

import pytest
from report_support import event, shift, write

from dftracer.asyncflow.cli.main import main
from dftracer.asyncflow.observe.report import analysis, write_report
from dftracer.asyncflow.observe.report.reader import Trace, read_trace


def read(folder: Path, *events: dict[str, Any]) -> Trace:
    """Return what is read of a trace of ``events``."""
    return read_trace([write(folder / "run.pfw.gz", list(events))])


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


@pytest.mark.parametrize("damage", [b"\0" * 512, b"no gzip", gzip.compress(b"{}" * 900)[:12] * 9])
def test_what_is_there_is_read_when_the_end_of_a_file_is_damaged(
    tmp_path: Path, damage: bytes
) -> None:
    path = write(tmp_path / "run.pfw.gz", [event("a", 0, 1)])
    path.write_bytes(path.read_bytes() + damage)
    assert [task.name for task in read_trace([path]).tasks] == ["a"]


def test_rows_are_kept_apart_when_processes_of_two_machines_have_the_same_number(
    tmp_path: Path,
) -> None:
    for host in ("node1", "node2"):
        label = {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": host, "hhash": host}}
        write(tmp_path / f"{host}.pfw.gz", [label, event("a", 0, 1, hhash=host)])
    trace = read_trace([tmp_path])
    assert sorted(trace.rows.values()) == ["thread 1 · node1", "thread 1 · node2"]
    assert len({task.row for task in trace.tasks}) == 2


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
