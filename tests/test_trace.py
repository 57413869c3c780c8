"""Traces of a runtime: what is written, whatever becomes of the tasks and of the process."""

import asyncio
import gc
import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trace_support import (
    assert_nested,
    by_name,
    events_of,
    lines_of,
    names_of,
    peer_tools,
    run_child,
    run_tool,
    tasks_of,
)

from dftracer.utils import Runtime
from dftracer.utils.tracing import Trace, files, merge_traces, open_trace, read_events

__all__ = ["peer_tools"]


def same(value: Any) -> Any:
    return value


def fail(text: str) -> None:
    raise ValueError(text)


async def nap() -> None:
    await asyncio.sleep(0.01)


def returns_coroutine() -> Any:
    return nap()


# --- a file system that does not answer ---------------------------------------------------------


def test_nobody_waits_for_the_writer_but_who_flushes_when_the_file_does_not_answer(
    tmp_path: Path,
) -> None:
    """A pipe that nobody reads: the thread that writes is stuck in it, until the test reads."""
    path = str(tmp_path / "trace.pfw")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    traces = [Trace(path, True, "test", "host")]
    calls: list[tuple[str, Any]] = []

    def flush() -> None:
        traces[0].flush()
        calls.append(("flushed", None))

    with Runtime(threads=1, io_threads=1, python_threads=2) as runtime:
        runtime.start_trace(traces[0])
        for number in range(3_000):  # more than a pipe holds
            runtime.submit(same, number, name=f"task {number}")
        runtime.wait_all()
        flushing = [threading.Thread(target=flush) for _ in range(2)]
        for thread in flushing:
            thread.start()
        # All that others do goes on meanwhile: here, in bodies, in programs, in other traces.
        for number in range(40_000):  # more than wait before the writer is told
            runtime.submit(same, number)
        runtime.wait_all()
        assert runtime.submit(same, 1).get(60) == 1
        assert runtime.run_process(["true"], name="program").get(60).exit_code == 0
        assert runtime.submit(nap).get(60) is None
        runtime.get_progress()
        with Runtime(python_threads=1, trace=tmp_path / "other.pfw.gz") as other:
            other.submit(same, 2, name="other").get(60)
        assert "other" in by_name(tmp_path / "other.pfw.gz")
        assert calls == []
        os.set_blocking(reader, True)
        written = bytearray()
        draining = threading.Thread(target=drain, args=(reader, written))
        draining.start()
        for thread in flushing:
            thread.join()
        traces.clear()
    del runtime
    gc.collect()  # which ends the trace, and so what is read
    draining.join()
    assert b'"task 0"' in written
    assert b'"task 2999"' in written
    assert b"records lost" not in written


def test_a_shutdown_ends_when_the_file_of_the_trace_does_not_answer(
    run_script: Callable[..., str], tmp_path: Path
) -> None:
    """That takes as long as such a file is waited for."""
    path = str(tmp_path / "trace.pfw")
    os.mkfifo(path)
    script = f"""
        import os, threading
        from dftracer.utils import Runtime
        from dftracer.utils.tracing import Trace

        reader = os.open({path!r}, os.O_RDONLY | os.O_NONBLOCK)
        trace = Trace({path!r}, True, "test", "host")
        runtime = Runtime(python_threads=1)
        runtime.start_trace(trace)
        for number in range(3_000):
            runtime.submit(int, name=f"task {{number}}")
        runtime.shutdown()
        print("shut down", flush=True)
        os._exit(0)
    """
    assert run_script(script, stderr=None) == "shut down\n"


def drain(reader: int, into: bytearray) -> None:
    while part := os.read(reader, 1 << 20):
        into += part
    os.close(reader)


# --- what is written ------------------------------------------------------------------------------


def test_every_task_is_written_once_with_its_kind_and_end_when_it_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "run.pfw.gz"
    before = time.time_ns() // 1_000
    opened = threading.Event()
    with Runtime(python_threads=1, trace=path) as rt:
        rt.submit(same, 1, name="plain")
        rt.submit(fail, "no", name="failing")
        rt.submit(nap, name="coroutine")
        rt.submit(returns_coroutine, name="passed on")
        rt.submit_io(same, 1, name="io")
        rt.run_process(["true"], name="program")
        rt.run_process(["sh", "-c", "echo oh dear >&2; exit 3"], name="program that fails")
        rt.run_process(["/no/such/program"], name="no program")
        rt.hash_files([__file__], name="hashing")
        rt.wait_all()
        blocker = rt.submit(opened.wait, 10, name="blocker")
        rt.submit(same, 1, name="cancelled").cancel()
        opened.set()
        blocker.get()
    after = time.time_ns() // 1_000

    tasks = by_name(path)
    kinds = {name: (task["cat"], task["args"]["state"]) for name, task in tasks.items()}
    assert kinds == {
        "plain": ("python", "done"),
        "failing": ("python", "failed"),
        "coroutine": ("coroutine", "done"),
        "passed on": ("coroutine", "done"),
        "io": ("io", "done"),
        "program": ("process", "done"),
        "program that fails": ("process", "done"),
        "no program": ("process", "failed"),
        "hashing": ("files", "done"),
        "blocker": ("python", "done"),
        "cancelled": ("python", "cancelled"),
    }
    for task in tasks.values():
        assert before <= task["ts"] <= task["ts"] + task["dur"] <= after
        assert task["pid"] == os.getpid()
    failing = tasks["failing"]["args"]
    assert (failing["error"], failing["message"]) == ("ValueError", "no")
    assert "test_trace.py" in failing["traceback"]
    assert failing["traceback"].endswith(" in fail")
    program = tasks["program that fails"]["args"]
    assert (program["exit_code"], program["message"]) == (3, "oh dear")
    assert "/no/such/program" in tasks["no program"]["args"]["message"]
    assert "exit_code" not in tasks["program"]["args"]
    assert tasks["coroutine"]["dur"] >= 10_000


def test_names_are_those_of_handles_when_none_is_given(tmp_path: Path) -> None:
    path = tmp_path / "run.pfw.gz"

    def make(name: str) -> Any:
        def wrapper() -> None: ...

        wrapper.__qualname__ = name  # as decorators do: one code object, many functions
        return wrapper

    functions = [same, make("one"), make("two"), nap, len, "".join, make('a "quoted"\nname')]
    with Runtime(trace=path) as rt:
        handles = [
            rt.submit(function, *([""] if function in (same, len, functions[5]) else []))
            for function in functions
        ]
        rt.wait_all()
        handles += [rt.submit(same, n, name=f"task {n % 3}") for n in range(9)]
        names = [handle.name for handle in handles]
    assert sorted(names_of(path).elements()) == sorted(names)


def test_waiting_is_told_when_a_task_was_queued(tmp_path: Path) -> None:
    path = tmp_path / "run.pfw.gz"
    opened = threading.Event()
    with Runtime(python_threads=1, trace=path) as rt:
        rt.submit(opened.wait, 10, name="first")
        rt.submit(same, 1, name="second")
        threading.Timer(0.05, opened.set).start()
    tasks = by_name(path)
    assert tasks["second"]["args"]["queued_us"] >= 45_000
    assert tasks["second"]["tid"] == tasks["first"]["tid"]
    names = {
        event["tid"]: event["args"]["name"]
        for event in events_of(path)
        if event["name"] == "thread_name"
    }
    assert names[tasks["first"]["tid"]] == "dft-python-0"


def test_rows_nest_and_parents_are_told_when_tasks_submit_tasks(tmp_path: Path) -> None:
    path = tmp_path / "run.pfw.gz"

    def branch(rt: Runtime, depth: int) -> int:
        if depth == 0:
            return 1
        return sum(handle.get() for handle in [rt.submit(branch, rt, depth - 1) for _ in "ab"])

    with Runtime(python_threads=2, trace=path) as rt:
        root = rt.submit(branch, rt, 5)
        naps = [rt.submit(nap) for _ in range(50)]
        programs = [rt.run_process(["sleep", "0.01"]) for _ in range(10)]
        assert root.get() == 32
        for handle in [*naps, *programs]:
            handle.get()
    tasks = tasks_of(path)
    assert len(tasks) == 63 + 50 + 10
    assert_nested(tasks)
    children = [task for task in tasks if "parent" in task["args"]]
    assert len(children) == 62
    numbers = {task["args"]["task"] for task in tasks}
    assert {task["args"]["parent"] for task in children} <= numbers


def test_a_timeout_is_told_when_a_task_runs_out_of_time(tmp_path: Path) -> None:
    path = tmp_path / "run.pfw.gz"
    with Runtime(trace=path) as rt:
        rt.set_default_task_timeout(30)
        rt.submit(asyncio.sleep, 10, name="late")
        rt.run_process(["sleep", "10"], name="late program")
    tasks = by_name(path)
    for name in ("late", "late program"):
        assert tasks[name]["args"]["state"] == "failed"
        assert tasks[name]["args"]["error"] == "TaskTimeoutError"


# --- where it is written --------------------------------------------------------------------------


def test_the_error_is_clear_when_the_trace_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no/run"):
        Runtime(trace=tmp_path / "no" / "run.pfw.gz")
    with pytest.raises(OSError, match="full"):
        open_trace_at_full_device(tmp_path)
    with pytest.raises(ValueError, match=r"must be a directory or a file that ends in \.pfw\.gz"):
        Runtime(trace=tmp_path / "run.txt")
    with pytest.raises(TypeError):
        Runtime(trace=3)  # type: ignore[arg-type]


def open_trace_at_full_device(folder: Path) -> None:
    link = folder / "full.pfw.gz"
    link.symlink_to("/dev/full")
    Runtime(trace=link)


def test_runtimes_share_a_file_when_they_name_the_same(tmp_path: Path) -> None:
    path = tmp_path / "run.pfw.gz"
    with Runtime(trace=path) as one, Runtime(trace=str(path)) as two:
        one.submit(same, 1, name="a")
        two.submit(same, 1, name="b")
    with Runtime(trace=path) as three:  # goes on where the others have stopped
        three.submit(same, 1, name="c")
    tasks = by_name(path)
    assert set(tasks) == {"a", "b", "c"}
    assert len({task["args"]["runtime"] for task in tasks.values()}) >= 2
    ids = [event["id"] for event in events_of(path) if event["name"] in "ab"]
    assert len(set(ids)) == 2


def test_a_file_of_its_own_is_made_when_a_directory_is_given(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    for trace in (f"{folder}/", folder):
        with Runtime(trace=trace) as rt:
            rt.submit(same, 1)
    (path,) = folder.iterdir()
    assert path.name.endswith(f"-{os.getpid()}.pfw.gz")
    assert names_of(path).total() == 2


def test_an_earlier_run_is_overwritten_when_a_program_runs_again(tmp_path: Path) -> None:
    source = (
        "from dftracer.utils import *\nwith Runtime(trace='run.pfw.gz') as r: r.submit(pow, 1, 2)"
    )
    for _ in range(2):
        assert run_child(source, tmp_path).returncode == 0
    assert [file.name for file in tmp_path.iterdir()] == ["run.pfw.gz"]
    assert names_of(tmp_path / "run.pfw.gz").total() == 1


def test_the_process_is_in_the_name_when_the_file_is_another_processs(tmp_path: Path) -> None:
    path = tmp_path / "run.pfw.gz"
    source = """
import os, sys
from dftracer.utils import get_default_runtime
get_default_runtime().submit(pow, 2, 3, name="of the child").get()
print(os.getpid())
"""
    with Runtime(trace=path) as rt:
        rt.submit(same, 1, name="of the parent")
        # While this process writes the file, and with its environment.
        first = run_child(source, tmp_path, DFTRACER_TRACE=str(path))
        # Of a program that knows nothing of this one.
        stranger = run_child(source, tmp_path, DFTRACER_TRACE=str(path), **{files._LEDGER: ""})
    # The environment says that the file is this run's.
    second = run_child(source, tmp_path, DFTRACER_TRACE=str(path))
    assert set(by_name(path)) == {"of the parent"}
    for child in (first, stranger, second):
        assert child.returncode == 0, child.stderr
        assert set(by_name(tmp_path / f"run.{child.stdout.strip()}.pfw.gz")) == {"of the child"}


def test_the_environment_traces_the_default_runtime_only_when_nothing_else_is_said(
    tmp_path: Path,
) -> None:
    source = """
from dftracer.utils import Runtime, get_default_runtime
get_default_runtime().submit(pow, 2, 3, name="traced").get()
with Runtime() as rt:
    rt.submit(pow, 2, 3, name="not traced").get()
"""
    child = run_child(source, tmp_path, DFTRACER_TRACE="run.pfw.gz")
    assert (child.returncode, child.stderr) == (0, "")
    assert set(by_name(tmp_path / "run.pfw.gz")) == {"traced"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_the_child_has_a_file_of_its_own_when_a_process_forks(tmp_path: Path) -> None:
    source = """
import os, time
from dftracer.utils import get_default_runtime
rt = get_default_runtime()
rt.submit(pow, 2, 3, name="parent").get()
child = os.fork()
if child == 0:
    get_default_runtime().submit(pow, 2, 3, name="child").get()
else:
    assert os.waitpid(child, 0)[1] == 0
    rt.submit(pow, 2, 3, name="parent again").get()
    print(child)
"""
    child = run_child(source, tmp_path, DFTRACER_TRACE="run.pfw.gz")
    assert child.returncode == 0, child.stderr
    assert set(by_name(tmp_path / "run.pfw.gz")) == {"parent", "parent again"}
    assert set(by_name(tmp_path / f"run.{child.stdout.strip()}.pfw.gz")) == {"child"}


# --- the end of the process -----------------------------------------------------------------------


def test_everything_is_written_when_a_program_just_ends(tmp_path: Path) -> None:
    source = """
from dftracer.utils import Runtime
rt = Runtime(trace="run.pfw.gz")
for n in range(5_000):
    rt.submit(pow, n, 2, name="power")
"""
    child = run_child(source, tmp_path)
    assert (child.returncode, child.stderr) == (0, "")
    assert names_of(tmp_path / "run.pfw.gz") == {"power": 5_000}


def test_what_was_written_stays_readable_when_the_process_is_killed(tmp_path: Path) -> None:
    source = """
import os, sys, threading
from dftracer.utils import Runtime
rt = Runtime(trace="run.pfw.gz")
for n in range(50_000):
    rt.submit(pow, n, 2, name="power")
rt.wait_all()
print(flush=True)
threading.Event().wait()
"""
    command = [sys.executable, "-c", source]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path) as child:
        assert child.stdout is not None
        child.stdout.readline()
        deadline = time.monotonic() + 20
        path = tmp_path / "run.pfw.gz"
        # Nobody has asked for it: the period of the writer ends by itself.
        while names_of(path).total() < 50_000:
            assert time.monotonic() < deadline
        child.send_signal(signal.SIGKILL)
    assert names_of(path) == {"power": 50_000}


def test_the_tasks_go_on_and_it_is_said_once_when_the_disk_is_full(tmp_path: Path) -> None:
    source = textwrap.dedent(
        """
        import logging, resource, signal
        from dftracer.utils import Runtime
        logging.basicConfig(format="%(levelname)s %(message)s")
        rt = Runtime(trace="run.pfw.gz")
        rt.submit(pow, 1, 2, name="early").get()
        from dftracer.utils.tracing import open_trace
        trace = open_trace("run.pfw.gz")
        trace.flush()
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        for turn in range(3):
            resource.setrlimit(resource.RLIMIT_FSIZE, (400, hard))
            handles = [rt.submit(pow, n, 2, name=f"{turn} {n}") for n in range(5_000)]
            assert [handle.get() for handle in handles] == [n * n for n in range(5_000)]
            trace.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        rt.submit(pow, 1, 2, name="late").get()
        rt.shutdown()
        """
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    child = run_child(source, tmp_path)
    assert child.returncode == 0, child.stderr
    (warning,) = child.stderr.splitlines()
    assert warning.startswith("WARNING the trace ")
    assert "run.pfw.gz cannot be written" in warning
    path = tmp_path / "run.pfw.gz"
    assert set(by_name(path)) == {"early", "late"}
    (dropped,) = [event for event in events_of(path) if event["name"] == "dropped"]
    assert dropped["args"]["value"] == "15000"


# --- those who read it ----------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_the_real_tools_read_validate_and_index_it_when_it_is_done(
    tmp_path: Path, peer_tools: Path
) -> None:
    traces = tmp_path / "traces"
    traces.mkdir()
    with Runtime(python_threads=2, trace=traces / "run.pfw.gz") as rt:
        for n in range(3_000):
            rt.submit(same, n, name='a "b"\\é')
        for _ in range(20):
            rt.submit(nap, name="nap")
            rt.run_process(["true"], name="program")
        for _ in range(10):
            rt.submit(fail, "no\n\tway", name="failing")
        rt.wait_all()
        open_trace(traces / "run.pfw.gz").flush()  # a member that ends in the middle
        rt.submit(same, 1, name="last")
    directory = str(traces)
    assert "1 passed, 0 failed" in run_tool(peer_tools / "dftracer_validate", "-d", directory)
    count = run_tool(peer_tools / "dftracer_event_count", "-d", directory)
    assert count.split()[-1] == "3051"
    stats = run_tool(peer_tools / "dftracer_stats", "-d", directory, "--report", "names")
    counts = dict(line.strip().rsplit(maxsplit=1) for line in stats.splitlines() if "  " in line)
    counts = {name.strip(): number for name, number in counts.items()}
    expected = {'a "b"\\é': 3_000, "nap": 20, "program": 20, "failing": 10, "last": 1}
    assert {name: int(counts[name]) for name in expected} == expected
    source = """
import json, sys
from dftracer.utils import TraceViewer
view = TraceViewer(sys.argv[1])
named = view.group_by("name").agg("count", "sum:dur").collect().to_dict()
rows = view.collect().to_dict()
print(json.dumps([dict(zip(named["name"], named["count"])), sorted(set(rows["cat"])),
                  sum(state == "failed" for state in rows["args.state"])]))
"""
    viewed = run_tool(peer_tools / "python", "-c", source, directory)
    counts, categories, failed = json.loads(viewed.splitlines()[-1])
    assert counts == expected
    assert categories == ["coroutine", "process", "python"]
    assert failed == 10


def test_one_timeline_is_made_when_traces_are_merged(tmp_path: Path) -> None:
    source = """
import sys
from dftracer.utils import Runtime
with Runtime(trace=f"{sys.argv[1]}.pfw.gz") as rt:
    for n in range(3):
        rt.submit(pow, n, 2, name=f"{sys.argv[1]} {n}")
"""
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-c", source, name], cwd=tmp_path, check=True)
    # As if of a machine on which by chance the process has the same number.
    lines = lines_of(tmp_path / "a.pfw.gz")
    pid, host = events_of(tmp_path / "a.pfw.gz")[0]["pid"], "0123456789abcdef"
    own = events_of(tmp_path / "a.pfw.gz")[0]["args"]["hhash"]
    (tmp_path / "c.pfw").write_text("[\n" + "\n".join(lines).replace(own, host))

    merged = tmp_path / "merged.json.gz"
    count = merge_traces([tmp_path], merged)
    events = list(read_events(merged))
    assert len(events) == count
    assert [event["id"] for event in events] == list(range(count))
    tasks = [event for event in events if event["ph"] == "X"]
    assert len(tasks) == 9
    assert len({event["pid"] for event in events}) == 3
    assert {event["pid"] for event in events if event["args"]["hhash"] == own} >= {pid}
    assert json.loads(gzip.decompress(merged.read_bytes())) == events
    with pytest.raises(ValueError, match="is one of the traces"):
        merge_traces([tmp_path / "a.pfw.gz"], tmp_path / "a.pfw.gz")
    with pytest.raises(FileNotFoundError, match="there is no trace"):
        merge_traces([tmp_path / "no.pfw.gz"], tmp_path / "out.json")
