"""Signals: what ends, what an awaiting program sees, and who has the handlers before and after.

Signals are real ones. Programs that are to die of them are other processes.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_support import GUARD_S, Gate, reached

from dftracer.asyncflow import EngineShutdownError, NoopExecutionBackend, WorkflowEngine
from dftracer.asyncflow.engine.signals import watcher

Script = Callable[..., str]
StartScript = Callable[..., "subprocess.Popen[str]"]
NewLoop = Callable[[], asyncio.AbstractEventLoop]

SIGNALS = [signal.SIGHUP, signal.SIGTERM, signal.SIGINT]
each_signal = pytest.mark.parametrize("signum", SIGNALS, ids=lambda signum: signum.name)

PRELUDE = """
import asyncio
import os
import signal
import sys
import threading
import time
from dftracer.asyncflow import WorkflowEngine

def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")  # at once: other threads write too
    sys.stdout.flush()

def run(main):
    if "uvloop" in sys.argv:
        import uvloop
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(main)

def end_of(future):
    return "cancelled" if future.cancelled() else future.exception() or future.result()
"""


def program(source: str) -> str:
    return PRELUDE + textwrap.dedent(source)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Give each test the usual handlers, and see that it leaves these."""
    usual = [signal.SIG_DFL, signal.SIG_DFL, signal.default_int_handler]
    before = [signal.signal(*pair) for pair in zip(SIGNALS, usual, strict=True)]
    yield
    after = [signal.signal(*pair) for pair in zip(SIGNALS, before, strict=True)]
    assert after == usual
    assert signal.set_wakeup_fd(-1) == -1


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[StartScript]:
    """Start Python source as a program of its own and leave it to the test to talk with it."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str, *arguments: str) -> "subprocess.Popen[str]":
        script = tmp_path / "script.py"
        script.write_text(source, encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def next_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()
    return line.strip()


def code_of(signum: signal.Signals) -> int:
    """Return what a program ends with that a signal stops: a shell shows 128 and its number."""
    return -signum if signum == signal.SIGINT else 128 + signum


def is_gone(pid: int) -> bool:
    """Wait until a process has ended."""
    deadline = time.monotonic() + GUARD_S
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        os.sched_yield()
    return False


async def idle_engine() -> WorkflowEngine:
    return await WorkflowEngine.create(NoopExecutionBackend())


# --- what ends ---------------------------------------------------------------------------------


@each_signal
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_everything_is_cancelled_and_killed_when_a_signal_arrives(
    start_script: StartScript, signum: signal.Signals, loop: str
) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    source = """
        async def main():
            flow = await WorkflowEngine.create()
            began = threading.Event()

            @flow.executable_task
            def child():
                return "echo $$ > pid.tmp; mv pid.tmp pid; sleep 3600 & wait"

            @flow.function_task
            async def suspended():
                began.set()
                try:
                    await asyncio.sleep(3600)
                finally:
                    say("told to stop")

            @flow.function_task
            def never(value):
                say("ran")

            @flow.block
            async def block():
                await suspended()

            futures = [child(), block()]
            futures.append(never(futures[0]))
            await asyncio.to_thread(began.wait)
            while not os.path.exists("pid"):
                await asyncio.sleep(0.001)
            say(open("pid").read().strip())
            try:
                await futures[0]
            except asyncio.CancelledError:
                say("futures are cancelled")
            await flow.run()
            await flow.shutdown()
            say(*(end_of(future) for future in futures))
            say(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)

        run(main())
        """
    process = start_script(program(source), loop)
    child = int(next_line(process))
    process.send_signal(signum)
    out, err = process.communicate(timeout=GUARD_S)
    assert err == ""
    first, second, *rest = out.splitlines()
    assert {first, second} == {"futures are cancelled", "told to stop"}
    assert rest == ["cancelled cancelled cancelled", "True"]
    assert process.returncode == 0
    assert is_gone(child)


@each_signal
def test_program_ends_with_the_code_of_the_signal_when_it_awaits_a_task_and_catches_nothing(
    start_script: StartScript, signum: signal.Signals
) -> None:
    source = """
        async def main():
            async with await WorkflowEngine.create() as flow:
                @flow.function_task
                async def endless():
                    say("begun")
                    await asyncio.sleep(3600)
                await endless()

        run(main())
        """
    process = start_script(program(source))
    assert next_line(process) == "begun"
    process.send_signal(signum)
    _, err = process.communicate(timeout=GUARD_S)
    assert process.returncode == code_of(signum)
    assert signum.name in err.splitlines()[-1]


@each_signal
async def test_all_engines_of_the_loop_end_when_a_signal_arrives(
    signum: signal.Signals, new_loop: NewLoop
) -> None:
    engines = [await idle_engine() for _ in range(3)]
    signal.raise_signal(signum)
    for engine in engines:
        await engine.run()
        await engine.shutdown()
        with pytest.raises(EngineShutdownError):
            engine.block(_nothing)()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def _nothing() -> None:
    pass


async def test_other_work_goes_on_when_engines_are_shut_down_by_a_signal() -> None:
    flow = await idle_engine()
    other = asyncio.create_task(asyncio.sleep(0.01, "done"))
    signal.raise_signal(signal.SIGTERM)
    await flow.run()
    await flow.shutdown()
    assert await other == "done"


async def test_loop_wakes_when_another_thread_gets_the_signal(
    start_script: StartScript, new_loop: NewLoop
) -> None:
    # As the kernel may choose. The sleep of the main thread is not interrupted by it.
    flow = await idle_engine()
    send = f"""
        import os, signal
        while open("/proc/{os.getpid()}/stat").read().rpartition(")")[2].split()[0] != "S":
            os.sched_yield()
        os.kill({os.getpid()}, signal.SIGTERM)
        """
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        start_script(textwrap.dedent(send))
        await flow.run()
        await flow.shutdown()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        done.set()
        other.join()


async def test_block_is_waited_for_when_the_signal_arrives_in_its_body() -> None:
    cleaned = []
    flow = await WorkflowEngine.create()

    @flow.block
    async def block() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(3600)
        finally:
            for _ in range(20):
                await asyncio.sleep(0)
            cleaned.append(signal.getsignal(signal.SIGTERM))

    future = block()
    await flow.run()
    await flow.shutdown()
    assert future.cancelled()
    assert len(cleaned) == 1, "the shutdown had not waited for the body"
    assert cleaned[0] is not signal.SIG_DFL


class Broken(NoopExecutionBackend):
    async def shutdown(self) -> None:
        raise OSError("broken")


async def test_failure_is_logged_when_an_engine_cannot_be_shut_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(
        watcher.log, "error", lambda *_, exc_info=None: exc_info and logged.set_result(exc_info)
    )
    flow = await WorkflowEngine.create(Broken())
    signal.raise_signal(signal.SIGTERM)
    await flow.run()
    assert str(await logged) == "broken"


async def test_log_names_signal_and_engines_when_a_signal_arrives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "dftracer.asyncflow")
    flow = await WorkflowEngine.create(NoopExecutionBackend(), uid="campaign")
    signal.raise_signal(signal.SIGHUP)
    await flow.run()
    await flow.shutdown()
    assert "SIGHUP: shutting down campaign" in caplog.messages


# --- the second signal -------------------------------------------------------------------------

STUCK = """
    async def main():
        flow = await WorkflowEngine.create()

        @flow.function_task
        def stuck():
            try:
                say("begun")
                time.sleep(3600)
            except asyncio.CancelledError:
                time.sleep(3600)

        future = stuck()
        try:
            await future
        except asyncio.CancelledError:
            say("cancelled")
        await flow.shutdown()

    run(main())
    """


@each_signal
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_stuck_program_ends_when_the_signal_comes_again(
    start_script: StartScript, signum: signal.Signals, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    monkeypatch.setenv("DFTRACER_EXIT_PATIENCE_S", "0.1")
    process = start_script(program(STUCK), loop)
    assert next_line(process) == "begun"
    process.send_signal(signum)
    assert next_line(process) == "cancelled"
    sent = 0
    while process.poll() is None and sent < 100:
        process.send_signal(signum)
        sent += 1
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    _, err = process.communicate(timeout=GUARD_S)
    if signum == signal.SIGINT:  # as `asyncio.run` has it
        assert "KeyboardInterrupt" in err
    else:
        assert (process.returncode, err) == (-signum, "")


async def test_shutdown_is_graceful_when_the_signal_is_sent_twice_at_once() -> None:
    # timeout(1) sends a signal to its child and then to the group that the child is in.
    flow = await WorkflowEngine.create()
    began = threading.Event()
    with Gate() as gate:
        flow.function_task(gate.hold_firmly)(began)
        await reached(began)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # or this process would be gone
        await flow.run()
        signal.raise_signal(signal.SIGTERM)
    await flow.shutdown()


async def test_previous_handler_gets_the_second_signal_when_a_shutdown_is_under_way() -> None:
    got: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, _frame: got.append(signum))
    flow = await WorkflowEngine.create()
    began = threading.Event()
    with Gate() as gate:
        flow.function_task(gate.hold_firmly)(began)
        await reached(began)
        signal.raise_signal(signal.SIGINT)
        await flow.run()
        signal.raise_signal(signal.SIGTERM)
        assert got == [signal.SIGTERM]
    await flow.shutdown()
    signal.raise_signal(signal.SIGTERM)
    assert got == [signal.SIGTERM] * 2
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@each_signal
def test_program_stops_after_the_shutdown_when_the_signal_arrives_in_it(
    start_script: StartScript, signum: signal.Signals
) -> None:
    source = """
        async def main():
            flow = await WorkflowEngine.create()
            began, go_on = threading.Event(), threading.Event()

            @flow.function_task
            def stuck():
                try:
                    began.set()
                    go_on.wait()
                finally:
                    go_on.wait()

            stuck()
            await asyncio.to_thread(began.wait)
            threading.Thread(target=lambda: (sys.stdin.read(1), go_on.set())).start()
            ending = asyncio.create_task(flow.shutdown())
            await flow.run()
            signal.signal(signal.SIGUSR1, lambda *_: say("got it"))
            say("shutting down")
            await ending
            say("shut down")
            await asyncio.sleep(3600)

        run(main())
        """
    process = start_script(program(source))
    assert next_line(process) == "shutting down"
    process.send_signal(signum)
    process.send_signal(signal.SIGUSR1)
    assert next_line(process) == "got it"
    out, err = process.communicate("x", timeout=GUARD_S)
    assert out == "shut down\n"
    assert process.returncode == code_of(signum)
    assert signum.name in err.splitlines()[-1]


# --- the program stops -------------------------------------------------------------------------

KINDS_OF_LOOP = ["asyncio", "uvloop"]


def need(loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")


@each_signal
@pytest.mark.parametrize("loop", KINDS_OF_LOOP)
def test_program_stops_when_it_awaits_something_that_is_no_task(
    start_script: StartScript, signum: signal.Signals, loop: str
) -> None:
    need(loop)
    source = """
        async def main():
            async with await WorkflowEngine.create() as flow:
                @flow.executable_task
                def child():
                    return "echo $$ > pid.tmp; mv pid.tmp pid; sleep 3600 & wait"

                child()
                while not os.path.exists("pid"):
                    await asyncio.sleep(0.001)
                say(open("pid").read().strip())
                try:
                    await asyncio.Event().wait()
                finally:
                    say("cleaned up")
                say("goes on")

        run(main())
        """
    process = start_script(program(source), loop)
    child = int(next_line(process))
    process.send_signal(signum)
    out, err = process.communicate(timeout=GUARD_S)
    assert out == "cleaned up\n"
    assert process.returncode == code_of(signum)
    assert signum.name in err.splitlines()[-1]
    assert is_gone(child)


CATCHES = {
    "cancellation": """
        async def main():
            flow = await WorkflowEngine.create()
            say("begun")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as error:
                say(error)
                return 7

        code = asyncio.run(main())
        sys.exit(code)
        """,
    "exits": """
        async def main():
            async with await WorkflowEngine.create():
                say("begun")
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError as error:
                    say(error)
                    sys.exit(7)

        asyncio.run(main())
        """,
    "outside": """
        async def main():
            async with await WorkflowEngine.create():
                say("begun")
                await asyncio.Event().wait()

        try:
            asyncio.run(main())
        except (KeyboardInterrupt, SystemExit) as error:
            say(type(error).__name__)
            sys.exit(7)
        """,
    "handler": """
        def handle(signum, frame):
            say(signal.Signals(signum).name)
            leave.set()

        for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, handle)

        async def main():
            global leave
            leave = asyncio.Event()
            async with await WorkflowEngine.create():
                say("begun")
                await leave.wait()
            return 7

        sys.exit(asyncio.run(main()))
        """,
    "loop-handler": """
        async def main():
            leave = asyncio.Event()
            for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(signum, leave.set)
            async with await WorkflowEngine.create():
                say("begun")
                await leave.wait()
            say("told")
            return 7

        sys.exit(asyncio.run(main()))
        """,
    "run": """
        async def main():
            flow = await WorkflowEngine.create()
            say("begun")
            await flow.run()
            say("told")
            return 7

        sys.exit(asyncio.run(main()))
        """,
}


@each_signal
@pytest.mark.parametrize("way", CATCHES)
def test_program_keeps_its_exit_code_when_it_catches_the_signal(
    start_script: StartScript, signum: signal.Signals, way: str
) -> None:
    process = start_script(program(CATCHES[way]))
    assert next_line(process) == "begun"
    process.send_signal(signum)
    out, _ = process.communicate(timeout=GUARD_S)
    assert process.returncode == 7
    usual = "KeyboardInterrupt" if signum == signal.SIGINT else "SystemExit"
    assert out.strip() in (f"{signum.name} stops the program", signum.name, usual, "told")


STUBBORN = {
    "awaits": "await asyncio.sleep(3600)",
    "blocks": "time.sleep(3600)",
    "swallows": "await swallow()",
}


@each_signal
@pytest.mark.parametrize("how", STUBBORN)
@pytest.mark.parametrize("loop", KINDS_OF_LOOP)
def test_program_ends_at_once_when_it_has_caught_the_first_signal_and_the_second_comes(
    start_script: StartScript, signum: signal.Signals, how: str, loop: str
) -> None:
    need(loop)
    source = f"""
        async def swallow():
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    say("swallowed")

        async def main():
            flow = await WorkflowEngine.create()
            say("begun")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                say("caught")
                {STUBBORN[how]}

        run(main())
        """
    process = start_script(program(source), loop)
    assert next_line(process) == "begun"
    process.send_signal(signum)
    assert next_line(process) == "caught"
    time.sleep(watcher._ECHO_S)  # what comes sooner is the same signal
    process.send_signal(signum)
    if how == "swallows" and signum == signal.SIGINT:
        # The run of the loop has ended; asyncio cancels what is left and waits for it.
        assert next_line(process) == "swallowed"
        process.send_signal(signum)
    process.communicate(timeout=GUARD_S)
    assert process.returncode == -signum


@each_signal
@pytest.mark.parametrize("where", ["main", "other"])
@pytest.mark.parametrize("loop", KINDS_OF_LOOP)
def test_one_signal_stops_the_program_when_the_loop_is_blocked(
    start_script: StartScript, signum: signal.Signals, where: str, loop: str
) -> None:
    need(loop)
    source = f"""
        async def block():
            say("blocked")
            time.sleep(3600)
            say("goes on")

        async def main():
            async with await WorkflowEngine.create() as flow:
                @flow.executable_task
                def child():
                    return "echo $$ > pid.tmp; mv pid.tmp pid; sleep 3600 & wait"

                child()
                while not os.path.exists("pid"):
                    await asyncio.sleep(0.001)
                say(open("pid").read().strip())
                if {where == "main"}:
                    await block()
                other = asyncio.create_task(block())
                await asyncio.Event().wait()

        run(main())
        """
    process = start_script(program(source), loop)
    child = int(next_line(process))
    assert next_line(process) == "blocked"
    process.send_signal(signum)
    out, err = process.communicate(timeout=GUARD_S)
    assert out == ""
    assert process.returncode == code_of(signum)
    assert signum.name in err
    assert is_gone(child)


@each_signal
@pytest.mark.parametrize("loop", KINDS_OF_LOOP)
def test_program_stops_when_its_loop_runs_for_ever(
    start_script: StartScript, signum: signal.Signals, loop: str
) -> None:
    need(loop)
    source = """
        async def main():
            flow = await WorkflowEngine.create()

            @flow.function_task
            async def endless():
                say("begun")
                await asyncio.sleep(3600)

            endless()

        if "uvloop" in sys.argv:
            import uvloop
            loop = uvloop.new_event_loop()
        else:
            loop = asyncio.new_event_loop()
        serving = loop.create_task(main())
        try:
            loop.run_forever()
        finally:
            say("cleaned up")
        """
    process = start_script(program(source), loop)
    assert next_line(process) == "begun"
    process.send_signal(signum)
    out, err = process.communicate(timeout=GUARD_S)
    assert out == "cleaned up\n"
    assert process.returncode == code_of(signum)
    assert signum.name in err


# --- who has the handlers ----------------------------------------------------------------------


def _own(_signum: int, _frame: Any) -> None:
    pass


@pytest.mark.parametrize(
    "handler", [signal.SIG_DFL, signal.default_int_handler, _own], ids=["default", "int", "own"]
)
@each_signal
async def test_handlers_come_back_when_the_last_engine_is_shut_down(
    signum: signal.Signals, handler: Any, new_loop: NewLoop
) -> None:
    before = signal.signal(signum, handler)
    first, second = await idle_engine(), await idle_engine()
    watching = signal.getsignal(signum)
    assert watching is not handler
    await first.shutdown()
    assert signal.getsignal(signum) is watching
    await second.shutdown()
    assert signal.getsignal(signum) is handler
    await second.shutdown()

    third = await idle_engine()
    assert signal.getsignal(signum) is not handler
    await third.shutdown()
    assert signal.signal(signum, before) is handler


@each_signal
async def test_signal_stays_ignored_when_it_was_before(signum: signal.Signals) -> None:
    before = signal.signal(signum, signal.SIG_IGN)
    async with await idle_engine() as flow:
        assert signal.getsignal(signum) is signal.SIG_IGN
        signal.raise_signal(signum)
        await asyncio.sleep(0)
        assert not flow.is_closed
    assert signal.signal(signum, before) is signal.SIG_IGN


def test_handler_of_asyncio_run_comes_back_when_the_engine_is_shut_down(
    run_script: Script,
) -> None:
    source = """
        async def main():
            before = signal.getsignal(signal.SIGINT)
            async with await WorkflowEngine.create():
                assert signal.getsignal(signal.SIGINT) is not before
            assert signal.getsignal(signal.SIGINT) is before

        asyncio.run(main())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        """
    run_script(program(source))


async def test_handler_of_the_loop_is_called_too_and_stays_when_it_was_there_before(
    new_loop: NewLoop,
) -> None:
    loop = asyncio.get_running_loop()
    called = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, called.set)
    try:
        flow = await idle_engine()
        signal.raise_signal(signal.SIGTERM)
        await called.wait()
        await flow.run()
        await flow.shutdown()

        called.clear()
        signal.raise_signal(signal.SIGTERM)
        await called.wait()
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def test_handler_of_the_loop_takes_over_when_it_comes_later(new_loop: NewLoop) -> None:
    loop = asyncio.get_running_loop()
    called = asyncio.Event()
    async with await idle_engine() as flow:
        loop.add_signal_handler(signal.SIGTERM, called.set)
        signal.raise_signal(signal.SIGTERM)
        await called.wait()
        assert not flow.is_closed
    called.clear()
    signal.raise_signal(signal.SIGTERM)
    await called.wait()
    loop.remove_signal_handler(signal.SIGTERM)


async def test_handler_that_came_later_stays_when_the_engine_is_shut_down() -> None:
    async with await idle_engine():
        signal.signal(signal.SIGTERM, _own)
    assert signal.signal(signal.SIGTERM, signal.SIG_DFL) is _own


async def test_handlers_come_back_when_the_shutdown_fails() -> None:
    flow = await WorkflowEngine.create(Broken())
    with pytest.raises(OSError, match="broken"):
        await flow.shutdown()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# --- loops that are not as usual ---------------------------------------------------------------


def test_nothing_is_installed_when_the_loop_is_not_in_the_main_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "dftracer.asyncflow")
    seen = []

    async def main() -> None:
        async with await WorkflowEngine.create(NoopExecutionBackend(), uid="elsewhere"):
            seen.extend(map(signal.getsignal, SIGNALS))

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL, signal.SIG_DFL, signal.default_int_handler]
    assert [message for message in caplog.messages if "elsewhere" in message] == [
        "engine 'elsewhere' is not in the main thread: signals do not reach it"
    ]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@each_signal
def test_signal_does_what_it_did_before_when_the_loop_was_closed_without_shutdown(
    start_script: StartScript, signum: signal.Signals, loop: str
) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    source = """
        kept = []

        async def main():
            kept.append(await WorkflowEngine.create())

        run(main())
        say("closed")
        time.sleep(3600)
        """
    process = start_script(program(source), loop)
    assert next_line(process) == "closed"
    process.send_signal(signum)
    _, err = process.communicate(timeout=GUARD_S)
    if signum == signal.SIGINT:
        assert err.splitlines()[-1] == "KeyboardInterrupt"
    else:
        assert (process.returncode, err) == (-signum, "")


def test_next_loop_has_usual_handlers_when_the_last_was_closed_without_shutdown(
    run_script: Script,
) -> None:
    source = """
        from dftracer.asyncflow import NoopExecutionBackend

        async def main(shut_down):
            flow = await WorkflowEngine.create(NoopExecutionBackend())
            signal.raise_signal(signal.SIGINT)
            await flow.run()
            if shut_down:
                await flow.shutdown()

        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            asyncio.run(main(False))
        asyncio.run(main(True))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert len(os.listdir("/proc/self/fd")) == descriptors
        """
    run_script(program(source))


def test_previous_handler_gets_the_signal_when_the_loop_stands_still() -> None:
    loop = asyncio.new_event_loop()
    flow = loop.run_until_complete(idle_engine())
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    loop.run_until_complete(flow.shutdown())
    loop.close()


def test_each_loop_gets_its_signals_when_two_take_turns() -> None:
    loops = [asyncio.new_event_loop() for _ in range(2)]
    engines = [loop.run_until_complete(idle_engine()) for loop in loops]

    async def end(engine: WorkflowEngine) -> None:
        signal.raise_signal(signal.SIGTERM)
        await engine.run()
        await engine.shutdown()

    for engine, loop in zip(engines, loops, strict=True):
        assert not engine.is_closed
        loop.run_until_complete(end(engine))
    for loop in loops:
        loop.close()


def fork_a_sleeper() -> int:
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.write(there, b"x")
            time.sleep(GUARD_S)
        os._exit(3)
    assert os.read(here, 1) == b"x"
    os.close(here)
    os.close(there)
    return pid


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking beside threads
async def test_child_of_a_fork_dies_of_the_signal_when_its_parent_has_an_engine() -> None:
    async with await idle_engine() as flow:
        pid = fork_a_sleeper()
        os.kill(pid, signal.SIGTERM)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        assert not flow.is_closed


def test_engines_of_parent_and_child_get_their_own_signals_when_an_engine_forks(
    run_script: Script,
) -> None:
    source = """
        from dftracer.asyncflow import NoopExecutionBackend

        async def main(children):
            flow = await WorkflowEngine.create(NoopExecutionBackend())
            if children:
                pid = os.fork()
                if pid == 0:
                    asyncio._set_running_loop(None)
                    asyncio.run(main(0))
                    os._exit(7)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
                assert not flow.is_closed
            send_from_outside()
            await flow.run()
            await flow.shutdown()

        def send_from_outside():
            # After this has gone to sleep, and to a thread that is not the main one.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=allow_signals, daemon=True).start()
            me = os.getpid()
            if os.fork() == 0:
                while True:
                    with open(f"/proc/{me}/stat") as file:
                        if file.read().rpartition(")")[2].split()[0] == "S":
                            break
                os.kill(me, signal.SIGTERM)
                os._exit(0)

        def allow_signals():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            time.sleep(3600)

        asyncio.run(main(1))
        """
    run_script(program(source), options=("-W", "ignore::DeprecationWarning"))
