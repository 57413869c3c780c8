"""Traces with odd lines, names in no encoding, and files that do not fit: the rest is there."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dftracer.asyncflow import WorkflowEngine
from dftracer.utils import Runtime
from dftracer.utils.tracing import ProcessNumbers, merge_traces, read_events

GUARD_S = 60

GOOD = (
    '{"id":0,"name":"ok","cat":"python","pid":1,"tid":1,"ts":100,"dur":5,"ph":"X",'
    '"args":{"hhash":"a","state":"done","uid":"task.000001","engine":"e"}}'
)

ODD = {
    "a time that is too large": GOOD.replace('"ts":100', '"ts":1e999'),
    "a time beyond all clocks": GOOD.replace('"ts":100', '"ts":1e300'),
    "a time before all clocks": GOOD.replace('"ts":100', '"ts":-1e300'),
    "a number of 5,000 digits": GOOD.replace('"ts":100', '"ts":' + "9" * 5_000),
    "a negative duration": GOOD.replace('"dur":5', '"dur":-5'),
    "a duration that is NaN": GOOD.replace('"dur":5', '"dur":NaN'),
    "a thread that is infinite": GOOD.replace('"tid":1', '"tid":-Infinity'),
    "an infinity inside": GOOD.replace('"state"', '"extra":[Infinity],"state"'),
    "a deep list": "[" * 100_000,
    "a deep event": GOOD.replace('"state"', '"extra":' + "[" * 50_000 + ',"state"'),
    "a machine that is a list": GOOD.replace('"hhash":"a"', '"hhash":[1]'),
    "a process that is a list": GOOD.replace('"pid":1', '"pid":[1]'),
    "a uid that is a dict": GOOD.replace('"uid":"task.000001"', '"uid":{}'),
    "an engine that is a list": GOOD.replace('"engine":"e"', '"engine":[]'),
    "an owner that is a list": GOOD.replace('"state"', '"owner":[1],"state"'),
    "no event": "[1, 2]",
    "a text": '"text"',
    "no JSON": "{'id': 0}",
}

KEPT = {
    "half of a surrogate pair": GOOD.replace('"ok"', '"o\\ud800k"'),
    "half of a surrogate pair inside": GOOD.replace('"state"', '"\\uDC00":["\\udc00"],"state"'),
    "a whole pair and a half": GOOD.replace('"ok"', '"\\ud83d\\ude00\\ud83d"'),
    "bytes that are no UTF-8": GOOD.replace('"ok"', '"o\udcffk"'),
    "arguments that are a list": GOOD[: GOOD.index('"args"')] + '"args":[1]}',
    "a task that waits for itself": GOOD.replace('"state"', '"deps":"task.000001","state"'),
    "a name that is a number": GOOD.replace('"ok"', "3"),
    "a process that is a text": GOOD.replace('"pid":1', '"pid":"one"'),
}


BOMBS = {
    "zeros": (bytes(1 << 20), True),
    "lines": ((b" " * 63 + b"\n") * (1 << 14), False),  # packed no closer than a trace could be
}

NAMES = ["na\ud800me", os.fsdecode(b"na\xffme")]


def strict(path: Path) -> list[dict[str, Any]]:
    """Read a file of strict JSON in UTF-8."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    events = json.loads(path.read_bytes().decode(), parse_constant=refuse)
    for event in events:
        json.dumps(event, ensure_ascii=False).encode()
    return events  # type: ignore[no-any-return]


def written(path: Path, *lines: str) -> Path:
    path.write_bytes("\n".join(["[", *lines, "]", ""]).encode(errors="surrogateescape"))
    return path


@pytest.mark.parametrize("line", ODD.values(), ids=ODD)
def test_the_rest_is_merged_and_reported_when_a_line_is_odd(
    line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from dftracer.asyncflow.observe.report import write_report

    trace, merged = written(tmp_path / "t.pfw", GOOD, line, GOOD), tmp_path / "merged.json"
    assert merge_traces([trace], merged) == 2
    assert [event["name"] for event in strict(merged)] == ["ok", "ok"]
    assert f"left out: line 3 of {trace}: it" in caplog.text.replace("its", "it")
    caplog.clear()
    page = write_report(trace, tmp_path / "report.html").read_text()
    assert f"left out: line 3 of {trace}: it" in caplog.text.replace("its", "it")
    assert '"left_out":"left out: line 3 of' in page
    assert sorted(os.listdir(tmp_path)) == ["merged.json", "report.html", "t.pfw"]


@pytest.mark.parametrize("line", KEPT.values(), ids=KEPT)
def test_a_line_is_kept_when_it_can_be_written_strictly(
    line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from dftracer.asyncflow.observe.report import write_report

    trace, merged = written(tmp_path / "t.pfw", GOOD, line, GOOD), tmp_path / "merged.json"
    assert merge_traces([trace], merged) == 3
    names = [event["name"] for event in strict(merged)]
    assert names[1] in ("ok", 3, "o\ufffdk", "\N{GRINNING FACE}\ufffd")
    write_report(trace, tmp_path / "report.html").read_text()
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["t.pfw", "t.pfw.gz"])
def test_what_is_there_is_read_when_the_end_is_missing(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = [f"[\n{GOOD}\n".encode(), f"{GOOD}\n".encode()]
    trace = tmp_path / name
    if name.endswith("gz"):
        parts = [gzip.compress(part) for part in parts]
    trace.write_bytes(b"".join(parts)[:-20])
    assert merge_traces([trace], tmp_path / "m.json") == 1
    assert str(trace) in caplog.text
    assert "cut off" in caplog.text or "missing" in caplog.text


@pytest.mark.parametrize(("content", "is_told"), BOMBS.values(), ids=BOMBS)
def test_memory_stays_small_when_a_trace_is_a_bomb(
    content: bytes, is_told: bool, tmp_path: Path
) -> None:
    bomb = tmp_path / "bomb.pfw.gz"
    with gzip.open(bomb, "wb", compresslevel=9) as file:
        file.write(f"[\n{GOOD}\n".encode())
        for _ in range(400):
            file.write(content)
    program = f"""
import re
from dftracer.utils.tracing import LeftOut, read_events
left_out = LeftOut()
count = sum(1 for event in read_events({str(bomb)!r}, left_out))
# What getrusage() says counts the process that has started this one, too.
[peak] = re.findall(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())
print(count, int(peak) < 200_000, left_out)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=GUARD_S,
        check=False,
        cwd=tmp_path,
    )
    assert done.stderr == ""
    told = f"left out: {bomb}: what is packed after " if is_told else ""
    assert done.stdout.startswith(f"1 True {told}")


def test_a_report_holds_so_many_tasks_when_a_trace_has_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dftracer.asyncflow.observe.report import reader

    monkeypatch.setattr(reader, "_MAX_KEPT", 10)
    trace = reader.read_trace([written(tmp_path / "t.pfw", *[GOOD] * 20)])
    assert len(trace.tasks) == 10
    assert "after the first 10 tasks" in trace.left_out


def test_processes_get_different_numbers_when_machines_have_the_same() -> None:
    number_of = ProcessNumbers()
    given = [number_of(host, 7) for host in "abcab"]
    assert given == [7, 10_000_007, 20_000_007, 7, 10_000_007]
    assert number_of("a", 10_000_007) == 20_000_014 or number_of("a", 10_000_007) not in given
    assert number_of("d", "text") == "text"


@pytest.mark.parametrize("command", ["merge", "report"])
def test_nothing_half_written_stays_when_there_is_no_room(command: str, tmp_path: Path) -> None:
    trace = written(tmp_path / "t.pfw", *[GOOD] * 1_000)
    output = tmp_path / ("out.json" if command == "merge" else "out.html")
    output.write_text("of before")
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, -1)); "
        "from dftracer.asyncflow.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, command, str(trace), "-o", str(output)],
        capture_output=True,
        text=True,
        timeout=GUARD_S,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert output.read_text() == "of before"
    assert sorted(os.listdir(tmp_path)) == sorted([output.name, "t.pfw"])


def test_output_is_written_through_when_it_is_a_link(tmp_path: Path) -> None:
    trace = written(tmp_path / "t.pfw", GOOD)
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    link.symlink_to(real)
    merge_traces([trace], link)
    assert link.is_symlink()
    assert len(strict(real)) == 1


@pytest.mark.parametrize("name", NAMES, ids=ascii)
async def test_tasks_end_and_are_traced_when_names_are_in_no_encoding(
    name: str, tmp_path: Path
) -> None:
    trace = tmp_path / ("t\udcff.pfw")

    def body() -> int:
        return 1

    body.__name__ = body.__qualname__ = name
    async with await WorkflowEngine.create(trace=trace) as flow:
        task = flow.function_task(body)

        async def around() -> int:
            result: int = await task()
            return result

        around.__name__ = around.__qualname__ = name
        async with flow.workflow_scope(name):
            assert await task() == 1
            assert await flow.block(around)() == 1
        assert flow.graph().save(tmp_path / "graph.mmd").read_text()
    with Runtime(threads=1, io_threads=1, python_threads=1, trace=tmp_path / "u.pfw") as runtime:
        assert runtime.submit(int, name=name).get(GUARD_S) == 0
        assert runtime.submit_io(int, name=name).get(GUARD_S) == 0
        assert runtime.run_process(["true"], name=name).get(GUARD_S).exit_code == 0
    assert sum(event["name"].startswith("na") for event in read_events(trace)) == 3
    assert sum(event["name"].startswith("na") for event in read_events(tmp_path / "u.pfw")) == 3
    assert merge_traces([trace, tmp_path / "u.pfw"], tmp_path / "m.json") > 6
    strict(tmp_path / "m.json")


def test_commands_print_names_that_are_in_no_encoding(tmp_path: Path) -> None:
    trace = written(tmp_path / "t\udcff.pfw", GOOD, "odd", GOOD)
    for command, output in (("merge", "m\udcff.json"), ("report", "r\udcff.html")):
        done = subprocess.run(
            [sys.executable, "-m", "dftracer.asyncflow", command, trace, "-o", tmp_path / output],
            capture_output=True,
            text=True,
            timeout=GUARD_S,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0
        assert output.encode(errors="backslashreplace").decode() in done.stdout
        assert done.stderr.startswith("dftracer-flow: left out: line 3 of ")
        assert (tmp_path / output).stat().st_size > 100


# --- the status file ----------------------------------------------------------------------------


def test_status_is_written_again_when_there_is_room(run_script: Callable[..., str]) -> None:
    out = run_script(
        """
        import os, resource, tempfile, threading
        from pathlib import Path

        folder = Path(tempfile.mkdtemp())
        os.environ["DFTRACER_STATUS"] = str(folder / "status")
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        from dftracer.utils import Runtime
        from dftracer.utils.progress import status

        def looked():
            # After two looks at least one has begun after this call.
            for _ in range(2):
                ended.clear()
                assert ended.wait(30)

        ended, look = threading.Event(), status._Writer._look
        status._Writer._look = lambda self: (look(self), ended.set())
        with Runtime(threads=1, io_threads=1, python_threads=1) as runtime:
            looked()
            print(os.listdir(folder / "status"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            looked()
            print(status.read(os.getpid()).pid == os.getpid())
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            looked()
            print(status.read(os.getpid()).pid == os.getpid(), len(os.listdir(folder / "status")))
        """
    )
    assert out == "[]\nTrue\nTrue 1\n"
