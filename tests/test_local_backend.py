"""Functions on executors: what crosses to worker processes, how tasks end, what is left behind."""

import asyncio
import contextvars
import gc
import glob
import os
import pickle
import random
import sys
import tempfile
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from backend_support import (
    GUARD_S,
    Door,
    Lent,
    Recorder,
    function_task,
    has_begun,
    make_pool,
    program_task,
)

from dftracer.asyncflow import LocalExecutionBackend, WorkerDiedError
from dftracer.asyncflow.backends.base import DescribedTask, Outcome, State
from dftracer.utils import TaskTimeoutError

THREADS = ["threads", "runtime"]
PROCESSES = ["processes", "loky"]
EVERY = THREADS + PROCESSES

Lend = Callable[[str], Executor]

COLOUR: contextvars.ContextVar[str] = contextvars.ContextVar("COLOUR", default="none")


@asynccontextmanager
async def served(
    executor: Executor | None, name: str = "local"
) -> AsyncIterator[tuple[LocalExecutionBackend, Recorder]]:
    """Start a backend on an executor, and somebody who is told of its tasks."""
    async with LocalExecutionBackend(executor, name) as backend:
        yield backend, Recorder(backend)


async def run(
    lend: Lend, kind: str, function: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Run one call on a pool of that kind."""
    async with served(lend(kind)) as (backend, recorder):
        await backend.submit_tasks([function_task("task.1", function, *args, **kwargs)])
        try:
            return await recorder.result_of("task.1")
        finally:
            assert len(recorder.states["task.1"]) == 1


# --- its life -----------------------------------------------------------------------------------


async def test_the_backend_can_be_used_again_when_it_owns_its_pool() -> None:
    backend = LocalExecutionBackend()
    assert backend.state() == "IDLE"
    for number in range(2):
        assert await backend is backend
        assert backend.state() == "INITIALIZED"
        recorder = Recorder(backend)
        await backend.submit_tasks([function_task("task.1", lambda n: n, number)])
        assert await recorder.result_of("task.1") == number
        pool = backend.executor
        await backend.shutdown()
        assert backend.state() == "IDLE"
        with pytest.raises(RuntimeError):
            pool.submit(print)


async def test_the_pool_is_shut_down_with_the_backend_when_it_was_given() -> None:
    pool = ThreadPoolExecutor(1)
    backend = await LocalExecutionBackend.create(pool, name="mine")
    assert (backend.executor, backend.name) == (pool, "mine")
    await backend.shutdown()
    assert backend.state() == "SHUTDOWN"
    with pytest.raises(RuntimeError):
        pool.submit(print)
    with pytest.raises(RuntimeError, match="'mine' has shut its executor down"):
        await backend


@pytest.mark.parametrize("executor", [3, object(), ThreadPoolExecutor, "threads", True])
def test_the_backend_is_refused_when_its_executor_is_none(executor: Any) -> None:
    with pytest.raises(TypeError, match=r"concurrent\.futures\.Executor"):
        LocalExecutionBackend(executor)


def test_the_surface_is_the_usual_one_when_nothing_runs() -> None:
    backend = LocalExecutionBackend(name="local")
    states = backend.get_task_states_map()
    assert (states.DONE, states.FAILED, states.CANCELED) == ("DONE", "FAILED", "CANCELED")
    backend.build_task("task.1", {}, {})
    backend.link_implicit_data_deps({}, {})
    reader = {"uid": "task.2", "name": "reader", "task_backend_specific_kwargs": {}}
    link = backend.link_explicit_data_deps(dst_task=reader, file_name="a", file_path="/b")
    assert (link["source"], link["target"]) == ("/b", "a")
    backend.task_state_cb({}, "DONE")


async def test_each_task_fails_by_name_when_the_pool_takes_no_more() -> None:
    pool = ThreadPoolExecutor(1)
    async with served(pool) as (backend, recorder):
        pool.shutdown()
        await backend.submit_tasks(
            [function_task("task.1", abs, -1), program_task("task.2", "echo", "fine")]
        )
        with pytest.raises(RuntimeError, match=r"'abs' on backend 'local'.*ThreadPoolExecutor"):
            await recorder.result_of("task.1")
        assert (await recorder.end_of("task.2"))["stdout"] == "fine\n"


def test_the_program_ends_when_a_backend_is_left_running(
    run_script: Callable[..., str],
) -> None:
    assert (
        run_script("""
            import asyncio
            from concurrent.futures import ProcessPoolExecutor
            from multiprocessing import get_context
            from dftracer.asyncflow import LocalExecutionBackend, WorkflowEngine

            def double(x):
                return 2 * x

            async def main():
                for pool in (None, ProcessPoolExecutor(1, mp_context=get_context("forkserver"))):
                    flow = await WorkflowEngine.create(LocalExecutionBackend(pool))
                    print(await flow.function_task(double)(21))

            if __name__ == "__main__":
                asyncio.run(main())
        """)
        == "42\n42\n"
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_program_ends_when_a_body_in_a_process_does_not(
    run_script: Callable[..., str], tmp_path: Path, method: str
) -> None:
    source = f"""
        import asyncio, os, pathlib, time
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context
        from dftracer.asyncflow import LocalExecutionBackend, WorkflowEngine

        os.environ["DFTRACER_EXIT_PATIENCE_S"] = "0.2"
        begun = pathlib.Path({str(tmp_path / "begun")!r})

        def endless():
            begun.touch()
            time.sleep(3600)

        async def main():
            pool = ProcessPoolExecutor(1, mp_context=get_context({method!r}))
            flow = await WorkflowEngine.create(LocalExecutionBackend(pool))
            flow.function_task(endless)()
            while not begun.exists():
                await asyncio.sleep(0.001)
            return flow

        if __name__ == "__main__":
            flow = asyncio.run(main())
            print("left")
    """
    assert run_script(source, stderr=None) == "left\n"


# --- bodies -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("new_loop")
@pytest.mark.parametrize("kind", EVERY)
async def test_results_arrive_when_bodies_are_plain_and_async(lent_pool: Lend, kind: str) -> None:
    async def join(a: str, *, b: str) -> str:
        await asyncio.sleep(0)
        return a + b

    async with served(lent_pool(kind)) as (backend, recorder):
        await backend.submit_tasks(
            [
                function_task("task.1", divmod, 17, 5),
                function_task("task.2", lambda *, x: [x], x={"k": 1}),
                function_task("task.3", join, "a", b="b"),
                function_task("task.4", os.getpid),
            ]
        )
        assert await recorder.result_of("task.1") == (3, 2)
        assert await recorder.result_of("task.2") == [{"k": 1}]
        assert await recorder.result_of("task.3") == "ab"
        assert (await recorder.result_of("task.4") == os.getpid()) is (kind in THREADS)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", THREADS)
async def test_the_body_runs_in_the_context_of_its_call_when_in_a_thread(
    lent_pool: Lend, kind: str, is_async: bool
) -> None:
    async def colour_async() -> str:
        return COLOUR.get()

    COLOUR.set("green")
    assert await run(lent_pool, kind, colour_async if is_async else COLOUR.get) == "green"


@pytest.mark.parametrize("kind", PROCESSES)
async def test_what_only_the_program_knows_crosses_when_to_a_process(
    lent_pool: Lend, kind: str
) -> None:
    class Pair:
        def __init__(self, a: Any, b: Any) -> None:
            self.a, self.b = a, b

    def swap(pair: Pair) -> Any:
        return Pair(pair.b, lambda: pair.a)

    swapped = await run(lent_pool, kind, swap, Pair(1, 2))
    assert isinstance(swapped, Pair)
    assert (swapped.a, swapped.b()) == (2, 1)


class TwoPartsError(Exception):
    """Cannot be made again from its ``args``."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")
        self.a, self.b = a, b


class LockedError(LookupError):
    """Holds what cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class UnspeakableError(Exception):
    """Cannot be told in words."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class SelfishError(Exception):
    """Cannot be made without a secret."""

    def __new__(cls, *, secret: str) -> "SelfishError":
        return super().__new__(cls, secret)

    def __init__(self, *, secret: str) -> None:
        super().__init__(f"the secret is {secret}")


def raise_two_parts() -> None:
    raise TwoPartsError(1, 2)


def raise_locked() -> None:
    raise LockedError("locked in")


def raise_unspeakable() -> None:
    raise UnspeakableError


def raise_selfish() -> None:
    raise SelfishError(secret="12345")


def raise_os_error() -> None:
    raise FileNotFoundError(2, "no such thing", "/nowhere")


def raise_exit() -> None:
    raise SystemExit(3)


def raise_cancelled() -> None:
    raise asyncio.CancelledError("from the body")


@pytest.mark.parametrize("kind", EVERY)
async def test_the_error_keeps_its_type_when_a_body_raises(lent_pool: Lend, kind: str) -> None:
    bodies = {
        raise_two_parts: TwoPartsError,
        raise_locked: LockedError,
        raise_unspeakable: UnspeakableError,
        raise_selfish: SelfishError if kind in THREADS else RuntimeError,
        raise_os_error: FileNotFoundError,
        raise_exit: SystemExit,
        raise_cancelled: asyncio.CancelledError,
    }
    async with served(lent_pool(kind)) as (backend, recorder):
        await backend.submit_tasks([function_task(b.__name__, b) for b in bodies])
        for body, expected in bodies.items():
            task = await recorder.end_of(body.__name__)
            assert recorder.states[body.__name__] == ["FAILED"]
            error = task["exception"]
            assert type(error) is expected
            if kind in PROCESSES:
                assert body.__name__ in str(error.__cause__)  # its traceback
        two = (await recorder.end_of("raise_two_parts"))["exception"]
        assert (str(two), two.a, two.b) == ("1 and 2", 1, 2)
        missing = (await recorder.end_of("raise_os_error"))["exception"]
        assert (missing.errno, missing.filename) == (2, "/nowhere")
        selfish = (await recorder.end_of("raise_selfish"))["exception"]
        assert "the secret is 12345" in str(selfish)


class OnlyAt:
    """Can be read in its own process alone, or in any other alone."""

    def __init__(self, at_home: bool) -> None:
        self.at_home = at_home

    def __reduce__(self) -> tuple[Any, ...]:
        return _read_only_at, (self.at_home, os.getpid())


def _read_only_at(at_home: bool, home: int) -> OnlyAt:
    if (os.getpid() == home) is not at_home:
        raise LookupError("not readable in this process")
    return OnlyAt(at_home)


class Unpicklable:
    """Says no."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("will not be pickled")


@pytest.mark.parametrize("kind", PROCESSES)
async def test_only_that_task_fails_when_something_of_it_cannot_cross(
    lent_pool: Lend, kind: str
) -> None:
    bad = Unpicklable()
    tasks = {
        "its function cannot be sent": function_task("function", lambda: bad),
        "argument 2 cannot be sent": function_task("second", max, 1, bad),
        "argument 'key' cannot be sent": function_task("keyword", max, 1, key=bad),
        "a result that cannot be sent": function_task("result", Unpicklable),
        "cannot read what to call": function_task("unreadable", id, OnlyAt(at_home=True)),
        "a result that cannot be read": function_task("foreign", OnlyAt, True),
    }
    async with served(lent_pool(kind), name="pool") as (backend, recorder):
        await backend.submit_tasks([*tasks.values(), function_task("good", abs, -1)])
        assert await recorder.result_of("good") == 1
        for text, task in tasks.items():
            with pytest.raises(pickle.PickleError, match=text) as caught:
                await recorder.result_of(task["uid"])
            assert "on backend 'pool'" in str(caught.value)
            assert f"'{task['name']}'" in str(caught.value)
            reason = "not readable" if "read" in text else "will not be pickled"
            assert reason in str(caught.value)


async def test_the_reusable_executor_of_loky_will_do_when_one_backend_follows_another() -> None:
    loky = pytest.importorskip("loky", reason="loky is not installed")
    for number in range(2):
        async with served(loky.get_reusable_executor(1)) as (backend, recorder):
            await backend.submit_tasks([function_task("task.1", abs, -number)])
            assert await recorder.result_of("task.1") == number


# --- workers that die ---------------------------------------------------------------------------


def die() -> None:
    os._exit(7)


@pytest.mark.parametrize("kind", PROCESSES)
async def test_tasks_fail_by_name_when_an_executor_of_somebody_elses_breaks(kind: str) -> None:
    pool = make_pool(kind)
    async with served(Lent(pool), name="pool") as (backend, recorder):
        tasks = [function_task(f"task.{n}", die) for n in range(5)]
        await backend.submit_tasks(tasks)
        for task in tasks:
            with pytest.raises(WorkerDiedError, match=r"backend 'pool'.*worker process died") as e:
                await recorder.result_of(task["uid"])
            assert isinstance(e.value.__cause__, BrokenExecutor)
        await backend.submit_tasks([function_task("late", abs, 1), program_task("ls", "echo")])
        with pytest.raises(WorkerDiedError, match="task 'abs' on backend 'pool'"):
            await recorder.result_of("late")
        assert (await recorder.end_of("ls"))["stdout"] == "\n"
    pool.shutdown()


# --- cancellation -------------------------------------------------------------------------------


def touch(path: str) -> None:
    Path(path).touch()


@pytest.mark.parametrize("kind", EVERY)
async def test_the_body_never_runs_when_cancelled_in_the_queue(
    lent_pool: Lend, kind: str, door: Door, tmp_path: Path
) -> None:
    paths = [tmp_path / f"made by {n}" for n in range(5)]
    async with served(lent_pool(kind)) as (backend, recorder):
        # The worker is busy, and a pool of processes has taken more calls than it has workers.
        await backend.submit_tasks([function_task("busy", door.hold)])
        await door.reached()
        await backend.submit_tasks([function_task(p.name, touch, str(p)) for p in paths])
        assert [await backend.cancel_task(p.name) for p in paths] == [True] * 5
        assert not await backend.cancel_task(paths[0].name)
        assert not await backend.cancel_task("unknown")
        door.open()
        await recorder.end_of("busy")
        await backend.submit_tasks([function_task("next", os.getpid)])
        await recorder.result_of("next")
        assert not any(path.exists() for path in paths)
    assert all(recorder.states[path.name] == ["CANCELED"] for path in paths)


@pytest.mark.parametrize("end", ["result", "error"])
@pytest.mark.parametrize("kind", EVERY)
async def test_the_end_is_not_told_when_cancelled_while_it_runs(
    lent_pool: Lend, kind: str, door: Door, end: str
) -> None:
    def body() -> int:
        door.hold()
        return 1 // (end == "result")

    async with served(lent_pool(kind)) as (backend, recorder):
        await backend.submit_tasks([function_task("task.1", body)])
        await door.reached()
        assert has_begun(backend, "task.1")
        assert await backend.cancel_task("task.1")
        assert not has_begun(backend, "task.1")
        await recorder.end_of("task.1")
        # Its identifier may be used anew, even before it is back.
        await backend.submit_tasks([function_task("task.1", abs, -1)])
        door.open()
    assert recorder.states["task.1"] in (["CANCELED", "DONE"], ["CANCELED", "CANCELED"])


async def test_all_are_cancelled_when_that_is_asked(lent_pool: Lend, door: Door) -> None:
    async with served(lent_pool("threads")) as (backend, recorder):
        tasks = [function_task(f"task.{n}", door.hold) for n in range(3)]
        await backend.submit_tasks([*tasks, program_task("sleep", "sleep", "1000")])
        await door.reached()
        assert await backend.cancel_all_tasks() == 4
        await recorder.end_of("sleep")
        assert await backend.cancel_all_tasks() == 0
        door.open(3)
    assert list(recorder.states.values()) == [["CANCELED"]] * 4


# --- timeouts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY)
async def test_the_task_fails_at_its_deadline_when_its_body_takes_too_long(
    lent_pool: Lend, kind: str, door: Door
) -> None:
    async with served(lent_pool(kind), name="pool") as (backend, recorder):
        await backend.submit_tasks(
            [function_task("task.1", door.hold, description={"timeout": 0.05})]
        )
        await door.reached()
        with pytest.raises(TaskTimeoutError, match=r"'hold' on backend 'pool' .* 0\.05 s"):
            await recorder.result_of("task.1")
        door.open()
    assert recorder.states["task.1"] == ["FAILED"]


@pytest.mark.parametrize("kind", EVERY)
async def test_the_time_counts_from_the_beginning_when_a_task_waits_for_a_worker(
    lent_pool: Lend, kind: str, door: Door
) -> None:
    async with served(lent_pool(kind)) as (backend, recorder):
        await backend.submit_tasks([function_task("busy", door.hold)])
        await door.reached()
        loop, timeout = asyncio.get_running_loop(), 0.5
        await backend.submit_tasks(
            [
                function_task("waits", abs, -1, description={"timeout": timeout}),
                function_task("late", door.hold, description={"timeout": timeout}),
            ]
        )
        await asyncio.sleep(1.2 * timeout)  # that time passes is what this is about
        assert set(recorder.states) == set()
        door.open()
        assert await recorder.result_of("waits") == 1
        await door.reached()
        begun = loop.time()
        with pytest.raises(TaskTimeoutError):
            await recorder.result_of("late")
        assert 0.8 * timeout < loop.time() - begun
        door.open()


async def test_nothing_of_a_deadline_is_kept_when_the_task_has_ended(lent_pool: Lend) -> None:
    class Argument:
        pass

    async with served(lent_pool("threads")) as (backend, recorder):
        argument = Argument()
        ref = weakref.ref(argument)
        task = function_task("task.1", id, argument, description={"timeout": 1000})
        await backend.submit_tasks([task])
        await recorder.result_of("task.1")
        assert not backend._deadlines
        del argument, task
        recorder._ends.clear()
        await asyncio.sleep(0)  # one turn, for the future that has just told the end
        gc.collect()
        assert ref() is None


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "1s", True, [1]])
async def test_only_that_task_fails_when_its_timeout_is_none(lent_pool: Lend, timeout: Any) -> None:
    async with served(lent_pool("threads")) as (backend, recorder):
        await backend.submit_tasks(
            [
                function_task("function", abs, -1, description={"timeout": timeout}),
                program_task("program", "echo", description={"timeout": timeout}),
                function_task("good", abs, -1, description={"timeout": None}),
            ]
        )
        for uid in ("function", "program"):
            error = (await recorder.end_of(uid))["exception"]
            assert isinstance(error, (TypeError, ValueError))
            assert "timeout must be a number of seconds above 0" in str(error)
        assert await recorder.result_of("good") == 1


# --- shutdown -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancelled", "out of time", "shut down"])
@pytest.mark.parametrize("kind", ["threads", *PROCESSES])
async def test_shutdown_ends_when_a_body_does_not_return(
    kind: str,
    how: str,
    door: Door,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("DFTRACER_EXIT_PATIENCE_S", "0.2")
    pool = make_pool(kind)
    backend = await LocalExecutionBackend(pool, "pool")
    recorder = Recorder(backend)
    description = {"timeout": 0.1} if how == "out of time" else {}
    task = function_task("task.1", door.hold, description=description)
    await backend.submit_tasks([task, function_task("waits", abs, -1)])
    await door.reached()
    workers = dict(getattr(pool, "_processes", {}))
    if how == "cancelled":
        await backend.cancel_task("task.1")
    elif how == "out of time":
        with pytest.raises(TaskTimeoutError):
            await recorder.result_of("task.1")
    await asyncio.wait_for(backend.shutdown(), GUARD_S)
    assert len(recorder.states["task.1"]) == 1
    assert recorder.states["waits"][-1] in ("CANCELED", "DONE")
    assert backend.state() == "SHUTDOWN"
    assert "backend 'pool' is shut down, and bodies" in caplog.text
    assert not any(process.is_alive() for process in workers.values())


def fork_and_return() -> int:
    return os.fork()


async def fork_and_return_later() -> int:
    await asyncio.sleep(0)
    return os.fork()


def fork_and_fail(pipe: str) -> None:
    """Fail in the child, and say in the parent who that is."""
    if child := os.fork():
        Path(pipe).write_text(str(child))
    raise ValueError


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("kind", EVERY)
async def test_the_child_leaves_when_a_body_has_forked(kind: str, tmp_path: Path) -> None:
    note = str(tmp_path / "child")
    async with served(make_pool(kind)) as (backend, recorder):
        bodies = [fork_and_return, fork_and_return_later]
        await backend.submit_tasks([function_task(f"task.{n}", b) for n, b in enumerate(bodies)])
        await backend.submit_tasks([function_task("fails", fork_and_fail, note)])
        children = [await recorder.result_of(f"task.{n}") for n in range(len(bodies))]
        assert type((await recorder.end_of("fails"))["exception"]) is ValueError
        children.append(int(Path(note).read_text()))
        guard = asyncio.get_running_loop().time() + GUARD_S
        while not all(map(is_gone, children)):
            assert asyncio.get_running_loop().time() < guard
            await asyncio.sleep(0.001)
        await backend.submit_tasks([function_task(f"next.{n}", abs, -n) for n in range(20)])
        for number in range(20):
            assert await recorder.result_of(f"next.{number}") == number


async def test_a_backend_that_owns_its_pool_can_be_used_again_when_a_body_did_not_return(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFTRACER_EXIT_PATIENCE_S", "0.1")
    backend = await LocalExecutionBackend()
    recorder = Recorder(backend)
    await backend.submit_tasks([function_task("task.1", door.hold, 1)])
    await door.reached()
    await backend.shutdown()
    async with backend:
        await backend.submit_tasks([function_task("task.2", door.hold, 2)])
        await door.reached()
        door.open(2)
        assert await recorder.result_of("task.2") == 2
    assert recorder.states["task.1"] == ["CANCELED"]


@pytest.mark.parametrize("kind", EVERY)
async def test_the_loop_goes_on_when_shutdown_waits_for_a_body(kind: str, door: Door) -> None:
    backend = await LocalExecutionBackend(make_pool(kind))
    recorder = Recorder(backend)
    await backend.submit_tasks([function_task(f"task.{n}", door.hold) for n in range(4)])
    await door.reached()
    closing = asyncio.ensure_future(backend.shutdown())
    for number in range(4):
        await recorder.end_of(f"task.{number}")
    assert list(recorder.states.values()) == [["CANCELED"]] * 4
    assert not closing.done()
    with pytest.raises(RuntimeError, match="not started"):
        backend.submit([DescribedTask(function_task("late", abs, 1))])
    door.open()
    await asyncio.wait_for(closing, GUARD_S)
    assert not backend.late


async def test_the_file_of_notes_is_gone_when_the_backend_is_shut_down(
    lent_pool: Lend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where nobody else writes notes
    pattern = os.path.join(tempfile.gettempdir(), "dftracer-asyncflow-*")
    async with served(lent_pool("processes")) as (backend, recorder):
        for number in range(3):
            await backend.submit_tasks([function_task(f"task.{number}", abs, -1)])
            await recorder.result_of(f"task.{number}")
        assert len(glob.glob(pattern)) == 1
        assert backend._notes._size == 1  # a place is used again
    assert glob.glob(pattern) == []


# --- how outcomes come back ---------------------------------------------------------------------


async def test_the_loop_is_woken_once_when_many_bodies_end_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = ThreadPoolExecutor(1)
    loop = asyncio.get_running_loop()
    async with LocalExecutionBackend(pool) as backend:
        ended: list[str] = []
        everything = loop.create_future()

        def note(task: dict[str, Any], state: str) -> None:
            ended.append(state)
            if len(ended) == 100:
                everything.set_result(None)

        backend.register_callback(note)
        wakes: list[Any] = []
        wake = loop.call_soon_threadsafe

        def counted(*args: Any, **kwargs: Any) -> Any:
            wakes.append(args)
            return wake(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "call_soon_threadsafe", counted)
            backend.submit([DescribedTask(function_task(f"task.{n}", abs, n)) for n in range(100)])
            pool.submit(int).result()  # all have ended, while the loop could do nothing
            assert len(wakes) == 1
        await asyncio.wait_for(everything, GUARD_S)
        assert ended == ["DONE"] * 100


async def test_the_others_are_told_when_the_callback_fails_for_one() -> None:
    complaints: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    told = asyncio.Event()

    def note(task: dict[str, Any], state: str) -> None:
        if task["uid"] == "last":
            told.set()
        else:
            raise LookupError(task["uid"])

    async with LocalExecutionBackend(ThreadPoolExecutor(1), "local") as backend:
        backend.register_callback(note)
        await backend.submit_tasks([function_task(uid, abs, 1) for uid in ("first", "last")])
        await asyncio.wait_for(told.wait(), GUARD_S)
    [complaint] = complaints
    assert str(complaint["exception"]) == "first"
    assert "backend 'local'" in complaint["message"]


def test_the_others_are_reported_when_ctrl_c_comes_up_in_the_callback_for_one() -> None:
    reported: list[str] = []

    def note(task: dict[str, Any], state: str) -> None:
        reported.append(f"{task['uid']} {state}")
        if task["uid"] == "first":
            raise KeyboardInterrupt

    async def program() -> None:
        backend = await LocalExecutionBackend(Inline())
        backend.register_callback(note)
        await backend.submit_tasks([function_task(uid, abs, 1) for uid in ("first", "last")])
        try:
            await asyncio.Event().wait()
        finally:
            await backend.shutdown()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(program())
    assert reported == ["first DONE", "last DONE"]


@pytest.mark.parametrize("kind", EVERY)
async def test_nothing_is_kept_when_tasks_have_ended(lent_pool: Lend, kind: str) -> None:
    class Thing:
        pass

    def failing(thing: Thing) -> None:
        raise ValueError(thing)

    async with served(lent_pool(kind)) as (backend, recorder):
        things = [Thing(), Thing()]
        dropped = [threading.Event() for _ in things]
        for thing, event in zip(things, dropped, strict=True):
            weakref.finalize(thing, event.set)
        del thing
        await backend.submit_tasks(
            [
                function_task("good", lambda thing: thing, things[0]),
                function_task("bad", failing, things[1]),
            ]
        )
        for uid in ("good", "bad"):
            await recorder.end_of(uid)
        # A worker lets go of what it has run when it takes the next.
        await backend.submit_tasks([function_task("next", int)])
        await recorder.result_of("next")
        gc.disable()
        try:
            things.clear()
            recorder._ends.clear()
            assert (backend.unfinished, backend.late) == ({}, {})
            # Without the GIL, what a worker has made dies when it next runs Python code.
            for number in range(0 if getattr(sys, "_is_gil_enabled", lambda: True)() else 100):
                await backend.submit_tasks([function_task(f"turn.{number}", lambda: None)])
                await recorder.result_of(f"turn.{number}")
            # Futures that have told their ends need a turn, and the threads of a pool a moment.
            for event in dropped:
                assert await asyncio.to_thread(event.wait, GUARD_S)
        finally:
            gc.enable()


def now_and_then_fail(number: int) -> int:
    if number % 7 == 0:
        raise ValueError(number)
    return number


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["threads", "processes"])
async def test_every_task_ends_once_when_cancellations_come_at_random(
    lent_pool: Lend, kind: str, seed: int
) -> None:
    chance = random.Random(seed)
    ends: dict[str, list[str]] = {}
    submitted: list[DescribedTask] = []
    async with LocalExecutionBackend(lent_pool(kind)) as backend:
        backend.register_callback(lambda task, s: ends.setdefault(task["uid"], []).append(s))
        for number in range(300):
            description = {"timeout": chance.choice([0.001, 10])} if chance.random() < 0.3 else {}
            task = function_task(f"{number}", now_and_then_fail, number, description=description)
            submitted.append(DescribedTask(task))
            backend.submit(submitted[-1:])
            while chance.random() < 0.5:
                backend.cancel(submitted[chance.randrange(number + 1)])
            if chance.random() < 0.1:
                await asyncio.sleep(chance.choice([0, 0.001]))
    assert sorted(map(int, ends)) == list(range(300))
    assert {len(states) for states in ends.values()} == {1}
    assert (backend.unfinished, backend.late, len(backend._deadlines)) == ({}, {}, 0)
    for uid, [state] in ends.items():
        assert state in ("FAILED", "CANCELED", "DONE")
        assert state != "DONE" or int(uid) % 7


class Inline(Executor):
    """Runs each call at once, in the caller's thread."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


async def test_any_executor_will_do_when_it_keeps_the_interface() -> None:
    async with served(Inline()) as (backend, recorder):
        await backend.submit_tasks([function_task(f"task.{n}", abs, -n) for n in range(3)])
        assert [await recorder.result_of(f"task.{n}") for n in range(3)] == [0, 1, 2]


async def test_nothing_is_reported_inside_submit_when_it_has_ended_by_then() -> None:
    async with LocalExecutionBackend(Inline()) as backend:
        reports: list[Sequence[Outcome]] = []
        reported = asyncio.Event()

        def report(outcomes: Sequence[Outcome]) -> bool:
            reports.append(outcomes)
            if sum(map(len, reports)) == 4:
                reported.set()
            return False

        backend.connect(report)
        good = [DescribedTask(function_task(f"task.{n}", abs, -n)) for n in range(2)]
        bad = DescribedTask(function_task("bad", int, description={"timeout": "soon"}))
        no_program = DescribedTask({"uid": "prompt", "name": "prompt", "prompt": "Why?"})
        backend.submit([good[0], bad, no_program, good[1]])
        assert reports == []
        await asyncio.wait_for(reported.wait(), GUARD_S)
        outcomes = {each: (state, value) for part in reports for each, state, value in part}
        assert [outcomes[each] for each in good] == [(State.DONE, 0), (State.DONE, 1)]
        assert isinstance(outcomes[bad][1], TypeError)
        assert isinstance(outcomes[no_program][1], NotImplementedError)
        assert outcomes[bad][0] is outcomes[no_program][0] is State.FAILED


async def test_the_loop_gets_other_work_done_when_very_many_have_ended() -> None:
    loop = asyncio.get_running_loop()
    async with LocalExecutionBackend(Inline()) as backend:
        seen: list[str] = []
        everything = loop.create_future()

        def note(task: dict[str, Any], _state: str) -> None:
            seen.append("end")
            if seen.count("end") == 2_500:
                everything.set_result(None)

        backend.register_callback(note)
        backend.submit([DescribedTask(function_task(f"task.{n}", abs, n)) for n in range(2_500)])
        loop.call_soon(loop.call_soon, seen.append, "other work")
        await asyncio.wait_for(everything, GUARD_S)
    assert seen.index("other work") <= 2_000
