"""When bodies begin in worker processes, which executors do not report: a file of notes."""

from __future__ import annotations

import os
import struct
import tempfile
import threading
import weakref

from dftracer.asyncflow.backends import remote


class Notes:
    """A file in which workers on this machine note when a call begins, and see if it must not.

    Executors hand calls to worker processes before these have time for them, and report no
    beginnings; and what was handed over cannot be cancelled through them.
    """

    def __init__(self) -> None:
        self.host = os.uname().nodename
        self.path = ""
        self._file = -1
        self._lock = threading.Lock()
        self._free: list[int] = []
        self._size = 0

    def reserve(self) -> int:
        """Return the position of a new note."""
        with self._lock:
            if not self.path:
                self._file, self.path = tempfile.mkstemp(prefix="dftracer-asyncflow-")
                weakref.finalize(self, _remove, self._file, self.path, os.getpid())
            if self._free:
                position = self._free.pop()
            else:
                position, self._size = self._size, self._size + 1
        self._write(position, 0.0)
        return position

    def read(self, position: int) -> tuple[float, int] | None:
        """Return when a call began and the identifier of its process, if it has begun."""
        size = struct.calcsize(remote.NOTE)
        packed = os.pread(self._file, size, position * size)
        since, pid = struct.unpack(remote.NOTE, packed)
        return (since, pid) if since > 0 else None

    def cancel(self, position: int) -> None:
        """Keep a call from beginning."""
        self._write(position, remote.CANCELLED)

    def release(self, position: int) -> None:
        """Take back the position of a call that has ended."""
        with self._lock:
            self._free.append(position)

    def _write(self, position: int, note: float) -> None:
        packed = struct.pack(remote.NOTE, note, 0)
        os.pwrite(self._file, packed, position * len(packed))


def _remove(file: int, path: str, process: int) -> None:
    if os.getpid() == process:  # not in the child of a fork
        os.close(file)
        os.unlink(path)
