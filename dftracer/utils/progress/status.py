"""The counts of a process's tasks in a small file, which other programs of the user can read.

It is written if ``DFTRACER_STATUS`` is set in the environment: to ``1`` for the usual directory, or
to the path of another. ``dftracer-flow run`` sets it; ``dftracer-flow top`` reads the files. The
directory belongs to the user alone. A file is replaced as a whole, and removed as its process ends.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dftracer.utils.progress.counts import Row, RuntimeRows
from dftracer.utils.progress.ticker import Ticker
from dftracer.utils.redaction import hide

if TYPE_CHECKING:
    from dftracer.utils import _native

ENVIRONMENT = "DFTRACER_STATUS"

_INTERVAL_S = 0.5
_PROC = Path("/proc")

_log = logging.getLogger("dftracer.utils")


class Status(NamedTuple):
    """What is in the file of a process."""

    pid: int
    command: str
    rows: list[Row]


def directory() -> Path:
    """Return the directory of the files, which need not be there."""
    given = os.environ.get(ENVIRONMENT, "")
    if given not in ("", "1"):
        return Path(given)
    own = os.environ.get("XDG_RUNTIME_DIR")
    if own and os.path.isdir(own):
        return Path(own, "dftracer")
    return Path(tempfile.gettempdir(), f"dftracer-{os.getuid()}")


def is_asked_for() -> bool:
    """Return whether this process shall write a status file."""
    return bool(os.environ.get(ENVIRONMENT))


# --- to write -------------------------------------------------------------------------------------

RowsOrNone = Callable[[], "Sequence[Row] | None"]
"""Returns rows, or ``None`` if the engine or runtime that had them is gone."""

_lock = threading.Lock()
_writer: _Writer | None = None


def write_of_engine(rows: Callable[[], Sequence[Row]]) -> None:
    """Write the rows of an engine, as long as it lives; ``rows`` is a method of it."""
    method = weakref.WeakMethod(rows)

    def ask() -> Sequence[Row] | None:
        rows = method()
        return None if rows is None else rows()

    _add(ask, is_engine=True)


def write_of_runtime(runtime: _native.Runtime) -> None:
    """Write the rows of a runtime, as long as it lives and there is no engine."""
    reference = weakref.ref(runtime)
    rows = RuntimeRows()

    def ask() -> Sequence[Row] | None:
        runtime = reference()
        return None if runtime is None else rows.of(runtime)

    _add(ask, is_engine=False)


def _add(ask: RowsOrNone, *, is_engine: bool) -> None:
    global _writer
    with _lock:
        if _writer is None:
            try:
                _writer = _Writer()
            except OSError as error:
                _log.warning("this process cannot write its status (%s): %s", ENVIRONMENT, error)
                return
        (_writer.engines if is_engine else _writer.runtimes).append(ask)


class _Writer:
    """Writes the file of this process."""

    def __init__(self) -> None:
        self.engines: list[RowsOrNone] = []
        self.runtimes: list[RowsOrNone] = []
        self._pid = os.getpid()
        self._path = _own_directory() / f"{self._pid}.json"
        read_all()  # which removes what is left of processes that were killed
        self._process = {
            "pid": self._pid,
            "began": _beginning_of(self._pid),
            "command": hide(" ".join(getattr(sys, "orig_argv", sys.argv)[1:])),
        }
        self._has_warned = False
        self._write([])
        self._ticker = Ticker(self._look, _INTERVAL_S, "dft-status")
        atexit.register(self._remove)

    def _look(self) -> None:
        # The runtime below an engine runs the same tasks.
        asked = self.engines or self.runtimes
        rows: list[Row] = []
        for ask in list(asked):
            found = ask()
            if found is None:
                asked.remove(ask)
            else:
                rows += found
        self._write(rows)

    def _write(self, rows: Sequence[Row]) -> None:
        """Write the file anew. If that cannot be done, it is tried again the next time."""
        other = self._path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        try:
            text = json.dumps({**self._process, "rows": rows}, ensure_ascii=False)
            with open(os.open(other, flags, 0o600), "wb") as file:
                file.write(text.encode(errors="replace"))  # a name may be in no encoding
            os.replace(other, self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                other.unlink()
            if not self._has_warned:
                self._has_warned = True
                _log.warning(
                    "this process cannot write its status for now (%s): %s", ENVIRONMENT, error
                )
        else:
            self._has_warned = False

    def _remove(self) -> None:
        if os.getpid() == self._pid:  # and not in the child of a fork
            self._ticker.stop()
            with contextlib.suppress(OSError):
                self._path.unlink()


def _own_directory() -> Path:
    """Make the directory if need be, and check that only this user can write to it."""
    path = directory()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owner(path)
    return path


def _check_owner(path: Path) -> None:
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(
            f"{str(path)!r} is not a directory that only this user can write to: remove it, or "
            f"name another in {ENVIRONMENT}"
        )


def _beginning_of(pid: int) -> str | None:
    """Return when a process began, as a number of the system's; ``None`` if it has ended."""
    if not _PROC.is_dir():
        return _beginning_by_ps(pid)
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()[19]  # in clock ticks since the system began


def _beginning_by_ps(pid: int) -> str | None:
    """Return when a process began in seconds, on systems that have no ``/proc``."""
    asked = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)],
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    if not (text := asked.stdout.strip()):
        return None
    return str(int(time.mktime(time.strptime(text, "%a %b %d %H:%M:%S %Y"))))


def _forget_in_child() -> None:
    """Forget the writer in the child of a ``fork()``, which has no thread that writes."""
    global _lock, _writer
    _lock = threading.Lock()
    _writer = None


os.register_at_fork(after_in_child=_forget_in_child)

# --- to read --------------------------------------------------------------------------------------


def read(pid: int) -> Status | None:
    """Return the status of a process; ``None`` if it has written none, or has ended.

    Raises
    ------
    PermissionError
        If others than this user can write to the directory.
    """
    folder = directory()
    file = folder / f"{pid}.json"
    try:
        _check_owner(folder)
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if content["began"] is None or content["began"] != _beginning_of(pid):
        file.unlink(missing_ok=True)  # it was killed before it could remove the file itself
        return None
    return Status(content["pid"], content["command"], [Row(*row) for row in content["rows"]])


def read_all() -> list[Status]:
    """Return the status of all processes of this user, in the order in which they began."""
    names = [file.stem for file in directory().glob("*.json")]
    found = [read(int(name)) for name in names if name.isdecimal()]
    return sorted((each for each in found if each), key=lambda each: _began(each.pid))


def _began(pid: int) -> int:
    return int(_beginning_of(pid) or 0)
