"""Worker processes that die: what is lost with them, and what goes on in another pool."""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from backend_support import GUARD_S, Door, Recorder, function_task, has_begun, make_pool

from dftracer.asyncflow import LocalExecutionBackend, WorkerDiedError

KINDS = ["processes", "loky"]


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exit_with_3() -> None:
    os._exit(3)


def note(folder: str, number: int) -> int:
    """Leave a file that cannot be made twice."""
    os.close(os.open(os.path.join(folder, str(number)), os.O_CREAT | os.O_EXCL))
    return number


class DyingDoor:
    """Kills its worker once it has been let through the door."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.__name__ = "dying"

    def __call__(self) -> None:
        self.door.hold()
        kill_itself()


async def errors_of(recorder: Recorder, uids: list[str]) -> list[str]:
    errors = [(await recorder.end_of(uid))["exception"] for uid in uids]
    assert all(type(error) is WorkerDiedError for error in errors), errors
    assert all(isinstance(error.__cause__, BrokenExecutor) for error in errors)
    return [str(error) for error in errors]


@pytest.mark.parametrize(
    ("body", "text"), [(kill_itself, "killed by SIGKILL"), (exit_with_3, "exit code 3")]
)
@pytest.mark.parametrize("kind", KINDS)
async def test_only_that_task_fails_when_one_of_200_kills_its_worker(
    kind: str, body: Callable[[], None], text: str, tmp_path: Path
) -> None:
    pool = make_pool(kind)
    async with LocalExecutionBackend(pool, "pool") as backend:
        recorder = Recorder(backend)
        tasks = [function_task(f"task.{n}", note, str(tmp_path), n) for n in range(200)]
        tasks[20] = function_task("task.20", body)
        await backend.submit_tasks(tasks)
        for number in range(200):
            if number != 20:
                assert await recorder.result_of(f"task.{number}") == number
        [error] = await errors_of(recorder, ["task.20"])
        name = body.__name__
        assert error == f"task '{name}' on backend 'pool' is lost: its worker process died ({text})"
        assert backend.executor is not pool
        assert type(backend.executor) is type(pool)
        await backend.submit_tasks([function_task("next", abs, -1)])
        assert await recorder.result_of("next") == 1
        new = backend.executor
    assert backend.state() == "SHUTDOWN"
    with pytest.raises(RuntimeError):
        new.submit(abs, 1)
    assert {len(states) for states in recorder.states.values()} == {1}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_body_is_not_begun_twice_when_another_worker_dies(
    kind: str, door: Door, tmp_path: Path
) -> None:
    def innocent() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note(str(tmp_path), 1)
        door.hold()
        door.hold()

    async with LocalExecutionBackend(make_pool(kind, 2), "pool") as backend:
        recorder = Recorder(backend)
        await backend.submit_tasks([function_task("innocent", innocent)])
        await door.reached()
        tasks = [function_task(f"task.{n}", abs, -n) for n in range(10)]
        await backend.submit_tasks([function_task("dies", exit_with_3), *tasks])
        for number in range(10):
            assert await recorder.result_of(f"task.{number}") == number
        died, stopped = await errors_of(recorder, ["dies", "innocent"])
        assert "its worker process died (exit code 3)" in died
        assert "'innocent' on backend 'pool' is lost: its worker process was stopped" in stopped
        assert "(exit code 3); it is not run again" in stopped
    assert recorder.states["innocent"] == ["FAILED"]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_pool_is_replaced_each_time_when_workers_die_again_and_again(kind: str) -> None:
    async with LocalExecutionBackend(make_pool(kind), "pool") as backend:
        recorder = Recorder(backend)
        bodies = [exit_with_3, exit_with_3, os.getpid, exit_with_3, exit_with_3, os.getpid]
        await backend.submit_tasks([function_task(f"task.{n}", b) for n, b in enumerate(bodies)])
        errors = await errors_of(recorder, ["task.0", "task.1", "task.3", "task.4"])
        assert all("exit code 3" in error for error in errors)
        assert await recorder.result_of("task.2") != await recorder.result_of("task.5")


@pytest.mark.parametrize("kind", KINDS)
async def test_tasks_run_when_the_worker_dies_that_was_to_read_their_large_arguments(
    kind: str, door: Door
) -> None:
    async with LocalExecutionBackend(make_pool(kind), "pool") as backend:
        recorder = Recorder(backend)
        large = [function_task(f"task.{n}", len, bytes(2_000_000 + n)) for n in range(4)]
        await backend.submit_tasks([function_task("dies", DyingDoor(door)), *large])
        await door.reached()
        door.open()
        await errors_of(recorder, ["dies"])
        for number in range(4):
            assert await recorder.result_of(f"task.{number}") == 2_000_000 + number


async def test_the_next_task_runs_when_a_worker_dies_idle() -> None:
    async with LocalExecutionBackend(make_pool("processes"), "pool") as backend:
        recorder = Recorder(backend)
        await backend.submit_tasks([function_task("first", os.getpid)])
        worker = await recorder.result_of("first")
        manager = backend.executor._executor_manager_thread  # type: ignore[attr-defined]
        os.kill(worker, signal.SIGKILL)
        await asyncio.to_thread(manager.join, GUARD_S)
        await backend.submit_tasks([function_task("second", os.getpid)])
        assert await recorder.result_of("second") != worker


COUNT = 0


def count_from(number: int) -> None:
    global COUNT
    COUNT = number


def counted() -> int:
    return COUNT


async def test_the_new_pool_is_like_the_old_one_when_that_broke() -> None:
    options: dict[str, Any] = {"initializer": count_from, "initargs": (7,)}
    pool: Any = ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), **options)
    async with LocalExecutionBackend(pool) as backend:
        recorder = Recorder(backend)
        await backend.submit_tasks([function_task("dies", exit_with_3)])
        await errors_of(recorder, ["dies"])
        await backend.submit_tasks([function_task("next", counted)])
        assert await recorder.result_of("next") == 7
        new: Any = backend.executor
        assert new is not pool
        assert (new._max_workers, new._mp_context) == (2, pool._mp_context)


async def test_the_reusable_executor_is_got_again_when_it_broke() -> None:
    loky = pytest.importorskip("loky", reason="loky is not installed")
    options = {"initializer": count_from, "initargs": (7,), "timeout": 60}
    pool = loky.get_reusable_executor(1, **options)
    async with LocalExecutionBackend(pool) as backend:
        recorder = Recorder(backend)
        await backend.submit_tasks([function_task("dies", exit_with_3)])
        await errors_of(recorder, ["dies"])
        await backend.submit_tasks([function_task("next", counted)])
        assert await recorder.result_of("next") == 7
        assert backend.executor is not pool
        assert type(backend.executor) is type(pool)
        assert backend.executor._timeout == 60  # type: ignore[attr-defined]


def fail_unless(path: str) -> None:
    with open(f"{path}.tries", "a") as file:
        file.write("x")
    if not os.path.exists(path):
        os._exit(9)


async def test_all_that_waits_fails_when_no_worker_can_be_set_up(tmp_path: Path) -> None:
    switch = tmp_path / "switch"
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(1, context, initializer=fail_unless, initargs=(str(switch),))
    async with LocalExecutionBackend(pool, "pool") as backend:
        recorder = Recorder(backend)
        uids = [f"task.{n}" for n in range(5)]
        await backend.submit_tasks([function_task(uid, abs, -1) for uid in uids])
        for error in await errors_of(recorder, uids):
            assert "'abs' on backend 'pool' cannot begin: a worker process died" in error
            assert "(exit code 9), and that 3 times in a row" in error
            assert "initializer" in error
        assert (tmp_path / "switch.tries").read_text() == "xxx"
        switch.touch()
        await backend.submit_tasks([function_task("next", abs, -1)])
        assert await recorder.result_of("next") == 1


async def test_what_waits_fails_when_no_other_pool_can_be_made() -> None:
    async with LocalExecutionBackend(make_pool("processes"), "pool") as backend:

        def refuse() -> Any:
            raise OSError("no more files")

        backend._pool._remake = refuse
        recorder = Recorder(backend)
        await backend.submit_tasks(
            [function_task("dies", exit_with_3), function_task("waits", abs, -1)]
        )
        _, error = await errors_of(recorder, ["dies", "waits"])
        assert "another pool cannot be made: OSError: no more files" in error


@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_tasks_never_run_when_their_pool_breaks(
    kind: str, door: Door, tmp_path: Path
) -> None:
    async with LocalExecutionBackend(make_pool(kind), "pool") as backend:
        recorder = Recorder(backend)
        await backend.submit_tasks(
            [
                function_task("dies", DyingDoor(door)),
                *[function_task(f"task.{n}", note, str(tmp_path), n) for n in range(20)],
            ]
        )
        await door.reached()
        for number in range(0, 20, 2):
            assert await backend.cancel_task(f"task.{number}")
        door.open()
        await errors_of(recorder, ["dies"])
        for number in range(20):
            await recorder.end_of(f"task.{number}")
            end = "DONE" if number % 2 else "CANCELED"
            assert recorder.states[f"task.{number}"] == [end]
            assert (tmp_path / str(number)).exists() is bool(number % 2)
    assert not backend.late


async def hold_recovery(backend: LocalExecutionBackend, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the recovery of the backend wait; return what tells of it, and what lets it go on."""
    waits, goes_on = asyncio.Event(), asyncio.Event()
    replace = backend._pool._replace

    async def held() -> None:
        waits.set()
        await goes_on.wait()
        await replace()

    monkeypatch.setattr(backend._pool, "_replace", held)
    return waits, goes_on


async def test_tasks_come_and_go_when_the_pool_is_being_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with LocalExecutionBackend(make_pool("processes"), "pool") as backend:
        recorder = Recorder(backend)
        waits, goes_on = await hold_recovery(backend, monkeypatch)
        await backend.submit_tasks([function_task("dies", exit_with_3)])
        await waits.wait()
        tasks = [function_task(f"task.{n}", note, str(tmp_path), n) for n in range(4)]
        await backend.submit_tasks(tasks)
        assert await backend.cancel_task("task.1")
        assert not has_begun(backend, "task.2")
        goes_on.set()
        assert [await recorder.result_of(f"task.{n}") for n in (0, 2, 3)] == [0, 2, 3]
        assert recorder.states["task.1"] == ["CANCELED"]
        await errors_of(recorder, ["dies"])


async def test_everything_ends_when_shut_down_while_the_pool_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backend = await LocalExecutionBackend(make_pool("processes"), "pool")
    recorder = Recorder(backend)
    waits, goes_on = await hold_recovery(backend, monkeypatch)
    tasks = [function_task(f"task.{n}", note, str(tmp_path), n) for n in range(50)]
    await backend.submit_tasks([function_task("dies", exit_with_3), *tasks])
    await waits.wait()
    closing = asyncio.ensure_future(backend.shutdown())
    await recorder.end_of("task.49")
    assert not closing.done()
    goes_on.set()
    await asyncio.wait_for(closing, GUARD_S)
    assert {recorder.states[f"task.{n}"][-1] for n in range(50)} == {"CANCELED"}
    assert list(tmp_path.iterdir()) == []
    assert backend.state() == "SHUTDOWN"
