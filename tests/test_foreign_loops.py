"""What an async body shares with other event loops, and asyncio as others leave it."""

import asyncio
import sys
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from engine_support import GUARD_S, reached

from dftracer.asyncflow import LocalExecutionBackend, RuntimeExecutionBackend, WorkflowEngine

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
