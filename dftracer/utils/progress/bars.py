"""Progress as bars in a terminal, and what keeps printed lines whole beside them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TextIO

from dftracer.utils.progress.counts import Shown
from dftracer.utils.progress.table import table_of
from dftracer.utils.progress.texts import MOST_ROWS, fitted

_INTERVAL_S = 0.2
_PUT_AGAIN_S = 0.05
"""How soon bars are back that had to make way for a line."""

_MOST_HELD = 8192
"""Characters of a line that is not complete, as the streams of Python hold them back themselves."""


class TerminalBars:
    """Bars in the last lines of a terminal; what the program writes goes above them.

    For that, ``write`` and ``flush`` of its text streams are wrapped as long as there are bars.
    """

    interval = _INTERVAL_S

    def __init__(self, stream: TextIO | None) -> None:
        assert stream is not None
        self._console: Any = import_module("rich.console").Console(file=stream)
        self._text: Any = import_module("rich.text").Text
        self._stream = stream
        self._write: Callable[[str], int] = stream.write
        self._flush: Callable[[], None] = stream.flush
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a signal's handler may print
        self._frame = ""
        self._frame_widths: list[int] = []
        """Of its lines."""
        self._widths: list[int] = []
        """The same, as long as the frame is to be seen."""
        self._is_at_line_start = True
        self._put_at = 0.0
        self._restore: list[Callable[[], None]] = []
        for each in _streams_of(stream):
            self._wrap(each)

    def draw(self, shown: Sequence[Shown]) -> None:
        frame, widths = self._render(shown)
        with self._lock:
            self._erase()
            self._frame, self._frame_widths = frame, widths
            if self._is_at_line_start:
                self._put()

    def close(self, shown: Sequence[Shown]) -> None:
        with self._lock:
            for restore in self._restore:
                restore()
            self._erase()
            frame, _ = self._render(shown)
            if not self._is_at_line_start:
                self._send("\n")
            if frame:
                self._send(frame + "\n")

    def _render(self, shown: Sequence[Shown]) -> tuple[str, list[int]]:
        height = max(2, min(MOST_ROWS, self._console.size.height - 2))
        table = table_of(fitted(shown, height), self._console.size.width)
        with self._console.capture() as capture:
            self._console.print(table)
        frame: str = capture.get().rstrip("\n")
        return frame, [self._text.from_ansi(line).cell_len for line in frame.split("\n")]

    def _put(self) -> None:
        if self._frame:
            self._send(self._frame)
            self._widths = self._frame_widths
            self._put_at = time.monotonic()

    def _erase(self) -> None:
        if self._widths:
            # The terminal may be narrower than it was.
            width = max(1, self._console.size.width)
            rows = sum(max(1, -(-each // width)) for each in self._widths)
            self._widths = []
            self._send("\r\x1b[2K" + "\x1b[1A\x1b[2K" * (rows - 1))

    def _send(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone
            self._write(text)
            self._flush()

    def _wrap(self, stream: TextIO) -> None:
        original, original_flush = stream.write, stream.flush
        held: dict[int, str] = {}
        """The beginnings of lines, by thread: ``print`` writes a line in two parts."""

        def write(text: str, /) -> int:
            if os.getpid() != self._pid:  # in the child of a fork, the lock may be held
                return original(text)
            with self._lock:
                thread = threading.get_ident()
                whole = held.pop(thread, "") + text
                end = 1 + max(whole.rfind("\n"), whole.rfind("\r"))
                if len(whole) - end > _MOST_HELD:
                    end = len(whole)
                if whole[end:]:
                    held[thread] = whole[end:]
                if end:
                    send(whole[:end])
            return len(text)

        def flush() -> None:
            if os.getpid() == self._pid:
                with self._lock:
                    texts = list(held.values())
                    held.clear()
                    if texts:
                        send("".join(texts))
            original_flush()

        def send(text: str) -> None:
            self._erase()
            try:
                original(text)
            finally:
                self._is_at_line_start = text.endswith("\n")
                with contextlib.suppress(OSError, ValueError):
                    original_flush()
                # Of a program that writes all the time, the thread does it.
                if self._is_at_line_start and time.monotonic() - self._put_at >= _PUT_AGAIN_S:
                    self._put()

        def restore() -> None:
            with contextlib.suppress(OSError, ValueError):
                flush()
            for name, ours in (("write", write), ("flush", flush)):
                if vars(stream).get(name) is ours:
                    delattr(stream, name)

        with contextlib.suppress(AttributeError):  # it is an object that takes no attributes
            setattr(stream, "write", write)  # noqa: B010 - for mypy
            setattr(stream, "flush", flush)  # noqa: B010
            self._restore.append(restore)


def _streams_of(terminal: TextIO) -> list[TextIO]:
    """Return the streams of this process that write to the same terminal."""
    found: dict[int, TextIO] = {}
    device = os.fstat(terminal.fileno()).st_rdev
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            if stream is not None and os.fstat(stream.fileno()).st_rdev == device:
                found[id(stream)] = stream
        except (AttributeError, OSError, ValueError):
            pass  # no file
    return list(found.values())
