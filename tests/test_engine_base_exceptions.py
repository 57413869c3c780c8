"""Errors that are no ``Exception``: whoever awaits gets one, and nobody else is concerned."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
from engine_support import GUARD_S, ForeignBackend, assert_nothing_kept, identity

from dftracer.asyncflow import (
    Component,
    DependencyFailureError,
    LocalExecutionBackend,
    WorkflowEngine,
)
from dftracer.asyncflow.errors import text_of_error

KINDS = ["function_task", "block", "executable_task", "prompt_task"]


class Panic(BaseException):
    """What a native extension raises that has panicked."""


class FaultyTextError(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise Panic("no text")


ERRORS = {
    "a panic": Panic("index out of bounds"),
    "sys.exit": SystemExit(3),
    "GeneratorExit": GeneratorExit("closed"),
    "pytest.fail": pytest.fail.Exception("failed"),
}


@pytest.fixture(params=ERRORS)
def error(request: pytest.FixtureRequest) -> BaseException:
    """Return an error that is no ``Exception``."""
    return ERRORS[request.param]


def raising(kind: str, is_async: bool, error: BaseException) -> Callable[..., Any]:
    """Return a body that raises ``error``, at once or after a turn of the event loop."""

    def body(*_: Any) -> Any:
        raise error

    async def async_body(*_: Any) -> Any:
        await asyncio.sleep(0)
        raise error

    return async_body if is_async or kind == "block" else body


async def error_of(future: "asyncio.Future[Any]") -> BaseException | None:
    """Wait for the end of ``future`` and return its error."""
    await asyncio.wait([future], timeout=GUARD_S)
    assert future.done(), "it never ends"
    return future.exception()


async def assert_stood_in_for(future: "Component[Any]", error: BaseException) -> None:
    """See that ``future`` fails with a ``RuntimeError`` that names ``error``."""
    stand_in = await error_of(future)
    assert type(stand_in) is RuntimeError
    assert stand_in.__cause__ is error
    assert f"'{future.name}' raised {type(error).__name__}" in str(stand_in)


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize("kind", KINDS)
async def test_only_its_task_fails_when_a_body_raises_no_exception(
    kind: str, is_async: bool, error: BaseException
) -> None:
    async with await WorkflowEngine.create() as flow:
        other = flow.function_task(identity)("fine")
        future = getattr(flow, kind)(raising(kind, is_async, error))()
        behind = flow.function_task(identity)(future)
        await assert_stood_in_for(future, error)
        dependent = await error_of(behind)
        assert isinstance(dependent, DependencyFailureError)
        assert dependent.root_cause is future.exception()
        assert await other == "fine"
        assert await flow.function_task(identity)("the engine lives") == "the engine lives"
        assert_nothing_kept(flow)


async def test_the_block_fails_when_what_it_awaits_has_raised_no_exception(
    error: BaseException,
) -> None:
    async with await WorkflowEngine.create() as flow:

        @flow.block
        async def outer() -> None:
            await asyncio.wait_for(inner(), GUARD_S)

        @flow.block
        async def inner() -> None:
            raise error

        assert isinstance(await error_of(outer()), RuntimeError)
        assert_nothing_kept(flow)


@pytest.mark.parametrize("option", ["retry_on", "backoff"])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_call_fails_when_its_retry_options_raise_no_exception(
    kind: str, option: str, error: BaseException
) -> None:
    def decide(_: Any) -> Any:
        raise error

    body = raising(kind, False, ValueError("of the body"))
    async with await WorkflowEngine.create() as flow:
        options: dict[str, Any] = {"retries": 2, option: decide}
        failure = await error_of(getattr(flow, kind)(body, **options)())
        assert isinstance(failure, RuntimeError)
        assert "retry_on or backoff raised" in str(failure)
        assert failure.__cause__ is error
        assert isinstance(error.__cause__, ValueError)
        assert await flow.function_task(identity)("the engine lives") == "the engine lives"
        assert_nothing_kept(flow)


@pytest.mark.parametrize("retry_on", [Panic, (KeyError, Panic), RuntimeError, Exception])
@pytest.mark.parametrize("kind", ["function_task", "block"])
async def test_a_body_is_tried_again_when_retry_on_covers_its_panic(
    kind: str, retry_on: Any
) -> None:
    tries = 0

    async def body() -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise Panic
        return "well"

    async with await WorkflowEngine.create() as flow:
        decorate = getattr(flow, kind)(retries=1, retry_on=retry_on, backoff=0)
        assert await asyncio.wait_for(decorate(body)(), GUARD_S) == "well"


async def test_a_body_is_not_tried_again_when_retry_on_does_not_cover_its_panic() -> None:
    async with await WorkflowEngine.create() as flow:
        odd = Panic("odd")
        body = flow.block(retries=3, retry_on=SystemExit)(raising("block", True, odd))
        await assert_stood_in_for(body(), odd)


# --- hooks --------------------------------------------------------------------------------------


class Hooked(ForeignBackend):
    """One that raises in one of its methods."""

    def __init__(self, hook: str, error: BaseException) -> None:
        super().__init__()
        self._hook, self._error = hook, error

    def _act(self, hook: str) -> None:
        if hook == self._hook:
            raise self._error

    async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
        self._act("submit_tasks")
        await super().submit_tasks(tasks)

    async def cancel_task(self, uid: str) -> bool:
        self._act("cancel_task")
        return await super().cancel_task(uid)


class HookedNow(Hooked):
    """As that, and its methods need not be awaited."""

    def submit_nowait(self, tasks: list[dict[str, Any]]) -> None:
        self._act("submit_tasks")
        self.tasks.update((task["uid"], task) for task in tasks)
        self._changed.set()

    def cancel_nowait(self, uid: str) -> bool:
        self._act("cancel_task")
        return True


@pytest.mark.parametrize("make", [Hooked, HookedNow])
async def test_tasks_fail_when_their_backend_refuses_them_with_no_exception(
    make: Callable[..., Hooked], error: BaseException
) -> None:
    async with await WorkflowEngine.create(make("submit_tasks", error)) as flow:
        futures = [flow.function_task(identity)(number) for number in range(3)]
        for future in futures:
            await assert_stood_in_for(future, error)
        assert_nothing_kept(flow)


@pytest.mark.parametrize("make", [Hooked, HookedNow])
async def test_the_loop_is_told_when_a_backend_cannot_cancel_and_raises_no_exception(
    make: Callable[..., Hooked], error: BaseException
) -> None:
    told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().set_exception_handler(lambda _, about: told.set_result(about))
    backend = make("cancel_task", error)
    async with await WorkflowEngine.create(backend) as flow:
        future = flow.function_task(identity)(1)
        await backend.given(future)
        assert future.cancel()
        assert (await asyncio.wait_for(told, GUARD_S))["exception"] is error
        assert future.cancelled()


@pytest.mark.parametrize("state", ["RUNNING", "DONE", "FAILED"])
async def test_the_task_fails_when_the_callback_of_a_service_raises(
    state: str, error: BaseException
) -> None:
    def ready(*_: Any) -> None:
        raise error

    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend) as flow:
        future = flow.function_task(service=True)(identity)(1)
        flow.task_callbacks(await backend.given(future), state, ready)
        await assert_stood_in_for(future, error)


async def test_all_bodies_are_begun_or_failed_when_the_task_factory_raises(
    error: BaseException,
) -> None:
    async def body() -> str:
        return "ran"

    loop = asyncio.get_running_loop()
    async with await WorkflowEngine.create() as flow:
        refused = [True, False, False]

        def factory(loop: Any, coroutine: Any, **options: Any) -> Any:
            if refused and refused.pop(0):
                raise error
            return asyncio.Task(coroutine, loop=loop, **options)

        futures = [flow.block(body)() for _ in range(3)]
        loop.set_task_factory(factory)
        try:
            for future in futures:
                while not future.done():
                    turn = loop.create_future()
                    loop.call_soon(turn.set_result, None)
                    await turn
        finally:
            loop.set_task_factory(None)
        await assert_stood_in_for(futures[0], error)
        assert [future.result() for future in futures[1:]] == ["ran", "ran"]


async def test_dependents_end_when_the_text_of_an_error_raises_no_exception() -> None:
    assert text_of_error(FaultyTextError()) == "FaultyTextError"
    async with await WorkflowEngine.create() as flow:
        failing = flow.function_task(raising("function_task", False, FaultyTextError()))()
        behind = [flow.function_task(identity)(failing) for _ in range(3)]
        for future in behind:
            assert isinstance(await error_of(future), DependencyFailureError)


# --- on the way to another process --------------------------------------------------------------


class Unsendable:
    """Panics when it is pickled."""

    def __reduce__(self) -> Any:
        raise Panic("cannot be pickled")


class Unreadable:
    """Panics when it is unpickled."""

    def __reduce__(self) -> Any:
        return _panic, ()


def _panic() -> None:
    raise Panic("cannot be unpickled")


def make_unreadable() -> Any:
    """Return what only a worker can have."""
    return Unreadable()


def make_unsendable() -> Any:
    """Return what cannot leave its process."""
    return Unsendable()


async def test_a_task_on_a_pool_fails_when_its_values_panic_on_the_way() -> None:
    pool = ProcessPoolExecutor(1, mp_context=get_context("forkserver"))
    async with await WorkflowEngine.create(await LocalExecutionBackend(pool)) as flow:
        call = flow.function_task(identity)
        for value in (Unsendable(), Unreadable()):
            error = await error_of(call(value))
            assert isinstance(error, Exception)
            assert "Panic" in str(error)
        for make in (make_unreadable, make_unsendable):
            error = await error_of(flow.function_task(make)())
            assert isinstance(error, Exception)
            assert "Panic" in str(error)
        assert await asyncio.wait_for(call("the pool lives"), GUARD_S) == "the pool lives"


# --- what is meant for the program --------------------------------------------------------------


@pytest.mark.parametrize("where", ["block", "executable_task", "retry_on"])
def test_the_program_ends_when_a_handler_of_a_signal_exits_in_a_body(
    where: str, run_script: Callable[..., str]
) -> None:
    script = f"""
        import asyncio, os, signal, sys
        from dftracer.asyncflow import WorkflowEngine

        def leave(*_):
            sys.exit(7)

        def interrupted(*_):
            os.kill(os.getpid(), signal.SIGUSR1)
            return "true"

        async def main():
            signal.signal(signal.SIGUSR1, leave)
            async with await WorkflowEngine.create() as flow:
                if {where!r} == "retry_on":
                    @flow.function_task(retries=1, retry_on=interrupted)
                    def body():
                        raise ValueError
                else:
                    @flow.{where if where != "retry_on" else "block"}
                    async def body():
                        return interrupted()
                await asyncio.wait([body()])
                await asyncio.sleep(60)

        asyncio.run(main())
    """
    # What asyncio says of a task that raised it is its own affair.
    run_script(script, exit_code=7, stderr=None)


def test_nothing_is_ended_when_a_loop_is_given_up_with_bodies_in_it(
    run_script: Callable[..., str],
) -> None:
    script = """
        import asyncio, gc
        from dftracer.asyncflow import WorkflowEngine

        async def main():
            flow = await WorkflowEngine.create()
            @flow.block(retries=3)
            async def body():
                await asyncio.get_running_loop().create_future()
            future = body()
            while future.state != "RUNNING":
                await asyncio.sleep(0)
            return future

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        del loop
        gc.collect()
        print("ended")
    """
    assert "ended" in run_script(script, stderr=None)


def test_an_exit_is_known_by_the_handler_that_it_came_from() -> None:
    from dftracer.asyncflow.errors import let_out

    class Handler:
        def __call__(self, *_: Any) -> None:
            sys.exit(7)

    before = signal.getsignal(signal.SIGUSR1)
    try:
        for handler in (Handler(), Handler().__call__, lambda *_: sys.exit(7)):
            signal.signal(signal.SIGUSR1, handler)
            with pytest.raises(SystemExit) as caught:
                os.kill(os.getpid(), signal.SIGUSR1)
            with pytest.raises(SystemExit):
                let_out(caught.value)
    finally:
        signal.signal(signal.SIGUSR1, before)
    let_out(SystemExit(7))
    with pytest.raises(KeyboardInterrupt):
        let_out(KeyboardInterrupt())
