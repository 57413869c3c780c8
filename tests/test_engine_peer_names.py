"""Names that programs and backends written for radical.asyncflow expect, and what stands behind."""

import asyncio
import importlib
import inspect
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from engine_support import ForeignBackend, Gate, async_identity, identity, reached

from dftracer import asyncflow
from dftracer.asyncflow import (
    LocalExecutionBackend,
    NoopExecutionBackend,
    RuntimeExecutionBackend,
    WorkflowEngine,
    utils,
    workflow_manager,
)
from dftracer.asyncflow.backends import StateMapper
from dftracer.asyncflow.backends.base import ExecutionBackend, State
from dftracer.utils import Runtime

DECORATORS = ["function_task", "executable_task", "prompt_task", "block"]


# --- modules --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("workflow_manager", "LocalExecutionBackend NoopExecutionBackend InputFile OutputFile"),
        ("workflow_manager", "DependencyFailureError get_next_uid reset_uid_counter"),
        ("workflow_manager", "get_event_loop_or_raise TASK BLOCK FUNCTION EXECUTABLE PROMPT"),
        ("backends", "LocalExecutionBackend NoopExecutionBackend StateMapper"),
        ("utils", "get_next_uid reset_uid_counter get_event_loop_or_raise"),
    ],
)
def test_names_are_the_same_objects_when_imported_from_where_programs_do(
    module: str, names: str
) -> None:
    here = importlib.import_module(f"dftracer.asyncflow.{module}")
    for name in names.split():
        value = getattr(here, name)
        for other in (asyncflow, utils, workflow_manager):
            assert getattr(other, name, value) is value
        assert isinstance(value, str) or inspect.getdoc(value)


async def test_constants_are_keys_when_a_description_is_read() -> None:
    async with await WorkflowEngine.create(dry_run=True) as flow:
        task = flow.function_task(identity)(1)
        command, prompt = flow.executable_task(lambda: "ls")(), flow.prompt_task(lambda: "why?")()
        block = flow.block(async_identity)(1)
        await asyncio.gather(task, command, prompt, block)
        kinds = (workflow_manager.FUNCTION, workflow_manager.EXECUTABLE, workflow_manager.PROMPT)
        for future, its_kind in zip((task, command, prompt), kinds, strict=True):
            assert [kind for kind in kinds if future.task[kind]] == [its_kind]
            assert flow.components[future.uid]["type"] == workflow_manager.TASK
        assert flow.components[block.uid]["type"] == workflow_manager.BLOCK


def test_no_number_is_given_twice_when_threads_ask_for_them() -> None:
    utils.reset_uid_counter()
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda _: utils.get_next_uid(), range(400)))
    assert sorted(numbers) == [f"{number:06d}" for number in range(1, 401)]
    utils.reset_uid_counter()
    assert utils.get_next_uid() == "000001"


async def test_tasks_keep_their_numbers_when_the_program_counts_too() -> None:
    utils.reset_uid_counter()
    async with await WorkflowEngine.create(dry_run=True) as flow:
        assert utils.get_next_uid() == "000001"
        first = flow.function_task(identity)(1)
        utils.reset_uid_counter()
        second = flow.function_task(identity)(2)
        assert (first.id, second.id) == ("000001", "000002")
        await asyncio.gather(first, second)


def test_an_engine_says_what_to_do_when_no_loop_runs() -> None:
    with pytest.raises(RuntimeError, match=r"^WorkflowEngine must be .*await WorkflowEngine\.cre"):
        WorkflowEngine(NoopExecutionBackend())
    with pytest.raises(RuntimeError, match=r"^AsyncWorkflowEngine must be created within an async"):
        utils.get_event_loop_or_raise()


async def test_the_loop_is_given_when_one_runs() -> None:
    assert utils.get_event_loop_or_raise("Mine") is asyncio.get_running_loop()
    with pytest.raises(RuntimeError, match=r"^Mine must be created"):
        await asyncio.to_thread(utils.get_event_loop_or_raise, "Mine")


# --- backends -------------------------------------------------------------------------------------


def make_backends() -> list[ExecutionBackend]:
    return [NoopExecutionBackend("noop"), RuntimeExecutionBackend(), LocalExecutionBackend()]


@pytest.mark.parametrize("backend", make_backends(), ids=lambda each: type(each).__name__)
def test_hooks_do_nothing_when_a_backend_needs_none(backend: ExecutionBackend) -> None:
    task: dict[str, Any] = {"uid": "task.1"}
    backend.build_task("task.1", task, {})
    backend.build_task(uid="task.1", task_desc=task, task_specific_kwargs={})
    backend.link_implicit_data_deps(src_task={}, dst_task=task)
    backend.task_state_cb(task, "DONE")
    backend.task_state_cb()
    assert task == {"uid": "task.1"}
    assert backend.tasks == {}
    if not backend.supports_explicit_data_linking:
        assert backend.link_explicit_data_deps({}, task, file_name="a", file_path="/b") is None
        assert task == {"uid": "task.1"}


@pytest.mark.parametrize("backend", make_backends(), ids=lambda each: type(each).__name__)
def test_the_end_of_a_task_is_known_when_the_map_of_states_is_asked(
    backend: ExecutionBackend,
) -> None:
    states = backend.get_task_states_map()
    assert isinstance(states, StateMapper)
    assert states.terminal_states == {"DONE", "FAILED", "CANCELED"}
    assert "DONE" in states.terminal_states
    assert State.DONE in states.terminal_states
    assert states.RUNNING not in states.terminal_states
    assert (states.RUNNING, states.CANCELED) == ("RUNNING", "CANCELED")


@pytest.mark.parametrize("kind", [RuntimeExecutionBackend, LocalExecutionBackend])
async def test_tasks_are_listed_when_a_backend_holds_them(
    kind: type[RuntimeExecutionBackend | LocalExecutionBackend],
) -> None:
    backend: Any = await (
        RuntimeExecutionBackend(Runtime(python_threads=1))
        if kind is RuntimeExecutionBackend
        else LocalExecutionBackend(ThreadPoolExecutor(1))
    )
    with Gate() as gate:
        async with await WorkflowEngine.create(backend) as flow:
            begun = threading.Event()
            held = flow.function_task(lambda: begun.set() or gate.hold(1))()
            waiting, dependent = flow.function_task(identity)(2), flow.function_task(identity)(held)
            await reached(begun)
            tasks = backend.tasks
            assert list(tasks) == [held.uid, waiting.uid]
            assert tasks[held.uid] is held.task
            assert isinstance(tasks, Mapping)
            with pytest.raises(TypeError):  # a change would get lost
                tasks["task.000009"] = {}
            assert dependent.uid not in tasks
            gate.set()
            assert await asyncio.gather(held, waiting, dependent) == [1, 2, 1]
            assert backend.tasks == {}


async def test_a_subclass_keeps_book_when_it_has_a_dict_of_its_own() -> None:
    class Noop(NoopExecutionBackend):
        async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
            self.tasks.update((task["uid"], task) for task in tasks)  # type: ignore[attr-defined]
            await super().submit_tasks(tasks)

    class Local(LocalExecutionBackend):
        def __init__(self) -> None:
            super().__init__(name="local")
            self.tasks: dict[str, Any] = {}

        async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
            for task in tasks:
                self.tasks[task["uid"]] = task
            await super().submit_tasks(tasks)

    backends = [Noop(), Local()]
    async with await WorkflowEngine.create(backends) as flow:
        one = flow.function_task(identity)(1)
        other = flow.function_task(backend="local")(identity)(one)
        assert await other == "Dummy Output"
        assert [list(backend.tasks) for backend in backends] == [[one.uid], [other.uid]]


async def test_a_session_of_rhapsody_runs_tasks_when_a_backend_of_ours_serves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = pytest.importorskip("rhapsody.api", reason="rhapsody-py is not installed")
    monkeypatch.chdir(tmp_path)
    for backend in (await RuntimeExecutionBackend(), await LocalExecutionBackend()):
        session = api.Session([backend], uid=f"s-{backend.name}", work_dir=str(tmp_path))
        tasks = [
            api.ComputeTask(function=async_identity, args=(7,)),
            api.ComputeTask(executable="/bin/echo", arguments=["here"]),
        ]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks, timeout=25)
        assert [task["state"] for task in tasks] == ["DONE", "DONE"]
        assert (tasks[0]["return_value"], tasks[1]["stdout"]) == (7, "here\n")
        await session.close()


# --- the engine and its futures -------------------------------------------------------------------


async def test_states_are_those_of_its_backend_when_an_engine_is_asked() -> None:
    class States:
        DONE, RUNNING, FAILED, CANCELED = "finished", "active", "broken", "dropped"
        terminal_states = ("finished", "broken", "dropped")

    class Backend(ForeignBackend):
        def get_task_states_map(self) -> States:
            return States()

    async with await WorkflowEngine.create(Backend(), cancel_on_exit=True) as flow:
        assert flow.task_states_map.DONE == "finished"
    async with await WorkflowEngine.create() as flow:
        assert flow.task_states_map.terminal_states >= {State.DONE}


async def test_nothing_is_recorded_when_the_profiler_is_used() -> None:
    async with await WorkflowEngine.create(dry_run=True) as flow:
        profiler = flow.prof
        profiler.enable()
        profiler.prof("begin", uid="task.000001", state="RUNNING", msg="why")
        profiler.prof("end", "task.000001")
        profiler.flush()
        profiler.flush(verbose=True)
        profiler.disable()
        profiler.close()
        assert profiler.enabled is False


async def test_the_queue_is_empty_when_tasks_have_run() -> None:
    async with await WorkflowEngine.create(dry_run=True) as flow:
        await flow.function_task(identity)(1)
        assert isinstance(flow.queue, asyncio.Queue)
        assert flow.queue.empty()


async def test_a_task_is_cancelled_at_its_backend_when_by_the_original_way() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        task, block = flow.function_task(identity)(1), flow.block(asyncio.sleep)(60)
        dependent = flow.function_task(identity)(task)
        await backend.given(task)
        # As those do who wrap it.
        future: Any = task
        future.cancel = lambda msg=None: future.original_cancel(msg)
        assert task.cancel("enough")
        assert task.cancelled()
        assert dependent.cancelled()
        assert block.original_cancel()
        assert block.cancelled()
        assert not task.original_cancel()
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await task
    assert backend.cancelled == [task.uid]


async def test_both_spellings_are_equal_when_a_call_was_cancelled() -> None:
    async with await WorkflowEngine.create(ForeignBackend(), cancel_on_exit=True) as flow:
        future = flow.function_task(identity)(1)
        assert future.state != "CANCELLED"
        future.cancel()
        assert future.state == "CANCELLED" == future.state
        assert (future.state != "CANCELLED") is False
        assert future.state == "CANCELED"
        assert future.state in ("FAILED", "CANCELLED")
        assert future.state not in {"PENDING", "RUNNING", "DONE", "FAILED"}
        assert future.state != 3
        assert str(future.state) == f"{future.state}" == "CANCELED"
        assert State.DONE != "CANCELLED" != State.FAILED
        assert {State.CANCELED: 1}["CANCELED"] == 1


# --- decorators -----------------------------------------------------------------------------------


@pytest.mark.parametrize("decorator", DECORATORS)
async def test_options_are_taken_when_given_by_position(decorator: str) -> None:
    backends = [ForeignBackend("one"), ForeignBackend("two")]
    async with await WorkflowEngine.create(backends, cancel_on_exit=True) as flow:
        decorate: Callable[..., Any] = getattr(flow, decorator)
        for decorated in (
            decorate(None, True, "two", True)(async_identity),
            decorate(async_identity, True, "two", True),
            decorate(async_identity, True, backend="two", capture_stdio=True),
        ):
            future = decorated("text")
            description = flow.components[future.uid]["description"]
            assert description["is_service"] is description["capture_stdio"] is True
            assert description["target_backend"] == "two"
        with pytest.raises(TypeError, match=rf"@flow\.{decorator}: service must be True or False"):
            decorate(async_identity, "two")
        with pytest.raises(TypeError, match="positional argument"):
            decorate(async_identity, True, "two", True, 3)
        with pytest.raises(ValueError, match="no backend named 'three'"):
            decorate(None, False, "three")


@pytest.mark.parametrize("decorator", DECORATORS)
async def test_the_default_description_is_shown_when_a_function_is_decorated(
    decorator: str,
) -> None:
    resources = {"ranks": 8}

    async def body(task_description: dict[str, int] = resources) -> str:
        return "text"

    async with await WorkflowEngine.create(dry_run=True) as flow:
        decorate: Any = getattr(flow, decorator)
        decorated = decorate(body)
        assert decorated.__task_description__ == resources
        assert decorated.__name__ == "body"
        decorated.__task_description__["ranks"] = 9  # a copy
        assert resources == {"ranks": 8}
        assert decorate(async_identity).__task_description__ == {}
        assert "__task_description__" not in vars(body)


# --- texts ----------------------------------------------------------------------------------------


async def test_errors_have_the_words_that_programs_look_for_when_something_fails() -> None:
    def fail() -> None:
        raise OSError("no luck")

    async with await WorkflowEngine.create() as flow:
        failed = flow.function_task(fail)()
        match = r"^Cannot execute 'identity' due to dependency failure: fail failed: .*no luck"
        with pytest.raises(asyncflow.DependencyFailureError, match=match):
            await flow.function_task(identity)(failed)
        for value in (None, "", "  "):
            with pytest.raises(ValueError, match="'identity' must return a non-empty command stri"):
                await flow.executable_task(identity)(value)
            with pytest.raises(ValueError, match="'identity' must return a non-empty string promp"):
                await flow.prompt_task(identity)(value)
