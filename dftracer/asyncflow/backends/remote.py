"""What a worker process of a pool does. It travels as source code does, by value.

So a worker needs ``cloudpickle`` and nothing else of ours. Nothing here may refer to a module of
this project but :mod:`dftracer.utils.payload`, and of that only to what travels by value.
"""

from __future__ import annotations

import importlib
import os
import struct
import sys
import time

from dftracer.utils.payload import PackedOutcome, pack_cancelled, run_call

NOTE = "dq"
"""A note is a double, 0 before a call begins, then the clock when it did, and the worker's pid."""
CANCELLED = -1.0

THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
"""The variables in which native libraries look up how many threads they may have."""


def limit_native_threads(share: int) -> None:
    """Let native libraries in this worker have ``share`` threads, unless the user has said it.

    Libraries that are loaded already, as in the child of a fork, read no environment any more: they
    are limited by ``threadpoolctl``, where that is installed.
    """
    is_said = any(name in os.environ for name in THREADS)
    for name in THREADS:
        os.environ.setdefault(name, str(share))
    if not is_said and not {"numpy", "torch"}.isdisjoint(sys.modules):
        try:
            importlib.import_module("threadpoolctl").threadpool_limits(share)
        except Exception:
            return  # it is not there, or does not know what is loaded


def run(call: bytes, notes: str, host: str, position: int) -> PackedOutcome:
    """Note that a packed call begins, and run it, unless it was cancelled."""
    if not _may_begin(notes, host, position):
        return pack_cancelled()
    process = os.getpid()
    outcome = run_call(call)
    if os.getpid() != process:
        os._exit(0)  # the body has forked, and this is the child, which is no worker
    return outcome


def _may_begin(notes: str, host: str, position: int) -> bool:
    """Note that a call begins, unless it was cancelled."""
    if host != os.uname().nodename:
        return True  # another clock, and another file if any
    size = struct.calcsize(NOTE)
    try:
        file = os.open(notes, os.O_RDWR)
    except OSError:
        return True
    try:
        note = os.pread(file, size, position * size)
        if struct.unpack(NOTE, note)[0] == CANCELLED:
            return False
        os.pwrite(file, struct.pack(NOTE, time.monotonic(), os.getpid()), position * size)
    finally:
        os.close(file)
    return True
