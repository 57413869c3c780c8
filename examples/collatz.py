"""One program for a laptop and for a cluster: which number has the longest Collatz sequence?

A sequence goes from n to n/2 if n is even, else to 3n + 1, until it reaches 1. ``search``, a
function task, looks through a range of numbers; ``best`` picks the winner among the results of a
few others, again and again, until there is one. Where tasks run is said once, in ``backend_for``:

    python examples/collatz.py                          # in this process
    python examples/collatz.py --where workers          # two Dask workers on this machine
    python examples/collatz.py --where tcp://node1:8786 # a Dask cluster that is there

Plain Python holds the interpreter's lock, so worker processes help here even on one machine. On a
cluster, results stay where they were made: only the last one comes back to this process.
"""

import argparse
import asyncio
import os
import socket
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dftracer.asyncflow import DaskExecutionBackend, RuntimeExecutionBackend, WorkflowEngine

FAN_IN = 4  # results that one task compares


@dataclass(frozen=True)
class Found:
    """The number with the longest sequence in a range, and who has looked."""

    length: int  # numbers in the sequence, the first and the last included
    number: int  # of those with equally long sequences, the smallest
    where: frozenset[str]  # processes, by machine and number


def backend_for(where: str) -> Any:
    """Return the backend that stands for an answer to ``--where``."""
    if where == "here":
        return RuntimeExecutionBackend()
    if where == "workers":
        cluster = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
        return DaskExecutionBackend(cluster)
    return DaskExecutionBackend(where)


async def longest_below(limit: int, tasks: int, backend: Any) -> Found:
    """Search the numbers from 1 up to ``limit``, excluded, in so many tasks."""
    async with await WorkflowEngine.create(backend) as flow:

        @flow.function_task
        def search(start: int, stop: int) -> Found:
            length = winner = 0
            for number in range(start, stop):
                steps, value = 1, number
                while value != 1:
                    value = value // 2 if value % 2 == 0 else 3 * value + 1
                    steps += 1
                if steps > length:
                    length, winner = steps, number
            return Found(length, winner, frozenset({f"{socket.gethostname()}:{os.getpid()}"}))

        @flow.function_task
        def best(parts: list[Found]) -> Found:
            winner = min(parts, key=lambda found: (-found.length, found.number))
            where = frozenset[str]().union(*(found.where for found in parts))
            return Found(winner.length, winner.number, where)

        bounds = [1 + (limit - 1) * part // tasks for part in range(tasks + 1)]
        level = [search(*pair) for pair in pairwise(bounds)]
        while len(level) > 1:  # futures as arguments: nothing is awaited between the levels
            level = [best(level[i : i + FAN_IN]) for i in range(0, len(level), FAN_IN)]
        found: Found = await level[0]
        return found


def main() -> int:
    """Run the search from the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="Find the longest Collatz sequence.")
    parser.add_argument("--below", type=int, default=200_000, help="limit (default: 200,000)")
    parser.add_argument("--tasks", type=int, default=16, help="parts (default: 16)")
    parser.add_argument(
        "--where", default="here", help="here, workers, or the address of a Dask scheduler"
    )
    args = parser.parse_args()
    if not 1 <= args.tasks < args.below:
        parser.error("there must be at least one number for each task, and one task")

    start = time.perf_counter()
    found = asyncio.run(longest_below(args.below, args.tasks, backend_for(args.where)))
    seconds = time.perf_counter() - start
    print(
        f"{found.number:,} has the longest sequence below {args.below:,}: {found.length:,} numbers"
    )
    print(f"{args.tasks} tasks in {len(found.where)} processes, {seconds:.1f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
