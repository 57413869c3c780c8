"""The end of the interpreter while runtimes have work: no hang, no crash, no noise, no loss."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

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
