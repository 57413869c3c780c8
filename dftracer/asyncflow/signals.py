"""SIGHUP, SIGTERM and SIGINT shut down the engines of the main thread's event loop.

The handlers are plain ones of :mod:`signal`, not those of ``loop.add_signal_handler``: whatever was
there before, of any kind and on any event loop, can be read, called and put back. A handler that
the program has given to its loop stays with the loop, and is called as well.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    from dftracer.asyncflow.workflow_manager import WorkflowEngine

log = logging.getLogger("dftracer.asyncflow")

SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)

_ECHO_S = 0.25
"""A signal that comes again within this time is the same one, sent to the process and its group."""

Handler = Callable[[int, FrameType | None], Any] | int


def watch(engine: WorkflowEngine) -> None:
    """Shut ``engine`` down when a signal arrives, if its event loop runs in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        log.debug("engine '%s' is not in the main thread: signals do not reach it", engine.uid)
        return
    for loop, watcher in list(_watchers.items()):
        if loop.is_closed() or not watcher.is_here():
            del _watchers[loop]
            watcher.remove(loop)
    if engine.loop not in _watchers:
        _watchers[engine.loop] = _Watcher()
        _watchers[engine.loop].install(engine.loop)
    _watchers[engine.loop].engines.add(engine)


def unwatch(engine: WorkflowEngine) -> None:
    """Forget ``engine``. With the last one of its loop, the handlers of before come back."""
    watcher = _watchers.get(engine.loop)
    if watcher is not None:
        watcher.engines.discard(engine)
        if not watcher.engines:
            del _watchers[engine.loop]
            watcher.remove(engine.loop)


class _Watcher:
    """The signal handler for all engines of one event loop."""

    def __init__(self) -> None:
        self.engines: WeakSet[WorkflowEngine] = WeakSet()
        self._previous: dict[int, Handler] = {}
        self._process = os.getpid()
        self._first: tuple[int, float] | None = None
        """The signal that has begun a shutdown that goes on, and when it came."""
        self._endings: set[asyncio.Task[None]] = set()
        self._pipe: tuple[int, int] | None = None
        """What wakes the loop for a signal that comes just as it goes to sleep."""

    def is_here(self) -> bool:
        """Whether this is not the child of a fork, which shares the loop's descriptors."""
        return self._process == os.getpid()

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        descriptor = signal.set_wakeup_fd(-1)
        if descriptor == -1:
            self._pipe = read, descriptor = os.pipe()
            os.set_blocking(read, False)
            os.set_blocking(descriptor, False)
            loop.add_reader(read, os.read, read, 1_000)
        signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
        for signum in SIGNALS:
            previous = signal.getsignal(signum)
            # Ignored on purpose, as under nohup; or set by native code, which cannot be put back.
            if previous is not signal.SIG_IGN and previous is not None:
                self._previous[signum] = previous
                signal.signal(signum, self)

    def remove(self, loop: asyncio.AbstractEventLoop) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # the loop has moved; without engines, this passes everything on
        for signum, previous in self._previous.items():
            if signal.getsignal(signum) is self:  # else somebody has taken over
                signal.signal(signum, _in_use(previous, signum))
        if self._pipe is not None:
            read, write = self._pipe
            descriptor = signal.set_wakeup_fd(-1)
            if descriptor != write:
                signal.set_wakeup_fd(descriptor)
            if self.is_here() and not loop.is_closed():
                loop.remove_reader(read)
            os.close(read)
            os.close(write)
            self._pipe = None

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is not None and self._first[0] == signum and now < self._first[1] + _ECHO_S:
            return
        engines = [engine for engine in self.engines if engine.loop.is_running()]
        if self._first is not None or not engines or not self.is_here():
            self._pass_on(signum, frame)
            return
        self._first = (signum, now)
        # In a context of its own, for this one may be that of a block's body.
        engines[0].loop.call_soon_threadsafe(
            self._begin, engines, signum, context=contextvars.Context()
        )

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        previous = _in_use(self._previous[signum], signum)
        if callable(previous):
            previous(signum, frame)
        else:
            signal.signal(signum, previous)
            signal.raise_signal(signum)

    def _begin(self, engines: list[WorkflowEngine], signum: int) -> None:
        name = signal.Signals(signum).name
        log.info("%s: shutting down %s", name, ", ".join(engine.uid for engine in engines))
        for engine in engines:
            ending = engine.loop.create_task(engine.shutdown())
            self._endings.add(ending)
            ending.add_done_callback(self._ended)

    def _ended(self, ending: asyncio.Task[None]) -> None:
        self._endings.discard(ending)
        if not self._endings:
            self._first = None
        if not ending.cancelled() and (error := ending.exception()) is not None:
            log.error("an engine failed to shut down on a signal", exc_info=error)


_watchers: dict[asyncio.AbstractEventLoop, _Watcher] = {}


def _in_use(handler: Handler, signum: int) -> Handler:
    """Return ``handler``, or what takes its place if that has had its time."""
    while isinstance(handler, _Watcher) and not handler.engines:
        handler = handler._previous[signum]
    # That of `asyncio.run`, which could not take it back itself at the end of its task.
    task = getattr(handler, "keywords", {}).get("main_task")
    if isinstance(task, asyncio.Task) and task.done():
        return signal.default_int_handler
    return handler
