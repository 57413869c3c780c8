"""The end of the interpreter while runtimes have work: no hang, no crash, no noise, no loss."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from trace_support import names_of

Script = Callable[..., str]

ROUNDS = 3
"""A crash at exit is a matter of microseconds: each end is tried more than once."""

IMPATIENT = """
import os
os.environ["DFTRACER_EXIT_PATIENCE_S"] = "0.05"
import asyncio, logging, sys, threading, time
from dftracer.utils import Runtime, current_task
started = threading.Event()
"""


@pytest.mark.parametrize(
    "body",
    [
        "def body():\n    started.set()\n    while True: pass",
        "def body():\n    started.set()\n    while True:\n        try: time.sleep(0.001)\n"
        "        except BaseException: pass",
        "def body():\n    started.set()\n    time.sleep(600)",
        "async def body():\n    started.set()\n    while True: await asyncio.sleep(0.001)",
        "async def body():\n    started.set()\n    await asyncio.Event().wait()",
    ],
    ids="computes ignores-it sleeps-natively loops-async waits-async".split(),
)
def test_program_ends_in_silence_when_a_body_never_does(run_script: Script, body: str) -> None:
    source = f"""{IMPATIENT}
{body}
runtime = Runtime(python_threads=1)
runtime.submit(body)
runtime.submit(print, "queued behind it") if "async" not in {body!r} else None
started.wait()
print("over")
"""
    for _ in range(ROUNDS):
        assert run_script(source) == "over\n"


def test_every_task_runs_when_the_program_just_ends(run_script: Script) -> None:
    source = """
        import asyncio, sys
        from dftracer.utils import Runtime

        def write(number):
            sys.stdout.write(f"{number} ")

        async def write_later(number):
            await asyncio.sleep(0.001)
            write(number)

        runtime = Runtime(python_threads=2)
        for number in range(200):
            runtime.submit(write_later if number % 2 else write, number)
    """
    for _ in range(ROUNDS):
        assert sorted(map(int, run_script(source).split())) == list(range(200))


def test_the_names_of_tasks_that_were_given_up_are_logged_when_logging_is_set_up(
    run_script: Script,
) -> None:
    out = run_script(
        f"""{IMPATIENT}
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(levelname)s %(message)s")
runtime = Runtime(python_threads=1)
runtime.submit(lambda: (started.set(), time.sleep(600)), name="the long one")
runtime.submit(abs, -1, name="the one behind")
started.wait()
"""
    )
    assert out.startswith("WARNING 2 task(s) were given up at interpreter exit")
    assert "the long one" in out
    assert "the one behind" in out


def test_children_are_killed_when_the_program_ends(run_script: Script, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    out = run_script(
        f"""{IMPATIENT}
runtime = Runtime()
os.mkfifo({str(fifo)!r})
runtime.run_process("echo $$ >{fifo}; sleep 600 & wait")
from pathlib import Path
print(Path({str(fifo)!r}).read_text())
"""
    )
    # Until the last of its process group was reaped by whoever inherited it.
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(int(out), 0)


INTERRUPTED = """
import logging, os, random, signal, subprocess, sys, threading, time
from pathlib import Path
from dftracer.utils import Runtime

logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s")
runtimes = [Runtime(python_threads=2, trace="life.pfw.gz"), Runtime(python_threads=1)]
os.mkfifo("pids")

def start(runtime):
    runtime.run_process("echo $$ >pids; sleep 600 & wait", name="child")
    return Path("pids").read_text().strip()

print(*map(start, runtimes), flush=True)
runtimes[0].submit(abs, -1, name="ended").get()

def exiting():
    "Returns when the interpreter's exit waits for tasks."
    while True:
        try:
            runtimes[0].submit(int).wait()
        except RuntimeError:
            return

def busy():
    while True:
        time.sleep(random.random() / 1000)
"""


def killed_children_of(out: str) -> None:
    """Wait until the last of each process group was reaped by whoever inherited it."""
    for pid in out.splitlines()[0].split():
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.killpg(int(pid), 0)


@pytest.mark.parametrize("handler", ["keyboard-interrupt", "exits", "fails"])
def test_everything_is_cleaned_up_when_a_signal_interrupts_the_exit(
    run_script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handler: str
) -> None:
    monkeypatch.chdir(tmp_path)
    how = {
        "keyboard-interrupt": "signal.default_int_handler",
        "exits": "lambda *_: sys.exit(3)",
        "fails": "lambda *_: 1 / 0",
    }[handler]
    source = f"""{INTERRUPTED}
signal.signal(signal.SIGINT, {how})

def interrupt():
    exiting()
    os.kill(os.getpid(), signal.SIGINT)
    busy()

runtimes[0].submit(interrupt, name="interrupts")
runtimes[1].submit(busy, name="busy")
"""
    for _ in range(ROUNDS):
        (tmp_path / "pids").unlink(missing_ok=True)
        (tmp_path / "life.pfw.gz").unlink(missing_ok=True)
        out = run_script(source, stderr=None)
        killed_children_of(out)
        assert "task(s) were given up at interpreter exit, because" in out
        assert "ended the waiting" in out
        assert {"ended", "child", "interrupts"} <= set(names_of(tmp_path / "life.pfw.gz"))


def test_everything_is_cleaned_up_when_the_exit_never_comes_to_the_tasks(
    run_script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As when Ctrl-C ends a wait of the interpreter's that comes before ours.
    monkeypatch.chdir(tmp_path)
    source = f"""{INTERRUPTED}
def interrupt():
    raise KeyboardInterrupt

threading._register_atexit(interrupt)
for runtime in runtimes:
    runtime.submit(busy, name="busy")
"""
    for _ in range(ROUNDS):
        (tmp_path / "pids").unlink(missing_ok=True)
        (tmp_path / "life.pfw.gz").unlink(missing_ok=True)
        killed_children_of(run_script(source, stderr=None))
        assert {"ended", "child", "busy"} <= set(names_of(tmp_path / "life.pfw.gz"))


def test_everything_is_cleaned_up_when_signals_rain_on_the_exit(
    run_script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = f"""
import atexit, signal
# After all of ours, before Python gives signals back their usual, deadly effect. Each of these may
# be interrupted itself.
for _ in range(20):
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
{INTERRUPTED}
rain = "import os, time\\nwhile True: os.kill({{}}, 2); time.sleep(0.002)"

def interrupt():
    exiting()
    null = subprocess.DEVNULL  # or its end of the pipe would be waited for
    command = [sys.executable, "-c", rain.format(os.getpid())]
    subprocess.Popen(command, stdout=null, stderr=null)
    busy()

for runtime in runtimes:
    runtime.submit(interrupt)
"""
    for _ in range(ROUNDS):
        (tmp_path / "pids").unlink(missing_ok=True)
        (tmp_path / "life.pfw.gz").unlink(missing_ok=True)
        killed_children_of(run_script(source, stderr=None))
        assert {"ended", "child"} <= set(names_of(tmp_path / "life.pfw.gz"))


def test_a_coroutine_body_fails_with_its_error_when_nothing_can_be_imported_any_more(
    run_script: Script,
) -> None:
    # It ends after the exit has waited for it, where modules may be gone.
    source = f"""
import atexit, sys
handles = []

def end_body():
    sys.modules["asyncio"] = None
    release.set()
    for handle in handles:
        try:
            handle.get(30)
        except BaseException as error:
            print(type(error).__name__, error)

atexit.register(end_body)  # before ours, so it is called after that
{IMPATIENT}
release = threading.Event()

async def body():
    started.set()
    release.wait()
    raise ValueError("late")

runtime = Runtime(python_threads=1)
handles.append(runtime.submit(body))
started.wait()
"""
    for _ in range(ROUNDS):
        assert run_script(source) == "ValueError late\n"


# --- threads of the user ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry", ["at once", "cancelled", "items", "items by and by", "destructor"]
)
def test_the_program_ends_well_when_a_daemon_is_in_code_that_we_call(
    run_script: Script, entry: str
) -> None:
    """On CPython before 3.14, the thread is ended in the middle of that."""
    calls = {
        "at once": "ended.add_done_callback(work)",
        "cancelled": "held.add_done_callback(work); held.cancel()",
        "items": "list(runtime.map(abs, items()))",
        "items by and by": "list(runtime.map(abs, items(), buffersize=1))",
        "destructor": "runtime.submit(abs, Held()).cancel()",
    }
    source = f"""{IMPATIENT}
import json
runtime = Runtime(python_threads=2)
ended = runtime.submit(int)
ended.wait()
release = threading.Event()

def work(*_):
    started.set()
    while True:
        json.dumps([0] * 100)  # Python code, and again and again it lets others go first
        time.sleep(0.0001)

def items():
    yield 1
    yield 2
    work()

class Held:
    __del__ = work

def daemon():
    {calls[entry]}

held = runtime.submit(release.wait)
while held.state != "running":
    time.sleep(0.001)
threading.Thread(target=daemon, daemon=True).start()
assert started.wait(60)
release.set()
"""
    for _ in range(ROUNDS):
        run_script(source, stderr=None)
