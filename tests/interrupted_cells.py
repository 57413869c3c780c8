"""A notebook cell that is interrupted leaves the engine usable, wherever the interrupt came.

CPython calls a signal's handler where a Python function begins, where a function has returned to
one, and at the end of a loop's body. Here ``KeyboardInterrupt`` is raised at each of the first two
kinds of places in turn, in the loop's thread, with the profiler's hook.

``test_engine_interrupted_cells.py`` runs each of these tests in a process of its own.
"""

import asyncio
import contextlib
import gc
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any

import pytest

from dftracer.asyncflow import WorkflowEngine
from dftracer.asyncflow.backends import ending, serving
from dftracer.asyncflow.engine import launcher

GUARD_S = 20
"""How long a cell may take that is not interrupted."""

OURS = os.path.join("dftracer", "asyncflow")
"""What is in the names of files whose functions are interrupted; what asyncio loses is not ours."""

EVENTS = frozenset({"call", "c_return", "return"})
STRIDE = 7
"""Of how many places one is tried in a test: the others are those of other tests."""


class Interrupt:
    """Raises in the place with that number, counted from where it is switched on."""

    def __init__(self, place: int, within: tuple[str, ...] = (OURS,)) -> None:
        self.left = place
        self.within = within
        self.where = ""

    def __call__(self, frame: FrameType, event: str, _arg: Any) -> None:
        file = frame.f_code.co_filename
        if event not in EVENTS or not any(part in file for part in self.within):
            return
        self.left -= 1
        if self.left == 0:
            sys.setprofile(None)
            self.where = f"{event} {frame.f_code.co_filename}:{frame.f_lineno}"
            raise KeyboardInterrupt


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    # What becomes of the interrupted cell's own futures is not looked at here.
    made.set_exception_handler(lambda *_: None)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    yield made
    made.close()
    gc.collect()


def run(loop: asyncio.AbstractEventLoop, cell: Coroutine[Any, Any, Any]) -> Any:
    return loop.run_until_complete(asyncio.wait_for(cell, GUARD_S))


@pytest.mark.parametrize("first", range(1, STRIDE + 1))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_next_cell_runs_when_one_was_interrupted(
    loop: asyncio.AbstractEventLoop, first: int
) -> None:
    flow = run(loop, WorkflowEngine.create())
    double = flow.function_task(lambda number: 2 * number)

    async def one(number: int) -> int:
        return number + 1

    successor = flow.function_task(one)

    @flow.block
    async def block(number: int) -> int:
        result: int = await double(await successor(number))
        return result

    async def cell() -> list[int]:
        calls = [double(successor(number)) for number in range(3)]
        return [await double(1), *await asyncio.gather(*calls, block(1), double([double(2)]))]

    async def interrupted(interrupt: Interrupt) -> None:
        sys.setprofile(interrupt)
        try:
            await cell()
        finally:
            sys.setprofile(None)

    place, misses = first, 0
    while misses < 3:
        interrupt = Interrupt(place)
        task = loop.create_task(interrupted(interrupt))
        too_long = loop.call_later(0.1, task.cancel)
        with contextlib.suppress(BaseException):  # whatever has become of it
            loop.run_until_complete(task)
        sys.setprofile(None)
        too_long.cancel()
        task.cancel()
        misses = 0 if interrupt.where else misses + 1
        try:
            results = run(loop, cell())
        except BaseException as error:  # also the interrupt of the cell before
            raise AssertionError(f"the cell after an interrupt at {interrupt.where}") from error
        assert results == [2, 2, 4, 6, 4, [4, 4]], interrupt.where
        place += STRIDE
    assert place > 10 * STRIDE


ANYWHERE = (OURS, os.path.join("dftracer", "utils"), f"{os.sep}asyncio{os.sep}")
"""Where what is lost may not be got back, and yet no shutdown may wait for it for ever."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have bodies that nothing wakes waited for a moment only."""
    monkeypatch.setenv("DFTRACER_EXIT_PATIENCE_S", "0.01")
    for module in (ending, launcher, serving):
        monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.01)


@pytest.mark.parametrize("first", range(1, STRIDE + 1))
@pytest.mark.parametrize("what", ["a cell", "the shutdown"])
@pytest.mark.usefixtures("impatient")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_shutdown_ends_when_an_interrupt_came_anywhere(
    loop: asyncio.AbstractEventLoop, first: int, what: str
) -> None:
    async def interrupted(body: Callable[[], Coroutine[Any, Any, Any]], by: Interrupt) -> None:
        sys.setprofile(by)
        try:
            await body()
        finally:
            sys.setprofile(None)

    place, misses = first, 0
    while misses < 3:
        flow = run(loop, WorkflowEngine.create())
        double = flow.function_task(lambda number: 2 * number)

        @flow.block
        async def block(number: int, double: Any = double) -> int:
            result: int = await double(await double(number))
            return result

        async def cell(flow: Any = flow, double: Any = double, block: Any = block) -> None:
            flow.block(asyncio.sleep)(3600)
            await asyncio.gather(double([double(1)]), block(1))

        interrupt = Interrupt(place, ANYWHERE)
        if what == "the shutdown":
            run(loop, cell())
        body = cell if what == "a cell" else flow.shutdown
        task = loop.create_task(interrupted(body, interrupt))
        loop.call_later(GUARD_S, loop.stop)  # a task that nothing wakes any more
        with contextlib.suppress(BaseException):  # whatever has become of it
            loop.run_until_complete(asyncio.wait([task], timeout=0.1))
        sys.setprofile(None)
        misses = 0 if interrupt.where else misses + 1
        try:
            run(loop, flow.shutdown())
        except BaseException as error:
            raise AssertionError(f"the shutdown after one at {interrupt.where}") from error
        place += STRIDE * 3
    assert place > 10 * STRIDE
