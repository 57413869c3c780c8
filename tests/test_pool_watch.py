"""Pools of processes that say nothing when they cannot go on: each call runs, or fails."""

import asyncio
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from backend_support import GUARD_S, Door, Recorder, function_task, make_pool

from dftracer.asyncflow import LocalExecutionBackend, WorkerDiedError
from dftracer.asyncflow.backends.local import recovery as local
from dftracer.asyncflow.backends.local.work import WorkItem

KINDS = ["processes", "loky"]

# Threads of executors are made to die.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "CHECK_S", 0.1)


def note(folder: str, number: int) -> int:
    """Leave a file that cannot be made twice."""
    os.close(os.open(os.path.join(folder, str(number)), os.O_CREAT | os.O_EXCL))
    return number


def open_and_close(path: str, flags: int = os.O_RDONLY) -> None:
    os.close(os.open(path, flags))


def exit_thread(_: Any) -> None:
    raise SystemExit


def end_thread_of(pool: Any) -> Any:
    """Let the executor's own thread die at the end of a call; return that thread."""
    if type(pool).__module__.startswith("loky"):  # which survives what callbacks raise
        manager = pool._executor_manager_thread
        manager.process_result_item = manager.terminate_broken = exit_thread
        pool.submit(abs, -1)
    else:
        with tempfile.TemporaryDirectory() as folder:
            pipe = os.path.join(folder, "pipe")
            os.mkfifo(pipe)
            call = pool.submit(open_and_close, pipe)  # which waits for the other end
            call.add_done_callback(exit_thread)
            open_and_close(pipe, os.O_WRONLY)
            call.result(GUARD_S)
    return pool._executor_manager_thread


def pids_of(pool: Any) -> list[int]:
    return list(pool._processes)


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


# --- no process is left ---------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info < (3, 11), reason="came with Python 3.11")
@pytest.mark.parametrize(("workers", "calls_each"), [(1, 1), (1, 2), (2, 3)])
async def test_all_calls_run_when_workers_end_after_some(workers: int, calls_each: int) -> None:
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(workers, context, max_tasks_per_child=calls_each)
    async with LocalExecutionBackend(pool) as backend:
        recorder = Recorder(backend)
        uids = [f"task.{n}" for n in range(8)]
        await backend.submit_tasks([function_task(uid, os.getpid) for uid in uids[:6]])
        pids = [await recorder.result_of(uid) for uid in uids[:6]]
        await backend.submit_tasks([function_task(uid, os.getpid) for uid in uids[6:]])
        pids += [await recorder.result_of(uid) for uid in uids[6:]]
        assert max(map(pids.count, pids)) <= calls_each
        assert backend.executor is pool


@pytest.mark.skipif(sys.version_info < (3, 11), reason="came with Python 3.11")
async def test_another_process_is_started_when_the_pool_was_left_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(1, context, max_tasks_per_child=1)
    async with LocalExecutionBackend(pool) as backend:
        monkeypatch.setattr(backend._pool._watch, "trim_idle", lambda: None)
        pool._idle_worker_semaphore.release()  # as it does itself at times
        recorder = Recorder(backend)
        await backend.submit_tasks([function_task("task", os.getpid)])
        assert not pool._processes
        monkeypatch.undo()
        assert await recorder.result_of("task") != os.getpid()


class Refusing:
    """A context of multiprocessing in which processes can be started only some times."""

    def __init__(self, starts: int) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self.starts = starts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def Process(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802
        if self.starts == 0:
            raise BlockingIOError("no more processes")
        self.starts -= 1
        return self._context.Process(*args, **kwargs)


async def test_a_call_fails_and_never_runs_when_no_process_can_be_started(tmp_path: Path) -> None:
    context: Any = Refusing(0)
    async with LocalExecutionBackend(ProcessPoolExecutor(1, context), "pool") as backend:
        recorder = Recorder(backend)
        await backend.submit_tasks([function_task("first", note, str(tmp_path), 1)])
        with pytest.raises(RuntimeError, match=r"'note' .* is refused by .* no more processes"):
            await recorder.result_of("first")
        context.starts = 1
        await backend.submit_tasks([function_task("next", note, str(tmp_path), 2)])
        assert await recorder.result_of("next") == 2
        assert not (tmp_path / "1").exists()
        assert recorder.states["first"] == ["FAILED"]


# --- its own thread is gone -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_waiting_calls_run_elsewhere_when_the_executors_thread_dies(
    kind: str, door: Door, tmp_path: Path
) -> None:
    pool = make_pool(kind, 2)
    async with LocalExecutionBackend(pool, "pool") as backend:
        recorder = Recorder(backend)
        await backend.submit_tasks([function_task("begun", door.hold)])
        await door.reached()
        workers = pids_of(pool)
        tasks = [function_task(f"task.{n}", note, str(tmp_path), n) for n in range(20)]
        end_thread_of(pool)
        await backend.submit_tasks(tasks)
        lost = []
        for number in range(20):
            try:
                assert await recorder.result_of(f"task.{number}") == number
            except WorkerDiedError:  # its worker had it already
                lost.append(number)
        assert len(lost) < 10
        error = (await recorder.end_of("begun"))["exception"]
        assert type(error) is WorkerDiedError
        assert isinstance(error.__cause__, BrokenExecutor)
        assert "is lost: its worker process " in str(error)
        assert backend.executor is not pool
        assert not any(map(is_alive, workers))
    assert {len(states) for states in recorder.states.values()} == {1}


async def test_the_error_says_so_when_the_thread_died_and_no_worker_had(door: Door) -> None:
    async with LocalExecutionBackend(make_pool("processes"), "pool") as backend:
        recorder = Recorder(backend)
        await backend.submit_tasks([function_task("begun", door.hold)])
        await door.reached()
        backend._pool._watch._thread = Ended()  # type: ignore[assignment]
        error = (await recorder.end_of("begun"))["exception"]
        assert "their pool broke (LostThreadError: the executor's own thread has died)" in str(
            error
        )


class Ended:
    def is_alive(self) -> bool:
        return False


@pytest.mark.parametrize("kind", KINDS)
async def test_the_next_calls_run_when_the_executors_thread_died_idle(kind: str) -> None:
    pool = make_pool(kind)
    async with LocalExecutionBackend(pool, "pool") as backend:
        recorder = Recorder(backend)
        await backend.submit_tasks([function_task("first", os.getpid)])
        worker = await recorder.result_of("first")
        await asyncio.to_thread(end_thread_of(pool).join, GUARD_S)
        await backend.submit_tasks([function_task("second", os.getpid)])
        assert await recorder.result_of("second") != worker
        assert not is_alive(worker)


async def test_no_worker_is_left_when_the_thread_died_and_nothing_came_after() -> None:
    pool: Any = make_pool("processes", 2)
    async with LocalExecutionBackend(pool) as backend:
        recorder = Recorder(backend)
        await backend.submit_tasks([function_task("first", os.getpid)])
        worker = await recorder.result_of("first")
        await asyncio.to_thread(end_thread_of(pool).join, GUARD_S)
    assert not is_alive(worker)


class OwnPool(ProcessPoolExecutor):
    """Of a kind that cannot be made again."""


async def test_all_calls_fail_when_the_thread_died_of_a_pool_that_cannot_be_made_again(
    door: Door,
) -> None:
    pool = OwnPool(1, multiprocessing.get_context("forkserver"))
    async with LocalExecutionBackend(pool, "pool") as backend:
        recorder = Recorder(backend)
        end_thread_of(pool)
        uids = [f"task.{n}" for n in range(5)]
        await backend.submit_tasks([function_task(uid, door.hold) for uid in uids])
        for uid in uids:
            error = (await recorder.end_of(uid))["exception"]
            assert type(error) is WorkerDiedError
            assert "'hold' on backend 'pool' is lost: nobody looks after its" in str(error)
        await backend.submit_tasks([function_task("next", abs, -1)])
        with pytest.raises(WorkerDiedError):
            await recorder.result_of("next")


async def test_calls_are_refused_when_the_pool_was_shut_down_by_somebody_else() -> None:
    pool: Any = make_pool("processes")
    async with LocalExecutionBackend(pool) as backend:
        recorder = Recorder(backend)
        await backend.submit_tasks([function_task("first", abs, -1)])
        assert await recorder.result_of("first") == 1
        await asyncio.to_thread(pool.shutdown)
        await backend.submit_tasks([function_task("second", abs, -1)])
        with pytest.raises(RuntimeError, match=r"refused by .* after shutdown"):
            await recorder.result_of("second")


# --- it waits for a worker that is dead -----------------------------------------------------------


def die_while_answering() -> int:
    """Kill this worker when a half of what this returns is written."""

    def send(self: Connection, data: Any) -> None:
        os.write(self.fileno(), len(data).to_bytes(4, "big") + bytes(data)[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    Connection._send_bytes = send  # type: ignore[attr-defined]
    return 1


@pytest.mark.parametrize("kind", KINDS)
async def test_calls_go_on_when_a_worker_dies_in_the_middle_of_its_answer(
    kind: str, door: Door, tmp_path: Path
) -> None:
    pool = make_pool(kind, 2)
    async with LocalExecutionBackend(pool, "pool") as backend:
        recorder = Recorder(backend)
        await backend.submit_tasks([function_task("begun", door.hold)])
        await door.reached()
        tasks = [function_task(f"task.{n}", note, str(tmp_path), n) for n in range(20)]
        await backend.submit_tasks([function_task("dies", die_while_answering), *tasks])
        for number in range(20):
            assert await recorder.result_of(f"task.{number}") == number
        for uid in ("dies", "begun"):
            with pytest.raises(WorkerDiedError):
                await recorder.result_of(uid)


# --- it breaks while it is given calls ------------------------------------------------------------


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kind", KINDS)
async def test_every_call_ends_when_the_pool_breaks_while_they_are_handed_over(
    kind: str, tmp_path: Path
) -> None:
    interval = sys.getswitchinterval()
    async with LocalExecutionBackend(make_pool(kind), "pool") as backend:
        recorder = Recorder(backend)
        try:
            sys.setswitchinterval(1e-5)
            for turn in range(5):
                tasks = [function_task(f"task.{turn}.{n}", abs, -n) for n in range(500)]
                tasks.insert(0, function_task(f"dies.{turn}", kill_itself))
                for begin in range(0, len(tasks), 20):
                    await backend.submit_tasks(tasks[begin : begin + 20])
                    await asyncio.sleep(0)
        finally:
            sys.setswitchinterval(interval)
        for turn in range(5):
            for number in range(500):
                assert await recorder.result_of(f"task.{turn}.{number}") == number
            with pytest.raises(WorkerDiedError):
                await recorder.result_of(f"dies.{turn}")


class Forgetful(ProcessPoolExecutor):
    """Takes a call in when it has broken, and forgets it."""


async def test_a_call_runs_when_the_breaking_pool_took_it_in_and_forgot_it(door: Door) -> None:
    pool: Any = make_pool("processes")
    async with LocalExecutionBackend(pool, "pool") as backend:
        recorder = Recorder(backend)
        await backend.submit_tasks([function_task("dies", kill_itself)])
        submit: Callable[..., Any] = pool.submit
        pool.submit = lambda *_: Future()  # as where it comes between its last look and its end
        await backend.submit_tasks([function_task("forgotten", abs, -1)])
        pool.submit = submit
        assert await recorder.result_of("forgotten") == 1


@pytest.mark.parametrize("part", ["close", "finish_in"])
async def test_calls_fail_by_name_when_the_recovery_itself_fails(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("can't start new thread")

    owner: Any = local.BrokenPool if part == "close" else WorkItem
    monkeypatch.setattr(owner, part, refuse)
    pool: Executor = make_pool("processes")
    async with LocalExecutionBackend(pool, "pool") as backend:
        recorder = Recorder(backend)
        await backend.submit_tasks(
            [function_task("dies", kill_itself), function_task("waits", abs, -1)]
        )
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await recorder.result_of("waits")
        await recorder.end_of("dies")
        monkeypatch.undo()
        await backend.submit_tasks([function_task("next", abs, -1)])
        assert await recorder.result_of("next") == 1
