"""What tests of tasks in other processes share: lines that these send, and their ends."""

import asyncio
import contextlib
import os
from pathlib import Path
from types import TracebackType


async def readable(file: int) -> None:
    """Wait until there is something to read. The guard of the whole test is the only one."""
    loop, is_readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(file, is_readable.set)
    try:
        await is_readable.wait()
    finally:
        loop.remove_reader(file)


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
        while b"\n" not in self._rest:
            await readable(self._file)
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
            await readable(process)
        finally:
            os.close(process)
