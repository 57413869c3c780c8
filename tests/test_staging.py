"""Files that tasks hand to each other on our own backends, from end to end."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from backend_support import make_pool
from engine_support import assert_nothing_kept
from files_support import Tasks, engine, read, write

from dftracer.asyncflow import (
    DataError,
    InputFile,
    LocalExecutionBackend,
    OutputFile,
    RuntimeExecutionBackend,
    WorkflowEngine,
)
from dftracer.asyncflow.backends.base import ExecutionBackend
from dftracer.utils import Runtime

AWKWARD = 'it\'s a "test" & $HOME; (1).txt'
"""A name that breaks what does not quote it."""


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


@pytest.fixture(params=["runtime", "threads", "processes"])
def backend(request: pytest.FixtureRequest) -> ExecutionBackend:
    """Run the tests that use this on every backend of ours that runs anything."""
    if request.param == "runtime":
        return RuntimeExecutionBackend()
    return LocalExecutionBackend(make_pool(request.param, 1))


# --- from task to task --------------------------------------------------------------------------


async def test_files_reach_the_consumer_when_programs_form_a_chain(
    work_dir: Path, elsewhere: Path, backend: ExecutionBackend
) -> None:
    async with await engine(work_dir, backend=backend) as flow:
        tasks = Tasks(flow)
        first = tasks.say("hello", OutputFile("a.txt"))
        second = tasks.upper(InputFile("a.txt"), OutputFile("b.txt"), first)
        third = tasks.upper(InputFile("b.txt"), OutputFile("a.txt"), second)
        assert await tasks.read(InputFile("a.txt"), third) == "HELLO\n"
        assert_nothing_kept(flow)
    root = work_dir / "engine"
    assert sorted(os.listdir(root)) == [f"task.00000{number}" for number in (1, 2, 3, 4)]
    assert (root / "task.000002" / "a.txt").readlink() == root / "task.000001" / "a.txt"
    assert second.task["directory"] == str(root / "task.000002")
    assert os.listdir(elsewhere) == []


async def test_bodies_get_absolute_paths_when_they_are_functions(
    work_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    async with await engine(Path("work")) as flow:
        tasks = Tasks(flow)
        given = OutputFile("a.txt")
        written = tasks.write("text", given)
        assert await tasks.read(InputFile("a.txt"), written) == "text"
        assert await written == work_dir / "engine" / "task.000001" / "a.txt"
        assert given.filepath is None, "what the caller holds stays"


@dataclass
class Job:
    sources: list[InputFile]
    out: dict[str, OutputFile]


async def test_files_are_placed_when_they_are_nested_in_arguments(
    work_dir: Path, backend: ExecutionBackend
) -> None:
    async with await engine(work_dir, backend=backend) as flow:
        tasks = Tasks(flow)

        @flow.function_task
        async def join(job: Job, after: Any = None) -> str:
            text = "".join(read(source) for source in job.sources)
            write(text, job.out["all"])
            return text

        parts = [tasks.write(letter, OutputFile(letter)) for letter in "abc"]
        job = Job([InputFile(letter) for letter in "abc"], {"all": OutputFile("all")})
        joined = join(job, after=parts)
        assert await joined == "abc"
        assert await tasks.read(InputFile("all"), joined) == "abc"


async def test_files_are_placed_when_the_body_runs_in_the_engines_loop(
    work_dir: Path, backend: ExecutionBackend
) -> None:
    async with await engine(work_dir, backend=backend) as flow:
        tasks = Tasks(flow)

        @flow.function_task(loop="engine")
        async def copy(source: InputFile, out: OutputFile, after: Any = None) -> str:
            write(read(source) + "!", out)
            return read(source)

        @flow.function_task(loop="engine")
        async def forget(out: OutputFile) -> None:
            """Write nothing."""

        first = tasks.write("text", OutputFile("a"))
        copied = copy(InputFile("a"), OutputFile("b"), first)
        again = copy(InputFile("b"), OutputFile("c"), copied)
        assert await tasks.read(InputFile("c"), again) == "text!!"
        assert (await copied, await again) == ("text", "text!")
        assert copied.task["directory"] == str(work_dir / "engine" / copied.uid)
        with pytest.raises(DataError, match="'d'"):
            await forget(OutputFile("d"))
        with pytest.raises(DataError, match="'e'"):
            await copy(InputFile("e"), OutputFile("f"))


@pytest.mark.parametrize("name", [AWKWARD, "-rf", "näme\nwith line", "a" * 255])
async def test_files_reach_the_consumer_when_names_are_awkward(work_dir: Path, name: str) -> None:
    async with await engine(work_dir) as flow:
        tasks = Tasks(flow)
        first = tasks.say("text", OutputFile(f"{name}"))
        second = tasks.upper(InputFile(name), OutputFile("b"), first)
        assert await tasks.read(InputFile("b"), second) == "TEXT\n"


async def test_every_consumer_reads_its_own_when_files_fan_out_and_in(work_dir: Path) -> None:
    names = [f"part {number}" for number in range(200)]
    async with await engine(work_dir) as flow:
        tasks = Tasks(flow)

        @flow.function_task
        def split(outs: list[OutputFile]) -> None:
            for out in outs:
                write(out.filename, out)

        @flow.function_task
        def join(sources: list[InputFile], copies: Any) -> list[str]:
            return [read(source) for source in sources]

        whole = split([OutputFile(name) for name in names])
        copies = [tasks.upper(InputFile(name), OutputFile(name.upper()), whole) for name in names]
        expected = [name.upper() for name in names]
        assert await join([InputFile(name) for name in expected], copies) == expected
        assert_nothing_kept(flow)


async def test_outputs_stay_apart_when_two_engines_share_a_work_dir(work_dir: Path) -> None:
    async def run(uid: str | None) -> str:
        async with await WorkflowEngine.create(work_dir=work_dir, uid=uid) as flow:
            tasks = Tasks(flow)
            written = tasks.write(flow.uid, OutputFile("a.txt"))
            assert await tasks.read(InputFile("a.txt"), written) == flow.uid
            return str(await written)

    places = await asyncio.gather(run(None), run(None))
    assert len(set(places)) == 2
    again = [await run("same"), await run("same"), await run("same")]
    assert [Path(place).parent.name for place in again] == [
        "task.000001",
        "task.000001.2",
        "task.000001.3",
    ]


async def test_input_is_staged_when_it_is_a_local_file(work_dir: Path, elsewhere: Path) -> None:
    (elsewhere / "data").mkdir()
    (elsewhere / "data" / AWKWARD).write_text("text\n")
    async with await engine(work_dir) as flow:
        tasks = Tasks(flow)
        source = InputFile(f"data/{AWKWARD}")
        done = tasks.upper(source, OutputFile("b"), source)
        assert await tasks.read(InputFile("b"), done) == "TEXT\n"
    staged = work_dir / "engine" / "task.000001" / AWKWARD
    assert staged.readlink() == elsewhere / "data" / AWKWARD


async def test_directory_is_staged_when_it_is_an_input(work_dir: Path, elsewhere: Path) -> None:
    (elsewhere / "data").mkdir()
    (elsewhere / "data" / "a.txt").write_text("text")
    async with await engine(work_dir) as flow:
        listing = flow.executable_task(lambda source: ["ls", f"{source.filename}/"])
        assert await listing(InputFile("data")) == "a.txt\n"


async def test_files_are_staged_when_the_runtime_was_given(work_dir: Path) -> None:
    with Runtime(python_threads=1, io_threads=1) as runtime:
        async with await engine(work_dir, backend=RuntimeExecutionBackend(runtime)) as flow:
            tasks = Tasks(flow)
            first = tasks.say("hello", OutputFile("a.txt"))
            assert await tasks.read(InputFile("a.txt"), first) == "hello\n"
            with pytest.raises(DataError):
                await tasks.read(InputFile("b.txt"), first)
        runtime.wait_all(raise_on_error=True)


async def test_output_is_captured_when_a_program_has_files(
    work_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    async with await engine(Path("work")) as flow:

        @flow.executable_task(capture_stdio=True)
        def list_files(source: InputFile, out: OutputFile, after: Any) -> str:
            return f"ls > {out.filename}; cat {out.filename}"

        first = Tasks(flow).write("text", OutputFile("a.txt"))
        listed = list_files(InputFile("a.txt"), OutputFile("b.txt"), first)
        assert (tmp_path / await listed).read_text() == "a.txt\nb.txt\n"
        assert await Tasks(flow).read(InputFile("b.txt"), listed) == "a.txt\nb.txt\n"


async def test_block_hands_files_on_as_they_are_when_it_is_called_with_some(
    work_dir: Path,
) -> None:
    async with await engine(work_dir) as flow:
        tasks = Tasks(flow)

        @flow.block
        async def copy_of(text: str, source: InputFile, out: OutputFile) -> str:
            assert out.filepath is None
            return await tasks.read(source, tasks.write(text, out))

        assert await copy_of("text", InputFile("a.txt"), OutputFile("a.txt")) == "text"


async def test_files_cross_over_when_tasks_run_on_different_backends(work_dir: Path) -> None:
    backends = [RuntimeExecutionBackend(), LocalExecutionBackend(name="local")]
    async with await engine(work_dir, backend=backends) as flow:
        tasks = Tasks(flow)
        read_there = flow.function_task(backend="local")(read)
        first = tasks.say("hello", OutputFile("a.txt"))
        assert await read_there(InputFile("a.txt"), first) == "hello\n"


# --- ways of staging ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["symlink", "link", "copy"])
async def test_input_is_staged_as_the_description_says(
    work_dir: Path, elsewhere: Path, way: str
) -> None:
    (elsewhere / "real.txt").write_text("text")
    (elsewhere / "a.txt").symlink_to("real.txt")
    async with await engine(work_dir) as flow:
        tasks = Tasks(flow)
        assert await tasks.read(InputFile("a.txt"), task_description={"staging": way}) == "text"
    staged, real = work_dir / "engine" / "task.000001" / "a.txt", elsewhere / "real.txt"
    assert staged.is_symlink() == (way == "symlink")
    assert staged.samefile(real) == (way != "copy")


async def test_producer_keeps_its_file_when_a_consumer_changes_a_copy(work_dir: Path) -> None:
    async with await engine(work_dir) as flow:
        tasks = Tasks(flow)

        @flow.function_task
        def append(source: InputFile, out: OutputFile, after: Any) -> str:
            assert source.filepath == out.filepath
            return write(read(source) + "more", out).read_text()

        first = tasks.write("text", OutputFile("a.txt"))
        files = InputFile("a.txt"), OutputFile("a.txt")
        assert await append(*files, first, task_description={"staging": "copy"}) == "textmore"
        assert (await first).read_text() == "text"
        with pytest.raises(DataError, match=r"'append' reads and writes 'a\.txt'"):
            await append(*files, first)
        assert (await first).read_text() == "text"


async def test_value_error_when_the_way_of_staging_is_unknown(work_dir: Path) -> None:
    async with await engine(work_dir) as flow:
        with pytest.raises(ValueError, match=r"'say'.*'symlink', 'link', 'copy', not 'move'"):
            await Tasks(flow).say("x", OutputFile("a"), task_description={"staging": "move"})
    assert os.listdir(work_dir.parent) == ["cwd"]


async def test_files_are_in_the_cwd_when_the_description_names_one(
    work_dir: Path, tmp_path: Path, elsewhere: Path, backend: ExecutionBackend
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (elsewhere / "a.txt").write_text("text\n")
    options = {"cwd": shared}
    async with await engine(work_dir, backend=backend) as flow:
        tasks = Tasks(flow)
        done = [
            tasks.upper(InputFile("a.txt"), OutputFile(f"b{n}"), task_description=options)
            for n in range(10)
        ]
        texts = [tasks.read(InputFile(f"b{n}"), done[n]) for n in range(10)]
        assert await asyncio.gather(*texts) == ["TEXT\n"] * 10
        # What is there already is not staged anew.
        assert await tasks.read(InputFile(shared / "b1"), task_description=options) == "TEXT\n"
        (shared / "c.txt").write_text("precious")
        made = tasks.write("new", OutputFile("c.txt"))
        with pytest.raises(DataError, match=r"cannot symlink its input file 'c\.txt'.*exists"):
            await tasks.read(InputFile("c.txt"), made, task_description=options)
        assert (shared / "c.txt").read_text() == "precious"
        with pytest.raises(DataError, match="'read': its 'cwd' is no directory"):
            await tasks.read(InputFile("a.txt"), task_description={"cwd": "missing"})
