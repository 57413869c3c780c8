"""Bodies of programs and prompts that await their parameters: those get futures, others values."""

import asyncio
import functools
import inspect
import linecache
from collections.abc import Callable
from typing import Any

import pytest
from engine_support import ForeignBackend, identity

from dftracer.asyncflow import WorkflowEngine
from dftracer.asyncflow.engine.peers.awaited import awaited_by

pytestmark = pytest.mark.usefixtures("new_loop")

gather = asyncio.gather


async def plain(p: Any, q: Any) -> str:
    return f"echo {await p} {q}"


async def together(p: Any, q: Any) -> str:
    p, q = await asyncio.gather(p, q)
    return f"echo {p} {q}"


async def all_of_them(*args: Any, other: Any = "") -> str:
    return f"echo {await gather(*args)}{other}"


async def in_time(p: Any, s: Any) -> str:
    return f"echo {await asyncio.wait_for(p, s)} {s}"


async def keyword_only(p: Any, *, q: Any) -> str:
    return f"echo {p} {await asyncio.shield(q)}"


async def any_keyword(p: Any, **others: Any) -> str:
    return f"echo {p} {await asyncio.gather(*others.values())}"


FORMS: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], str]] = [
    (plain, (1, 2), {}, "1 2\n"),
    (together, (1, 2), {}, "1 2\n"),
    (all_of_them, (1, 2, 3), {"other": 4}, "[1, 2, 3]4\n"),
    (in_time, (1, 5), {}, "1 5\n"),
    (keyword_only, (1,), {"q": 2}, "1 2\n"),
    (any_keyword, (1,), {"q": 2, "r": 3}, "1 [2, 3]\n"),
]


def without_source(function: Any) -> Any:
    """Return the same function as it is in a program that has no source."""
    source = inspect.getsource(function)
    names: dict[str, Any] = {"asyncio": asyncio, "gather": gather, "Any": Any}
    exec(compile(source, "<no file>", "exec"), names)
    return names[function.__name__]


@pytest.mark.parametrize("has_source", [True, False])
@pytest.mark.parametrize(("body", "args", "kwargs", "expected"), FORMS)
async def test_a_body_gets_the_futures_that_it_awaits_and_values_for_the_rest(
    body: Any, args: Any, kwargs: Any, expected: str, has_source: bool
) -> None:
    if not has_source:
        body = without_source(body)
        with pytest.raises(OSError, match="source"):
            inspect.getsource(body)
    async with await WorkflowEngine.create() as flow:
        give = flow.function_task(identity)
        call = flow.executable_task(body)
        output = await call(*map(give, args), **{k: give(v) for k, v in kwargs.items()})
        assert output == expected
        assert await call(*map(give, args), **{k: give(v) for k, v in kwargs.items()}) == expected


async def loop_over(items: Any, n: Any) -> str:
    for number, item in enumerate(items):
        n += await item + number
    return f"echo {n}"


async def renamed(p: Any) -> str:
    other = p
    return f"echo {await other}"


async def listed(p: Any, q: Any) -> str:
    return f"echo {[await each for each in (p, q)]}"


async def later(p: Any, q: Any) -> str:
    both = asyncio.gather(p, q)
    return f"echo {await both}"


async def first_of_a_set(p: Any) -> str:
    done, _ = await asyncio.wait([p])
    return f"echo {done.pop().result()}"


async def sleeps(p: Any) -> str:
    await asyncio.sleep(p * 0)
    await asyncio.sleep(p)
    return f"echo {p}"


async def given_to_others(p: Any, q: Any, r: Any) -> str:
    await asyncio.gather(sleeps(p), sleeps(p))
    await asyncio.wait_for(sleeps(q), 9)
    await sleeps(r)
    return f"echo {p} {q} {r}"


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (loop_over, {"items"}),
        (renamed, {"p"}),
        (listed, {"p", "q"}),
        (later, {"p", "q"}),
        (first_of_a_set, {"p"}),
        (sleeps, set()),
        (given_to_others, set()),
    ],
)
def test_only_what_is_awaited_itself_is_found(body: Any, names: set[str]) -> None:
    found = awaited_by(body, inspect.signature(body).parameters)
    assert (found.names if found else set()) == names


def test_no_parameter_is_found_for_a_helper_that_is_called_without_source() -> None:
    for body in (sleeps, given_to_others):
        body = without_source(body)
        assert awaited_by(body, inspect.signature(body).parameters) is None


def test_parameters_are_found_when_a_function_is_wrapped() -> None:
    class Steps:
        async def method(self, p: Any) -> str:
            return f"echo {await p}"

        async def __call__(self, p: Any) -> str:
            return f"echo {await p}"

    @functools.wraps(plain)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await plain(*args, **kwargs)

    for body, position in ((Steps().method, 0), (Steps(), 0), (wrapper, 0)):
        found = awaited_by(body, inspect.signature(body).parameters)
        assert found is not None
        assert (found.names, found.positions) == ({"p"}, {position})


async def test_containers_that_a_body_awaits_keep_their_futures() -> None:
    async with await WorkflowEngine.create() as flow:
        give = flow.function_task(identity)
        assert await flow.executable_task(loop_over)([give(1), give(2)], give(3)) == "7\n"


@pytest.mark.parametrize("has_source", [True, False])
async def test_the_error_names_parameter_and_rule_when_a_body_awaits_a_value(
    has_source: bool,
) -> None:
    async with await WorkflowEngine.create() as flow:
        body = plain if has_source else without_source(plain)
        for call in (flow.executable_task(body), flow.prompt_task(body)):
            with pytest.raises(TypeError, match=r"'plain' awaits its parameter 'p'.* if the body"):
                await call(1, 2)

        async def hidden(p: Any) -> str:
            return await (lambda value: value)(p)

        with pytest.raises(TypeError, match="'hidden' awaits a value, perhaps its parameter 'p'"):
            await flow.executable_task(hidden)(flow.function_task(identity)(1))

        async def of_its_own(p: Any) -> str:
            raise TypeError("its own")

        with pytest.raises(TypeError, match=r"^its own$"):
            await flow.executable_task(of_its_own)(1)


async def test_prompts_await_their_parameters_too() -> None:
    backend = ForeignBackend()
    async with await WorkflowEngine.create(backend) as flow:
        first = flow.function_task(identity)(1)
        prompt = flow.prompt_task(plain)(first, 2)
        await backend.end(first, return_value=1)
        assert (await backend.given(prompt))["prompt"] == "echo 1 2"
        await backend.end(prompt, stdout="yes")
        assert await prompt == "yes"


async def test_each_attempt_gets_the_futures_that_it_awaits() -> None:
    calls: list[Any] = []

    async def body(p: Any) -> str:
        calls.append(await p)
        return "exit 3" if len(calls) < 3 else "echo fine"

    async with await WorkflowEngine.create() as flow:
        call = flow.executable_task(retries=2, backoff=0)(body)
        assert await call(flow.function_task(identity)(1)) == "fine\n"
        assert calls == [1, 1, 1]


@pytest.mark.parametrize("has_source", [True, False])
@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("async def f(p, s): await asyncio.wait_for(p, s)", "p"),
        ("async def f(p): await gather(*p)", "p"),
        ("async def f(p, q):\n print(q)\n await asyncio.gather(*[r for r in p])", "p"),
        ("async def f(event, seconds): await event.wait(seconds)", ""),
        ("async def f(condition, holds): await condition.wait_for(holds)", ""),
        ("async def f(group): await group.ended", ""),
    ],
)
def test_only_what_the_body_awaits_itself_is_awaited(
    source: str, names: str, has_source: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = "<a body>"
    if has_source:
        text = len(source), None, [f"{line}\n" for line in source.splitlines()], file
        monkeypatch.setitem(linecache.cache, file, text)
    known = {"asyncio": asyncio, "gather": asyncio.gather}
    exec(compile(source, file, "exec"), known)
    body: Any = known["f"]
    awaited = awaited_by(body, inspect.signature(body).parameters)
    assert awaited is None if not names else awaited is not None and awaited.names == {names}
