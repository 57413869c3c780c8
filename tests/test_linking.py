"""What a backend is told about files, and what a body gets in their place."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from engine_support import assert_nothing_kept
from files_support import Recorder

from dftracer.asyncflow import (
    DataError,
    DependencyFailureError,
    File,
    InputFile,
    NoopExecutionBackend,
    OutputFile,
    WorkflowEngine,
)
from dftracer.asyncflow.engine.arguments import find_in_call, place_files


class AsyncRecorder(Recorder):
    """The same, whose hooks are coroutine functions."""

    async def link_implicit_data_deps(self, src_task: Any, dst_task: Any) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().link_implicit_data_deps(src_task, dst_task)

    async def link_explicit_data_deps(self, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().link_explicit_data_deps(**kwargs)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_text(name: str) -> str:
    Path(name).write_text("text")
    return name


def read_text(file: File) -> str:
    return Path(file).read_text()


def body(*args: Any, **kwargs: Any) -> str:
    return "true"


async def run_diamond(backend: Any, kind: str, **options: Any) -> None:
    """Call a, b(a), c(a, b): of these a declares an output, b another, c reads that of a."""
    async with await WorkflowEngine.create(backend, **options) as flow:
        task = getattr(flow, kind)(body)
        a = task(OutputFile("out/a.txt"))
        b = task(a)
        c = task(a, InputFile("a.txt"), of=b)
        await c
        assert c.task["metadata"] == {
            "dependencies": [
                {"uid": a.uid, "name": "body"},
                {"uid": b.uid, "name": "body"},
            ],
            "input_files": ["a.txt"],
            "output_files": [],
        }
        assert a.task["metadata"]["output_files"] == ["a.txt"]
        assert_nothing_kept(flow)


ONE, TWO, THREE = (f"task.00000{number}" for number in (1, 2, 3))
IMPLICIT = ("implicit", TWO, THREE)
EXPLICIT = ("explicit", ONE, THREE, "a.txt", None)


@pytest.mark.parametrize("kind", ["function_task", "executable_task", "prompt_task"])
@pytest.mark.parametrize("make", [Recorder, AsyncRecorder])
@pytest.mark.parametrize(
    ("implicit", "explicit", "implicit_data", "told"),
    [
        (True, True, True, [IMPLICIT, EXPLICIT]),
        (True, False, True, [IMPLICIT]),
        (False, True, True, [EXPLICIT]),
        (False, False, True, []),
        (True, True, False, [EXPLICIT]),
    ],
)
async def test_backend_is_told_of_files_when_it_declares_that_it_can_link(
    kind: str, make: Any, implicit: bool, explicit: bool, implicit_data: bool, told: list[Any]
) -> None:
    backend = make(implicit=implicit, explicit=explicit)
    await run_diamond(backend, kind, implicit_data=implicit_data)
    submits = [("submit", uid) for uid in (ONE, TWO)]
    assert backend.calls == [*submits, *told, ("submit", THREE)]


async def test_nothing_is_linked_when_it_is_a_dry_run() -> None:
    backend = Recorder(implicit=True, explicit=True)
    await run_diamond(backend, "function_task", dry_run=True)
    assert backend.calls == []


async def test_backend_is_told_where_a_file_is_when_no_dependency_writes_it(
    elsewhere: Path,
) -> None:
    (elsewhere / "here").mkdir()
    (elsewhere / "here" / "b.txt").touch()
    (elsewhere / "c.txt").write_text("of an earlier run")
    backend = Recorder(explicit=True)
    async with await WorkflowEngine.create(backend) as flow:
        task = flow.function_task(body)
        a = task(OutputFile("c.txt"), OutputFile("unused.txt"))
        inputs = [InputFile("a.txt"), InputFile("here/b.txt"), InputFile("c.txt")]
        again = InputFile(elsewhere / "here" / "b.txt")
        await task(a, inputs, {"again": again, "first": inputs[0]})
    assert backend.calls[1:-1] == [
        ("explicit", ONE, TWO, "c.txt", None),
        ("explicit", None, TWO, "a.txt", "a.txt"),
        ("explicit", None, TWO, "b.txt", str(elsewhere / "here" / "b.txt")),
    ]


async def test_each_backend_is_told_of_its_own_tasks_when_there_are_several() -> None:
    first, second = Recorder(name="first"), Recorder(name="second", implicit=True, explicit=True)
    async with await WorkflowEngine.create([first, second]) as flow:
        here = flow.function_task(body)
        there = flow.function_task(backend="second")(body)
        a = here(OutputFile("a.txt"))
        b = there(a, InputFile("a.txt"))
        await here(b, there(b), InputFile("c.txt"))
    assert [call for call in first.calls if call[0] != "submit"] == []
    assert [call for call in second.calls if call[0] != "submit"] == [
        ("explicit", ONE, TWO, "a.txt", None),
        ("implicit", TWO, THREE),
    ]


@pytest.mark.parametrize("hook", ["link_implicit_data_deps", "link_explicit_data_deps"])
async def test_only_the_task_fails_when_a_hook_raises(hook: str) -> None:
    backend = Recorder(implicit=True, explicit=True)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no link today")

    setattr(backend, hook, fail)
    async with await WorkflowEngine.create(backend) as flow:
        task = flow.function_task(body)
        a = task()
        with pytest.raises(OSError, match="no link today"):
            await task(a, InputFile("b.txt"))
        await task(1)
        assert_nothing_kept(flow)


async def test_task_fails_when_two_dependencies_write_the_same_file() -> None:
    backend = Recorder(explicit=True)
    async with await WorkflowEngine.create(backend) as flow:
        one, two, reader = (flow.function_task(f) for f in (_named(n) for n in "one two r".split()))
        a, b = one(OutputFile("a.txt")), two(OutputFile("x/a.txt"))
        with pytest.raises(
            DataError, match=r"'r'.* 'a\.txt' comes from task 'one' and from task 'two'"
        ):
            await reader(a, b, InputFile("a.txt"))
        await reader(a, b, InputFile("b.txt"))  # it does not read that one


async def test_task_fails_when_two_inputs_have_the_same_name(elsewhere: Path) -> None:
    for name in "xy":
        (elsewhere / name).mkdir()
        (elsewhere / name / "a.txt").touch()
    backend = Recorder(explicit=True)
    async with await WorkflowEngine.create(backend) as flow:
        reader = flow.function_task(_named("reader"))
        with pytest.raises(
            DataError, match=r"'reader' has two input files named 'a\.txt'.*x/a.txt"
        ):
            await reader(InputFile("x/a.txt"), InputFile("y/a.txt"))
        writer = flow.function_task(_named("writer"))
        with pytest.raises(DataError, match=r"from http://host/a\.txt and from task 'writer'"):
            await reader(writer(OutputFile("a.txt")), InputFile("http://host/a.txt"))


def _named(name: str) -> Any:
    def function(*args: Any) -> None:
        """Stand for a task; the recorder runs none."""

    function.__name__ = name
    return function


async def test_foreign_backend_gets_files_as_they_are_when_it_does_not_stage() -> None:
    backend = Recorder(explicit=True)
    async with await WorkflowEngine.create(backend) as flow:
        task = flow.function_task(body)
        given, written = InputFile("a.txt"), OutputFile("b.txt")
        await task(given, written)
        got_input, got_output = backend.tasks[0]["args"]
        assert vars(got_input) == vars(given)
        assert vars(got_output) == vars(written)


async def test_rhapsody_backend_runs_tasks_when_they_declare_files() -> None:
    backends = pytest.importorskip("rhapsody.backends", reason="RHAPSODY is not installed")
    backend = await backends.ConcurrentExecutionBackend()
    async with await WorkflowEngine.create(backend) as flow:

        @flow.function_task
        async def write(file: OutputFile) -> str:
            return write_text(file.filename)

        @flow.function_task
        async def read(name: str, file: InputFile) -> str:
            return name + read_text(file)

        assert await read(write(OutputFile("a.txt")), InputFile("a.txt")) == "a.txttext"


# --- files in arguments -------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    source: File
    options: dict[str, Any]


def test_files_are_found_and_replaced_when_nested() -> None:
    a, b, c, d = InputFile("a"), OutputFile("b"), InputFile("c"), OutputFile("d")
    job = Job(a, {"targets": [b, (c,)], "plain": [1, 2]})
    futures, files = find_in_call((1, job, "x", a), {"last": d})
    assert futures == {}
    assert files is not None
    assert list(files) == [a, b, c, d]

    new = {file: OutputFile(f"new {file.filename}") for file in files}
    args, kwargs = place_files((1, job, "x", a), {"last": d}, new)
    assert args == (1, Job(new[a], {"targets": [new[b], (new[c],)], "plain": [1, 2]}), "x", new[a])
    assert kwargs == {"last": new[d]}
    assert args[1].options["plain"] is job.options["plain"]
    assert job == Job(a, {"targets": [b, (c,)], "plain": [1, 2]}), "what the caller holds stays"


def test_no_files_are_sought_when_arguments_are_plain_values() -> None:
    assert find_in_call((1, "two", None), {"three": 3.0}) == ({}, None)
    assert find_in_call(([1, "two"],), {}) == ({}, {})


async def test_dependents_fail_when_linking_fails() -> None:
    async with await WorkflowEngine.create(Recorder(explicit=True)) as flow:
        task = flow.function_task(body)
        a, b = task(OutputFile("a.txt")), task(OutputFile("a.txt"))
        broken = task(a, b, InputFile("a.txt"))
        with pytest.raises(DependencyFailureError) as caught:
            await task(broken)
        assert type(caught.value.root_cause) is DataError
        assert broken.state == "FAILED"


async def test_no_file_is_touched_when_the_backend_runs_nothing(elsewhere: Path) -> None:
    async with await WorkflowEngine.create(NoopExecutionBackend()) as flow:
        task = flow.function_task(body)
        url = "http://host.invalid/a.txt"
        assert await task(InputFile(url), OutputFile("b.txt")) == "Dummy Output"
    assert os.listdir(elsewhere) == []
