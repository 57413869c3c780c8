"""How many small tasks a second go through an engine on Dask, beside Dask's own ``client.map``.

    python benchmarks/dask_throughput.py [TASKS] [ROUNDS]

Both sides take turns on one local cluster of two worker processes, with one client. Each turn runs
TASKS calls (10,000) of a function that returns its argument and brings the results back. The ratio
is our throughput by that of ``client.map`` in the same round; above 1 ours is faster. Who goes
first changes with each round. The ratio of processor time, of this process, in which the scheduler
runs, and the workers, tells more on a busy machine. It needs ``dftracer-asyncflow[dask]``.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable

from dask.distributed import Client, LocalCluster

from dftracer.asyncflow import DaskExecutionBackend, WorkflowEngine


def same(value: int) -> int:
    """Return the argument."""
    return value


def plain(client: Client, tasks: int) -> float:
    """Return the seconds that ``client.map`` takes."""
    begin = time.perf_counter()
    results = client.gather(client.map(same, range(tasks), pure=False))
    seconds = time.perf_counter() - begin
    assert results == list(range(tasks))
    return seconds


async def ours(client: Client, tasks: int) -> float:
    """Return the seconds that an engine takes."""
    async with await WorkflowEngine.create(DaskExecutionBackend(client)) as flow:
        task = flow.function_task(same)
        await task(0)
        begin = time.perf_counter()
        results = await asyncio.gather(*[task(number) for number in range(tasks)])
        seconds = time.perf_counter() - begin
    assert results == list(range(tasks))
    return seconds


def cpu_s(client: Client) -> float:
    """Return the processor time that all processes have taken until now."""
    of_workers: dict[str, float] = client.run(time.process_time)
    return time.process_time() + sum(of_workers.values())


def main() -> None:
    """Run the rounds and print what they took."""
    tasks, rounds = (int(word) for word in (sys.argv[1:] + ["10000", "5"][len(sys.argv) - 1 :]))
    ratios = []
    cpu_ratios = []
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        sides: dict[str, Callable[[int], float]] = {
            "client.map": lambda count: plain(client, count),
            "engine": lambda count: asyncio.run(ours(client, count)),
        }
        for run in sides.values():
            run(500)
        for number in range(rounds):
            wall, cpu = {}, {}
            for side in sorted(sides, reverse=number % 2 == 1):
                begin_s = cpu_s(client)
                wall[side] = sides[side](tasks)
                cpu[side] = cpu_s(client) - begin_s
            ratios.append(wall["client.map"] / wall["engine"])
            cpu_ratios.append(cpu["client.map"] / cpu["engine"])
            rates = [f"{side} {tasks / wall[side]:,.0f}/s" for side in sides]
            print(
                f"{', '.join(rates)}, ratio {ratios[-1]:.2f}, cpu {cpu_ratios[-1]:.2f}", flush=True
            )
    for name, values in (("wall", ratios), ("cpu", cpu_ratios)):
        median = statistics.median(values)
        print(f"{name} median {median:.2f} [{min(values):.2f}-{max(values):.2f}]")


if __name__ == "__main__":
    main()
