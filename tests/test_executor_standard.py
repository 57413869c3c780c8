"""The standard library's own tests of executors, run against those that a runtime gives.

They are loaded from the interpreter that runs the tests. Not every interpreter comes with them.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import pkgutil
import types
import unittest
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dftracer.utils import Runtime
from dftracer.utils.executor import RuntimeExecutor

PACKAGE = "test.test_concurrent_futures"

NOT_APPLICABLE = {
    "test_default_workers": "the runtime has the sizes, and its executor no argument for them",
    "test_hang_global_shutdown_lock": "it is about a lock of the module of thread pools",
    "test_idle_thread_reuse": "it counts the pool's own threads",
    "test_initializer": "a runtime's threads run no initializer",
    "test_max_workers_negative": "the runtime has the sizes, and refuses them in its own words",
    "test_saturation": "it counts the pool's own threads",
    "test_submit_after_interpreter_shutdown": "it looks for the name of RuntimeError in the text, "
    "and a subclass of it is raised",
    "test_thread_names_assigned": "threads are named by the runtime",
    "test_thread_names_default": "threads are named by the runtime",
    "test_threads_terminate": "threads belong to the runtime, which outlives its executor",
}
"""The tests for thread pools that ask for what an executor of a runtime does not have, and why."""

RUNTIMES: list[Runtime] = []
"""Those that the running test has made."""


class ThreadPoolExecutor(RuntimeExecutor):
    """Made as the tests make a thread pool, and called as they call it in programs."""

    _threads = ()  # they belong to the runtime, and some tests join them at their end

    def __init__(self, max_workers: int = 0) -> None:
        RUNTIMES.append(Runtime(threads=1, io_threads=1, python_threads=max_workers))
        super().__init__(RUNTIMES[-1])


PROGRAM = """
import concurrent.futures, dftracer.utils
concurrent.futures.ThreadPoolExecutor = lambda max_workers=0: (
    dftracer.utils.Runtime(python_threads=max_workers).executor())
"""
"""What goes before the text of programs that tests start."""


def load() -> Iterator[types.ModuleType]:
    """Import what the interpreter has: a module before Python 3.12, then a package."""
    try:
        package = importlib.import_module(PACKAGE)
    except ImportError:
        return
    yield package
    for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
        if module.name.startswith("test_"):
            yield importlib.import_module(f"{PACKAGE}.{module.name}")


def collect() -> Iterator[Any]:
    """Yield a parameter for each test of thread pools."""
    for module in load():
        for kind in vars(module).values():
            if not (isinstance(kind, type) and issubclass(kind, unittest.TestCase)):
                continue
            if getattr(kind, "executor_type", None) is not concurrent.futures.ThreadPoolExecutor:
                continue
            for name in unittest.defaultTestLoader.getTestCaseNames(kind):
                if name not in NOT_APPLICABLE:
                    yield pytest.param(module, kind, name, id=f"{kind.__name__}.{name}")


CASES = list(collect())


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[types.ModuleType, type], type]]:
    """Return a case of a module that gets our executor wherever it asks for a thread pool."""

    def replace(module: types.ModuleType, kind: type) -> type:
        futures = types.ModuleType("futures")
        executors = {"ProcessPoolExecutor": concurrent.futures.ProcessPoolExecutor}
        vars(futures).update(vars(concurrent.futures), **executors)
        vars(futures)["ThreadPoolExecutor"] = ThreadPoolExecutor
        monkeypatch.setattr(module, "futures", futures, raising=False)
        if (start := getattr(module, "assert_python_ok", None)) is not None:
            monkeypatch.setattr(
                module, "assert_python_ok", lambda option, text: start(option, PROGRAM + text)
            )
        for base in kind.__mro__:
            # It looks for threads that are left over, and those of a runtime leave after the test.
            if base.__name__ == "BaseTestCase":
                monkeypatch.setattr(base, "setUp", lambda _: None)
                monkeypatch.setattr(base, "tearDown", lambda _: None)
        return type(kind.__name__, (kind,), {"executor_type": ThreadPoolExecutor})

    yield replace
    while RUNTIMES:
        RUNTIMES.pop().shutdown()


@pytest.mark.skipif(not CASES, reason="this interpreter came without its own tests")
@pytest.mark.parametrize(("module", "kind", "name"), CASES)
def test_executor_passes_when_the_standard_library_tests_it(
    module: types.ModuleType,
    kind: type[unittest.TestCase],
    name: str,
    stand_in: Callable[[types.ModuleType, type], type],
) -> None:
    case, result = stand_in(module, kind)(name), unittest.TestResult()
    case.run(result)
    for _, text in result.failures + result.errors:
        pytest.fail(text)
    for _, reason in result.skipped:
        pytest.skip(reason)
    assert result.testsRun == 1
