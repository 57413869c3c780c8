"""Where this process writes the traces of its tasks: ``docs/tracing.md`` says which file a path
stands for."""

from __future__ import annotations

import os
import socket
import sys
import threading
import weakref

from dftracer.utils._native import Trace
from dftracer.utils.redaction import keep_environment

ENVIRONMENT = "DFTRACER_TRACE"
"""Where the default runtime and engines write a trace, unless they are given another place."""

_LEDGER = "DFTRACER_TRACES_BEGUN"
"""In the environment of child processes: the traces that must not be overwritten by them."""

SUFFIXES = (".pfw.gz", ".pfw")
"""Of the names of traces."""

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
    text = os.fsdecode(path)
    name = os.path.abspath(text)
    if text.endswith(os.sep):
        os.makedirs(name, exist_ok=True)
    if os.path.isdir(name):
        name = os.path.join(name, f"trace-{socket.gethostname()}-{os.getpid()}.pfw.gz")
    elif not name.endswith(SUFFIXES):
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
    keep_environment()  # programs may repeat its secrets in what the trace holds of them
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
    suffix = next(suffix for suffix in SUFFIXES if name.endswith(suffix))
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
