"""A real pseudo-terminal, and what its screen shows after all that was written to it."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import pytest

GUARD_S = 40
MARK = b"\0"
"""What no program writes, and no screen shows."""


class Program(subprocess.Popen[bytes]):
    """A program that does not outlive a test that has failed."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.kill()
        super().__exit__(exc_type, value, traceback)


class Terminal:
    """A terminal of that size, for programs to write to; with ``echo``, it shows what is typed."""

    def __init__(self, width: int = 120, height: int = 40, echo: bool = False) -> None:
        self.width, self.height = width, height
        self._ours, self.theirs = pty.openpty()
        if not echo:
            modes = termios.tcgetattr(self.theirs)
            modes[3] &= ~termios.ECHO
            termios.tcsetattr(self.theirs, termios.TCSANOW, modes)
        self.resize(width, height)
        self.written = b""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._ours)
        os.close(self.theirs)

    def resize(self, width: int, height: int) -> None:
        """Give it another size."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def start(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Program:
        """Start a program on it, in a session of its own; some of its output may go elsewhere."""
        environment = {
            key: value
            for key, value in os.environ.items()
            if key not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
        }
        return Program(
            command,
            stdin=self.theirs,
            stdout=self.theirs if stdout is None else stdout,
            stderr=self.theirs if stderr is None else stderr,
            env={**environment, "TERM": "xterm-256color", **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )

    def run(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> int:
        """Run a program to its end; return its exit code."""
        with self.start(command, env, stdout=stdout, stderr=stderr) as process:
            self.read_until(lambda: process.poll() is not None)
            return process.wait()

    def type(self, text: str) -> None:
        """Send what somebody types."""
        os.write(self._ours, text.encode())

    def read_until(self, is_enough: Callable[[], bool]) -> None:
        """Take what is written until something is so, and all that was written before that."""
        self._take_until(is_enough)
        os.write(self.theirs, MARK)  # The kernel passes things on in their order, but later.
        self._take_until(lambda: MARK in self.written)
        self.written = self.written.replace(MARK, b"")

    def _take_until(self, is_enough: Callable[[], bool]) -> None:
        deadline = time.monotonic() + GUARD_S
        while not is_enough():
            assert time.monotonic() < deadline, f"it does not come; there is:\n{self.written!r}"
            if select.select([self._ours], [], [], 0.02)[0]:
                self.written += os.read(self._ours, 65536)

    def screen(self) -> list[str]:
        """The lines that are to be seen, without the empty ones at the end."""
        pyte = pytest.importorskip("pyte")
        screen = pyte.Screen(self.width, self.height)
        pyte.ByteStream(screen).feed(self.written)
        lines = [line.rstrip() for line in screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines
