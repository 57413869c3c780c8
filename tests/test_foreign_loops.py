"""What an async body shares with other event loops, and asyncio as others leave it."""

import asyncio
import sys
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from engine_support import GUARD_S, ForeignBackend, reached

from dftracer.asyncflow import LocalExecutionBackend, RuntimeExecutionBackend, WorkflowEngine
from dftracer.utils import Runtime, TaskTimeoutError

BACKENDS: dict[str, Callable[[], Any]] = {
    "runtime": RuntimeExecutionBackend,
    "threads": lambda: LocalExecutionBackend(ThreadPoolExecutor(2)),
}


@pytest.fixture(params=BACKENDS)
def make(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Return what makes a backend whose workers are threads of this process."""
    if request.param == "threads" and sys.version_info < (3, 11):
        pytest.skip("asyncio.run takes no loop on CPython 3.10")
    return BACKENDS[request.param]


class Announced(asyncio.Event):
    """An event that tells when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_awaited = threading.Event()

    async def wait(self) -> Any:
        waiting = asyncio.ensure_future(super().wait())
        await asyncio.sleep(0)  # it is in the list of those who wait
        asyncio.get_running_loop().call_later(0.01, self.is_awaited.set)  # when the loop has slept
        return await waiting


async def test_a_body_goes_on_when_an_event_is_set_in_another_loop(make: Any) -> None:
    async with await WorkflowEngine.create(make()) as flow:
        for _ in range(10):
            event = Announced()
            waiting = flow.function_task(event.wait)()
            await reached(event.is_awaited)
            event.set()
            assert await asyncio.wait_for(waiting, GUARD_S) is True


async def test_a_body_goes_on_when_a_queue_is_filled_in_another_loop(make: Any) -> None:
    async with await WorkflowEngine.create(make()) as flow:
        requests: asyncio.Queue[Any] = asyncio.Queue()
        answers: asyncio.Queue[Any] = asyncio.Queue()

        async def serve() -> str:
            while (request := await requests.get()) is not None:
                flow.loop.call_soon_threadsafe(answers.put_nowait, request * 2)
            return "served"

        service = flow.function_task(serve)()
        for number in range(200):
            requests.put_nowait(number)
            assert await asyncio.wait_for(answers.get(), GUARD_S) == 2 * number
        requests.put_nowait(None)
        assert await asyncio.wait_for(service, GUARD_S) == "served"


async def test_a_body_fails_when_it_awaits_a_future_of_another_loop(make: Any) -> None:
    async with await WorkflowEngine.create(make()) as flow:
        future = asyncio.get_running_loop().create_future()

        async def body() -> Any:
            return await future

        with pytest.raises(RuntimeError, match="attached to a different loop"):
            await asyncio.wait_for(flow.function_task(body)(), GUARD_S)


async def test_a_body_fails_when_an_event_has_been_awaited_in_another_loop(make: Any) -> None:
    async with await WorkflowEngine.create(make()) as flow:
        event = asyncio.Event()
        here = asyncio.ensure_future(event.wait())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="different event loop"):
            await asyncio.wait_for(flow.function_task(event.wait)(), GUARD_S)
        event.set()
        await here


# --- in the engine's own loop -------------------------------------------------------------------


async def test_bodies_share_what_is_bound_to_the_loop_when_they_run_in_the_engines() -> None:
    async with await WorkflowEngine.create() as flow:
        lock, future = asyncio.Lock(), asyncio.get_running_loop().create_future()
        order: list[int] = []
        all_there = asyncio.Event()

        @flow.function_task(loop="engine")
        async def body(number: int) -> int:
            assert asyncio.get_running_loop() is flow.loop
            async with lock:
                order.append(number)
                if len(order) == 3:
                    all_there.set()
            return number + int(await future)

        @flow.function_task
        def double(value: int) -> int:
            return 2 * value

        tasks = [double(body(number)) for number in range(3)]
        await asyncio.wait_for(all_there.wait(), GUARD_S)
        future.set_result(10)
        assert await asyncio.gather(*tasks) == [20, 22, 24]
        assert order == [0, 1, 2]


async def test_a_task_in_the_engines_loop_fails_is_tried_again_and_runs_out_of_time() -> None:
    async with await WorkflowEngine.create() as flow:
        tries: list[int] = []

        @flow.function_task(loop="engine", retries=1, backoff=0)
        async def falls() -> str:
            tries.append(1)
            if len(tries) == 1:
                raise ValueError("once")
            return "well"

        @flow.function_task(loop="engine", timeout=0.01)
        async def endless() -> None:
            await asyncio.get_running_loop().create_future()

        assert await falls() == "well"
        with pytest.raises(TaskTimeoutError):
            await endless()
        assert endless.__name__ == "endless"


async def test_a_task_in_the_engines_loop_is_no_business_of_its_backend_when_cancelled() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend) as flow:
        was_cancelled: list[bool] = []
        began = asyncio.Event()

        @flow.function_task(loop="engine")
        async def endless() -> None:
            began.set()
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                was_cancelled.append(True)
                raise

        future = endless()
        await asyncio.wait_for(began.wait(), GUARD_S)
        assert future.state == "RUNNING"
        flow.task_callbacks({"uid": future.uid, "return_value": 1}, "DONE")
        assert not future.done()
        assert future.cancel()
        await asyncio.sleep(0)
        assert future.state == "CANCELED"
    assert was_cancelled == [True]
    assert (backend.tasks, backend.cancelled) == ({}, [])


async def test_a_task_in_the_engines_loop_does_not_run_when_the_run_is_dry() -> None:
    async with await WorkflowEngine.create(dry_run=True) as flow:

        @flow.function_task(loop="engine")
        async def body() -> None:
            raise AssertionError("it ran")

        assert await body() == "Dummy Output"


async def test_the_option_loop_is_refused_when_it_makes_no_sense() -> None:
    async with await WorkflowEngine.create() as flow:
        decorate: Any = flow.function_task
        with pytest.raises(TypeError, match="'<lambda>' is none"):
            decorate(lambda: 1, loop="engine")
        with pytest.raises(ValueError, match="must be 'engine' or None, not 'worker'"):
            decorate(loop="worker")
        with pytest.raises(ValueError, match="runs on no backend"):
            decorate(loop="engine", backend="default")
        other: Any = flow.block
        with pytest.raises(TypeError, match="has no option 'loop'"):
            other(loop="engine")


# --- event loops that plain bodies run ----------------------------------------------------------


def plain_workers(runtime: Runtime) -> int:
    return sum(worker["lane"] == "python" for worker in runtime.get_progress()["workers"])


@pytest.mark.parametrize("count", [1, 600], ids=["one", "more than workers there may be"])
@pytest.mark.parametrize("how", ["submit", "submit_io", "run_in_executor"])
def test_tasks_run_when_a_plain_body_awaits_them_in_a_loop_of_its_own(how: str, count: int) -> None:
    with Runtime(threads=1, io_threads=1, python_threads=1) as runtime:

        async def wait_for(number: int) -> int:
            return await runtime.submit(abs, number)

        async def gather() -> list[int]:
            return await asyncio.gather(*map(wait_for, range(count)))

        def body() -> list[int]:
            return asyncio.run(gather())

        async def in_executor() -> list[int]:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(runtime.executor(), body)

        if how == "run_in_executor":
            assert asyncio.run(in_executor()) == list(range(count))
        else:
            assert getattr(runtime, how)(body).get(GUARD_S) == list(range(count))
        # Nobody is left that stands in for a body.
        guard = time.monotonic() + GUARD_S
        while plain_workers(runtime) > 1:
            assert time.monotonic() < guard
            time.sleep(0.001)


def test_a_body_goes_on_when_its_own_loop_gives_up_waiting() -> None:
    gate = threading.Event()
    with Runtime(threads=1, io_threads=1, python_threads=1) as runtime:

        async def give_up() -> str:
            waiting = asyncio.ensure_future(wait())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            return "cancelled" if waiting.cancelled() else "not cancelled"

        async def wait() -> bool:
            return await runtime.submit(gate.wait, GUARD_S)

        assert runtime.submit(lambda: asyncio.run(give_up())).get(GUARD_S) == "cancelled"
        gate.set()


# --- asyncio and threads that others have replaced ----------------------------------------------


def test_an_engine_is_refused_when_nest_asyncio_came_after_it(
    run_script: Callable[..., str],
) -> None:
    pytest.importorskip("nest_asyncio2")
    script = """
        import asyncio, nest_asyncio2
        from dftracer.asyncflow import WorkflowEngine

        async def main():
            async with await WorkflowEngine.create() as flow:
                task = flow.function_task(lambda x: x + 1)
                print(await task([task(1)][0]))

        nest_asyncio2.apply()
        try:
            asyncio.run(main())
        except RuntimeError as error:
            assert "before importing dftracer.asyncflow" in str(error), error
            print(3)
    """
    assert run_script(script, stderr=None) == "3\n"


def test_an_engine_works_when_nest_asyncio_came_before_it(run_script: Callable[..., str]) -> None:
    pytest.importorskip("nest_asyncio2")
    script = """
        import asyncio, nest_asyncio2
        nest_asyncio2.apply()
        from dftracer.asyncflow import WorkflowEngine

        async def main():
            async with await WorkflowEngine.create() as flow:
                task = flow.function_task(lambda x: x + 1)
                print(await task(task(1)))

        asyncio.run(main())
    """
    assert run_script(script, stderr=None) == "3\n"


@pytest.mark.parametrize(
    ("module", "ask"),
    [("gevent.monkey", "is_module_patched"), ("eventlet.patcher", "is_monkey_patched")],
)
async def test_an_engine_is_refused_when_threads_are_replaced(
    module: str, ask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    patcher: Any = types.ModuleType(module)
    monkeypatch.setitem(sys.modules, module, patcher)
    setattr(patcher, ask, lambda name: False)
    async with await WorkflowEngine.create():
        pass
    setattr(patcher, ask, lambda name: name == "threading")
    with pytest.raises(RuntimeError, match=f"{module.partition('.')[0]} has replaced the threads"):
        await WorkflowEngine.create()
