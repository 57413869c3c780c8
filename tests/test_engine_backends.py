"""Backends of others: they need nothing of ours, and may misbehave in every way but one.

The one: what a backend never reports, never ends, until somebody cancels it.
"""

import asyncio
import contextlib
import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from engine_support import (
    GUARD_S,
    ForeignBackend,
    Gate,
    add,
    assert_nothing_kept,
    async_identity,
    identity,
    launched,
)

from dftracer.asyncflow import (
    DependencyFailureError,
    NoopExecutionBackend,
    RuntimeExecutionBackend,
    WorkflowEngine,
)

pytestmark = pytest.mark.usefixtures("new_loop")


class ThreadBackend(ForeignBackend):
    """Runs functions in threads, and reports from there."""

    def __init__(self, name: str = "threads") -> None:
        super().__init__(name)
        self.pool = ThreadPoolExecutor(4)

    async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
        for task in tasks:
            self.pool.submit(self.run, task)

    def run(self, task: dict[str, Any]) -> None:
        self.report(task, "RUNNING")
        outcome = {"return_value": task["function"](*task["args"], **task["kwargs"])}
        self.report({**task, **outcome}, "DONE")

    async def shutdown(self) -> None:
        self.pool.shutdown()


# --- what the engine asks of an object ------------------------------------------------------------


@pytest.mark.parametrize("method", ["submit_tasks", "cancel_task", "register_callback", "shutdown"])
@pytest.mark.parametrize("value", [None, "not callable"])
async def test_an_object_is_refused_when_it_lacks_a_method(method: str, value: Any) -> None:
    backend = ForeignBackend()
    setattr(backend, method, value)
    with pytest.raises(TypeError, match=rf"execution backend.*it has no {method}\(\)"):
        await WorkflowEngine.create(backend)


@pytest.mark.parametrize("name", [None, 5, b"name"])
async def test_an_object_is_refused_when_it_has_no_name(name: Any) -> None:
    backend = ForeignBackend(name)
    with pytest.raises(TypeError, match="has no name, by which decorators choose it"):
        await WorkflowEngine.create([ForeignBackend(), backend])


async def test_a_class_is_refused_when_an_object_of_it_is_meant() -> None:
    with pytest.raises(TypeError, match="a class: make one of it"):
        await WorkflowEngine.create(RuntimeExecutionBackend)


class SlottedBackend:
    """Takes no attributes but its own, and its methods are plain."""

    __slots__ = ("ended", "name", "report")

    def __init__(self) -> None:
        self.name = "slotted"
        self.ended: list[str] = []

    def register_callback(self, report: Callable[..., None]) -> None:
        self.report = report

    def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
        for task in tasks:
            if task["function"] is identity:
                self.report({"uid": task["uid"], "return_value": task["args"][0]}, "DONE")

    def cancel_task(self, uid: str) -> bool:
        self.ended.append(uid)
        return True

    def shutdown(self) -> None:
        self.ended.append("backend")


async def test_tasks_run_when_a_backend_has_plain_methods_and_slots() -> None:
    backend = SlottedBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        task = flow.function_task(identity)
        assert await task(task("as it is")) == "as it is"
        endless = flow.function_task(add)(1, 1)
        await launched()
        await launched()
        endless.cancel()
        await flow.shutdown()
    assert backend.ended == [endless.uid, "backend"]


async def test_marks_of_its_engines_are_left_when_a_backend_takes_attributes() -> None:
    backend: Any = ForeignBackend()
    for number in range(2):
        async with await WorkflowEngine.create(backend, uid=f"engine{number}"):
            assert backend.is_attached
            assert backend.attached_to == [f"engine{n}" for n in range(number + 1)]
        assert not backend.is_attached
    backend.is_attached, backend.attached_to = True, []
    with pytest.raises(RuntimeError, match="serves another engine"):
        await WorkflowEngine.create(backend)


async def test_the_state_is_shown_when_a_backend_has_attributes_named_like_our_methods() -> None:
    backend: Any = ForeignBackend()
    backend.is_running = backend.state = True
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        future = flow.function_task(identity)(1)
        await backend.given(future)
        assert "PENDING" in repr(future)
        backend.report(future.task, "RUNNING")
        assert "RUNNING" in repr(future)
        await flow.shutdown()


# --- submit_tasks ---------------------------------------------------------------------------------


async def test_only_its_tasks_fail_when_a_backend_refuses_them() -> None:
    class Refusing(ForeignBackend):
        async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
            await super().submit_tasks(tasks)
            await asyncio.sleep(0)
            raise ConnectionError("nobody answers")

    class RefusingAtOnce(ForeignBackend):
        def submit_tasks(self, tasks: list[dict[str, Any]]) -> Any:
            raise ConnectionError("nobody answers")

    backends = [RuntimeExecutionBackend(), Refusing("late"), RefusingAtOnce("at once")]
    async with await WorkflowEngine.create(backends, cancel_on_exit=True) as flow:
        good = flow.function_task(identity)(1)
        failing = [flow.function_task(identity, backend=b.name)(1) for b in backends[1:]]
        failing.append(flow.executable_task(lambda: "true", backend="late")())
        behind = flow.function_task(identity)(failing)
        for future in failing:
            with pytest.raises(ConnectionError, match="nobody answers"):
                await future
        with pytest.raises(DependencyFailureError) as caught:
            await behind
        assert caught.value.failed_dependencies == ["identity", "identity", "<lambda>"]
        assert await good == 1
        assert_nothing_kept(flow)


async def test_a_task_keeps_its_result_when_its_backend_fails_after_reporting_it() -> None:
    class Partly(ForeignBackend):
        async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
            self.report({**tasks[0], "return_value": "done before"}, "DONE")
            raise ConnectionError("lost the rest")

    async with await WorkflowEngine.create(Partly(), cancel_on_exit=True) as flow:
        first, second = flow.function_task(identity)(1), flow.function_task(identity)(2)
        assert await first == "done before"
        with pytest.raises(ConnectionError, match="lost the rest"):
            await second


class WaitingBackend(ForeignBackend):
    """Comes back from ``submit_tasks`` only when the tasks have ended."""

    async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
        for task in tasks:
            if task["function"] is identity:
                await asyncio.get_running_loop().create_future()
            result = await task["function"](*task["args"], **task["kwargs"])
            self.report({**task, "return_value": result}, "DONE")


async def test_the_rest_goes_on_when_a_backend_waits_for_its_tasks() -> None:
    flow = await WorkflowEngine.create(WaitingBackend())
    endless = flow.function_task(identity)(1)
    await launched()  # so that it is submitted alone
    task = flow.function_task(async_identity)
    assert await asyncio.gather(*(task(task(n)) for n in range(5))) == list(range(5))
    await asyncio.wait_for(flow.shutdown(), GUARD_S)
    assert endless.cancelled()


async def test_tasks_are_cancelled_when_their_submission_is() -> None:
    class Cancelling(ForeignBackend):
        async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
            raise asyncio.CancelledError

    async with await WorkflowEngine.create(Cancelling(), cancel_on_exit=True) as flow:
        future = flow.function_task(identity)(1)
        behind = flow.function_task(identity)(future)
        await asyncio.wait([future, behind])
        assert (future.cancelled(), behind.cancelled()) == (True, True)


# --- cancel_task and shutdown ---------------------------------------------------------------------


class StrictBackend(ForeignBackend):
    """Takes it amiss to be asked to cancel what it was not given."""

    async def cancel_task(self, uid: str) -> bool:
        if uid not in self.tasks:
            raise ValueError(f"task {uid} not found")
        return await super().cancel_task(uid)


async def test_a_backend_hears_nothing_of_a_task_when_its_submission_has_not_begun() -> None:
    backend = StrictBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        call = flow.function_task(identity)
        first, second = call(1), call(2)
        flow._scheduler.launch()  # as the loop will do, before it begins the submission
        assert second.cancel()
        await backend.end(first, return_value=1)
        assert await first == 1
        assert list(backend.tasks) == [first.uid]
        third = call(3)
        flow._scheduler.launch()
        await flow.shutdown()
        assert third.cancelled()
    assert list(backend.tasks) == [first.uid]
    assert backend.cancelled == []


async def test_a_complaint_is_made_when_a_backend_cannot_cancel() -> None:
    class Raising(ForeignBackend):
        async def cancel_task(self, uid: str) -> bool:
            raise ConnectionError("nobody answers")

    class RaisingAtOnce(ForeignBackend):
        def cancel_task(self, uid: str) -> Any:
            raise ConnectionError("nobody answers")

    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: complaints.append(about))
    backends = [Raising("late"), RaisingAtOnce("at once")]
    async with await WorkflowEngine.create(backends, cancel_on_exit=True) as flow:
        for backend in backends:
            future = flow.function_task(identity, backend=backend.name)(1)
            await backend.given(future)
            future.cancel()
            assert future.cancelled()
            while not complaints:
                await launched()
            about = complaints.pop()
            assert about["message"] == f"backend '{backend.name}' could not cancel {future.uid}"
            assert isinstance(about["exception"], ConnectionError)


@pytest.mark.parametrize("is_plain", [False, True])
async def test_all_backends_are_shut_down_when_one_of_them_fails_at_that(
    is_plain: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Raising(ForeignBackend):
        async def shutdown(self) -> None:
            self.fail()

        def fail(self) -> None:
            self.shutdowns += 1
            if self.shutdowns == 1:
                raise OSError("does not let go")

    first, raising, last = ForeignBackend("first"), Raising("raising"), ForeignBackend("last")
    if is_plain:
        raising.shutdown = raising.fail  # type: ignore[method-assign,assignment]
    flow = await WorkflowEngine.create([first, raising, last])
    future = flow.function_task(identity)(1)
    with pytest.raises(OSError, match="does not let go"):
        await flow.shutdown()
    assert future.cancelled()
    assert [backend.shutdowns for backend in (first, raising, last)] == [1, 1, 1]
    assert "backend 'raising' failed to shut down" in caplog.text
    await flow.shutdown()  # tried again, as it has failed
    assert raising.shutdowns == 2
    await flow.shutdown()
    assert raising.shutdowns == 2
    for backend in (first, raising, last):  # free for the next
        await (await WorkflowEngine.create(backend)).shutdown()


# --- what it reports ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "as_it_is",
    [lambda task: task, dict, copy.copy, lambda task: {"uid": task["uid"]}],
    ids=["itself", "dict", "copy", "only the uid"],
)
@pytest.mark.parametrize("where", ["in the loop", "in a thread"])
async def test_an_outcome_is_taken_when_the_dict_is_a_copy(as_it_is: Any, where: str) -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        future = flow.function_task(identity)(1)
        record = as_it_is(await backend.given(future))
        record["return_value"] = "reported"
        if where == "in the loop":
            backend.report(record, "DONE")
        else:
            await asyncio.to_thread(backend.report, record, "DONE")
        assert await future == "reported"


async def test_the_first_outcome_counts_when_a_backend_reports_many() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        for first in ("DONE", "FAILED", "CANCELED"):
            future = flow.function_task(identity)(1)
            task = await backend.given(future)
            task.update(return_value="mine", exception=LookupError("mine"))
            backend.report(task, first)
            ended = future.state
            for state in ("RUNNING", "DONE", "FAILED", "CANCELED", "DONE"):
                backend.report(task, state)
                await asyncio.to_thread(backend.report, task, state)
            assert future.state == ended
            with contextlib.suppress(LookupError, asyncio.CancelledError):
                assert await future == "mine"
        await launched()
        assert_nothing_kept(flow)


async def test_an_outcome_is_ignored_when_it_comes_after_the_cancellation() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        future = flow.function_task(identity)(1)
        task = await backend.given(future)
        future.cancel()
        backend.report({**task, "return_value": "late"}, "DONE")
        await asyncio.to_thread(backend.report, task, "FAILED")
        await launched()
        assert future.cancelled()
        assert backend.cancelled == [future.uid]


async def test_a_component_goes_its_way_when_a_backend_reports_what_it_was_not_given() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        source: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiting = flow.function_task(identity)(source)
        ready = flow.function_task(identity)(1)
        for state in ("RUNNING", "DONE", "FAILED", "CANCELED"):
            for future in (waiting, ready):
                backend.report({"uid": future.uid, "return_value": "guessed"}, state)
            for uid in ("task.000099", "nonsense", "", None, 5):
                backend.report({"uid": uid, "return_value": "guessed"}, state)
        assert (waiting.state, ready.state) == ("PENDING", "PENDING")
        source.set_result(2)
        await backend.end(waiting, return_value="true")
        await backend.end(ready, return_value="true")
        assert [await waiting, await ready] == ["true", "true"]


async def test_late_outcomes_are_ignored_when_the_backend_serves_the_next_engine() -> None:
    backend = ForeignBackend()
    first = await WorkflowEngine.create(backend)
    early = first.function_task(identity)(1)
    report, task = backend.report, await backend.given(early)
    await first.shutdown(skip_execution_backend=True)
    backend.tasks.clear()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as second:
        future = second.function_task(identity)(2)
        assert future.uid == early.uid
        await backend.given(future)
        for tell in (report, backend.report):
            tell({**task, "return_value": "of the first"}, "DONE")
            await asyncio.to_thread(tell, task, "FAILED")
        await launched()
        assert not future.done()
        await backend.end(future, return_value="of the second")
        assert await future == "of the second"


def test_nobody_is_told_when_a_backend_reports_after_the_end_of_the_loop() -> None:
    async def main() -> tuple[ForeignBackend, Any]:
        backend = ForeignBackend()
        flow = await WorkflowEngine.create(backend)  # and never shut down
        future = flow.function_task(identity)(1)
        return backend, await backend.given(future)

    errors: list[BaseException] = []
    backend, task = asyncio.run(main())

    def report() -> None:
        try:
            backend.report(task, "DONE")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=report)
    thread.start()
    thread.join()
    assert errors == []


# --- many -----------------------------------------------------------------------------------------


async def test_nothing_is_lost_when_thousands_are_reported_from_threads() -> None:
    backend = ThreadBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        task = flow.function_task(add)
        chains = [task(task(task(number, 0), 0), 1) for number in range(1_000)]
        assert await asyncio.gather(*chains) == list(range(1, 1_001))
        assert_nothing_kept(flow)


async def test_everything_ends_once_when_a_shutdown_meets_reports_from_threads() -> None:
    backend = ThreadBackend()
    flow = await WorkflowEngine.create(backend)
    ends: list[str] = []
    with Gate() as gate:
        futures = [flow.function_task(gate.hold)(number) for number in range(200)]
        futures += [flow.function_task(identity)(future) for future in futures]
        for future in futures:
            future.add_done_callback(lambda f: ends.append(f.uid))
        await launched()
        gate.set()
        await launched()
        await flow.shutdown()
    await launched()
    assert sorted(ends) == sorted(future.uid for future in futures)
    assert all(future.done() for future in futures)
    assert_nothing_kept(flow)


def test_engines_do_not_mix_when_two_threads_have_each_a_loop_and_several_engines() -> None:
    def work(start: int) -> list[int]:
        async def main() -> list[int]:
            names = ("a", "b")
            backends = [ThreadBackend(name) for name in names]
            one = await WorkflowEngine.create(backends)
            other = await WorkflowEngine.create(ThreadBackend())
            async with one, other:
                here = [one.function_task(add, backend=name) for name in names]
                there = other.function_task(add)
                results = [
                    there(here[n % 2](start, n), here[(n + 1) % 2](0, 0)) for n in range(100)
                ]
                return list(await asyncio.gather(*results))

        both.wait(GUARD_S)
        return asyncio.run(main())

    both = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(work, (0, 1_000)))
    assert results == [list(range(100)), list(range(1_000, 1_100))]


async def test_a_dry_call_is_described_as_run_when_it_has_ended() -> None:
    async with await WorkflowEngine.create(NoopExecutionBackend(), cancel_on_exit=True) as flow:
        future = flow.function_task(identity)(1)
        assert await future == "Dummy Output"
        kept = {key: future.task[key] for key in ("stdout", "return_value", "exit_code")}
    assert kept == {"stdout": "Dummy Output", "return_value": "Dummy Output", "exit_code": 0}


async def test_tasks_go_the_way_of_a_subclass_when_it_changes_their_submission() -> None:
    class Counting(NoopExecutionBackend):
        seen = 0

        async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
            self.seen += len(tasks)
            await super().submit_tasks(tasks)

    async with await WorkflowEngine.create(backend := Counting(), cancel_on_exit=True) as flow:
        await asyncio.gather(*map(flow.function_task(identity), range(5)))
    assert backend.seen == 5


async def test_a_subclass_is_asked_when_it_changes_the_cancellation() -> None:
    class Asked(RuntimeExecutionBackend):
        def __init__(self) -> None:
            super().__init__()
            self.uids: list[str] = []

        async def cancel_task(self, uid: str) -> bool:
            self.uids.append(uid)
            return await super().cancel_task(uid)

    async with await WorkflowEngine.create(backend := Asked(), cancel_on_exit=True) as flow:

        @flow.function_task
        async def wait_for_ever() -> None:
            await asyncio.get_running_loop().create_future()

        future = wait_for_ever()
        await launched()
        future.cancel()
    assert backend.uids == [future.task["uid"]]


async def test_tasks_go_the_way_of_a_proxy_when_it_stands_for_one_of_our_backends() -> None:
    class Proxy:
        def __init__(self, backend: NoopExecutionBackend) -> None:
            self._backend = backend
            self.seen: list[str] = []

        def __getattr__(self, name: str) -> Any:
            return getattr(self._backend, name)

        async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
            self.seen += [task["name"] for task in tasks]
            await self._backend.submit_tasks(tasks)

    proxy = Proxy(NoopExecutionBackend())
    async with await WorkflowEngine.create(proxy, cancel_on_exit=True) as flow:
        results = await asyncio.gather(*map(flow.function_task(identity), range(3)))
    assert proxy.seen == ["identity"] * 3
    assert results == ["Dummy Output"] * 3
