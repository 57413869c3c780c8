"""When bodies begin in worker processes, which executors do not report: a file of notes."""

from __future__ import annotations

import os
import struct
import tempfile
import threading
import weakref
from typing import TYPE_CHECKING

from dftracer.asyncflow.backends import remote

if TYPE_CHECKING:
    from collections.abc import Callable


class Notes:
    """A file in which workers on this machine note when a call begins, and see if it must not.

    Executors hand calls to worker processes before these have time for them, and report no
    beginnings; and what was handed over cannot be cancelled through them.
    """

    def __init__(self) -> None:
        self.host = os.uname().nodename
        self.path = ""
        self._file = -1
        self.lock = threading.RLock()
        """Held from when an item is asked for its position until that is done with: another thread
        may end the item, and its position is another's then."""
        self._free: list[int] = []
        self._size = 0
        self._remove: Callable[[], object] | None = None
        self._is_closed = False

    def reserve(self) -> int:
        """Return the position of a new note."""
        with self.lock:
            if not self.path and not self._is_closed:
                self._file, self.path = tempfile.mkstemp(prefix="dftracer-asyncflow-")
                self._remove = weakref.finalize(self, _remove, self._file, self.path, os.getpid())
            if self._free:
                position = self._free.pop()
            else:
                position, self._size = self._size, self._size + 1
            self._write(position, 0.0)
        return position

    def read(self, position: int) -> tuple[float, int] | None:
        """Return when a call began and the identifier of its process, if it has begun."""
        if self._file < 0:
            return None
        size = struct.calcsize(remote.NOTE)
        packed = os.pread(self._file, size, position * size)
        since, pid = struct.unpack(remote.NOTE, packed)
        return (since, pid) if since > 0 else None

    def cancel(self, position: int) -> None:
        """Keep a call from beginning."""
        self._write(position, remote.CANCELLED)

    def release(self, position: int) -> None:
        """Take back the position of a call that has ended."""
        with self.lock:
            self._free.append(position)

    def close(self) -> None:
        """Remove the file, whoever still has calls with notes: nobody waits for these any more.

        Without this it is removed with the last of them, which a thread may hold that has nothing
        to do.
        """
        with self.lock:
            self._is_closed = True
            if self._remove is not None:
                self._remove()
            self._file = -1

    def _write(self, position: int, note: float) -> None:
        if self._file < 0:
            return
        packed = struct.pack(remote.NOTE, note, 0)
        os.pwrite(self._file, packed, position * len(packed))


def _remove(file: int, path: str, process: int) -> None:
    if os.getpid() == process:  # not in the child of a fork
        os.close(file)
        os.unlink(path)
