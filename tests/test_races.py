"""What several threads do to the same object at the same moment.

With the GIL, most of these moments cannot be; without it, these tests try thousands of them.
"""

import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest
from mailbox_support import Call

from dftracer.asyncflow.backends import remote
from dftracer.asyncflow.backends.local.notes import Notes
from dftracer.asyncflow.backends.local.work import WorkItem
from dftracer.utils import Runtime, payload

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


# --- the ends of tasks ----------------------------------------------------------------------------


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
