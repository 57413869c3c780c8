"""Programs in a hostile process: it forks, others reap, descriptors and threads are refused, files
never open, somebody is at the terminal.

What changes the whole process is a script of its own. All of it is about the moments of a program
that tests of ordinary programs do not meet: its start, its pipes, its end.
"""

import asyncio
import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from handle_support import ended
from process_support import Line
from terminal_support import Terminal

from dftracer.asyncflow import (
    LocalExecutionBackend,
    RuntimeExecutionBackend,
    WorkflowEngine,
)
from dftracer.utils import Cancellation, Runtime, TaskTimeoutError

GUARD_S = 30
"""How long a test waits for what must come."""

Script = Callable[..., str]

# From 3.12 on, forking while threads run earns a DeprecationWarning, whoever made them.
FORK = ("-W", "ignore::DeprecationWarning")

only_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="the limit of threads is that of a user, and root has none"
)


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    """Return a runtime whose pools are as small as can be."""
    with Runtime(threads=1, io_threads=1, python_threads=1) as runtime:
        yield runtime


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """Return a named pipe that nobody has opened."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


# --- forks --------------------------------------------------------------------------------------


def test_program_sees_the_end_of_its_input_when_a_forked_child_lives(run_script: Script) -> None:
    source = """
        import os, signal
        from dftracer.utils import Runtime

        os.chdir(os.path.dirname(__file__))
        os.mkfifo("begin")
        runtime = Runtime(io_threads=1)
        # More than a pipe holds: our end of it is open when the process forks.
        size = 1 << 20
        program = runtime.run_process("read line < begin; wc -c", stdin=b"x" * size)
        with open("begin", "w") as line:
            child = os.fork()
            if child == 0:
                signal.pause()
            print("go on", file=line)
        print(int(program.get(30).stdout) == size)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    """
    assert run_script(source, options=FORK) == "True\n"


def test_forked_child_holds_nothing_of_a_program_when_it_runs(run_script: Script) -> None:
    source = """
        import os
        from dftracer.utils import Runtime

        def mine():
            found = []
            for number in os.listdir("/proc/self/fd"):
                try:
                    found.append(os.readlink(f"/proc/self/fd/{number}"))
                except FileNotFoundError:
                    pass  # that of the directory itself
            return sorted(name for name in found if "pipe:" in name or "pidfd" in name)

        os.chdir(os.path.dirname(__file__))
        os.mkfifo("begin")
        runtime = Runtime(io_threads=1)
        before = mine()
        programs = [runtime.run_process("echo >begin; read line", stdin=b"x" * (1 << 20))]
        with open("begin") as file:
            file.read()  # it runs
        assert len(mine()) >= len(before) + 4
        child = os.fork()
        if child == 0:
            os._exit(0 if mine() == before else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        programs[0].get(30)
    """
    assert run_script(source, options=FORK) == "0\n"


def test_programs_end_when_several_threads_fork_while_they_are_started(run_script: Script) -> None:
    source = """
        import os, signal, threading
        from dftracer.utils import Runtime

        runtime = Runtime(io_threads=2)
        over = threading.Event()
        children = []

        def fork():
            while not over.is_set():
                child = os.fork()
                if child == 0:
                    signal.pause()
                children.append(child)
                if len(children) >= 150:
                    return

        forkers = [threading.Thread(target=fork) for _ in range(2)]
        for forker in forkers:
            forker.start()
        for _ in range(5):
            for program in [runtime.run_process(["echo", "hi"]) for _ in range(30)]:
                assert program.get(30).stdout == b"hi\\n"
        over.set()
        for forker in forkers:
            forker.join()
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        print(len(children) > 0)
    """
    assert run_script(source, options=FORK) == "True\n"


def test_forked_child_starts_programs_when_its_parent_has_taken_all_places(
    run_script: Script,
) -> None:
    source = """
        import os, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
        from dftracer.utils import Runtime

        os.chdir(os.path.dirname(__file__))
        os.mkfifo("end")
        runtime = Runtime(io_threads=1)
        waiting = [runtime.run_process("cat end") for _ in range(20)]
        child = os.fork()
        if child == 0:
            with Runtime(io_threads=1) as own:
                code = own.run_process(["sh", "-c", "exit 3"]).get(30).exit_code
            os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        for program in waiting:
            program.cancel()
    """
    assert run_script(source, options=FORK) == "3\n"


# --- refusals -----------------------------------------------------------------------------------


def test_programs_of_all_backends_share_one_budget_of_descriptors(run_script: Script) -> None:
    source = """
        import asyncio, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
        from dftracer.asyncflow import LocalExecutionBackend, RuntimeExecutionBackend
        from dftracer.asyncflow import WorkflowEngine

        async def main():
            backends = [RuntimeExecutionBackend(name="a"), LocalExecutionBackend(name="b")]
            async with await WorkflowEngine.create(backends) as flow:
                def nap():
                    return "sleep 0.05"

                tasks = [flow.executable_task(nap, backend=name) for name in ("a", "b")]
                ends = await asyncio.gather(*[tasks[n % 2]() for n in range(200)])
            print(len(ends))

        asyncio.run(main())
    """
    assert run_script(source) == "200\n"


def test_program_runs_when_descriptors_are_short_for_a_moment(run_script: Script) -> None:
    source = """
        import os, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        from dftracer.utils import Runtime

        runtime = Runtime(io_threads=1)
        {before}
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        program = runtime.run_process(["echo", "hi"])
        try:
            program.wait(0.5)
        except TimeoutError:
            print("not yet")
        for descriptor in taken:
            os.close(descriptor)
        print(program.get(30).stdout)
    """
    for before in ("", 'runtime.run_process(["true"]).get(30)'):
        assert run_script(source.format(before=before)) == "not yet\nb'hi\\n'\n"


def test_program_fails_when_there_are_no_descriptors_at_all(run_script: Script) -> None:
    source = """
        import os, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        from dftracer.utils import Runtime, as_completed

        runtime = Runtime(io_threads=1)
        runtime.run_process(["true"]).get(30)
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        program = runtime.run_process(["echo", "hi"])
        next(as_completed([program], 30))
        for descriptor in taken:
            os.close(descriptor)
        print(type(program.exception).__name__, program.exception.strerror)
        print(runtime.run_process(["echo", "hi"]).get(30).stdout)
    """
    assert run_script(source) == "OSError Too many open files\nb'hi\\n'\n"


@only_root
@pytest.mark.parametrize("threads", range(1, 6))
def test_program_is_run_or_fails_when_the_system_refuses_threads(
    run_script: Script, threads: int
) -> None:
    source = f"""
        import os, resource
        from dftracer.utils import Runtime
        os.setgid({61_000 + threads})
        os.setuid({61_000 + threads})
        resource.setrlimit(resource.RLIMIT_NPROC, ({threads}, {threads}))
        runtime = Runtime(io_threads=4)
        try:
            print(runtime.run_process(["true"]).get(30))
        except (OSError, RuntimeError) as error:
            print(error)
        runtime.shutdown()
        print("shut down")
    """
    assert run_script(source).endswith("shut down\n")


@only_root
def test_refused_thread_is_an_error_only_now(run_script: Script) -> None:
    source = """
        import os, resource
        from dftracer.utils import Runtime
        os.setgid(61010)
        os.setresuid(61010, 61010, 61010)
        few, many = 1, resource.getrlimit(resource.RLIMIT_NPROC)[1]
        resource.setrlimit(resource.RLIMIT_NPROC, (few, many))
        runtime = Runtime(io_threads=2, threads=1)
        runtime_errors = 0
        copy = os.path.join(os.path.dirname(__file__), "copy")
        for submit in (
            lambda: runtime.run_process(["true"]).get(30),
            lambda: runtime.stage_file("/bin/sh", copy).get(30),
            lambda: runtime.hash_files(["/bin/sh"]).get(30),
            lambda: runtime.set_default_task_timeout("1h"),
            lambda: runtime.submit(abs, -3).get(30),
        ):
            try:
                print(submit())
            except (OSError, RuntimeError) as error:
                runtime_errors += 1
        print(runtime_errors)
        resource.setrlimit(resource.RLIMIT_NPROC, (many, many))
        runtime.set_default_task_timeout("1h")
        print(runtime.run_process(["echo", "hi"]).get(30).stdout, runtime.submit(abs, -3).get(30))
        runtime.shutdown()
    """
    # Of the lanes none had a thread to fall back on.
    assert run_script(source) == "5\nb'hi\\n' 3\n"


# --- files that do not open ---------------------------------------------------------------------


@pytest.mark.parametrize("end", ["stdin", "stdout", "stderr"])
def test_timeout_reaches_a_program_when_its_fifo_has_no_other_end(
    runtime: Runtime, fifo: Path, end: str
) -> None:
    handle = runtime.run_process(["cat"], **{end: fifo}, timeout=0.2)  # type: ignore[arg-type]
    assert runtime.run_process(["echo", "hi"]).get(GUARD_S).stdout == b"hi\n"
    with pytest.raises(TaskTimeoutError):
        handle.get(GUARD_S)


@pytest.mark.parametrize("end", ["stdin", "stdout", "stderr"])
def test_cancellation_reaches_a_program_when_its_fifo_has_no_other_end(
    runtime: Runtime, fifo: Path, end: str
) -> None:
    handle = runtime.run_process(["cat"], **{end: fifo})  # type: ignore[arg-type]
    assert runtime.run_process(["echo", "hi"]).get(GUARD_S).stdout == b"hi\n"
    assert handle.cancel() is Cancellation.REQUESTED
    assert ended(handle).state == "cancelled"


def test_programs_meet_when_one_writes_to_the_fifo_that_the_other_reads(
    runtime: Runtime, fifo: Path, tmp_path: Path
) -> None:
    reader = runtime.run_process(
        ["sh", "-c", 'cat; echo "$0 $1 ${__dft_in-unset}"', "a  b", "c"], stdin=fifo, cwd=tmp_path
    )
    writer = runtime.run_process(["echo", "hi"], stdout=fifo)
    assert writer.get(GUARD_S).exit_code == 0
    result = reader.get(GUARD_S)
    assert (result.exit_code, result.stdout) == (0, b"hi\na  b c unset\n")


def test_error_names_the_program_or_the_file_when_a_fifo_is_given(
    runtime: Runtime, fifo: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        runtime.run_process(["no-such-program"], stdin=fifo).get(GUARD_S)
    with pytest.raises(FileNotFoundError, match="/no-such-program"):
        runtime.run_process(["./no-such-program"], stdin=fifo, cwd=tmp_path).get(GUARD_S)
    (tmp_path / "file").touch(0o600)
    with pytest.raises(PermissionError, match="file"):
        runtime.run_process(["./file"], stdin=fifo, cwd=tmp_path).get(GUARD_S)


async def test_timeout_reaches_an_executable_task_when_its_fifo_has_no_other_end(
    fifo: Path,
) -> None:
    for backend in (RuntimeExecutionBackend(), LocalExecutionBackend()):
        async with await WorkflowEngine.create(backend) as flow:

            @flow.executable_task
            def read() -> list[str]:
                return ["cat"]

            options = {"stdin": fifo, "timeout": 0.2}
            with pytest.raises(TaskTimeoutError):
                await asyncio.wait_for(read(task_description=options), GUARD_S)


# --- others who wait for children ---------------------------------------------------------------


def test_output_arrives_when_sigchld_is_ignored(run_script: Script) -> None:
    source = """
        import asyncio, io, logging, signal
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        from dftracer.asyncflow import LocalExecutionBackend, WorkflowEngine
        from dftracer.utils import Runtime, TaskTimeoutError
        log = io.StringIO()
        logging.basicConfig(format="%(levelname)s", stream=log)

        with Runtime(io_threads=2) as runtime:
            programs = [runtime.run_process(["echo", str(n)]) for n in range(50)]
            for n, program in enumerate(programs):
                result = program.get(30)
                assert result.stdout == f"{n}\\n".encode(), result
                assert (result.exit_code, result.signal) == (None, None)
            try:
                runtime.run_process("sleep 600 & sleep 600", timeout=0.2).get(30)
            except TaskTimeoutError as error:
                print("timeout")

        async def main():
            for backend in (None, LocalExecutionBackend()):
                async with await WorkflowEngine.create(backend) as flow:
                    @flow.executable_task
                    def say(n):
                        return ["echo", str(n)]
                    outputs = await asyncio.gather(*map(say, range(50)))
                    print([int(output) for output in outputs] == list(range(50)))

        asyncio.run(main())
        print(log.getvalue(), end="")
    """
    # Once, not for each of them.
    assert run_script(source) == "timeout\nTrue\nTrue\nWARNING\n"


def test_output_arrives_when_another_thread_reaps(run_script: Script) -> None:
    source = """
        import os, threading
        from dftracer.utils import Runtime
        reaped = 0

        def reap():
            global reaped
            while True:
                try:
                    os.wait()
                    reaped += 1
                except ChildProcessError:
                    if over.wait(0.001):
                        return

        over = threading.Event()
        reaper = threading.Thread(target=reap)
        reaper.start()
        with Runtime(io_threads=2) as runtime:
            unknown = 0
            for _ in range(20):
                for program in [runtime.run_process(["echo", "hi"]) for _ in range(10)]:
                    result = program.get(30)
                    assert result.stdout == b"hi\\n"
                    assert result.exit_code in (0, None) and result.signal is None
                    unknown += result.exit_code is None
        over.set()
        reaper.join()
        print(reaped == unknown)
    """
    assert run_script(source) == "True\n"


# --- signals ------------------------------------------------------------------------------------

PRINT_SIGNALS = ["grep", "^Sig[BIC]", "/proc/self/status"]


@pytest.mark.skipif(sys.platform != "linux", reason="shows what Linux tells of a process")
def test_program_begins_with_the_signals_that_subprocess_gives_it(run_script: Script) -> None:
    source = f"""
        import asyncio, signal, subprocess
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGTERM])
        from dftracer.asyncflow import WorkflowEngine
        from dftracer.utils import Runtime

        argv = {PRINT_SIGNALS!r}

        def told(output):
            words = iter(output.split())
            # But for the two that the C library keeps for itself.
            return {{name: int(mask, 16) & ~0x180000000 for name, mask in zip(words, words)}}

        expected = told(subprocess.run(argv, capture_output=True).stdout)
        with Runtime() as runtime:
            # Its threads have another mask than the one who asks.
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            runtime.run_process(["true"]).get(30)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGTERM])
            print(told(runtime.run_process(argv).get(30).stdout) == expected)

        async def main():
            async with await WorkflowEngine.create() as flow:
                @flow.executable_task
                def show():
                    return argv
                print(told((await show()).encode()) == expected)

        asyncio.run(main())
    """
    assert run_script(source) == "True\nTrue\n"


# --- terminals ----------------------------------------------------------------------------------


def in_terminal(terminal: Terminal, tmp_path: Path, source: str) -> subprocess.Popen[bytes]:
    """Start Python source as the program that has the terminal."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(source), encoding="utf-8")
    take = (
        "import fcntl, runpy, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        f"runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    return terminal.start([sys.executable, "-c", take], cwd=str(tmp_path))


READ = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
print("ready", file=open("/dev/tty", "w"), flush=True)
sys.stdin.read()
"""

ASK = "stty -echo </dev/tty && read line </dev/tty && stty echo </dev/tty && echo got $line"


def test_program_that_asks_in_a_terminal_fails_at_once_when_it_has_none(tmp_path: Path) -> None:
    source = f"""
        import asyncio
        from dftracer.asyncflow import ExecutableError, WorkflowEngine
        from dftracer.utils import Runtime
        with Runtime() as runtime:
            print("code", runtime.run_process({ASK!r}).get(30).exit_code)

        async def main():
            async with await WorkflowEngine.create() as flow:
                ask = flow.executable_task(lambda: {ASK!r})
                try:
                    await ask()
                except ExecutableError as error:
                    print("failed", error.exit_code)

        asyncio.run(main())
    """
    with Terminal() as terminal, in_terminal(terminal, tmp_path, source) as process:
        terminal.read_until(lambda: process.poll() is not None)
    lines = terminal.written.decode().split()
    assert lines[0] == "code"
    assert lines[1] != "0"
    assert lines[2] == "failed"


def test_program_asks_in_the_terminal_when_it_is_to_have_one(tmp_path: Path) -> None:
    source = f"""
        import asyncio, os, signal, sys
        from dftracer.asyncflow import WorkflowEngine
        from dftracer.utils import Runtime
        READ = {READ!r}
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ask = "echo ready >/dev/tty; " + {ASK!r}

        def show(said):
            print(said, flush=True)

        with Runtime() as runtime:
            # Both ask; one at a time has the terminal. The third reads its standard input.
            handles = [runtime.run_process(ask, tty=True) for _ in range(2)]
            for handle in handles:
                show(handle.get(30).stdout.decode().strip())
            read = "echo ready >/dev/tty; read line; echo read $line"
            show(runtime.run_process(read, tty=True).get(30).stdout.decode().strip())
            # Ctrl-C is for the program that has the terminal. Ctrl-Z leaves it running.
            stopped = runtime.run_process([sys.executable, "-c", READ], tty=True)
            show(f"signal {{stopped.get(30).signal}}")

        async def main():
            async with await WorkflowEngine.create() as flow:
                task = flow.executable_task(lambda: ask)
                show((await task(task_description={{"tty": True}})).strip())

        asyncio.run(main())
        assert os.tcgetpgrp(0) == os.getpgrp(), "the terminal is ours again"
    """
    with Terminal() as terminal, in_terminal(terminal, tmp_path, source) as process:
        for number, answer in enumerate(["a\n", "b\n", "c\n", "\x1a", "e\n"], start=1):
            terminal.read_until(lambda n=number: terminal.written.count(b"ready") == n)  # type: ignore[misc]
            terminal.type(answer)
            if answer == "\x1a":
                terminal.type("\x03")
        terminal.read_until(lambda: process.poll() is not None)
        assert process.wait() == 0, terminal.written
    # The second may begin before it is shown what the first has said.
    said = re.findall(r"got \w|read \w|signal \d+", terminal.written.decode())
    assert said == ["got a", "got b", "read c", f"signal {int(signal.SIGINT)}", "got e"]


def test_echo_is_back_when_a_program_is_killed_that_has_turned_it_off(tmp_path: Path) -> None:
    source = """
        import os, termios
        from dftracer.utils import Runtime, as_completed
        with Runtime() as runtime:
            modes = termios.tcgetattr(0)
            os.mkfifo("begun")
            handle = runtime.run_process("stty -echo raw; echo >begun; sleep 600", tty=True)
            with open("begun") as begun:
                begun.read()
            assert termios.tcgetattr(0) != modes
            handle.cancel()
            next(as_completed([handle], 30))
            print("same" if termios.tcgetattr(0) == modes else "changed")
    """
    with Terminal(echo=True) as terminal, in_terminal(terminal, tmp_path, source) as process:
        terminal.read_until(lambda: process.poll() is not None)
    assert b"same" in terminal.written


def test_program_fails_when_it_is_to_have_a_terminal_and_there_is_none(run_script: Script) -> None:
    source = """
        import asyncio
        from dftracer.asyncflow import WorkflowEngine
        from dftracer.utils import Runtime
        with Runtime() as runtime:
            try:
                runtime.run_process(["true"], tty=True).get(30)
            except OSError as error:
                print(error.filename)

        async def main():
            async with await WorkflowEngine.create() as flow:
                task = flow.executable_task(lambda: "true")
                try:
                    await task(task_description={"tty": True})
                except OSError as error:
                    print(error)

        asyncio.run(main())
    """
    told = run_script(source).splitlines()
    assert told[0] == "/dev/tty"
    assert "cannot start the program" in told[1]
    assert "/dev/tty" in told[1]


SHOW_SESSION = """
    import sys
    from dftracer.utils import Runtime
    show = "import os; print(os.getpid() == os.getpgid(0), os.getpid() == os.getsid(0))"
    with Runtime() as runtime:
        print("leads", runtime.run_process([sys.executable, "-c", show]).get(30).stdout.decode())
"""


def test_program_leads_a_group_of_its_own_when_there_is_no_terminal(run_script: Script) -> None:
    assert run_script(SHOW_SESSION).split() == ["leads", "True", "False"]


def test_program_leads_a_session_of_its_own_when_there_is_a_terminal(tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-c", textwrap.dedent(SHOW_SESSION)])
    shown = b""
    with contextlib.suppress(OSError):  # which is the end of it
        while chunk := os.read(terminal, 1000):
            shown += chunk
    os.waitpid(pid, 0)
    os.close(terminal)
    assert shown.split() == [b"leads", b"True", b"True"]


# --- its directory and its path -----------------------------------------------------------------


def test_program_is_found_as_subprocess_finds_it_when_its_environment_has_a_path(
    runtime: Runtime, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/tool").write_text("not executable")
    (tmp_path / "b/tool").write_text("#!/bin/sh\necho found\n")
    (tmp_path / "b/tool").chmod(0o755)
    env = {"PATH": f"{tmp_path}/none:{tmp_path}/a:b"}
    result = runtime.run_process(["tool"], cwd=tmp_path, env=env).get(GUARD_S)
    assert result.stdout == b"found\n"
    with pytest.raises(PermissionError, match="tool"):
        runtime.run_process(["tool"], env={"PATH": f"{tmp_path}/a"}).get(GUARD_S)
    with pytest.raises(FileNotFoundError, match="tool"):
        runtime.run_process(["tool"], env={"PATH": f"{tmp_path}/none"}).get(GUARD_S)


def test_program_gets_the_environment_of_its_call(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Line(tmp_path) as line:
        monkeypatch.setenv("DFT_TEST_VALUE", "one")
        first = runtime.run_process(f"cat <{line.path}; echo $DFT_TEST_VALUE")
        monkeypatch.setenv("DFT_TEST_VALUE", "two")
        second = runtime.run_process("echo $DFT_TEST_VALUE")
        assert second.get(GUARD_S).stdout == b"two\n"
        first.cancel()
    handles = []
    for value in map(str, range(20)):
        monkeypatch.setenv("DFT_TEST_VALUE", value)
        handles.append(runtime.run_process("echo $DFT_TEST_VALUE"))
    assert [int(handle.get(GUARD_S).stdout) for handle in handles] == list(range(20))


def test_own_descriptors_do_not_get_in_the_way_when_standard_ones_are_closed(
    run_script: Script,
) -> None:
    source = """
        import os, sys
        from dftracer.utils import Runtime
        out = os.dup(1)
        for descriptor in range(3):
            os.close(descriptor)
        with Runtime(io_threads=1) as runtime:
            command = "cat; echo err >&2"
            results = [runtime.run_process(command, stdin=b"in").get(30) for _ in range(5)]
        told = {(result.exit_code, result.stdout, result.stderr) for result in results}
        os.write(out, repr(told).encode())
        os._exit(0)
    """
    assert run_script(source) == "{(0, b'in', b'err\\n')}"


def test_threads_that_start_programs_are_few_when_there_are_many(runtime: Runtime) -> None:
    handles = [runtime.run_process(["true"]) for _ in range(50)]
    for handle in handles:
        handle.get(GUARD_S)
    names = {Path(path).read_text().strip() for path in map(str, _comms())}
    assert len({name for name in names if name.startswith("dft-starter")}) <= 2


def _comms() -> Iterator[Path]:
    for task in Path("/proc/self/task").iterdir():
        yield task / "comm"


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is not kept elsewhere")
def test_only_its_task_fails_when_there_is_no_memory_for_the_output_of_a_program(
    run_script: Script,
) -> None:
    source = """
        import resource
        from dftracer.utils import Runtime

        runtime = Runtime(threads=1, io_threads=1, python_threads=1)
        assert runtime.run_process(["echo", "before"]).get(60).stdout == b"before\\n"
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
        limit = pages * resource.getpagesize() + (64 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        for stream in ("", " >&2"):
            much = runtime.run_process(f"head -c 200000000 /dev/zero{stream}; sleep 1000")
            try:
                much.get(60)
            except MemoryError as error:
                print("MemoryError", "bytes" in str(error))
        print(runtime.run_process(["echo", "after"]).get(60).stdout)
    """
    failed = "MemoryError True\n"
    assert run_script(source) == f"{failed}{failed}b'after\\n'\n"
