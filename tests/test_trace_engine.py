"""Traces of an engine: what it knows of its components is told with them."""

import asyncio
import itertools
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from engine_support import reached
from trace_support import assert_nested, by_name, events_of, names_of, tasks_of

from dftracer.asyncflow import (
    LocalExecutionBackend,
    NoopExecutionBackend,
    RuntimeExecutionBackend,
    WorkflowEngine,
)
from dftracer.utils import Runtime


async def test_components_are_told_with_what_the_engine_knows_when_it_is_traced(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.pfw.gz"
    async with await WorkflowEngine.create(uid="engine one", trace=path) as flow:

        @flow.function_task
        def source() -> int:
            return 1

        @flow.function_task
        async def double(value: int) -> int:
            await asyncio.sleep(0.01)
            return 2 * value

        @flow.executable_task
        def echo(value: int) -> list[str]:
            return ["echo", str(value)]

        @flow.block
        async def inside(value: int) -> str:
            return str(await echo(double(value)))

        @flow.block
        async def outside(value: int) -> str:
            return await inside(value)

        async with flow.workflow_scope("mine"):
            start = source()
        assert await outside(start) == "2\n"

    tasks = by_name(path)
    args = {name: task["args"] for name, task in tasks.items()}
    assert set(tasks) == {"source", "double", "echo", "inside", "outside"}
    assert {name: arg["kind"] for name, arg in args.items()} == {
        "source": "function",
        "double": "function",
        "echo": "executable",
        "inside": "block",
        "outside": "block",
    }
    assert {arg["engine"] for arg in args.values()} == {"engine one"}
    assert {arg["state"] for arg in args.values()} == {"done"}
    assert args["source"]["workflow_id"] == "mine"
    assert args["outside"]["deps"] == args["source"]["uid"] == "task.000001"
    assert args["echo"]["deps"] == args["double"]["uid"]
    assert args["inside"]["owner"] == args["outside"]["uid"]
    assert args["echo"]["owner"] == args["double"]["owner"] == args["inside"]["uid"]
    assert args["echo"]["wait_us"] >= 10_000 > args["source"]["wait_us"]
    assert tasks["echo"]["cat"] == "process"
    assert_nested(tasks.values())
    for inner, outer in itertools.pairwise(["echo", "inside", "outside"]):
        assert tasks[outer]["ts"] <= tasks[inner]["ts"]


async def test_every_end_is_told_once_when_components_do_not_end_well(tmp_path: Path) -> None:
    path, begun = tmp_path / "run.pfw.gz", threading.Event()
    async with await WorkflowEngine.create(trace=path) as flow:

        @flow.function_task
        def fails() -> None:
            raise ValueError("no")

        @flow.function_task
        def depends(_: Any) -> None: ...

        @flow.function_task
        async def hangs() -> None:
            begun.set()
            await asyncio.Event().wait()

        @flow.function_task
        def depends_on_cancelled(_: Any) -> None: ...

        @flow.executable_task
        def bad_program() -> str:
            return "echo oh dear >&2; exit 7"

        @flow.executable_task
        def bad_command() -> Any:
            return 3

        @flow.block
        async def bad_block() -> None:
            raise KeyError("key")

        hanging = hangs()
        futures = [depends(fails()), depends_on_cancelled(hanging), bad_program(), bad_command()]
        futures.append(bad_block())
        results = asyncio.gather(*futures, return_exceptions=True)
        await reached(begun)
        hanging.cancel()
        assert all(isinstance(result, BaseException) for result in await results)

    args = {name: task["args"] for name, task in by_name(path).items()}
    states = {name: (arg["state"], arg.get("error")) for name, arg in args.items()}
    assert states == {
        "fails": ("failed", "ValueError"),
        "depends": ("failed", "DependencyFailureError"),
        "hangs": ("cancelled", None),
        "depends_on_cancelled": ("cancelled", None),
        "bad_program": ("failed", "exit code"),
        "bad_command": ("failed", "CommandError"),
        "bad_block": ("failed", "KeyError"),
    }
    assert args["depends"]["begun"] is False
    assert args["depends"]["deps"] == args["fails"]["uid"]
    assert (args["bad_program"]["exit_code"], args["bad_program"]["message"]) == (7, "oh dear")
    assert args["bad_block"]["traceback"].endswith(" in bad_block")


@pytest.mark.parametrize("dry_run", [True, False])
async def test_the_engine_writes_tasks_itself_when_their_backend_does_not(
    tmp_path: Path, dry_run: bool
) -> None:
    path = tmp_path / "run.pfw.gz"
    backend = None if dry_run else NoopExecutionBackend()
    async with await WorkflowEngine.create(backend, dry_run=dry_run, trace=path) as flow:

        @flow.function_task
        def nothing(_: Any = None) -> None: ...

        await asyncio.gather(*[nothing(nothing()) for _ in range(20)])
    assert names_of(path) == {"nothing": 40}
    assert {task["cat"] for task in tasks_of(path)} == {"task"}
    assert sum("deps" in task["args"] for task in tasks_of(path)) == 20


async def test_waits_are_told_apart_from_runs_when_the_backend_is_a_pool_or_a_cluster(
    tmp_path: Path,
) -> None:
    pytest.importorskip("distributed", reason="distributed is not installed")
    from dftracer.asyncflow import DaskExecutionBackend

    path = tmp_path / "run.pfw.gz"
    pool = LocalExecutionBackend(ProcessPoolExecutor(1, mp_context=get_context("spawn")), "pool")
    dask = DaskExecutionBackend({"n_workers": 1, "threads_per_worker": 1, "processes": False})
    async with await WorkflowEngine.create([pool, dask], trace=path) as flow:
        for backend in (pool, dask):
            sleep = flow.function_task(time.sleep, backend=backend.name)
            await asyncio.gather(*[sleep(0.1) for _ in range(2)])
    for backend in (pool, dask):
        tasks = [task for task in tasks_of(path) if task["args"]["backend"] == backend.name]
        first, second = sorted(tasks, key=lambda task: task["ts"])
        assert first["dur"] >= 100_000
        assert second["args"]["queued_us"] >= 100_000
        assert second["ts"] >= first["ts"] + 100_000


async def test_a_given_runtime_writes_to_its_own_trace_when_the_engine_has_another(
    tmp_path: Path,
) -> None:
    own, shared = tmp_path / "own.pfw.gz", tmp_path / "shared.pfw.gz"
    with Runtime(trace=shared) as runtime:
        for trace in (own, shared):
            backend = await RuntimeExecutionBackend(runtime)
            async with await WorkflowEngine.create(backend, uid=trace.name, trace=trace) as flow:

                @flow.function_task
                def traced() -> None: ...

                await traced()
    (of_engine,) = tasks_of(own)
    assert (of_engine["cat"], of_engine["args"]["uid"]) == ("task", "task.000001")
    without, noted = tasks_of(shared)
    assert (without["cat"], without["args"].get("uid")) == ("python", None)
    assert (noted["cat"], noted["args"]["engine"]) == ("python", "shared.pfw.gz")


async def test_engines_and_the_default_runtime_share_a_file_when_the_environment_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFTRACER_TRACE", str(tmp_path / "run.pfw.gz"))
    for _ in range(2):
        async with await WorkflowEngine.create() as flow:

            @flow.function_task
            def traced() -> None: ...

            await asyncio.gather(*[traced() for _ in range(10)])
    assert names_of(tmp_path / "run.pfw.gz") == {"traced": 20}
    engines = {task["args"]["engine"] for task in tasks_of(tmp_path / "run.pfw.gz")}
    assert len(engines) == 2


async def test_no_engine_is_made_when_its_trace_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no/run\.pfw\.gz"):
        await WorkflowEngine.create(trace=tmp_path / "no" / "run.pfw.gz")
    backend = await RuntimeExecutionBackend()
    with pytest.raises(ValueError, match=r"ends in \.pfw\.gz"):
        await WorkflowEngine.create(backend, trace=tmp_path / "run.html")
    async with await WorkflowEngine.create(backend):  # which is free for another
        pass


def test_every_worker_writes_a_trace_when_the_dask_plugin_is_told_to(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    from dftracer.utils.dask import DFTracerUtilsDaskWorkerPlugin

    def work(name: str) -> int:
        from dftracer.utils import get_default_runtime

        return get_default_runtime().submit(pow, 2, 3, name=name).get()

    folder = tmp_path / "traces"
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", processes=True
    )
    with cluster, distributed.Client(cluster) as client:
        client.register_plugin(DFTracerUtilsDaskWorkerPlugin(trace=folder))
        workers = list(client.scheduler_info()["workers"])
        futures = [
            client.submit(work, f"task {n}", workers=[workers[n % 2]], pure=False) for n in range(8)
        ]
        assert client.gather(futures) == [8] * 8
    files = list(folder.iterdir())
    assert len(files) == 2
    names = [event["name"] for file in files for event in events_of(file) if event["ph"] == "X"]
    assert sorted(names) == [f"task {n}" for n in range(8)]
