"""Done callbacks and the error callback: where they are called, and what they may do there.

A callback is user code: it may wait for tasks, fork, shut the runtime down or take long, whichever
way its task has ended.
"""

import asyncio
import contextlib
import inspect
import os
import sys
import textwrap
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from dftracer.utils import Runtime, TaskHandle, sleep

GUARD_S = 30
"""How long a test waits for what must come."""

Script = Callable[..., str]
Start = Callable[[Runtime, Path], TaskHandle[Any]]


@pytest.fixture(name="runtime")
def make_runtime() -> Iterator[Runtime]:
    with Runtime(threads=1, io_threads=1, python_threads=1) as runtime:
        yield runtime


def wait_until(condition: Callable[[], bool]) -> None:
    """Give others the processor until ``condition`` holds, which nothing announces."""
    late = threading.Event()
    timer = threading.Timer(GUARD_S, late.set)
    timer.start()
    try:
        while not condition():
            assert not late.is_set(), "this never came true"
            os.sched_yield()
    finally:
        timer.cancel()
        timer.join()


def of_no_thread(make: Callable[[], Any]) -> Any:
    """Make what dies on the thread that drops it last, also without the GIL.

    There it would otherwise die on the thread that has made it, when that next runs Python code.
    """
    box, is_made, is_taken = types.SimpleNamespace(), threading.Event(), threading.Event()

    def make_and_let_go() -> None:
        box.made = make()
        is_made.set()
        is_taken.wait()
        del box.made

    thread = threading.Thread(target=make_and_let_go)
    thread.start()
    is_made.wait()
    made = box.made
    is_taken.set()
    thread.join()
    return made


def echo(value: Any) -> Any:
    return value


def fail() -> None:
    raise ValueError("of the body")


async def fail_async() -> None:
    raise ValueError("of the coroutine")


def hash_file(runtime: Runtime, folder: Path) -> TaskHandle[Any]:
    (folder / "file").write_bytes(b"x")
    return runtime.hash_files([folder / "file"])


def stage_file(runtime: Runtime, folder: Path) -> TaskHandle[Any]:
    (folder / "file").write_bytes(b"x")
    (folder / "copy").unlink(missing_ok=True)
    return runtime.stage_file(folder / "file", folder / "copy")


NATIVE: dict[str, Start] = {
    "process": lambda runtime, _: runtime.run_process(["true"]),
    "missing program": lambda runtime, _: runtime.run_process(["/no/such/program"]),
    "hash": hash_file,
    "missing file": lambda runtime, folder: runtime.hash_files([folder / "missing"]),
    "stage": stage_file,
}
PYTHON: dict[str, Start] = {
    "plain": lambda runtime, _: runtime.submit(echo, 1),
    "failing": lambda runtime, _: runtime.submit(fail),
    "coroutine": lambda runtime, _: runtime.submit(fail_async),
    "io": lambda runtime, _: runtime.submit_io(echo, 1),
    "item of a map": lambda runtime, _: runtime.submit(
        lambda: list(runtime.map(echo, [1, 2, 3], buffersize=2))
    ),
}
FAILING = {
    "missing program": NATIVE["missing program"],
    "missing file": NATIVE["missing file"],
    "failing": PYTHON["failing"],
    "coroutine": PYTHON["coroutine"],
}
ACTS: dict[str, Callable[[Runtime], object]] = {
    "waits for all": lambda runtime: runtime.wait_all(),
    "shuts down": lambda runtime: runtime.shutdown(),
    "runs a program": lambda runtime: runtime.run_process(["true"]).get(),
    "runs a body": lambda runtime: runtime.submit(echo, 1).get(),
    "runs a program that has a callback": lambda runtime: with_callback(runtime).get(),
}


def with_callback(runtime: Runtime) -> TaskHandle[Any]:
    handle = runtime.run_process(["true"])
    handle.add_done_callback(lambda _: runtime.run_process(["true"]).get())
    return handle


class Callback:
    """Calls ``act`` and tells what has come of it."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act
        self.thread = ""
        self.error: BaseException | None = None
        self.returned = threading.Event()

    def __call__(self, *_: object) -> None:
        self.thread = threading.current_thread().name
        try:
            self.act()
        except BaseException as error:
            self.error = error
        self.returned.set()

    def check(self) -> None:
        assert self.returned.wait(GUARD_S), "the callback has not come back"
        assert self.error is None


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("kind", [*NATIVE, *PYTHON])
def test_callback_may_use_its_runtime_when_the_task_has_ended(
    runtime: Runtime, tmp_path: Path, kind: str, act: str
) -> None:
    gate = threading.Event()
    blocker = runtime.submit(gate.wait, GUARD_S) if kind in PYTHON else None
    handle = (NATIVE | PYTHON)[kind](runtime, tmp_path)
    # It is called at once if the task has ended before, and then nobody else opens the gate.
    callback = Callback(lambda: (gate.set(), ACTS[act](runtime)))
    handle.add_done_callback(callback)
    gate.set()
    callback.check()
    assert blocker is None or blocker.get(GUARD_S)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("kind", FAILING)
def test_error_callback_may_use_its_runtime_when_a_task_has_failed(
    runtime: Runtime, tmp_path: Path, kind: str, act: str
) -> None:
    callback = Callback(lambda: ACTS[act](runtime))
    runtime.set_error_callback(callback)
    FAILING[kind](runtime, tmp_path)
    callback.check()


@pytest.mark.parametrize("act", ACTS)
def test_callback_may_use_its_runtime_when_the_task_has_run_out_of_time(
    runtime: Runtime, act: str
) -> None:
    begun, over = threading.Event(), threading.Event()
    callback = Callback(lambda: ACTS[act](runtime))

    def body() -> None:
        begun.set()
        over.wait(GUARD_S)

    try:
        runtime.set_default_task_timeout(20)
        handle = runtime.submit(body)
        handle.add_done_callback(callback)
        assert begun.wait(GUARD_S)
        runtime.set_default_task_timeout(0)
        assert isinstance(handle_error(handle), TimeoutError)
        over.set()
        callback.check()
    finally:
        over.set()


def handle_error(handle: TaskHandle[Any]) -> BaseException | None:
    with pytest.raises(TimeoutError):
        handle.get(GUARD_S)
    return handle.exception


def test_callback_may_wait_for_all_when_a_task_has_cancelled_its_task(runtime: Runtime) -> None:
    callback = Callback(runtime.wait_all)

    def body() -> None:
        queued = runtime.submit(echo, 1)
        queued.add_done_callback(callback)
        queued.cancel()

    runtime.submit(body).get(GUARD_S)
    callback.check()


@pytest.mark.parametrize("end", ["cancelled", "out of time"])
def test_destructor_of_an_argument_may_wait_for_all_when_its_task_never_begins(
    runtime: Runtime, end: str
) -> None:
    returned = threading.Event()

    class Argument:
        def __del__(self) -> None:
            runtime.wait_all()
            returned.set()

    gate = threading.Event()
    blocker = runtime.submit(gate.wait, GUARD_S)
    queued = runtime.submit(echo, of_no_thread(Argument))
    if end == "cancelled":
        threading.Thread(target=queued.cancel, daemon=True).start()
    else:
        runtime.set_timeout(1)
        handle_error(queued)
    gate.set()
    assert returned.wait(GUARD_S)
    wait_until(blocker.done)


@pytest.mark.parametrize("kind", NATIVE)
def test_native_tasks_go_on_when_a_callback_of_one_takes_long(
    runtime: Runtime, tmp_path: Path, kind: str
) -> None:
    release = threading.Event()
    names: list[str] = []

    def hold(_: object) -> None:
        names.append(threading.current_thread().name)
        if names[-1] != "MainThread":
            release.wait(GUARD_S)

    while not names or names[-1] == "MainThread":  # it had ended before
        handle = NATIVE[kind](runtime, tmp_path)
        handle.add_done_callback(hold)
        wait_until(handle.done)
        # The only thread of each kind is free meanwhile.
        assert runtime.run_process(["true"]).get(GUARD_S).exit_code == 0
        assert len(hash_file(runtime, tmp_path).get(GUARD_S)) == 1
        stage_file(runtime, tmp_path).get(GUARD_S)
        wait_until(lambda: bool(names))
    release.set()
    runtime.wait_all()
    assert names[-1].startswith("dft-callback-")


@pytest.mark.parametrize("kind", ["process", "plain", "coroutine", "deadline"])
def test_who_waits_for_the_task_goes_on_when_a_callback_takes_long(
    runtime: Runtime, kind: str
) -> None:
    gate, release = threading.Event(), threading.Event()

    begun = threading.Event()

    async def coroutine() -> None:
        gate.wait(GUARD_S)

    def body() -> None:
        begun.set()
        gate.wait(GUARD_S)

    if kind == "process":
        handle: TaskHandle[Any] = runtime.run_process(["sleep", "600"])
    else:
        runtime.set_default_task_timeout(20 if kind == "deadline" else 0)
        handle = runtime.submit(coroutine if kind == "coroutine" else body)
        assert kind == "coroutine" or begun.wait(GUARD_S)
        runtime.set_default_task_timeout(0)
    callback = Callback(lambda: release.wait(GUARD_S))
    if kind == "process":
        handle.add_done_callback(callback)
        threading.Thread(target=handle.cancel, daemon=True).start()  # which calls it
    elif kind == "deadline":
        handle.add_done_callback(callback)
    else:
        handle.add_done_callback(callback)
        gate.set()
    with contextlib.suppress(CancelledError, TimeoutError):
        handle.get(GUARD_S)
    release.set()
    gate.set()
    callback.check()


@pytest.mark.parametrize("end", ["wait_all", "shutdown"])
@pytest.mark.parametrize("kind", [*NATIVE, "plain", "failing"])
def test_callbacks_have_returned_when_all_was_waited_for(
    tmp_path: Path, kind: str, end: str
) -> None:
    for _ in range(10):
        runtime = Runtime(threads=1, io_threads=1, python_threads=2)
        seen: list[str] = []

        def act(runtime: Runtime = runtime, seen: list[str] = seen) -> None:
            runtime.submit(echo, 1).get(GUARD_S)
            seen.append("callback")

        handle = (NATIVE | PYTHON)[kind](runtime, tmp_path)
        handle.add_done_callback(lambda _, act=act: act())  # type: ignore[misc]
        if end == "shutdown":
            # Accepts what the callback submits until then.
            runtime.wait_all()
        getattr(runtime, end)()
        assert seen == ["callback"]
        runtime.shutdown()


def test_other_deadlines_are_kept_when_a_callback_of_a_deadline_takes_long() -> None:
    release = threading.Event()
    with Runtime(python_threads=2) as runtime:
        try:
            runtime.set_default_task_timeout(20)
            callback = Callback(lambda: release.wait(GUARD_S))
            first = runtime.submit(release.wait, GUARD_S)
            first.add_done_callback(callback)
            handle_error(first)
            handle_error(runtime.submit(release.wait, GUARD_S))
            assert not callback.returned.is_set()
        finally:
            release.set()
        callback.check()


@pytest.mark.parametrize("kind", NATIVE)
def test_failure_is_listed_when_its_callback_is_called(
    runtime: Runtime, tmp_path: Path, kind: str
) -> None:
    seen: list[tuple[list[TaskHandle[Any]], int]] = []
    callback = Callback(
        lambda: seen.append((runtime.get_failed(), runtime.get_progress()["failed"]))
    )
    handle = NATIVE[kind](runtime, tmp_path)
    handle.add_done_callback(callback)
    callback.check()
    assert seen == [([handle], 1) if handle.state == "failed" else ([], 0)]


def test_callbacks_are_called_when_the_runtime_was_shut_down_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    runtime = Runtime(io_threads=1)
    handle = runtime.run_process(["head", "-c1"], stdin=str(path))
    callback = Callback(lambda: None)
    handle.add_done_callback(callback)
    runtime.shutdown(wait=False)
    del runtime
    os.write(writer, b"x")
    callback.check()
    os.close(writer)


# --- in programs of their own --------------------------------------------------------------------

PRELUDE = f"""
from __future__ import annotations
import multiprocessing
import os
import sys
import threading
import time
import types
from dftracer.utils import Runtime

{inspect.getsource(of_no_thread)}
"""
PRELUDE += """

runtime = Runtime(threads=1, io_threads=1, python_threads=1)
with open("file", "wb") as file:
    file.truncate(20_000_000)

async def wait(gate):
    gate.wait()
    raise ValueError

START = {
    "process": lambda gate: runtime.run_process(["sleep", "0.1"]),
    "program": lambda gate: runtime.run_process(["/no/such/program"]),
    "hash": lambda gate: runtime.hash_files(["file"]),
    "stage": lambda gate: runtime.stage_file("file", "copy"),
    "plain": lambda gate: runtime.submit(gate.wait),
    "coroutine": lambda gate: runtime.submit(wait, gate),
    "io": lambda gate: runtime.submit_io(gate.wait),
}
here = []

def is_here():
    # Whether a callback is called at once, because its task has ended before.
    if threading.current_thread() is threading.main_thread():
        here.append(True)
    return bool(here)

def start(kind, *callbacks):
    # Starts tasks until one has ended after its callbacks were registered.
    while True:
        here.clear()
        gate = threading.Event()
        handle = START[kind](gate)
        for callback in callbacks:
            handle.add_done_callback(of_no_thread(callback))
        gate.set()
        if not here:
            return handle
        while not handle.done():
            time.sleep(0.001)
"""
FORK = ("-W", "ignore::DeprecationWarning")


def program(*parts: str) -> str:
    """Join pieces of source, each indented as its place here wants it."""
    return "\n".join(map(textwrap.dedent, (PRELUDE, *parts)))


@pytest.fixture
def run(
    run_script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], str]:
    """Run a program that forks in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda source: run_script(program(source), options=FORK)


KINDS = ["process", "program", "hash", "stage", "plain", "coroutine", "io"]


@pytest.mark.parametrize("kind", KINDS)
def test_callback_may_fork_when_the_task_has_ended(run: Callable[[str], str], kind: str) -> None:
    source = f"""
        done = threading.Event()

        def fork(*_):
            if is_here():
                return
            pid = os.fork()
            if pid == 0:
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            process = multiprocessing.get_context("fork").Process(target=print)
            process.start()
            process.join()
            assert process.exitcode == 0

        class Dying:
            def __call__(self, _):
                pass
            def __del__(self):
                fork()
                done.set()

        runtime.set_error_callback(fork)
        handle = start({kind!r}, lambda: fork, Dying)
        assert done.wait({GUARD_S})
        runtime.wait_all()
        print("over")
        """
    assert run(source).split()[-1] == "over"


@pytest.mark.parametrize("kind", KINDS)
def test_child_leaves_when_a_callback_has_forked_and_returns_in_it(
    run: Callable[[str], str], kind: str
) -> None:
    source = f"""
        reader, writer = os.pipe()
        children = []
        start(
            {kind!r},
            lambda: lambda _: is_here() or children.append(os.fork()),
            lambda: lambda _: is_here() or os.write(writer, b"x"),
        )
        runtime.wait_all()
        for child in children:  # of each start but one, the second callback was called at once
            assert os.waitpid(child, 0)[1] == 0
        os.close(writer)
        assert os.read(reader, 10) == b"x"
        """
    run(source)


@pytest.mark.parametrize("kind", KINDS)
def test_process_can_fork_when_a_callback_takes_long(run: Callable[[str], str], kind: str) -> None:
    source = f"""
        begun, release = threading.Event(), threading.Event()
        def hold(_):
            if not is_here():
                begun.set()
                release.wait()
        start({kind!r}, lambda: hold)
        assert begun.wait({GUARD_S})
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        release.set()
        runtime.shutdown()
        """
    run(source)


@pytest.mark.parametrize("what", ["callback", "error", "destructor", "import"])
@pytest.mark.parametrize("kind", ["process", "program", "hash", "plain", "coroutine"])
def test_program_ends_in_silence_when_a_callback_runs_to_the_end(
    run: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, what: str, kind: str
) -> None:
    monkeypatch.setenv("DFTRACER_EXIT_PATIENCE_S", "0.1")
    source = f"""
        import json
        begun = threading.Event()

        def work(*_):
            if is_here():
                return
            begun.set()
            while True:
                json.dumps([0] * 100)
                time.sleep(0.001)

        class Dying:
            def __call__(self, _):
                pass
            def __del__(self):
                work()

        class Importing:
            def __call__(self, _):
                sys.meta_path.insert(0, self)
                try:
                    import no_such_module
                except ImportError:
                    sys.meta_path.remove(self)
            def find_spec(self, name, path, target=None):
                work()

        what = {what!r}
        if what == "error":
            runtime.set_error_callback(work)
            start("program" if {kind!r} in ("process", "hash", "plain") else {kind!r})
        else:
            kinds = {{"callback": lambda: work, "import": Importing, "destructor": Dying}}
            start({kind!r}, kinds[what])
        assert begun.wait({GUARD_S})
        """
    run(source)


@pytest.mark.parametrize("what", ["argument", "deadline", "result"])
def test_program_ends_in_silence_when_other_code_of_a_task_runs_to_the_end(
    run: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    if what != "argument" and not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("without the GIL, it is not settled which thread it dies on")
    monkeypatch.setenv("DFTRACER_EXIT_PATIENCE_S", "0.1")
    source = f"""
        import json
        begun = threading.Event()

        class Dying:
            def __del__(self):
                begun.set()
                while True:
                    json.dumps([0] * 100)
                    time.sleep(0.001)

        what = {what!r}
        gate = threading.Event()
        if what == "argument":
            runtime.submit(id, of_no_thread(Dying))
        elif what == "result":
            runtime.submit(Dying)
        else:
            runtime.set_default_task_timeout(10)
            dying = Dying()
            runtime.submit(gate.wait).add_done_callback(lambda _, dying=dying: None)
            del dying
        assert begun.wait({GUARD_S})
        """
    run(source)


# --- a body that is cancelled -------------------------------------------------------------------


def wait_in_steps(go_on: threading.Event) -> str:
    try:
        sleep(GUARD_S)
    except asyncio.CancelledError:
        go_on.set()
        raise
    return "never told"


@pytest.mark.parametrize("kind", ["submit", "submit_io"])
@pytest.mark.parametrize("end", ["shutdown", "body", "spare"])
def test_a_callback_may_wait_for_the_body_when_that_is_cancelled(
    kind: str, end: str, runtime: Runtime
) -> None:
    told = threading.Event()
    handle: TaskHandle[str] = getattr(runtime, kind)(wait_in_steps, told)
    wait_until(lambda: handle.state == "running")
    seen: list[object] = []

    def callback(_: TaskHandle[str]) -> None:
        if end == "shutdown":
            runtime.shutdown()
            seen.append(True)
        elif end == "body":
            seen.append(told.wait(GUARD_S))
        else:
            seen.append(getattr(runtime, kind)(int).get(GUARD_S) == 0)

    handle.add_done_callback(callback)
    handle.cancel()
    assert seen == [True]
    assert told.wait(GUARD_S)


def test_a_destructor_may_wait_for_the_body_when_that_is_cancelled(runtime: Runtime) -> None:
    """The worker holds the arguments of a body that runs, but not those of the callbacks."""
    told, seen = threading.Event(), []

    class Held:
        def __call__(self, _: TaskHandle[str]) -> None:
            pass

        def __del__(self) -> None:
            seen.append(told.wait(GUARD_S))

    handle = runtime.submit(wait_in_steps, told)
    wait_until(lambda: handle.state == "running")
    handle.add_done_callback(Held())
    handle.cancel()
    wait_until(lambda: seen == [True])
