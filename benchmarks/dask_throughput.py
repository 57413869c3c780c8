"""How many small tasks a second go through an engine on Dask, beside Dask's own ``client.map``.

    python benchmarks/dask_throughput.py [TASKS] [ROUNDS]

Both sides take turns on one local cluster of two worker processes, with one client. Each turn runs
TASKS calls (10,000) of a function that returns its argument and brings the results back. The ratio
is our throughput by that of ``client.map`` in the same round; above 1 ours is faster. It needs
``dftracer-asyncflow[dask]``.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

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


def main() -> None:
    """Run the rounds and print what they took."""
    tasks, rounds = (int(word) for word in (sys.argv[1:] + ["10000", "5"][len(sys.argv) - 1 :]))
    ratios = []
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        plain(client, 500)
        asyncio.run(ours(client, 500))
        for _ in range(rounds):
            theirs_s, ours_s = plain(client, tasks), asyncio.run(ours(client, tasks))
            ratios.append(theirs_s / ours_s)
            print(
                f"client.map {tasks / theirs_s:,.0f}/s, engine {tasks / ours_s:,.0f}/s, "
                f"ratio {ratios[-1]:.2f}",
                flush=True,
            )
    print(f"median {statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]")


if __name__ == "__main__":
    main()
