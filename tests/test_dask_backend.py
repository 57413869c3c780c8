"""The Dask backend on a real cluster of two worker processes: targets, bodies, data, stopping.

What is told to it is in ``test_dask_options.py``, what happens to clusters in
``test_dask_clusters.py``. Bodies are local functions, which reach the workers by value.
"""

import asyncio
import dataclasses
import gc
import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import dask
import pytest
from dask.distributed import Client, LocalCluster
from dask_support import engine, keys_of, named
from engine_support import add, identity, launched
from process_support import gone, say

from dftracer.asyncflow import (
    DaskExecutionBackend,
    DependencyFailureError,
    ExecutableError,
    RuntimeExecutionBackend,
    WorkflowEngine,
)
from dftracer.asyncflow.backends.base import DescribedTask, State
from dftracer.utils import TaskTimeoutError


def pids_of(cluster: LocalCluster) -> list[int]:
    return [worker.process.process.pid for worker in cluster.workers.values()]


def read(path: str) -> str:
    return Path(path).read_text()


# --- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["address", "mapping", "cluster", "client", "async client"])
async def test_what_was_given_stays_when_the_engine_ends(dask_client, kind):
    cluster, address = dask_client.cluster, dask_client.cluster.scheduler_address
    if kind == "async client":
        target = await Client(address, asynchronous=True, set_as_default=False)
    else:
        target = {
            "address": address,
            "mapping": {"address": address},
            "cluster": cluster,
            "client": dask_client,
        }[kind]
    async with engine(target) as flow:
        pid = flow.function_task(lambda: os.getpid())
        assert {await pid(), await pid()} <= set(pids_of(cluster))
    if kind == "async client":
        assert await target.submit(add, 1, 2) == 3
        await target.close()
    assert dask_client.status == "running"
    assert await asyncio.to_thread(dask_client.submit(add, 2, 2, pure=False).result) == 4


@pytest.mark.parametrize("arguments", [{}, {"resources": {"n_workers": 1}}], ids=["none", "dict"])
async def test_cluster_of_its_own_is_closed_when_the_backend_is_shut_down(arguments):
    async with DaskExecutionBackend(**arguments) as backend:
        async with await WorkflowEngine.create(backend) as flow:
            pid = await flow.function_task(lambda: os.getpid())()
            assert pid != os.getpid()
        assert backend.state() == "IDLE"
    await gone(pid)


async def test_backend_serves_another_engine_when_the_first_has_ended(dask_client):
    backend = DaskExecutionBackend(client=dask_client)
    for number in range(2):
        async with await WorkflowEngine.create(backend, uid="same") as flow:
            assert await flow.function_task(add)(number, 1) == number + 1


async def test_results_differ_when_two_engines_of_one_name_share_a_client(dask_client):
    async with engine(dask_client, uid="same") as one, engine(dask_client, uid="same") as other:
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
    hint = "pip install 'dftracer-asyncflow[dask]'\n"
    assert out == f"DaskExecutionBackend needs 'distributed': {hint}"


# --- what runs there ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "async", "returns a coroutine"])
async def test_body_is_a_task_of_the_workers_runtime_when_it_runs(dask_client, kind):
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
    async with engine(dask_client) as flow:
        name, logged, is_workers, thread = await flow.function_task(body)()
    assert name == logged == body.__name__
    assert is_workers
    assert thread.startswith("dft-python" if kind == "plain" else "dft-coroutine")


async def test_programs_run_on_workers_when_they_are_called(dask_client, tmp_path):
    async with engine(dask_client) as flow:
        program = flow.executable_task(named("program", identity))

        def run(command: Any, **description: Any) -> Any:
            return program(command, task_description=description)

        (tmp_path / "input").write_text("from a file")
        assert int(await run("echo $PPID")) in pids_of(dask_client.cluster)
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


async def test_output_is_in_files_when_stdio_is_captured(dask_client, tmp_path):
    async with engine(dask_client, work_dir=tmp_path, uid="e") as flow:

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


async def test_prompt_fails_when_it_is_sent_to_dask(dask_client):
    async with engine(dask_client) as flow:
        with pytest.raises(NotImplementedError, match=r"'dask': task 'ask' .*name another one"):
            await flow.prompt_task(named("ask", lambda: "why?"))()


async def test_engine_wakes_once_for_many_when_tasks_end_together(dask_client):
    async with engine(dask_client) as flow:
        backend, batches = flow.backend, []
        watcher, given = backend._watcher, []
        take, watch = watcher._take, watcher._watch_all
        watcher._take = lambda events: (batches.append(len(events)), take(events))
        watcher._watch_all = given.extend
        futures = [flow.function_task(identity)(number) for number in range(50)]
        await launched()
        await asyncio.to_thread(
            dask_client.gather, [sent.future for sent in backend._sent.values()]
        )
        dask_client.loop.add_callback(watch, given)
        assert await asyncio.gather(*futures) == list(range(50))
        assert batches == [50]


async def test_each_submission_has_one_outcome_after_submit_when_there_is_no_engine(dask_client):
    outcomes, all_reported = [], asyncio.Event()

    def report(reported: Any) -> bool:
        outcomes.extend(reported)
        if len(outcomes) == 4:
            all_reported.set()
        return False

    def submission(uid: str, function: Any, *args: Any, **options: Any) -> DescribedTask:
        description = {"uid": uid, "function": function, "args": args}
        return DescribedTask({**description, "task_backend_specific_kwargs": options})

    async with DaskExecutionBackend(dask_client) as backend:
        backend.connect(lambda reported: pytest.fail(f"somebody else gets {reported}"))
        earlier = submission("earlier", abs, -1)
        backend.submit([earlier])
        backend.connect(report)
        good = submission("good", abs, -1)
        refused = submission("refused", threading.Lock().acquire)
        impossible = submission("impossible", abs, -1, workers="nobody")
        checked = submission("checked", abs, -1, workers="nobody")
        backend.submit([good, refused, impossible, checked])
        assert backend.cancel(checked)
        assert not backend.cancel(checked)
        assert not backend.cancel(earlier)
        assert outcomes == []
        await all_reported.wait()
        ends = {submission: (state, value) for submission, state, value in outcomes}
        state, value = ends[good]
        assert state is State.DONE
        assert value.is_on(backend)
        assert await value.fetch() == 1
        assert ends[checked] == (State.CANCELED, None)
        assert ends[refused][0] is ends[impossible][0] is State.FAILED
        assert isinstance(ends[refused][1], pickle.PicklingError)
        assert "no worker is one of workers=['nobody']" in str(ends[impossible][1])
    assert len(outcomes) == len(ends) == 4


async def test_what_is_unfinished_is_reported_by_the_end_of_shutdown(dask_client):
    batches = []
    async with DaskExecutionBackend(dask_client) as backend:
        backend.connect(lambda outcomes: bool(batches.append(outcomes)))
        submissions = [
            DescribedTask({"uid": f"{n}", "function": asyncio.sleep, "args": (1_000,)})
            for n in range(5)
        ]
        backend.submit(submissions)
        with pytest.raises(RuntimeError, match="not started"):
            DaskExecutionBackend(dask_client).submit(submissions)
    assert batches == [[(submission, State.CANCELED, None) for submission in submissions]]


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


async def test_results_go_from_worker_to_worker_when_tasks_depend_on_them(dask_client, new_loop):
    def homes_of(first: Any, others: Any, box: Any) -> Any:
        return [first.home, others[0]["x"].home, box.content.home]

    async with engine(dask_client) as flow:
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


async def test_the_body_gets_the_value_when_an_argument_is_a_dask_future(dask_client):
    def look(first: Any, box: Any, **others: Any) -> Any:
        return first, len(box.content["data"]), others

    address = dask_client.cluster.scheduler_address
    async with engine(dask_client) as flow:
        data = await asyncio.to_thread(dask_client.scatter, b"x" * 1_000_000)
        number = dask_client.submit(pow, 2, 5, pure=False)
        ours = flow.function_task(identity)("ours")
        with Client(address, set_as_default=False) as other:
            theirs = await asyncio.to_thread(other.scatter, "theirs")
            future = flow.function_task(look)(number, Box({"data": data}), a=ours, b=[theirs])
            assert await future == (32, 1_000_000, {"a": "ours", "b": ["theirs"]})
        sizes = [flow.function_task(len)(data) for _ in range(3)]
        assert await asyncio.gather(*sizes) == [1_000_000] * 3


async def test_the_task_fails_when_the_dask_future_among_its_arguments_does(dask_client):
    async with engine(dask_client) as flow:
        failed = dask_client.submit(int, "x", pure=False)
        with pytest.raises(ValueError, match="invalid literal"):
            await flow.function_task(identity)(failed)


async def test_the_task_fails_by_name_when_a_dask_future_is_of_another_cluster(dask_client):
    cluster = LocalCluster(n_workers=1, processes=False, dashboard_address=":0")
    with cluster, Client(cluster, set_as_default=False) as other:
        foreign = await asyncio.to_thread(other.scatter, 1)
        async with engine(dask_client) as flow:
            with pytest.raises(pickle.PicklingError, match=r"'value'.* Dask future of .*await it"):
                await flow.function_task(identity)(foreign)


async def test_values_are_fetched_when_bodies_at_home_need_them(dask_client):
    async with engine(dask_client, RuntimeExecutionBackend(name="here")) as flow:
        value = flow.function_task(add)(1, 1)
        echo = flow.executable_task(lambda number: f"echo {number}")
        here = flow.function_task(backend="here")(lambda text: (text.strip(), os.getpid()))

        @flow.block
        async def block(number: int) -> Any:
            return await here(echo(number))

        assert await block(value) == ("2", os.getpid())


async def test_text_is_passed_on_when_a_function_depends_on_a_program(dask_client):
    async with engine(dask_client) as flow:
        echo = flow.executable_task(lambda: "echo hello")
        assert await flow.function_task(lambda text: text.upper())(echo()) == "HELLO\n"


async def test_dependent_fails_when_a_body_raises(dask_client):
    def fail() -> None:
        raise LookupError("nowhere")

    async with engine(dask_client) as flow:
        failed = flow.function_task(fail)()
        with pytest.raises(DependencyFailureError, match="fail failed: LookupError: nowhere"):
            await flow.function_task(identity)(failed)
        with pytest.raises(LookupError, match="nowhere") as caught:
            await failed
        assert "raise LookupError" in "".join(map(str, caught.traceback))


async def test_task_is_tried_again_when_an_attempt_fails_or_takes_too_long(dask_client, tmp_path):
    async def flaky(calls: Path, data: Any) -> Any:
        with calls.open("a") as file:
            file.write("x")
        attempt = len(calls.read_text())
        if attempt == 1:
            raise LookupError("once")
        if attempt == 2:
            await asyncio.Event().wait()
        return attempt, data

    async with engine(dask_client) as flow:
        data = flow.function_task(identity)("data")
        future = flow.function_task(retries=2, backoff=0, timeout=3)(flaky)(tmp_path / "f", data)
        assert await future == (3, "data")
        assert future.task["attempt"] == 3


@pytest.mark.parametrize("kind", ["function_task", "executable_task"])
async def test_result_leaves_the_cluster_when_nobody_holds_the_future(dask_client, kind):
    keys = keys_of(dask_client.cluster)
    async with engine(dask_client) as flow:
        future = getattr(flow, kind)(named("dropped", identity))("true")
        await future
        await flow.function_task(identity)(future)
        assert any(key.startswith("dropped") for key in keys())
        gc.disable()
        try:
            del future
            while any(key.startswith("dropped") for key in keys()):
                await flow.function_task(identity)(1)  # which the scheduler hears later
        finally:
            gc.enable()


async def test_inputs_leave_the_cluster_when_the_tasks_that_took_them_have_ended(dask_client):
    tasks = dask_client.cluster.scheduler.tasks

    def kept() -> list[str]:  # Dask remembers how they were made, as long as there are dependents
        return [str(key) for key, task in list(tasks.items()) if task.state == "memory"]

    async with engine(dask_client) as flow:
        load, size = flow.function_task(named("load", identity)), flow.function_task(len)
        echo = flow.executable_task(lambda text: f"echo {text}")
        outs = [size(load("abc")) for _ in range(10)] + [echo(load("abc"))]
        alone = await asyncio.to_thread(dask_client.scatter, "alone")
        key, held = alone.key, size(alone)
        del alone
        assert await asyncio.gather(*outs, held) == [3] * 10 + ["abc\n", 5]
        gc.disable()  # nothing of it is a matter of cycles
        try:
            while any(name.startswith("load") or name == key for name in kept()):
                await flow.function_task(identity)(1)  # which the scheduler hears later
        finally:
            gc.enable()


# --- stopping -----------------------------------------------------------------------------------

BODIES = ["plain", "interrupted", "async", "program"]
LAST_WORDS = {"plain": "asked", "interrupted": "CancelledError", "async": "CancelledError"}
"""What bodies say when they are stopped."""


def endless(flow: WorkflowEngine, kind: str, path: str) -> Any:
    """Return a task that says its process at ``path``, then how it is stopped, if it can."""

    def plain() -> None:
        from dftracer.utils import current_task

        say(path, f"{os.getpid()}")
        while not current_task().cancel_requested:
            time.sleep(0.001)
        say(path, "asked")

    def interrupted() -> None:
        try:
            say(path, f"{os.getpid()}")
            while True:
                time.sleep(0.001)
        except BaseException as error:
            say(path, type(error).__name__)
            raise

    async def wait() -> None:
        say(path, f"{os.getpid()}")
        try:
            await asyncio.sleep(1_000)
        except BaseException as error:
            say(path, type(error).__name__)
            raise

    def program() -> str:
        return f"sleep 1000 & echo $! > {path}; wait"

    if kind == "program":
        return flow.executable_task(program)
    if kind == "interrupted":
        return flow.function_task(interrupt=True)(interrupted)
    return flow.function_task({"plain": plain, "async": wait}[kind])


@pytest.mark.parametrize("kind", BODIES)
async def test_task_is_stopped_where_it_runs_when_it_is_cancelled(dask_client, line, kind):
    async with engine(dask_client) as flow:
        future = endless(flow, kind, line.path)(task_description={"workers": [0]})
        pid = int(await line.read())
        assert future.cancel()
        if kind == "program":
            await gone(pid)
        else:
            assert await line.read() == LAST_WORDS[kind]
        # The place is free.
        assert await flow.function_task(identity)(1, task_description={"workers": [0]}) == 1


@pytest.mark.parametrize("kind", BODIES)
async def test_task_is_stopped_where_it_runs_when_its_time_is_over(dask_client, line, kind):
    async with engine(dask_client) as flow:
        future = endless(flow, kind, line.path)(task_description={"timeout": 2})
        pid = int(await line.read())
        with pytest.raises(TaskTimeoutError, match=rf"'{future.name}'"):
            await future
        if kind == "program":
            await gone(pid)
        else:
            assert await line.read() == LAST_WORDS[kind]


@pytest.mark.parametrize("end", ["cancel", "timeout"])
async def test_place_is_free_when_a_plain_body_goes_on_that_was_to_stop(
    dask_client, line, tmp_path, end
):
    path, release = line.path, tmp_path / "release"

    def body() -> None:
        from dftracer.utils import current_task

        try:
            say(path, "begun")
            while not current_task().cancel_requested:
                time.sleep(0.001)
            say(path, "asked")
            while not release.exists():
                time.sleep(0.001)
        except BaseException as error:
            say(path, type(error).__name__)
            raise
        say(path, "end")

    async with engine(dask_client) as flow:
        description = {"workers": [0], **({"timeout": 2} if end == "timeout" else {})}
        future = flow.function_task(body)(task_description=description)
        try:
            assert await line.read() == "begun"
            if end == "cancel":
                assert future.cancel()
            else:
                with pytest.raises(TaskTimeoutError):
                    await future
            assert await line.read() == "asked"
            assert await flow.function_task(identity)(1, task_description={"workers": [0]}) == 1
        finally:
            release.touch()
        assert await line.read() == "end", "nothing was thrown into it"


async def test_output_up_to_then_is_kept_when_the_time_of_a_program_is_over(dask_client, line):
    async with engine(dask_client) as flow:
        program = flow.executable_task(lambda: "echo so far; sleep 1000")
        future = program(task_description={"timeout": 2})
        with pytest.raises(TaskTimeoutError):
            await future
        assert future.task["stdout"] == "so far\n"


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("end", ["shutdown", "cancel_on_exit"])
async def test_tasks_are_stopped_when_the_engine_ends(dask_client, line, kind, end):
    async with engine(dask_client, cancel_on_exit=end == "cancel_on_exit") as flow:
        future = endless(flow, kind, line.path)()
        pid = int(await line.read())
        if end == "shutdown":
            await flow.shutdown()
    assert future.cancelled()
    if kind == "program":
        await gone(pid)
    else:
        assert await line.read() == LAST_WORDS[kind]


async def test_leaving_the_block_waits_when_nobody_has_awaited_a_task(dask_client, line, tmp_path):
    path, release = line.path, tmp_path / "release"

    def body() -> None:
        from dftracer.utils import current_task

        say(path, "begun")
        while not release.exists():
            time.sleep(0.001)
        say(path, "asked" if current_task().cancel_requested else "end")

    left = asyncio.Event()

    async def run() -> None:
        async with engine(dask_client) as flow:
            flow.function_task(body)()
            assert await line.read() == "begun"
            asyncio.get_running_loop().call_soon(left.set)

    running = asyncio.create_task(run())
    try:
        await left.wait()
        await asyncio.to_thread(dask_client.nthreads)  # others have had their turn
        assert not running.done()
    finally:
        release.touch()
    await running
    assert await line.read() == "end"


async def test_task_is_cancelled_when_its_body_says_so(dask_client):
    async def body() -> None:
        raise asyncio.CancelledError

    async with engine(dask_client) as flow:
        with pytest.raises(asyncio.CancelledError):
            await flow.function_task(body)()


def test_task_is_cancelled_when_the_event_loop_does_not_run_just_now(dask_client, line):
    path = line.path

    async def begin() -> Any:
        flow = await WorkflowEngine.create(DaskExecutionBackend(dask_client))
        future = endless(flow, "async", path)()
        await line.read()
        return flow, future

    loop = asyncio.new_event_loop()
    flow, future = loop.run_until_complete(begin())
    assert future.cancel()
    assert future.cancelled()
    assert loop.run_until_complete(line.read()) == "CancelledError"
    loop.run_until_complete(flow.shutdown())
    loop.close()


async def test_task_fails_when_somebody_else_cancels_it(dask_client, line):
    async with engine(dask_client) as flow:
        future = endless(flow, "async", line.path)()
        await line.read()
        theirs = flow.backend._sent[future].future
        await asyncio.to_thread(dask_client.cancel, [theirs], force=True)
        with pytest.raises(ConnectionError, match=r"'wait' \(.*has been told to forget it"):
            await future
        assert await line.read() == "CancelledError"


async def test_task_runs_to_its_end_when_the_same_key_is_cancelled_and_called_again(
    dask_client, line
):
    path = line.path

    async def body() -> str:
        say(path, "begun")
        await asyncio.sleep(0.01)
        return "end"

    async with engine(dask_client) as flow:
        task, description = flow.function_task(body), {"key": "again"}
        first = task(task_description=description)
        assert await line.read() == "begun"
        first.cancel()
        assert await task(task_description=description) == "end"


@pytest.mark.parametrize("everything", [False, True])
async def test_task_is_running_when_its_worker_has_begun_it(dask_client, line, everything):
    path = line.path

    async def body() -> None:
        say(path, "begun")
        await asyncio.sleep(1_000)

    async with engine(dask_client, cancel_on_exit=True) as flow:
        flow.backend.report_running = everything
        begin = time.time()
        task = flow.function_task(body)
        known = task(task_description={"workers": [1]})
        queued = task(task_description={"workers": [1]})
        assert await line.read() == "begun"
        begun = time.time()
        while known.state == "PENDING":
            await asyncio.to_thread(dask_client.nthreads)  # the scheduler has told that before
        assert known.state == "RUNNING"
        assert begin <= known.task["started_at"] <= begun
        assert queued.state == "PENDING"
        assert flow.backend.tasks == {known.uid: known.task, queued.uid: queued.task}
        queued.cancel()
        assert list(flow.backend.tasks) == [known.uid]


async def test_each_task_is_running_before_it_is_done_when_somebody_wants_to_know(dask_client):
    told = []
    async with engine(dask_client) as flow:
        backend = flow.backend
        report, backend.report_running = backend._report, True
        backend._report = lambda outcomes: (
            told.extend((submission.uid, state) for submission, state, _ in outcomes),
            report(outcomes),
        )
        futures = [flow.function_task(identity)(number) for number in range(20)]
        futures += [flow.executable_task(lambda: "true")()]
        await asyncio.gather(*futures)
    for future in futures:
        assert [state for uid, state in told if uid == future.uid] == ["RUNNING", "DONE"]
