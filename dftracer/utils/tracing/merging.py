"""Traces read again, and several made one."""

from __future__ import annotations

import gzip
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dftracer.utils.tracing.files import SUFFIXES
from dftracer.utils.tracing.lines import LeftOut, events_in, is_object, strict_json
from dftracer.utils.whole_file import replacing

_log = logging.getLogger("dftracer.utils")


def trace_files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the trace files among ``paths`` and in the directories among them.

    Raises
    ------
    FileNotFoundError
        If one of them does not exist, or a directory has no trace in it.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            if not path.exists():
                raise FileNotFoundError(f"there is no trace {str(path)!r}")
            found.append(path)
            continue
        inside = [file for file in _files_in(path) if file.name.endswith(SUFFIXES)]
        if not inside:
            raise FileNotFoundError(f"there is no trace (*.pfw.gz, *.pfw) in {str(path)!r}")
        found += inside
    return found


def _files_in(directory: Path) -> list[Path]:
    return [file for file in sorted(directory.iterdir()) if not file.is_dir()]


def _note_other_files(directory: Path, target: Path, left_out: LeftOut) -> None:
    """Note the files in a directory of traces that have no name of a trace."""
    others = [
        file
        for file in _files_in(directory)
        if not file.name.startswith(".")
        and not file.name.endswith(SUFFIXES)
        and not (target.exists() and file.exists() and target.samefile(file))
    ]
    if others:
        more = f", nor do those of {len(others) - 1:,} more files there" if len(others) > 1 else ""
        left_out.rest(others[0], f"its name does not end in .pfw.gz or .pfw{more}")


def read_events(
    path: str | os.PathLike[str], left_out: LeftOut | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the events of a trace file as they stand there.

    A file whose end is missing or damaged, because its process was killed, gives what is there.
    What cannot be read is left out, which ``left_out`` counts.
    """
    return events_in(Path(path), LeftOut() if left_out is None else left_out)


def merge_traces(paths: Iterable[str | os.PathLike[str]], output: str | os.PathLike[str]) -> int:
    """Make one trace of several, on one timeline.

    Times are those of each machine's own clock. Processes of different machines that have the same
    number get different ones. What cannot be read, lines or whole files, is left out, and a warning
    is logged that says why. The file appears complete or not at all.

    Parameters
    ----------
    paths:
        Trace files, and directories of trace files.
    output:
        The file to write: ``.pfw.gz`` or ``.pfw`` for DFTracer's tools and Perfetto; ``.json`` or
        ``.json.gz`` for viewers that want strict JSON, such as ``chrome://tracing``.

    Returns
    -------
    int
        The number of events.

    Raises
    ------
    FileNotFoundError
        If there is no such trace.
    ValueError
        If the name of ``output`` ends in something else, it is one of ``paths``, or none of these
        is a trace.
    """
    target = Path(output)
    if not target.name.endswith((*SUFFIXES, ".json", ".json.gz")):
        raise ValueError(f"{str(target)!r} must end in .pfw.gz, .pfw, .json or .json.gz")
    given = [Path(path) for path in paths]
    files = trace_files(given)
    if any(target.exists() and target.samefile(file) for file in files):
        raise ValueError(f"{str(target)!r} is one of the traces to merge")
    is_strict = ".json" in target.name
    left_out = LeftOut()
    for path in given:
        if path.is_dir():
            _note_other_files(path, target, left_out)
    number_of = ProcessNumbers()
    count = 0
    opened = gzip.open if target.name.endswith(".gz") else open
    with replacing(target) as partial, opened(partial, "wt", encoding="utf-8") as out:
        out.write("[\n")
        for file in files:
            for event in read_events(file, left_out):
                arguments: object = event.get("args")
                host = arguments.get("hhash") if is_object(arguments) else None
                event["id"], event["pid"] = count, number_of(host, event.get("pid", 0))
                if count:
                    out.write(",\n" if is_strict else "\n")
                out.write(strict_json(event))
                count += 1
        out.write("\n]\n")
        if not left_out.has_read_a_trace:
            raise ValueError(f"there is no trace to merge: {left_out}")
    if text := str(left_out):
        _log.warning("%s", text)
    return count


class ProcessNumbers:
    """Gives each process a number: its own, or another one if that of another machine has it."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, Any], Any] = {}
        self._taken: set[Any] = set()
        self._next: dict[Any, Any] = {}

    def __call__(self, host: Any, process: Any) -> Any:
        """Return the number of the process that has ``process`` on its machine."""
        known: Any = self._known.get((host, process))
        if known is None:
            known = process
            if isinstance(process, (int, float)):
                while known in self._taken:
                    known = self._next.get(process, process) + _APART
                    self._next[process] = known
            self._taken.add(known)
            self._known[host, process] = known
        return known


_APART = 10_000_000
"""Processes have lower numbers."""
