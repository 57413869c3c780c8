"""Long work of the runtime lets others have the interpreter, and makes no more than was asked."""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trace_support import names_of

from dftracer.utils import Runtime, TaskHandle, TaskTimeoutError

GUARD_S = 60


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Have whoever waits for the interpreter ask for it at once."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def busy() -> Iterator[Runtime]:
    """A runtime whose one worker has a body that lasts as long as the test."""
    release = threading.Event()
    with Runtime(threads=2, io_threads=2, python_threads=1) as runtime:
        begun = threading.Event()

        def last() -> None:
            begun.set()
            release.wait(GUARD_S)

        runtime.submit(last, name="last")
        assert begun.wait(GUARD_S)
        yield runtime
        release.set()


class Turns:
    """A thread that counts how often it gets the interpreter."""

    def __init__(self) -> None:
        self.count = 0
        self._is_over = False
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._is_over:
            self.count += 1
            time.sleep(0)  # lets go of it, and asks for it again

    def __enter__(self) -> "Turns":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join()


@pytest.mark.parametrize("how", ["handles", "map"])
def test_a_report_lets_others_run_when_there_are_many_tasks(
    busy: Runtime, quick_switches: None, how: str
) -> None:
    count = 100_000
    held: Any = (
        [busy.submit(str, n) for n in range(count)]
        if how == "handles"
        else busy.map(str, range(count))
    )
    with Turns() as turns:
        before = turns.count
        progress = busy.get_progress()
        after = turns.count
    assert len(progress["tasks"]) == count + 1
    assert progress["total"] == count + 1
    assert after - before > 20, "it had the interpreter only before and after"
    del held


def test_a_deadline_for_all_lets_others_run_when_there_are_many_handles(
    busy: Runtime, quick_switches: None
) -> None:
    handles = [busy.submit(str, n) for n in range(20_000)]
    with Turns() as turns:
        before = turns.count
        busy.set_timeout(1)
        busy.wait_all()
        assert turns.count - before > 20
    assert all(type(handle.exception) is TaskTimeoutError for handle in handles)


def test_a_deadline_for_all_makes_no_handles_when_items_of_a_map_are_pending(
    busy: Runtime,
) -> None:
    count = 100_000
    results = busy.map(str, range(count))
    before = sys.getallocatedblocks()
    busy.set_timeout(1)
    busy.wait_all()
    assert sys.getallocatedblocks() - before < count // 10
    progress = busy.get_progress()
    assert (progress["failed"], progress["queued"]) == (count + 1, 0)
    with pytest.raises(TaskTimeoutError, match=r"task 1 'builtins.str' has run out of time"):
        next(results)


def test_items_of_a_map_say_that_they_are_out_of_time_when_a_deadline_has_passed(
    busy: Runtime,
) -> None:
    results = busy.map(str, range(10))
    busy.set_timeout(1)
    with pytest.raises(RuntimeError, match=r"11 task.s. failed") as caught:
        busy.wait_all(raise_on_error=True)
    assert "builtins.str: TaskTimeoutError: task 3 'builtins.str' has run out" in str(caught.value)
    failed = busy.get_failed()
    assert sorted(handle.task_id for handle in failed) == list(range(11))
    for handle in failed:
        assert handle.state == "failed"
        with pytest.raises(TaskTimeoutError, match=f"task {handle.task_id} "):
            handle.get()
    progress = busy.get_progress()
    assert {task["state"] for task in progress["tasks"] if task["name"] != "last"} == {"failed"}
    assert len(progress["errors"]) == 11
    with pytest.raises(TaskTimeoutError):
        next(results)
    assert list(results) == [], "it has ended"
    assert busy.get_progress()["workers"][-1]["queue_depth"] == 0


def test_items_of_a_map_are_skipped_when_a_worker_comes_to_them_after_the_deadline() -> None:
    release, begun, called = threading.Event(), threading.Event(), []

    def body(number: int) -> int:
        called.append(number)
        begun.set()
        release.wait(GUARD_S)
        return number

    with Runtime(python_threads=1) as runtime:
        results = runtime.map(body, range(100))
        assert begun.wait(GUARD_S)
        runtime.set_timeout(1)
        runtime.wait_all()
        release.set()
        assert runtime.submit(int).get() == 0, "its worker is free again"
        assert called == [0]
        with pytest.raises(TaskTimeoutError):
            next(results)
        runtime.set_timeout(0)
        assert list(runtime.map(str, range(3))) == ["0", "1", "2"]


def test_the_error_callback_is_told_of_each_item_when_a_deadline_has_passed(
    busy: Runtime,
) -> None:
    told: list[tuple[TaskHandle[Any], BaseException]] = []
    busy.set_error_callback(lambda handle, error: told.append((handle, error)))
    results = busy.map(str, range(50))
    busy.set_timeout(1)
    busy.wait_all()
    assert sorted(handle.task_id for handle, _ in told) == list(range(51))
    assert {type(error) for _, error in told} == {TaskTimeoutError}
    assert sorted(map(id, busy.get_failed()[1:])) == sorted(id(handle) for handle, _ in told[1:])
    del results


def test_the_trace_tells_of_each_item_when_a_deadline_has_passed(tmp_path: Path) -> None:
    release = threading.Event()
    with Runtime(python_threads=1, trace=tmp_path / "t.pfw.gz") as runtime:
        runtime.submit(release.wait, GUARD_S)
        results = runtime.map(str, range(50))
        runtime.set_timeout(1)
        runtime.wait_all()
        release.set()
        del results
    assert names_of(tmp_path / "t.pfw.gz")["builtins.str"] == 50


def test_a_reports_numbers_agree_when_native_tasks_end_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 1_000)
    with Runtime(threads=2, io_threads=2) as runtime:
        handles = [runtime.hash_files([file]) for _ in range(5_000)]
        for number in range(2_000):
            handles.append(runtime.hash_files([file]))
            if number % 20:
                continue
            progress = runtime.get_progress()
            states = [task["state"] for task in progress["tasks"]]
            assert progress["total"] == len(handles) == len(states)
            for state in ("completed", "running", "queued"):
                assert progress[state] == states.count(state)  # type: ignore[literal-required]
