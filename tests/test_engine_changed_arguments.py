"""Arguments that are changed after the call, or nested very deeply, and the texts of failures."""

import asyncio
import collections
import dataclasses
import itertools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_support import identity

from dftracer.asyncflow import DependencyFailureError, InputFile, WorkflowEngine

# --- changed after the call ---------------------------------------------------------------------


async def test_a_task_gets_what_was_in_a_list_when_futures_are_added_after_the_call() -> None:
    async with await WorkflowEngine.create() as flow:

        @flow.function_task
        def step(before: list[int], n: int) -> int:
            return sum(before) + n

        results: list[Any] = []
        for n in range(5):
            results.append(step(results, n))
        assert await asyncio.gather(*results) == [0, 1, 3, 7, 15]


@dataclasses.dataclass
class Parts:
    """Some parts and one more."""

    parts: Any
    more: Any = None


def change_list(value: Any, future: Any) -> None:
    value.append(future)
    value[0] = "changed"


def change_dict(value: Any, future: Any) -> None:
    value["late"] = future
    value["first"] = "changed"


def change_fields(value: Any, future: Any) -> None:
    value.more = future
    value.parts = "changed"


class Words(list):  # type: ignore[type-arg]
    """A list of a kind of its own."""


CHANGED: list[tuple[Callable[[Any], Any], Callable[[Any, Any], None]]] = [
    (lambda first: [first, 2], change_list),
    (lambda first: Words([first, 2]), change_list),
    (lambda first: {"first": first, "second": 2}, change_dict),
    (lambda first: collections.OrderedDict(first=first, second=2), change_dict),
    (lambda first: collections.defaultdict(list, first=first), change_dict),
    (lambda first: Parts(first), change_fields),
]


@pytest.mark.parametrize("is_held", [True, False], ids=["a future", "a value"])
@pytest.mark.parametrize("is_nested", [True, False], ids=["nested", "direct"])
@pytest.mark.parametrize(("make", "change"), CHANGED)
async def test_a_container_is_as_it_was_at_the_call_when_it_is_changed_after_it(
    make: Any, change: Any, is_nested: bool, is_held: bool
) -> None:
    got: list[Any] = []
    async with await WorkflowEngine.create() as flow:
        take = flow.function_task(got.append)
        gate = asyncio.get_running_loop().create_future()
        given = make(gate if is_held else "value")
        kind, outer = type(given), ({"in": [given]},) if is_nested else given
        call = take(outer)
        late = flow.function_task(identity)("late")
        change(given, late)
        gate.set_result("value")
        await call
        await late
    value = got[0][0]["in"][0] if is_nested else got[0]
    assert type(value) is kind
    assert value == make("value")
    assert value is not given


async def test_the_same_object_is_handed_over_when_it_holds_no_future_then_or_now() -> None:
    got: list[Any] = []
    async with await WorkflowEngine.create() as flow:
        future = flow.function_task(identity)(1)
        plain: list[Any] = [1, [2]]
        await flow.function_task(lambda *values: got.extend(values))(
            plain, [plain, future], changed := {"a": 1}
        )
        call = flow.function_task(got.append)(changed)
        changed["b"] = 2
        await call
    assert got[0] is plain
    assert got[1][0] is plain
    assert got[1][1] == 1
    assert got[2] is got[3] is changed


async def test_a_shared_and_cyclic_container_stays_that_when_it_is_changed() -> None:
    got: list[Any] = []
    async with await WorkflowEngine.create() as flow:
        shared: list[Any] = ["shared"]
        ring: list[Any] = [shared, (shared,)]
        ring.append((ring, shared))
        call = flow.function_task(lambda *values: got.extend(values))(ring, shared)
        late = flow.function_task(identity)("late")
        shared.append(late)
        await asyncio.gather(call, late)
    first, second = got
    assert first[0] is first[1][0] is first[2][1] is second
    assert first[2][0] is first
    assert second == ["shared"]
    assert first is not ring


async def test_a_list_of_files_is_as_it_was_at_the_call_when_it_is_changed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "input.txt"
    path.write_text("text")
    async with await WorkflowEngine.create(work_dir=tmp_path / "work") as flow:
        files: list[Any] = [InputFile(path)]
        call = flow.function_task(len)(files)
        files.append("late")
        assert await call == 1


@pytest.mark.parametrize("is_future", [True, False], ids=["a future", "a value"])
@pytest.mark.parametrize("kind", [list, tuple, dict, Parts])
async def test_values_pass_when_they_are_nested_very_deeply(kind: Any, is_future: bool) -> None:
    depth = 100_000
    wrap = {
        list: lambda value: [value],
        tuple: lambda value: (value,),
        dict: lambda value: {"in": value},
        Parts: Parts,
    }[kind]
    unwrap = {list: lambda v: v[0], tuple: lambda v: v[0], dict: lambda v: v["in"]}
    open_one = unwrap.get(kind, lambda v: v.parts)

    def measure(value: Any) -> int:
        count = 0
        while type(value) is kind:
            value, count = open_one(value), count + 1
        return count if value == "bottom" else -1

    async with await WorkflowEngine.create() as flow:
        bottom: Any = flow.function_task(identity)("bottom") if is_future else "bottom"
        nest = bottom
        for _ in range(depth):
            nest = wrap(nest)
        assert await flow.function_task(measure)(nest) == depth
        while type(nest) is kind:  # a dataclass is freed level by level
            nest = open_one(nest)


# --- the texts of failures ----------------------------------------------------------------------


async def test_a_failure_has_a_short_text_when_it_has_come_through_many_futures() -> None:
    async with await WorkflowEngine.create() as flow:

        @flow.function_task
        def step(value: Any) -> Any:
            raise ValueError("the root")

        async def passed_on(future: Any) -> Any:
            return await future

        future: Any = step(0)
        for _ in range(50):
            future = step(asyncio.ensure_future(passed_on(future)))
        with pytest.raises(DependencyFailureError) as caught:
            await future
        assert len(str(caught.value)) < 3_000
        assert "the root" in str(caught.value)


async def test_a_failure_is_printed_in_short_when_its_chain_is_long() -> None:
    async with await WorkflowEngine.create() as flow:

        @flow.function_task
        def step(value: Any) -> Any:
            raise ValueError("the root")

        futures = [step(0)]
        for _ in range(1_000):
            futures.append(step(futures[-1]))
        errors = await asyncio.gather(*futures, return_exceptions=True)
        for error in errors[1:]:
            assert isinstance(error, DependencyFailureError)
            assert error.root_cause is errors[0]
        text = "".join(traceback.format_exception(errors[-1]))
        assert "the root" in text
        assert len(text) < 10_000
        direct = sum(e.__cause__ is before for before, e in itertools.pairwise(errors))
        assert direct > 900


async def test_a_failure_names_some_dependencies_when_very_many_have_failed() -> None:
    async with await WorkflowEngine.create() as flow:

        @flow.function_task
        def step(*_: Any) -> Any:
            raise ValueError("x" * 100_000)

        failing = [step() for _ in range(1_000)]
        with pytest.raises(DependencyFailureError, match="and 990 more failed") as caught:
            await step(*failing)
        assert len(caught.value.failed_dependencies) == 1_000
        assert len(str(caught.value)) < 10_000
        await asyncio.wait(failing)
        assert all(future.exception() for future in failing)
