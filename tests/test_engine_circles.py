"""Blocks that wait for each other in a circle: an error that names it, or a line in the log."""

import asyncio
import contextlib
import logging
import random
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from conftest import NewLoop
from engine_support import identity, launched

from dftracer.asyncflow import CircularWaitError, DependencyFailureError, WorkflowEngine
from dftracer.asyncflow.engine.waiting import cycles as circles

Wait = Callable[[asyncio.Future[Any]], Coroutine[Any, Any, Any]]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have engines look after a moment."""
    monkeypatch.setattr(circles, "_INTERVAL_S", 0.02)
    monkeypatch.setattr(circles, "_SHARE", 1)


async def plainly(future: asyncio.Future[Any]) -> Any:
    return await future


async def with_gather(future: asyncio.Future[Any]) -> Any:
    return await asyncio.gather(future, asyncio.sleep(0))


async def with_gather_of_errors(future: asyncio.Future[Any]) -> Any:
    async def fail() -> None:
        raise ValueError

    values = await asyncio.gather(future, fail(), return_exceptions=True)
    raise values[0]


async def with_wait(future: asyncio.Future[Any]) -> Any:
    [done], _ = await asyncio.wait([future])
    return done.result()


async def with_wait_for_one(future: asyncio.Future[Any]) -> Any:
    other = asyncio.ensure_future(plainly(future))
    done, _ = await asyncio.wait([other, future], return_when=asyncio.FIRST_COMPLETED)
    await other
    return done.pop().result()


async def with_wait_for(future: asyncio.Future[Any]) -> Any:
    return await asyncio.wait_for(future, None)


async def with_shield(future: asyncio.Future[Any]) -> Any:
    return await asyncio.shield(future)


async def with_a_task(future: asyncio.Future[Any]) -> Any:
    return await asyncio.create_task(with_shield(future))


async def with_all(future: asyncio.Future[Any]) -> Any:
    return await asyncio.gather(asyncio.create_task(with_wait(future)), asyncio.shield(future))


async def with_as_completed(future: asyncio.Future[Any]) -> Any:
    for first in asyncio.as_completed([future, asyncio.sleep(0)]):
        await first


async def with_a_generator(future: asyncio.Future[Any]) -> Any:
    async def generate() -> AsyncIterator[Any]:
        yield await future

    return [value async for value in generate()]


async def with_managers(future: asyncio.Future[Any]) -> Any:
    async with asyncio.Lock(), contextlib.AsyncExitStack():
        with contextlib.suppress(ZeroDivisionError), memoryview(b""):
            return await future


async def with_a_group(future: asyncio.Future[Any]) -> Any:
    if sys.version_info < (3, 11):
        return await future
    async with asyncio.TaskGroup() as group:
        task = group.create_task(asyncio.wait([future]))
    done, _ = await task
    return done.pop().result()


WAYS = [
    plainly,
    with_gather,
    with_gather_of_errors,
    with_wait,
    with_wait_for_one,
    with_wait_for,
    with_shield,
    with_a_task,
    with_all,
    with_as_completed,
    with_a_generator,
    with_managers,
    with_a_group,
]


def blocks_in_a_circle(flow: WorkflowEngine, *waits: Wait) -> list[asyncio.Future[Any]]:
    """Call as many blocks, each of which waits for the next in its own way, the last for the first;
    their names are letters."""
    calls: list[asyncio.Future[Any]] = []

    def block(number: int) -> asyncio.Future[Any]:
        async def body() -> Any:
            return await waits[number](calls[(number + 1) % len(calls)])

        body.__name__ = "abcdefghijklmnopqrstuvwxyz"[number]
        return flow.block(body)()

    calls += [block(number) for number in range(len(waits))]
    return calls


async def assert_in_circle(calls: list[asyncio.Future[Any]], *texts: str) -> None:
    for call in calls:
        with pytest.raises(CircularWaitError) as caught:
            await call
        for text in texts:
            assert text in str(caught.value)


@pytest.mark.parametrize("way", WAYS)
async def test_blocks_fail_when_they_wait_for_each_other(new_loop: NewLoop, way: Wait) -> None:
    async with await WorkflowEngine.create() as flow:
        calls = blocks_in_a_circle(flow, way, plainly)
        await assert_in_circle(
            calls,
            "block.000001 'a' waits for block.000002 'b'",
            "block.000002 'b' waits for block.000001 'a'",
        )
        calls = blocks_in_a_circle(flow, way, way, way)
        await assert_in_circle(calls, "'a' waits for", "'b' waits for", "'c' waits for")
        assert await flow.function_task(identity)(1) == 1
    assert not flow._scheduler.bodies


async def test_a_block_fails_when_it_waits_for_itself(new_loop: NewLoop) -> None:
    async with await WorkflowEngine.create() as flow:
        calls = blocks_in_a_circle(flow, plainly)
        await assert_in_circle(calls, "block.000001 'a' waits for itself")


async def test_a_block_fails_when_it_waits_for_a_task_that_depends_on_it(
    new_loop: NewLoop,
) -> None:
    async with await WorkflowEngine.create() as flow:
        task = flow.function_task(identity)
        calls: list[asyncio.Future[Any]] = []

        @flow.block
        async def outer() -> Any:
            calls.append(task(task([block])))
            return await calls[0]

        block = outer()
        await assert_in_circle([block], "'outer' waits for", "'identity' waits for")
        with pytest.raises(DependencyFailureError) as caught:
            await calls[0]
        assert isinstance(caught.value.root_cause, CircularWaitError)


async def test_bodies_in_the_loop_fail_when_they_and_a_block_wait_for_each_other() -> None:
    async with await WorkflowEngine.create() as flow:
        calls: list[asyncio.Future[Any]] = []

        @flow.function_task(loop="engine")
        async def here() -> None:
            await calls[1]

        @flow.executable_task
        async def program() -> str:
            await calls[2]
            return "true"

        @flow.block
        async def block() -> None:
            await calls[0]

        calls += [here(), program(), block()]
        await assert_in_circle(calls, "'here' waits for task.000002 'program'")


async def test_blocks_of_two_engines_fail_when_they_wait_for_each_other() -> None:
    async with await WorkflowEngine.create() as one, await WorkflowEngine.create() as other:
        calls: list[asyncio.Future[Any]] = []

        async def first() -> None:
            await calls[1]

        async def second() -> None:
            await calls[0]

        calls += [one.block(first)(), other.block(second)()]
        await assert_in_circle(calls, "'first'", "'second'")


async def test_who_waits_for_a_circle_gets_its_error_and_may_go_on() -> None:
    async with await WorkflowEngine.create() as flow:
        calls = blocks_in_a_circle(flow, plainly, plainly)

        @flow.block
        async def onlooker() -> str:
            try:
                await calls[0]
            except CircularWaitError:
                return "went on"
            return "no error"

        assert await onlooker() == "went on"
        await assert_in_circle(calls)


async def test_all_circles_are_found_when_there_are_several() -> None:
    async with await WorkflowEngine.create() as flow:
        pairs = [blocks_in_a_circle(flow, plainly, plainly) for _ in range(150)]
        ring = blocks_in_a_circle(flow, *[plainly] * 26)
        for pair in pairs:
            await assert_in_circle(pair)
        await assert_in_circle(ring, "... (16 more)")


async def test_a_failed_circle_is_not_tried_again() -> None:
    async with await WorkflowEngine.create() as flow:
        runs: list[int] = []

        @flow.block(retries=3, backoff=0)
        async def outer() -> None:
            runs.append(1)
            await block

        block = outer()
        await assert_in_circle([block])
    assert len(runs) == 1


# --- where it may still come right --------------------------------------------------------------


async def with_timeout_of_wait_for(future: asyncio.Future[Any]) -> Any:
    return await asyncio.wait_for(asyncio.shield(future), 3600)


async def with_timeout_of_wait(future: asyncio.Future[Any]) -> Any:
    await asyncio.wait([future], timeout=3600)
    return await future


async def with_timeout_of_as_completed(future: asyncio.Future[Any]) -> Any:
    for first in asyncio.as_completed([future], timeout=3600):
        await first


async def with_timeout(future: asyncio.Future[Any]) -> Any:
    if sys.version_info < (3, 11):
        return await with_timeout_of_wait(future)
    async with asyncio.timeout(3600):
        return await future


async def with_timeout_somewhere(future: asyncio.Future[Any]) -> Any:
    @contextlib.asynccontextmanager
    async def limited() -> AsyncIterator[None]:
        async with LimitOfSomebodyElse():
            yield

    async def generate() -> AsyncIterator[Any]:
        async with limited():
            yield await future

    return [value async for value in generate()]


async def with_something_else(future: asyncio.Future[Any]) -> Any:
    await asyncio.wait(
        [future, asyncio.get_running_loop().create_future()],
        return_when=asyncio.FIRST_COMPLETED,
    )
    return await future


class LimitOfSomebodyElse:
    """A timeout as other libraries have them: it knows the task, and maybe cancels it."""

    async def __aenter__(self) -> None:
        self.tasks = [asyncio.current_task()]

    async def __aexit__(self, *_: object) -> None:
        self.tasks.clear()


class Lines(logging.Handler):
    """What our log says, to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.changed = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.changed.set()

    async def next(self) -> str:
        while not self.lines:
            self.changed.clear()
            await self.changed.wait()
        return self.lines.pop(0)


@contextlib.contextmanager
def log_lines() -> Any:
    log, lines = logging.getLogger("dftracer.asyncflow"), Lines()
    log.addHandler(lines)
    try:
        yield lines
    finally:
        log.removeHandler(lines)


@pytest.mark.parametrize(
    "way",
    [
        with_timeout_of_wait_for,
        with_timeout_of_wait,
        with_timeout_of_as_completed,
        with_timeout,
        with_timeout_somewhere,
        with_something_else,
    ],
)
async def test_the_log_says_who_waits_when_a_circle_may_come_right(
    new_loop: NewLoop, way: Wait
) -> None:
    flow = await WorkflowEngine.create()
    with log_lines() as lines:
        calls = blocks_in_a_circle(flow, way, plainly)
        line = await lines.next()
        assert "block.000001 'a' waits for block.000002 'b'" in line
        assert "block.000002 'b' waits for block.000001 'a'" in line
        # It is not said again, but another circle is.
        more = blocks_in_a_circle(flow, way, plainly, plainly)
        assert "block.000005 'c' waits for block.000003 'a'" in await lines.next()
        assert not any(call.done() for call in calls + more)
    with contextlib.suppress(asyncio.CancelledError):
        await flow.shutdown()


@pytest.mark.parametrize("kind", ["timeout", "service"])
async def test_the_log_says_who_waits_when_the_engine_may_end_a_block(kind: str) -> None:
    flow = await WorkflowEngine.create()
    options: dict[str, Any] = {"timeout": 3600} if kind == "timeout" else {"service": True}
    with log_lines() as lines:

        @flow.block(**options)
        async def outer() -> None:
            await block

        block = outer()
        assert "'outer' waits for itself" in await lines.next()
        assert not block.done()
    await flow.shutdown()


async def test_blocks_end_well_when_something_else_ends_a_circle_that_was_logged() -> None:
    async with await WorkflowEngine.create() as flow:
        signal = asyncio.get_running_loop().create_future()

        async def with_signal(future: asyncio.Future[Any]) -> str:
            done, _ = await asyncio.wait([future, signal], return_when=asyncio.FIRST_COMPLETED)
            return str(done.pop().result())

        with log_lines() as lines:
            first, second = blocks_in_a_circle(flow, with_signal, plainly)
            assert "'a' waits for" in await lines.next()
            signal.set_result("signal")
            assert await first == await second == "signal"


def test_inner_tasks_in_a_circle_are_logged_when_no_call_is_among_them(
    run_script: Callable[..., str],
) -> None:
    # asyncio can neither end nor cancel them: cancelling goes round the circle.
    out = run_script(
        """
        import asyncio, logging, os

        from dftracer.asyncflow import WorkflowEngine
        from dftracer.asyncflow.engine.waiting import cycles as circles

        circles._INTERVAL_S = 0.02

        class Handler(logging.Handler):
            def emit(self, record):
                print(record.getMessage(), flush=True)
                os._exit(0)

        logging.getLogger("dftracer.asyncflow").addHandler(Handler())

        async def main():
            flow, tasks = await WorkflowEngine.create(), []

            async def turn(number):
                await tasks[1 - number]

            @flow.block
            async def outer():
                tasks.extend(asyncio.create_task(turn(n), name=f"inner {n}") for n in range(2))
                await tasks[0]

            await outer()

        asyncio.run(main())
        """
    )
    assert "asyncio's task 'inner 0' waits for asyncio's task 'inner 1'" in out


async def test_nothing_is_said_when_blocks_wait_for_what_will_end() -> None:
    async with await WorkflowEngine.create() as flow:
        loop = asyncio.get_running_loop()
        signal: asyncio.Future[int] = loop.create_future()
        task = flow.function_task(identity)

        @flow.block
        async def inner(value: Any) -> Any:
            return await asyncio.gather(task(value), signal)

        @flow.block
        async def outer() -> Any:
            return await asyncio.wait_for(asyncio.shield(asyncio.gather(inner(1), inner(2))), 60)

        with log_lines() as lines:
            blocks = [outer() for _ in range(20)]
            for _ in range(3):  # looks
                await looked(flow)
            signal.set_result(3)
            assert await asyncio.gather(*blocks) == [[[1, 3], [2, 3]]] * 20
            assert lines.lines == []


@pytest.mark.parametrize("seed", range(10))
async def test_no_circle_is_an_error_when_it_comes_right(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    # In each turn of the loop, so between an end and the turn in which others hear of it too.
    monkeypatch.setattr(circles, "_INTERVAL_S", 0)
    monkeypatch.setattr(circles, "_SHARE", 0)
    draw = random.Random(seed)

    async def soon(*, fails: bool = False) -> None:
        for _ in range(draw.randrange(6)):
            await asyncio.sleep(0)
        if fails:
            raise ZeroDivisionError

    with log_lines() as lines:
        async with await WorkflowEngine.create() as flow:

            @flow.block
            async def block() -> Any:
                await draw.choice(WAYS_OUT)(draw.sample(calls, 3), soon)

            calls = [block() for _ in range(50)]
            ends = await asyncio.gather(*calls, return_exceptions=True)
        assert any("wait for each other" in line for line in lines.lines)
    assert {type(end) for end in ends} <= {type(None), ZeroDivisionError}


def failing(soon: Any) -> asyncio.Task[None]:
    """Return a task whose error nobody needs to look at."""
    task: asyncio.Task[None] = asyncio.ensure_future(soon(fails=True))
    task.add_done_callback(lambda _: task.cancelled() or task.exception())
    return task


async def one_of(awaited: list[Any], soon: Any) -> None:
    await asyncio.wait(
        [*awaited, asyncio.ensure_future(soon())], return_when=asyncio.FIRST_COMPLETED
    )


async def one_fails(awaited: list[Any], soon: Any) -> None:
    await asyncio.wait([*awaited, failing(soon)], return_when=asyncio.FIRST_EXCEPTION)


async def one_of_all_fails(awaited: list[Any], soon: Any) -> None:
    await asyncio.gather(*map(asyncio.shield, awaited), failing(soon))


async def one_of_a_few_fails(awaited: list[Any], soon: Any) -> None:
    inner = asyncio.gather(asyncio.shield(awaited[0]), failing(soon))
    await asyncio.shield(asyncio.gather(asyncio.wait(awaited[1:]), inner))


async def first_of(awaited: list[Any], soon: Any) -> None:
    for first in asyncio.as_completed([*awaited, soon()]):
        with contextlib.suppress(ZeroDivisionError):
            await first
        break


WAYS_OUT = [one_of, one_fails, one_of_all_fails, one_of_a_few_fails, first_of]


async def looked(flow: WorkflowEngine) -> None:
    """Wait until an engine has looked at its bodies."""
    look, done = flow._scheduler.cycles._end_circles, asyncio.Event()

    def looking(engine: Any) -> None:
        look(engine)
        done.set()

    flow._scheduler.cycles._end_circles = looking  # type: ignore[method-assign]
    await done.wait()
    del flow._scheduler.cycles._end_circles


async def test_looks_end_when_no_body_runs() -> None:
    async with await WorkflowEngine.create() as flow:

        @flow.block
        async def block() -> None:
            await looked(flow)

        assert not flow._scheduler.cycles.is_watching
        await block()
        await launched()  # the block's task has ended too
        assert not flow._scheduler.bodies
        flow._scheduler.cycles._look()
        assert not flow._scheduler.cycles.is_watching
