"""The Dask backend on clusters that lose workers, schedulers, clients and networks."""

import asyncio
import contextlib
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import pytest
from dask.distributed import KilledWorker, LocalCluster
from dask_support import engine, named
from engine_support import identity
from process_support import gone

from dftracer.asyncflow import DependencyFailureError
from dftracer.asyncflow.backends.dask import idle, watching

Start = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture(autouse=True)
def _sweep() -> Iterator[None]:
    """Let go of the sockets that Dask leaves open where the other side is gone for ever."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start programs, which are killed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def start_program(*words: str, until: str) -> tuple[subprocess.Popen[str], str]:
            """Wait for what it writes when it is ready; return that, too."""
            pipe = subprocess.PIPE
            process = subprocess.Popen(
                [*words], stdout=pipe, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
            )
            stack.enter_context(process)
            written = []
            for line in process.stdout:
                written.append(line)
                if found := re.search(until, line):
                    drain = threading.Thread(target=process.stdout.read)
                    drain.start()
                    stack.callback(drain.join)
                    stack.callback(process.kill)
                    return process, found.group(0)
            pytest.fail("".join(written))

        yield start_program


DASK = (sys.executable, "-m", "dask")
SCHEDULER = (*DASK, "scheduler", "--no-dashboard", "--port")
WORKER = (*DASK, "worker", "--nthreads", "1", "--no-dashboard", "--no-nanny")


# --- workers ------------------------------------------------------------------------------------


async def test_no_task_is_lost_when_a_worker_is_killed(tmp_path):
    with (
        dask.config.set(
            {
                "distributed.scheduler.allowed-failures": 1,
                "distributed.deploy.lost-worker-timeout": "1h",
            }
        ),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
    ):

        def die(number: int, marker: Path | None = None) -> int:
            if marker is None or not marker.exists():
                if marker is not None:
                    marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return number

        async with engine(cluster) as flow:
            before = flow.function_task(identity)("kept on a worker")
            last = flow.function_task(identity)(before)
            await last
            tasks = [flow.function_task(identity)(number) for number in range(100)]
            tasks.insert(50, flow.function_task(die)(100, tmp_path / "once"))
            assert sorted(await asyncio.gather(*tasks)) == list(range(101))
            assert await before == "kept on a worker"

            with pytest.raises(KilledWorker, match=r"'die-.*-task\.000104' on 2 .*workers"):
                await flow.function_task(die)(0)
            assert await flow.function_task(identity)(1) == 1


async def test_worker_is_kept_when_it_comes_back_later_than_dask_waits():
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1ms"}):
        async with engine({"n_workers": 1, "threads_per_worker": 1}) as flow:
            pid = flow.function_task(lambda: os.getpid())
            first = await pid()
            os.kill(first, signal.SIGKILL)
            assert await pid() != first
            assert list(flow.backend.client.cluster.workers) == [0]


async def test_the_log_says_what_waits_when_there_is_no_worker(monkeypatch, caplog):
    monkeypatch.setattr(idle, "_SILENCE_S", 0.05)
    looks = 0

    class Counted(idle.WorkerCheck):
        async def _warn_if_no_worker(self):
            nonlocal looks
            await super()._warn_if_no_worker()
            looks += 1

    monkeypatch.setattr(watching, "WorkerCheck", Counted)
    with LocalCluster(n_workers=0, dashboard_address=":0") as cluster:
        async with engine(cluster) as flow:
            futures = [flow.function_task(named("lonely", identity))(n) for n in range(3)]
            while looks < 3:
                await asyncio.wait(futures, timeout=0.05)
            told = [each.getMessage() for each in caplog.records if "no worker" in each.message]
            assert len(told) == 1
            assert re.search(r"'dask': 3 tasks wait, the first of them task 'lonely' \(", told[0])
            assert cluster.scheduler_address in told[0]
            cluster.scale(1)
            assert await asyncio.gather(*futures) == [0, 1, 2]


# --- the scheduler ------------------------------------------------------------------------------


async def test_every_task_fails_and_nothing_hangs_when_the_scheduler_is_killed(start):
    scheduler, address = start(*SCHEDULER, "0", "--host", "127.0.0.1", until=r"tcp://\S+")
    start(*WORKER, address, until="Registered to")

    async with engine(address) as flow:
        task = flow.function_task(asyncio.sleep)
        same = flow.function_task(named("same", lambda value: value))
        kept = same(1)
        await same(kept)
        pending = [task(1_000) for _ in range(3)]
        dependent = task(pending[0])
        scheduler.kill()
        for future in pending:
            with pytest.raises(ConnectionError, match=r"'sleep' \(.*the scheduler at .* is gone"):
                await future
        with pytest.raises(DependencyFailureError, match="ConnectionError"):
            await dependent
        with pytest.raises(ConnectionError, match=r"'same' \(task.000001\) is lost"):
            await kept
        with pytest.raises(ConnectionError, match="'dask' has no connection to its scheduler"):
            await task(1)
        begin = time.monotonic()
    assert time.monotonic() - begin < 15  # and not as long as Dask tries to connect


# --- the engine's process -----------------------------------------------------------------------

ENGINE = """
import asyncio, sys
from dftracer.asyncflow import DaskExecutionBackend, WorkflowEngine

async def main():
    async with await WorkflowEngine.create(DaskExecutionBackend(sys.argv[1])) as flow:
        print("is ready", flush=True)
        await flow.executable_task(lambda: f"echo $$ > {sys.argv[2]}; sleep 1000")()

asyncio.run(main())
"""


async def test_programs_end_when_the_process_of_the_engine_is_killed(start, line):
    _, address = start(*SCHEDULER, "0", "--host", "127.0.0.1", until=r"tcp://\S+")
    start(*WORKER, address, until="Registered to")
    process, _ = start(sys.executable, "-c", ENGINE, address, line.path, until="is ready")
    pid = int(await line.read())
    process.kill()
    await gone(pid)


# --- networks -----------------------------------------------------------------------------------

NETWORKS = """
ip netns add {s}
ip netns add {a}
ip netns add {b}
ip link add {r}0 type veth peer name {s}0 netns {s}
ip link add {s}1 netns {s} type veth peer name {a}0 netns {a}
ip link add {s}2 netns {s} type veth peer name {b}0 netns {b}
ip -n {s} link add {s}b type bridge
ip -n {s} link set {s}1 master {s}b up
ip -n {s} link set {s}2 master {s}b up
ip -n {s} link set {s}b up
ip -n {s} link set {s}0 up
ip -n {s} link set lo up
ip -n {a} link set lo up
ip -n {b} link set lo up
ip -n {a} link set {a}0 up
ip -n {b} link set {b}0 up
ip link set {r}0 up
ip addr add 10.213.98.1/30 dev {r}0
ip -n {s} addr add 10.213.98.2/30 dev {s}0
ip -n {s} addr add 10.213.99.1/24 dev {s}b
ip -n {a} addr add 10.213.99.2/24 dev {a}0
ip -n {b} addr add 10.213.99.3/24 dev {b}0
"""
"""We and the scheduler share one network; the scheduler and its workers another."""


@pytest.fixture
def networks() -> Iterator[dict[str, str]]:
    """Make a network namespace for a scheduler and each of two workers; give their names."""
    names = {key: f"df{key}{os.getpid() % 100_000}" for key in "rsab"}
    try:
        for line in NETWORKS.strip().splitlines():
            command = line.format_map(names).split()
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', error)}")
        yield names
    finally:
        ends = [["link", "del", f"{names['r']}0"], *(["netns", "del", names[key]] for key in "sab")]
        for end in ends:
            with contextlib.suppress(OSError):
                subprocess.run(["ip", *end], capture_output=True)


def is_reachable(host: str, port: str) -> bool:
    try:
        socket.create_connection((host, int(port)), timeout=0.2).close()
    except OSError:
        return False
    return True


async def test_tasks_run_and_are_given_up_when_networks_join_and_part(networks, start):
    def inside(key: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", networks[key])

    start(*inside("s"), *SCHEDULER, "8786", until="Scheduler at")
    for key, host in (("a", "10.213.99.2"), ("b", "10.213.99.3")):
        start(
            *inside(key),
            *WORKER,
            "10.213.99.1:8786",
            "--host",
            host,
            "--name",
            key,
            until="Registered to",
        )
    address = "tcp://10.213.98.2:8786"
    with dask.config.set({"distributed.comm.timeouts.tcp": "11s"}):
        async with engine(address) as flow:
            client = flow.backend._connection.client
            workers = await asyncio.to_thread(client.nthreads)
            places = sorted(worker.removeprefix("tcp://").split(":") for worker in workers)
            assert [host for host, _ in places] == ["10.213.99.2", "10.213.99.3"]
            assert not any(is_reachable(*place) for place in places)

            make = flow.function_task(lambda size: bytes(size))
            made = make(20_000_000, task_description={"workers": "a"})
            length = flow.function_task(len)(made, task_description={"workers": "b"})
            assert await length == 20_000_000
            addresses = flow.executable_task(lambda: "ip -4 -br addr show up")
            assert "10.213.99.2" in await addresses(task_description={"workers": "a"})
            pending = flow.function_task(asyncio.sleep)(1_000, task_description={"workers": "a"})
            assert await flow.function_task(abs)(-1, task_description={"workers": "b"}) == 1
            cut = ["ip", "-n", networks["s"], "link", "set", f"{networks['s']}0", "down"]
            await asyncio.to_thread(subprocess.run, cut, check=True)
            with pytest.raises(ConnectionError, match=r"the scheduler at .* is gone"):
                await pending
