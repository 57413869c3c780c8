"""The exceptions by which users tell why a runtime refuses something. All are `RuntimeError`s."""

import asyncio
import concurrent.futures
import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from dftracer import utils
from dftracer.utils import (
    ForkedRuntimeError,
    Runtime,
    RuntimeShutdownError,
    SystemLimitError,
    TaskHandle,
    TooManyBlockedError,
    WaitRefusedError,
)

GUARD_S = 30
"""How long a test waits for what must come."""

Script = Callable[..., str]

# From 3.12 on, forking while threads run earns a DeprecationWarning, whoever made them.
FORK = ("-W", "ignore::DeprecationWarning")

only_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="the limit of threads is that of a user, and root has none"
)

CLASSES = [
    ForkedRuntimeError,
    RuntimeShutdownError,
    SystemLimitError,
    TooManyBlockedError,
    WaitRefusedError,
]


@pytest.mark.parametrize("kind", CLASSES)
def test_refusal_is_a_runtime_error_that_goes_to_other_processes(kind: type[RuntimeError]) -> None:
    assert issubclass(kind, RuntimeError)
    assert kind.__doc__
    assert kind.__name__ in utils.__all__
    copy = pickle.loads(pickle.dumps(kind("why")))
    assert type(copy) is kind
    assert copy.args == ("why",)


@pytest.mark.parametrize(
    "submit",
    [
        lambda runtime: runtime.submit(abs, -1),
        lambda runtime: runtime.submit_io(abs, -1),
        lambda runtime: list(runtime.map(abs, [-1, -2])),
        lambda runtime: runtime.run_process(["true"]),
        lambda runtime: runtime.hash_files(["/bin/sh"]),
        lambda runtime: runtime.executor().submit(abs, -1),
    ],
    ids="submit submit_io map run_process hash_files executor".split(),
)
def test_submission_is_refused_when_the_runtime_is_shut_down(
    submit: Callable[[Runtime], Any],
) -> None:
    runtime = Runtime()
    runtime.shutdown()
    with pytest.raises(RuntimeShutdownError, match="shut down"):
        submit(runtime)


def test_call_is_refused_when_the_executor_is_shut_down() -> None:
    with Runtime() as runtime:
        executor: concurrent.futures.Executor = runtime.executor()
        executor.shutdown()
        with pytest.raises(RuntimeShutdownError, match="after shutdown"):
            executor.submit(abs, -1)


def test_everything_is_refused_when_the_process_has_forked(run_script: Script) -> None:
    source = """
        import os, threading
        from dftracer.utils import ForkedRuntimeError, Runtime
        runtime = Runtime()
        executor = runtime.executor()
        goes_on = threading.Event()
        handle = runtime.submit(goes_on.wait)
        child = os.fork()
        if child == 0:
            refused = 0
            for request in (
                lambda: runtime.submit(abs, -1),
                lambda: executor.submit(abs, -1),
                lambda: list(runtime.map(abs, [-1, -2])),
                runtime.wait_all,
                runtime.get_progress,
                handle.get,
                handle.wait,
            ):
                try:
                    request()
                except ForkedRuntimeError:
                    refused += 1
            os._exit(refused)
        _, status = os.waitpid(child, 0)
        goes_on.set()
        print(os.waitstatus_to_exitcode(status), handle.get(30))
    """
    assert run_script(source, options=FORK) == "7 True\n"


def test_wait_is_refused_when_it_would_block_suspended_coroutines() -> None:
    # One event loop, in which one is suspended while the other tries to block it.
    with Runtime(python_threads=1) as runtime:
        futures: list[asyncio.Future[str]] = []

        async def suspended() -> str:
            futures.append(asyncio.get_running_loop().create_future())
            return await futures[0]

        async def blocking() -> None:
            try:
                runtime.submit(abs, -1).get(GUARD_S)
            finally:
                futures[0].set_result("went on")

        first: TaskHandle[str] = runtime.submit(suspended)
        second = runtime.submit(blocking)
        with pytest.raises(WaitRefusedError, match="would block the event loop"):
            second.get(GUARD_S)
        assert first.get(GUARD_S) == "went on"


def test_task_is_refused_a_wait_when_too_many_wait(run_script: Script) -> None:
    source = """
        import threading
        from dftracer.utils import Runtime, TooManyBlockedError
        runtime = Runtime(python_threads=1)
        last = threading.Event()
        refused = []

        def wait(depth):
            if refused or depth > 2_000:
                return depth
            # With a timeout, it is not run on this one's stack, but by a spare worker.
            inner = runtime.submit(wait, depth + 1)
            try:
                return inner.get(60)
            except TooManyBlockedError as error:
                refused.append(str(error))
                raise

        try:
            runtime.submit(wait, 0).get(60)
        except TooManyBlockedError as error:
            print(len(refused) > 0, "too many tasks" in str(error))
        runtime.shutdown()
    """
    assert run_script(source) == "True True\n"


@only_root
def test_call_fails_when_the_system_refuses_a_thread(run_script: Script) -> None:
    source = """
        import os, resource
        from dftracer.utils import Runtime, SystemLimitError
        os.setgid(61021)
        os.setresuid(61021, 61021, 61021)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
        runtime = Runtime(io_threads=2, threads=1)
        for submit in (
            lambda: runtime.run_process(["true"]).get(30),
            lambda: runtime.hash_files(["/bin/sh"]).get(30),
            lambda: runtime.set_default_task_timeout("1h"),
            lambda: runtime.submit(abs, -3).get(30),
        ):
            try:
                submit()
            except SystemLimitError as error:
                print("refused to start" in str(error), "limit" in str(error))
    """
    assert run_script(source) == "True True\n" * 4
