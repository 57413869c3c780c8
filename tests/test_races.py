"""What several threads do to the same object at the same moment.

With the GIL, most of these moments cannot be; without it, these tests try thousands of them.
"""

import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mailbox_support import Call

from dftracer.asyncflow.backends import remote
from dftracer.asyncflow.backends.local.notes import Notes
from dftracer.asyncflow.backends.local.work import WorkItem
from dftracer.utils import Runtime, TaskTimeoutError, payload

GUARD_S = 60


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Have whoever waits for the interpreter ask for it at once."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime(threads=2, io_threads=2, python_threads=2) as runtime:
        yield runtime


async def ends_at_once() -> int:
    return 0


def returns_a_coroutine() -> Any:
    return ends_at_once()


# --- the garbage collector ------------------------------------------------------------------------


def test_object_is_put_on_the_collectors_list_once_when_several_threads_do_so(
    run_script: Callable[..., str],
) -> None:
    script = """
    import asyncio, sys, threading
    from dftracer.utils import Runtime
    from dftracer.utils.primitives import Mailbox, track_all, untrack

    class Token(asyncio.Future):
        context, options, trace_note, interrupt = None, {}, None, False
        function, args, kwargs, name = int, (), None, "int"

    def tokens_of(count):
        tokens = [Token(loop=loop) for _ in range(count)]
        for token in tokens:
            untrack(token)
        return tokens

    def track_together(tokens):
        def track():
            together.wait()
            track_all(tokens)

        together = threading.Barrier(3)
        threads = [threading.Thread(target=track) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    sys.setswitchinterval(1e-6)
    loop, mailbox, ended = asyncio.new_event_loop(), Mailbox(), 0
    for _ in range(100):
        track_together(tokens_of(4_000))
    with Runtime(python_threads=2) as runtime:
        for _ in range(20):
            tokens = tokens_of(1_000)
            runtime.submit_to(mailbox, tokens)
            track_all(tokens)  # as workers do that end the tasks
            runtime.wait_all()
            ended += len(mailbox.drain(1_000))
    loop.close()
    print(ended)
    """
    assert run_script(script) == "20000\n"


def test_what_waits_in_a_mailbox_stays_whole_when_it_is_collected_while_the_reader_looks(
    run_script: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "hashed").write_bytes(b"x" * 10_000)
    script = f"""
    import gc, select, sys, threading
    from dftracer.utils import Runtime
    from dftracer.utils.primitives import Mailbox

    COUNT = 3_000

    class Call:
        context, options, trace_note, interrupt = None, {{}}, None, False
        kwargs, name = None, "call"
        function = staticmethod(lambda number: [number])

        def __init__(self, number):
            self.args = (number,)
            self.content = [number]

    sys.setswitchinterval(1e-5)
    mailbox, is_over = Mailbox(), threading.Event()

    def collect():
        while not is_over.is_set():
            gc.collect()

    collector = threading.Thread(target=collect)
    collector.start()
    with Runtime(threads=2, python_threads=2) as runtime:

        def submit():
            for number in range(COUNT):
                runtime.submit_to(mailbox, [Call(number)])
                handle = runtime.hash_files([{str(tmp_path / "hashed")!r}])
                handle._deliver_to(mailbox, [[number]])

        submitter = threading.Thread(target=submit)
        submitter.start()
        left = 2 * COUNT
        while left:
            outcomes = mailbox.drain(100, look=True)
            if not outcomes:
                select.select([mailbox], [], [], 0.01)
            for token, state, value in outcomes:
                left -= 1
                assert state == "done", state
                if isinstance(token, list):
                    ((number,),) = token
                    assert len(value) == 1, value
                else:
                    assert value == token.content == list(token.args), (value, vars(token))
        submitter.join()
    is_over.set()
    collector.join()
    """
    run_script(script)


# --- the ends of tasks ----------------------------------------------------------------------------


@pytest.mark.parametrize("body", [int, ends_at_once, returns_a_coroutine])
def test_task_that_runs_out_of_time_as_it_begins_has_its_error(
    body: Callable[[], Any], runtime: Runtime
) -> None:
    for _ in range(30):
        handles = [runtime.submit(body) for _ in range(500)]
        runtime.set_timeout_ms(1)
        runtime.wait_all()
        for handle in handles:
            if handle.state == "failed":
                assert isinstance(handle.exception, TaskTimeoutError)
                with pytest.raises(TaskTimeoutError):
                    handle.get()
            else:
                assert handle.get() == 0
        runtime.set_timeout_ms(0)
        runtime.clear_failed()


@pytest.mark.parametrize("body", [int, ends_at_once, returns_a_coroutine])
def test_task_ends_once_when_it_is_cancelled_as_it_begins(
    body: Callable[[], Any], runtime: Runtime
) -> None:
    for _ in range(30):
        ends: list[str] = []
        handles = [runtime.submit(body) for _ in range(300)]
        for handle in handles:
            handle.add_done_callback(lambda ended, ends=ends: ends.append(ended.state))
        for handle in handles:
            handle.cancel()
        runtime.wait_all()
        for handle in handles:
            if handle.state == "cancelled":
                with pytest.raises(CancelledError):
                    handle.get()
            else:
                assert (handle.state, handle.get()) == ("done", 0)
        assert sorted(ends) == sorted(handle.state for handle in handles)


def test_each_result_comes_once_when_several_threads_read_a_map(runtime: Runtime) -> None:
    results = runtime.map(abs, range(10_000))
    with ThreadPoolExecutor(4) as pool:
        parts = pool.map(list, [results] * 4)
        assert sorted(value for part in parts for value in part) == list(range(10_000))


# --- what goes to other processes -----------------------------------------------------------------


def test_programs_start_when_other_threads_set_variables_meanwhile(
    run_script: Callable[..., str],
) -> None:
    script = """
    import os, threading
    from dftracer.utils import Runtime

    def set_variables():
        number = 0
        while not is_over.is_set():
            names = [f"VARIABLE_{number}_{each}" for each in range(200)]
            for name in names:
                os.environ[name] = "x" * 50
            for name in names:
                del os.environ[name]
            number += 1

    def start(failures):
        for _ in range(200):
            failures.append(runtime.run_process(["/nonexistent/program"]))

    is_over, failures = threading.Event(), []
    os.environ["OURS"] = "ours"
    setter = threading.Thread(target=set_variables)
    setter.start()
    with Runtime(threads=1, io_threads=1) as runtime:
        starters = [threading.Thread(target=start, args=(failures,)) for _ in range(2)]
        for starter in starters:
            starter.start()
        for starter in starters:
            starter.join()
        is_over.set()
        setter.join()
        runtime.wait_all()
        print({type(failure.exception).__name__ for failure in failures})
        print(runtime.run_process(["sh", "-c", "echo $OURS"]).get().stdout)
    """
    assert run_script(script) == "{'FileNotFoundError'}\nb'ours\\n'\n"


def test_no_other_call_is_cancelled_when_one_is_as_it_ends() -> None:
    notes = Notes()
    item = WorkItem(Call(int), "local", notes)  # type: ignore[arg-type]
    pickle.dumps(item)
    taken: list[bool] = []
    cancel = notes.cancel

    def end_elsewhere(position: int) -> None:
        end = threading.Thread(target=lambda: taken.append(notes.lock.acquire(blocking=False)))
        end.start()
        end.join(GUARD_S)
        cancel(position)

    notes.cancel = end_elsewhere  # type: ignore[method-assign]
    item.cancel()
    assert taken == [False], "the position could have become another call's"


@pytest.mark.usefixtures("quick_switches")
def test_function_goes_by_value_when_several_threads_pickle_it_for_the_first_time() -> None:
    def pack(_: int) -> bytes:
        payload._packed_by_value.cache_clear()
        return pickle.dumps(payload.ByValue(remote.run))

    with ThreadPoolExecutor(4) as pool:
        for packed in pool.map(pack, range(100)):
            assert b"_may_begin" in packed
            assert callable(pickle.loads(packed))
