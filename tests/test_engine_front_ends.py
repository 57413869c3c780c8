"""SIGINT where it belongs to a front end: it ends a cell, and the next one still has the engine."""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from engine_support import GUARD_S

Script = Callable[..., str]
Cell = Callable[..., list[str]]

BY_HAND = """
import asyncio, os, signal, sys, threading, time
from dftracer.asyncflow import WorkflowEngine

loop = asyncio.new_event_loop()
cell = loop.run_until_complete

async def set_up():
    flow = await WorkflowEngine.create()
    return flow, flow.function_task(lambda n: n * n)

async def use(number):
    return await square(number)

async def compute():
    signal.raise_signal(signal.SIGINT)
    print("goes on")

async def wait():
    loop.call_soon(signal.raise_signal, signal.SIGINT)
    await asyncio.sleep(3600)

async def wait_for_task():
    loop.call_soon(signal.raise_signal, signal.SIGINT)
    await endless()

flow, square = cell(set_up())
endless = flow.function_task(lambda: asyncio.sleep(3600))
"""


def test_cell_stops_and_the_engine_goes_on_when_the_loop_is_run_for_each_cell(
    run_script: Script,
) -> None:
    source = f"""{BY_HAND}
for number, body in enumerate([compute, wait, wait_for_task, compute]):
    try:
        cell(body())
    except KeyboardInterrupt:
        print(cell(use(number)))
cell(flow.shutdown())
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
    # The log says on standard error that the call whose cell was stopped is cancelled at the end.
    assert run_script(source, options=("-W", "ignore"), stderr=None) == "0\n1\n4\n9\n"


def test_cell_stops_when_a_runner_runs_each(run_script: Script) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("asyncio.Runner is new in Python 3.11")
    source = f"""{
        BY_HAND.replace("loop = asyncio.new_event_loop()", "runner = asyncio.Runner()").replace(
            "cell = loop.run_until_complete", "cell, loop = runner.run, runner.get_loop()"
        )
    }
for number, body in enumerate([compute, wait, wait_for_task, compute]):
    try:
        cell(body())
    except KeyboardInterrupt:
        print(cell(use(number)))
cell(flow.shutdown())
runner.close()
"""
    # The log says on standard error that the call whose cell was stopped is cancelled at the end.
    assert run_script(source, options=("-W", "ignore"), stderr=None) == "0\n1\n4\n9\n"


def test_program_stops_when_sigterm_arrives_in_a_cell(run_script: Script) -> None:
    source = f"""{BY_HAND}
async def end():
    loop.call_soon(signal.raise_signal, signal.SIGTERM)
    await asyncio.sleep(3600)

cell(end())
"""
    run_script(source, exit_code=128 + signal.SIGTERM, stderr=None)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_only_the_cell_stops_when_the_signal_comes_after_its_last_step(
    run_script: Script, loop: str
) -> None:
    new_loop = "asyncio.new_event_loop()"
    if loop == "uvloop":
        pytest.importorskip("uvloop")
        new_loop = "__import__('uvloop').new_event_loop()"
    source = f"""{BY_HAND.replace("asyncio.new_event_loop()", new_loop)}
async def end():
    # Then the loop has no main task any more, and still runs.
    asyncio.current_task().add_done_callback(lambda _: signal.raise_signal(signal.SIGINT))

for number in range(3):
    try:
        cell(end())
    except KeyboardInterrupt:
        print(cell(use(number)))
cell(flow.shutdown())
"""
    assert run_script(source) == "0\n1\n4\n"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_each_cell_stops_and_the_next_runs_when_signals_rain(run_script: Script, loop: str) -> None:
    new_loop = "asyncio.new_event_loop()"
    if loop == "uvloop":
        pytest.importorskip("uvloop")
        new_loop = "__import__('uvloop').new_event_loop()"
    source = f"""{BY_HAND.replace("asyncio.new_event_loop()", new_loop)}
import random
begun = threading.Event()
chance = random.Random(1)

@flow.block
async def block(number):
    return await square(await square(number))

async def busy():
    begun.set()
    while True:
        await asyncio.gather(*[square(square(n)) for n in range(20)], *map(block, range(5)))

def interrupt():
    begun.wait()
    time.sleep(chance.random() / 100)
    os.kill(os.getpid(), signal.SIGINT)

async def run_to_its_end(body):
    task = asyncio.current_task()
    try:
        return await body
    finally:
        for other in asyncio.all_tasks() - {{task}}:
            other.cancel()  # the rest of the cells that were interrupted

for number in range(60):
    begun.clear()
    sender = threading.Thread(target=interrupt)
    sender.start()
    try:
        cell(busy())
    except KeyboardInterrupt:
        pass
    sender.join()
    assert cell(run_to_its_end(use(number))) == number**2
cell(flow.shutdown())
print("all")
"""
    assert run_script(source, options=("-W", "ignore"), stderr=None) == "all\n"


# --- a notebook --------------------------------------------------------------------------------


@pytest.fixture
def run_cell(tmp_path: Path) -> Iterator[Cell]:
    """Run a cell in a kernel of IPython's; interrupt it once it has printed what is said."""
    manager = pytest.importorskip("jupyter_client.manager", reason="jupyter_client is not here")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    kernel = manager.KernelManager(kernel_name="python3")
    kernel.start_kernel(cwd=str(tmp_path))  # not where the sources are
    client = kernel.client()
    client.start_channels()

    def run(source: str, *, interrupt_at: str = "") -> list[str]:
        request = client.execute(source)
        shown = []
        while True:
            try:
                message: Any = client.get_iopub_msg(timeout=GUARD_S)
            except Empty:
                pytest.fail(f"the cell hangs; it has shown {shown}")
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            match message["msg_type"]:
                case "stream":
                    shown.append(content["text"].strip())
                    if interrupt_at and interrupt_at in content["text"]:
                        kernel.interrupt_kernel()
                case "error":
                    shown.append(content["ename"])
                case "execute_result":
                    shown.append(content["data"]["text/plain"])
                case "status" if content["execution_state"] == "idle":
                    return shown

    try:
        client.wait_for_ready(timeout=GUARD_S)
        yield run
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)


def test_notebook_goes_on_with_its_engines_when_a_cell_is_interrupted(run_cell: Cell) -> None:
    begin = "print('begun', flush=True)"
    first = """
import asyncio, time
from dftracer.asyncflow import WorkflowEngine

async def engine():
    flow = await WorkflowEngine.create()
    return flow, flow.function_task(lambda n: n * n), flow.function_task(lambda: asyncio.sleep(60))

flow, square, endless = await engine()
await square(2)
"""
    assert run_cell(first) == ["4"]
    interrupted = {
        f"{begin}\nwhile True: time.sleep(0.01)": "KeyboardInterrupt",
        f"{begin}\nawait asyncio.sleep(60)": "CancelledError",
        f"{begin}\nawait endless()": "CancelledError",
        # In the very cell that has made an engine.
        f"flow, square, endless = await engine()\n{begin}\nawait asyncio.sleep(60)": (
            "CancelledError"
        ),
    }
    for number, (cell, error) in enumerate(interrupted.items()):
        assert run_cell(cell, interrupt_at="begun") == ["begun", error]
        assert run_cell(f"await square({number})") == [str(number**2)]
