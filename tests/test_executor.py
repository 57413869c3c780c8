"""The end of an executor of a runtime: who waits for what, and what stays behind."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from typing import Any

import pytest

from dftracer.utils import Runtime, current_task, get_default_runtime

GUARD_S = 30
"""How long a body or a test waits for what must come."""


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime(threads=1, io_threads=1, python_threads=1) as runtime:
        yield runtime


def cancelled_in_the_queue(runtime: Runtime) -> tuple[Executor, threading.Event, list[Future[int]]]:
    """Return an executor whose only worker is busy until the event, and calls that wait."""
    executor, started, release = runtime.executor(), threading.Event(), threading.Event()

    def body() -> bool:
        started.set()
        return release.wait(GUARD_S)

    executor.submit(body)
    assert started.wait(GUARD_S)
    return executor, release, [executor.submit(pow, 2, number) for number in range(20)]


def test_shutdown_returns_when_a_waiting_call_is_cancelled_meanwhile(runtime: Runtime) -> None:
    executor, release, futures = cancelled_in_the_queue(runtime)

    def cancel() -> None:
        assert all(future.cancel() for future in futures)
        release.set()

    # In the callback of a call that comes first, while the main thread waits in `shutdown`.
    threading.Timer(0.1, cancel).start()
    executor.shutdown()
    assert all(future.cancelled() for future in futures)
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(0)


def test_shutdown_waits_for_done_callbacks_when_they_take_long(runtime: Runtime) -> None:
    executor, called, release = runtime.executor(), [], threading.Event()
    added = threading.Event()

    def callback(future: Future[bool]) -> None:
        assert release.wait(GUARD_S)
        called.append(future.result())

    executor.submit(added.wait, GUARD_S).add_done_callback(callback)
    added.set()  # not before: the callback would be called here
    waiting = threading.Thread(target=executor.shutdown)
    waiting.start()
    assert not called
    release.set()
    waiting.join(GUARD_S)
    assert called == [True]


@pytest.mark.parametrize("nested", [False, True])
def test_shutdown_returns_when_a_call_of_the_executor_asks(runtime: Runtime, nested: bool) -> None:
    executor = runtime.executor()

    def body() -> int:
        if nested:  # run by the same thread inside the call, which waits for it
            runtime.submit(executor.shutdown).get()
        else:
            executor.shutdown()
        return 1

    assert executor.submit(body).result(GUARD_S) == 1
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)


@pytest.mark.parametrize("how", ["result", "exception"])
def test_call_gets_what_it_waits_for_when_there_is_one_worker(runtime: Runtime, how: str) -> None:
    executor = runtime.executor()

    def body() -> Any:
        return getattr(executor.submit(divmod, 1, int(how == "result")), how)(GUARD_S)

    result = executor.submit(body).result(GUARD_S)
    assert result == (1, 0) or type(result) is ZeroDivisionError


def test_future_of_a_failed_call_is_freed_when_nobody_holds_it(runtime: Runtime) -> None:
    executor = runtime.executor()

    class Argument:
        pass

    def fail(argument: Argument) -> None:
        raise LookupError(1)

    argument = Argument()
    future = executor.submit(fail, argument)
    with pytest.raises(LookupError):
        future.result(GUARD_S)
    executor.submit(int).result(GUARD_S)  # by then the worker has left the call before
    freed = weakref.ref(argument)
    gc.disable()
    try:
        del future, argument
        if not getattr(sys, "_is_gil_enabled", lambda: True)():
            # What others have dropped dies on the thread that has made it, when that next runs
            # Python code, and with it what it holds: the error, its traceback, a frame after the
            # other.
            for _ in range(100):
                executor.submit(lambda: None).result(GUARD_S)
        assert freed() is None
    finally:
        gc.enable()


def test_waiters_hear_of_a_cancelled_call_when_its_task_never_begins(runtime: Runtime) -> None:
    executor, release, futures = cancelled_in_the_queue(runtime)
    futures[0].cancel()
    runtime.set_timeout(1)
    for future in futures[1:]:
        assert isinstance(future.exception(GUARD_S), TimeoutError)
    release.set()
    executor.shutdown()
    assert {future._state for future in futures[:2]} == {"CANCELLED_AND_NOTIFIED", "FINISHED"}


def submit_until_refused(
    executor: Executor, begin: threading.Barrier, futures: list[Future[int]], refused: list[str]
) -> None:
    begin.wait(GUARD_S)
    try:
        while True:
            futures.append(executor.submit(int))
    except RuntimeError as error:
        refused.append(str(error))


def test_every_call_is_refused_or_run_when_shutdown_races_with_them() -> None:
    with Runtime(python_threads=2) as runtime:
        for _ in range(50):
            executor, begin = runtime.executor(), threading.Barrier(3)
            futures: list[Future[int]] = []
            refused: list[str] = []

            threads = [
                threading.Thread(
                    target=submit_until_refused, args=(executor, begin, futures, refused)
                )
                for _ in range(2)
            ]
            for thread in threads:
                thread.start()
            begin.wait(GUARD_S)
            executor.shutdown()
            accepted = list(futures)
            assert all(future.done() for future in accepted)
            for thread in threads:
                thread.join(GUARD_S)
            assert refused == ["cannot schedule new futures after shutdown"] * 2
            assert all(future.done() for future in futures)


def test_child_of_a_fork_goes_on_when_it_leaves_the_block(run_script: Callable[..., str]) -> None:
    out = run_script(
        """
        import os, threading, time
        from dftracer.utils import Runtime

        runtime = Runtime(python_threads=1)
        release = threading.Event()
        with runtime.executor() as executor:
            executor.submit(release.wait)
            if not (child := os.fork()):
                try:
                    executor.submit(int)
                except RuntimeError as error:
                    print(error, flush=True)
            else:
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
                release.set()
        """
    )
    assert out == "this executor was made before a fork(): make a runtime in the child\n0\n"


def test_callable_of_any_kind_is_named_when_it_has_no_name(runtime: Runtime) -> None:
    class Nameless:
        def __call__(self) -> str:
            task = current_task()
            assert task is not None
            return task.name

    assert runtime.executor().submit(Nameless()).result(GUARD_S).endswith("Nameless")


def test_error_says_why_when_the_runtime_is_shut_down() -> None:
    runtime = Runtime(python_threads=1)
    executor = runtime.executor()
    runtime.shutdown()
    with pytest.raises(RuntimeError, match=r"cannot schedule new futures: .*shut down"):
        executor.submit(int)
    assert get_default_runtime().executor().submit(int).result(GUARD_S) == 0
