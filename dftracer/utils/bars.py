"""How progress looks: bars on a terminal or in a notebook, and lines everywhere else.

It is a little longer than most modules: three displays, and what keeps printed lines whole.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from dftracer.utils.progress import Row, Shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MOST_ROWS = 12
"""How many names are shown one by one."""

_NARROW = 60
"""Columns; below that there are only names and counts."""

LINES_INTERVAL_S = 5.0
_BARS_INTERVAL_S = 0.2
_NOTEBOOK_INTERVAL_S = 0.5
_PUT_AGAIN_S = 0.05
"""How soon bars are back that had to make way for a line."""

_MOST_HELD = 8192
"""Characters of a line that is not complete, as the streams of Python hold them back themselves."""

_hint_given = False


class View(Protocol):
    """Shows rows. Drawing is never done by two threads at a time."""

    interval: float
    """Seconds between two drawings, at least."""

    def draw(self, shown: Sequence[Shown]) -> None:
        """Show rows in place of those before."""

    def close(self, shown: Sequence[Shown]) -> None:
        """Show rows for the last time."""


def make_view(stream: TextIO | None) -> View:
    """Return what suits a standard stream of this process."""
    is_notebook = _in_notebook()
    if not is_notebook and not _is_terminal(stream):
        return Lines(stream)
    try:
        return NotebookBars() if is_notebook else TerminalBars(stream)
    except ImportError:
        global _hint_given
        if not _hint_given:
            _hint_given = True
            print(
                "progress: for bars instead of lines, which need 'rich': "
                "pip install 'dftracer-asyncflow[progress]'",
                file=sys.stderr,
            )
        return Lines(stream)


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # it is closed
        return False


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


# --- rows as text ---------------------------------------------------------------------------------


def fitted(shown: Sequence[Shown], most: int = MOST_ROWS) -> list[Shown]:
    """Return at most so many rows: the first that are not complete, and the rest as one."""
    if len(shown) <= most:
        return list(shown)
    by_need = sorted(shown, key=lambda each: each.row.ended >= each.row.total)
    single = set(map(id, by_need[: most - 1]))
    rest = [each for each in shown if id(each) not in single]
    sums = [sum(values) for values in zip(*[each.row[1:] for each in rest], strict=True)]
    known = [each.left for each in rest if each.left is not None]
    left = max(known) if len(known) == len(rest) else None
    total = Shown(Row(f"{len(rest)} others", *sums), sum(each.rate for each in rest), left)
    return [each for each in shown if id(each) in single] + [total]


def printable(text: str) -> str:
    """Return a text with what is not to be seen as Python writes it, for example ``"\\\\n"``."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def count_of(row: Row) -> str:
    """Return for example ``"5/1,000"``."""
    return f"{row.ended:,}/{row.total:,}"


def trouble_of(row: Row) -> str:
    """Return for example ``"3 failed"``; nothing if all went well."""
    parts = []
    if row.failed:
        parts.append(f"{row.failed:,} failed")
    if row.cancelled:
        parts.append(f"{row.cancelled:,} cancelled")
    return ", ".join(parts)


def pace_of(shown: Shown) -> str:
    """Return for example ``"1,234/s"``; nothing if all had ended before anybody looked."""
    if not shown.rate and shown.row.ended >= shown.row.total:
        return ""
    return f"{shown.rate:,.0f}/s" if shown.rate >= 10 else f"{shown.rate:.2g}/s"


def left_of(shown: Shown) -> str:
    """Return for example ``"0:42 left"``; nothing if nothing is left."""
    if shown.row.ended >= shown.row.total:
        return ""
    if shown.left is None:
        return "-:-- left"
    minutes, seconds = divmod(round(shown.left), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f"{text} left"


# --- lines ----------------------------------------------------------------------------------------


class Lines:
    """A line for each name that has news, every few seconds."""

    def __init__(self, stream: TextIO | None, interval: float = LINES_INTERVAL_S) -> None:
        self.interval = interval
        self._stream = stream
        self._written: dict[str, Row] = {}

    def draw(self, shown: Sequence[Shown]) -> None:
        lines = []
        for each in fitted(shown):
            if self._written.get(each.row.name) != each.row:
                self._written[each.row.name] = each.row
                parts = [count_of(each.row), trouble_of(each.row), pace_of(each), left_of(each)]
                lines.append(f"{printable(each.row.name)}: {', '.join(filter(None, parts))}\n")
        if lines and self._stream is not None:
            with contextlib.suppress(OSError, ValueError):  # it is closed
                self._stream.write("".join(lines))
                self._stream.flush()

    close = draw


# --- bars -----------------------------------------------------------------------------------------


def table_of(shown: Sequence[Shown], width: int) -> Table:
    """Return a row for each name, for a terminal of that width; with bars if it is not narrow."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    is_wide = width >= _NARROW
    wide, narrow = ("left", "left", "right", "right"), ("left", "right")
    for justify in (*(wide if is_wide else narrow), "left", "left"):
        table.add_column(justify=justify, no_wrap=True, overflow="ellipsis")
    table.columns[0].max_width = max(8, width // 3 if is_wide else width // 2)
    for each in shown:
        row = each.row
        cells = [
            Text(printable(row.name), overflow="ellipsis"),
            count_of(row),
            Text(trouble_of(row), "red"),
            Text(left_of(each), "dim"),
        ]
        if is_wide:
            size = max(5, min(30, width - 60))
            cells.insert(1, ProgressBar(max(row.total, 1), row.ended, width=size))
            cells.insert(3, Text(pace_of(each), "cyan"))
        table.add_row(*cells)
    return table


class NotebookBars:
    """Bars in the output of a notebook's cell."""

    interval = _NOTEBOOK_INTERVAL_S

    def __init__(self) -> None:
        import rich.jupyter  # noqa: F401 - to fail here if it is not there
        from IPython.display import display

        self._display: Callable[..., Any] = display
        self._handle: Any = None

    def draw(self, shown: Sequence[Shown]) -> None:
        table = table_of(fitted(shown), 100)
        if self._handle is None:
            self._handle = self._display(table, display_id=True)
        else:
            self._handle.update(table)

    close = draw


class TerminalBars:
    """Bars in the last lines of a terminal; what the program writes goes above them.

    For that, ``write`` and ``flush`` of its text streams are wrapped as long as there are bars.
    """

    interval = _BARS_INTERVAL_S

    def __init__(self, stream: TextIO | None) -> None:
        from rich.console import Console

        assert stream is not None
        self._console: Console = Console(file=stream)
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
        from rich.text import Text

        height = max(2, min(MOST_ROWS, self._console.size.height - 2))
        table = table_of(fitted(shown, height), self._console.size.width)
        with self._console.capture() as capture:
            self._console.print(table)
        frame = capture.get().rstrip("\n")
        return frame, [Text.from_ansi(line).cell_len for line in frame.split("\n")]

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
