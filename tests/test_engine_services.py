"""Services, whose futures end when they are ready, and what backends report in the meantime."""

import asyncio
import enum
import threading
from collections.abc import Callable
from typing import Any

import pytest
from engine_support import (
    GUARD_S,
    ForeignBackend,
    Gate,
    assert_nothing_kept,
    async_identity,
    identity,
    launched,
    reached,
)

from dftracer.asyncflow import RuntimeExecutionBackend, WorkflowEngine
from dftracer.utils import Runtime

pytestmark = pytest.mark.usefixtures("new_loop")


def in_thread(function: Callable[..., Any], *args: Any) -> None:
    """Call a function in another thread and wait, in this one, until it is through."""
    errors: list[BaseException] = []

    def call() -> None:
        try:
            function(*args)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(GUARD_S)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


CALLERS = [lambda function, *args: function(*args), in_thread]


# --- a service that is ready ----------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLERS, ids=["in the loop", "in a thread"])
async def test_dependents_go_on_when_a_running_service_is_ready(call: Any) -> None:
    async with await WorkflowEngine.create() as flow:
        with Gate() as gate:
            started, told = threading.Event(), threading.Event()

            @flow.function_task(service=True)
            def serve() -> str:
                started.set()
                gate.hold()
                told.set()
                return "the end of the service"

            service = serve()
            user = flow.function_task(str.upper)(service)
            await reached(started)
            assert service.state == "RUNNING"
            call(service.set_result, "tcp://here")
            assert await user == "TCP://HERE"
            assert (service.result(), service.state) == ("tcp://here", "DONE")
            assert not told.is_set()  # it serves on
            gate.set()
            await reached(told)
        assert service.result() == "tcp://here"
        while flow._scheduler.services:  # until its end has been told too
            await launched()
        assert_nothing_kept(flow)


async def test_a_service_tells_that_it_is_ready_when_its_body_has_a_way_to() -> None:
    async with await WorkflowEngine.create() as flow:
        addresses: asyncio.Queue[str] = asyncio.Queue()
        stop = asyncio.Event()

        @flow.block(service=True)
        async def serve() -> None:
            await addresses.put("tcp://block")
            await stop.wait()

        service = serve()
        service.set_result(await addresses.get())
        assert await flow.function_task(identity)(service) == "tcp://block"
        assert flow._scheduler.bodies
        stop.set()
        while flow._scheduler.bodies:
            await launched()
        assert_nothing_kept(flow)


@pytest.mark.parametrize("call", CALLERS, ids=["in the loop", "in a thread"])
async def test_dependents_fail_when_a_running_service_is_ended_with_an_error(call: Any) -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend) as flow:
        service = flow.function_task(service=True)(identity)(1)
        other = flow.function_task(service=True)(identity)(2)
        user = flow.function_task(identity)(service)
        await backend.given(service)
        call(service.set_exception, ConnectionError("port taken"))
        call(other.set_exception, ConnectionError)  # a class, as asyncio takes too
        with pytest.raises(ConnectionError, match="port taken"):
            await service
        with pytest.raises(ConnectionError):
            await other
        await asyncio.wait([user])
        assert user.exception().__cause__ is service.exception()


async def test_no_error_of_exit_kills_the_program_when_it_ends_a_service() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend) as flow:
        for error in (SystemExit(3), KeyboardInterrupt(), StopIteration(1)):
            service = flow.function_task(service=True)(identity)(1)
            await backend.given(service)
            service.set_exception(error)
            with pytest.raises(RuntimeError, match=f"'identity' raised {type(error).__name__}"):
                await service


@pytest.mark.parametrize("call", CALLERS, ids=["in the loop", "in a thread"])
async def test_the_caller_is_told_when_a_component_has_ended_already(call: Any) -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend) as flow:
        service = flow.function_task(identity)(1)
        await backend.end(service, return_value="first")
        cancelled = flow.function_task(identity)(1)
        cancelled.cancel()
        for future in (service, cancelled):
            with pytest.raises(asyncio.InvalidStateError, match="has ended already"):
                call(future.set_result, "second")
            with pytest.raises(asyncio.InvalidStateError, match="has ended already"):
                call(future.set_exception, ValueError("second"))
        assert await service == "first"
        await launched()
        assert_nothing_kept(flow)


async def test_the_first_wins_quietly_when_threads_end_a_service_at_once() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend) as flow:
        service = flow.function_task(service=True)(identity)(1)
        task = await backend.given(service)
        for number in range(5):  # all before the loop hears of the first
            in_thread(service.set_result, number)
            in_thread(service.set_exception, ValueError(number))
        in_thread(backend.report, {**task, "return_value": "its end"}, "DONE")
        assert await service == 0
        await launched()
        assert_nothing_kept(flow)


@pytest.mark.parametrize("call", CALLERS, ids=["in the loop", "in a thread"])
async def test_a_component_goes_its_way_when_ended_by_hand_while_it_waits(call: Any) -> None:
    complaints: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, about: complaints.append(about["exception"]))
    async with await WorkflowEngine.create() as flow:
        source: asyncio.Future[int] = loop.create_future()
        waiting = flow.function_task(identity)(source)
        behind = flow.function_task(identity)(waiting)
        if call is in_thread:
            call(waiting.set_result, "by hand")
            await launched()
        else:
            with pytest.raises(asyncio.InvalidStateError) as caught:
                call(waiting.set_result, "by hand")
            complaints.append(caught.value)
        assert len(complaints) == 1
        assert "waits for others" in str(complaints[0])
        assert "PENDING" in str(complaints[0])
        source.set_result(7)
        assert await behind == 7
        assert_nothing_kept(flow)


async def test_the_body_never_runs_when_a_component_is_ended_before_its_launch() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend) as flow:
        kinds = [flow.function_task, flow.executable_task, flow.prompt_task, flow.block]
        futures = [kind(async_identity)("text") for kind in kinds]
        for future in futures:
            future.set_result("by hand")
        assert await asyncio.gather(*futures) == ["by hand"] * 4
        for _ in range(3):
            await launched()
        assert not backend.tasks
        assert_nothing_kept(flow)


# --- the end of a service -------------------------------------------------------------------------


async def test_a_ready_service_is_interrupted_when_the_engine_is_shut_down() -> None:
    with Runtime(python_threads=2) as runtime:
        flow = await WorkflowEngine.create(RuntimeExecutionBackend(runtime))
        started, ended = threading.Event(), threading.Event()

        @flow.function_task(service=True)
        async def serve() -> None:
            try:
                started.set()
                await asyncio.sleep(GUARD_S)
            finally:
                ended.set()

        service = serve()
        await reached(started)
        service.set_result("ready")
        await flow.shutdown()
        assert ended.is_set()
        assert service.result() == "ready"


async def test_a_ready_block_is_cancelled_and_awaited_when_the_engine_is_shut_down() -> None:
    flow = await WorkflowEngine.create()
    ended: list[str] = []
    begun = asyncio.Event()

    @flow.block(service=True)
    async def serve() -> None:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await launched()
            ended.append("served")

    service = serve()
    await begun.wait()
    service.set_result("ready")
    await flow.shutdown()
    assert ended == ["served"]
    assert service.result() == "ready"


@pytest.mark.parametrize("skip", [False, True])
async def test_the_backend_is_told_to_stop_ready_services_when_the_engine_is_shut_down(
    skip: bool,
) -> None:
    backend = ForeignBackend()
    flow = await WorkflowEngine.create(backend)
    services = [flow.function_task(service=True)(identity)(n) for n in range(3)]
    for service in services:
        await backend.given(service)
        service.set_result("ready")
    backend.report(services[0].task, "RUNNING")  # not its end
    backend.report(services[1].task, "DONE")
    backend.report({**services[2].task, "engine": "another"}, "DONE")
    await flow.shutdown(skip_execution_backend=skip)
    assert backend.cancelled == [services[0].uid, services[2].uid]
    assert backend.shutdowns == (0 if skip else 1)
    assert [service.result() for service in services] == ["ready"] * 3


async def test_a_service_is_cancelled_when_it_is_not_ready_at_shutdown() -> None:
    backend = ForeignBackend()
    flow = await WorkflowEngine.create(backend)
    service = flow.function_task(service=True)(identity)(1)
    await backend.given(service)
    await flow.shutdown()
    assert service.cancelled()
    assert backend.cancelled == [service.uid]


# --- what backends report -------------------------------------------------------------------------


class AsObject:
    """A task as some backends have it."""

    def __init__(self, task: dict[str, Any], **outcome: Any) -> None:
        self._task = {**task, **outcome}

    def as_dict(self) -> dict[str, Any]:
        return self._task


@pytest.mark.parametrize("call", CALLERS, ids=["in the loop", "in a thread"])
async def test_a_service_callback_gets_future_task_and_state_when_one_is_reported(
    call: Any,
) -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend) as flow:
        service = flow.function_task(service=True)(identity)(1)
        user = flow.block(async_identity)(service)
        task = AsObject(await backend.given(service))
        seen: list[Any] = []

        def when_ready(future: Any, task: Any, state: str) -> None:
            seen.append((future, task, state, threading.current_thread()))
            future.set_result("tcp://here")

        call(backend.report, task, "SCHEDULED", when_ready)  # nothing that it knows
        call(backend.report, task, "RUNNING", when_ready)
        assert await user == "tcp://here"
        assert seen == [(service, task, "RUNNING", threading.current_thread())]
        call(backend.report, task, "DONE", when_ready)  # after its end
        await launched()
        assert len(seen) == 1
        assert_nothing_kept(flow)


async def test_the_state_is_heeded_when_a_service_callback_leaves_the_future_alone() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend) as flow:
        service = flow.function_task(service=True)(identity)(1)
        states: list[str] = []

        def look(future: Any, _task: Any, state: str) -> None:
            states.append(f"{future.state} {state}")

        task = await backend.given(service)
        backend.report(task, "RUNNING", look)
        assert service.state == "RUNNING"
        backend.report({**task, "return_value": "at its end"}, "DONE", look)
        assert await service == "at its end"
        assert states == ["PENDING RUNNING", "RUNNING DONE"]


async def test_a_service_is_ready_later_when_its_callback_starts_a_thread() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend) as flow:
        with Gate() as gate:

            def wait_in_thread(future: Any, task: Any, state: str) -> None:
                def wait() -> None:
                    future.set_result(gate.hold(task["name"]))

                threading.Thread(target=wait).start()

            service = flow.function_task(service=True)(identity)(1)
            backend.report(await backend.given(service), "RUNNING", wait_in_thread)
            assert service.state == "RUNNING"
            gate.set()
            assert await service == "identity"


@pytest.mark.parametrize("call", CALLERS, ids=["in the loop", "in a thread"])
async def test_outcomes_are_taken_when_tasks_are_objects(call: Any) -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend) as flow:
        task = flow.function_task(identity)
        done, failed, cancelled = task(1), task(2), task(3)
        reports = [(done, "DONE"), (failed, "FAILED"), (cancelled, "CANCELED")]
        for future, state in reports:
            given = await backend.given(future)
            report = AsObject(given, return_value=4, exception=LookupError("mine"))
            call(backend.report, report, "RUNNING")
            call(backend.report, report, state)
        assert await done == 4
        with pytest.raises(LookupError, match="mine"):
            await failed
        await asyncio.wait([cancelled])
        assert cancelled.cancelled()


class Words:
    DONE = "finished"
    RUNNING = "active"
    CANCELED = "dropped"
    FAILED = "broken"


class Members(enum.Enum):
    DONE = "finished"
    RUNNING = 2
    CANCELED = (3, 4)
    FAILED = "broken"


@pytest.mark.parametrize("states", [Words, Words(), Members], ids=["class", "object", "enum"])
async def test_outcomes_are_taken_when_a_backend_has_its_own_words(states: Any) -> None:
    class Backend(ForeignBackend):
        def get_task_states_map(self) -> Any:
            return states

    backend = Backend()
    async with await WorkflowEngine.create(backend) as flow:
        task = flow.function_task(identity)
        done, failed, cancelled, plain = task(1), task(2), task(3), task(4)
        for future in (done, failed, cancelled, plain):
            backend.report(await backend.given(future), states.RUNNING)
            assert future.state == "RUNNING"
        await backend.end(done, states.DONE, return_value=1)
        await backend.end(failed, states.FAILED, exception=LookupError("mine"))
        await backend.end(cancelled, states.CANCELED)
        if states is Members:
            await backend.end(plain, "finished", return_value=4)  # its value is known too
        else:
            await backend.end(plain, "DONE", return_value=4)
        await asyncio.wait([done, failed, cancelled, plain])
        assert (done.result(), str(failed.exception()), plain.result()) == (1, "mine", 4)
        assert cancelled.cancelled()
