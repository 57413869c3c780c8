"""Programs started by `os.posix_spawn` and read through two pipes each: the floor for captures.

One thread keeps a few running for each core, and reads and reaps the oldest first: that suits
programs which end soon and write less than a pipe holds.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from sides import Case, Stopwatch, check_counted, usable_cores, without_loop


@contextmanager
def nothing_to_open() -> Iterator[None]:
    yield


def _start(*argv: str) -> tuple[int, int, int]:
    output, output_end = os.pipe()
    errors, errors_end = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, output_end, 1), (os.POSIX_SPAWN_DUP2, errors_end, 2)]
    pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
    os.close(output_end)
    os.close(errors_end)
    return pid, output, errors


def _rest_of(descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, 65_536):
        parts.append(part)
    os.close(descriptor)
    return b"".join(parts)


def _end(running: tuple[int, int, int]) -> bytes:
    pid, output, errors = running
    text = _rest_of(output)
    _rest_of(errors)
    os.waitpid(pid, 0)
    return text


def executables(_: None, n: int, watch: Stopwatch) -> None:
    at_a_time = 2 * usable_cores()
    running: deque[tuple[int, int, int]] = deque()
    outputs = []
    with watch:
        for i in range(n):
            if len(running) == at_a_time:
                outputs.append(_end(running.popleft()))
            running.append(_start("/bin/echo", str(i)))
        outputs += [_end(each) for each in running]
    check_counted([int(output) for output in outputs], n)


CASES: dict[str, Case] = {"executables": without_loop(nothing_to_open, executables)}
