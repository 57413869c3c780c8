"""An engine that nobody holds goes, with its threads and descriptors, when its tasks have ended."""

import asyncio
import gc
import os
import signal
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from dftracer.asyncflow import LocalExecutionBackend, WorkflowEngine
from dftracer.asyncflow.engine.signals.watcher import SIGNALS
from dftracer.utils import Runtime

GUARD_S = 30
Use = Callable[[WorkflowEngine], Awaitable[object]]


async def use_nothing(flow: WorkflowEngine) -> object:
    return flow.uid


async def use_functions(flow: WorkflowEngine) -> object:
    @flow.function_task
    def one(*_: object) -> int:
        return 1

    return await asyncio.gather(*(one(one()) for _ in range(20)))


async def use_coroutine_functions(flow: WorkflowEngine) -> object:
    @flow.function_task
    async def one() -> int:
        await asyncio.sleep(0)
        return 1

    return await one()


async def use_options(flow: WorkflowEngine) -> object:
    @flow.function_task(retries=1, timeout=GUARD_S)
    def one() -> int:
        return 1

    return await one(task_description={"timeout": GUARD_S})


async def use_programs(flow: WorkflowEngine) -> object:
    @flow.executable_task
    def program() -> str:
        return "echo 1"

    return await program()


async def use_blocks(flow: WorkflowEngine) -> object:
    @flow.function_task
    def one() -> int:
        return 1

    @flow.block
    async def block() -> int:
        return await one()

    return await block()


async def use_failures(flow: WorkflowEngine) -> object:
    @flow.function_task
    def fail() -> None:
        raise ValueError

    return await asyncio.gather(fail(), return_exceptions=True)


async def use_cancellation(flow: WorkflowEngine) -> object:
    @flow.function_task
    async def wait() -> None:
        await asyncio.sleep(GUARD_S)

    waiting = wait()
    await asyncio.sleep(0.01)
    waiting.cancel()
    return await asyncio.gather(waiting, return_exceptions=True)


USES: list[Use] = [
    use_nothing,
    use_functions,
    use_coroutine_functions,
    use_options,
    use_programs,
    use_blocks,
    use_failures,
    use_cancellation,
]


async def default_engine() -> WorkflowEngine:
    return await WorkflowEngine.create()


async def engine_on_threads() -> WorkflowEngine:
    return await WorkflowEngine.create(LocalExecutionBackend(ThreadPoolExecutor(1)))


async def dry_engine() -> WorkflowEngine:
    return await WorkflowEngine.create(dry_run=True)


def resources() -> tuple[int, int]:
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


async def gone(references: list[weakref.ref[Any]], before: tuple[int, int]) -> None:
    """Wait until these have gone, and what there is is no more than before."""
    for _ in range(int(GUARD_S / 0.01)):
        gc.collect()
        threads, descriptors = resources()
        alive = [each for each in references if each() is not None]
        if not alive and threads <= before[0] and descriptors <= before[1]:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"{len(alive)} of {len(references)} alive, {resources()} of {before}")


@asynccontextmanager
async def settled() -> AsyncIterator[tuple[int, int]]:
    """Give what there is with an engine in the loop, which opens what the loop's engines share."""
    flow = await WorkflowEngine.create()
    await use_programs(flow)
    await flow.shutdown()
    async with await WorkflowEngine.create(dry_run=True):
        yield resources()


PAIRS = [
    (make, use)
    for make in (default_engine, engine_on_threads, dry_engine)
    for use in USES
    # Elsewhere a body cannot be stopped.
    if use is not use_cancellation or make is default_engine
]


@pytest.mark.parametrize(("make", "use"), PAIRS)
async def test_an_engine_goes_when_nobody_holds_it(
    make: Callable[[], Awaitable[WorkflowEngine]], use: Use
) -> None:
    async with settled() as before:

        async def cell() -> weakref.ref[Any]:
            flow = await make()
            await use(flow)
            return weakref.ref(flow)

        await gone([await cell() for _ in range(3)], before)


async def test_an_engine_goes_when_nobody_holds_it_on_any_loop(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    keep = await default_engine()
    await use_functions(keep)
    before = resources()

    async def cell() -> weakref.ref[Any]:
        flow = await default_engine()
        await use_functions(flow)
        return weakref.ref(flow)

    for _ in range(3):  # descriptors get the numbers of those that were closed
        await gone([await cell() for _ in range(5)], before)
    assert await use_functions(keep) == [1] * 20
    await keep.shutdown()


@pytest.mark.parametrize("kind", ["call", "options", "program", "threads"])
async def test_an_engine_that_nobody_holds_goes_on_until_its_tasks_have_ended(
    kind: str, tmp_path: Path
) -> None:
    async with settled() as before:
        release, ended, path = threading.Event(), threading.Event(), tmp_path / "fifo"
        os.mkfifo(path)
        results = []

        async def cell() -> weakref.ref[Any]:
            flow = await (engine_on_threads if kind == "threads" else default_engine)()

            @flow.function_task(timeout=GUARD_S if kind == "options" else None)
            def wait() -> str:
                release.wait(GUARD_S)
                return "done"

            @flow.executable_task
            def read() -> str:
                return f"cat {path}"

            @flow.block
            async def block() -> None:
                results.append(await (read() if kind == "program" else wait()))
                ended.set()

            block()
            await asyncio.sleep(0.05)
            return weakref.ref(flow)

        reference = await cell()
        gc.collect()
        await asyncio.sleep(0)
        gc.collect()
        assert reference() is not None
        release.set()
        if kind == "program":
            await asyncio.to_thread(path.write_text, "done")
        await asyncio.to_thread(ended.wait, GUARD_S)
        assert results == ["done"]
        loop = asyncio.get_running_loop()
        await loop.shutdown_default_executor()
        loop._executor_shutdown_called = False  # type: ignore[attr-defined]
        await gone([reference], before)


@pytest.mark.parametrize("moment", ["before its calls are launched", "while they run"])
def test_an_engine_goes_with_its_loop_when_that_is_closed(moment: str) -> None:
    before = resources()
    release = threading.Event()
    begun = threading.Event()

    def wait() -> None:
        begun.set()
        release.wait(GUARD_S)

    def make() -> weakref.ref[Any]:
        loop = asyncio.new_event_loop()

        async def main() -> weakref.ref[Any]:
            flow = await default_engine()
            task = flow.function_task(wait)
            for _ in range(100):
                task()
            if moment == "while they run":
                await asyncio.to_thread(begun.wait, GUARD_S)
            return weakref.ref(flow)

        reference = loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        return reference

    reference = make()
    release.set()
    loop_itself = 3  # descriptors
    asyncio.run(gone([reference], (before[0], before[1] + loop_itself)))


async def test_signals_are_handled_as_before_when_the_last_engine_of_a_loop_has_gone() -> None:
    signal.set_wakeup_fd(-1)  # of a loop that another test has moved to a thread
    before = [signal.getsignal(number) for number in SIGNALS]

    async def cell() -> None:
        await default_engine()
        assert [signal.getsignal(number) for number in SIGNALS] != before

    await cell()
    for _ in range(int(GUARD_S / 0.01)):
        gc.collect()
        await asyncio.sleep(0.01)
        if [signal.getsignal(number) for number in SIGNALS] == before:
            break
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_signals_are_handled_as_before_when_a_loop_was_closed_with_an_engine() -> None:
    signal.set_wakeup_fd(-1)  # of a loop that another test has moved to a thread
    before = [signal.getsignal(number) for number in SIGNALS]
    loop = asyncio.new_event_loop()
    loop.run_until_complete(default_engine())
    loop.close()
    gc.collect()
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


async def test_a_loop_keeps_nothing_of_the_context_in_which_an_engine_was_made() -> None:
    class Big: ...

    variable: ContextVar[Big] = ContextVar("variable")
    flows = []

    async def cell() -> weakref.ref[Any]:
        big = Big()
        variable.set(big)
        flows.append(await default_engine())
        await use_functions(flows[0])
        return weakref.ref(big)

    reference = await asyncio.create_task(cell())
    await gone([reference], (resources()[0], resources()[1]))
    await flows[0].shutdown()


async def test_runtimes_go_when_nobody_holds_them() -> None:
    async with settled() as before:

        async def body() -> int:
            await asyncio.sleep(0)
            return 1

        def use() -> weakref.ref[Any]:
            runtime = Runtime(threads=1, io_threads=1, python_threads=2)
            runtime.submit(int).get()
            runtime.submit(body).get()
            runtime.submit_io(int).get()
            runtime.run_process(["true"]).get()
            runtime.hash_files([__file__]).get()
            runtime.set_timeout("1h")
            list(runtime.map(str, range(10)))
            return weakref.ref(runtime)

        await gone([use() for _ in range(20)], before)
