"""What tests of tasks in other processes share: lines that these send, and their ends."""

import asyncio
import contextlib
import os
import select
from pathlib import Path
from types import TracebackType

GUARD_S = 20
"""How long a test waits for what must come."""


class Line:
    """A named pipe through which bodies and programs on this machine send lines to the test."""

    def __init__(self, folder: Path, name: str = "line") -> None:
        self.path = str(folder / name)
        os.mkfifo(self.path)
        self._file = os.open(self.path, os.O_RDWR)
        self._rest = b""

    def __enter__(self) -> "Line":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)

    async def read(self) -> str:
        """Wait for a line."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> str:
        while b"\n" not in self._rest:
            assert select.select([self._file], [], [], GUARD_S)[0], "nobody has sent a line"
            self._rest += os.read(self._file, 4096)
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


def say(path: str, text: str) -> None:
    """Send a line to the test that has a :class:`Line` at ``path``. For bodies."""
    with open(path, "a") as file:
        file.write(f"{text}\n")


async def gone(pid: int) -> None:
    """Wait for the end of a process."""
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            assert (await asyncio.to_thread(select.select, [process], [], [], GUARD_S))[0], pid
        finally:
            os.close(process)
