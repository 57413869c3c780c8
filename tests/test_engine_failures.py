"""What becomes of a workflow when bodies raise, backends refuse, or the engine is misused."""

import asyncio
import gc
import pickle
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from engine_support import (
    GUARD_S,
    Gate,
    add,
    assert_nothing_kept,
    async_identity,
    identity,
    launched,
    reached,
)

from dftracer.asyncflow import (
    DependencyFailureError,
    EngineShutdownError,
    RuntimeExecutionBackend,
    WorkflowEngine,
)
from dftracer.asyncflow.backends.base import ExecutionBackend, State
from dftracer.utils import Runtime

KINDS = ["function_task", "async function_task", "block", "executable_task"]


def decorate_raising(flow: WorkflowEngine, kind: str, error: BaseException) -> Any:
    """Return a component of ``kind`` whose body raises ``error``."""

    def failing(*_: Any) -> Any:
        raise error

    async def async_failing(*_: Any) -> Any:
        raise error

    is_async = kind in ("async function_task", "block")
    return getattr(flow, kind.split()[-1])(async_failing if is_async else failing)


async def outcome(future: "asyncio.Future[Any]") -> BaseException | None:
    """Wait for ``future`` and return its error, or ``None``."""
    await asyncio.wait([future])
    return future.exception()


async def failure(future: "asyncio.Future[Any]") -> DependencyFailureError:
    """Wait for ``future``, which has to fail by a dependency, and return its error."""
    error = await outcome(future)
    assert type(error) is DependencyFailureError
    return error


# --- a body raises ------------------------------------------------------------------------------


class OddSignatureError(Exception):
    """Cannot be made again from its ``args``."""

    def __init__(self, first: int, *, second: str) -> None:
        super().__init__(f"{first} and {second}")
        self.second = second


class FalsyError(Exception):
    """An error that is false, as an empty collection of errors might be."""

    def __bool__(self) -> bool:
        return False


class UnprintableError(Exception):
    """An error that has no text."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class SlottedError(Exception):
    """An error of which Python makes no use of ``__dict__``."""

    __slots__ = ("code",)

    def __init__(self) -> None:
        self.code = 7


# Made anew for each test: an error that was raised holds all that was there.
ERRORS: list[Callable[[], Exception]] = [
    lambda: LookupError("mine"),
    lambda: OddSignatureError(1, second="two"),
    lambda: FalsyError("falsy"),
    UnprintableError,
    SlottedError,
    lambda: OSError(2, "No such file", "here"),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    lambda: StopAsyncIteration("stop"),
    lambda: asyncio.TimeoutError("late"),
    lambda: asyncio.InvalidStateError("state"),
    lambda: DependencyFailureError("raised by hand"),
    lambda: EngineShutdownError("raised by hand"),
    AssertionError,
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", ERRORS, ids=lambda make: type(make()).__name__)
async def test_the_very_error_arrives_when_a_body_raises(
    kind: str, make: Callable[[], Exception]
) -> None:
    error = make()
    async with await WorkflowEngine.create() as flow:
        future = decorate_raising(flow, kind, error)()
        with pytest.raises(type(error)) as caught:
            await future
        assert caught.value is error
        assert future.exception() is error
        assert future.state == "FAILED"
        assert await flow.function_task(identity)("the engine lives") == "the engine lives"


@pytest.mark.parametrize("kind", KINDS)
async def test_the_traceback_shows_the_body_when_it_raises(kind: str) -> None:
    async with await WorkflowEngine.create() as flow:
        future = decorate_raising(flow, kind, LookupError("mine"))()
        with pytest.raises(LookupError) as caught:
            await future
        last = traceback.extract_tb(caught.value.__traceback__)[-1]
        assert (last.name.removeprefix("async_"), last.line) == ("failing", "raise error")


async def test_cause_and_context_are_kept_when_a_body_chains_errors() -> None:
    def body() -> None:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise LookupError("outer") from error

    async with await WorkflowEngine.create() as flow:
        error = await outcome(flow.function_task(body)())
        assert isinstance(error, LookupError)
        assert isinstance(error.__cause__, KeyError)
        assert error.__context__ is error.__cause__


async def test_each_task_fails_with_it_when_two_raise_one_error() -> None:
    error = LookupError("shared")
    async with await WorkflowEngine.create() as flow:
        fail = decorate_raising(flow, "function_task", error)
        results = await asyncio.gather(fail(), fail(), return_exceptions=True)
        assert [result is error for result in results] == [True, True]


@pytest.mark.parametrize("kind", ["function_task", "executable_task"])
async def test_a_runtime_error_stands_in_when_a_body_raises_stop_iteration(kind: str) -> None:
    original = StopIteration("stop")
    async with await WorkflowEngine.create() as flow:
        future = decorate_raising(flow, kind, original)()
        error = await outcome(future)
        assert type(error) is RuntimeError
        assert error.__cause__ is original
        assert "'failing'" in str(error)
        assert "StopIteration" in str(error)


@pytest.mark.parametrize("kind", ["function_task", "async function_task"])
@pytest.mark.parametrize("exit_type", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_a_runtime_error_stands_in_when_a_body_raises_an_exit(
    kind: str, exit_type: type[BaseException]
) -> None:
    original = exit_type("mine")
    async with await WorkflowEngine.create() as flow:
        future = decorate_raising(flow, kind, original)()
        behind = flow.function_task(identity)(future)
        error = await outcome(future)
        assert type(error) is RuntimeError
        assert error.__cause__ is original
        assert exit_type.__name__ in str(error)
        assert (await failure(behind)).root_cause is error
        assert await flow.function_task(identity)("the engine lives") == "the engine lives"


@pytest.mark.parametrize("kind", ["block", "executable_task"])
@pytest.mark.parametrize("exit_type", ["KeyboardInterrupt"])
def test_the_program_ends_when_a_body_in_the_event_loop_raises_an_exit(
    kind: str, exit_type: str, run_script: Callable[..., str]
) -> None:
    script = f"""
        import asyncio
        from dftracer.asyncflow import WorkflowEngine

        async def main():
            async with await WorkflowEngine.create() as flow:
                @flow.{kind}
                async def body():
                    raise {exit_type}(3)

                await flow.function_task(print)(body())

        try:
            asyncio.run(main())
        except {exit_type}:
            print("it passed through")
        except RuntimeError:
            print("the task failed")
    """
    # What asyncio says of a task that raised it is its own affair.
    assert run_script(script, stderr=None) in ("it passed through\n", "the task failed\n")


@pytest.mark.parametrize("kind", ["async function_task", "block", "executable_task"])
async def test_a_component_is_cancelled_when_its_body_raises_that(kind: str) -> None:
    async with await WorkflowEngine.create() as flow:
        future = decorate_raising(flow, kind, asyncio.CancelledError())()
        behind = flow.function_task(identity)(future)
        await asyncio.wait([future, behind])
        assert (future.state, behind.state) == ("CANCELED", "CANCELED")
        assert_nothing_kept(flow)


async def test_a_plain_body_ends_its_task_when_it_raises_a_cancellation() -> None:
    async with await WorkflowEngine.create() as flow:
        future = decorate_raising(flow, "function_task", asyncio.CancelledError("mine"))()
        behind = flow.function_task(identity)(future)
        await asyncio.wait([future, behind])
        assert future.state in ("CANCELED", "FAILED")
        assert behind.state == future.state
        results = await asyncio.gather(future, behind, return_exceptions=True)
        assert all(isinstance(result, BaseException) for result in results)
        assert_nothing_kept(flow)


@pytest.mark.parametrize("kind", ["function_task", "block", "executable_task"])
async def test_the_call_fails_when_the_body_does_not_take_its_arguments(kind: str) -> None:
    async def body(only: int) -> str:
        return str(only)

    async with await WorkflowEngine.create() as flow:
        call = getattr(flow, kind)(body)
        for future in (call(), call(1, 2), call(nobody=3)):
            with pytest.raises(TypeError, match="body"):
                await future


async def test_the_engine_lives_when_an_error_that_nobody_reads_cannot_be_printed() -> None:
    async with await WorkflowEngine.create() as flow:
        failed = decorate_raising(flow, "function_task", UnprintableError())()
        behind = flow.function_task(identity)(failed)
        later = flow.function_task(identity)([behind, failed])
        unrelated = [flow.function_task(identity)(number) for number in range(100)]
        futures = [failed, behind, later, *unrelated]
        done, _ = await asyncio.wait(futures, timeout=GUARD_S)
        assert done == set(futures)
        assert [future.result() for future in unrelated] == list(range(100))
        assert type((await failure(behind)).root_cause) is UnprintableError
        assert type((await failure(later)).root_cause) is UnprintableError


async def test_the_engine_lives_when_a_finished_failure_cannot_be_printed() -> None:
    async with await WorkflowEngine.create() as flow:
        failed = decorate_raising(flow, "function_task", UnprintableError())()
        await asyncio.wait([failed])
        behind = flow.function_task(identity)(failed)
        unrelated = flow.function_task(identity)("unrelated")
        done, _ = await asyncio.wait([behind, unrelated], timeout=GUARD_S)
        assert done == {behind, unrelated}
        assert type((await failure(behind)).root_cause) is UnprintableError


async def test_others_are_not_disturbed_when_many_tasks_fail() -> None:
    def body(number: int, *_: Any) -> int:
        if number % 3 == 0:
            raise LookupError(number)
        return number

    async with await WorkflowEngine.create() as flow:
        task = flow.function_task(body)
        futures = [task(number, task(number)) for number in range(300)]
        results = await asyncio.gather(*futures, return_exceptions=True)
        for number, result in enumerate(results):
            if number % 3:
                assert result == number
            else:
                assert isinstance(result, DependencyFailureError)
                assert isinstance(result.root_cause, LookupError)
                assert result.root_cause.args == (number,)
        assert_nothing_kept(flow)


async def test_a_block_can_go_on_when_a_task_of_it_fails() -> None:
    async with await WorkflowEngine.create() as flow:
        fail = decorate_raising(flow, "function_task", LookupError("mine"))

        @flow.block
        async def careful() -> str:
            try:
                await fail()
            except LookupError as error:
                return f"handled {error.args[0]}"
            return "not reached"

        assert await flow.function_task(identity)(careful()) == "handled mine"


async def test_a_block_fails_with_the_error_of_its_task_when_it_lets_it_pass() -> None:
    error = LookupError("mine")
    async with await WorkflowEngine.create() as flow:
        fail = decorate_raising(flow, "function_task", error)

        @flow.block
        async def inner() -> None:
            await fail()

        @flow.block
        async def outer() -> None:
            await inner()

        future = outer()
        assert await outcome(future) is error
        assert (await failure(flow.function_task(identity)(future))).failed_dependencies == [
            "outer"
        ]


# --- a dependency has failed --------------------------------------------------------------------


async def test_dependents_name_the_failure_when_it_begins_a_chain() -> None:
    root = LookupError("the root")
    async with await WorkflowEngine.create() as flow:
        first = decorate_raising(flow, "function_task", root)()
        second = flow.function_task(identity)(first)
        third = flow.block(async_identity)(second)
        fourth = flow.executable_task(identity)(third)
        errors = [await failure(future) for future in (second, third, fourth)]
        assert [error.failed_dependencies for error in errors] == [
            ["failing"],
            ["identity"],
            ["async_identity"],
        ]
        assert all(error.root_cause is root for error in errors)
        assert [error.__cause__ for error in errors] == [root, *errors[:-1]]
        assert all("LookupError: the root" in str(error) for error in errors)
        assert "'async_identity'" in str(errors[1])


async def test_all_failed_dependencies_are_named_in_order_when_there_are_several() -> None:
    errors = [LookupError("one"), KeyError("two")]

    def one() -> None:
        raise errors[0]

    async def two() -> None:
        raise errors[1]

    async with await WorkflowEngine.create() as flow:
        first, second = flow.function_task(one)(), flow.function_task(two)()
        fine = flow.function_task(identity)("fine")
        pair = flow.function_task(lambda *args, **kwargs: None)
        forward = await failure(pair(fine, [first], key=(second, first)))
        backward = await failure(pair({"a": second}, fine, first))
        assert forward.failed_dependencies == ["one", "two"]
        assert (forward.root_cause, forward.__cause__) == (errors[0], errors[0])
        assert backward.failed_dependencies == ["two", "one"]
        assert (backward.root_cause, backward.__cause__) == (errors[1], errors[1])


async def test_the_root_is_the_one_that_raised_when_the_graph_is_a_diamond() -> None:
    root = LookupError("the root")
    async with await WorkflowEngine.create() as flow:
        top = decorate_raising(flow, "async function_task", root)()
        left, right = flow.function_task(identity)(top), flow.block(async_identity)(top)
        bottom = await failure(flow.function_task(add)(left, right))
        assert bottom.failed_dependencies == ["identity", "async_identity"]
        assert bottom.root_cause is root
        assert bottom.__cause__ is left.exception()
        assert right.exception() is not left.exception()


async def test_a_dependent_waits_for_the_rest_when_one_dependency_has_failed() -> None:
    with Runtime(python_threads=2) as runtime, Gate() as gate:
        async with await WorkflowEngine.create(RuntimeExecutionBackend(runtime)) as flow:
            with gate:
                failed = decorate_raising(flow, "function_task", LookupError("mine"))()
                slow = flow.function_task(gate.hold)()
                behind = flow.function_task(add)(failed, slow)
                await asyncio.wait([failed])
                await launched()
                assert behind.state == "PENDING"
                gate.set()
                assert (await failure(behind)).failed_dependencies == ["failing"]


@pytest.mark.parametrize("finished", [False, True], ids=["pending", "finished"])
async def test_a_dependent_fails_when_a_plain_future_does(finished: bool) -> None:
    root = LookupError("mine")
    loop = asyncio.get_running_loop()
    source: asyncio.Future[Any] = loop.create_future()
    async with await WorkflowEngine.create() as flow:
        if finished:
            source.set_exception(root)
        futures = [flow.function_task(identity)(source), flow.block(async_identity)([source])]
        if not finished:
            source.set_exception(root)
        for future in futures:
            error = await failure(future)
            assert (error.root_cause, error.__cause__) == (root, root)
            assert len(error.failed_dependencies) == 1
            assert "Future" in error.failed_dependencies[0]


async def test_a_dependent_fails_when_a_task_of_another_engine_does() -> None:
    root = LookupError("mine")
    async with await WorkflowEngine.create() as one, await WorkflowEngine.create() as other:
        failed = decorate_raising(one, "function_task", root)()
        error = await failure(other.function_task(identity)(failed))
        assert (error.failed_dependencies, error.root_cause) == (["failing"], root)


async def test_a_dependent_fails_when_it_is_called_after_the_failure() -> None:
    root = LookupError("mine")
    async with await WorkflowEngine.create() as flow:
        failed = decorate_raising(flow, "function_task", root)()
        await asyncio.wait([failed])
        error = await failure(flow.function_task(identity)(failed))
        assert (error.failed_dependencies, error.root_cause) == (["failing"], root)
        again = await failure(flow.function_task(identity)(flow.function_task(identity)(failed)))
        assert again.root_cause is root


async def test_no_body_runs_when_its_dependency_has_failed() -> None:
    ran: list[str] = []

    async def body(_: Any) -> str:
        ran.append("body")
        return "true"

    async with await WorkflowEngine.create() as flow:
        failed = decorate_raising(flow, "function_task", LookupError("mine"))()
        for kind in ("function_task", "block", "executable_task"):
            await failure(getattr(flow, kind)(body)(failed))
    assert ran == []


async def test_a_chain_fails_to_its_end_when_it_is_long() -> None:
    root = LookupError("the root")
    async with await WorkflowEngine.create() as flow:
        chain = [decorate_raising(flow, "function_task", root)()]
        for _ in range(3_000):
            chain.append(flow.function_task(identity)(chain[-1]))
        error = await failure(chain[-1])
        assert error.root_cause is root
        assert all(future.done() for future in chain)
        assert [type(future.exception()) for future in chain[1:]] == [DependencyFailureError] * (
            len(chain) - 1
        )
        assert_nothing_kept(flow)


def test_a_dependency_failure_keeps_its_attributes_when_pickled() -> None:
    error = DependencyFailureError("message", ["one", "two"], LookupError("root"))
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.args) == (DependencyFailureError, ("message",))
    assert copy.failed_dependencies == ["one", "two"]
    assert repr(copy.root_cause) == repr(error.root_cause) == repr(error.__cause__)
    bare = DependencyFailureError("message")
    assert (bare.failed_dependencies, bare.root_cause, bare.__cause__) == ([], None, None)


# --- the engine is misused ----------------------------------------------------------------------


def test_an_engine_is_refused_when_no_loop_runs() -> None:
    with pytest.raises(RuntimeError, match="event loop"):
        WorkflowEngine()
    creation = WorkflowEngine.create()
    with pytest.raises(RuntimeError, match="event loop"):
        creation.send(None)


async def test_an_engine_is_refused_when_made_in_a_thread_without_a_loop() -> None:
    backend = await RuntimeExecutionBackend()

    def make() -> None:
        with pytest.raises(RuntimeError, match="event loop"):
            WorkflowEngine(backend)

    await asyncio.to_thread(make)
    await backend.shutdown()


@pytest.mark.parametrize(
    "backend",
    [object(), "runtime", 0, False, RuntimeExecutionBackend, Runtime, [3], lambda: None],
    ids=lambda value: type(value).__name__,
)
async def test_a_backend_is_refused_when_it_is_none(backend: Any) -> None:
    with pytest.raises(TypeError, match=rf"backend.*{type(backend).__name__}"):
        await WorkflowEngine.create(backend)
    with pytest.raises(TypeError, match=rf"backend.*{type(backend).__name__}"):
        WorkflowEngine(backend)


async def test_the_way_out_is_named_when_an_engine_is_made_without_a_backend() -> None:
    with pytest.raises(TypeError, match=r"await WorkflowEngine\.create\(\)"):
        WorkflowEngine()


async def test_a_backend_is_refused_when_it_serves_another_loop() -> None:
    backend = await RuntimeExecutionBackend()

    async def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await WorkflowEngine.create(backend)

    await asyncio.to_thread(asyncio.run, elsewhere())
    async with await WorkflowEngine.create(backend) as flow:
        assert await flow.function_task(identity)(1) == 1


@pytest.mark.parametrize("kind", ["function_task", "executable_task", "block"])
@pytest.mark.parametrize(
    "value", [None, 1, "name", [identity], {}], ids=lambda value: type(value).__name__
)
async def test_a_decorator_refuses_when_given_no_function(kind: str, value: Any) -> None:
    async with await WorkflowEngine.create() as flow:
        for decorate in (getattr(flow, kind), getattr(flow, kind)()):
            with pytest.raises(TypeError, match=rf"@flow\.{kind}.*{type(value).__name__}"):
                decorate(value)


@pytest.mark.parametrize("kind", ["function_task", "executable_task", "block"])
async def test_a_decorator_refuses_quietly_when_given_a_coroutine(kind: str) -> None:
    async with await WorkflowEngine.create() as flow:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with pytest.raises(TypeError, match=rf"@flow\.{kind}.*async_identity"):
                getattr(flow, kind)(async_identity(1))
            gc.collect()
        assert caught == []


@pytest.mark.parametrize("kind", ["function_task", "executable_task", "block"])
async def test_a_decorator_refuses_when_given_several_functions(kind: str) -> None:
    async with await WorkflowEngine.create() as flow:
        with pytest.raises(TypeError, match=rf"@flow\.{kind}"):
            getattr(flow, kind)(async_identity, async_identity)


@pytest.mark.parametrize(
    "function", [identity, lambda: None, len, int, Gate.hold], ids=lambda f: f.__name__
)
async def test_a_block_is_refused_when_its_function_is_not_async(function: Any) -> None:
    async with await WorkflowEngine.create() as flow:
        for decorate in (flow.block, flow.block()):
            with pytest.raises(TypeError, match=r"@flow\.block.*async function"):
                decorate(function)


@pytest.mark.parametrize("kind", ["function_task", "executable_task", "block"])
async def test_a_call_is_refused_when_the_engine_is_shut_down(kind: str) -> None:
    flow = await WorkflowEngine.create()
    call = getattr(flow, kind)(async_identity)
    await flow.shutdown()
    with pytest.raises(EngineShutdownError, match=r"'async_identity'.*shut down") as caught:
        call(1)
    assert isinstance(caught.value, RuntimeError)
    assert flow.uid in str(caught.value)
    assert_nothing_kept(flow)


async def test_a_call_is_refused_when_the_engine_is_being_shut_down() -> None:
    flow = await WorkflowEngine.create()
    with Gate() as gate:
        started = threading.Event()

        future = flow.function_task(gate.hold_firmly)(started)
        await reached(started)
        shutdown = asyncio.ensure_future(flow.shutdown())
        await asyncio.wait([future])
        assert not shutdown.done()
        with pytest.raises(EngineShutdownError, match="'identity'"):
            flow.function_task(identity)(1)
        gate.set()
        await shutdown


# --- a backend misbehaves -----------------------------------------------------------------------


class ScriptedBackend(ExecutionBackend):
    """Does with each task what the test says; knows only the coroutine part of the contract."""

    def __init__(self, *, submit: Any = None, cancel: Any = None) -> None:
        super().__init__("scripted")
        self.submitted: list[dict[str, Any]] = []
        self.cancelled: list[str] = []
        self._submit, self._cancel = submit, cancel

    async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
        self.submitted += tasks
        if self._submit is not None:
            self._submit(tasks)

    async def cancel_task(self, uid: str) -> bool:
        self.cancelled.append(uid)
        if self._cancel is not None:
            self._cancel(uid)
        return True

    async def shutdown(self) -> None:
        pass

    def state(self) -> str:
        return "INITIALIZED"

    def tell(self, task: dict[str, Any], state: str, **outcome: Any) -> None:
        task.update(outcome)
        self._callback_func(task, state)


def refuse(*_: Any) -> None:
    raise ConnectionError("nobody answers")


async def test_tasks_fail_when_the_backend_refuses_them() -> None:
    async with await WorkflowEngine.create(ScriptedBackend(submit=refuse)) as flow:
        futures = [flow.function_task(identity)(number) for number in range(3)]
        behind = flow.function_task(identity)(futures[0])
        for future in futures:
            assert isinstance(await outcome(future), ConnectionError)
        assert isinstance((await failure(behind)).root_cause, ConnectionError)
        assert_nothing_kept(flow)
        assert await flow.block(async_identity)("the engine lives") == "the engine lives"


async def test_tasks_fail_when_the_backend_was_not_started() -> None:
    async with WorkflowEngine(RuntimeExecutionBackend()) as flow:
        with pytest.raises(RuntimeError, match="not started"):
            await flow.function_task(identity)(1)


async def test_every_task_ends_when_the_backend_is_shut_down_below_it() -> None:
    with Gate() as gate:
        flow = await WorkflowEngine.create()
        started = threading.Event()

        @flow.function_task
        def body() -> None:
            started.set()
            gate.hold()

        futures = [body() for _ in range(3_000)]
        await reached(started)
        shutdown = asyncio.ensure_future(flow.backend.shutdown())
        await launched()
        gate.set()
        await shutdown
        done, _ = await asyncio.wait(futures, timeout=GUARD_S)
        assert len(done) == len(futures)
        assert futures[-1].cancelled()
        with pytest.raises(RuntimeError, match="not started"):
            await flow.function_task(identity)(1)
        await flow.shutdown()


async def test_a_running_task_ends_when_a_backend_of_a_given_runtime_is_shut_down() -> None:
    with Runtime(python_threads=1) as runtime, Gate() as gate:
        flow = await WorkflowEngine.create(RuntimeExecutionBackend(runtime))
        started = threading.Event()

        @flow.function_task
        def body() -> None:
            started.set()
            gate.hold()

        futures = [body(), body()]
        await reached(started)
        shutdown = asyncio.ensure_future(flow.backend.shutdown())
        await launched()
        gate.set()
        await shutdown
        done, _ = await asyncio.wait(futures, timeout=GUARD_S)
        assert len(done) == len(futures)
        await flow.shutdown()


async def test_outcomes_are_taken_once_when_the_backend_tells_several() -> None:
    backend = ScriptedBackend()
    async with await WorkflowEngine.create(backend) as flow:
        future = flow.function_task(identity)(1)
        behind = flow.function_task(identity)(future)
        await launched()
        await launched()
        task = backend.submitted[0]
        backend.tell(task, State.RUNNING)
        assert future.state == "RUNNING"
        backend.tell(task, State.DONE, return_value="first")
        backend.tell(task, State.DONE, return_value="second")
        backend.tell(task, State.FAILED, exception=LookupError("third"))
        backend.tell(task, State.CANCELED)
        backend.tell(task, State.RUNNING)
        backend.tell({"uid": "task.999999", "name": "unknown"}, State.DONE)
        assert await future == "first"
        assert future.state == "DONE"
        await launched()
        await launched()
        backend.tell(backend.submitted[1], State.DONE, return_value="behind")
        assert await behind == "behind"


async def test_a_failure_has_a_reason_when_the_backend_gives_none() -> None:
    backend = ScriptedBackend()
    async with await WorkflowEngine.create(backend) as flow:
        future = flow.function_task(identity)(1)
        await launched()
        await launched()
        backend.tell(backend.submitted[0], State.FAILED, stderr="what it wrote")
        with pytest.raises(RuntimeError) as failure:
            await future
        assert str(failure.value) == "what it wrote"
        notes: Any = vars(failure.value)["__notes__"]
        assert notes == ["of task 'identity' on backend 'scripted'"]


class Lazy:
    """A stand-in for something that cannot be had now."""

    @property
    def __class__(self) -> Any:
        raise LookupError("not now")

    @__class__.setter
    def __class__(self, value: Any) -> None: ...


@pytest.mark.parametrize("kind", ["function_task", "async function_task", "block"])
async def test_all_calls_end_when_the_result_of_one_does_not_say_what_it_is(kind: str) -> None:
    async with await WorkflowEngine.create() as flow:

        async def lazy_later() -> Any:
            return Lazy()

        make = flow.function_task(Lazy) if kind == "function_task" else None
        make = make or (flow.block if kind == "block" else flow.function_task)(lazy_later)
        task = flow.function_task(identity)
        calls = [task(1), make(), task(2), make(), task(3)]
        ends = await asyncio.wait_for(asyncio.gather(*calls), GUARD_S)
        assert [end for end in ends if type(end) is not Lazy] == [1, 2, 3]


async def test_a_task_is_cancelled_when_the_backend_says_so() -> None:
    backend = ScriptedBackend()
    async with await WorkflowEngine.create(backend) as flow:
        future = flow.function_task(identity)(1)
        behind = flow.function_task(identity)(future)
        await launched()
        await launched()
        backend.tell(backend.submitted[0], State.CANCELED)
        await asyncio.wait([future, behind])
        assert (future.state, behind.state) == ("CANCELED", "CANCELED")


async def test_the_backend_is_told_when_a_task_is_cancelled() -> None:
    backend = ScriptedBackend()
    async with await WorkflowEngine.create(backend) as flow:
        future = flow.function_task(identity)(1)
        await launched()
        await launched()
        future.cancel()
        await flow.shutdown()
    assert backend.cancelled == [f"task.{future.id}"]


async def test_a_task_is_cancelled_when_the_backend_cannot_stop_it() -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: complaints.append(about))
    backend = ScriptedBackend(cancel=refuse)
    async with await WorkflowEngine.create(backend) as flow:
        future = flow.function_task(identity)(1)
        await launched()
        await launched()
        future.cancel()
        assert future.cancelled()
        assert await flow.block(async_identity)("the engine lives") == "the engine lives"
        await flow.shutdown()
