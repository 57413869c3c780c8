"""Cases for any pool of threads with `submit`: ours, its peer, and the standard library's.

The same work is done on all of them; a side says how it opens a pool and how it waits.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from sides import Case, Stopwatch, bodies, check_counted, check_equal, resident_bytes, without_loop

Opened = Callable[[int], AbstractContextManager[Any]]
"""Opens a pool with so many threads for Python code."""


def cases(
    opened: Opened,
    result: Callable[[Any], Any],
    wait_for_all: Callable[[Any, list[Any]], None],
    without: tuple[str, ...] = (),
) -> dict[str, Case]:
    """All cases of this module, but those named `without`.

    `result` waits for the result of what `submit` has returned, `wait_for_all` for all of a list.
    """

    def submit_all(pool: Any, n: int, watch: Stopwatch) -> None:
        with watch:
            tasks = [pool.submit(bodies.same, i) for i in range(n)]
            wait_for_all(pool, tasks)
        check_counted([result(task) for task in tasks], n)

    def map_all(pool: Any, n: int, watch: Stopwatch) -> None:
        with watch:
            values = list(pool.map(bodies.same, range(n)))
        check_counted(values, n)

    def submit_get(pool: Any, n: int, watch: Stopwatch) -> None:
        with watch:
            values = [result(pool.submit(bodies.same, i)) for i in range(n)]
        check_counted(values, n)

    def nested(pool: Any, n: int, watch: Stopwatch) -> None:
        def level(depth: int) -> int:
            return 0 if depth == 0 else 1 + int(result(pool.submit(level, depth - 1)))

        with watch:
            depth = result(pool.submit(level, n))
        check_equal(depth, n)

    def blocking(pool: Any, n: int, watch: Stopwatch) -> None:
        with watch:
            tasks = [pool.submit(bodies.block, i) for i in range(n)]
            values = [result(task) for task in tasks]
        check_counted(values, n)

    def pending(pool: Any, n: int, watch: Stopwatch) -> None:
        release = threading.Event()
        gate = pool.submit(release.wait)
        tasks: list[Any] = [None] * n
        before = resident_bytes()
        for i in range(n):
            tasks[i] = pool.submit(bodies.same, 0)
        watch.bytes = resident_bytes() - before
        release.set()
        wait_for_all(pool, [gate, *tasks])

    def million(pool: Any, n: int, watch: Stopwatch) -> None:
        def campaign() -> None:
            tasks = [pool.submit(bodies.same, i) for i in range(n)]
            wait_for_all(pool, tasks)

        gc.collect()
        before = resident_bytes()
        campaign()
        time.sleep(0.05)  # workers let go of the last task a moment after it has ended
        gc.collect()
        watch.bytes = resident_bytes() - before

    def one() -> AbstractContextManager[Any]:
        return opened(1)

    def two() -> AbstractContextManager[Any]:
        return opened(2)

    def many() -> AbstractContextManager[Any]:
        return opened(32)

    all_cases: dict[str, Case] = {
        "submit-all": without_loop(two, submit_all),
        "map": without_loop(two, map_all),
        "submit-get": without_loop(two, submit_get),
        "nested": without_loop(one, nested),
        "blocking": without_loop(many, blocking),
        "pending": without_loop(one, pending),
        "million": without_loop(two, million),
    }
    return {name: case for name, case in all_cases.items() if name not in without}
