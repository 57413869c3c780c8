"""What the Dask backend is told: descriptions of tasks, and what cannot be sent to a worker."""

import asyncio
import os
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from dask_support import engine, named
from engine_support import identity, launched
from process_support import say

# --- what cannot be sent ------------------------------------------------------------------------


async def test_only_that_task_fails_when_something_cannot_be_pickled(dask_client):
    lock = threading.Lock()

    def make_lock() -> Any:
        return threading.Lock()

    async with engine(dask_client) as flow:
        take = flow.function_task(named("take", lambda *args: 1))
        cases = {
            r"'take' \(.*\): its argument 'first', of type generator": take(n for n in ()),
            r"'take' \(.*\): its argument 'data', of type list": take(1, data=[lock]),
            r"its function, of type function": flow.function_task(lambda: lock)(),
            r"'make_lock' \(.*\): its result of type lock cannot": flow.function_task(make_lock)(),
        }
        good = take(1)
        for message, future in cases.items():
            with pytest.raises(pickle.PicklingError, match=message):
                await future
        assert await good == 1


@pytest.mark.parametrize("what", ["exit", "stop", "error", "arguments"])
async def test_worker_lives_when_a_body_raises_what_cannot_pass(dask_client, what):
    def fail(what: Any) -> None:
        if what == "exit":
            sys.exit(3)
        if what == "stop":
            raise StopIteration("odd")
        error = ValueError("odd")
        error.lock = threading.Lock()
        raise error

    said = {"exit": "SystemExit: 3", "stop": "StopIteration: odd", "error": "ValueError: odd"}
    async with engine(dask_client) as flow:
        argument = Unreadable() if what == "arguments" else what
        if what == "arguments":
            message = r"'fail' \(.*\): .*cannot be unpickled.*: RuntimeError: not to be read"
        else:
            message = rf"'fail' \(.*\) raised {said[what]}"
        with pytest.raises(RuntimeError, match=message):
            await flow.function_task(fail)(argument)
        assert await flow.function_task(identity)(1) == 1


async def test_task_fails_as_it_should_when_its_traceback_is_deep(dask_client):
    def recurse() -> None:
        recurse()

    async with engine(dask_client) as flow:
        with pytest.raises(RecursionError, match="maximum recursion depth") as caught:
            await flow.function_task(recurse)()
        assert 25 < len(caught.traceback) < 100
        assert await flow.function_task(identity)(1) == 1


async def test_error_keeps_its_type_when_its_arguments_alone_do_not_make_it(dask_client):
    class PairError(Exception):
        def __init__(self, first: int, second: int) -> None:
            super().__init__(f"{first} and {second}")
            self.pair = first, second

    def fail() -> None:
        raise PairError(1, 2)

    async with engine(dask_client) as flow:
        with pytest.raises(PairError, match=r"^1 and 2$") as caught:
            await flow.function_task(fail)()
        assert caught.value.pair == (1, 2)
        assert caught.traceback[-1].name == "fail"


async def test_task_fails_when_its_error_has_no_text(dask_client):
    class MuteError(Exception):
        def __str__(self) -> str:
            raise ValueError("mute")

    def fail() -> None:
        raise MuteError

    async with engine(dask_client) as flow:
        with pytest.raises(RuntimeError, match=r"'fail' \(.*\) raised MuteError"):
            await flow.function_task(fail)()


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
        ({"retries": 2**64}, ValueError, "'retries' .* must be 0 or more, to 2"),
        ({"priority": 2**64}, ValueError, "'priority' .* must lie within 2"),
        ({"priority": float("nan")}, ValueError, "'priority' .* must lie within 2"),
        ({"resources": {"token": "1"}}, ValueError, "'resources' .*, not 'token' to '1'"),
        ({"resources": {"token": -1}}, ValueError, "'resources' .* to -1"),
        ({"resources": {7: 1}}, ValueError, "'resources' .* not 7 to 1"),
        ({"workers": []}, ValueError, "'workers' .* names no worker"),
        ({"workers": "bad:address:8"}, RuntimeError, "no worker is one of workers="),
        ({"key": "\ud800"}, ValueError, "Dask cannot take .* as a key"),
        ({"resources": ["token"]}, TypeError, "'resources' .* must be Mapping, not list"),
        ({"allow_other_workers": True}, ValueError, "needs 'workers'"),
        ({"resources": {"token": 2}}, RuntimeError, "no worker has resources=.*token.*: 1"),
        ({"resources": {"GPU": 1}}, RuntimeError, "no worker has resources=.*GPU"),
        ({"workers": "far-away"}, RuntimeError, r"no worker is one of workers=\['far-away'\]"),
        ({"workers": [0, 7], "resources": {"token": 9}}, RuntimeError, "no worker has resources"),
    ],
)
async def test_error_names_backend_task_and_key_when_it_is_submitted(
    dask_client, description, error, message
):
    async with engine(dask_client) as flow:
        task = flow.function_task(identity)
        bad, good = task(1, task_description=description), task(2)
        with pytest.raises(error, match=rf"backend 'dask': task 'identity' \(.*{message}"):
            await bad
        assert await good == 2


async def test_task_runs_where_it_may_when_workers_are_named(dask_client):
    workers = {w["name"]: a for a, w in dask_client.scheduler_info()["workers"].items()}

    def where() -> Any:
        from distributed import get_worker

        return get_worker().name

    async with engine(dask_client) as flow:
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


async def test_resource_is_never_shared_when_tasks_ask_for_it(dask_client, tmp_path):
    async def use(folder: Path) -> None:
        own = folder / f"{os.getpid()}"
        own.mkdir()  # fails if another one uses it
        await asyncio.sleep(0.005)
        own.rmdir()

    async with engine(dask_client) as flow:
        task = flow.function_task(use)
        description = {"resources": {"token": 1}}
        await asyncio.gather(*[task(tmp_path, task_description=description) for _ in range(8)])


async def test_task_with_higher_priority_is_first_when_all_wait(dask_client, line):
    path = line.path

    def hold(key: Path) -> None:
        say(path, "held")
        key.read_text()

    def count_notes(dask_worker: Any) -> int:
        return sum(str(key).startswith("note") for key in list(dask_worker.state.tasks))

    async with engine(dask_client) as flow:
        key = Path(path).with_name("key")
        os.mkfifo(key)
        held = flow.function_task(hold)(key, task_description={"workers": [0]})
        assert await line.read() == "held"
        note = flow.function_task(named("note", lambda n: say(path, str(n))))
        notes = [note(n, task_description={"priority": n, "workers": [0]}) for n in (1, 3, 2)]
        while sum((await asyncio.to_thread(dask_client.run, count_notes)).values()) < 3:
            pass  # the scheduler knows of them before the worker does
        await asyncio.to_thread(key.write_text, "go")
        await asyncio.gather(held, *notes)
        assert [await line.read() for _ in notes] == ["3", "2", "1"]


async def test_what_has_waited_is_before_what_was_called_earlier_but_for_priorities(
    dask_client, line
):
    path = line.path

    def hold(key: Path) -> None:
        say(path, "held")
        key.read_text()

    def count_notes(dask_worker: Any) -> int:
        return sum(str(key).startswith("note") for key in list(dask_worker.state.tasks))

    async with engine(dask_client) as flow:
        key = Path(path).with_name("key")
        os.mkfifo(key)
        there = {"workers": [0]}
        held = flow.function_task(hold)(key, task_description=there)
        assert await line.read() == "held"
        note = flow.function_task(named("note", lambda text, *_: say(path, text)))
        early, late = asyncio.Future(), asyncio.Future()
        notes = [
            note("called", task_description=there),
            note("early", early, task_description=there),
            note("late", late, task_description=there),
            note("late too", late, task_description=there),
            note("urgent", task_description={"priority": 1, **there}),
        ]
        for future in (early, late):
            await asyncio.sleep(0)
            future.set_result(None)
            await asyncio.sleep(0)
        while sum((await asyncio.to_thread(dask_client.run, count_notes)).values()) < 5:
            pass  # the scheduler knows of them before the worker does
        await asyncio.to_thread(key.write_text, "go")
        await asyncio.gather(held, *notes)
        order = [await line.read() for _ in notes]
        assert order[0] == "urgent"
        assert set(order[1:3]) == {"late", "late too"}
        assert order[3:] == ["early", "called"]


async def test_body_is_run_again_when_it_may_be_retried(dask_client, tmp_path):
    def fail_once(marker: Path) -> str:
        if not marker.exists():
            marker.touch()
            raise OSError("once")
        return "again"

    async with engine(dask_client) as flow:
        task = flow.function_task(fail_once)
        assert await task(tmp_path / "a", task_description={"retries": 1}) == "again"
        with pytest.raises(OSError, match="once"):
            await task(tmp_path / "b", task_description={"retries": 0})


@pytest.mark.parametrize("description", [{"pure": True}, {"key": "mine"}], ids=["pure", "key"])
async def test_tasks_share_one_run_when_their_keys_are_the_same(dask_client, description):
    def token(_seed: int) -> bytes:
        return os.urandom(8)

    async with engine(dask_client) as flow:
        task = flow.function_task(token)
        first, cancelled, second = (task(1, task_description=description) for _ in range(3))
        other = task(1)
        await launched()
        cancelled.cancel()
        assert await first == await second != await other
        assert await task(1, task_description=description) == await first
