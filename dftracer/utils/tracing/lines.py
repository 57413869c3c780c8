"""The lines of a trace file: what can be read is, whatever stands there; the rest is counted."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn, TypeGuard

_MAX_LINE = 16 << 20
"""How many bytes a line has at most: the dependencies of one task on a million others."""

_BOMB = 16 << 20
_BOMB_RATIO = 500
"""What is packed so much closer than any trace, from so many bytes on, is not unpacked further."""

_MAX_TIME = 1 << 62

_NESTED = 100
"""As many lists and objects cannot be nested too deep."""

_NUMBERS = ("id", "pid", "tid", "ts", "dur")
_NUMBER_ARGUMENTS = ("queued_us", "wait_us")
_NAMES = ("hhash", "uid", "engine", "runtime", "task", "owner", "parent")
"""What distinguishes one event from another."""


class LeftOut:
    """What of some traces could not be read."""

    def __init__(self) -> None:
        self.lines = 0
        self.files: list[str] = []
        """What is missing of whole files."""
        self.has_read_a_trace = False
        """Whether one of the files is a trace, if only one without events."""
        self._first: tuple[Path, int, str] | None = None

    def line(self, path: Path, number: int, reason: str) -> None:
        """Count a line."""
        self.lines += 1
        self._first = self._first or (path, number, reason)

    def rest(self, path: Path, reason: str) -> None:
        """Count the rest of a file as missing."""
        self.files.append(f"{_shown(path)}: {reason}")

    def add_file(self, path: Path, part: LeftOut) -> None:
        """Add what was left out of one file: if that is all of it, the file itself."""
        self.files += part.files
        self.has_read_a_trace |= part.has_read_a_trace
        if part.has_read_a_trace:
            self.lines += part.lines
            self._first = self._first or part._first
        elif part._first is not None:
            _, number, reason = part._first
            self.rest(path, f"it is no trace: line {number}: {reason}")
        elif not part.files:
            self.rest(path, "it is no trace: it is empty")

    def __str__(self) -> str:
        parts = list(self.files[:10])
        if len(self.files) > len(parts):
            parts.append(f"{len(self.files) - len(parts):,} more files")
        if self._first is not None:
            path, number, reason = self._first
            lines = "" if self.lines == 1 else f"{self.lines:,} lines, the first is "
            parts.append(f"{lines}line {number} of {_shown(path)}: {reason}")
        return "left out: " + "; ".join(parts) if parts else ""


def _shown(path: Path) -> str:
    return str(path).encode(errors="backslashreplace").decode()


def events_in(path: Path, left_out: LeftOut) -> Iterator[dict[str, Any]]:
    """Yield the events of a trace file as they stand there, which :func:`strict_json` can write.

    Of a file whose end is missing or damaged, because its process was killed, what is there. Bytes
    that are no UTF-8 become U+FFFD.
    """
    part = LeftOut()
    try:
        yield from _events_in(path, part)
    finally:
        left_out.add_file(path, part)


def _events_in(path: Path, left_out: LeftOut) -> Iterator[dict[str, Any]]:
    has_begun = False
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        lines = gzip.GzipFile(fileobj=raw) if packed else raw
        try:
            for number, line in enumerate(_lines(lines, raw, path, left_out), 1):
                if line is None:
                    left_out.line(path, number, f"it is longer than {_MAX_LINE:,} bytes")
                    continue
                text = line.decode("utf-8", "replace").strip().rstrip(",")
                if text in ("", "[", "]"):
                    has_begun |= text == "["
                    continue
                event = _event_of(text)
                if isinstance(event, dict):
                    left_out.has_read_a_trace = True
                    yield event
                else:
                    left_out.line(path, number, event if line.endswith(b"\n") else "it is cut off")
        except (EOFError, gzip.BadGzipFile, zlib.error):
            left_out.rest(path, "the end is missing or damaged")
    if has_begun and not left_out.lines:
        left_out.has_read_a_trace = True


def _lines(
    file: IO[bytes] | gzip.GzipFile, raw: IO[bytes], path: Path, left_out: LeftOut
) -> Iterator[bytes | None]:
    """Yield lines, and ``None`` for each that is too long."""
    size = 0
    while line := file.readline(_MAX_LINE):
        is_long = len(line) == _MAX_LINE and not line.endswith(b"\n")
        while True:
            size += len(line)
            if size > _BOMB and file is not raw and size > _BOMB_RATIO * raw.tell():
                left_out.rest(path, f"what is packed after {size:,} bytes, closer than any trace")
                return
            if not is_long or line.endswith(b"\n") or not line:
                break
            line = file.readline(_MAX_LINE)
        yield None if is_long else line


def _event_of(text: str) -> dict[str, Any] | str:
    """Return the event in a line, or why there is none."""
    try:
        event: object = _decode(text)
        if text.count("[") + text.count("{") > _NESTED:
            json.dumps(event)  # which goes less deep than reading does
    except ValueError as error:
        return f"it is no JSON: {error}"
    except RecursionError:
        return "it is nested too deep"
    if not is_object(event) or event.keys().isdisjoint(("name", "ph")):
        return "it is no event"
    arguments = event.get("args")
    if not is_object(arguments):
        arguments = {}
    for members, keys in ((event, _NUMBERS), (arguments, _NUMBER_ARGUMENTS)):
        for key in keys:
            value = members.get(key, 0)
            if type(value) is int or type(value) is float:
                if value < (-_MAX_TIME if key in ("id", "tid") else 0):
                    return f"its {key} is below 0"
                if value > _MAX_TIME:
                    return f"its {key} is too large"
            elif not isinstance(value, (str, type(None))):
                return f"its {key} is no number"
    for key in _NAMES:
        if isinstance(arguments.get(key), (list, dict)):
            return f"its {key} is neither a text nor a number"
    return event


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Return whether a value that was read from JSON is an object."""
    return isinstance(value, dict)


def strict_json(event: dict[str, Any]) -> str:
    """Return the text of an event, with U+FFFD for each half of a surrogate pair."""
    text = json.dumps(event, separators=(",", ":"), ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


_decode = json.JSONDecoder(parse_float=_finite, parse_constant=_no_number).decode
