"""What the tests share: every async test runs in an event loop of its own."""

import asyncio
import contextlib
import faulthandler
import gc
import inspect
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest
from backend_support import ON_REQUEST_KINDS, Door, Lent, make_pool
from gate import Gate
from process_support import Line

HANG_GUARD_S = 100 if ON_REQUEST_KINDS else 60
"""A test that takes longer has lost something it waits for. Less than the timeout of pytest, which
ends the whole run."""


RUN_GUARD_S = 30 * 60
"""A run of all tests that takes longer has lost a process of its own."""


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Have each run say what it has skipped, and end, whatever becomes of its processes."""
    config.pluginmanager.register(Gate(config.pluginmanager.get_plugin("terminalreporter")))
    if config.pluginmanager.has_plugin("dsession"):  # no test runs in this process
        faulthandler.dump_traceback_later(RUN_GUARD_S, exit=True)


NewLoop = Callable[[], asyncio.AbstractEventLoop]

# A program started in a shell's background ignores SIGINT, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=["asyncio", "uvloop"])
def new_loop(request: pytest.FixtureRequest) -> NewLoop:
    """Run the async tests that use this once on each kind of event loop."""
    if request.param == "asyncio":
        return asyncio.new_event_loop
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")
    factory: NewLoop = uvloop.new_event_loop
    return factory


def run_in_loop(body: Coroutine[Any, Any, None], new_loop: NewLoop) -> None:
    """Run ``body`` as ``asyncio.run`` does. What its loop complains about is an error too."""
    complaints: list[dict[str, Any]] = []
    loop = new_loop()
    loop.set_debug(False)
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        loop.run_until_complete(asyncio.wait_for(body, HANG_GUARD_S))
        gc.collect(1)  # a future whose error nobody has seen complains when it dies
    finally:
        for complaint in complaints:
            print(complaint)
        if tasks := asyncio.all_tasks(loop):
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    assert complaints == []


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Call the test if it is async; leave the others to pytest."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    values: dict[str, Any] = pyfuncitem.funcargs
    arguments = {name: values[name] for name in pyfuncitem._fixtureinfo.argnames}
    new_loop = values.get("new_loop", asyncio.new_event_loop)
    run_in_loop(pyfuncitem.obj(**arguments), new_loop)
    return True


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., str]:
    """Run Python source as a program of its own, whose hang or crash does not touch the tests.

    It must end by itself with ``exit_code``, having written ``stderr`` to its standard error
    (``None``: whatever it likes). What it has printed is returned.
    """

    def run(
        source: str, *, options: tuple[str, ...] = (), exit_code: int = 0, stderr: str | None = ""
    ) -> str:
        script = tmp_path / "script.py"
        script.write_text(textwrap.dedent(source), encoding="utf-8")
        command = [sys.executable, "-W", "error", *options, str(script)]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        ) as process:
            try:
                out, err = process.communicate(timeout=HANG_GUARD_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                pytest.fail(f"the program hangs; it has written:\n{out}{err}")
        assert (process.returncode, err) == (exit_code, err if stderr is None else stderr)
        return out

    return run


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    """Return a door whose bodies all go on after the test, whatever has failed in it."""
    door = Door(tmp_path)
    yield door
    door.close()


@pytest.fixture(scope="session")
def lent_pool() -> Iterator[Callable[[str], Executor]]:
    """Lend pools of one worker that all tests share, of the kind that is asked for.

    A pool of processes takes a second to start. A test that does harm to it makes its own.
    """
    pools: dict[str, Executor] = {}
    with contextlib.ExitStack() as stack:

        def lend(kind: str) -> Executor:
            if kind not in pools:
                pools[kind] = make_pool(kind)
                stack.callback(pools[kind].shutdown)
            return Lent(pools[kind])

        yield lend


@pytest.fixture(scope="module")
def dask_client() -> Iterator[Any]:
    """A client of a Dask cluster: workers 0 and 1 run one task at a time, each has one token."""
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", resources={"token": 1}
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    """A way for bodies and programs to send lines to the test."""
    with Line(tmp_path) as line:
        yield line


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Return a browser; tests that need it are skipped where none can be had."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no chromium here")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
