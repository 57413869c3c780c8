"""Traces of tasks in DFTracer's format: where they are written, and several made one.

What is in a trace, and which file a path stands for: ``docs/tracing.md``.
"""

from __future__ import annotations

import gzip
import logging
import os
import socket
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dftracer.utils._native import Trace as Trace
from dftracer.utils.redaction import keep_environment
from dftracer.utils.trace_lines import LeftOut, events_in, strict_json
from dftracer.utils.whole_file import replacing

_log = logging.getLogger("dftracer.utils")

ENVIRONMENT = "DFTRACER_TRACE"
"""Where the default runtime and engines write a trace, unless they are told otherwise."""

_LEDGER = "DFTRACER_TRACES_BEGUN"
"""In the environment of child processes: the traces that must not be overwritten by them."""

_SUFFIXES = (".pfw.gz", ".pfw")

_lock = threading.Lock()
_open: weakref.WeakValueDictionary[str, Trace] = weakref.WeakValueDictionary()
_begun: dict[str, str] = {}
"""The file that stands for each path in this process."""


def open_trace(path: str | os.PathLike[str]) -> Trace:
    """Open a trace for writing, or return the one that this process writes to ``path`` already.

    Parameters
    ----------
    path:
        A file ending in ``.pfw.gz`` (or ``.pfw``, not compressed), which is overwritten; or a
        directory, in which each process has a file of its own; one that ends in ``/`` is made.

    Raises
    ------
    ValueError
        If the name of the file ends in something else.
    OSError
        If it cannot be written.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        text = os.fsdecode(text)
    name = os.path.abspath(text)
    if text.endswith(os.sep):
        os.makedirs(name, exist_ok=True)
    if os.path.isdir(name):
        name = os.path.join(name, f"trace-{socket.gethostname()}-{os.getpid()}.pfw.gz")
    elif not name.endswith(_SUFFIXES):
        raise ValueError(
            f"a trace must be a directory or a file that ends in .pfw.gz or .pfw, not {text!r}"
        )
    with _lock:
        trace = _open.get(name)
        if trace is None:
            trace = _open[name] = _begin(name)
        return trace


def trace_of_environment() -> Trace | None:
    """Return the trace that ``DFTRACER_TRACE`` asks for."""
    path = os.environ.get(ENVIRONMENT)
    return open_trace(path) if path else None


def _begin(name: str) -> Trace:
    """Open the file that stands for ``name``; that with the process's number if it is another's."""
    keep_environment()  # which programs may repeat in what the trace says of them
    process = os.path.basename(sys.argv[0] if sys.argv else "") or "python"
    process = os.fsencode(process).decode(errors="replace")
    host = socket.gethostname()
    if name in _begun:
        return Trace(_begun[name], True, process, host)
    others = os.environ.get(_LEDGER, "").split(os.pathsep)
    if name in others or _is_pool_worker():
        file = _numbered(name)
        trace = Trace(file, False, process, host)
    else:
        try:
            file, trace = name, Trace(name, False, process, host)
        except BlockingIOError:
            file = _numbered(name)
            trace = Trace(file, False, process, host)
    _begun[name] = file
    os.environ[_LEDGER] = os.pathsep.join([*filter(None, others), name])
    return trace


def _numbered(name: str) -> str:
    suffix = next(suffix for suffix in _SUFFIXES if name.endswith(suffix))
    return f"{name.removesuffix(suffix)}.{os.getpid()}{suffix}"


def _is_pool_worker() -> bool:
    """Whether ``multiprocessing`` has started this process, for one of several at a time."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def _forget_in_child() -> None:
    """After ``fork()`` the parent's traces have no writers here, and the lock may be held."""
    global _lock
    _lock = threading.Lock()
    _begun.clear()
    _open.clear()


os.register_at_fork(after_in_child=_forget_in_child)


# --- several traces made one ----------------------------------------------------------------------


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
        inside = [file for file in sorted(path.iterdir()) if file.name.endswith(_SUFFIXES)]
        if not inside:
            raise FileNotFoundError(f"there is no trace (*.pfw.gz, *.pfw) in {str(path)!r}")
        found += inside
    return found


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
    number get different ones. Lines that cannot be read are left out, which is logged as a warning.
    The file appears complete or not at all.

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
        If the name of ``output`` ends in something else, or it is one of ``paths``.
    """
    target = Path(output)
    if not target.name.endswith((*_SUFFIXES, ".json", ".json.gz")):
        raise ValueError(f"{str(target)!r} must end in .pfw.gz, .pfw, .json or .json.gz")
    files = trace_files(paths)
    if any(target.exists() and target.samefile(file) for file in files):
        raise ValueError(f"{str(target)!r} is one of the traces to merge")
    is_strict = ".json" in target.name
    number_of = ProcessNumbers()
    left_out = LeftOut()
    count = 0
    opened = gzip.open if target.name.endswith(".gz") else open
    with replacing(target) as partial, opened(partial, "wt", encoding="utf-8") as out:
        out.write("[\n")
        for file in files:
            for event in read_events(file, left_out):
                arguments = event.get("args")
                host = arguments.get("hhash") if isinstance(arguments, dict) else None
                event["id"], event["pid"] = count, number_of(host, event.get("pid", 0))
                if count:
                    out.write(",\n" if is_strict else "\n")
                out.write(strict_json(event))
                count += 1
        out.write("\n]\n")
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
