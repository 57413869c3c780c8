"""What an engine can be told when it is made, when it decorates, and at a call."""

import asyncio
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_support import ForeignBackend, add, async_identity, identity, launched

from dftracer.asyncflow import (
    CommandError,
    NoopExecutionBackend,
    RuntimeExecutionBackend,
    WorkflowEngine,
)

pytestmark = pytest.mark.usefixtures("new_loop")

DECORATORS = ["function_task", "executable_task", "prompt_task", "block"]


# --- arguments of the engine ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dry_run", 1),
        ("dry_run", None),
        ("implicit_data", "yes"),
        ("uid", 7),
        ("uid", b"mine"),
        ("work_dir", 3.5),
        ("work_dir", b"/tmp"),
    ],
)
async def test_an_argument_is_refused_by_name_when_of_the_wrong_type(name: str, value: Any) -> None:
    backend = ForeignBackend()
    with pytest.raises(TypeError, match=rf"^{name} must be .*, not {type(value).__name__}"):
        await WorkflowEngine.create(backend, **{name: value})
    with pytest.raises(TypeError, match=rf"^{name} must be "):
        WorkflowEngine(backend, **{name: value})
    async with await WorkflowEngine.create(
        backend, cancel_on_exit=True
    ) as flow:  # it serves nobody yet
        assert flow.backend is backend


async def test_arguments_are_shown_when_asked_for(tmp_path: Path) -> None:
    flow = await WorkflowEngine.create(ForeignBackend(), False, False, "mine", tmp_path)
    async with flow:
        assert (flow.uid, flow.work_dir) == ("mine", str(tmp_path))
        assert (flow.dry_run, flow.implicit_data_mode) == (False, False)
        assert flow.loop is asyncio.get_running_loop()
        assert flow.log.name == "dftracer.asyncflow"
        parameters = inspect.signature(WorkflowEngine).parameters
        assert parameters == inspect.signature(WorkflowEngine.create).parameters
    assert os.listdir(tmp_path) == []  # a folder is made when something is put there


async def test_work_dir_is_the_current_one_when_none_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend, uid="mine", cancel_on_exit=True) as flow:
        assert flow.work_dir == str(tmp_path)
        assert vars(backend)["_work_dir"] == str(tmp_path / "mine")


async def test_an_engine_works_when_it_is_made_without_create() -> None:
    async with WorkflowEngine(await RuntimeExecutionBackend()) as flow:
        assert await flow.function_task(add)(1, 2) == 3
        assert flow.backend.state() == "INITIALIZED"
    assert flow.backend.state() == "IDLE"


class StartingBackend(ForeignBackend):
    """Counts how often it is awaited."""

    starts = 0

    def __await__(self) -> Any:
        self.starts += 1
        yield from asyncio.sleep(0).__await__()
        return self


async def test_backends_are_started_when_they_were_not_awaited() -> None:
    backends = [StartingBackend("one"), StartingBackend("two")]
    async with await WorkflowEngine.create(tuple(backends), cancel_on_exit=True) as flow:
        assert flow.backend is backends[0]
        assert [backend.starts for backend in backends] == [1, 1]
    assert [backend.shutdowns for backend in backends] == [1, 1]


async def test_no_backend_is_started_when_two_have_the_same_name() -> None:
    backends = [StartingBackend("same"), StartingBackend("other"), StartingBackend("same")]
    with pytest.raises(ValueError, match=r"two backends are named 'same'"):
        await WorkflowEngine.create(backends)
    with pytest.raises(ValueError, match=r"two backends are named 'same'"):
        WorkflowEngine(backends)
    assert [backend.starts for backend in backends] == [0, 0, 0]


async def test_an_empty_list_is_refused_when_it_is_the_backend() -> None:
    with pytest.raises(ValueError, match=r"list of backends is empty"):
        await WorkflowEngine.create([])


async def test_no_backend_is_taken_when_one_serves_another_engine() -> None:
    free, busy = ForeignBackend("free"), ForeignBackend("busy")
    async with await WorkflowEngine.create(busy, uid="first"):
        with pytest.raises(RuntimeError, match=r"'busy' serves engine 'first'.*shut that"):
            await WorkflowEngine.create([free, busy])
        async with await WorkflowEngine.create(free, cancel_on_exit=True) as flow:
            future = flow.function_task(identity)(1)
            await free.end(future, return_value="taken")
            assert await future == "taken"


# --- dry runs -------------------------------------------------------------------------------------


async def dry_engine(made_by: str, backends: list[ForeignBackend]) -> WorkflowEngine:
    if made_by == "create":
        return await WorkflowEngine.create(backends, dry_run=True)
    return WorkflowEngine(backends, dry_run=True)


@pytest.mark.parametrize("made_by", ["create", "constructor"])
async def test_no_backend_is_used_when_the_run_is_dry(made_by: str) -> None:
    backends = [StartingBackend("one"), StartingBackend("two")]
    async with await dry_engine(made_by, [*backends]) as flow:
        assert flow.dry_run
        assert isinstance(flow.backend, NoopExecutionBackend)
        assert await flow.function_task(identity)(1) == "Dummy Output"
        assert await flow.executable_task(backend="two")(lambda: "false")() == "Dummy Output"
        assert await flow.prompt_task(backend="two")(lambda: "Why?")() == "Dummy Prompt Output"
        assert await flow.block(async_identity)(flow.function_task(identity)(1)) == "Dummy Output"
        with pytest.raises(ValueError, match=r"'three'"):
            flow.function_task(backend="three")
    for backend in backends:
        assert (backend.starts, backend.tasks, backend.shutdowns) == (0, {}, 0)


# --- options of the decorators --------------------------------------------------------------------


async def test_tasks_go_where_they_are_sent_when_there_are_several_backends() -> None:
    one, two = ForeignBackend("one"), ForeignBackend("two")
    async with await WorkflowEngine.create([one, two], cancel_on_exit=True) as flow:
        futures = {
            "default": flow.function_task(identity)(0),
            "one": flow.function_task(backend="one")(identity)(0),
            "two": flow.function_task(backend="two")(identity)(0),
            "executable": flow.executable_task(backend="two")(lambda: "true")(),
            "prompt": flow.prompt_task(lambda: "Why?", backend="two")(),
            "block": flow.block(backend="two")(async_identity)("in the event loop"),
        }
        assert await futures.pop("block") == "in the event loop"
        for name, future in futures.items():
            backend = one if name in ("default", "one") else two
            task = await backend.given(future)
            assert task["target_backend"] == (None if name == "default" else backend.name)
            await backend.end(future, stdout=name, return_value=name)
            assert await future == name
    assert len(one.tasks) == 2
    assert len(two.tasks) == 3


async def test_a_task_can_depend_on_another_when_that_is_on_another_backend() -> None:
    one = ForeignBackend("one")
    async with await WorkflowEngine.create(
        [one, RuntimeExecutionBackend(name="two")], cancel_on_exit=True
    ) as flow:
        source = flow.function_task(identity)(1)
        behind = flow.function_task(add, backend="two")(source, 1)
        await one.end(source, return_value=41)
        assert await behind == 42


@pytest.mark.parametrize("decorator", DECORATORS)
@pytest.mark.parametrize("name", ["unknown", "", 5, [1], object])
async def test_a_backend_is_refused_at_once_when_there_is_none_of_that_name(
    decorator: str, name: Any
) -> None:
    backends = [ForeignBackend("one"), ForeignBackend("two")]
    async with await WorkflowEngine.create(backends, cancel_on_exit=True) as flow:
        with pytest.raises(ValueError, match=rf"@flow\.{decorator}: .*it has 'one', 'two'"):
            getattr(flow, decorator)(backend=name)
        with pytest.raises(ValueError, match=rf"@flow\.{decorator}: "):
            getattr(flow, decorator)(async_identity, backend=name)


@pytest.mark.parametrize("decorator", DECORATORS)
@pytest.mark.parametrize("option", ["service", "capture_stdio"])
@pytest.mark.parametrize("value", [None, 1, "yes"])
async def test_an_option_is_refused_at_once_when_it_is_no_bool(
    decorator: str, option: str, value: Any
) -> None:
    async with await WorkflowEngine.create(ForeignBackend(), cancel_on_exit=True) as flow:
        match = rf"@flow\.{decorator}: {option} must be True or False, not {type(value).__name__}"
        with pytest.raises(TypeError, match=match):
            getattr(flow, decorator)(**{option: value})


@pytest.mark.parametrize("decorator", DECORATORS)
async def test_an_option_is_refused_at_once_when_it_is_unknown(decorator: str) -> None:
    async with await WorkflowEngine.create(ForeignBackend(), cancel_on_exit=True) as flow:
        with pytest.raises(TypeError, match=rf"WorkflowEngine\.{decorator}\(\).*'servise'"):
            getattr(flow, decorator)(servise=True)


@pytest.mark.parametrize("decorator", DECORATORS[:3])
async def test_options_reach_the_description_when_given(decorator: str) -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        decorate = getattr(flow, decorator)
        plain = decorate(lambda: "text")()
        marked = decorate(service=True, capture_stdio=True)(lambda: "text")()
        for future, given in ((plain, False), (marked, True)):
            task = await backend.given(future)
            assert (task["is_service"], task["capture_stdio"]) == (given, given)


async def test_a_folder_for_output_is_made_when_a_program_captures_it(tmp_path: Path) -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(
        backend, uid="mine", work_dir=tmp_path, cancel_on_exit=True
    ) as flow:
        await backend.given(flow.function_task(identity, capture_stdio=True)(1))
        assert not (tmp_path / "mine").exists()
        await backend.given(flow.executable_task(lambda: "true", capture_stdio=True)())
        assert (tmp_path / "mine").is_dir()


async def test_only_that_program_fails_when_its_folder_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    backend = ForeignBackend()
    async with await WorkflowEngine.create(
        backend, work_dir=tmp_path / "file", cancel_on_exit=True
    ) as flow:
        failing = flow.executable_task(lambda: "true", capture_stdio=True)()
        with pytest.raises(NotADirectoryError, match=r"file"):
            await failing
        await backend.given(flow.executable_task(lambda: "true")())
        await backend.given(flow.function_task(identity, capture_stdio=True)(1))


# --- task_description= ----------------------------------------------------------------------------


def described(value: int, task_description: Any = {"ranks": 4, "env": {"A": "1"}}) -> Any:  # noqa: B006
    return value, task_description


async def test_a_call_overrides_the_default_when_it_has_a_description() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        task = flow.function_task(described)
        calls = {
            "default": task(1),
            "None": task(1, task_description=None),
            "empty": task(1, task_description={}),
            "merged": task(1, task_description={"ranks": 8, "gpus": 1}),
        }
        given = {name: await backend.given(future) for name, future in calls.items()}
        default = {"ranks": 4, "env": {"A": "1"}}
        for name in ("default", "None", "empty"):
            assert given[name]["task_backend_specific_kwargs"] == default
        merged = given["merged"]["task_backend_specific_kwargs"]
        assert merged == {"ranks": 8, "env": {"A": "1"}, "gpus": 1}
        assert all(each["kwargs"] == {} for each in given.values())
        merged["ranks"] = 0  # a backend's own is its own
        assert (await backend.given(task(1)))["task_backend_specific_kwargs"] == default


async def test_the_body_sees_its_default_when_a_call_has_a_description() -> None:
    async with await WorkflowEngine.create() as flow:
        result = await flow.function_task(described)(7, task_description={"ranks": 8})
        assert result == (7, {"ranks": 4, "env": {"A": "1"}})


async def test_a_body_takes_any_keyword_when_it_is_called_with_a_description() -> None:
    def body(**kwargs: Any) -> Any:
        return kwargs

    async with await WorkflowEngine.create() as flow:
        task = flow.function_task(body)
        assert await task(a=1, task_description={"ranks": 8}, workflow_id="w") == {"a": 1}


@pytest.mark.parametrize("value", [5, "ranks", [("ranks", 4)], object()])
async def test_a_description_is_refused_at_once_when_it_is_no_dict(value: Any) -> None:
    def body(task_description: Any = value) -> None: ...

    async with await WorkflowEngine.create(ForeignBackend(), cancel_on_exit=True) as flow:
        with pytest.raises(TypeError, match=r"default of 'task_description' in 'body'.*dict"):
            flow.function_task(body)
        with pytest.raises(TypeError, match=r"task_description of 'identity' must be a dict"):
            flow.function_task(identity)(1, task_description=value)
        assert not flow.components


@pytest.mark.parametrize(
    ("command", "shell", "argv"),
    [
        ("ls 'a b' c", None, ["ls", "a b", "c"]),
        ("echo $HOME", None, ["/bin/sh", "-c", "echo $HOME"]),
        ("echo $HOME", False, ["echo", "$HOME"]),
        ("echo a", True, ["/bin/sh", "-c", "echo a"]),
        (["echo", "a b", "*"], None, ["echo", "a b", "*"]),
        (["echo", "a b", "*"], False, ["echo", "a b", "*"]),
        (["echo", "a b", "*"], True, ["/bin/sh", "-c", "echo 'a b' '*'"]),
    ],
)
@pytest.mark.parametrize("given", ["at the call", "by default"])
async def test_the_backend_gets_words_when_a_command_wants_a_shell_or_none(
    command: Any, shell: Any, argv: list[str], given: str
) -> None:
    def body(task_description: Any = {"shell": shell, "cwd": "/"}) -> Any:  # noqa: B006
        return command

    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        if given == "by default":
            future = flow.executable_task(body)()
        else:
            description = {"shell": shell, "cwd": "/"}
            future = flow.executable_task(lambda: command)(task_description=description)
        task = await backend.given(future)
        assert [task["executable"], *task["arguments"]] == argv
        assert task["task_backend_specific_kwargs"] == {"cwd": "/"}
        assert (task["function"], task["prompt"]) == (None, None)


async def test_the_task_fails_by_name_when_shell_is_no_bool() -> None:
    async with await WorkflowEngine.create(ForeignBackend(), cancel_on_exit=True) as flow:
        task = flow.executable_task(lambda: "true")
        with pytest.raises(CommandError, match=r"'<lambda>'.*'shell'.*True or False, not str 'no'"):
            await task(task_description={"shell": "no"})


async def test_the_description_is_complete_when_a_backend_gets_it() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend, uid="mine", cancel_on_exit=True) as flow:
        source = flow.function_task(identity)(1)
        foreign: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        foreign.set_result(3)
        await backend.end(source, return_value=2)
        await source
        future = flow.function_task(add)([source, foreign], b=source)
        task = await backend.given(future)
        assert task is future.task
        context = task.pop("context")
        assert context.run(lambda: "of this call") == "of this call"
        assert task == {
            "uid": future.uid,
            "name": "add",
            "function": add,
            "executable": None,
            "prompt": None,
            "args": ([2, 3],),
            "kwargs": {"b": 2},
            "task_backend_specific_kwargs": {},
            "capture_stdio": False,
            "is_service": False,
            "target_backend": None,
            "workflow_id": None,
            "metadata": {
                "dependencies": [{"uid": source.uid, "name": "identity"}],
                "input_files": [],
                "output_files": [],
            },
            "engine": "mine",
        }


# --- prompts --------------------------------------------------------------------------------------


def plain_prompt(question: str) -> str:
    return f"Please: {question}"


async def async_prompt(question: str) -> str:
    await asyncio.sleep(0)
    return f"Please: {question}"


@pytest.mark.parametrize("body", [plain_prompt, async_prompt])
async def test_the_answer_is_the_result_when_a_backend_knows_prompts(body: Any) -> None:
    model = ForeignBackend("model")
    async with await WorkflowEngine.create(
        [RuntimeExecutionBackend(), model], cancel_on_exit=True
    ) as flow:
        question = flow.function_task(str.strip)(" why? ")
        future = flow.prompt_task(body, backend="model")(question)
        answered = flow.function_task(str.upper)(future)
        task = await model.given(future)
        assert (task["prompt"], task["function"], task["executable"]) == (
            "Please: why?",
            None,
            None,
        )
        await model.end(future, stdout="because")
        assert (await future, await answered) == ("because", "BECAUSE")


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        ({"stdout": "text"}, "text"),
        ({"stdout": "", "return_value": "other"}, ""),
        ({"stdout": None, "return_value": {"choices": [1]}}, {"choices": [1]}),
        ({"return_value": "text"}, "text"),
    ],
)
async def test_the_result_is_what_the_backend_gives_when_it_answers(
    outcome: dict[str, Any], result: Any
) -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        future = flow.prompt_task(plain_prompt)("why?")
        await backend.end(future, **outcome)
        assert await future == result


async def test_the_error_says_what_to_do_when_the_default_backend_gets_a_prompt() -> None:
    async with await WorkflowEngine.create() as flow:
        match = r"'default'.* cannot run task 'plain_prompt'.*name another backend"
        with pytest.raises(NotImplementedError, match=match):
            await flow.prompt_task(plain_prompt)("why?")
        assert await flow.function_task(identity)("goes on") == "goes on"


@pytest.mark.parametrize("value", [None, "", "  \n", 5, b"why?", ["why?"]])
async def test_the_task_fails_by_name_when_its_body_returns_no_prompt(value: Any) -> None:
    async def body() -> Any:
        return value

    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        for function in (body, lambda: value):
            name = function.__name__
            with pytest.raises(ValueError, match=f"prompt task '{name}' must return a non"):
                await flow.prompt_task(function)()
    assert not backend.tasks


async def test_the_task_fails_when_the_backend_has_no_answer() -> None:
    backend = ForeignBackend("model")
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        task = flow.prompt_task(plain_prompt)
        future, other = task("why?"), task("why not?")
        await backend.end(future, "FAILED", stderr="too many tokens")
        with pytest.raises(RuntimeError) as failure:
            await future
        assert str(failure.value) == "too many tokens"
        notes: Any = vars(failure.value)["__notes__"]
        assert notes == ["of task 'plain_prompt' on backend 'model'"]
        await backend.end(other, "FAILED", exception=TimeoutError("nobody is there"))
        with pytest.raises(TimeoutError, match=r"nobody is there"):
            await other


# --- names of workflows ---------------------------------------------------------------------------


def workflow_of(future: Any) -> Any:
    return getattr(future, future.kind)["workflow_id"]


@pytest.fixture
def scoped() -> Callable[..., Any]:
    """Return what makes an engine whose tasks never end."""

    async def make(uid: str = "mine") -> WorkflowEngine:
        return await WorkflowEngine.create(ForeignBackend(), uid=uid, cancel_on_exit=True)

    return make


async def test_calls_bear_the_name_when_made_in_a_scope(scoped: Callable[..., Any]) -> None:
    async with await scoped() as flow:
        tasks = [flow.function_task(identity), flow.executable_task(identity)]
        tasks += [flow.prompt_task(identity), flow.block(async_identity)]
        for task in tasks:
            assert workflow_of(task(1)) is None
            async with flow.workflow_scope("outer") as name:
                assert name == "outer"
                assert workflow_of(task(1)) == "outer"
                async with flow.workflow_scope("inner"):
                    assert workflow_of(task(1)) == "inner"
                    assert workflow_of(task(1, workflow_id="own")) == "own"
                assert workflow_of(task(1)) == "outer"
                with pytest.raises(LookupError):
                    async with flow.workflow_scope("failing"):
                        raise LookupError
                assert workflow_of(task(1)) == "outer"
            assert workflow_of(task(1)) is None
            assert workflow_of(task(1, workflow_id="own")) == "own"


async def test_a_name_is_made_up_when_a_scope_has_none(scoped: Callable[..., Any]) -> None:
    async with await scoped() as flow:
        names = []
        for _ in range(2):
            async with flow.workflow_scope() as name:
                assert workflow_of(flow.function_task(identity)(1)) == name
                names.append(name)
        assert len(set(names)) == 2
        assert all(name.startswith("wf-") for name in names)


async def test_names_do_not_mix_when_scopes_are_open_at_a_time(scoped: Callable[..., Any]) -> None:
    async with await scoped() as flow, await scoped("other") as other:
        both = asyncio.Event()
        opened = []

        async def run(name: str) -> list[Any]:
            async with flow.workflow_scope(name):
                opened.append(name)
                if len(opened) == 2:
                    both.set()
                await both.wait()
                child = asyncio.create_task(call())
                return [workflow_of(flow.function_task(identity)(1)), await child]

        async def call() -> Any:
            assert workflow_of(other.function_task(identity)(1)) is None
            return workflow_of(flow.function_task(identity)(1))

        assert await asyncio.gather(run("a"), run("b")) == [["a", "a"], ["b", "b"]]


async def test_calls_bear_the_uid_of_their_block_when_made_in_one() -> None:
    async with await WorkflowEngine.create() as flow:
        task = flow.function_task(identity)
        seen: dict[str, Any] = {}

        @flow.block
        async def inner() -> None:
            seen["in the inner block"] = workflow_of(task(1))

        @flow.block
        async def outer() -> None:
            seen["in the block"] = workflow_of(task(1))
            seen["named"] = workflow_of(task(1, workflow_id="own"))
            async with flow.workflow_scope("scope"):
                seen["in a scope"] = workflow_of(task(1))
                nested = inner()
                seen["the inner block"] = workflow_of(nested)
                await nested
            seen["inner"] = nested.uid
            seen["in the block again"] = workflow_of(task(1))

        async with flow.workflow_scope("around"):
            block = outer()
            await block
            assert workflow_of(block) == "around"
        assert seen == {
            "in the block": block.uid,
            "named": "own",
            "in a scope": "scope",
            "the inner block": "scope",
            "in the inner block": seen["inner"],
            "inner": seen["inner"],
            "in the block again": block.uid,
        }
        assert seen["inner"] != block.uid


async def test_members_are_cancelled_with_their_block_when_called_in_a_scope() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend, cancel_on_exit=True) as flow:
        members: list[Any] = []

        @flow.block
        async def block() -> None:
            async with flow.workflow_scope("scope"):
                members.append(flow.function_task(identity)(1, workflow_id="own"))
                await members[0]

        future = block()
        while not members:
            await launched()
        future.cancel()
        assert members[0].cancelled()


async def test_a_name_is_a_body_s_own_too_when_it_is_a_parameter() -> None:
    def body(workflow_id: Any = "default") -> Any:
        return workflow_id

    async with await WorkflowEngine.create() as flow:
        task = flow.function_task(body)
        named = task(workflow_id="own")
        assert (await named, workflow_of(named)) == ("own", "own")
        silent = task()
        assert (await silent, workflow_of(silent)) == ("default", None)
        source = flow.function_task(identity)("from a task")
        depending = task(workflow_id=source)
        assert (await depending, workflow_of(depending)) == ("from a task", None)
