"""What can go wrong with files that tasks hand to each other on our own backends."""

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from engine_support import GUARD_S, assert_nothing_kept, reached
from files_support import Tasks, engine

from dftracer.asyncflow import (
    DataError,
    DependencyFailureError,
    ExecutableError,
    InputFile,
    OutputFile,
)
from dftracer.asyncflow.data import staging


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in an empty directory."""
    directory = tmp_path / "cwd"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    """Return where the engines of a test put their outputs."""
    return tmp_path / "work"


async def test_task_fails_when_an_input_is_nowhere(work_dir: Path) -> None:
    async with await engine(work_dir) as flow:
        tasks = Tasks(flow)
        other = tasks.write("text", OutputFile("b.txt"))
        with pytest.raises(
            DataError, match=r"'read': its input file 'a\.txt' is not at .*declares OutputFile"
        ):
            await tasks.read(InputFile("a.txt"), other)


@pytest.mark.parametrize("kind", ["executable_task", "function_task"])
async def test_task_fails_when_it_does_not_write_its_output(
    work_dir: Path, elsewhere: Path, kind: str
) -> None:
    (elsewhere / "stale.txt").touch()
    async with await engine(work_dir) as flow:
        idle = getattr(flow, kind)(_idle)
        with pytest.raises(DataError, match=r"'_idle' ended well without .*'a\.txt'") as caught:
            await idle(OutputFile("a.txt"))
        assert str(work_dir / "engine" / "task.000001" / "a.txt") in str(caught.value)
        assert "filepath" not in str(caught.value)
        with pytest.raises(DataError, match="write to the 'filepath'"):
            await idle(OutputFile("stale.txt"))
        consumer = Tasks(flow).read(InputFile("a.txt"), idle(OutputFile("a.txt")))
        with pytest.raises(DependencyFailureError) as dependent:
            await consumer
        assert type(dependent.value.root_cause) is DataError
        assert_nothing_kept(flow)


def _idle(out: OutputFile) -> str:
    return "true"


async def test_consumer_fails_by_its_dependency_when_the_producer_fails(work_dir: Path) -> None:
    async with await engine(work_dir) as flow:
        failing = flow.executable_task(lambda out: f"echo text > {out.filename}; exit 3")
        produced = failing(OutputFile("a.txt"))
        with pytest.raises(DependencyFailureError) as caught:
            await Tasks(flow).read(InputFile("a.txt"), produced)
        assert type(caught.value.root_cause) is ExecutableError
    assert os.listdir(work_dir / "engine") == ["task.000001"]


async def test_only_the_task_fails_when_its_file_vanishes_or_cannot_be_read(
    work_dir: Path,
) -> None:
    async with await engine(work_dir) as flow:
        tasks = Tasks(flow)
        first = tasks.write("text", OutputFile("a.txt"))
        (await first).unlink()
        with pytest.raises(DataError, match=r"is not at .*, where task 'write' was to write it"):
            await tasks.read(InputFile("a.txt"), first)
        whole = flow.function_task(lambda out: out.filepath.mkdir())(OutputFile("dir"))
        with pytest.raises(DataError, match="cannot copy its input file 'dir'"):
            await tasks.read(InputFile("dir"), whole, task_description={"staging": "copy"})


async def test_task_fails_when_its_directory_cannot_be_made(elsewhere: Path) -> None:
    (elsewhere / "file").touch()
    async with await engine(elsewhere / "file") as flow:
        with pytest.raises(NotADirectoryError):
            await Tasks(flow).write("text", OutputFile("a.txt"))


async def test_body_does_not_run_when_cancelled_while_staging(
    work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    make_ready = staging._make_ready

    def slow(*args: Any) -> str:
        begun.set()
        assert go_on.wait(GUARD_S)
        return make_ready(*args)

    ran = []
    async with await engine(work_dir) as flow:
        first = Tasks(flow).write("text", OutputFile("a.txt"))
        await first
        monkeypatch.setattr(staging, "_make_ready", slow)
        second = flow.function_task(ran.append)(InputFile("a.txt"), first)
        await reached(begun)
        try:
            assert second.cancel()
        finally:
            go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await second
    assert_nothing_kept(flow)
    assert ran == []
