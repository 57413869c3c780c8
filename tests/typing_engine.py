"""What a type checker makes of an engine. Never executed: mypy in strict mode is the test.

Each ``type: ignore`` is an error that must be reported, since mypy complains of those that are not
needed.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from typing_extensions import assert_type

from dftracer.asyncflow import (
    Component,
    LocalExecutionBackend,
    NoopExecutionBackend,
    RuntimeExecutionBackend,
    WorkflowEngine,
)
from dftracer.asyncflow.backends.base import State
from dftracer.asyncflow.engine.component import Block, Task
from dftracer.asyncflow.engine.decorators import Call

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Model:
    error: float


def parameters_of(call: Call[P, Any]) -> Callable[P, None]:
    """Give the parameters of a decorated function alone, without the futures it takes too."""
    raise NotImplementedError


async def functions(flow: WorkflowEngine) -> None:
    @flow.function_task
    def square(x: int, *, scale: float = 1.0) -> float:
        return scale * x * x

    @flow.function_task
    async def train(data: list[float], name: str = "m") -> Model:
        return Model(sum(data))

    @flow.function_task(backend="gpu", service=True, capture_stdio=True)
    async def serve(port: int) -> str:
        return f"tcp://:{port}"

    @flow.function_task(retries=3, retry_on=(OSError, TimeoutError), backoff=0.5, timeout=60)
    def nothing() -> None: ...

    # By position, as radical.asyncflow takes them.
    @flow.function_task(None, True, "gpu")
    async def count(numbers: list[int]) -> int:
        return len(numbers)

    assert_type(await count([1]), int)
    assert_type(await flow.function_task(count, False, "gpu", True)([1]), Task[int])
    flow.function_task(None, "gpu")  # type: ignore[call-overload]

    # A call is a future of the body's result, whether the body is async or not.
    assert_type(square(2), Task[float])
    assert_type(await square(2, scale=0.5), float)
    assert_type(await train([1.0]), Model)
    assert_type((await train([1.0])).error, float)
    assert_type(await serve(80), str)
    assert_type(nothing(), Task[None])
    assert_type(train([1.0]).result(), Model)

    # The parameters are those of the body.
    parameters_of(square)(2, scale=0.5)
    parameters_of(square)("2")  # type: ignore[arg-type]
    parameters_of(square)(2, 0.5)  # type: ignore[call-arg]
    parameters_of(train)()  # type: ignore[call-arg]
    parameters_of(serve)(port=80)
    parameters_of(serve)(prt=80)  # type: ignore[call-arg]

    # Futures stand in place of values, also inside others; and every call has its own keywords.
    assert_type(await train([square(1), square(2)], name=serve(80)), Model)
    assert_type(await square(square(2), scale=square(3)), float)
    assert_type(await train({"data": square(1)}), Model)
    assert_type(await train([1.0], task_description={"ranks": 4}, workflow_id="w"), Model)
    plain: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    assert_type(await square(plain), float)

    # They are used as asyncio's are.
    one, other = await asyncio.gather(square(1), train([]))
    assert_type(one, float)
    assert_type(other, Model)
    assert_type(await asyncio.wait_for(square(1), 1), float)
    assert_type(await asyncio.gather(*[square(n) for n in range(3)]), list[float])
    future: asyncio.Future[float] = square(1)
    future.add_done_callback(lambda f: print(f.result()))

    print((await square(2)).error)  # type: ignore[attr-defined]
    wrong: int = await train([])  # type: ignore[assignment]
    print(wrong, square(2) + 1)  # type: ignore[operator]


async def executables(flow: WorkflowEngine) -> None:
    @flow.executable_task
    def as_words(folder: Path) -> list[str | Path]:
        return ["ls", folder]

    @flow.executable_task(backend="cluster", capture_stdio=True)
    async def as_text(seconds: int) -> str:
        return f"sleep {seconds}"

    @flow.prompt_task
    def ask(question: str) -> str:
        return question

    @flow.prompt_task(backend="model")
    async def discuss(answer: str) -> str:
        return answer

    # The result is text, whatever the body returns.
    assert_type(as_words(Path()), Task[str])
    assert_type(await as_words(Path()), str)
    assert_type(await as_text(1), str)
    assert_type(await ask("why?"), str)
    assert_type(await discuss(ask(as_text(1))), str)
    parameters_of(as_text)(1)
    parameters_of(as_text)("1")  # type: ignore[arg-type]
    number: int = await as_text(1)  # type: ignore[assignment]
    print(number)


async def blocks(flow: WorkflowEngine) -> None:
    @flow.function_task
    def double(x: int) -> int:
        return 2 * x

    @flow.block
    async def twice(x: int) -> int:
        return await double(double(x))

    @flow.block(backend=None)
    async def named(x: int) -> dict[str, int]:
        return {"x": await twice(x)}

    assert_type(twice(1), Block[int])
    assert_type(await named(twice(1)), dict[str, int])
    assert_type(await double(twice(1)), int)
    parameters_of(twice)("1")  # type: ignore[arg-type]

    def plain() -> int:
        return 1

    flow.block(plain)  # type: ignore[arg-type]
    flow.block()(plain)  # type: ignore[arg-type]


class Campaign:
    """Tasks as attributes and as methods."""

    def __init__(self, flow: WorkflowEngine) -> None:
        self.add = flow.function_task(self.plain_add)

    def plain_add(self, a: int, b: int) -> int:
        return a + b

    async def run(self) -> int:
        parameters_of(self.add)(1, b=2)
        parameters_of(self.add)(1, b="2")  # type: ignore[arg-type]
        added = await self.add(self.add(1, 2), 3)
        assert_type(added, int)
        return added

    def decorate(self, flow: WorkflowEngine) -> None:
        class Inner:
            @flow.function_task
            def method(self, x: int) -> int:
                return x

        assert_type(Inner().method(1), Task[int])


async def generic(flow: WorkflowEngine) -> None:
    def first(values: list[T]) -> T:
        return values[0]

    # Here mypy loses what a type variable stands for.
    task = flow.function_task(first)
    text: str = await task(["a"])  # type: ignore[assignment]
    print(text)


async def wrong_options(flow: WorkflowEngine) -> None:
    flow.function_task(5)  # type: ignore[call-overload]
    flow.function_task(backend=5)  # type: ignore[call-overload]
    flow.function_task(servise=True)  # type: ignore[call-overload]
    flow.executable_task(service="yes")  # type: ignore[call-overload]
    flow.prompt_task("prompt")  # type: ignore[call-overload]
    flow.block(capture_stdio=1)  # type: ignore[call-overload]
    flow.function_task(retries="two")  # type: ignore[call-overload]
    flow.function_task(retry_on="all")  # type: ignore[call-overload]
    print(flow.nonsense_task)  # type: ignore[attr-defined]


async def components(flow: WorkflowEngine) -> None:
    task = flow.function_task(len)("text")
    block = flow.block(asyncio.sleep)(1, "done")
    assert_type(task.task, dict[str, Any])
    assert_type(block.block, dict[str, Any])
    print(task.block, block.task)  # type: ignore[attr-defined]
    for component in (task, block):
        assert_type(component.uid, str)
        assert_type(component.name, str)
        assert_type(component.state, State)
        assert_type(component.id, str)
        assert_type(component.cancel("why"), bool)
    task.uid = "other"  # type: ignore[misc]
    service = flow.function_task(service=True)(str)(1)
    service.set_result("ready")
    service.set_exception(ValueError)
    service.set_result(5)  # type: ignore[arg-type]
    any_component: Component[int] = task
    print(any_component)


async def engines() -> None:
    flow = await WorkflowEngine.create()
    assert_type(flow, WorkflowEngine)
    async with await WorkflowEngine.create(
        [await RuntimeExecutionBackend(), LocalExecutionBackend(name="local")],
        uid="mine",
        work_dir=Path(),
    ) as other:
        assert_type(other, WorkflowEngine)
    await WorkflowEngine.create(NoopExecutionBackend(), dry_run=True, implicit_data=False)
    await WorkflowEngine.create(dryrun=True)  # type: ignore[call-arg]
    await WorkflowEngine.create(uid=5)  # type: ignore[arg-type]
    print(WorkflowEngine.create().function_task)  # type: ignore[attr-defined]

    async with flow.workflow_scope() as name:
        assert_type(name, str)
    assert_type(flow.running, set[str])
    assert_type(flow.components["task.000001"], dict[str, Any])
    assert_type(flow.dependencies["task.000001"], list[dict[str, str]])
    shown: Mapping[str, dict[str, Any]] = flow.components
    flow.components["task.000001"] = {}  # type: ignore[index]
    flow.backend = None  # type: ignore[misc]
    print(shown)
    assert_type(await flow.shutdown(skip_execution_backend=True), None)
    await flow.shutdown("now")  # type: ignore[arg-type]
