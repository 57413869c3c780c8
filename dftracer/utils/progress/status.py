"""What a process tells other programs of its user about its tasks: one small file, if it is asked.

``DFTRACER_STATUS`` in the environment asks for it, which ``dftracer-flow run`` sets: ``1`` for the
usual directory, or the path of another. ``dftracer-flow top`` reads it. The directory belongs to
the user alone; the file is replaced as a whole and goes with the process.
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
    """What a process has told."""

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
    """Return whether this process shall tell of its tasks."""
    return bool(os.environ.get(ENVIRONMENT))


# --- to tell --------------------------------------------------------------------------------------

RowsOrNone = Callable[[], "Sequence[Row] | None"]
"""What to ask for rows; ``None`` if nobody has them any more."""

_lock = threading.Lock()
_writer: _Writer | None = None


def tell_of_engine(rows: Callable[[], Sequence[Row]]) -> None:
    """Tell of the tasks of an engine, for as long as it lives; ``rows`` is a method."""
    method = weakref.WeakMethod(rows)

    def ask() -> Sequence[Row] | None:
        rows = method()
        return None if rows is None else rows()

    _tell(ask, is_engine=True)


def tell_of_runtime(runtime: _native.Runtime) -> None:
    """Tell of the tasks of a runtime, as long as it lives and there is no engine."""
    reference = weakref.ref(runtime)
    rows = RuntimeRows()

    def ask() -> Sequence[Row] | None:
        runtime = reference()
        return None if runtime is None else rows.of(runtime)

    _tell(ask, is_engine=False)


def _tell(ask: RowsOrNone, *, is_engine: bool) -> None:
    global _writer
    with _lock:
        if _writer is None:
            try:
                _writer = _Writer()
            except OSError as error:
                _log.warning("this process cannot tell of its tasks (%s): %s", ENVIRONMENT, error)
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
        self._told = {
            "pid": self._pid,
            "began": _beginning_of(self._pid),
            "command": hide(" ".join(getattr(sys, "orig_argv", sys.argv)[1:])),
        }
        self._has_complained = False
        self._write([])
        self._ticker = Ticker(self._look, _INTERVAL_S, "dft-status")
        atexit.register(self._remove)

    def _look(self) -> None:
        # A runtime below an engine would tell of the same tasks once more.
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
            text = json.dumps({**self._told, "rows": rows}, ensure_ascii=False)
            with open(os.open(other, flags, 0o600), "wb") as file:
                file.write(text.encode(errors="replace"))  # a name may be in no encoding
            os.replace(other, self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                other.unlink()
            if not self._has_complained:
                self._has_complained = True
                _log.warning(
                    "this process cannot tell of its tasks for now (%s): %s", ENVIRONMENT, error
                )
        else:
            self._has_complained = False

    def _remove(self) -> None:
        if os.getpid() == self._pid:  # and not in the child of a fork
            self._ticker.stop()
            with contextlib.suppress(OSError):
                self._path.unlink()


def _own_directory() -> Path:
    """Make the directory if need be, and see that it is this user's alone."""
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
    """Return when a process began, as a number of the system's; ``None`` if it is no more."""
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
    """After ``fork()`` the child is a process of its own, without the thread that writes."""
    global _lock, _writer
    _lock = threading.Lock()
    _writer = None


os.register_at_fork(after_in_child=_forget_in_child)

# --- to read --------------------------------------------------------------------------------------


def read(pid: int) -> Status | None:
    """Return what a process tells of its tasks; ``None`` if it tells nothing, or has ended.

    Raises
    ------
    PermissionError
        If others than this user can write where it would tell it.
    """
    folder = directory()
    file = folder / f"{pid}.json"
    try:
        _check_owner(folder)
        told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if told["began"] is None or told["began"] != _beginning_of(pid):
        file.unlink(missing_ok=True)  # it was killed before it could do that itself
        return None
    return Status(told["pid"], told["command"], [Row(*row) for row in told["rows"]])


def read_all() -> list[Status]:
    """Return what all processes of this user tell, the one that began last at the end."""
    names = [file.stem for file in directory().glob("*.json")]
    found = [read(int(name)) for name in names if name.isdecimal()]
    return sorted((each for each in found if each), key=lambda each: _began(each.pid))


def _began(pid: int) -> int:
    return int(_beginning_of(pid) or 0)
