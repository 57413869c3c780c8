"""What every backend must do below an engine, ours and RHAPSODY's: one body of tests for all.

A new backend is one line in ``KINDS``. Those in ``ON_REQUEST`` take minutes and much software: they
join if the environment variable ``DFTRACER_TEST_BACKENDS`` names them, separated by commas.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from backend_support import (
    GUARD_S,
    ON_REQUEST_KINDS,
    Door,
    Recorder,
    function_task,
    make_pool,
    program_task,
)
from engine_support import REQUEST

from dftracer.asyncflow import (
    DaskExecutionBackend,
    DependencyFailureError,
    ExecutableError,
    LocalExecutionBackend,
    NoopExecutionBackend,
    RuntimeExecutionBackend,
    WorkflowEngine,
)
from dftracer.asyncflow.backends.base import RemoteValue
from dftracer.utils import Runtime, TaskTimeoutError

rhapsody = pytest.importorskip("rhapsody.backends", reason="rhapsody-py is not installed")
distributed = pytest.importorskip("distributed", reason="distributed is not installed")

WORKERS = 2
"""How many bodies each of them runs at a time."""

Make = Callable[..., Awaitable[Any]]
"""Starts a backend of the kind that is tested, with that name."""
HandedOn = Callable[..., Awaitable[None]]


# --- the kinds ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A client of a Dask cluster of worker processes."""
    with (
        distributed.LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        closing(distributed.Client(cluster, set_as_default=False)) as client,
    ):
        yield client


async def on_runtime(name: str, _request: pytest.FixtureRequest) -> Any:
    return await RuntimeExecutionBackend(Runtime(python_threads=WORKERS), name)


async def on_threads(name: str, _request: pytest.FixtureRequest) -> Any:
    return await LocalExecutionBackend(ThreadPoolExecutor(WORKERS), name)


async def on_processes(name: str, _request: pytest.FixtureRequest) -> Any:
    return await LocalExecutionBackend(make_pool("processes", WORKERS), name)


async def on_dask(name: str, request: pytest.FixtureRequest) -> Any:
    return await DaskExecutionBackend(_address(request), name)


async def on_rhapsody_threads(name: str, _request: pytest.FixtureRequest) -> Any:
    return await rhapsody.ConcurrentExecutionBackend(ThreadPoolExecutor(WORKERS), name)


async def on_rhapsody_dask(name: str, request: pytest.FixtureRequest) -> Any:
    return await rhapsody.DaskExecutionBackend({"address": _address(request)}, name)


async def on_rhapsody_pilot(name: str, _request: pytest.FixtureRequest) -> Any:
    resources = {"resource": "local.localhost", "runtime": 15, "cores": WORKERS}
    return await rhapsody.get_backend("radical_pilot", resources, None, name)


async def on_rhapsody_dragon(name: str, request: pytest.FixtureRequest) -> Any:
    from dragon.native.machine import Node

    # Dragon starts a worker for every second CPU, and nothing can be said about that.
    cpus = property(lambda _node: 2 * WORKERS)
    request.getfixturevalue("monkeypatch").setattr(Node, "num_cpus", cpus)
    return await rhapsody.get_backend("dragon", None, name)


def _address(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("cluster").scheduler.address)


async def on_nothing(name: str, _request: pytest.FixtureRequest) -> Any:
    return await NoopExecutionBackend(name)


KINDS: dict[str, Callable[[str, pytest.FixtureRequest], Awaitable[Any]]] = {
    "runtime": on_runtime,
    "threads": on_threads,
    "processes": on_processes,
    "dask": on_dask,
    "rhapsody-threads": on_rhapsody_threads,
    "rhapsody-dask": on_rhapsody_dask,
    "noop": on_nothing,
}
ON_REQUEST = {"rhapsody-pilot": on_rhapsody_pilot, "rhapsody-dragon": on_rhapsody_dragon}
KINDS |= {kind: ON_REQUEST[kind] for kind in ON_REQUEST_KINDS}

LACKS: dict[str, dict[str, str]] = {
    "rhapsody-threads": {
        "killing programs": "it stops waiting for a program, which runs on",
        "a free loop": "its shutdown waits for the executor in the event loop's thread",
        "contexts": "a body runs in its worker's own context",
        "timeouts": "it does not know 'timeout'",
        "stdin": "it does not know 'stdin'",
    },
    "rhapsody-dask": {
        "killing programs": "it gives up a program, which runs on and keeps its worker",
        "contexts": "a body runs in another process",
        "timeouts": "it passes 'timeout' on to the function",
        "stdin": "it passes 'stdin' on to the function that runs programs",
    },
    "rhapsody-pilot": {
        "functions": "it runs them only in its Raptor mode",
        "plain words": "a shell expands variables in the words of a program",
        "plain errors": ', RuntimeError("task failed")',  # what it adds to standard error
        "errors of the system": "what went wrong is only a text",
        "captured output": "it does not know 'capture_stdio'",
        "descriptions": "it takes descriptions of its own only",
        "timeouts": "it runs no functions",
        "stdin": "it takes descriptions of its own only",
    },
    "rhapsody-dragon": {
        "errors of the system": "a program that is not there is an AttributeError",
        "many tasks": "each takes more than half a second",
        "descriptions": "it ignores 'cwd' and 'env' outside its own process templates",
        "contexts": "a body runs in another process",
        "stdin": "it does not know 'stdin'",
        "timeouts": "it ends a program by itself then, and reports no more than its signal",
        "killing programs": "it ends a program, but not what that has begun",
    },
    "processes": {"contexts": "a body runs in another process"},
    "dask": {"contexts": "a body runs in another process"},
}
"""What a kind cannot do, and why. A test that needs it says so, and is skipped with that reason."""


@pytest.fixture(params=[kind for kind in KINDS if kind != "noop"])
def kind(request: pytest.FixtureRequest) -> str:
    """Return which kind of backend is tested; skip it if it lacks what the test needs."""
    return able(request)


def able(request: pytest.FixtureRequest) -> str:
    """Return the kind that is the parameter; skip the test if the kind lacks what it needs."""
    lacks = LACKS.get(request.param, {})
    needs = [mark.args[0] for mark in request.node.iter_markers("needs")]
    if request.node.get_closest_marker("programs_only") is None:
        needs.append("functions")
    for need in needs:
        if need in lacks:
            pytest.skip(f"{request.param} lacks {need}: {lacks[need]}")
    return str(request.param)


@pytest.fixture
def made() -> list[Any]:
    """Return the backends that a test has started."""
    return []


@pytest.fixture
def make(kind: str, made: list[Any], request: pytest.FixtureRequest) -> Make:
    """Return what starts a backend of the kind that is tested."""

    async def make(name: str = "default") -> Any:
        made.append(await KINDS[kind](name, request))
        return made[-1]

    return make


@pytest.fixture(params=KINDS)
def make_any(request: pytest.FixtureRequest) -> Make:
    """Return what starts a backend of any kind, also of the one that runs nothing."""
    kind = able(request)

    async def make(name: str = "default") -> Any:
        return await KINDS[kind](name, request)

    return make


@pytest.fixture
def handed_on(kind: str, made: list[Any], request: pytest.FixtureRequest) -> HandedOn:
    """Return what waits until calls, or their cancellation, have come to where bodies queue.

    A few turns of the event loop are enough for that, but not for a cluster, which must be asked.
    """

    async def keys() -> set[str]:
        if kind.endswith("dask"):
            return await asyncio.to_thread(_keys_of, request.getfixturevalue("cluster"))
        await asyncio.to_thread(lambda: None)
        return set(made[-1]._task_registry)  # of RHAPSODY, until Dragon has cancelled it

    async def handed_on(uids: list[str], *, present: bool) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        while kind.endswith(("dask", "dragon")):
            there = await keys()
            known = [uid for uid in uids if any(key.endswith(uid) for key in there)]
            if known == (uids if present else []):
                break

    return handed_on


def _keys_of(client: Any) -> set[str]:
    """Return the names of all tasks that the scheduler or a worker of a cluster knows."""
    keys = set(client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks)))
    of_workers = client.run(lambda dask_worker: list(dask_worker.state.tasks))
    return keys.union(*of_workers.values())


def told(backend: Any, result: Any) -> Any:
    """Return what the result is on this backend."""
    return "Dummy Output" if isinstance(backend, NoopExecutionBackend) else result


@asynccontextmanager
async def engine(backend: Any, **options: Any) -> AsyncIterator[WorkflowEngine]:
    """Make an engine on a backend."""
    async with await WorkflowEngine.create(backend, **options) as flow:
        yield flow


async def soon(awaitable: Awaitable[Any]) -> Any:
    """Wait for what comes at once unless something is broken."""
    return await asyncio.wait_for(awaitable, GUARD_S)


# --- functions ----------------------------------------------------------------------------------


async def test_results_arrive_when_bodies_are_plain_and_async(make: Make) -> None:
    async with engine(await make()) as flow:

        @flow.function_task
        def plain(a: int, *, b: int = 0) -> dict[str, int]:
            return {"sum": a + b}

        @flow.function_task
        async def later(text: str) -> str:
            await asyncio.sleep(0)
            return text * 2

        assert await soon(plain(1, b=2)) == {"sum": 3}
        assert await soon(later("ab")) == "abab"


async def test_data_flows_when_tasks_depend_on_others(make: Make) -> None:
    async with engine(await make()) as flow:

        @flow.function_task
        def make_bytes(n: int) -> bytes:
            return b"x" * n

        @flow.function_task
        async def lengths(parts: list[bytes], *, extra: dict[str, bytes]) -> int:
            return sum(map(len, parts)) + len(extra["more"])

        @flow.executable_task
        def echo(n: int) -> list[str]:
            return ["echo", str(n)]

        @flow.function_task
        def to_number(text: str) -> int:
            return int(text)

        total = lengths([make_bytes(1), make_bytes(1_000_000)], extra={"more": make_bytes(10)})
        assert await soon(to_number(echo(total))) == 1_000_011


class OddError(LookupError):
    """An error of its own type."""


def fail(text: str) -> None:
    raise OddError(text)


async def test_the_failure_keeps_its_type_when_a_body_raises(make: Make) -> None:
    async with engine(await make()) as flow:
        failing = flow.function_task(fail)("odd")
        after = flow.function_task(len)(failing)
        with pytest.raises(OddError, match="odd"):
            await soon(failing)
        with pytest.raises(DependencyFailureError) as caught:
            await soon(after)
        assert caught.value.failed_dependencies == ["fail"]
        assert isinstance(caught.value.root_cause, OddError)
        assert await soon(flow.function_task(abs)(-1)) == 1


class PanicError(BaseException):
    """What a native extension raises that has panicked."""


def panic() -> None:
    raise PanicError("index out of bounds")


async def panic_later() -> None:
    await asyncio.sleep(0)
    raise PanicError("index out of bounds")


def leave() -> None:
    raise SystemExit(3)


@pytest.mark.parametrize("body", [panic, panic_later, leave])
async def test_only_the_task_fails_when_its_body_raises_no_exception(
    make: Make, body: Callable[[], Any]
) -> None:
    async with engine(await make()) as flow:
        failing = flow.function_task(body)()
        after = flow.function_task(len)(failing)
        with pytest.raises(Exception, match=r"PanicError: index out of bounds|SystemExit: 3"):
            await soon(failing)
        with pytest.raises(DependencyFailureError):
            await soon(after)
        assert await soon(flow.function_task(abs)(-1)) == 1


@pytest.mark.needs("many tasks")
async def test_all_results_arrive_when_there_are_many_tasks(make_any: Make) -> None:
    backend = await make_any()
    async with engine(backend) as flow:

        @flow.function_task
        def double(x: int) -> int:
            return 2 * x

        @flow.function_task
        def add(a: int, b: int) -> int:
            return a + b

        pairs = [add(double(n), n) for n in range(250)]
        results = await asyncio.wait_for(asyncio.gather(*pairs), 25)
        assert results == [told(backend, 3 * n) for n in range(250)]


# --- programs -----------------------------------------------------------------------------------


@pytest.mark.programs_only
async def test_the_result_is_the_output_when_a_program_runs(make: Make, kind: str) -> None:
    async with engine(await make()) as flow:

        @flow.executable_task
        def command(words: Any) -> Any:
            return words

        assert await soon(command("echo 'two  words'")) == "two  words\n"
        if "plain words" not in LACKS.get(kind, {}):
            assert await soon(command(["echo", "$HOME *"])) == "$HOME *\n"
        assert await soon(command("echo one two | tr ' ' '\\n' | wc -l")) == "2\n"
        assert await soon(command("printf ä; exit 0")) == "ä"


@pytest.mark.programs_only
async def test_the_error_tells_the_end_when_a_program_fails(make: Make, kind: str) -> None:
    async with engine(await make()) as flow:

        @flow.executable_task
        def command() -> str:
            return "echo out; echo 'last words' >&2; exit 3"

        failing = command()
        after = flow.function_task(len)(failing)
        with pytest.raises(ExecutableError, match="last words") as caught:
            await soon(failing)
        assert (caught.value.task, caught.value.exit_code) == ("command", 3)
        added = LACKS.get(kind, {}).get("plain errors", "")
        assert (caught.value.stdout, caught.value.stderr) == ("out\n", f"last words\n{added}")
        with pytest.raises(DependencyFailureError):
            await soon(after)


@pytest.mark.programs_only
@pytest.mark.needs("errors of the system")
async def test_the_task_fails_when_there_is_no_such_program(make: Make) -> None:
    async with engine(await make()) as flow:

        @flow.executable_task
        def command() -> list[str]:
            return ["dft-no-such-program"]

        with pytest.raises(FileNotFoundError, match="dft-no-such-program"):
            await soon(command())


@pytest.mark.programs_only
@pytest.mark.needs("descriptions")
async def test_programs_see_directory_and_environment_when_described_so(
    make: Make, tmp_path: Path
) -> None:
    env = {"COLOUR": "green", "PATH": os.environ["PATH"]}
    async with engine(await make()) as flow:

        @flow.executable_task
        def show(task_description: Any = {"cwd": str(tmp_path)}) -> str:  # noqa: B006
            return "echo $PWD $COLOUR $HOME"

        assert await soon(show(task_description={"env": env})) == f"{tmp_path} green\n"


@pytest.mark.programs_only
@pytest.mark.needs("captured output")
async def test_the_result_is_a_file_when_output_is_captured(make: Make, tmp_path: Path) -> None:
    async with engine(await make(), work_dir=tmp_path) as flow:

        @flow.executable_task(capture_stdio=True)
        def command() -> str:
            return "echo out; echo err >&2"

        task = command()
        path = Path(await soon(task))
        assert path.parent == tmp_path / flow.uid
        assert content(path) == "out\n"
        assert content(path.with_suffix(".stderr")) == "err\n"


def content(path: Path) -> str:
    """Return what is in a file."""
    return path.read_text()


# --- cancellation -------------------------------------------------------------------------------


def touch(path: str) -> None:
    Path(path).touch()


async def test_the_body_never_runs_when_cancelled_in_the_queue(
    make: Make, handed_on: HandedOn, door: Door, tmp_path: Path
) -> None:
    paths = [tmp_path / f"made by {n}" for n in range(4)]
    async with engine(await make()) as flow:
        hold = flow.function_task(door.hold)
        busy = [hold(n) for n in range(WORKERS)]
        await door.reached(WORKERS)
        queued = [flow.function_task(touch)(str(path)) for path in paths]
        uids = [task.uid for task in queued]
        await handed_on(uids, present=True)
        behind = flow.function_task(len)(queued[0])
        for task in queued:
            assert task.cancel()
        assert behind.cancelled()
        await handed_on(uids, present=False)
        door.open(WORKERS)
        assert await soon(asyncio.gather(*busy)) == list(range(WORKERS))
        # Whoever has taken a queued body has run it when this is over.
        fence = [flow.function_task(abs)(-n) for n in range(20)]
        assert await soon(asyncio.gather(*fence)) == list(range(20))
        assert not any(path.exists() for path in paths)


async def test_the_engine_goes_on_when_a_running_body_is_cancelled(
    make: Make, kind: str, door: Door
) -> None:
    async with engine(await make()) as flow:
        task = flow.function_task(door.hold)("too late")
        await door.reached()
        assert task.state == ("PENDING" if kind == "dask" else "RUNNING")  # Dask does not say
        assert task.cancel()
        assert task.cancelled()
        assert await soon(flow.function_task(abs)(-1)) == 1
        door.open()
        assert await soon(flow.function_task(abs)(-2)) == 2
        assert task.cancelled()


@pytest.mark.needs("killing programs")
@pytest.mark.programs_only
async def test_the_program_ends_when_its_task_is_cancelled(make: Make, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    async with engine(await make()) as flow:

        @flow.executable_task
        def command() -> str:
            return f"sleep 20 > {alive} & echo begun > {alive}; wait"

        task = command()
        await readable(reader)
        assert os.read(reader, 100) == b"begun\n"
        assert task.cancel()
        await readable(reader)  # the last writer is gone
        assert os.read(reader, 100) == b""
    os.close(reader)


async def readable(file: int) -> None:
    """Wait until there is something to read, or nobody to write it any more."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(file, event.set)
    try:
        await soon(event.wait())
    finally:
        loop.remove_reader(file)


# --- engines and backends -----------------------------------------------------------------------


async def test_the_backend_works_when_engines_use_it_one_after_another(make_any: Make) -> None:
    backend = await make_any()
    for number in range(3):
        flow = await WorkflowEngine.create(backend)
        double = flow.function_task(abs)
        results = await soon(asyncio.gather(*[double(-number - n) for n in range(5)]))
        assert results == [told(backend, number + n) for n in range(5)]
        await soon(flow.shutdown(skip_execution_backend=True))
        assert not backend.is_attached
    await backend.shutdown()


async def test_engines_keep_apart_when_one_backend_serves_one_after_another(
    make: Make, door: Door
) -> None:
    backend = await make()
    first = await WorkflowEngine.create(backend)
    left = first.function_task(door.hold)("of the first")
    await door.reached()
    await soon(first.shutdown(skip_execution_backend=True))
    assert left.cancelled()
    async with engine(backend) as second:
        task = second.function_task(abs)(-2)
        assert task.id == left.id
        assert await soon(task) == 2
        door.open()
        assert await soon(second.function_task(abs)(-3)) == 3


async def test_each_task_runs_where_it_was_sent_when_there_are_two_backends(
    make: Make, kind: str
) -> None:
    async with engine([await make("first"), NoopExecutionBackend("second")]) as flow:

        @flow.function_task
        def here(value: Any) -> tuple[str, Any]:
            return "here", value

        @flow.function_task(backend="first")
        def here_by_name(value: Any) -> tuple[str, Any]:
            return "here", value

        @flow.function_task(backend="second")
        def there(value: Any) -> tuple[str, Any]:
            return "there", value

        nested = here(there(here_by_name(1)))
        assert await soon(nested) == ("here", "Dummy Output")
        assert await soon(here_by_name(1)) == ("here", 1)


async def test_two_of_a_kind_work_side_by_side_when_they_have_names(make: Make) -> None:
    async with engine([await make("first"), await make("second")]) as flow:

        @flow.function_task(backend="first")
        def double(n: int) -> int:
            return 2 * n

        @flow.function_task(backend="second")
        def increase(n: int) -> int:
            return n + 1

        results = await soon(asyncio.gather(*[increase(double(n)) for n in range(20)]))
        assert results == [2 * n + 1 for n in range(20)]


async def test_the_engine_lives_on_when_submitting_raises(
    make_any: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("the machine is gone")

    async def refuse_async(tasks: Any) -> None:
        refuse(tasks)

    backend = await make_any()
    async with engine(backend) as flow:
        with monkeypatch.context() as patch:
            patch.setattr(backend, "submit_tasks", refuse_async)
            for name in ("submit", "submit_nowait"):
                if hasattr(backend, name):
                    patch.setattr(backend, name, refuse)
            task = flow.function_task(abs)(-1)
            with pytest.raises(OSError, match="the machine is gone"):
                await soon(task)
        assert await soon(flow.function_task(abs)(-1)) == told(backend, 1)


async def test_shutdown_cancels_what_runs_when_there_are_running_tasks(
    make: Make, door: Door
) -> None:
    flow = await WorkflowEngine.create(await make())

    @flow.executable_task
    def sleep() -> list[str]:
        return ["sleep", "5"]

    running = [flow.function_task(door.hold)(n) for n in range(WORKERS)]
    await door.reached(WORKERS)
    queued = [flow.function_task(abs)(n) for n in range(5)]
    programs = [sleep() for _ in range(3)]
    shutdown = asyncio.ensure_future(flow.shutdown())
    await asyncio.sleep(0)
    assert all(task.cancelled() for task in running + queued + programs)
    door.open(WORKERS)
    await soon(shutdown)


@pytest.mark.needs("a free loop")
async def test_the_loop_goes_on_when_shutdown_waits_for_a_body(make: Make, door: Door) -> None:
    flow = await WorkflowEngine.create(await make())
    flow.function_task(door.hold)()
    await door.reached()
    shutdown = asyncio.ensure_future(flow.shutdown())
    await asyncio.to_thread(lambda: None)  # comes back only to a loop that goes on
    door.open()
    await soon(shutdown)


# --- what descriptions say ----------------------------------------------------------------------


@pytest.mark.needs("timeouts")
async def test_tasks_fail_when_their_time_is_over(make: Make, door: Door) -> None:
    async with engine(await make()) as flow:
        program = flow.executable_task(lambda: "sleep 1000")
        with pytest.raises(TaskTimeoutError):
            await soon(program(task_description={"timeout": 0.2}))
        with pytest.raises(TaskTimeoutError):
            await soon(flow.function_task(door.hold)(task_description={"timeout": 0.2}))
        door.open()


@pytest.mark.needs("stdin")
async def test_a_program_reads_that_when_it_has_stdin(make: Make) -> None:
    async with engine(await make()) as flow:
        program = flow.executable_task(lambda: "cat")
        assert await soon(program(task_description={"stdin": b"text"})) == "text"


@pytest.mark.needs("contexts")
async def test_a_body_sees_the_context_of_its_call_when_it_is_in_this_process(make: Make) -> None:
    async with engine(await make()) as flow:
        REQUEST.set("of the call")
        assert await soon(flow.function_task(REQUEST.get)()) == "of the call"


# --- without an engine --------------------------------------------------------------------------


async def test_states_are_told_when_nobody_but_a_callback_is_there(
    make: Make, tmp_path: Path
) -> None:
    backend = await make()
    recorder = Recorder(backend)
    names = backend.get_task_states_map()
    assert (names.DONE, names.FAILED, names.CANCELED) == ("DONE", "FAILED", "CANCELED")
    await backend.submit_tasks(
        [
            function_task("good", abs, -1),
            function_task("bad", fail, "odd"),
            program_task("program", "echo", "here"),
            program_task("failing", "sh", "-c", "exit 3"),
        ]
    )
    assert await result_in(await recorder.end_of("good")) == 1
    assert isinstance((await recorder.end_of("bad"))["exception"], OddError)
    assert await result_in(await recorder.end_of("program")) == "here\n"
    await recorder.end_of("failing")
    ends = {"good": "DONE", "bad": "FAILED", "program": "DONE", "failing": "FAILED"}
    for uid, end in ends.items():
        assert [state for state in recorder.states[uid] if state != "RUNNING"] == [end]
    await soon(backend.shutdown())


async def result_in(task: dict[str, Any]) -> Any:
    """Return what a task has given, which may have to be fetched."""
    is_program = task["function"] is None
    result = task["stdout"] if is_program and "stdout" in task else task["return_value"]
    return await result.fetch() if isinstance(result, RemoteValue) else result


# --- a backend that runs nothing ----------------------------------------------------------------


async def test_every_task_ends_with_a_dummy_when_nothing_is_run() -> None:
    async with engine(NoopExecutionBackend()) as flow:
        function = flow.function_task(abs)(-1)
        program = flow.executable_task(lambda text: ["echo", text])(function)
        prompt = flow.prompt_task(lambda text: f"Why {text}?")(program)
        assert await soon(function) == "Dummy Output"
        assert await soon(program) == "Dummy Output"
        assert await soon(prompt) == "Dummy Prompt Output"
        with pytest.raises(TypeError):
            await soon(flow.executable_task(lambda: [])(1))
    recorder = Recorder(backend := await NoopExecutionBackend())
    await backend.submit_tasks([function_task("task.1", fail, "never")])
    assert (await recorder.end_of("task.1"))["return_value"] == "Dummy Output"
    assert recorder.states == {"task.1": ["DONE"]}
