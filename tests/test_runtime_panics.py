"""Native code that panics below a body: the task fails, and its thread is as it was before."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from dftracer.utils import Runtime, current_task

GUARD_S = 30
"""How long a test waits for what must come."""

VARIABLE = ContextVar("VARIABLE", default="nothing")


@pytest.fixture(name="runtime")
def make_runtime() -> Iterator[Runtime]:
    with Runtime(threads=1, io_threads=1, python_threads=1) as runtime:
        yield runtime


def panic_classes() -> list[type[BaseException]]:
    """Return the classes by which Rust modules raise that they have panicked, ours among them.

    Each module makes one of its own when it first looks at an error. It takes its own for a panic
    and not for an error of Python, and panics again.
    """
    with Runtime(python_threads=1) as runtime, contextlib.suppress(ZeroDivisionError):
        runtime.submit(lambda: 1 / 0).get(GUARD_S)
    return [kind for kind in BaseException.__subclasses__() if kind.__module__ == "pyo3_runtime"]


def by_submit(runtime: Runtime, body: Callable[[int], int]) -> Any:
    return runtime.submit(body, 1).get(GUARD_S)


def by_io(runtime: Runtime, body: Callable[[int], int]) -> Any:
    return runtime.submit_io(body, 1).get(GUARD_S)


def by_map(runtime: Runtime, body: Callable[[int], int]) -> Any:
    return list(runtime.map(body, [1, 2, 3]))


def by_coroutine(runtime: Runtime, body: Callable[[int], int]) -> Any:
    async def coroutine() -> int:
        return body(1)

    return runtime.submit(coroutine).get(GUARD_S)


@pytest.mark.parametrize("way", [by_submit, by_io, by_map, by_coroutine])
def test_the_context_of_a_body_is_left_when_its_work_panics(
    runtime: Runtime, way: Callable[..., Any]
) -> None:
    seen, errors = [], []
    for kind in panic_classes():

        def body(_: int, kind: type[BaseException] = kind) -> int:
            VARIABLE.set("left behind")
            # Called on this thread, when the body's context has been left.
            current_task().add_done_callback(lambda _: seen.append(VARIABLE.get()))
            raise kind("boom")

        try:
            way(runtime, body)
        except BaseException as error:  # that of another module is one
            errors.append(error)
    runtime.wait_all()
    assert seen
    assert set(seen) == {"nothing"}
    # One of the classes is ours.
    assert [str(e) for e in errors if isinstance(e, RuntimeError)] == ["panic in native code: boom"]


@pytest.mark.parametrize("way", [by_submit, by_io, by_map, by_coroutine])
def test_the_worker_goes_on_when_a_body_has_panicked(
    runtime: Runtime, way: Callable[..., Any]
) -> None:
    for kind in panic_classes():

        def body(_: int, kind: type[BaseException] = kind) -> int:
            raise kind("boom")

        with contextlib.suppress(BaseException):
            way(runtime, body)
        way(runtime, abs)
