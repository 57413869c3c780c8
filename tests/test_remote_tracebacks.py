"""Tracebacks of bodies in other processes, where functions have come by value: file, line, text."""

import asyncio
import gc
import linecache
import sys
import traceback
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from dftracer.asyncflow import DaskExecutionBackend, LocalExecutionBackend, WorkflowEngine
from dftracer.utils import payload

CELL = """
import asyncio

def plain():
    raise LookupError("plain")  # here

nameless = lambda: {}["nameless"]  # here

async def coroutine():
    await asyncio.sleep(0)
    raise LookupError("coroutine")  # here

def returns_coroutine():
    return coroutine()

def outer():
    def inner():
        raise LookupError("inner")  # here
    return inner

class Model:
    def method(self):
        raise LookupError("method")  # here

    @classmethod
    def of_class(cls):
        raise LookupError("of_class")  # here

    @staticmethod
    def of_none():
        raise LookupError("of_none")  # here

    @property
    def value(self):
        raise LookupError("value")  # here

    def __call__(self):
        raise LookupError("__call__")  # here

def generator():
    yield 1
    raise LookupError("generator")  # here

def helper():
    return list(generator())

def comprehension():
    return [{}[n] for n in range(3)]  # here

def chained():
    try:
        plain()
    except LookupError as error:
        raise RuntimeError("chained") from error  # here
"""

BODIES: dict[str, Callable[[dict[str, Any]], Callable[..., Any]]] = {
    "plain": lambda names: names["plain"],
    "lambda": lambda names: names["nameless"],
    "async": lambda names: names["coroutine"],
    "returns a coroutine": lambda names: names["returns_coroutine"],
    "nested": lambda names: names["outer"](),
    "method": lambda names: names["Model"]().method,
    "class method": lambda names: names["Model"].of_class,
    "static method": lambda names: names["Model"].of_none,
    "calls a property": lambda names: named(names["Model"](), lambda it: it.value),
    "called object": lambda names: named(names["Model"](), lambda it: it()),
    "generator": lambda names: names["helper"],
    "comprehension": lambda names: names["comprehension"],
    "chained": lambda names: names["chained"],
    "argument": lambda names: named(names["plain"], lambda it: it()),
}


def named(value: Any, use: Callable[[Any], Any]) -> Callable[[], Any]:
    def body() -> Any:
        return use(value)

    return body


def define(file: Path | str, source: str = CELL) -> dict[str, Any]:
    """Run source text as a notebook does, in names that no worker can import."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, str(file), "exec"), names)
    return names


@pytest.fixture(params=["file", "cell"])
def names(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """What such text defines: of a file that the workers can read, or of a cell only we have."""
    file = tmp_path / "program.py"
    if request.param == "file":
        file.write_text(CELL)
    else:
        lines = CELL.splitlines(keepends=True)
        linecache.cache[str(file)] = (len(CELL), None, lines, str(file))
    yield define(file)
    linecache.cache.pop(str(file), None)


@asynccontextmanager
async def engine(kind: str, pool: Callable[[str], Executor], client: Any) -> AsyncIterator[Any]:
    backend: Any = (
        DaskExecutionBackend(client) if kind == "dask" else LocalExecutionBackend(pool(kind))
    )
    async with await WorkflowEngine.create(backend) as flow:
        yield flow


@pytest.fixture(params=["processes", "loky", "dask"])
def make_engine(request: pytest.FixtureRequest, lent_pool: Callable[[str], Executor]) -> Any:
    kind = request.param
    client = request.getfixturevalue("dask_client") if kind == "dask" else None
    return lambda: engine(kind, lent_pool, client)


async def test_the_traceback_has_file_line_and_text_when_a_function_came_by_value(
    make_engine: Any, names: dict[str, Any]
) -> None:
    file = names["plain"].__code__.co_filename
    async with make_engine() as flow:
        for kind, body_of in BODIES.items():
            with pytest.raises((LookupError, RuntimeError)) as caught:
                await flow.function_task(body_of(names), timeout=20)()
            text = "".join(traceback.format_exception(caught.value))
            frames = [line for line in text.splitlines() if f'File "{file}", line ' in line]
            assert frames, (kind, text)
            assert "# here" in text, (kind, text)
            assert "<dynamic-code>" not in text, (kind, text)
            number = int(frames[-1].split("line ")[1].split(",")[0])
            assert CELL.splitlines()[number - 1].strip() in text, (kind, text)


@pytest.mark.parametrize("kind", ["processes", "loky"])
async def test_the_traceback_has_file_line_and_text_when_a_function_came_back(
    lent_pool: Callable[[str], Executor], names: dict[str, Any], kind: str
) -> None:
    def give() -> Any:
        return names["outer"]()

    names = {"outer": names["outer"]}
    async with engine(kind, lent_pool, None) as flow:
        inner = await flow.function_task(give)()
        with pytest.raises(LookupError, match="inner") as caught:
            inner()
        assert 'raise LookupError("inner")  # here' in str(caught.traceback[-1])


async def test_causes_have_their_own_source_text_when_an_error_is_chained(
    make_engine: Any, names: dict[str, Any]
) -> None:
    async with make_engine() as flow:
        with pytest.raises(RuntimeError, match="chained") as caught:
            await flow.function_task(names["chained"])()
    text = "".join(traceback.format_exception(caught.value))
    for line in ('raise LookupError("plain")  # here', 'raise RuntimeError("chained") from error'):
        assert line in text


def test_a_pickle_is_that_of_cloudpickle_when_it_has_no_functions() -> None:
    value = {"a": [1, 2.5, b"c"], "type": LookupError}
    assert payload.dumps(value) == cloudpickle.dumps(value)
    loaded = cloudpickle.loads(payload.dumps(define("a.py")["outer"], protocol=5))
    assert loaded.__code__.co_filename == "a.py"
    assert loaded().__code__.co_filename == "a.py"


def test_nothing_of_a_value_is_kept_when_it_was_pickled() -> None:
    class Value:
        pass

    gc.collect()
    gc.disable()
    try:
        value = [Value(), define("a.py")["outer"]]
        gone = weakref.ref(value[0])
        payload.dumps(value)
        value.clear()
        assert gone() is None
    finally:
        gc.enable()


# --- the errors themselves ----------------------------------------------------------------------


class StatusError(Exception):
    """Cannot be made again from its ``args``."""

    def __init__(self, status: int, url: str) -> None:
        super().__init__(f"{status} for {url}")
        self.status = status


@pytest.mark.skipif(sys.version_info < (3, 11), reason="came with Python 3.11")
async def test_a_group_keeps_its_type_and_parts_when_a_body_raises_it(make_engine: Any) -> None:
    from builtins import ExceptionGroup

    class OwnGroup(ExceptionGroup[Exception]):
        """Only known here."""

    async def many() -> None:
        async def get() -> None:
            raise StatusError(503, "http://x")

        async with asyncio.TaskGroup() as group:
            group.create_task(get())
            group.create_task(get())

    def nested() -> None:
        parts = [StatusError(404, "http://y")]
        raise OwnGroup("outer", [ExceptionGroup("inner", parts), LookupError("plain")])

    async with make_engine() as flow:
        with pytest.raises(ExceptionGroup, match="unhandled") as caught:
            await flow.function_task(many)()
        statuses = [(type(error), error.status) for error in caught.value.exceptions]  # type: ignore[attr-defined]
        assert statuses == [(StatusError, 503)] * 2
        with pytest.raises(OwnGroup, match="outer") as caught:
            await flow.function_task(nested)()
        inner, plain = caught.value.exceptions
        assert [str(error) for error in inner.exceptions] == ["404 for http://y"]  # type: ignore[attr-defined]
        assert (type(plain), str(plain)) == (LookupError, "plain")


async def test_the_error_is_told_in_words_when_its_class_is_not_known_here(
    make_engine: Any, tmp_path: Path
) -> None:
    (tmp_path / "only_there.py").write_text("class FarError(Exception): pass\n")

    def fail() -> None:
        sys.path.insert(0, str(tmp_path))
        try:
            from only_there import FarError  # type: ignore[import-not-found]
        finally:
            del sys.path[0]
        raise FarError("far away")

    async with make_engine() as flow:
        with pytest.raises(RuntimeError, match=r"'fail' .*FarError: far away") as caught:
            await flow.function_task(fail, timeout=20)()
        assert "only_there" in str(caught.value)
        text = "".join(traceback.format_exception(caught.value))
        assert 'raise FarError("far away")' in text
        assert await flow.function_task(abs)(-1) == 1
