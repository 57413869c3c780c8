"""The Dask backend on a real cluster of two worker processes: targets, bodies, data, descriptions.

What stops tasks, kills workers or crosses networks is in ``test_dask_ends.py``. Bodies are local
functions, which reach the workers by value.
"""

import asyncio
import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from dask.distributed import Client, LocalCluster
from dask_support import Line, engine, gone, say
from engine_support import add, identity, launched

from dftracer.asyncflow import (
    DaskExecutionBackend,
    DependencyFailureError,
    ExecutableError,
    RuntimeExecutionBackend,
    WorkflowEngine,
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two workers named 0 and 1 that run one task at a time, each with one token."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", resources={"token": 1}
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster, set_as_default=False) as client:
        yield client


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with Line(tmp_path) as line:
        yield line


def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` under another name, by which messages and keys call it."""

    def call(first: Any = None, data: Any = None) -> Any:
        return function(*(value for value in (first, data) if value is not None))

    call.__name__ = name
    return call


def read(path: str) -> str:
    return Path(path).read_text()


def pids_of(cluster: LocalCluster) -> list[int]:
    return [worker.process.process.pid for worker in cluster.workers.values()]


# --- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["address", "cluster", "client", "async client"])
async def test_what_was_given_stays_when_the_engine_ends(cluster, client, kind):
    if kind == "async client":
        address = cluster.scheduler_address
        target = await Client(address, asynchronous=True, set_as_default=False)
    else:
        target = {"address": cluster.scheduler_address, "cluster": cluster, "client": client}[kind]
    async with engine(target) as flow:
        pid = flow.function_task(lambda: os.getpid())
        assert {await pid(), await pid()} <= set(pids_of(cluster))
    if kind == "async client":
        assert await target.submit(add, 1, 2) == 3
        await target.close()
    assert client.status == "running"
    assert await asyncio.to_thread(client.submit(add, 2, 2, pure=False).result) == 4


@pytest.mark.parametrize("arguments", [{}, {"resources": {"n_workers": 1}}], ids=["none", "dict"])
async def test_cluster_of_its_own_is_closed_when_the_backend_is_shut_down(arguments):
    async with DaskExecutionBackend(**arguments) as backend:
        async with await WorkflowEngine.create(backend) as flow:
            pid = await flow.function_task(lambda: os.getpid())()
            assert pid != os.getpid()
        assert backend.state() == "IDLE"
    await gone(pid)


async def test_backend_serves_another_engine_when_the_first_has_ended(client):
    backend = DaskExecutionBackend(client=client)
    for number in range(2):
        async with await WorkflowEngine.create(backend, uid="same") as flow:
            assert await flow.function_task(add)(number, 1) == number + 1


async def test_results_differ_when_two_engines_of_one_name_share_a_client(client):
    async with engine(client, uid="same") as one, engine(client, uid="same") as other:
        futures = [flow.function_task(add)(n, 0) for n, flow in enumerate((one, other))]
        assert await asyncio.gather(*futures) == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"target": 7}, "takes a scheduler's address, .* not int"),
        ({"target": "tcp://x", "resources": {}}, "one of target, cluster, client and resources"),
    ],
)
def test_type_error_says_what_fits_when_the_target_does_not(arguments, error):
    with pytest.raises(TypeError, match=error):
        DaskExecutionBackend(**arguments)


async def test_error_names_backend_and_address_when_no_scheduler_is_there():
    backend = DaskExecutionBackend("tcp://127.0.0.1:9")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "200ms"}),
        pytest.raises(ConnectionError, match=r"'dask' cannot reach .* tcp://127.0.0.1:9"),
    ):
        await backend
    assert backend.state() == "IDLE"


def test_import_error_names_the_extra_when_distributed_is_missing(run_script):
    out = run_script(
        """
        import sys
        sys.modules["distributed"] = None
        import dftracer.asyncflow
        try:
            from dftracer.asyncflow import DaskExecutionBackend
        except ImportError as error:
            print(error)
        """
    )
    assert out.endswith("needs dask.distributed: pip install 'dftracer-asyncflow[dask]'\n")


# --- what runs there ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "async", "returns a coroutine"])
async def test_body_is_a_task_of_the_workers_runtime_when_it_runs(client, kind):
    def look() -> Any:
        import logging

        from distributed import get_worker

        from dftracer.utils import current_task, get_default_runtime

        record = logging.getLogRecordFactory()("n", 20, "p", 1, "m", (), None)
        runtime = get_worker().dftracer_utils_runtime
        thread = threading.current_thread().name
        return current_task().name, record.task_name, runtime is get_default_runtime(), thread

    async def look_async() -> Any:
        await asyncio.sleep(0)
        return look()

    body = {"plain": look, "async": look_async, "returns a coroutine": lambda: look_async()}[kind]
    async with engine(client) as flow:
        name, logged, is_workers, thread = await flow.function_task(body)()
    assert name == logged == body.__name__
    assert is_workers
    assert thread.startswith("dft-python" if kind == "plain" else "dft-coroutine")


async def test_programs_run_on_workers_when_they_are_called(client, tmp_path):
    async with engine(client) as flow:
        program = flow.executable_task(named("program", identity))

        def run(command: Any, **description: Any) -> Any:
            return program(command, task_description=description)

        (tmp_path / "input").write_text("from a file")
        assert int(await run("echo $PPID")) in pids_of(client.cluster)
        assert await run(["pwd"], cwd=tmp_path) == f"{tmp_path}\n"
        assert await run(["/usr/bin/env"], env={"A": "b"}) == "A=b\n"
        assert await run("cat", stdin=b"from here") == "from here"
        assert await run("cat", stdin=str(tmp_path / "input")) == "from a file"
        assert await run("echo *", shell=False) == "*\n"
        future = run("echo out; echo err >&2")
        assert await future == "out\n"
        assert (future.task["stderr"], future.task["exit_code"]) == ("err\n", 0)

        future = run("echo out; echo why >&2; exit 3")
        with pytest.raises(ExecutableError, match="'program': command exited with code 3"):
            await future
        outcome = [future.task[key] for key in ("stdout", "stderr", "exit_code")]
        assert outcome == ["out\n", "why\n", 3]
        with pytest.raises(FileNotFoundError, match="'program': cannot start the program"):
            await run(["/no/such/program"])


async def test_output_is_in_files_when_stdio_is_captured(client, tmp_path):
    async with engine(client, work_dir=tmp_path, uid="e") as flow:

        @flow.executable_task(capture_stdio=True)
        def program(exit_code: int) -> str:
            return f"echo out; echo err >&2; exit {exit_code}"

        future = program(0)
        assert await flow.function_task(read)(future) == "out\n"
        assert await future == str(tmp_path / "e" / f"{future.uid}.stdout")
        assert read(future.task["stderr"]) == "err\n"
        failed = program(1)
        with pytest.raises(ExecutableError, match="err"):
            await failed
        assert read(failed.task["stdout"]) == "out\n"


async def test_prompt_fails_when_it_is_sent_to_dask(client):
    async with engine(client) as flow:
        with pytest.raises(NotImplementedError, match=r"'dask': task 'ask' .*name another one"):
            await flow.prompt_task(named("ask", lambda: "why?"))()


async def test_engine_wakes_once_for_many_when_tasks_end_together(client):
    async with engine(client) as flow:
        backend, batches = flow.backend, []
        deliver, watch, given = backend._deliver, backend._watch, []
        backend._deliver = lambda ended: (batches.append(len(ended)), deliver(ended))
        backend._watch = given.extend
        futures = [flow.function_task(identity)(number) for number in range(50)]
        await launched()
        await asyncio.to_thread(
            client.gather, [pending.future for pending in backend._pending.values()]
        )
        client.loop.add_callback(watch, given)
        assert await asyncio.gather(*futures) == list(range(50))
        assert batches == [50]


# --- data ---------------------------------------------------------------------------------------


class Homesick:
    """Can be unpickled anywhere but in the process that is its home."""

    def __init__(self, home: int) -> None:
        self.home = home

    def __reduce__(self) -> Any:
        return arrive, (self.home,)


def arrive(home: int) -> Any:
    if os.getpid() == home:
        raise RuntimeError("it came through here")
    return Homesick(home)


@dataclasses.dataclass
class Box:
    content: Any


async def test_results_go_from_worker_to_worker_when_tasks_depend_on_them(client):
    def homes_of(first: Any, others: Any, box: Any) -> Any:
        return [first.home, others[0]["x"].home, box.content.home]

    async with engine(client) as flow:
        make = flow.function_task(Homesick)
        home = os.getpid()
        made, alone = (make(home, task_description={"workers": [n]}) for n in (0, 1))
        homes = flow.function_task(homes_of)(
            made, [{"x": made}], box=Box(alone), task_description={"workers": [1]}
        )
        assert await homes == [home] * 3
        with pytest.raises(RuntimeError, match="it came through here"):
            await made
        assert await flow.function_task(identity)(1) == 1


async def test_values_are_fetched_when_bodies_at_home_need_them(client):
    async with engine(client, RuntimeExecutionBackend(name="here")) as flow:
        value = flow.function_task(add)(1, 1)
        echo = flow.executable_task(lambda number: f"echo {number}")
        here = flow.function_task(backend="here")(lambda text: (text.strip(), os.getpid()))

        @flow.block
        async def block(number: int) -> Any:
            return await here(echo(number))

        assert await block(value) == ("2", os.getpid())


async def test_text_is_passed_on_when_a_function_depends_on_a_program(client):
    async with engine(client) as flow:
        echo = flow.executable_task(lambda: "echo hello")
        assert await flow.function_task(lambda text: text.upper())(echo()) == "HELLO\n"


async def test_dependent_fails_when_a_body_raises(client):
    def fail() -> None:
        raise LookupError("nowhere")

    async with engine(client) as flow:
        failed = flow.function_task(fail)()
        with pytest.raises(DependencyFailureError, match="fail failed: LookupError: nowhere"):
            await flow.function_task(identity)(failed)
        with pytest.raises(LookupError, match="nowhere") as caught:
            await failed
        assert "raise LookupError" in "".join(map(str, caught.traceback))


async def test_task_is_tried_again_when_an_attempt_fails_or_takes_too_long(client, tmp_path):
    async def flaky(calls: Path, data: Any) -> Any:
        with calls.open("a") as file:
            file.write("x")
        attempt = len(calls.read_text())
        if attempt == 1:
            raise LookupError("once")
        if attempt == 2:
            await asyncio.Event().wait()
        return attempt, data

    async with engine(client) as flow:
        data = flow.function_task(identity)("data")
        future = flow.function_task(retries=2, backoff=0, timeout=1)(flaky)(tmp_path / "f", data)
        assert await future == (3, "data")
        assert future.task["attempt"] == 3


async def test_result_leaves_the_cluster_when_nobody_holds_the_future(client):
    keys = cluster_keys(client.cluster)
    async with engine(client) as flow:
        future = flow.function_task(named("dropped", identity))(1)
        await flow.function_task(identity)(future)
        assert any(key.startswith("dropped") for key in keys())
        del future
        while any(key.startswith("dropped") for key in keys()):
            await flow.function_task(identity)(1)  # which the scheduler hears later


def cluster_keys(cluster: LocalCluster) -> Callable[[], list[str]]:
    return lambda: list(map(str, list(cluster.scheduler.tasks)))


# --- what cannot be sent ------------------------------------------------------------------------


async def test_only_that_task_fails_when_something_cannot_be_pickled(client):
    lock = threading.Lock()

    def make_lock() -> Any:
        return threading.Lock()

    async with engine(client) as flow:
        take = flow.function_task(named("take", lambda *args: 1))
        cases = {
            r"'take' \(.*\): its argument 'first', of type generator": take(n for n in ()),
            r"'take' \(.*\): its argument 'data', of type list": take(1, data=[lock]),
            r"its function, of type function": flow.function_task(lambda: lock)(),
            r"'make_lock' \(.*\): its result of type lock cannot": flow.function_task(make_lock)(),
        }
        good = take(1)
        for message, future in cases.items():
            with pytest.raises(TypeError, match=message):
                await future
        assert await good == 1


@pytest.mark.parametrize("what", ["exit", "stop", "error", "arguments"])
async def test_worker_lives_when_a_body_raises_what_cannot_pass(client, what):
    def fail(what: Any) -> None:
        if what == "exit":
            sys.exit(3)
        if what == "stop":
            raise StopIteration("odd")
        error = ValueError("odd")
        error.lock = threading.Lock()
        raise error

    said = {"exit": "SystemExit: 3", "stop": "StopIteration: odd", "error": "ValueError: odd"}
    async with engine(client) as flow:
        argument = Unreadable() if what == "arguments" else what
        if what == "arguments":
            message = r"'fail' \(.*\): .*cannot be unpickled.*: RuntimeError: not to be read"
        else:
            message = rf"'fail' \(.*\) raised {said[what]}"
        with pytest.raises(RuntimeError, match=message):
            await flow.function_task(fail)(argument)
        assert await flow.function_task(identity)(1) == 1


class Unreadable:
    def __reduce__(self) -> Any:
        return refuse, ()


def refuse() -> None:
    raise RuntimeError("not to be read")


# --- task_description ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("description", "error", "message"),
    [
        ({"gpus": 1}, ValueError, "'gpus' in its task_description is unknown; .*resources"),
        ({"cwd": "/"}, ValueError, "'cwd' in its task_description is unknown"),
        ({"retries": True}, TypeError, "'retries' .* must be int, not bool True"),
        ({"retries": -1}, ValueError, "'retries' .* must be 0 or more"),
        ({"resources": ["token"]}, TypeError, "'resources' .* must be Mapping, not list"),
        ({"allow_other_workers": True}, ValueError, "needs 'workers'"),
        ({"resources": {"token": 2}}, RuntimeError, "no worker has resources=.*token.*: 1"),
        ({"resources": {"GPU": 1}}, RuntimeError, "no worker has resources=.*GPU"),
        ({"workers": "far-away"}, RuntimeError, r"no worker is one of workers=\['far-away'\]"),
        ({"workers": [0, 7], "resources": {"token": 9}}, RuntimeError, "no worker has resources"),
    ],
)
async def test_error_names_backend_task_and_key_when_it_is_submitted(
    client, description, error, message
):
    async with engine(client) as flow:
        task = flow.function_task(identity)
        bad, good = task(1, task_description=description), task(2)
        with pytest.raises(error, match=rf"backend 'dask': task 'identity' \(.*{message}"):
            await bad
        assert await good == 2


async def test_task_runs_where_it_may_when_workers_are_named(client):
    workers = {w["name"]: a for a, w in client.scheduler_info()["workers"].items()}

    def where() -> Any:
        from distributed import get_worker

        return get_worker().name

    async with engine(client) as flow:
        task = flow.function_task(where)

        async def at(**description: Any) -> Any:
            return await task(task_description=description)

        for name, address in workers.items():
            assert await at(workers=[name]) == name
            assert await at(workers=address) == name
            assert await at(workers=[address.removeprefix("tcp://")]) == name
        assert await at(workers="127.0.0.1") in workers
        assert await at(workers="nobody", allow_other_workers=True) in workers
        assert await at(workers=[1], resources={"token": 1}) == 1


async def test_resource_is_never_shared_when_tasks_ask_for_it(client, tmp_path):
    async def use(folder: Path) -> None:
        own = folder / f"{os.getpid()}"
        own.mkdir()  # fails if another one uses it
        await asyncio.sleep(0.005)
        own.rmdir()

    async with engine(client) as flow:
        task = flow.function_task(use)
        description = {"resources": {"token": 1}}
        await asyncio.gather(*[task(tmp_path, task_description=description) for _ in range(8)])


async def test_task_with_higher_priority_is_first_when_all_wait(client, line):
    keys = cluster_keys(client.cluster)
    path = line.path

    def hold(key: Path) -> None:
        say(path, "held")
        key.read_text()

    async with engine(client) as flow:
        key = Path(path).with_name("key")
        os.mkfifo(key)
        held = flow.function_task(hold)(key, task_description={"workers": [0]})
        assert await line.read() == "held"
        note = flow.function_task(named("note", lambda n: say(path, str(n))))
        notes = [note(n, task_description={"priority": n, "workers": [0]}) for n in (1, 3, 2)]
        while sum(key.startswith("note") for key in keys()) < 3:
            await flow.function_task(identity)(1, task_description={"workers": [1]})
        await asyncio.to_thread(key.write_text, "go")
        await asyncio.gather(held, *notes)
        assert [await line.read() for _ in notes] == ["3", "2", "1"]


async def test_body_is_run_again_when_it_may_be_retried(client, tmp_path):
    def fail_once(marker: Path) -> str:
        if not marker.exists():
            marker.touch()
            raise OSError("once")
        return "again"

    async with engine(client) as flow:
        task = flow.function_task(fail_once)
        assert await task(tmp_path / "a", task_description={"retries": 1}) == "again"
        with pytest.raises(OSError, match="once"):
            await task(tmp_path / "b", task_description={"retries": 0})


@pytest.mark.parametrize("description", [{"pure": True}, {"key": "mine"}], ids=["pure", "key"])
async def test_tasks_share_one_run_when_their_keys_are_the_same(client, description):
    def token(_seed: int) -> bytes:
        return os.urandom(8)

    async with engine(client) as flow:
        task = flow.function_task(token)
        first, cancelled, second = (task(1, task_description=description) for _ in range(3))
        other = task(1)
        await launched()
        cancelled.cancel()
        assert await first == await second != await other
        assert await task(1, task_description=description) == await first
