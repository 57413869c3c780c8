"""The runtime and its handles as their documentation promises them.

One long file, for it follows the documentation method by method: look a promise up by its section.
"""

import concurrent.futures
import contextvars
import functools
import math
import operator
import os
import pickle
import signal
import stat
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from handle_support import ended

from dftracer.utils import (
    Cancellation,
    ProcessResult,
    Runtime,
    TaskHandle,
    TaskTimeoutError,
    available_cpus,
    get_default_runtime,
    peek_default_runtime,
    set_default_runtime,
)

GUARD_S = 30
"""How long a body or a test waits for what must come."""

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture(name="runtime")
def make_runtime() -> Iterator[Runtime]:
    with Runtime(threads=2, io_threads=2, python_threads=4) as runtime:
        yield runtime


@pytest.fixture(name="one_worker")
def make_one_worker() -> Iterator[Runtime]:
    with Runtime(threads=1, io_threads=1, python_threads=1) as runtime:
        yield runtime


@pytest.fixture
def no_default() -> Iterator[None]:
    previous = peek_default_runtime()
    set_default_runtime(None)
    yield
    made = peek_default_runtime()
    if made is not None:
        made.shutdown()
    set_default_runtime(previous)


@contextmanager
def busy(runtime: Runtime, workers: int = 1) -> Iterator[list[TaskHandle[None]]]:
    """Keep that many workers of ``runtime`` inside a body for the time of the block."""
    started, release = threading.Barrier(workers + 1), threading.Event()

    def body() -> None:
        started.wait(GUARD_S)
        assert release.wait(GUARD_S)

    handles = [runtime.submit(body) for _ in range(workers)]
    started.wait(GUARD_S)
    try:
        yield handles
    finally:
        release.set()
        for handle in handles:
            handle.get(GUARD_S)


def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


async def fail_later(error: BaseException) -> None:
    raise error


def fail(error: BaseException) -> None:
    raise error


class Callables:
    """Every kind of callable that is no plain function."""

    def __init__(self, base: int = 0) -> None:
        self.base = base

    def __call__(self, number: int) -> int:
        return self.base + number

    def method(self, number: int) -> int:
        return self.base + number

    @classmethod
    def class_method(cls, number: int) -> int:
        return number + 1

    @staticmethod
    def static_method(number: int) -> int:
        return number + 2


# --- submit and get ---------------------------------------------------------------------------


def test_get_returns_result_when_body_has_returned(runtime: Runtime) -> None:
    result = object()
    assert runtime.submit(lambda: result).get() is result


def test_get_returns_none_when_body_returns_nothing(runtime: Runtime) -> None:
    assert runtime.submit(lambda: None).get() is None


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (math.factorial, math.factorial(5)),
        (operator.attrgetter("real"), 5),
        (functools.partial(pow, 2), 32),
        (Callables(7), 12),
        (Callables(7).method, 12),
        (Callables.class_method, 6),
        (Callables.static_method, 7),
        (int, 5),
        (functools.lru_cache(maxsize=None)(lambda number: number), 5),
    ],
)
def test_get_returns_result_when_callable_is_no_function(
    runtime: Runtime, function: Callable[[int], Any], expected: int
) -> None:
    assert runtime.submit(function, 5).get() == expected


def test_arguments_arrive_unchanged_when_positional_and_keyword(runtime: Runtime) -> None:
    marker = object()
    args, kwargs = runtime.submit(echo, 1, marker, key=[], other=marker).get()
    assert args == (1, marker)
    assert kwargs == {"key": [], "other": marker}


def test_keywords_reach_body_when_named_like_parameters_of_submit(runtime: Runtime) -> None:
    _, kwargs = runtime.submit(echo, self=1, task_or_fn=2, args=3, kwargs=4).get()
    assert kwargs == {"self": 1, "task_or_fn": 2, "args": 3, "kwargs": 4}


def test_argument_is_the_same_object_when_mutable(runtime: Runtime) -> None:
    box: list[int] = []
    runtime.submit(box.append, 1).get()
    assert box == [1]


@pytest.mark.parametrize("thing", [None, 3, "text", object(), [print]])
def test_submit_raises_type_error_when_given_no_callable(runtime: Runtime, thing: Any) -> None:
    with pytest.raises(TypeError, match=type(thing).__name__):
        runtime.submit(thing)


def test_submit_raises_type_error_when_given_a_coroutine(runtime: Runtime) -> None:
    async def body() -> None: ...

    coroutine = body()
    with pytest.raises(TypeError, match="coroutine"):
        runtime.submit(coroutine)  # type: ignore[call-overload]
    coroutine.close()


def test_wait_all_returns_when_a_submit_was_refused(runtime: Runtime) -> None:
    with pytest.raises(TypeError):
        runtime.submit(None)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        runtime.submit(print, name=3)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="argv"):
        runtime.run_process([])
    runtime.wait_all()
    assert runtime.submit(abs, -1).get() == 1


def test_submit_returns_the_handle_when_given_a_handle(
    runtime: Runtime, one_worker: Runtime
) -> None:
    handle = runtime.submit(abs, -1)
    assert runtime.submit(handle) is handle
    assert one_worker.submit(handle) is handle


def test_get_raises_what_the_body_raised_when_it_failed(runtime: Runtime) -> None:
    error = LookupError("missing")
    with pytest.raises(LookupError) as caught:
        runtime.submit(fail, error).get()
    assert caught.value is error


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration])
def test_get_raises_what_the_body_raised_when_it_is_no_ordinary_error(
    one_worker: Runtime, kind: type[BaseException]
) -> None:
    error = kind()
    handle = one_worker.submit(fail, error)
    with pytest.raises(kind) as caught:
        handle.get()
    assert caught.value is error
    assert handle.state == "failed"
    assert one_worker.submit(abs, -1).get() == 1


def test_get_raises_type_error_when_arguments_do_not_fit(runtime: Runtime) -> None:
    handle = runtime.submit(lambda: None, 1, 2, 3)
    with pytest.raises(TypeError, match="positional argument"):
        handle.get()


def test_get_raises_the_same_error_when_called_again(runtime: Runtime) -> None:
    handle = runtime.submit(fail, ValueError("x"))
    errors: list[BaseException] = []
    for _ in range(3):
        with pytest.raises(ValueError, match="x") as caught:
            handle.get()
        errors.append(caught.value)
    assert len({id(error) for error in errors}) == 1


def test_get_returns_to_every_thread_when_many_wait_for_one_task(runtime: Runtime) -> None:
    release, result = threading.Event(), object()
    waiting = threading.Barrier(17)

    def body() -> object:
        assert release.wait(GUARD_S)
        return result

    handle = runtime.submit(body)

    def wait() -> object:
        waiting.wait(GUARD_S)
        return handle.get(GUARD_S)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(wait) for _ in range(16)]
        waiting.wait(GUARD_S)
        release.set()
        assert all(future.result(GUARD_S) is result for future in futures)


def test_tasks_begin_in_order_when_there_is_one_worker(one_worker: Runtime) -> None:
    begun: list[int] = []
    with busy(one_worker):
        for number in range(500):
            one_worker.submit(begun.append, number)
    one_worker.wait_all()
    assert begun == list(range(500))


def test_tasks_run_side_by_side_when_there_are_workers(runtime: Runtime) -> None:
    together = threading.Barrier(4)
    handles = [runtime.submit(together.wait, GUARD_S) for _ in range(4)]
    assert sorted(handle.get() for handle in handles) == [0, 1, 2, 3]


def test_no_more_tasks_run_at_once_than_workers_when_many_are_queued() -> None:
    lock, running, most = threading.Lock(), 0, 0

    def body() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        os.sched_yield()
        with lock:
            running -= 1

    with Runtime(python_threads=3) as runtime:
        for _ in range(600):
            runtime.submit(body)
    assert 1 <= most <= 3


def test_body_runs_on_a_named_worker_when_submitted(runtime: Runtime) -> None:
    thread = runtime.submit(threading.current_thread).get()
    assert thread is not threading.main_thread()
    assert thread.name.startswith("dft-python-")


def test_thread_local_survives_when_tasks_share_a_worker(one_worker: Runtime) -> None:
    local = threading.local()

    def count() -> int:
        local.value = getattr(local, "value", 0) + 1
        value: int = local.value
        return value

    assert [one_worker.submit(count).get() for _ in range(5)] == [1, 2, 3, 4, 5]


def test_body_sees_context_of_submit_when_it_runs_later(one_worker: Runtime) -> None:
    with busy(one_worker):
        handles = []
        for text in ("one", "two", "three"):
            token = variable.set(text)
            handles.append(one_worker.submit(variable.get))
            variable.reset(token)
    assert [handle.get() for handle in handles] == ["one", "two", "three"]
    assert one_worker.submit(variable.get).get() == "unset"


def test_context_stays_the_bodys_own_when_it_changes_it(one_worker: Runtime) -> None:
    one_worker.submit(variable.set, "changed").get()
    assert variable.get() == "unset"
    assert one_worker.submit(variable.get).get() == "unset"


# --- what a handle tells -----------------------------------------------------------------------


def test_name_is_the_given_one_when_given(one_worker: Runtime) -> None:
    with busy(one_worker):
        handle = one_worker.submit(abs, -1, name="näme\n")
        assert handle.name == "näme\n"
    handle.get()
    assert handle.name == "näme\n"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (echo, f"{__name__}.echo"),
        (Callables, f"{__name__}.Callables"),
        (Callables.class_method, f"{__name__}.Callables.class_method"),
        (Callables().method, f"{__name__}.Callables.method"),
        (functools.partial(functools.partial(echo, 1), 2), f"{__name__}.echo"),
        (len, "builtins.len"),
        (Callables(), "Callables"),
    ],
)
def test_name_is_the_callables_when_none_was_given(
    one_worker: Runtime, function: Callable[..., Any], expected: str
) -> None:
    with busy(one_worker):
        handle = one_worker.submit(function, [])
        queued = handle.name
    ended(handle)
    assert (queued, handle.name) == (expected, expected)


def test_name_has_no_module_when_the_function_is_of_main(runtime: Runtime) -> None:
    def body() -> None: ...

    body.__module__ = "__main__"
    assert runtime.submit(body).name == body.__qualname__


def test_name_is_known_when_nobody_held_the_handle_of_a_failed_task(runtime: Runtime) -> None:
    runtime.submit(fail, ValueError())
    runtime.wait_all()
    assert [handle.name for handle in runtime.get_failed()] == [f"{__name__}.fail"]


def test_name_is_known_to_the_body_when_it_asks_for_its_own(one_worker: Runtime) -> None:
    handles: list[TaskHandle[str]] = []
    with busy(one_worker):
        handles.append(one_worker.submit(lambda: handles[0].name))
    assert handles[0].get() == handles[0].name


def test_submit_raises_type_error_when_name_is_no_string(runtime: Runtime) -> None:
    with pytest.raises(TypeError):
        runtime.submit(abs, -1, name=b"bytes")  # type: ignore[call-overload]


def test_task_ids_count_up_from_zero_when_tasks_are_submitted(runtime: Runtime) -> None:
    handles: list[TaskHandle[Any]] = [runtime.submit(abs, -1) for _ in range(50)]
    handles.append(runtime.run_process(["true"]))
    assert [handle.task_id for handle in handles] == list(range(51))


def test_state_follows_the_task_when_it_succeeds(one_worker: Runtime) -> None:
    started, release = threading.Event(), threading.Event()

    def body() -> None:
        started.set()
        assert release.wait(GUARD_S)

    with busy(one_worker):
        handle = one_worker.submit(body)
        assert (handle.state, handle.done()) == ("queued", False)
    assert started.wait(GUARD_S)
    assert (handle.state, handle.done()) == ("running", False)
    assert handle.exception is None
    release.set()
    handle.get()
    assert (handle.state, handle.done(), handle.exception) == ("done", True, None)


def test_state_is_failed_when_the_body_raised(runtime: Runtime) -> None:
    error = ValueError()
    handle = ended(runtime.submit(fail, error))
    assert (handle.state, handle.done()) == ("failed", True)
    assert handle.exception is error


@pytest.mark.parametrize("timeout", [None, GUARD_S])
@pytest.mark.parametrize("error", [ValueError("the body's"), SystemExit(3)])
def test_wait_raises_the_bodys_error_when_it_failed(
    runtime: Runtime, error: BaseException, timeout: float | None
) -> None:
    handle = runtime.submit(fail, error)
    for wait in (handle.wait, functools.partial(runtime.wait, handle)):
        for _ in range(2):  # each time anew
            with pytest.raises(type(error)) as caught:
                wait(timeout)
            assert caught.value is error
    assert handle.done()


@pytest.mark.parametrize("timeout", [None, GUARD_S])
def test_wait_raises_when_a_task_without_a_body_fails(
    runtime: Runtime, timeout: float | None
) -> None:
    with pytest.raises(FileNotFoundError):
        runtime.run_process(["./no-such-program"]).wait(timeout)
    with pytest.raises(FileNotFoundError):
        runtime.wait(runtime.hash_files(["./no-such-file"]), timeout)
    with pytest.raises(ValueError, match="later"):
        runtime.submit(fail_later, ValueError("later")).wait(timeout)


@pytest.mark.parametrize("timeout", [None, GUARD_S])
def test_wait_returns_nothing_when_the_task_is_done(
    runtime: Runtime, timeout: float | None
) -> None:
    assert runtime.submit(abs, -1).wait(timeout) is None  # type: ignore[func-returns-value]
    assert runtime.run_process(["false"]).wait(timeout) is None  # type: ignore[func-returns-value]


def test_repr_tells_number_name_and_state_when_asked(runtime: Runtime) -> None:
    handle = runtime.submit(abs, -1, name="negative")
    handle.get()
    text = repr(handle)
    assert all(part in text for part in (str(handle.task_id), "negative", "done"))


@pytest.mark.parametrize("timeout", [0, 0.0, -1, -math.inf, 0.001])
@pytest.mark.parametrize("method", ["get", "wait"])
def test_timeout_error_is_raised_when_the_task_is_not_over(
    one_worker: Runtime, method: str, timeout: float
) -> None:
    with busy(one_worker) as (running,):
        queued = one_worker.submit(abs, -1, name="waits its turn")
        with pytest.raises(TimeoutError, match="running"):
            getattr(running, method)(timeout)
        with pytest.raises(TimeoutError, match=r"waits its turn.*queued"):
            getattr(queued, method)(timeout=timeout)
    assert queued.get() == 1


@pytest.mark.parametrize("timeout", [0, -1, 5, math.inf, 1e300, None])
def test_timeout_does_not_matter_when_the_task_is_over(
    runtime: Runtime, timeout: float | None
) -> None:
    handle = runtime.submit(abs, -1)
    handle.wait()
    assert handle.get(timeout) == 1
    assert handle.get(timeout=timeout) == 1


@pytest.mark.parametrize("timeout", [math.inf, 1e300])
def test_get_waits_when_the_timeout_is_beyond_any_clock(runtime: Runtime, timeout: float) -> None:
    assert runtime.submit(abs, -1).get(timeout) == 1


@pytest.mark.parametrize(("timeout", "kind"), [(math.nan, ValueError), ("1", TypeError)])
def test_get_refuses_when_the_timeout_is_no_time(
    runtime: Runtime, timeout: Any, kind: type[Exception]
) -> None:
    ended, release = runtime.submit(abs, -1), threading.Event()
    assert ended.get() == 1
    waits = runtime.submit(release.wait, GUARD_S)
    for handle in (ended, waits):
        with pytest.raises(kind):
            handle.get(timeout)
        with pytest.raises(kind):
            handle.wait(timeout)
    release.set()
    assert waits.get() is True


def test_handle_has_ended_with_none_when_it_is_made_around_nothing() -> None:
    handle: TaskHandle[None] = TaskHandle(name="empty", task_id=7)
    assert (handle.done(), handle.get(), handle.exception) == (True, None, None)
    assert (handle.name, handle.task_id) == ("empty", 7)
    assert (TaskHandle().name, TaskHandle().task_id) == ("", -1)


def test_handle_refuses_to_be_pickled_when_asked(runtime: Runtime) -> None:
    with pytest.raises(TypeError, match="TaskHandle"):
        pickle.dumps(runtime.submit(abs, -1))


def test_handle_can_be_subscripted_when_used_as_a_type() -> None:
    assert TaskHandle[int].__origin__ is TaskHandle  # type: ignore[attr-defined]


def test_handle_can_be_hashed_and_referenced_weakly_when_alive(runtime: Runtime) -> None:
    handle, other = runtime.submit(abs, -1), runtime.submit(abs, -1)
    assert len({handle, other, handle}) == 2
    assert weakref.ref(handle)() is handle


# --- wait_all and failures ---------------------------------------------------------------------


def test_wait_all_returns_when_nothing_was_submitted(runtime: Runtime) -> None:
    runtime.wait_all()
    runtime.wait_all(raise_on_error=True)


def test_everything_is_done_when_wait_all_returns(runtime: Runtime) -> None:
    async def coroutine_body() -> None: ...

    for _ in range(20):
        handles: list[TaskHandle[Any]] = [runtime.submit(abs, -1) for _ in range(20)]
        handles += [runtime.submit(coroutine_body) for _ in range(20)]
        handles += [runtime.submit(fail, ValueError()), runtime.run_process(["true"])]
        runtime.wait_all()
        assert all(handle.done() for handle in handles)


def test_wait_all_returns_to_every_thread_when_several_wait(one_worker: Runtime) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        with busy(one_worker) as (held,):
            waits = [pool.submit(one_worker.wait_all) for _ in range(4)]
        for wait in waits:
            wait.result(GUARD_S)
    assert held.done()


def test_wait_all_raises_nothing_when_not_asked_to(runtime: Runtime) -> None:
    runtime.submit(fail, ValueError())
    runtime.wait_all()
    assert len(runtime.get_failed()) == 1


def test_wait_all_names_the_failed_when_asked_to_raise(runtime: Runtime) -> None:
    runtime.submit(abs, -1, name="fine")
    runtime.submit(fail, ValueError("first reason"), name="first")
    runtime.submit(fail, KeyError("second reason"), name="second")
    with pytest.raises(RuntimeError) as caught:
        runtime.wait_all(raise_on_error=True)
    text = str(caught.value)
    for part in ("2 ", "first", "ValueError", "first reason", "second", "KeyError"):
        assert part in text
    assert "fine" not in text


def test_wait_all_raises_once_when_called_again(runtime: Runtime) -> None:
    runtime.submit(fail, ValueError())
    with pytest.raises(RuntimeError, match="ValueError"):
        runtime.wait_all(True)
    runtime.wait_all(True)
    runtime.submit(fail, KeyError())
    with pytest.raises(RuntimeError, match="KeyError") as caught:
        runtime.wait_all(True)
    assert "ValueError" not in str(caught.value)


class Unprintable(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise KeyError("no text")

    __repr__ = __str__


def test_wait_all_still_names_the_task_when_its_error_has_no_text(runtime: Runtime) -> None:
    runtime.submit(fail, Unprintable(), name="silent")
    with pytest.raises(RuntimeError, match=r"silent.*Unprintable"):
        runtime.wait_all(raise_on_error=True)


def test_get_failed_lists_every_failure_when_tasks_of_all_kinds_fail(runtime: Runtime) -> None:
    async def coroutine_body() -> None:
        raise ValueError

    assert runtime.get_failed() == []
    failing: list[TaskHandle[Any]] = [
        runtime.submit(fail, ValueError()),
        runtime.submit(fail, SystemExit()),
        runtime.submit(coroutine_body),
        runtime.run_process(["./no-such-program"]),
    ]
    runtime.submit(abs, -1)
    runtime.run_process(["false"])
    runtime.wait_all()
    assert set(runtime.get_failed()) == set(failing)
    assert set(runtime.get_failed()) == set(failing), "asking does not clear"


def test_get_failed_has_no_cancelled_task_when_one_was_cancelled(one_worker: Runtime) -> None:
    with busy(one_worker):
        assert one_worker.submit(abs, -1).cancel()
    one_worker.wait_all(raise_on_error=True)
    assert one_worker.get_failed() == []


def test_get_failed_returns_a_copy_when_its_list_is_changed(runtime: Runtime) -> None:
    handle = ended(runtime.submit(fail, ValueError()))
    runtime.get_failed().clear()
    assert runtime.get_failed() == [handle]


def test_get_failed_starts_anew_when_cleared(runtime: Runtime) -> None:
    ended(runtime.submit(fail, ValueError()))
    runtime.clear_failed()
    assert runtime.get_failed() == []
    second = ended(runtime.submit(fail, ValueError()))
    assert runtime.get_failed() == [second]
    runtime.clear_failed()
    runtime.clear_failed()


def test_get_failed_knows_a_process_when_its_handle_is_done(runtime: Runtime) -> None:
    handle = runtime.run_process(["./no-such-program"])
    while not handle.done():
        pass
    assert runtime.get_failed() == [handle]


# --- shutdown and the with block ---------------------------------------------------------------


def test_shutdown_waits_when_tasks_are_queued_and_running() -> None:
    done: list[int] = []
    runtime = Runtime(python_threads=1)
    for number in range(500):
        runtime.submit(done.append, number)
    runtime.shutdown()
    assert done == list(range(500))


def test_shutdown_may_be_called_again_when_shut_down() -> None:
    runtime = Runtime(python_threads=1)
    runtime.submit(abs, -1)
    runtime.shutdown()
    runtime.shutdown()
    runtime.shutdown(wait=False)
    runtime.wait_all()


def test_submit_raises_runtime_error_when_shut_down() -> None:
    async def coroutine_body() -> None: ...

    runtime = Runtime(python_threads=1)
    runtime.shutdown()
    for function in (print, coroutine_body):
        with pytest.raises(RuntimeError, match="shutdown"):
            runtime.submit(function)
    with pytest.raises(RuntimeError, match="shutdown"):
        runtime.run_process(["true"])
    runtime.wait_all()


def test_outcomes_stay_when_the_runtime_is_shut_down() -> None:
    with Runtime(python_threads=1) as runtime:
        good = runtime.submit(abs, -1)
        bad = runtime.submit(fail, ValueError("kept"))
        process = runtime.run_process(["echo", "kept"])
    assert good.get() == 1
    assert process.get().stdout == b"kept\n"
    with pytest.raises(ValueError, match="kept"):
        bad.get()
    assert runtime.get_failed() == [bad]
    assert good.cancel() is Cancellation.TOO_LATE


def test_shutdown_returns_at_once_when_it_is_not_to_wait() -> None:
    release = threading.Event()
    runtime = Runtime(python_threads=1)
    running = runtime.submit(release.wait, GUARD_S)
    queued = runtime.submit(abs, -1)
    runtime.shutdown(wait=False)
    assert not running.done()
    with pytest.raises(RuntimeError, match="shutdown"):
        runtime.submit(abs, -1)
    release.set()
    assert running.get() is True
    assert queued.get() == 1
    runtime.shutdown()


def test_with_block_gives_the_runtime_when_entered() -> None:
    runtime = Runtime(python_threads=1)
    with runtime as entered:
        assert entered is runtime


def test_with_block_waits_and_raises_on_when_its_body_raises() -> None:
    done: list[int] = []

    def use() -> None:
        with Runtime(python_threads=1) as runtime:
            for number in range(100):
                runtime.submit(done.append, number)
            raise LookupError("of the block")

    with pytest.raises(LookupError, match="of the block"):
        use()
    assert done == list(range(100))


def test_with_block_refuses_tasks_when_entered_a_second_time() -> None:
    runtime = Runtime(python_threads=1)
    with runtime:
        runtime.submit(abs, -1)
    with runtime, pytest.raises(RuntimeError, match="shutdown"):
        runtime.submit(abs, -1)


# --- sizes -------------------------------------------------------------------------------------


def test_sizes_are_the_given_ones_when_given() -> None:
    with Runtime(threads=3, io_threads=5, python_threads=7) as runtime:
        runtime.submit(abs, -1).get()
        assert (runtime.threads, runtime.io_threads, runtime.python_threads) == (3, 5, 7)


def test_sizes_may_be_positional_when_given() -> None:
    with Runtime(3, 5, 7) as runtime:
        assert (runtime.threads, runtime.io_threads) == (3, 5)


def test_sizes_follow_the_cpus_when_zero() -> None:
    with Runtime() as runtime:
        runtime.submit(abs, -1).get()
        assert (runtime.threads, runtime.io_threads) == (available_cpus(), available_cpus())
        assert runtime.python_threads == min(32, available_cpus())


def test_python_threads_follow_threads_up_to_a_limit_when_zero() -> None:
    for threads, expected in ((3, 3), (100, 32)):
        with Runtime(threads=threads) as runtime:
            runtime.submit(abs, -1).get()
            assert runtime.python_threads == expected


def test_python_threads_is_zero_when_no_worker_was_started() -> None:
    with Runtime(python_threads=3) as runtime:
        assert runtime.python_threads == 0
        runtime.submit(abs, -1).get()
        assert runtime.python_threads == 3


@pytest.mark.parametrize("size", ["threads", "io_threads", "python_threads"])
def test_runtime_refuses_when_a_size_is_beyond_any_system(size: str) -> None:
    with pytest.raises(ValueError, match=f"{size} must be .* up to 32767"):
        Runtime(**{size: 1 << 40})


@pytest.mark.parametrize("size", ["threads", "io_threads", "python_threads"])
def test_runtime_refuses_when_a_size_is_negative(size: str) -> None:
    with pytest.raises(ValueError, match=rf"\b{size}\b.*-1"):
        Runtime(**{size: -1})


@pytest.mark.parametrize("size", [1.5, "2", None])
def test_runtime_refuses_when_a_size_is_no_whole_number(size: Any) -> None:
    with pytest.raises(TypeError):
        Runtime(python_threads=size)


def test_available_cpus_is_what_the_affinity_allows_when_it_is_narrowed() -> None:
    counts: list[int] = []

    def narrowed() -> None:  # Linux narrows one thread, not the process
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        counts.append(available_cpus())

    thread = threading.Thread(target=narrowed)
    thread.start()
    thread.join()
    assert counts == [1]
    assert 1 <= available_cpus() <= len(os.sched_getaffinity(0))


def test_runtime_can_be_subclassed_when_methods_are_added() -> None:
    class Mine(Runtime):
        def answer(self) -> int:
            result: int = self.submit(abs, -42).get()
            return result

    with Mine(python_threads=1) as runtime:
        assert runtime.answer() == 42


# --- the default runtime -----------------------------------------------------------------------


@pytest.mark.usefixtures("no_default")
def test_default_runtime_is_made_when_first_asked_for() -> None:
    assert peek_default_runtime() is None
    runtime = get_default_runtime()
    assert peek_default_runtime() is runtime
    assert get_default_runtime() is runtime
    assert runtime.submit(abs, -1).get() == 1


@pytest.mark.usefixtures("no_default")
def test_default_runtime_is_one_when_many_threads_ask_at_once() -> None:
    together = threading.Barrier(16)

    def ask() -> Runtime:
        together.wait(GUARD_S)
        return get_default_runtime()

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(ask) for _ in range(16)]
        assert len({future.result(GUARD_S) for future in futures}) == 1


@pytest.mark.usefixtures("no_default")
def test_default_runtime_is_the_given_one_when_set(one_worker: Runtime) -> None:
    set_default_runtime(one_worker)
    assert peek_default_runtime() is one_worker
    assert get_default_runtime() is one_worker


@pytest.mark.usefixtures("no_default")
def test_previous_default_runtime_goes_on_when_another_is_set(one_worker: Runtime) -> None:
    set_default_runtime(one_worker)
    set_default_runtime(None)
    assert peek_default_runtime() is None
    assert one_worker.submit(abs, -1).get() == 1


@pytest.mark.usefixtures("no_default")
def test_default_runtime_stays_when_a_wrong_one_is_refused(one_worker: Runtime) -> None:
    set_default_runtime(one_worker)
    with pytest.raises(TypeError, match="int"):
        set_default_runtime(3)  # type: ignore[arg-type]
    assert peek_default_runtime() is one_worker


# --- child processes ---------------------------------------------------------------------------


def test_process_result_has_output_and_code_when_the_program_ended(runtime: Runtime) -> None:
    handle = runtime.run_process(["/bin/sh", "-c", "echo out; echo err >&2; exit 3"])
    result = handle.get()
    assert isinstance(result, ProcessResult)
    assert (result.exit_code, result.signal) == (3, None)
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
    assert (handle.state, handle.exception) == ("done", None)
    assert handle.get() is result


def test_process_result_has_the_signal_when_one_ended_the_program(runtime: Runtime) -> None:
    result = runtime.run_process(["/bin/sh", "-c", "kill -TERM $$"]).get()
    assert (result.exit_code, result.signal) == (None, signal.SIGTERM)


def test_process_is_done_when_wait_all_returns(runtime: Runtime) -> None:
    handles = [runtime.run_process(["sh", "-c", f"exit {code}"]) for code in range(20)]
    runtime.wait_all(raise_on_error=True)
    assert all(handle.done() for handle in handles)
    assert [handle.get().exit_code for handle in handles] == list(range(20))


def test_process_reads_its_input_when_given_more_than_a_pipe_holds(runtime: Runtime) -> None:
    data = os.urandom(1 << 20)
    result = runtime.run_process(["cat"], stdin=data).get()
    assert result.stdout == data


def test_process_reads_an_empty_input_when_none_was_given(runtime: Runtime) -> None:
    result = runtime.run_process(["cat"]).get()
    assert (result.exit_code, result.stdout) == (0, b"")


def test_process_input_may_be_left_unread_when_it_is_large(runtime: Runtime) -> None:
    assert runtime.run_process(["true"], stdin=bytes(1 << 20)).get().exit_code == 0


def test_process_runs_in_the_directory_when_one_is_given(runtime: Runtime, tmp_path: Path) -> None:
    for cwd in (tmp_path, str(tmp_path)):
        result = runtime.run_process(["pwd", "-P"], cwd=cwd).get()
        assert os.fsdecode(result.stdout).rstrip("\n") == os.path.realpath(tmp_path)


def test_process_has_only_the_environment_when_one_is_given(runtime: Runtime) -> None:
    result = runtime.run_process(["/usr/bin/env"], env={"A": "1", "B": "x=y z"}).get()
    assert sorted(result.stdout.splitlines()) == [b"A=1", b"B=x=y z"]


def test_process_has_this_environment_when_none_is_given(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFTRACER_TEST_MARK", "here")
    result = runtime.run_process(["sh", "-c", "echo $DFTRACER_TEST_MARK"]).get()
    assert result.stdout == b"here\n"


@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
def test_process_takes_arguments_when_they_are_strings_bytes_or_paths(
    runtime: Runtime, kind: Callable[[str], Any]
) -> None:
    result = runtime.run_process([kind("/bin/echo"), kind("some text")]).get()
    assert result.stdout == b"some text\n"


def test_process_fails_with_file_not_found_when_there_is_no_program(runtime: Runtime) -> None:
    handle = runtime.run_process(["./no-such-program", "x"])
    with pytest.raises(FileNotFoundError) as caught:
        handle.get()
    assert "no-such-program" in str(caught.value)
    assert handle.state == "failed"
    assert handle.exception is caught.value


def test_process_fails_with_permission_error_when_it_is_no_program(
    runtime: Runtime, tmp_path: Path
) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"no program")
    file.chmod(stat.S_IRUSR)
    with pytest.raises(PermissionError):
        runtime.run_process([str(file)]).get()


def test_run_process_refuses_when_its_arguments_are_wrong(runtime: Runtime) -> None:
    with pytest.raises(ValueError, match="argv"):
        runtime.run_process([])
    with pytest.raises(ValueError, match="empty"):
        runtime.run_process("  ")
    with pytest.raises(TypeError, match="list of words"):
        runtime.run_process("true", shell=False)
    with pytest.raises(TypeError, match="string"):
        runtime.run_process(["true"], shell=True)
    with pytest.raises(ValueError, match="timeout"):
        runtime.run_process(["true"], timeout=math.nan)


def test_process_is_killed_when_its_time_is_up(runtime: Runtime) -> None:
    # The grandchild holds the pipes too: it must go with its parent.
    script = "echo begun; sleep 600 & sleep 600"
    handle = runtime.run_process(["sh", "-c", script], timeout=0.3)
    with pytest.raises(TaskTimeoutError, match="'sh' has run out of time") as caught:
        handle.get(GUARD_S)
    result = caught.value.result
    assert result is not None
    assert (result.stdout, result.exit_code, result.signal) == (b"begun\n", None, signal.SIGKILL)
    assert handle.state == "failed"


def test_process_has_the_name_of_its_program_when_none_was_given(runtime: Runtime) -> None:
    assert runtime.run_process(["true"]).name == "true"
    assert runtime.run_process(["true"], name="given").name == "given"


def test_processes_hold_no_thread_when_more_run_than_threads(
    one_worker: Runtime, tmp_path: Path
) -> None:
    started, gate = tmp_path / "started", tmp_path / "gate"
    for fifo in (started, gate):
        os.mkfifo(fifo)
    # Open for both, so that no open waits for its counterpart.
    with open(started, "r+b", buffering=0) as begun, open(gate, "r+b", buffering=0) as go:
        script = 'echo >"$1"; read line <"$2"'
        argv = ["sh", "-c", script, "sh", str(started), str(gate)]
        handles = [one_worker.run_process(argv) for _ in range(40)]
        for _ in handles:
            assert begun.read(1) == b"\n"
        assert not any(handle.done() for handle in handles)
        go.write(b"\n" * len(handles))
        assert [handle.get(GUARD_S).exit_code for handle in handles] == [0] * 40


def test_process_inherits_no_blocked_signals_when_started(runtime: Runtime) -> None:
    script = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    result = runtime.run_process([sys.executable, "-c", script]).get()
    assert (result.stdout, result.stderr) == (b"set()\n", b"")


# --- cancel ------------------------------------------------------------------------------------


def test_cancelled_task_never_begins_when_it_was_queued(one_worker: Runtime) -> None:
    begun: list[int] = []
    with busy(one_worker):
        handle = one_worker.submit(begun.append, 1)
        outcome = handle.cancel()
        assert outcome is Cancellation.DEQUEUED
        assert outcome
        assert (handle.state, handle.done(), handle.exception) == ("cancelled", True, None)
        for timeout in (None, 0):
            with pytest.raises(concurrent.futures.CancelledError):
                handle.get(timeout)
            with pytest.raises(concurrent.futures.CancelledError):
                handle.wait(timeout)
    one_worker.wait_all()
    assert begun == []


def test_cancel_is_a_request_when_the_body_runs(one_worker: Runtime) -> None:
    started, release = threading.Event(), threading.Event()

    def body() -> None:
        started.set()
        while not release.wait(0.001):
            pass  # Python code runs between the waits, and is interrupted there

    handle = one_worker.submit(body)
    assert started.wait(GUARD_S)
    outcome = handle.cancel()
    try:
        assert outcome is Cancellation.REQUESTED
        assert outcome
        assert handle.cancel_requested
        with pytest.raises(concurrent.futures.CancelledError):
            handle.get(GUARD_S)
    finally:
        release.set()
    assert handle.state == "cancelled"
    assert one_worker.submit(abs, -1).get(GUARD_S) == 1


def test_cancel_is_too_late_when_the_task_has_ended(one_worker: Runtime) -> None:
    good, bad = one_worker.submit(abs, -1), one_worker.submit(fail, ValueError())
    process = one_worker.run_process(["true"])
    for handle in (good, bad, process):
        ended(handle)
        assert handle.cancel() is Cancellation.TOO_LATE
    assert good.get() == 1
    assert bad.state == "failed"
    assert process.get().exit_code == 0


def test_cancel_is_too_late_when_called_again(one_worker: Runtime) -> None:
    with busy(one_worker):
        handle = one_worker.submit(abs, -1)
        assert handle.cancel() is Cancellation.DEQUEUED
        assert handle.cancel() is Cancellation.TOO_LATE
        assert handle.state == "cancelled"


def test_waiters_are_woken_when_the_task_is_cancelled(one_worker: Runtime) -> None:
    with concurrent.futures.ThreadPoolExecutor(5) as pool, busy(one_worker):
        handle = one_worker.submit(abs, -1)
        waits = [pool.submit(handle.wait, GUARD_S) for _ in range(4)]
        get = pool.submit(handle.get, GUARD_S)
        handle.cancel()
        for wait in waits:
            assert isinstance(wait.exception(GUARD_S), concurrent.futures.CancelledError)
        assert isinstance(get.exception(GUARD_S), concurrent.futures.CancelledError)


def test_neighbours_run_when_every_other_task_is_cancelled(one_worker: Runtime) -> None:
    begun: list[int] = []
    with busy(one_worker):
        handles = [one_worker.submit(begun.append, number) for number in range(200)]
        assert all(handle.cancel() for handle in handles[::2])
    one_worker.wait_all()
    assert begun == list(range(1, 200, 2))


def test_process_is_killed_with_its_children_when_cancelled(
    runtime: Runtime, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    handle = runtime.run_process(["sh", "-c", 'sleep 600 >"$1" & wait', "sh", str(fifo)])
    with open(fifo, "rb", buffering=0) as pipe:  # returns when the grandchild has opened it
        outcome = handle.cancel()
        assert outcome is Cancellation.REQUESTED
        assert outcome
        with pytest.raises(concurrent.futures.CancelledError):
            handle.get(GUARD_S)
        assert pipe.read() == b"", "the grandchild has ended"
    assert (handle.state, handle.exception) == ("cancelled", None)
    runtime.wait_all(raise_on_error=True)


def test_process_ends_cancelled_when_it_is_cancelled_before_it_starts(runtime: Runtime) -> None:
    for _ in range(20):
        handle = runtime.run_process(["sleep", "600"])
        assert handle.cancel() in (Cancellation.DEQUEUED, Cancellation.REQUESTED)
        with pytest.raises(concurrent.futures.CancelledError):
            handle.get(GUARD_S)
