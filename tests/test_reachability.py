"""What nobody can reach any more goes, with its threads and descriptors: objects of ours in cycles.

Each test makes a ring of objects, drops it, and asks the garbage collector once.
"""

import asyncio
import gc
import itertools
import os
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from handle_support import ended

from dftracer.utils import Runtime, TaskHandle, as_completed
from dftracer.utils.primitives import Mailbox, track_all, untrack

GUARD_S = 30


class Ring:
    """Refers to objects of ours, which refer to it."""

    def __init__(self) -> None:
        self.parts: list[Any] = []

    def method(self, *_: object) -> "Ring":
        return self

    def fail(self) -> None:
        raise ValueError(self)

    def fail_in_deep_frame(self) -> None:
        ring = self
        assert ring is None, "always"


def new_runtime() -> Runtime:
    return Runtime(threads=1, io_threads=1, python_threads=1)


def runtime_with_error_callback(ring: Ring) -> Any:
    runtime = new_runtime()
    runtime.set_error_callback(ring.method)
    runtime.submit(int).get()
    return runtime


def runtime_with_failure(ring: Ring) -> Any:
    runtime = new_runtime()
    runtime.submit(ring.fail)
    runtime.wait_all()
    return runtime


def runtime_with_frames(ring: Ring) -> Any:
    runtime = Runtime(threads=1, io_threads=1, python_threads=1, keep_frames=True)
    runtime.submit(ring.fail_in_deep_frame)
    runtime.wait_all()
    return runtime


def runtime_that_knows_a_callable(ring: Ring) -> Any:
    class Odd:
        __code__ = ring

        def __call__(self) -> None: ...

    runtime = new_runtime()
    runtime.submit(Odd()).get()
    return runtime


def runtime_with_attribute(ring: Ring) -> Any:
    class Own(Runtime):
        ring: Any

    runtime = Own(threads=1, io_threads=1, python_threads=1)
    runtime.ring = ring
    runtime.run_process(["true"]).get()
    return runtime


def handle_with_value(ring: Ring) -> Any:
    runtime = new_runtime()
    handle = runtime.submit(ring.method)
    handle.wait()
    return handle


def handle_with_error(ring: Ring) -> Any:
    runtime = new_runtime()
    handle = ended(runtime.submit(ring.fail_in_deep_frame))
    return (runtime, handle)


def handle_of_an_odd_callable(ring: Ring) -> Any:
    class Odd:
        __code__ = ring

        def __call__(self) -> list[int]:
            return []

    handle = new_runtime().submit(Odd())
    handle.wait()
    return handle


def coroutine_with_value(ring: Ring) -> Any:
    async def body() -> Ring:
        await asyncio.sleep(0)
        return ring

    handle = new_runtime().submit(body)
    handle.wait()
    return handle


def unread_results(ring: Ring) -> Any:
    runtime = new_runtime()
    results = runtime.map(ring.method, range(10))
    next(results)
    runtime.wait_all()
    return results


def unread_results_of_a_generator(ring: Ring) -> Any:
    runtime = new_runtime()
    results = runtime.map(ring.method, (n for n in range(10)), range(10))
    next(results)
    runtime.wait_all()
    return results


def endless_results(ring: Ring) -> Any:
    runtime = new_runtime()
    results = runtime.map(ring.method, itertools.count(), buffersize=3)
    next(results)
    runtime.wait_all()
    return results


def adopted_future(ring: Ring) -> Any:
    future: Future[Any] = Future()
    future.add_done_callback(ring.method)
    return TaskHandle(future=future)


def adopted_future_with_callback(ring: Ring) -> Any:
    handle: TaskHandle[Any] = TaskHandle(future=Future())
    handle.add_done_callback(ring.method)
    return handle


def adopted_future_with_mailbox(ring: Ring) -> Any:
    handle: TaskHandle[Any] = TaskHandle(future=Future())
    mailbox = Mailbox()
    handle._deliver_to(mailbox, ring)
    return mailbox, handle


def unread_mailbox(ring: Ring) -> Any:
    mailbox = Mailbox()
    TaskHandle()._deliver_to(mailbox, ring)
    mailbox.post(ring)
    return mailbox


def executor(ring: Ring) -> Any:
    runner = new_runtime().executor()
    future = runner.submit(ring.method)
    future.result()
    return runner, future


def completed(ring: Ring) -> Any:
    handle = new_runtime().submit(ring.method)
    each = as_completed([handle])
    handle.wait()
    return each


MAKERS: list[Callable[[Ring], Any]] = [
    runtime_with_error_callback,
    runtime_with_failure,
    runtime_with_frames,
    runtime_that_knows_a_callable,
    runtime_with_attribute,
    handle_with_value,
    handle_with_error,
    handle_of_an_odd_callable,
    coroutine_with_value,
    unread_results,
    unread_results_of_a_generator,
    endless_results,
    adopted_future,
    adopted_future_with_callback,
    adopted_future_with_mailbox,
    unread_mailbox,
    executor,
    completed,
]


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def wait_until(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + GUARD_S
    while not condition():
        assert time.monotonic() < deadline, what()
        threading.Event().wait(0.01)


def make_ring(*makers: Callable[[Ring], Any]) -> weakref.ref[Ring]:
    ring = Ring()
    for make in makers:
        ring.parts.append(make(ring))
    return weakref.ref(ring)


def gone_after_collection(make: Callable[[], weakref.ref[Any]], *, before: tuple[int, int]) -> None:
    """Assert that what was made is freed by the collector, and its threads and descriptors."""
    gc.collect()
    reference = make()
    gc.collect()

    def has_gone() -> bool:
        # What a worker's thread holds to the last goes a moment later.
        gc.collect()
        return reference() is None and threads() <= before[0] and descriptors() <= before[1]

    wait_until(has_gone, lambda: (reference(), threads(), descriptors(), before))


@pytest.fixture
def before() -> tuple[int, int]:
    # What is made once in a process is there already.
    with new_runtime() as runtime:
        runtime.run_process(["true"]).get()
    gc.collect()
    return threads(), descriptors()


@pytest.mark.parametrize("make", MAKERS)
def test_the_collector_frees_an_object_when_it_refers_to_itself(
    make: Callable[[Ring], Any], before: tuple[int, int]
) -> None:
    gone_after_collection(lambda: make_ring(make), before=before)


def test_the_collector_frees_rings_of_every_two_objects_when_nobody_holds_them(
    before: tuple[int, int],
) -> None:
    references = []

    def make() -> weakref.ref[Ring]:
        references.extend(make_ring(*pair) for pair in itertools.combinations(MAKERS, 2))
        return make_ring(*MAKERS)

    gone_after_collection(make, before=before)
    assert not [reference for reference in references if reference() is not None]


def test_a_loop_goes_when_it_was_left_while_a_handle_was_awaited(before: tuple[int, int]) -> None:
    release = threading.Event()
    runtime = new_runtime()

    def make() -> weakref.ref[Any]:
        loops = []

        async def main() -> None:
            loops.append(weakref.ref(asyncio.get_running_loop()))
            handle = runtime.submit(release.wait, GUARD_S)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(handle, 0.001)

        asyncio.run(main())
        return loops[0]

    reference = make()
    gc.collect()
    assert reference() is None, "the task that runs on does not hold it"
    release.set()
    runtime.shutdown()
    gone_after_collection(lambda: reference, before=before)


def test_a_loop_goes_when_it_is_closed_while_a_task_waits_in_it(
    before: tuple[int, int],
) -> None:
    release = threading.Event()
    runtime = new_runtime()

    def make() -> weakref.ref[Any]:
        loop = asyncio.new_event_loop()

        async def wait() -> None:
            await runtime.submit(release.wait, GUARD_S)

        waiting = loop.create_task(wait())
        loop.run_until_complete(asyncio.sleep(0))
        waiting._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()
        return weakref.ref(loop)

    reference = make()
    release.set()
    runtime.shutdown()
    gone_after_collection(lambda: reference, before=before)


async def test_an_awaited_task_ends_when_others_in_its_loop_gave_up_waiting() -> None:
    with new_runtime() as runtime:
        release = threading.Event()
        first = runtime.submit(release.wait, GUARD_S)
        waits = [asyncio.ensure_future(_wait(first)) for _ in range(3)]
        await asyncio.sleep(0)
        waits[1].cancel()
        await asyncio.wait([waits[1]])
        release.set()
        # To give up waiting asks the task to stop; whoever still waits hears how it has ended.
        _, pending = await asyncio.wait(waits, timeout=GUARD_S)
        assert not pending
        assert waits[1].cancelled()


async def _wait(handle: TaskHandle[bool]) -> bool:
    return await handle


def test_a_token_is_not_posted_when_it_was_withdrawn() -> None:
    release = threading.Event()
    mailbox, token, other = Mailbox(), object(), object()
    with new_runtime() as runtime:
        handle = runtime.submit(release.wait, GUARD_S)
        handle._deliver_to(mailbox, token)
        handle._deliver_to(mailbox, other)
        assert handle._withdraw(token)
        assert not handle._withdraw(token)
        release.set()
        handle.wait()
        assert [item[0] for item in mailbox.drain(10)] == [other]
        assert not handle._withdraw(other)


# --- failures -------------------------------------------------------------------------------------


class Big:
    """Something that a task works on."""


def fail_with(alive: list[weakref.ref[Big]]) -> None:
    big = Big()
    alive.append(weakref.ref(big))
    raise LookupError("of a task")


def test_a_kept_failure_holds_no_variables_when_its_handle_has_gone() -> None:
    with new_runtime() as runtime:
        alive: list[weakref.ref[Big]] = []
        runtime.submit(fail_with, alive, name="lost")
        runtime.wait_all()
        gc.collect()
        assert alive[0]() is None
        (failed,) = runtime.get_failed()
        assert (failed.name, failed.task_id, failed.state) == ("lost", 0, "failed")
        with pytest.raises(LookupError, match="of a task") as caught:
            failed.get()
        lines = traceback.format_tb(caught.value.__traceback__)
        assert "in fail_with" in lines[-1]
        assert 'raise LookupError("of a task")' in lines[-1]
        frame = caught.tb
        while frame.tb_next is not None:
            frame = frame.tb_next
        assert frame.tb_frame.f_locals == {}


@pytest.mark.parametrize("how", ["plain", "io", "coroutine", "awaiting", "waiting", "map"])
def test_a_failure_holds_nothing_when_it_has_gone_through_any_lane(how: str) -> None:
    alive: list[weakref.ref[Big]] = []
    with Runtime(threads=1, io_threads=1, python_threads=2) as runtime:

        def plain(*_: object) -> None:
            big = Big()
            big.__dict__["runtime"] = runtime
            alive.append(weakref.ref(big))
            raise ValueError

        async def coroutine() -> None:
            await asyncio.sleep(0)
            plain()

        async def awaiting() -> None:
            big = Big()
            alive.append(weakref.ref(big))
            await runtime.submit(plain)

        def waiting() -> None:
            big = Big()
            alive.append(weakref.ref(big))
            runtime.submit(plain).get()

        if how == "io":
            runtime.submit_io(plain)
        elif how == "map":
            with pytest.raises(ValueError, match=r"^$"):
                list(runtime.map(plain, range(3)))
        else:
            body: Any = locals()[how]
            runtime.submit(body)
        runtime.wait_all()
        assert alive

        def have_gone() -> bool:
            gc.collect()  # what a worker's thread holds to the last goes a moment later
            return all(reference() is None for reference in alive)

        wait_until(have_gone, lambda: [reference() for reference in alive])
        assert runtime.get_failed()


def test_a_loop_keeps_nothing_of_the_context_in_which_it_was_first_used() -> None:
    variable: ContextVar[Big] = ContextVar("variable")
    loop = asyncio.new_event_loop()

    async def wait() -> weakref.ref[Big]:
        big = Big()
        variable.set(big)
        await runtime.submit(list)
        return weakref.ref(big)

    with new_runtime() as runtime:
        reference = loop.run_until_complete(wait())
        gc.collect()
        assert reference() is None
        loop.close()


def test_a_kept_failure_holds_nothing_of_who_has_asked_for_the_outcome() -> None:
    with new_runtime() as runtime:
        references = []

        def ask() -> None:
            big = Big()
            references.append(weakref.ref(big))
            handle = runtime.submit(fail_with, [])
            with pytest.raises(LookupError):
                handle.get()
            for failed in runtime.get_failed():
                with pytest.raises(LookupError):
                    failed.get()

        ask()
        gc.collect()
        assert references[0]() is None
        assert len(runtime.get_failed()) == 1


def test_a_kept_failure_holds_the_variables_when_the_runtime_is_asked_to() -> None:
    with Runtime(python_threads=1, keep_frames=True) as runtime:
        alive: list[weakref.ref[Big]] = []
        runtime.submit(fail_with, alive)
        runtime.wait_all()
        gc.collect()
        assert alive[0]() is not None
        runtime.clear_failed()
        gc.collect()
        assert alive[0]() is None


def test_get_failed_gives_the_own_handle_when_that_is_held() -> None:
    with new_runtime() as runtime:
        handle = runtime.submit(fail_with, [])
        runtime.wait_all()
        assert runtime.get_failed() == [handle]
        error = handle.exception
        assert error is not None
        innermost = error.__traceback__
        while innermost is not None and innermost.tb_next is not None:
            innermost = innermost.tb_next
        assert innermost is not None
        assert "big" in innermost.tb_frame.f_locals, "the handle has all that there was"


def test_failures_are_counted_when_there_are_more_than_are_kept() -> None:
    with new_runtime() as runtime:
        for _ in range(10_010):
            runtime.submit(fail_with, [])
        with pytest.raises(RuntimeError, match=r"10010 task.s. failed") as caught:
            runtime.wait_all(raise_on_error=True)
        assert str(caught.value).endswith("\n... and 10 more")
        assert len(runtime.get_failed()) == 10_000
        assert runtime.failed_not_kept == 10
        assert runtime.get_progress()["failed"] == 10_010
        # Those that are not kept for `get_failed` are told by the next `wait_all` all the same.
        runtime.submit(fail_with, [], name="late")
        with pytest.raises(RuntimeError, match=r"1 task.s. failed:\nlate: LookupError"):
            runtime.wait_all(raise_on_error=True)
        runtime.clear_failed()
        assert runtime.failed_not_kept == 0
        runtime.submit(fail_with, [])
        runtime.wait_all()
        assert len(runtime.get_failed()) == 1


def test_a_failure_is_not_kept_when_nobody_can_ask_for_it_any_more(
    before: tuple[int, int],
) -> None:
    release = threading.Event()

    def make() -> weakref.ref[Any]:
        def fail() -> None:
            release.wait(GUARD_S)
            raise ValueError(ring)

        ring = Ring()
        runtime = new_runtime()
        runtime.submit(fail)
        return weakref.ref(ring)

    reference = make()
    gc.collect()
    assert reference() is not None, "the task has not ended"
    release.set()
    gone_after_collection(lambda: reference, before=before)


class ParticularError(Exception):
    """Has a constructor of its own."""

    def __init__(self, code: int, *, place: str) -> None:
        super().__init__(f"{code} at {place}")
        self.code = code


class StubbornError(ValueError):
    """Cannot be made by others."""

    def __new__(cls, *args: Any) -> "StubbornError":
        raise AssertionError("made anew")


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        OSError(2, "none", "file.txt"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        ImportError("no", name="module"),
        SyntaxError("bad", ("file.py", 1, 2, "text")),
        SystemExit(3),
        StopIteration(4),
        ParticularError(5, place="home"),
        ValueError.__new__(StubbornError, "text"),
        ValueError(KeyError("inner")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_kept_failure_says_the_same_when_its_exception_is_unusual(error: BaseException) -> None:
    def body() -> None:
        raise error

    with new_runtime() as runtime:
        runtime.submit(body)
        runtime.wait_all()
        (failed,) = runtime.get_failed()
        kept = failed.exception
        assert type(kept) is type(error)
        assert kept is not error
        assert (str(kept), repr(kept)) == (str(error), repr(error))
        assert {key: str(value) for key, value in vars(error).items()} == {
            key: str(value) for key, value in vars(kept).items()
        }


def test_a_kept_failure_names_its_causes_when_there_are_some() -> None:
    def body() -> None:
        big = Big()
        alive.append(weakref.ref(big))
        try:
            raise KeyError("first")
        except KeyError as cause:
            raise ValueError("second") from cause

    alive: list[weakref.ref[Big]] = []
    with new_runtime() as runtime:
        runtime.submit(body)
        runtime.wait_all()
        gc.collect()
        assert alive[0]() is None
        text = "".join(traceback.format_exception(runtime.get_failed()[0].exception))
        assert "KeyError: 'first'" in text
        assert "direct cause" in text
        assert text.endswith("ValueError: second\n")


def test_a_native_failure_is_kept_when_its_handle_has_gone() -> None:
    with new_runtime() as runtime:
        runtime.run_process(["/nowhere/at-all"], name="missing")
        runtime.hash_files(["/nowhere/at-all"])
        runtime.wait_all()
        gc.collect()
        failed = runtime.get_failed()
        assert sorted(handle.name for handle in failed) == ["hash_files", "missing"]
        for handle in failed:
            with pytest.raises(FileNotFoundError):
                handle.get()


# --- the collector and the threads that it does not stop ------------------------------------------


def test_a_timed_out_program_keeps_its_error_when_it_ends_while_the_collector_runs() -> None:
    """The program's end comes on a thread that the collector does not stop, and finds that the
    deadline for all has put an exception into the handle."""
    with new_runtime() as runtime:
        for _ in range(3):
            handles = [runtime.run_process(["sleep", "30"]) for _ in range(8)]
            wait_until(
                lambda handles=handles: all(h.state == "running" for h in handles),  # type: ignore[misc]
                lambda: "no program runs",
            )
            runtime.set_timeout(1)
            while runtime.get_progress()["running"]:
                gc.collect()
            runtime.wait_all()
            for _ in range(20):
                gc.collect()
            for handle in handles:
                error = handle.exception
                assert error is not None
                assert "run out of time" in str(error)
                assert error.args
            runtime.clear_failed()
            runtime.set_timeout(0)


def test_untrack_refuses_what_no_task_ends() -> None:
    objects: list[Any] = [[], {}, Ring(), object(), Future(), Mailbox()]
    for each in objects:
        with pytest.raises(TypeError, match=r"untrack.. takes an asyncio future"):
            untrack(each)
    assert gc.is_tracked(objects[0])


async def test_a_token_is_on_the_collectors_list_again_when_its_task_has_ended() -> None:
    mailbox = Mailbox()
    token: Any = asyncio.get_running_loop().create_future()
    token.function, token.args, token.kwargs, token.name = int, (), None, "int"
    token.context, token.interrupt, token.options = None, False, {}
    untrack(token)
    assert not gc.is_tracked(token)
    with new_runtime() as runtime:
        handles = runtime.submit_to(mailbox, [token])
        assert handles is not None
        handles[0].wait()
        assert gc.is_tracked(token)
    other: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    untrack(other)
    track_all([other])
    assert gc.is_tracked(other)


def test_a_handle_from_before_a_fork_is_walked_by_the_collector_of_the_child(
    run_script: Callable[..., str],
) -> None:
    source = """
        import gc, os
        from dftracer.utils import Runtime
        from dftracer.utils.primitives import Mailbox

        runtime = Runtime(python_threads=1)
        handles = [runtime.submit(list) for _ in range(100)]
        programs = [runtime.run_process(["sleep", "0.2"]) for _ in range(20)]
        mailbox = Mailbox()
        programs[0]._deliver_to(mailbox, [])
        child = os.fork()
        if child == 0:
            gc.collect()
            del handles, programs, mailbox, runtime
            gc.collect()
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    assert run_script(source, options=("-W", "ignore::DeprecationWarning")) == "0\n"


def test_a_trace_goes_with_the_runtime_that_is_part_of_a_ring(
    tmp_path: Path, before: tuple[int, int]
) -> None:
    def make(ring: Ring) -> Any:
        class Name(str):
            ring: Any

        runtime = Runtime(python_threads=1, trace=tmp_path / "t.pfw.gz")
        name = Name("named")
        name.ring = ring
        runtime.submit(int, name=name).get()
        runtime.set_error_callback(ring.method)
        return runtime

    gone_after_collection(lambda: make_ring(make), before=before)
