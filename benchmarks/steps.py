"""What one task of the engine costs on each step of its way: `python steps.py [--docs]`.

Run it with a Python that has the package installed. A bag of no-op tasks is run on the default
backend, with clocks around what is called once for many tasks, so that the clocks cost nothing.
They read the CPU time of the event loop's thread: waiting for the interpreter does not count, and
the workers' share is what the process took beyond it. What is called once for each task is
measured apart, by itself. Medians of several runs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import functools
import gc
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from page import write_figures

PAGE = Path(__file__).resolve().parent.parent / "docs" / "costs.md"

asyncflow: Any = import_module("dftracer.asyncflow")
search: Any = import_module("dftracer.asyncflow.engine.arguments")
graph: Any = import_module("dftracer.utils.primitives")
utils: Any = import_module("dftracer.utils")

Figures = dict[str, float]


class Clocks:
    """CPU time of this thread, each moment counted for the innermost step that is running."""

    def __init__(self) -> None:
        self.nanos: defaultdict[str, int] = defaultdict(int)
        self.entries: defaultdict[str, int] = defaultdict(int)
        self._open: list[str] = []
        self._since = 0

    def around(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._open.append(step)
            self.entries[step] += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._turn()
                self._open.pop()

        return timed

    def _turn(self) -> None:
        now = time.thread_time_ns()
        if self._open:
            self.nanos[self._open[-1]] += now - self._since
        self._since = now


async def same(x: int) -> int:
    return x


async def run_bag(n: int) -> Figures:
    """Nanoseconds of CPU for each of `n` tasks, by step."""
    clocks = Clocks()
    async with await asyncflow.WorkflowEngine.create() as flow:
        noop, backend = flow.function_task(same), flow.backend
        scheduler = (call := noop(0)).engine
        await call
        scheduler.launch = clocks.around("queue", scheduler.launch)
        backend.submit = clocks.around("submit", backend.submit)
        backend.poll = clocks.around("deliver", backend.poll)
        backend.connect(clocks.around("settle", scheduler.report))
        register = clocks.around("register", lambda: [noop(i) for i in range(n)])
        await asyncio.gather(*[noop(i) for i in range(100)])
        gc.collect()
        clocks.nanos.clear()
        clocks.entries.clear()
        process, thread = time.process_time_ns(), time.thread_time_ns()
        await asyncio.gather(*register())
        thread = time.thread_time_ns() - thread
        process = time.process_time_ns() - process
    missing = {"register", "queue", "submit", "deliver", "settle"} - clocks.nanos.keys()
    if missing:
        raise RuntimeError(f"no clock ran for {sorted(missing)}: has the way of a task changed?")
    figures = {step: nanos / n for step, nanos in clocks.nanos.items()}
    figures["await"] = (thread - sum(clocks.nanos.values())) / n
    figures["run"] = (process - thread) / n
    figures["all"] = process / n
    figures["wake-ups"] = clocks.entries["deliver"] * 1_000 / n
    return figures


async def run_one_by_one(n: int) -> float:
    """Nanoseconds of elapsed time from a call to its awaited result."""
    async with await asyncflow.WorkflowEngine.create() as flow:
        noop = flow.function_task(same)
        for i in range(50):
            await noop(i)
        began = time.perf_counter_ns()
        for i in range(n):
            await noop(i)
        return (time.perf_counter_ns() - began) / n


def _each(n: int, act: Callable[[int], object]) -> float:
    """Nanoseconds that `act` takes, less those of the loop around it."""
    began = time.thread_time_ns()
    for i in range(n):
        act(i)
    middle = time.thread_time_ns()
    for i in range(n):
        _nothing(i)
    return max(0, 2 * middle - began - time.thread_time_ns()) / n


def _nothing(_: int) -> None:
    pass


async def run_apart(n: int) -> Figures:
    """Nanoseconds of what happens once for each task, by itself."""
    async with await asyncflow.WorkflowEngine.create() as flow:
        three = tuple(asyncio.get_running_loop().create_future() for _ in range(3))
        figures = {
            "scan": _each(n, lambda i: search.find_in_call((i,), {})),
            "scan-three": _each(n, lambda _: search.find_in_call(three, {})),
            "context": _each(n, lambda _: contextvars.copy_context()),
            "asyncio-future": _each(n, lambda _: asyncio.Future(loop=flow.loop)),
        }
    waiting = graph.Graph()
    for parent in range(3):
        waiting.add(parent, [])
    figures["graph-add"] = _each(n, lambda i: waiting.add(i + 3, (i, i + 1, i + 2)))
    figures["graph-finish"] = _each(n, lambda i: waiting.finish(i, done=True))
    with utils.Runtime(threads=2, python_threads=2) as runtime:
        process = time.process_time_ns()
        for i in range(n):
            runtime.submit(_nothing, i)
        runtime.wait_all()
        figures["runtime"] = (time.process_time_ns() - process) / n
    return figures


def measure(n: int, repeats: int) -> Figures:
    samples: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        one_by_one = asyncio.run(run_one_by_one(n // 20))
        everything = {
            **asyncio.run(run_bag(n)),
            **asyncio.run(run_apart(n)),
            "one-by-one": one_by_one,
        }
        for step, figure in everything.items():
            samples[step].append(figure)
    return {step: median(figures) for step, figures in samples.items()}


_ON_THE_WAY = (
    ("register", "register", "the call itself: `Scheduler.register`, all that is below included"),
    ("queue", "queue", "`Scheduler.launch`: what is ready, put into a list for its backend"),
    ("submit", "queue", "the backend's `submit`: records in the runtime's queue, workers woken"),
    ("run", "run", "workers: taken, called in its context, its outcome posted"),
    ("deliver", "deliver", "the backend's `poll`: outcomes taken out of the completion queue"),
    ("settle", "settle", "`Scheduler.report`: futures ended, the state and its counts"),
    ("await", "settle", "asyncio: the callbacks of the futures, `gather`, the loop"),
)
_APART = (
    ("scan", "scan", "arguments searched for futures and files: one number"),
    ("scan-three", "scan", "the same: three futures"),
    ("context", "register", "`contextvars.copy_context()`"),
    ("asyncio-future", "register", "an `asyncio.Future` made and dropped, for comparison"),
    ("graph-add", "graph", "a node with three edges added"),
    ("graph-finish", "graph", "a node ended, and its verdicts"),
    ("runtime", "queue, run", "`Runtime.submit` and its end, without the engine"),
)


def as_markdown(figures: Figures, n: int, repeats: int) -> str:
    lines = [
        f"CPython {platform.python_version()}, {platform.machine()}; bags of {n:,} tasks,"
        f" medians of {repeats} runs.",
        "",
        "| step | what | CPU time for each task | share |",
        "| --- | --- | --- | --- |",
    ]
    for key, step, what in _ON_THE_WAY:
        share = 100 * figures[key] / figures["all"]
        lines.append(f"| {step} | {what} | {figures[key] / 1e3:.2f} us | {share:.0f}% |")
    lines += [
        f"| all | | {figures['all'] / 1e3:.2f} us | 100% |",
        "",
        f"Wake-ups of the event loop for 1,000 tasks: {figures['wake-ups']:.1f}. From a call to its"
        f" result, when each is awaited before the next: {figures['one-by-one'] / 1e3:.1f} us of "
        "elapsed time.",
        "",
        "| step | by itself | CPU time |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {step} | {what} | {figures[key] / 1e3:.2f} us |" for key, step, what in _APART]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="What a task costs, step by step.")
    parser.add_argument("--tasks", type=int, default=20_000, help="in each bag (20,000)")
    parser.add_argument("--repeats", type=int, default=5, help="runs (5)")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/costs.md")
    options = parser.parse_args(arguments)
    table = as_markdown(measure(options.tasks, options.repeats), options.tasks, options.repeats)
    print(table)
    if options.docs:
        write_figures(PAGE, table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
