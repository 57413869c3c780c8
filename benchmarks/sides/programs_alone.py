"""The CPU time that the programs themselves take, from `exec` to exit, spread over all cores.

No engine can be faster than that, whatever it does to start them and to read what they write.
"""

from __future__ import annotations

import os

from sides import Case, Stopwatch, stdlib_spawn, usable_cores, without_loop


def executables(_: None, n: int, watch: Stopwatch) -> None:
    before = _of_children()
    stdlib_spawn.executables(None, n, watch)
    watch.seconds = (_of_children() - before) / usable_cores()


def _of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


CASES: dict[str, Case] = {"executables": without_loop(stdlib_spawn.nothing_to_open, executables)}
