"""SIGHUP, SIGTERM and SIGINT shut down the engines of the main thread's loop and stop the program.

======================  ============================================================================
a signal                what follows
======================  ============================================================================
the first               the engines are shut down; unless the program has a handler of its own, or
                        waits in ``flow.run()``, its main task is cancelled, and where that ends as
                        cancelled the program does so with the exit code of the signal
the second              ends the program at once
none is answered        after two seconds in which the loop has not come to it, the exception is
                        raised in whatever keeps the loop from its turn
SIGINT at a front end   is that one's: see ``_is_front_ends``
======================  ============================================================================

A ``KeyboardInterrupt`` is raised where it cuts no step of asyncio's or the engine's in two: at once
in the program's own code, else in the loop's next turn. In the middle of such a step it could take
along what wakes a task, and whoever waits for that would wait for ever.

The handlers are plain ones of :mod:`signal`, not those of ``loop.add_signal_handler``: whatever was
there before, of any kind and on any event loop, can be read, called and put back. A handler that
the program has given to its loop stays with the loop, and is called as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol
from weakref import WeakKeyDictionary, finalize, ref

from dftracer.asyncflow.engine.signals.places import (
    current_run,
    main_task,
    may_be_cut,
    runs_for_ever,
)
from dftracer.asyncflow.engine.signals.reminder import Reminder
from dftracer.utils.lifetime.exit import hurry_at_exit

log = logging.getLogger("dftracer.asyncflow")

SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)

_ECHO_S = 0.25
"""A signal that comes again within this time is the same one, sent to the process and its group."""

_TURN_S = 2.0
"""How long a signal waits for the loop to come to it."""

_RETRIES_S = (0.01, 0.1, 0.4, 1.5)
"""How long an interrupt waits for a place where it may be raised; after the last it is raised
anywhere."""

Handler = Callable[[int, FrameType | None], Any] | int


class Engine(Protocol):
    """What is asked of an engine."""

    uid: str
    loop: asyncio.AbstractEventLoop

    @property
    def is_closed(self) -> bool: ...
    @property
    def is_run(self) -> bool: ...
    def close(self, by: str = "") -> None: ...
    async def shutdown(self) -> None: ...


def watch(engine: Engine) -> None:
    """Shut ``engine`` down when a signal arrives, if its event loop runs in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        log.debug("engine '%s' is not in the main thread: signals do not reach it", engine.uid)
        return
    for loop, watcher in list(_watchers.items()):
        if loop.is_closed() or not watcher.is_here():
            _watchers.pop(loop, None)
            watcher.remove(loop)
    if engine.loop not in _watchers:
        _watchers[engine.loop] = _Watcher()
        _watchers[engine.loop].install(engine.loop)
    _watchers[engine.loop].engines[engine] = current_run()
    finalize(engine, _engine_has_gone, ref(engine.loop)).atexit = False


def unwatch(engine: Engine) -> None:
    """Forget ``engine``. With the last one of its loop, the handlers of before come back."""
    watcher = _watchers.get(engine.loop)
    if watcher is not None:
        watcher.engines.pop(engine, None)
        if not watcher.engines:
            del _watchers[engine.loop]
            watcher.remove(engine.loop)


def _engine_has_gone(reference: ref[asyncio.AbstractEventLoop]) -> None:
    """Give the handlers back if nobody holds an engine of the loop any more.

    Called wherever the engine was dropped, or the garbage collector ran.
    """
    loop = reference()
    if loop is None or loop not in _watchers:
        return
    if loop.is_closed():
        _tidy(loop)
    else:
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            loop.call_soon_threadsafe(_tidy, loop, context=contextvars.Context())


def _tidy(loop: asyncio.AbstractEventLoop) -> None:
    watcher = _watchers.get(loop)
    if threading.current_thread() is not threading.main_thread():
        return  # signals can be seen to there only, as the next engine does
    # Those whose last reference has gone are in the dictionary for a moment more, but not in this.
    if watcher is not None and watcher.is_here() and not list(watcher.engines):
        del _watchers[loop]
        watcher.remove(loop)


class _Watcher:
    """The signal handler for all engines of one event loop."""

    def __init__(self) -> None:
        self.engines: WeakKeyDictionary[Engine, object] = WeakKeyDictionary()
        """Each with the run of the loop in which it was made."""
        self._previous: dict[int, Handler] = {}
        self._process = os.getpid()
        self._first: tuple[int, float] | None = None
        """The signal that has begun a shutdown that goes on, and when it came."""
        self._turn = Reminder(_TURN_S)
        """Open until the loop has come to the first signal."""
        self._interruption = Reminder(*_RETRIES_S)
        """Open until what SIGINT raises has found its place."""
        self._stops_program = False
        """Whether that ends the program, and not a cell."""
        self._is_raised = False
        """Whether a signal has raised what ends the program."""
        self._stopped: ref[asyncio.Task[Any]] | None = None
        """The main task that was cancelled."""
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
            # Not in the context of who makes the engine, which the loop would keep.
            contextvars.Context().run(loop.add_reader, read, os.read, read, 1_000)
        signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
        for signum in SIGNALS:
            if signum == signal.SIGINT and _is_interactive():
                continue
            previous = signal.getsignal(signum)
            # Ignored on purpose, as under nohup; or set by native code, which cannot be put back.
            if previous is not signal.SIG_IGN and previous is not None:
                self._previous[signum] = previous
                signal.signal(signum, self)

    def remove(self, loop: asyncio.AbstractEventLoop) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # the loop has moved; without engines, this passes everything on
        for signum, previous in self._previous.items():
            following = self._after(previous, signum)
            if signal.getsignal(signum) is self:  # else somebody has taken over
                signal.signal(signum, following)
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

    def _after(self, previous: Handler, signum: int) -> Handler:
        """Return what takes the place of this, so that the second signal ends the program."""
        handler = _in_use(previous, signum)
        stopped = self._stopped() if self._stopped is not None else None
        if stopped is not None and not stopped.done() and _task_of(handler) is stopped:
            # That of `asyncio.run` would begin anew, with a cancellation.
            return signal.default_int_handler
        return handler

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._turn.is_reminder():
            if self._turn.take()[0]:
                self._turn.done()
                self._is_raised = True
                raise _ending_of(signum)
            return
        if self._interruption.is_reminder():
            is_wanted, is_last = self._interruption.take()
            if is_wanted and (is_last or may_be_cut(frame, also_in_library=True)):
                self._raise_interrupt()
            return
        if self._first is not None and self._first[0] == signum and now < self._first[1] + _ECHO_S:
            return
        engines = [engine for engine in self.engines if engine.loop.is_running()]
        if not engines or not self.is_here():
            self._pass_on(signum, frame)
            return
        previous: Handler = self
        while isinstance(previous, _Watcher):  # of other loops
            previous = _in_use(previous._previous[signum], signum)
        is_own = _is_own(previous)
        if self._first is not None:
            if signum == signal.SIGINT and not is_own:
                hurry_at_exit()
                self._is_raised = True
                self._interrupt(frame, stops_program=True)
            else:
                self._pass_on(signum, frame)
            return
        if signum == signal.SIGINT and self._is_front_ends(engines, frame):
            self._pass_on(signum, frame)
            return
        self._first = (signum, now)
        self._is_raised = False
        # In a context of its own, for this one may be that of a block's body.
        engines[0].loop.call_soon_threadsafe(
            self._begin, engines, signum, is_own, context=contextvars.Context()
        )
        if is_own and callable(previous):
            previous(signum, frame)
        else:
            self._turn.begin(signum)

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        previous = _in_use(self._previous[signum], signum)
        if previous is signal.default_int_handler:
            self._interrupt(frame)
        elif callable(previous):
            previous(signum, frame)
        else:
            signal.signal(signum, previous)
            signal.raise_signal(signum)

    def _is_front_ends(self, engines: list[Engine], frame: FrameType | None) -> bool:
        """Tell whether SIGINT is for the one who runs the loop again and again, not for engines.

        As a notebook or a test runner does: each cell is a run of its own, which the signal ends,
        and the engine is for the next cell too. In the run that has made the engine, and in one
        that has no end, the signal is the engine's.
        """
        if _is_interactive():
            return True
        run = current_run()
        if all(self.engines.get(engine) is run for engine in engines):
            return False
        return not runs_for_ever(frame)

    # --- KeyboardInterrupt ----------------------------------------------------------------------

    def _interrupt(self, frame: FrameType | None, *, stops_program: bool = False) -> None:
        """Raise ``KeyboardInterrupt`` here, or soon where it breaks nothing."""
        self._stops_program = stops_program
        if may_be_cut(frame, also_in_library=False):
            self._raise_interrupt()
        elif not self._interruption.is_open:
            self._interruption.begin(signal.SIGINT)
            if not self._interruption.is_open:
                self._raise_interrupt()  # nothing would remind of it
            loop = asyncio._get_running_loop()
            if loop is not None:
                loop.call_soon_threadsafe(self._interrupt_loop, context=contextvars.Context())

    def _interrupt_loop(self) -> None:
        """Raise it as a callback of the loop, which that ends."""
        if self._interruption.is_open:
            self._raise_interrupt()

    def _raise_interrupt(self) -> None:
        self._interruption.done()
        raise _ending_of(signal.SIGINT) if self._stops_program else KeyboardInterrupt

    def _begin(self, engines: list[Engine], signum: int, is_own: bool) -> None:
        self._turn.done()
        name = signal.Signals(signum).name
        log.info("%s: shutting down %s", name, ", ".join(engine.uid for engine in engines))
        loop = engines[0].loop
        was_open = [engine for engine in engines if not engine.is_closed]
        leaves_by_itself = is_own or self._is_raised or any(e.is_run for e in engines)
        for engine in was_open:
            engine.close(f" by {name}")
        for engine in engines:
            ending = loop.create_task(engine.shutdown())
            self._endings.add(ending)
            ending.add_done_callback(self._ended)
        if leaves_by_itself:
            return
        main = main_task(loop)
        if main is None or not was_open:
            # What has begun to shut down by itself is left to do so.
            last = asyncio.gather(*self._endings, return_exceptions=True)
            last.add_done_callback(functools.partial(self._stop_after, loop, signum))
        else:
            self._stop(main, signum)

    def _stop_after(
        self, loop: asyncio.AbstractEventLoop, signum: int, _: asyncio.Future[Any]
    ) -> None:
        main = main_task(loop)
        if main is not None:
            self._stop(main, signum)
        else:
            raise _ending_of(signum)

    def _stop(self, main: asyncio.Task[Any], signum: int) -> None:
        """Cancel the main task, and end the program if it ends as cancelled."""
        self._stopped = ref(main)
        main.add_done_callback(functools.partial(_end_with, signum))
        main.cancel(f"{signal.Signals(signum).name} stops the program")

    def _ended(self, ending: asyncio.Task[None]) -> None:
        self._endings.discard(ending)
        if not self._endings:
            self._first = None
        if not ending.cancelled() and (error := ending.exception()) is not None:
            log.error("an engine failed to shut down on a signal", exc_info=error)


def _end_with(signum: int, main: asyncio.Task[Any]) -> None:
    """End the program as a signal does, if that has cancelled its main task."""
    try:
        main.result()
    except asyncio.CancelledError as cancellation:
        # asyncio lets these two, and no other, end the run of its loop.
        raise _ending_of(signum) from cancellation
    except BaseException:  # the program's own
        return


def _ending_of(signum: int) -> BaseException:
    name = signal.Signals(signum).name
    if signum == signal.SIGINT:
        return KeyboardInterrupt(f"{name} stops the program")
    log.warning("%s stops the program, with exit code %d", name, 128 + signum)
    return SystemExit(128 + signum)


def _is_interactive() -> bool:
    """Tell whether somebody types statements: at Python's prompt, or in IPython or a notebook."""
    return hasattr(sys, "ps1")


_watchers: dict[asyncio.AbstractEventLoop, _Watcher] = {}


def _in_use(handler: Handler, signum: int) -> Handler:
    """Return ``handler``, or what takes its place if that has had its time."""
    while isinstance(handler, _Watcher) and not handler.engines:
        handler = handler._previous[signum]  # pyright: ignore[reportPrivateUsage]
    # That of `asyncio.run`, which could not take it back itself at the end of its task.
    task = _task_of(handler)
    if task is not None and task.done():
        return signal.default_int_handler
    return handler


def _task_of(handler: Handler) -> asyncio.Task[Any] | None:
    """Return what a handler of `asyncio.run` cancels."""
    found = getattr(handler, "keywords", {}).get("main_task")
    is_task = isinstance(found, asyncio.Task)
    return found if is_task else None  # pyright: ignore[reportUnknownVariableType]


def _is_own(handler: Handler) -> bool:
    """Tell whether a handler is the program's own."""
    is_usual = handler is signal.default_int_handler or _task_of(handler) is not None
    return callable(handler) and not is_usual
