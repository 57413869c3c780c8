"""The process around a runtime: its end, its copies by fork, its signals. Always another process.

A program may end, fork or be interrupted while tasks wait, run or are suspended. Whatever it did,
it ends by itself with its own exit code and without a word on its standard error.
"""

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dftracer.utils import Runtime, TaskHandle

GUARD_S = 30
"""How long a test waits for what must come."""

Script = Callable[..., str]

PRELUDE = """
import asyncio
import os
import sys
import threading
from dftracer.utils import Runtime, get_default_runtime, peek_default_runtime

def say(*words):
    print(*words, flush=True)

def echo(value):
    return value

async def echo_later(value):
    await asyncio.sleep(0)
    return value
"""


def program(*parts: str) -> str:
    """Join pieces of source, each indented as its place here wants it."""
    return "\n".join(map(textwrap.dedent, (PRELUDE, *parts)))


# --- the end of the interpreter ----------------------------------------------------------------

RUNTIMES = {
    "default": "runtime = get_default_runtime()",
    "own": "runtime = Runtime(threads=1, io_threads=1, python_threads=1)",
    "several": """
        runtimes = [Runtime(python_threads=1) for _ in range(10)]
        handles = [runtime.submit(echo, 3) for runtime in runtimes]
        runtime = runtimes[-1]
        """,
}

LEFT_BEHIND = {
    "nothing": ("", ""),
    "ended tasks": (
        """
        assert runtime.submit(echo, 3).get() == 3
        assert runtime.submit(echo_later, 3).get() == 3
        """,
        "",
    ),
    "queued tasks": (
        """
        for number in range(300):
            runtime.submit(sum, range(1_000))
            runtime.submit(echo_later, number)
        runtime.submit(say, "last")
        """,
        "last\n",
    ),
    "a running task": (
        """
        started = threading.Event()

        def body():
            started.set()
            say(sum(range(300_000)) > 0)

        runtime.submit(body)
        started.wait()
        """,
        "True\n",
    ),
    "a suspended task": (
        """
        async def body():
            await asyncio.sleep(0.05)
            say("resumed")

        runtime.submit(body)
        runtime.submit(echo_later, 3).get()
        """,
        "resumed\n",
    ),
    "tasks that wait for tasks": (
        """
        def body(depth):
            if depth:
                handle = runtime.submit(body, depth - 1)
                go_on.wait()
                handle.wait()

        go_on = threading.Event()
        runtime.submit(body, 1)
        runtime.submit(go_on.set)
        runtime.submit(runtime.wait_all)
        """,
        "",
    ),
    "a child process": (
        """
        process = runtime.run_process(["sh", "-c", "read line; exit 3"], stdin=b"x\\n")
        runtime.run_process(["true"])
        """,
        "",
    ),
    "failures nobody looked at": (
        """
        async def fail_later():
            await asyncio.sleep(0)
            raise SystemExit(3)

        handles = [runtime.submit(echo), runtime.submit(fail_later), runtime.submit(sys.exit, 3)]
        handles.append(runtime.run_process(["./no-such-program"]))
        """,
        "",
    ),
    "a cancelled task": (
        """
        async def body():
            suspended.append(True)
            await asyncio.Event().wait()

        suspended = []
        handle = runtime.submit(body)
        while not suspended:
            pass
        runtime.submit(echo_later, 3).get()
        handle.cancel()
        """,
        "",
    ),
    "results that know their handle": (
        """
        class Result:
            def __del__(self):
                self.state = self.handle.state, self.handle.get, runtime

        for function in (echo, echo_later):
            result = Result()
            result.handle = runtime.submit(function, result)
        """,
        "",
    ),
    "a dropped runtime": (
        """
        Runtime(python_threads=1).submit(echo, 3)
        Runtime(python_threads=1).submit(echo_later, 3)
        Runtime(io_threads=1).run_process(["true"])
        """,
        "",
    ),
    "a runtime shut down without waiting": (
        """
        for number in range(300):
            runtime.submit(sum, range(1_000))
        runtime.submit(say, "last")
        runtime.shutdown(wait=False)
        """,
        "last\n",
    ),
    "a task that submits at the end": (
        """
        def body():
            ending.wait()
            try:
                runtime.submit(echo, 3)
            except RuntimeError:
                pass
            say("refused or not")

        ending = threading.Event()
        threading._register_atexit(ending.set)
        runtime.submit(body)
        """,
        "refused or not\n",
    ),
}


@pytest.mark.parametrize("left_behind", LEFT_BEHIND)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_program_ends_in_silence_when_it_leaves_behind(
    run_script: Script, runtime: str, left_behind: str
) -> None:
    source, expected = LEFT_BEHIND[left_behind]
    assert run_script(program(RUNTIMES[runtime], source)) == expected


def test_program_ends_in_silence_when_in_development_mode(run_script: Script) -> None:
    source = """
        runtime = get_default_runtime()
        handles = [runtime.submit(function, 3) for function in (echo, echo_later) * 10]
        handles.append(runtime.run_process(["true"]))
        with Runtime() as other:
            other.submit(echo_later, 3)
        """
    assert run_script(program(source), options=("-X", "dev")) == ""


@pytest.mark.parametrize("last", ["sys.exit(3)", "os._exit(3)"])
def test_exit_code_is_the_programs_own_when_it_exits_with_tasks_left(
    run_script: Script, last: str
) -> None:
    source = f"""
        runtime = get_default_runtime()
        for number in range(300):
            runtime.submit(echo, number)
            runtime.submit(echo_later, number)
        {last}
        """
    run_script(program(source), exit_code=3)


def test_error_is_the_programs_own_when_it_ends_by_one(run_script: Script) -> None:
    source = """
        runtime = get_default_runtime()
        runtime.submit(say, "task")
        sys.excepthook = lambda kind, error, traceback: print(kind.__name__, file=sys.stderr)
        raise LookupError
        """
    out = run_script(program(source), exit_code=1, stderr="LookupError\n")
    assert out == "task\n"


def test_exit_callbacks_find_outcomes_and_a_refusal_when_the_runtime_has_ended(
    run_script: Script,
) -> None:
    source = """
        import atexit

        runtime = get_default_runtime()
        handle = runtime.submit(echo, "outcome")

        @atexit.register
        def callback():
            say(handle.get(), handle.done())
            try:
                runtime.submit(echo, 3)
            except RuntimeError:
                say("refused")
        """
    assert run_script(program(source)) == "outcome True\nrefused\n"


LATE = """
    def use(runtime):
        for function in (echo, echo_later):
            say(runtime.submit(function, 3).get())
        for number in range(300):
            runtime.submit(sum, range(10_000))

    def use_late():
        try:
            use(Runtime())
        except RuntimeError:
            say("refused")
"""


@pytest.mark.parametrize(
    "last",
    [
        """
        import atexit
        atexit.register(use_late)
        """,
        """
        def outlive():
            threading.main_thread().join()
            use_late()

        for _ in range(4):
            threading.Thread(target=outlive).start()
        """,
    ],
    ids=["exit callback", "threads that outlive the main one"],
)
def test_program_ends_in_silence_when_a_runtime_is_made_after_the_end_has_begun(
    run_script: Script, last: str
) -> None:
    for _ in range(12):  # a crash here is a matter of microseconds
        out = run_script(program(LATE, last))
        assert out
        # Threads print side by side, so their lines may run into each other.
        assert set(out.replace("refused", " refused ").split()) <= {"refused", "3", "33", "333"}


def test_program_ends_in_silence_when_daemon_threads_use_the_runtime_to_the_end(
    run_script: Script,
) -> None:
    source = """
        runtime = get_default_runtime()
        started = threading.Barrier(9)

        def hammer():
            started.wait()
            while True:
                try:
                    runtime.submit(echo, 3).get()
                    runtime.submit(echo_later, 3).get()
                    runtime.wait_all()
                except RuntimeError:
                    pass

        for _ in range(8):
            threading.Thread(target=hammer, daemon=True).start()
        started.wait()
        for _ in range(50):
            runtime.submit(echo, 3).get()
        """
    for _ in range(5):
        assert run_script(program(source)) == ""


def test_program_ends_in_silence_when_daemon_threads_wait_for_the_last_task(
    run_script: Script,
) -> None:
    source = """
        runtime = get_default_runtime()
        go_on, waiting = threading.Event(), threading.Barrier(21)
        handle = runtime.submit(go_on.wait)

        def wait():
            waiting.wait()
            handle.get()
            runtime.wait_all()

        for _ in range(20):
            threading.Thread(target=wait, daemon=True).start()
        waiting.wait()
        threading._register_atexit(go_on.set)
        """
    for _ in range(5):
        assert run_script(program(source)) == ""


# --- fork --------------------------------------------------------------------------------------

# From 3.12 on, forking while threads run earns a DeprecationWarning, whoever made them.
FORK = ("-W", "ignore::DeprecationWarning")

IN_CHILD = """
    import select
    import signal
    import traceback

    def in_child(function):
        "Run it in a forked child and tell whether it went well. A child that hangs is killed."
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                function()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        descriptor = os.pidfd_open(child)
        if not select.select([descriptor], [], [], 10)[0]:
            os.kill(child, signal.SIGKILL)
        os.close(descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def refused(function, *args, **kwargs):
        try:
            function(*args, **kwargs)
        except RuntimeError as error:
            assert "fork" in str(error), error
            return True
        return False
"""


def test_child_gets_a_default_runtime_of_its_own_when_forked(run_script: Script) -> None:
    source = """
        inherited = get_default_runtime()
        inherited.submit(echo, 3).get()

        def child():
            assert peek_default_runtime() is None
            runtime = get_default_runtime()
            assert runtime is not inherited
            assert runtime.submit(echo, 3).get() == 3
            assert runtime.submit(echo_later, 3).get() == 3
            assert runtime.run_process(["true"]).get().exit_code == 0
            assert in_child(grandchild)
            runtime.shutdown()

        def grandchild():
            assert get_default_runtime().submit(echo, 3).get() == 3

        assert in_child(child)
        assert peek_default_runtime() is inherited
        assert inherited.submit(echo, 3).get() == 3
        say("over")
        """
    assert run_script(program(IN_CHILD, source), options=FORK) == "over\n"


def test_inherited_runtime_refuses_at_once_when_used_in_the_child(run_script: Script) -> None:
    source = """
        runtime = Runtime(python_threads=1)
        go_on = threading.Event()
        runtime.submit(go_on.wait)

        def child():
            assert refused(runtime.submit, echo, 3)
            assert refused(runtime.submit, echo_later, 3)
            assert refused(runtime.run_process, ["true"])
            assert refused(runtime.wait_all)
            runtime.get_failed()
            runtime.clear_failed()
            runtime.shutdown()
            assert refused(runtime.submit, echo, 3)

        assert in_child(child)
        go_on.set()
        assert runtime.submit(echo_later, 3).get() == 3
        say("over")
        """
    assert run_script(program(IN_CHILD, source), options=FORK) == "over\n"


def test_inherited_handles_answer_at_once_when_used_in_the_child(run_script: Script) -> None:
    source = """
        runtime = Runtime(python_threads=1, io_threads=1)
        go_on, started = threading.Event(), threading.Event()

        def body():
            started.set()
            go_on.wait()

        async def suspended_body():
            resume = asyncio.Event()
            resumers.append((asyncio.get_running_loop(), resume))
            await resume.wait()

        def fail():
            raise LookupError

        resumers = []
        ended, failed = runtime.submit(echo, 3), runtime.submit(fail)
        suspended = runtime.submit(suspended_body)
        runtime.submit(echo_later, 3).get()
        running, queued = runtime.submit(body), runtime.submit(echo, 3)
        process = runtime.run_process(["sh", "-c", "read line"], stdin=b"x" * 100_000)
        assert started.wait()

        def child():
            assert ended.get() == 3
            assert isinstance(failed.exception, LookupError)
            for handle in (running, queued, suspended):
                assert not handle.done()
                assert refused(handle.get)
                assert refused(handle.get, 60)
                assert refused(handle.wait)
                assert handle.name and handle.exception is None

        assert in_child(child)
        go_on.set()
        loop, resume = resumers[0]
        loop.call_soon_threadsafe(resume.set)
        for handle in (running, queued, suspended, process):
            handle.get()
        say("over")
        """
    assert run_script(program(IN_CHILD, source), options=FORK) == "over\n"


def test_cancel_in_the_child_does_not_touch_the_task_when_it_is_the_parents(
    run_script: Script,
) -> None:
    source = """
        runtime = Runtime(python_threads=1)
        go_on = threading.Event()

        async def suspended_body():
            resume = asyncio.Event()
            resumers.append((asyncio.get_running_loop(), resume))
            await resume.wait()

        resumers = []
        suspended = runtime.submit(suspended_body)
        runtime.submit(echo_later, 3).get()
        handles = [runtime.submit(go_on.wait), runtime.submit(echo, 3), suspended]

        def child():
            for handle in handles:
                try:
                    handle.cancel()
                except RuntimeError:
                    pass

        assert in_child(child)
        go_on.set()
        loop, resume = resumers[0]
        loop.call_soon_threadsafe(resume.set)
        say(*(handle.get() for handle in handles))
        """
    assert run_script(program(IN_CHILD, source), options=FORK) == "True 3 None\n"


def test_child_ends_in_silence_when_it_runs_to_the_end_of_the_program(run_script: Script) -> None:
    source = """
        inherited = get_default_runtime()
        with Runtime(python_threads=1) as runtime:
            for function in (echo, echo_later) * 50:
                inherited.submit(function, 3)
                runtime.submit(function, 3)
            child = os.fork()
            if child == 0:
                get_default_runtime().submit(say, "child").get()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            say("parent")
        else:
            sys.exit(7)
        """
    assert run_script(program(source), options=FORK) == "child\nparent\n"


FORKING = {
    "first step": """
        async def body():
            return os.fork()
        """,
    "later step": """
        async def body():
            await asyncio.sleep(0)
            return os.fork()
        """,
    "failing step": """
        async def body():
            child = os.fork()
            if child == 0:
                raise ValueError("in the child")
            return child
        """,
    "goes on": """
        async def body():
            await asyncio.sleep(0)
            child = os.fork()
            await asyncio.sleep(0.01)
            await asyncio.sleep(0.01)
            os.write(writer, b"x")
            return child
        """,
    "suspends for ever": """
        async def body():
            child = os.fork()
            if child == 0:
                await asyncio.get_event_loop_policy().new_event_loop().create_future()
            return child
        """,
    "own task": """
        async def fork():
            return os.fork()

        async def body():
            return await asyncio.create_task(fork())
        """,
    "callback of the loop": """
        async def body():
            forked = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(lambda: forked.set_result(os.fork()))
            return await forked
        """,
    "passed on": """
        async def fork():
            await asyncio.sleep(0)
            return os.fork()

        body = functools.partial(fork)
        """,
}


@pytest.mark.parametrize("body", FORKING)
def test_child_leaves_when_a_coroutine_body_has_forked_and_its_turn_ends(
    run_script: Script, body: str
) -> None:
    source = """
        runtime = Runtime(python_threads=1)
        opened = []

        async def other():
            # Suspended in the same loop, and ready to go on when the fork is made.
            for _ in range(20):
                await asyncio.sleep(0)
            os.write(writer, b"other ")

        async def queued():
            os.write(writer, b"queued ")

        others = [runtime.submit(other) for _ in range(3)]
        forked = runtime.submit(body)
        forked.add_done_callback(lambda _: os.write(writer, b"told "))
        others += [runtime.submit(queued) for _ in range(3)]
        child = forked.get()
        assert child > 0
        assert os.waitpid(child, 0)[1] == 0
        runtime.wait_all()
        runtime.shutdown()
        os.close(writer)
        with open(reader, "rb") as file:
            words = file.read().replace(b"x", b"").split()
        assert sorted(words) == [b"other"] * 3 + [b"queued"] * 3 + [b"told"], words
        """
    prelude = """
        import functools
        reader, writer = os.pipe()
        """
    run_script(program(prelude, FORKING[body], source), options=FORK)


def test_queued_tasks_run_once_when_a_task_forks_and_its_child_waits(run_script: Script) -> None:
    source = """
        runtime = Runtime(python_threads=1)
        queued = threading.Event()
        reader, writer = os.pipe()

        def fork():
            queued.wait()
            return in_child(child)

        def child():
            assert get_default_runtime().submit(echo, 3).get() == 3
            assert get_default_runtime().submit(echo_later, 3).get() == 3
            assert Runtime().submit(echo, 3).get() == 3

        forked = runtime.submit(fork)
        for _ in range(5):
            runtime.submit(os.write, writer, b"once ")
        queued.set()
        assert forked.get()
        runtime.wait_all()
        say(os.read(reader, 1_000).decode())
        """
    assert run_script(program(IN_CHILD, source), options=FORK) == "once " * 5 + "\n"


@pytest.mark.parametrize(
    ("storm", "forks"),
    [
        (
            """
            handles = [runtime.submit(echo, 3) for _ in range(20)]
            handles += [runtime.submit(echo_later, 3) for _ in range(5)]
            """,
            40,
        ),
        ('handles = [runtime.run_process(["true"]) for _ in range(20)]', 80),
        (
            """
            with Runtime(python_threads=1) as own:
                handles = [own.submit(function, 3) for function in (echo, echo_later)]
            """,
            80,
        ),
    ],
    ids=["tasks", "processes", "threads"],
)
def test_every_child_works_when_forked_in_a_storm(
    run_script: Script, storm: str, forks: int
) -> None:
    if "python_threads" in storm and not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("without the GIL, locks of CPython itself can stay held in the child of a fork")
    # Some thread of the parent may hold any lock of the process at the moment of the fork.
    source = """
        runtime = get_default_runtime()
        over = threading.Event()

        def child():
            runtime = get_default_runtime()
            assert runtime.submit(echo, 3).get() == 3
            assert runtime.submit(echo_later, 3).get() == 3
            assert runtime.run_process(["true"]).get().exit_code == 0
            runtime.shutdown()

        def rage():
            while not over.is_set():
                storm()
        """
    fork = f"""
        threads = [threading.Thread(target=rage) for _ in range(3)]
        for thread in threads:
            thread.start()
        # One that hangs will do to know.
        went_well = all(in_child(child) for _ in range({forks}))
        over.set()
        for thread in threads:
            thread.join()
        say(went_well)
        """
    body = textwrap.indent(textwrap.dedent(storm).strip(), "    ")
    storm = f"def storm():\n{body}\n    for handle in handles:\n        handle.get()"
    assert run_script(program(IN_CHILD, source, storm, fork), options=FORK) == "True\n"


def test_every_child_works_when_forked_while_others_use_a_runtime_for_the_first_time(
    run_script: Script,
) -> None:
    # What is made once may be in the making: by whoever submits, or by a worker.
    source = """
        def fail():
            raise LookupError

        def use():
            runtime = get_default_runtime()
            assert runtime.submit(echo, 3).get() == 3
            assert runtime.submit(sum, [3]).get() == 3
            assert runtime.submit(echo_later, 3).get() == 3
            assert list(runtime.map(echo, [3, 3])) == [3, 3]
            assert runtime.run_process(["true"]).get().exit_code == 0
            told = threading.Event()
            failed = runtime.submit(fail)
            failed.add_done_callback(lambda _: told.set())
            assert told.wait(5)
            assert isinstance(failed.exception, LookupError)
            failed.cancel()
            runtime.wait_all()
            runtime.shutdown()

        def begin_and_fork():
            # Threads let another go on only where they let go of the interpreter.
            sys.setswitchinterval(1_000)
            thread = threading.Thread(target=use)
            thread.start()
            went_well = in_child(use)
            while went_well and thread.is_alive():
                went_well = in_child(use)
            thread.join()
            assert went_well

        # Each child of this one is one that has never used a runtime.
        say(all(in_child(begin_and_fork) for _ in range(100)))
        """
    assert run_script(program(IN_CHILD, source), options=FORK) == "True\n"


def test_child_works_when_forked_while_a_worker_imports(run_script: Script) -> None:
    # The child inherits a lock of the import that no thread of it will ever release.
    source = """
        def slow_down(event, _):
            if event == "exec" and threading.current_thread().name.startswith("dft-"):
                importing.set()
                forked.wait(20)

        importing, forked = threading.Event(), threading.Event()
        sys.addaudithook(slow_down)
        handle = get_default_runtime().submit(echo_later, 3)
        while not importing.is_set() and not handle.done():
            pass

        def child():
            forked.set()
            assert get_default_runtime().submit(echo, 3).get() == 3
            assert get_default_runtime().submit(echo_later, 3).get() == 3

        went_well = in_child(child)
        forked.set()
        say(went_well, handle.get())
        """
    assert run_script(program(IN_CHILD, source), options=FORK) == "True 3\n"


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.parametrize("inside_a_task", [False, True])
def test_child_works_when_multiprocessing_starts_it(
    run_script: Script, method: str, inside_a_task: bool
) -> None:
    source = f"""
        import multiprocessing

        def work(connection):
            runtime = get_default_runtime()
            connection.send([runtime.submit(function, 3).get() for function in (echo, echo_later)])

        def start():
            context = multiprocessing.get_context({method!r})
            here, there = context.Pipe()
            process = context.Process(target=work, args=(there,))
            process.start()
            results = here.recv()
            process.join()
            return results, process.exitcode

        if __name__ == "__main__":
            runtime = get_default_runtime()
            runtime.submit(echo_later, 3).get()
            say(runtime.submit(start).get() if {inside_a_task} else start())
            assert runtime.submit(echo_later, 3).get() == 3
        """
    assert run_script(program(source), options=FORK) == "([3, 3], 0)\n"


# --- signals -----------------------------------------------------------------------------------


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[Callable[[str], "subprocess.Popen[str]"]]:
    """Start Python source as a program of its own and leave it to the test to talk with it."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str) -> "subprocess.Popen[str]":
        script = tmp_path / "script.py"
        script.write_text(source, encoding="utf-8")
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [sys.executable, "-W", "error", str(script)], stdout=pipe, stderr=pipe, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def interrupt_when_it_says(process: "subprocess.Popen[str]", word: str) -> tuple[str, str]:
    """Send SIGINT once its main thread sleeps after that line; return what it writes to its end."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if line.strip() != word:
        process.kill()
        pytest.fail(f"{line!r} came instead of {word!r}: {process.communicate()}")
    status = Path(f"/proc/{process.pid}/task/{process.pid}/stat")
    deadline = time.monotonic() + GUARD_S
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] not in "SZX":
        assert time.monotonic() < deadline, "its main thread never sleeps"
        os.sched_yield()
    for _ in range(6):
        process.send_signal(signal.SIGINT)
        # A signal that comes as the wait begins may be lost: another test's subject.
        if select.select([process.stdout], [], [], GUARD_S / 6)[0]:
            break
    return process.communicate(timeout=GUARD_S)


@pytest.mark.parametrize(
    "wait",
    [
        "handle.get()",
        "handle.get(3600)",
        "handle.wait()",
        "handle.wait(timeout=3600)",
        "runtime.wait_all()",
        "suspended.get()",
        "process.get()",
    ],
)
def test_wait_of_the_main_thread_ends_when_it_is_interrupted(
    start_script: Callable[[str], "subprocess.Popen[str]"], wait: str
) -> None:
    source = f"""
        runtime = Runtime(python_threads=2, io_threads=1)
        go_on = threading.Event()
        handle = runtime.submit(go_on.wait)
        suspended = runtime.submit(asyncio.sleep, 3600)
        process = runtime.run_process(["sleep", "3600"])
        runtime.submit(echo_later, 3).get()
        try:
            say("waiting")
            {wait}
        except KeyboardInterrupt:
            say("interrupted")
        assert runtime.submit(echo, 3).get() == 3
        assert runtime.submit(echo_later, 3).get() == 3
        go_on.set()
        assert suspended.cancel() and process.cancel()
        runtime.shutdown()
        say(handle.state, suspended.state, process.state)
        """
    process = start_script(program(source))
    out, err = interrupt_when_it_says(process, "waiting")
    assert (out, err) == ("interrupted\ndone cancelled cancelled\n", "")
    assert process.returncode == 0


def test_shutdown_of_the_main_thread_ends_when_it_is_interrupted(
    start_script: Callable[[str], "subprocess.Popen[str]"],
) -> None:
    source = """
        runtime = Runtime(python_threads=1)
        go_on = threading.Event()
        handle = runtime.submit(go_on.wait)
        try:
            say("waiting")
            runtime.shutdown()
        except KeyboardInterrupt:
            say("interrupted")
        go_on.set()
        runtime.shutdown()
        say(handle.state)
        """
    process = start_script(program(source))
    out, err = interrupt_when_it_says(process, "waiting")
    assert (out, err, process.returncode) == ("interrupted\ndone\n", "", 0)


def test_program_ends_with_the_interrupts_code_when_nobody_catches_it(
    start_script: Callable[[str], "subprocess.Popen[str]"],
) -> None:
    source = """
        runtime = get_default_runtime()
        go_on = threading.Event()
        handle = runtime.submit(go_on.wait)
        threading._register_atexit(go_on.set)
        sys.excepthook = lambda kind, error, traceback: print(kind.__name__, file=sys.stderr)
        say("waiting")
        handle.get()
        """
    process = start_script(program(source))
    out, err = interrupt_when_it_says(process, "waiting")
    assert (out, err, process.returncode) == ("", "KeyboardInterrupt\n", -signal.SIGINT)


def test_program_does_not_crash_when_interrupted_at_its_end_while_a_task_never_ends(
    start_script: Callable[[str], "subprocess.Popen[str]"],
) -> None:
    source = """
        def endless():
            while True:
                pass

        runtime = get_default_runtime()
        runtime.submit(endless)
        threading._register_atexit(lambda: say("ending"))
        """
    process = start_script(program(source))
    interrupt_when_it_says(process, "ending")
    assert process.returncode >= 0


@pytest.fixture
def signalled() -> Iterator[threading.Event]:
    """Set by the Python handler of SIGUSR1, which runs in the main thread like every other."""
    event = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: event.set())
    yield event
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("method", ["get", "wait"])
def test_signal_handler_runs_when_the_main_thread_waits(
    signalled: threading.Event, method: str
) -> None:
    def body() -> bool:
        for _ in range(600):  # again and again, for the first may come before the wait begins
            signal.pthread_kill(main, signal.SIGUSR1)
            if signalled.wait(0.05):
                return True
        return False

    main = threading.get_ident()
    with Runtime(python_threads=1) as runtime:
        handle = runtime.submit(body)
        getattr(handle, method)()
        assert handle.get() is True


@pytest.mark.parametrize("wait", [TaskHandle.get, TaskHandle.wait, None])
def test_signal_handler_runs_when_the_signal_comes_as_the_wait_begins(
    signalled: threading.Event, wait: Callable[[TaskHandle[bool]], object] | None
) -> None:
    # The worker gets to run just when the main thread lets go of the interpreter to wait.
    def body() -> bool:
        signal.pthread_kill(main, signal.SIGUSR1)
        return signalled.wait(GUARD_S / 3)

    main = threading.get_ident()
    with Runtime(python_threads=1) as runtime:
        for _ in range(50):
            signalled.clear()
            handle = runtime.submit(body)
            if wait is None:
                runtime.wait_all()
            else:
                wait(handle)
            assert handle.get(), "the signal was not noticed before the wait was over"
