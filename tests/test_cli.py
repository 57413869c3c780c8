"""The command line, as real processes."""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from docs_support import examples
from terminal_support import Terminal

from dftracer.asyncflow.cli import doctor
from dftracer.asyncflow.cli.main import main as cli
from dftracer.utils.progress import status

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "dftracer.asyncflow"]

ENGINE = """
import asyncio, os, sys
from dftracer.asyncflow import WorkflowEngine

async def main():
    async with await WorkflowEngine.create() as flow:
        @flow.function_task
        def double(number):
            return 2 * number
        BODY

asyncio.run(main())
"""

Flow = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of whoever runs the tests, and nobody else's processes to watch."""
    for name in list(os.environ):
        if name.startswith("DFTRACER_"):
            monkeypatch.delenv(name)
    (tmp_path / "runtime").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.chdir(tmp_path)  # in that of the checkout, Python would take its sources


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    """Run a command in the directory of the test; see that it ends with that exit code."""

    def run(*arguments: object, code: int = 0, **env: str) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **env},
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., Path]:
    """Write a script: as it is, or what an engine does."""

    def write(source: str, *, engine: bool = True, name: str = "script.py") -> Path:
        source = textwrap.dedent(source)
        if engine:
            source = ENGINE.replace("BODY", textwrap.indent(source, " " * 8).lstrip())
        path = tmp_path / name
        path.write_text(source, encoding="utf-8")
        return path

    return write


# --- run ------------------------------------------------------------------------------------------


def test_a_script_is_main_with_its_own_arguments_when_it_is_run(
    flow: Flow, script: Callable
) -> None:
    path = script("import sys; print(__name__, sys.argv, sys.path[0])", engine=False)
    done = flow("run", "--threads", 2, path, "--threads", "9", "--", "-h", "x y")
    arguments = [str(path), "--threads", "9", "--", "-h", "x y"]
    assert done.stdout == f"__main__ {arguments} {path.parent}\n"


@pytest.mark.parametrize(
    ("source", "code", "error"),
    [
        ("pass", 0, ""),
        ("raise SystemExit(7)", 7, ""),
        ("raise LookupError('mine')", 1, "LookupError: mine"),
    ],
)
def test_the_exit_code_is_the_scripts_when_it_ends(
    flow: Flow, script: Callable, source: str, code: int, error: str
) -> None:
    done = flow("run", script(source, engine=False), code=code)
    assert error in done.stderr
    assert "asyncflow/cli" not in done.stderr


def test_a_shell_sees_130_when_a_script_is_interrupted(tmp_path: Path, script: Callable) -> None:
    path = script("import sys; print('ready', flush=True); sys.stdin.read()", engine=False)
    line = f"{sys.executable} -m dftracer.asyncflow run {path}; echo code $?"
    with subprocess.Popen(
        ["bash", "-c", f"trap : INT; {line}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "ready\n"
        os.killpg(shell.pid, signal.SIGINT)
        out, _ = shell.communicate(timeout=30)
    assert out == "code 130\n"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "COMMAND"),
        (("run",), "SCRIPT"),
        (("run", "nowhere.py"), "there is no file 'nowhere.py'"),
        (("run", "--threads", "0", "s.py"), "it must be a number above 0, not '0'"),
        (("run", "--backend", "slurm", "s.py"), "there is no backend 'slurm': choose runtime, "),
        (("run", "--backend", "dask:", "s.py"), "there is no backend 'dask:'"),
        (("run", "--graph", "g.pdf", "s.py"), "a graph can be saved as .mmd, "),
        (("graph", "s.py"), "-o/--output"),
        (("graph", "-o", "nowhere/g.svg", "s.py"), "there is no directory "),
        (("top", "x"), "it must be a number above 0, not 'x'"),
        (("completion", "csh"), "invalid choice"),
    ],
)
def test_it_says_what_is_wrong_when_it_is_asked_wrongly(
    flow: Flow, script: Callable, arguments: tuple[str, ...], error: str
) -> None:
    script("pass", engine=False, name="s.py")
    done = flow(*arguments, code=2)
    assert error in done.stderr
    assert done.stderr.startswith("usage: dftracer-flow")


def test_engines_and_the_default_runtime_have_that_size_when_threads_are_given(
    flow: Flow, script: Callable
) -> None:
    path = script(
        """
        from dftracer.utils import Runtime, get_default_runtime
        print(flow.backend.runtime.threads, get_default_runtime().threads, Runtime(5).threads)
        """
    )
    assert flow("run", "--threads", 3, path).stdout == "3 3 5\n"
    done = flow("run", path, code=1, DFTRACER_THREADS="many")
    assert "ValueError: DFTRACER_THREADS in the environment must be a number, not 'many'" in (
        done.stderr
    )


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("runtime", "RuntimeExecutionBackend - 42"),
        ("threads", "LocalExecutionBackend ThreadPoolExecutor 42"),
        ("processes", "LocalExecutionBackend ProcessPoolExecutor 42"),
        ("noop", "NoopExecutionBackend - Dummy Output"),
    ],
)
def test_engines_have_that_backend_when_they_are_given_none(
    flow: Flow, script: Callable, backend: str, expected: str
) -> None:
    path = script(
        """
        pool = getattr(flow.backend, "executor", None)
        kind = type(pool).__name__ if pool else "-"
        assert pool is None or pool._max_workers == 2
        print(type(flow.backend).__name__, kind, await double(21))
        """
    )
    # From Python 3.14 on, workers of a pool import the program, which must not run in them.
    path.write_text(
        path.read_text().replace("\nasyncio.run", "\nif __name__ == '__main__': asyncio.run")
    )
    # Python 3.12 warns of forks beside threads, which is how it starts processes itself.
    env = {"PYTHONWARNINGS": "error,default::DeprecationWarning"}
    done = flow("run", "--threads", 2, "--backend", backend, path, **env)
    assert done.stdout == f"{expected}\n"


def test_tasks_run_on_dask_when_that_is_the_backend(flow: Flow, script: Callable) -> None:
    pytest.importorskip("distributed")
    path = script(
        """
        print(type(flow.backend).__name__, flow.backend.name, await double(21))
        """
    )
    path.write_text(
        path.read_text().replace("\nasyncio.run", "\nif __name__ == '__main__': asyncio.run")
    )
    # What Dask warns of is its own business.
    done = flow("run", "--threads", 1, "--backend", "dask", path, PYTHONWARNINGS="default")
    assert done.stdout == "DaskExecutionBackend default 42\n"


def test_it_says_so_when_the_environment_names_no_backend(flow: Flow, script: Callable) -> None:
    done = flow("run", script("pass"), code=1, DFTRACER_BACKEND="slurm")
    assert "ValueError: DFTRACER_BACKEND in the environment: there is no backend 'slurm'" in (
        done.stderr
    )


def test_the_trace_is_where_it_was_asked_for_when_the_script_goes_elsewhere(
    flow: Flow, script: Callable, tmp_path: Path
) -> None:
    path = script("print(await double(1))")
    path.write_text("import os; os.chdir('/')\n" + path.read_text())
    flow("run", "--trace", "run.pfw.gz", path)
    assert (tmp_path / "run.pfw.gz").stat().st_size > 0
    flow("run", "--trace", "traces/", path)
    assert len(list((tmp_path / "traces").iterdir())) == 1


def test_no_task_runs_when_the_run_is_dry(flow: Flow, script: Callable) -> None:
    source = """
    from dftracer.asyncflow import LocalExecutionBackend
    other = await WorkflowEngine.create(await LocalExecutionBackend())
    print(flow.dry_run, other.dry_run, await double(1), await other.function_task(print)("no"))
    await other.shutdown()
    """
    done = flow("run", "--dry-run", script(source))
    assert done.stdout == "True True Dummy Output Dummy Output\n"


# --- graph ----------------------------------------------------------------------------------------


def test_the_graph_of_a_dry_run_is_saved_when_it_is_asked_for(
    flow: Flow, script: Callable, tmp_path: Path
) -> None:
    path = script("await double(double(1)); print(sys.argv[1:])")
    done = flow("graph", "-o", "out.mmd", path, "-o", "x")
    assert done.stdout == f"['-o', 'x']\n{tmp_path / 'out.mmd'}\n"
    text = (tmp_path / "out.mmd").read_text()
    assert text.startswith("flowchart LR\n")
    assert "n1 --> n2" in text
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out.mmd", "runtime", "script.py"]


def test_each_engine_has_a_file_when_there_are_several(
    flow: Flow, script: Callable, tmp_path: Path
) -> None:
    path = script(
        """
        async with await WorkflowEngine.create() as other:
            await other.function_task(max)(1, 2)
        import subprocess
        if len(sys.argv) == 1:
            subprocess.run([sys.executable, __file__, "child"], check=True)
        """
    )
    done = flow("run", "--graph", "g.mmd", path)
    assert done.stdout == ""
    assert sorted(each.name for each in tmp_path.glob("*.mmd")) == ["g-2.mmd", "g.mmd"]
    assert "max" in (tmp_path / "g-2.mmd").read_text()


def test_the_graph_goes_as_far_as_it_came_when_a_script_fails(
    flow: Flow, script: Callable, tmp_path: Path
) -> None:
    done = flow("graph", "-o", "g.dot", script("1 + await double(1)"), code=1)
    assert "TypeError" in done.stderr
    assert done.stderr.endswith(
        "maybe because of a dummy result; its graph goes as far as it came\n"
    )
    assert "double" in (tmp_path / "g.dot").read_text()


def test_there_is_no_graph_when_a_script_is_killed(flow: Flow, script: Callable) -> None:
    path = script("import os; os.kill(os.getpid(), 9)", engine=False)
    done = flow("graph", "-o", "g.dot", path, code=1)
    assert done.stdout == ""
    assert done.stderr.endswith("has failed, maybe because of a dummy result; there is no graph\n")


def test_no_script_runs_when_its_graph_could_not_be_drawn(
    flow: Flow, script: Callable, tmp_path: Path
) -> None:
    path = script("open('ran', 'w')", engine=False)
    for arguments in (("run", "--graph"), ("graph", "-o")):
        done = flow(*arguments, "g.svg", path, code=2, PATH=str(tmp_path))
        assert "needs the program 'dot' of Graphviz" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_it_says_so_when_a_script_makes_no_engine(
    flow: Flow, script: Callable, tmp_path: Path
) -> None:
    (tmp_path / "g.mmd").write_text("old")
    done = flow("graph", "-o", "g.mmd", script("pass", engine=False), code=1)
    assert "made no engine" in done.stderr
    assert (tmp_path / "g.mmd").read_text() == "old"


@pytest.mark.skipif(shutil.which("dot") is None, reason="the program dot is needed")
def test_an_image_is_drawn_at_exit_when_the_environment_asks_for_it(
    script: Callable, tmp_path: Path
) -> None:
    path = script("print(await double(21)); raise SystemExit(3)")
    env = {**os.environ, "DFTRACER_GRAPH": "run.svg"}
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "42\n", "")
    assert "double" in (tmp_path / "run.svg").read_text()
    done = subprocess.run(
        [sys.executable, path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**env, "PATH": ""},
    )
    assert done.returncode == 3
    assert done.stderr.startswith("DFTRACER_GRAPH: the graph was not saved: a graph as svg needs")


# --- top ------------------------------------------------------------------------------------------

WAITING = """
held = flow.function_task(sys.stdin.readline)()
await asyncio.gather(*map(double, range(1_000)))
print("ready", flush=True)
await held
"""


@pytest.fixture
def running(script: Callable) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start a script that waits for a line, and have it end after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str = WAITING, *, engine: bool = True) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*COMMAND, "run", str(script(source, engine=engine))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def look_until(flow: Flow, text: str, *arguments: object) -> str:
    """Ask ``top`` again until it shows that; the process tells it in its own time."""
    shown = ""
    for _ in range(50):
        shown = flow("top", "--once", *arguments).stdout
        if text in shown:
            break
    assert text in shown
    return shown


def test_top_shows_the_tasks_of_a_process_when_run_has_started_it(
    flow: Flow, running: Callable[..., "subprocess.Popen[str]"]
) -> None:
    process = running()
    shown = look_until(flow, "double: 1,000/1,000", process.pid)
    assert shown.startswith(f"{process.pid}: ")
    assert shown.splitlines()[0].endswith("script.py")
    assert "readline: 0/1" in shown
    assert look_until(flow, "double: 1,000/1,000").startswith(f"{process.pid}: ")


def test_top_shows_the_tasks_of_runtimes_when_there_is_no_engine(
    flow: Flow, running: Callable[..., "subprocess.Popen[str]"]
) -> None:
    source = """
    import sys
    from dftracer.utils import Runtime
    with Runtime() as runtime:
        handles = [runtime.submit(pow, 2, 2, name="square") for _ in range(50)]
        held = runtime.submit(sys.stdin.readline, name="held")
        print("ready", flush=True)
    """
    process = running(source, engine=False)
    assert "held: 0/1" in look_until(flow, "square: 50/50", process.pid)


def test_top_shows_bars_until_the_process_ends_when_it_has_a_terminal(
    running: Callable[..., "subprocess.Popen[str]"],
) -> None:
    process = running()
    # Wide enough for the path of the script, which is on the first line.
    with Terminal(width=500) as terminal, terminal.start([*COMMAND, "top"]) as top:
        terminal.read_until(lambda: b"1,000/1,000" in terminal.written)
        process.communicate("\n", timeout=30)
        terminal.read_until(lambda: top.poll() is not None)
        assert top.returncode == 0
        lines = terminal.screen()
    assert lines[-1] == f"process {process.pid} has ended; this is what it told last"
    assert sorted(line.split()[0] for line in lines[1:-1]) == ["double", "readline"]


def test_top_ends_with_130_when_it_is_interrupted(
    running: Callable[..., "subprocess.Popen[str]"],
) -> None:
    running()
    with Terminal(width=100) as terminal, terminal.start([*COMMAND, "top"]) as top:
        terminal.read_until(lambda: b"double" in terminal.written)
        top.send_signal(signal.SIGINT)
        terminal.read_until(lambda: top.poll() is not None)
    assert top.returncode == 130
    assert b"Traceback" not in terminal.written


def test_top_says_why_when_there_is_nothing_to_watch(
    flow: Flow, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    remedy = ": start it with 'dftracer-flow run', or with DFTRACER_STATUS=1 in its environment\n"
    done = flow("top", code=1)
    assert done.stderr == f"dftracer-flow top: no process of yours tells of its tasks{remedy}"
    done = flow("top", os.getpid(), code=1)
    assert done.stderr.endswith(f"process {os.getpid()} does not tell of its tasks{remedy}")
    assert flow("top", 2**22 + 1, code=1).stderr.endswith(": there is no process 4194305\n")
    monkeypatch.setattr(os, "getuid", lambda: os.stat("/proc/self").st_uid + 1)
    assert cli(["top", str(os.getpid())]) == 1
    assert "belongs to another user" in capsys.readouterr().err


def test_nothing_is_left_of_a_process_when_it_has_ended(
    flow: Flow, running: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    first, second = running(), running()
    folder = tmp_path / "runtime" / "dftracer"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(int(file.stem) for file in folder.glob("*.json")) == sorted(
        [first.pid, second.pid]
    )
    first.communicate("\n", timeout=30)
    assert list(folder.glob(f"{first.pid}.*")) == []
    second.kill()
    second.communicate()
    assert [file.name for file in folder.glob("*.json")] == [f"{second.pid}.json"]
    third = running()
    # Besides these there may be the "*.new" of one that writes, or was killed while it wrote.
    assert [file.name for file in folder.glob("*.json")] == [f"{third.pid}.json"]
    third.kill()
    third.communicate()
    flow("top", code=1)
    assert list(folder.glob("*.json")) == []


def test_no_file_is_written_when_nobody_asks_for_it(script: Callable, tmp_path: Path) -> None:
    path = script("import threading; print(await double(1), threading.enumerate())")
    done = subprocess.run([sys.executable, path], capture_output=True, text=True)
    assert done.returncode == 0
    assert "dft-status" not in done.stdout
    assert list((tmp_path / "runtime").iterdir()) == []


def test_a_directory_is_not_used_when_others_can_write_to_it(
    flow: Flow, script: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    env = {"DFTRACER_STATUS": str(folder)}
    assert flow("run", script("print(await double(1))"), **env).stdout == "2\n"
    assert list(folder.iterdir()) == []
    assert "only this user can write to" in flow("top", 1, code=1, **env).stderr
    monkeypatch.setenv("DFTRACER_STATUS", str(tmp_path / "nowhere"))
    assert status.read_all() == []


# --- merge ----------------------------------------------------------------------------------------

EVENT = '{"id":0,"name":"ok","cat":"python","pid":1,"tid":1,"ts":100,"dur":5,"ph":"X","args":{}}'

NO_TRACES = {
    "a text": (b"hello\nworld\n", "line 1: it is no JSON: "),
    "no byte": (b"", "it is empty"),
    "other JSON": (b'{"traceEvents": []}\n', "line 1: it is no event"),
    "a list of many lines": (b'[\n{\n"a": 1\n}\n]\n', "line 2: it is no JSON: "),
    "a program": (b"\x7fELF\x02\x01\x00\n", "line 1: it is no JSON: "),
}


@pytest.mark.parametrize(("content", "reason"), NO_TRACES.values(), ids=NO_TRACES)
def test_merge_names_each_file_when_it_is_no_trace(
    flow: Flow, tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "good.pfw").write_text(f"[\n{EVENT}\n]\n")
    for name in ("a.pfw", "b.pfw"):
        (tmp_path / name).write_bytes(content)
    done = flow("merge", "a.pfw", "good.pfw", "b.pfw", "-o", "out.json")
    assert done.stdout == "1 events in out.json\n"
    assert done.stderr.startswith("dftracer-flow: left out: ")
    for name in ("a.pfw", "b.pfw"):
        assert f"{name}: it is no trace: {reason}" in done.stderr
    (tmp_path / "out.json").write_text("of before")
    done = flow("merge", "a.pfw", "b.pfw", "-o", "out.json", code=1)
    assert done.stdout == ""
    assert done.stderr.startswith("dftracer-flow: there is no trace to merge: left out: a.pfw: ")
    assert (tmp_path / "out.json").read_text() == "of before"


def test_merge_names_what_it_passes_over_when_a_directory_holds_other_files(
    flow: Flow, tmp_path: Path
) -> None:
    folder = tmp_path / "traces"
    (folder / "more.pfw").mkdir(parents=True)
    (folder / "good.pfw").write_text(f"[\n{EVENT}\n")
    (folder / "notes.txt").write_text("x")
    output = folder / "all.json"
    for _ in range(2):  # the second time, its own output is there
        done = flow("merge", "traces", "-o", output)
        assert done.stderr == (
            "dftracer-flow: left out: traces/notes.txt: its name does not end in .pfw.gz or .pfw\n"
        )
    (folder / "other.txt").touch()
    assert ", nor do those of 1 more files there" in flow("merge", "traces", "-o", output).stderr


def test_a_trace_is_merged_without_a_word_when_nothing_was_traced(
    flow: Flow, tmp_path: Path
) -> None:
    (tmp_path / "none.pfw").write_text("[\n]\n")
    done = flow("merge", "none.pfw", "-o", "out.json")
    assert (done.stdout, done.stderr) == ("0 events in out.json\n", "")


# --- this machine, this shell ---------------------------------------------------------------------


def test_doctor_lists_limits_and_extras_when_it_is_asked(flow: Flow) -> None:
    lines = flow("doctor", DFTRACER_THREADS="3", PYTHONWARNINGS="default").stdout.splitlines()
    text = "\n".join(lines)
    assert lines[0].startswith("dftracer-asyncflow ")
    assert f"Python {sys.version.split()[0]} " in text
    assert f"{len(os.sched_getaffinity(0))} by affinity" in text
    assert "environment  DFTRACER_THREADS=3" in text
    for extra in doctor.EXTRAS:
        (line,) = [line for line in lines if line.split()[1:2] == [extra]]
        if line.startswith("  - "):
            assert f"pip install 'dftracer-asyncflow[{extra}]'" in text


def test_doctor_says_why_and_what_would_help_when_an_extra_is_missing() -> None:
    source = """
    import sys
    sys.modules["rich"] = None
    from dftracer.asyncflow.cli.main import main
    sys.exit(main(["doctor"]))
    """
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", textwrap.dedent(source)],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": ""},
    )
    lines = done.stdout.splitlines()
    (number,) = [n for n, line in enumerate(lines) if line.startswith("  - progress")]
    assert lines[number].endswith("bars instead of lines: 'rich' is not installed")
    assert lines[number + 1].strip() == "pip install 'dftracer-asyncflow[progress]'"
    (number,) = [n for n, line in enumerate(lines) if line.startswith("  - dot")]
    assert lines[number + 1].strip() == "apt install graphviz"
    assert done.returncode == 0


def test_doctor_knows_every_extra_when_one_is_added() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^([\w-]+) = \[", section, re.MULTILINE))
    assert set(doctor.EXTRAS) == extras - {"test"}


@pytest.mark.parametrize(
    ("cgroup", "files", "cpus", "memory"),
    [
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/memory.max": "1048576"}, 1.5, 1048576),
        ("0::/a\n", {"a/cpu.max": "max 100000", "a/memory.max": "max"}, None, None),
        (
            "0::/a/b\n",
            {"a/cpu.max": "50000 100000", "a/b/cpu.max": "400000 100000", "memory.max": "7"},
            0.5,
            7,
        ),
        (
            "4:memory:/c\n3:cpu,cpuacct:/c\n0::/\n",
            {
                "memory/c/memory.limit_in_bytes": "2097152",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "cpu,cpuacct/c/cpu.cfs_quota_us": "200000",
                "cpu,cpuacct/c/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            2.0,
            2097152,
        ),
        ("", {}, None, None),
    ],
)
def test_limits_are_those_of_the_tightest_cgroup_when_there_are_several(
    tmp_path: Path, cgroup: str, files: dict[str, str], cpus: float | None, memory: int | None
) -> None:
    (tmp_path / "proc").write_text(cgroup)
    for name, content in files.items():
        file = tmp_path / "sys" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")
    assert doctor.cpu_quota(tmp_path / "proc", tmp_path / "sys") == cpus
    assert doctor.memory_limit(tmp_path / "proc", tmp_path / "sys") == memory


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("do", "doctor"),
        ("run scr", "run script.py"),
        ("run --tr", "run --trace"),
        ("report run.p", "report run.pfw.gz"),
    ],
)
def test_a_shell_completes_what_is_typed_when_it_has_read_the_script(
    flow: Flow, script: Callable, tmp_path: Path, shell: str, typed: str, completed: str
) -> None:
    pytest.importorskip("shtab")
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script("pass")
    (tmp_path / "run.pfw.gz").touch()
    (tmp_path / "completion").write_text(flow("completion", shell).stdout)
    plain, setup = {
        "bash": (["bash", "--norc"], ""),
        "zsh": (["zsh", "-f"], "autoload -Uz compinit; compinit -u -D; "),
    }[shell]
    command = [*plain, "-i"]
    with Terminal(echo=True) as terminal, terminal.start(command, cwd=str(tmp_path)) as process:
        terminal.type(f'{setup}eval "$(cat completion)"; echo re""ady\n')
        terminal.read_until(lambda: "ready" in terminal.screen())
        terminal.type(f"dftracer-flow {typed}\t")
        terminal.read_until(lambda: f"dftracer-flow {completed}" in terminal.screen()[-1])
        process.kill()


def test_completion_names_its_extra_when_that_is_missing() -> None:
    source = "import sys; sys.modules['shtab'] = None\n"
    source += "from dftracer.asyncflow.cli.main import main; sys.exit(main(['completion', 'bash']))"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'dftracer-asyncflow[completion]'" in done.stderr


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("doctor | head -1 | cut -c -9; echo ${PIPESTATUS[0]}", "dftracer-\n0\n"),
        ("doctor >&-; echo $?", "0\n"),
        ("run script.py >&-; echo $?", "0\n"),
        ("doctor > /dev/full; echo $?", "1\n"),
    ],
)
def test_a_command_ends_as_it_should_when_its_output_does_not_arrive(
    script: Callable, tmp_path: Path, line: str, expected: str
) -> None:
    script("print(await double(1))")
    whole = f"{sys.executable} -m dftracer.asyncflow {line}"
    done = subprocess.run(["bash", "-c", whole], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == expected
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", ["run", "graph", "top", "doctor", "report", "merge", "completion"]
)
def test_help_is_given_when_a_command_is_asked_for_it(flow: Flow, command: str) -> None:
    assert flow(command, "--help").stdout.startswith(f"usage: dftracer-flow {command} ")
    assert f"    {command}" in flow("--help").stdout


def test_the_program_is_installed_when_the_package_is() -> None:
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="console_scripts", name="dftracer-flow")
    assert entry.load() is cli


def test_it_ends_quietly_when_nobody_reads_on(tmp_path: Path) -> None:
    line = f"{sys.executable} -W default -m dftracer.asyncflow doctor | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_examples_run_when_they_are_taken_from_the_page(tmp_path: Path) -> None:
    (source,) = examples("cli.md")
    (tmp_path / "script.py").write_text(source)
    shim = tmp_path / "bin" / "dftracer-flow"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m dftracer.asyncflow "$@"\n')
    shim.chmod(0o755)
    (commands,) = examples("cli.md", "sh")
    done = subprocess.run(
        ["sh", "-e", "-c", commands],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{shim.parent}:{os.environ['PATH']}",
            "PYTHONWARNINGS": "default",
        },
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [ast.literal_eval(line) for line in lines[:3]] == [
        [0, 1, 16, 81],
        [0, 1, 16, 81],
        ["Dummy Output"] * 4,
    ]
    assert (tmp_path / "run.pfw.gz").exists()
    assert (tmp_path / "run.mmd").read_text().count("-->") == 4
