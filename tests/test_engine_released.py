"""A call that has ended holds its result, and nothing of what it was given."""

import asyncio
import contextvars
import gc
import pickle
import threading
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
from engine_support import GUARD_S, ForeignBackend, Gate, reached

from dftracer.asyncflow import (
    Component,
    InputFile,
    LocalExecutionBackend,
    NoopExecutionBackend,
    RuntimeExecutionBackend,
    WorkflowEngine,
)

HELD: contextvars.ContextVar[Any] = contextvars.ContextVar("HELD", default=None)


class Thing:
    """What can be seen to be gone."""

    def __bool__(self) -> bool:
        return True


class OwnError(Exception):
    """An error of a body."""


async def gone(*references: "weakref.ref[Any]") -> bool:
    """Tell whether what is referred to goes, once all that is on its way has ended."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + GUARD_S
    while any(reference() is not None for reference in references):
        if loop.time() > deadline:
            return False
        gc.collect()
        await asyncio.sleep(0.01)
    return True


async def ended(future: Component[Any]) -> str:
    """Wait for the end of a component and return its state."""
    await asyncio.wait([future], timeout=GUARD_S)
    state = future.state
    if state == "FAILED":
        future.exception()  # or it would be logged that nobody has seen it
    return state


def take(*_: Any, **__: Any) -> int:
    return 1


def fail(*things: Any, **__: Any) -> None:
    inner(things)


def inner(passed: Any) -> None:
    raise OwnError("of the body")


async def take_later(*_: Any, **__: Any) -> int:
    await asyncio.sleep(0)
    return 1


async def fail_later(*things: Any, **__: Any) -> None:
    await asyncio.sleep(0)
    try:
        inner(things)
    except OwnError as error:
        raise LookupError("another") from error


def order(*_: Any, **__: Any) -> list[str]:
    return ["true"]


def wrong_order(*_: Any, **__: Any) -> list[str]:
    return ["false"]


async def order_later(*_: Any, **__: Any) -> list[str]:
    return ["true"]


CALLS: list[tuple[str, Callable[..., Any], str]] = [
    ("function_task", take, "DONE"),
    ("function_task", take_later, "DONE"),
    ("function_task", fail, "FAILED"),
    ("function_task", fail_later, "FAILED"),
    ("block", take_later, "DONE"),
    ("block", fail_later, "FAILED"),
    ("executable_task", order, "DONE"),
    ("executable_task", order_later, "DONE"),
    ("executable_task", wrong_order, "FAILED"),
    ("executable_task", fail, "FAILED"),
    ("prompt_task", fail_later, "FAILED"),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "retries": {"retries": 1, "backoff": 0},
    "timeout": {"timeout": 3600},
}
BACKENDS: dict[str, Callable[[], Any]] = {
    "runtime": RuntimeExecutionBackend,
    "threads": lambda: LocalExecutionBackend(ThreadPoolExecutor(1)),
    "noop": NoopExecutionBackend,
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize(("kind", "body", "state"), CALLS)
async def test_arguments_and_context_go_when_a_call_has_ended(
    kind: str, body: Any, state: str, backend: Any, options: Any
) -> None:
    async with await WorkflowEngine.create(backend()) as flow:
        call = getattr(flow, kind)(**options)(body)
        first, second, third = Thing(), Thing(), Thing()
        references = [weakref.ref(each) for each in (first, second, third)]
        token = HELD.set(third)
        future = call(first, [second], key={"key": second})
        HELD.reset(token)
        described = flow.components[future.uid]["description"]
        assert described["args"][0] is first
        del first, second, third, described
        told = await ended(future)
        assert told == state or isinstance(flow.backend, NoopExecutionBackend)
        assert await gone(*references)
        description = flow.components[future.uid]["description"]
        assert description["uid"].startswith(future.uid)  # of its last attempt
        assert description["name"] == body.__name__
        assert (description["args"], description["kwargs"]) == ((), {})
        assert description["context"] is None


@pytest.mark.parametrize("is_plain", [True, False], ids=["plain", "described"])
async def test_results_go_when_their_dependents_have_ended(is_plain: bool) -> None:
    made: list[weakref.ref[Any]] = []

    def make() -> Thing:
        made.append(weakref.ref(thing := Thing()))
        return thing

    async with await WorkflowEngine.create() as flow:
        options: dict[str, Any] = {} if is_plain else {"retries": 1}
        load, measure = flow.function_task(make), flow.function_task(**options)(take)
        measured = [measure([load()], load(), key=load()) for _ in range(20)]
        assert await asyncio.gather(*measured) == [1] * 20
        assert len(made) == 60
        assert await gone(*made)


async def test_values_go_when_they_went_to_another_process() -> None:
    pool = ProcessPoolExecutor(1, mp_context=get_context("forkserver"))
    async with await WorkflowEngine.create(await LocalExecutionBackend(pool)) as flow:
        futures = []
        references = []
        for body in (take, fail, fail_later):
            thing = Thing()
            references.append(weakref.ref(thing))
            futures.append(flow.function_task(body)(thing))
            del thing
        assert [await ended(future) for future in futures] == ["DONE", "FAILED", "FAILED"]
        assert await gone(*references)


# --- other ends ---------------------------------------------------------------------------------


async def test_arguments_go_when_a_call_is_cancelled_before_it_begins() -> None:
    async with await WorkflowEngine.create() as flow:
        waiting = asyncio.get_running_loop().create_future()
        futures = []
        references = []
        for kind, body in (("function_task", take), ("block", take_later)):
            thing = Thing()
            references.append(weakref.ref(thing))
            futures.append(getattr(flow, kind)(body)(thing, waiting))
            del thing
        for future in futures:
            future.cancel()
        assert await gone(*references)


async def test_a_cancelled_call_goes_on_with_its_arguments_when_its_backend_still_has_it() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend) as flow:
        thing = Thing()
        future = flow.function_task(take)(thing, key=thing)
        given = await backend.given(future)
        future.cancel()
        assert (given["args"], given["kwargs"]) == ((thing,), {"key": thing})
        assert given["context"] is not None
        assert future.task["args"] == ()
        assert future.task["uid"] == given["uid"]
        reference = weakref.ref(thing)
        del thing, given
        backend.tasks.clear()
        assert await gone(reference)


async def test_a_service_goes_on_with_its_arguments_when_it_is_ended_by_hand() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend) as flow:
        future = flow.function_task(service=True)(take)("kept")
        given = await backend.given(future)
        future.set_result("ready")
        assert given["args"] == ("kept",)
        assert future.task["args"] == ()


async def test_an_attempt_has_its_arguments_when_the_one_before_has_failed() -> None:
    given: list[Any] = []

    def body(*args: Any, **kwargs: Any) -> None:
        given.append((args, kwargs))
        raise OwnError

    async with await WorkflowEngine.create() as flow:
        thing = Thing()
        future = flow.function_task(retries=2, backoff=0)(body)(thing, key=thing)
        assert await ended(future) == "FAILED"
        assert given == [((thing,), {"key": thing})] * 3
        reference = weakref.ref(thing)
        given.clear()
        del thing
        assert await gone(reference)


async def test_what_a_dependent_was_given_goes_when_its_dependency_fails() -> None:
    async with await WorkflowEngine.create() as flow:
        thing = Thing()
        reference = weakref.ref(thing)
        failing = flow.function_task(fail)()
        future = flow.function_task(take)(thing, failing)
        del thing
        assert [await ended(each) for each in (failing, future)] == ["FAILED", "FAILED"]
        assert await gone(reference)


async def test_a_body_that_runs_on_keeps_its_arguments_when_its_time_is_over() -> None:
    with Gate() as gate:
        started = threading.Event()
        returned = threading.Event()
        seen: list[Any] = []

        def body(thing: Any) -> None:
            try:
                gate.hold_firmly(started)
            finally:
                seen.append(thing)
                returned.set()

        backend = LocalExecutionBackend(ThreadPoolExecutor(1))
        async with await WorkflowEngine.create(backend) as flow:
            thing = Thing()
            reference = weakref.ref(thing)
            future = flow.function_task(timeout=0.01)(body)(thing)
            del thing
            await reached(started)
            assert await ended(future) == "FAILED"
            assert reference() is not None
            gate.set()
            await reached(returned)
            assert type(seen.pop()) is Thing
            assert await gone(reference)


async def test_a_block_goes_when_what_it_has_begun_lives_on() -> None:
    async with await WorkflowEngine.create() as flow:
        timers = []

        @flow.block
        async def body() -> Thing:
            loop = asyncio.get_running_loop()
            timers.append(loop.call_later(3600, print))  # in a copy of the body's context
            await flow.function_task(take)()
            return Thing()

        future = body()
        reference = weakref.ref(await asyncio.wait_for(future, GUARD_S))
        block = weakref.ref(future)
        del future
        assert await gone(reference, block)
        timers.pop().cancel()


async def test_files_go_when_a_call_has_ended(tmp_path: Any) -> None:
    path = tmp_path / "input.txt"
    path.write_text("text")
    async with await WorkflowEngine.create(work_dir=tmp_path / "work") as flow:
        file = InputFile(path)
        reference = weakref.ref(file)
        future = flow.function_task(take)(file)
        del file
        assert await ended(future) == "DONE"
        assert await gone(reference)
        assert future.task["metadata"]["input_files"] == ["input.txt"]


# --- tracebacks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["function_task", "block"])
async def test_a_traceback_has_all_lines_of_the_body_when_its_variables_are_gone(
    kind: str,
) -> None:
    async with await WorkflowEngine.create() as flow:
        future = getattr(flow, kind)(fail_later)(Thing())
        assert await ended(future) == "FAILED"
        error = future.exception()
        assert error is not None
        names = [line.name for line in traceback.extract_tb(error.__traceback__)]
        assert names == ["fail_later"]
        cause = error.__cause__
        assert cause is not None
        entries = traceback.extract_tb(cause.__traceback__)
        assert [entry.name for entry in entries] == ["fail_later", "inner"]
        assert entries[-1].line == 'raise OwnError("of the body")'
        assert pickle.loads(pickle.dumps(cause)).args == cause.args


@pytest.mark.parametrize("kind", ["function_task", "block"])
async def test_a_traceback_keeps_its_variables_when_asyncio_debugs(kind: str) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    try:
        async with await WorkflowEngine.create() as flow:
            thing = Thing()
            future = getattr(flow, kind)(fail_later)(thing)
            assert await ended(future) == "FAILED"
            error = future.exception()
            assert error is not None
            assert error.__traceback__ is not None
            assert error.__traceback__.tb_frame.f_locals["things"] == (thing,)
    finally:
        loop.set_debug(False)


async def test_a_body_goes_on_when_it_shares_the_error_of_another_that_has_failed() -> None:
    async with await WorkflowEngine.create() as flow:
        shared = asyncio.get_running_loop().create_future()
        go_on = asyncio.Event()

        @flow.block
        async def falls() -> None:
            await shared

        @flow.block
        async def goes_on(thing: Thing) -> str:
            try:
                await shared
            except OwnError as error:
                await go_on.wait()
                return f"{type(thing).__name__} after {error}"
            return "nothing"

        second, first = goes_on(Thing()), falls()
        await asyncio.sleep(0)
        shared.set_exception(OwnError("shared"))
        assert await ended(first) == "FAILED"
        gc.collect()
        go_on.set()
        assert await asyncio.wait_for(second, GUARD_S) == "Thing after shared"
