"""Programs and timeouts on the backends of this process: what a task_description can say."""

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from backend_support import GUARD_S, Door, Recorder, function_task, has_begun, program_task

from dftracer.asyncflow import (
    ExecutableError,
    LocalExecutionBackend,
    RuntimeExecutionBackend,
    WorkflowEngine,
)
from dftracer.utils import TaskTimeoutError

Backend = LocalExecutionBackend | RuntimeExecutionBackend

BACKENDS = [
    pytest.param(lambda: RuntimeExecutionBackend(name="here"), id="runtime"),
    pytest.param(lambda: LocalExecutionBackend(name="here"), id="local"),
]

pytestmark = pytest.mark.parametrize("make", BACKENDS)


@asynccontextmanager
async def served(make: Any, folder: Path) -> AsyncIterator[tuple[Backend, Recorder]]:
    """Start a backend and somebody who is told of its tasks."""
    async with make() as backend:
        backend._work_dir = str(folder / "outputs")
        yield backend, Recorder(backend)


async def run(make: Any, folder: Path, *words: str, **options: Any) -> dict[str, Any]:
    """Run one program and return its task."""
    async with served(make, folder) as (backend, recorder):
        await backend.submit_tasks([program_task("task.1", *words, **options)])
        task = await recorder.end_of("task.1")
    [state] = recorder.states["task.1"]
    assert state == ("FAILED" if "exception" in task else "DONE")
    return task


async def run_out_of_time(make: Any, folder: Path, script: str, **options: Any) -> dict[str, Any]:
    """Run a shell's script that goes on for too long when it has told so in the file ``begun``."""
    for timeout in (0.3, 3, 20):  # on a busy machine it takes a while to begin
        description = {"timeout": timeout, "cwd": folder}
        task = await run(make, folder, "sh", "-c", script, description=description, **options)
        if (folder / "begun").exists():
            break
    assert isinstance(task["exception"], TaskTimeoutError)
    return task


def content(path: str) -> str:
    """Return what is in a file."""
    return Path(path).read_text()


async def test_a_program_runs_in_its_directory_when_it_has_cwd(make: Any, tmp_path: Path) -> None:
    for cwd in (tmp_path, str(tmp_path)):
        task = await run(make, tmp_path, "pwd", "-P", description={"cwd": cwd})
        assert task["stdout"] == f"{tmp_path}\n"


async def test_a_program_has_that_environment_alone_when_it_has_env(
    make: Any, tmp_path: Path
) -> None:
    env = {"ONE": "1", "EMPTY": "", "TEXT": "ü =\n"}
    task = await run(make, tmp_path, "/usr/bin/env", "-0", description={"env": env})
    assert sorted(task["stdout"].split("\0")[:-1]) == sorted(f"{k}={v}" for k, v in env.items())


async def test_a_program_reads_that_when_it_has_stdin(make: Any, tmp_path: Path) -> None:
    (tmp_path / "input").write_text("from a file")
    for stdin, expected in (
        (b"from bytes", "from bytes"),
        (tmp_path / "input", "from a file"),
        (str(tmp_path / "input"), "from a file"),
        (None, ""),
    ):
        task = await run(make, tmp_path, "cat", description={"stdin": stdin})
        assert task["stdout"] == expected


async def test_a_program_is_killed_when_its_time_is_over(make: Any, tmp_path: Path) -> None:
    # Its grandchild holds the pipe: the end comes only if the whole group is killed.
    script = "echo out; echo err >&2; touch begun; sleep 1000"
    task = await run_out_of_time(make, tmp_path, script)
    assert "'sh'" in str(task["exception"])
    assert (task["stdout"], task["stderr"], task["exit_code"]) == ("out\n", "err\n", None)


async def test_output_goes_to_files_when_it_is_captured(make: Any, tmp_path: Path) -> None:
    script = "echo out; echo err >&2"
    task = await run(make, tmp_path, "sh", "-c", script, capture_stdio=True)
    folder = tmp_path / "outputs"
    assert task["stdout"] == str(folder / "task.1.stdout")
    assert task["stderr"] == str(folder / "task.1.stderr")
    assert content(task["stdout"]) == "out\n"
    assert content(task["stderr"]) == "err\n"


async def test_the_error_repeats_the_end_of_the_files_when_output_is_captured(
    make: Any, tmp_path: Path
) -> None:
    script = "head -c 100000 /dev/zero | tr '\\0' x; echo the end; echo why >&2; exit 3"
    task = await run(make, tmp_path, "sh", "-c", script, capture_stdio=True)
    error = task["exception"]
    assert isinstance(error, ExecutableError)
    assert error.exit_code == task["exit_code"] == 3
    assert error.stderr == "why\n"
    assert error.stdout.endswith("xx" + "the end\n")
    assert len(error.stdout) < 10_000
    assert "why" in str(error)
    assert len(content(task["stdout"])) == 100_008


async def test_the_files_hold_what_was_written_when_time_is_over(make: Any, tmp_path: Path) -> None:
    script = "echo out; touch begun; exec sleep 1000"
    task = await run_out_of_time(make, tmp_path, script, capture_stdio=True)
    assert content(task["stdout"]) == "out\n"


async def test_the_task_fails_by_name_when_its_files_cannot_be_made(
    make: Any, tmp_path: Path
) -> None:
    (tmp_path / "outputs").write_text("in the way")
    task = await run(make, tmp_path, "echo", capture_stdio=True)
    assert task["exception"].errno in (errno.EEXIST, errno.ENOTDIR)


@pytest.mark.parametrize(
    ("description", "kind", "text"),
    [
        ({"cwd": 3}, TypeError, "cwd must be a path, not int 3"),
        ({"cwd": "/nowhere"}, FileNotFoundError, "this directory: .*: '/nowhere'"),
        ({"env": [("A", "b")]}, TypeError, "env must be a dict"),
        ({"env": {"A": 1}}, TypeError, r"env\['A'\] must be a text, not int 1"),
        ({"stdin": 3}, TypeError, "stdin must be bytes or the path"),
        ({"stdin": "/nowhere"}, FileNotFoundError, "/nowhere"),
        ({"timeout": "soon"}, TypeError, "timeout must be a number"),
        ({"timeout": -1}, ValueError, "timeout must be a number"),
    ],
    ids=str,
)
async def test_only_that_task_fails_when_an_option_is_wrong(
    make: Any, tmp_path: Path, description: Any, kind: type[Exception], text: str
) -> None:
    async with served(make, tmp_path) as (backend, recorder):
        await backend.submit_tasks(
            [program_task("bad", "echo", description=description), program_task("good", "echo")]
        )
        with pytest.raises(kind, match=text) as caught:
            raise (await recorder.end_of("bad"))["exception"]
        assert "task 'echo'" in str(caught.value)
        assert (await recorder.end_of("good"))["stdout"] == "\n"
    assert list(recorder.states["good"]) == ["DONE"]


async def test_one_warning_is_logged_when_an_option_is_unknown(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(make, tmp_path) as (backend, recorder):
        for number in range(3):
            await backend.submit_tasks(
                [
                    program_task(f"p.{number}", "echo", description={"gpus": 1, "shell": False}),
                    function_task(f"f.{number}", abs, 1, description={"gpus": 1, "cwd": "/"}),
                ]
            )
            await recorder.end_of(f"p.{number}")
            assert await recorder.result_of(f"f.{number}") == 1
    warnings = [record.getMessage() for record in caplog.records]
    assert [record.name for record in caplog.records] == ["dftracer.asyncflow"] * 3
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    assert all("backend 'here' ignores" in warning for warning in warnings)
    for part in ("'gpus' in the task_description of a program", "of a function", "'cwd'"):
        assert any(part in warning for warning in warnings)


async def test_a_prompt_fails_by_name_when_the_backend_has_no_model(
    make: Any, tmp_path: Path
) -> None:
    async with served(make, tmp_path) as (backend, recorder):
        task = {**program_task("task.1", "ask"), "executable": None, "prompt": "Why?"}
        await backend.submit_tasks([task])
        error = (await recorder.end_of("task.1"))["exception"]
        assert isinstance(error, NotImplementedError)
        assert "backend 'here'" in str(error)
        assert "'ask'" in str(error)


async def test_the_process_group_dies_when_the_task_is_cancelled(make: Any, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    async with served(make, tmp_path) as (backend, recorder):
        script = f"sleep 1000 > {alive} & echo begun > {alive}; wait"
        await backend.submit_tasks([program_task("task.1", "sh", "-c", script)])
        await readable(reader)
        assert os.read(reader, 100) == b"begun\n"
        assert has_begun(backend, "task.1")
        assert await backend.cancel_task("task.1")
        await recorder.end_of("task.1")
        await readable(reader)  # the last writer is gone
        assert os.read(reader, 100) == b""
    assert recorder.states["task.1"] == ["CANCELED"]
    os.close(reader)


async def readable(file: int) -> None:
    """Wait until there is something to read, or nobody to write it any more."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(file, event.set)
    try:
        await asyncio.wait_for(event.wait(), GUARD_S)
    finally:
        loop.remove_reader(file)


def count_threads() -> int:
    """Return how many threads this process has, of Python and of others."""
    return len(os.listdir("/proc/self/task"))


async def test_no_thread_is_held_when_many_programs_run(make: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    reader = os.open(begun, os.O_RDWR)
    async with served(make, tmp_path) as (backend, recorder):
        before = count_threads()
        script = f"echo -n x > {begun}; read line < {gate}"
        await backend.submit_tasks(
            [program_task(f"task.{n}", "sh", "-c", script) for n in range(60)]
        )
        seen = b""
        while len(seen) < 60:
            await readable(reader)
            seen += os.read(reader, 100)
        assert count_threads() - before < 20
        writer = await asyncio.to_thread(os.open, gate, os.O_WRONLY)
        os.write(writer, b"\n" * 60)
        for number in range(60):
            await recorder.end_of(f"task.{number}")
        os.close(writer)
    os.close(reader)
    assert set(map(tuple, recorder.states.values())) == {("DONE",)}


async def test_the_body_is_left_or_stopped_when_its_time_is_over(
    make: Any, tmp_path: Path, door: Door
) -> None:
    async def endless() -> None:
        try:
            await door.hold_async()
        finally:
            (tmp_path / "stopped").touch()

    async with served(make, tmp_path) as (backend, recorder):
        await backend.submit_tasks([function_task("task.1", endless, description={"timeout": 0.2})])
        await door.reached()
        with pytest.raises(TaskTimeoutError, match="'endless' on backend 'here'"):
            await recorder.result_of("task.1")
        assert not has_begun(backend, "task.1")
        if isinstance(backend, LocalExecutionBackend):
            assert not (tmp_path / "stopped").exists()
            door.open()
    # The shutdown has waited for the body, which one of the two has stopped before its time.
    assert (tmp_path / "stopped").exists()
    assert recorder.states["task.1"] == ["FAILED"]


async def test_a_task_of_an_engine_has_a_timeout_when_described_so(
    make: Any, tmp_path: Path, door: Door
) -> None:
    async with await WorkflowEngine.create(make(), work_dir=tmp_path) as flow:

        @flow.function_task
        def slow() -> Any:
            return door.hold("late")

        @flow.executable_task(capture_stdio=True)
        def show() -> list[str]:
            return ["printenv", "COLOUR"]

        with pytest.raises(TaskTimeoutError, match="'slow'"):
            await slow(task_description={"timeout": 1})
        await door.reached()
        door.open()
        path = await show(task_description={"env": {"COLOUR": "green", "PATH": os.environ["PATH"]}})
        assert content(path) == "green\n"
        assert Path(path).parent == tmp_path / flow.uid
