"""The :class:`Runtime`: native threads that run tasks."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dftracer.utils import _native
from dftracer.utils._native import ProcessResult, TaskHandle
from dftracer.utils.durations import to_milliseconds
from dftracer.utils.executor import RuntimeExecutor
from dftracer.utils.lifetime.exit import register_at_exit
from dftracer.utils.lifetime.fork import register_at_fork
from dftracer.utils.progress.counts import RuntimeRows
from dftracer.utils.progress.display import show
from dftracer.utils.progress.snapshot import RuntimeProgress as RuntimeProgress
from dftracer.utils.progress.snapshot import TaskFailure as TaskFailure
from dftracer.utils.progress.snapshot import TaskProgress as TaskProgress
from dftracer.utils.progress.snapshot import WorkerProgress as WorkerProgress
from dftracer.utils.redaction import hide, keep_environment

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

T = TypeVar("T")

_THREADS = "DFTRACER_UTILS_THREADS"
_IO_THREADS = "DFTRACER_UTILS_IO_THREADS"

_SHELL = "/bin/sh"

_log = logging.getLogger("dftracer.utils")
_log.addHandler(logging.NullHandler())  # said only where the program has set up its logging


class Runtime(_native.Runtime):
    """Runs callables, coroutine functions, programs and file work on threads that Rust owns.

    Parameters
    ----------
    threads:
        Compute threads for native work. 0 means as many CPUs as this process may use: its
        affinity and its cgroup's quota, not the number in the box.
    io_threads:
        Threads for native I/O, by which child processes are started and awaited; and, apart from
        those, the most threads that run what :meth:`submit_io` is given. 0 as above.
    python_threads:
        The most threads that run plain callables, and, apart from those, the most event loops
        that run coroutine functions. 0 means ``min(32, threads)``. They are started one by one,
        when there is work for them.
    trace:
        Where to write the life of every task, in DFTracer's format: a file ending in ``.pfw.gz``,
        or a directory. See ``docs/tracing.md``.
    keep_frames:
        Whether :meth:`get_failed` keeps the frames of tracebacks, with the variables of all
        functions on the way, for a debugger. Otherwise they are dropped with the task's handle.
    interrupt:
        Whether plain bodies that are cancelled or run out of time get
        :class:`asyncio.CancelledError`, thrown into their thread. That can break locks for the
        whole process; see "Cancellation" in ``docs/lifecycle.md``.

    Raises
    ------
    ValueError
        If a size is negative, or above 32,767, or the name of the trace ends in something else.
    OSError
        If the trace cannot be written.

    Notes
    -----
    ``DFTRACER_UTILS_THREADS`` and ``DFTRACER_UTILS_IO_THREADS`` in the environment, if they are
    numbers above 0, are used instead of ``threads`` and ``io_threads``, whatever these are.

    A subclass may have an ``__init__`` with other parameters, which calls this one first.

    Leaving the ``with`` block, or :meth:`shutdown`, waits for every task. What happens at
    interpreter exit, after ``fork()`` and on signals is in ``docs/lifecycle.md``.
    """

    def __init__(
        self,
        threads: int = 0,
        io_threads: int = 0,
        python_threads: int = 0,
        trace: str | os.PathLike[str] | None = None,
        keep_frames: bool = False,
        interrupt: bool = False,
    ) -> None:
        super().__init__(
            _size_of_environment(_THREADS) or threads,
            _size_of_environment(_IO_THREADS) or io_threads,
            python_threads,
            trace,
            keep_frames,
            interrupt,
        )
        if os.environ.get("DFTRACER_STATUS"):
            from dftracer.utils.progress import status  # which few programs need

            status.write_of_runtime(self)

    def run_process(
        self,
        command: str | Sequence[str | bytes | os.PathLike[str]],
        *,
        shell: bool | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | str | os.PathLike[str] | None = None,
        stdout: str | os.PathLike[str] | bool | None = None,
        stderr: str | os.PathLike[str] | bool | None = None,
        timeout: float | None = None,
        name: str | None = None,
        tty: bool = False,
    ) -> TaskHandle[ProcessResult]:
        """Run a program, without a thread of its own.

        It runs in a process group of its own, which :meth:`TaskHandle.cancel`, a timeout and the
        end of the interpreter kill as a whole. It has no terminal, unless you ask for that: what
        would ask there for a password fails at once.

        Parameters
        ----------
        command:
            A list of words: the program, looked for in ``PATH`` unless it holds a slash, and its
            arguments. Or a string, which ``/bin/sh -c`` receives unchanged.
        shell:
            Whether a shell runs it; by default a string yes, a list no.
        cwd:
            The directory to run in; this process's own by default.
        env:
            The whole environment; this process's own by default.
        stdin:
            What it reads: bytes, or the path of a file; nothing by default.
        stdout, stderr:
            Where it writes: the path of a file, which is made or emptied; ``False`` to discard;
            by default into the result.
        timeout:
            Seconds it may run. Then its process group is killed.
        name:
            The task's name; the program by default.
        tty:
            Whether it may ask in this process's terminal. Then it has the terminal's foreground
            while it runs, and Ctrl-C is for it; its standard input is the terminal, unless
            ``stdin`` says otherwise. One program at a time has it.

        Returns
        -------
        TaskHandle[ProcessResult]
            Ends as done whatever the exit code. Fails with :class:`OSError` if the program or a
            file could not be opened (:class:`FileNotFoundError` if there is none), or there is no
            terminal to ask in, and with
            :class:`TaskTimeoutError`, whose ``result`` holds what had been written, at the timeout.

        Raises
        ------
        ValueError
            If ``command`` is empty.
        TypeError
            If a list is given for a shell, or a string without one.
        """
        if isinstance(command, str):
            if shell is False:
                raise TypeError("a command without a shell must be a list of words")
            if not command.strip():
                raise ValueError("the command is empty: name a program to run")
            argv: Sequence[str | bytes | os.PathLike[str]] = [_SHELL, "-c", command]
        else:
            if shell:
                raise TypeError("a command for a shell must be a string")
            argv = command
        if env:
            keep_environment(env)
        return self.start_process(
            [os.fsdecode(word) for word in argv],
            cwd=cwd,
            env=None if env is None else list(env.items()),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            timeout=timeout,
            name=name if name is not None or not isinstance(command, str) else hide(command),
            tty=tty,
        )

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        buffersize: int | None = None,
    ) -> _Results[T]:
        """Call ``fn`` with items of the ``iterables`` side by side; yield results in order.

        The iterator raises what a call raises, in its turn, and then ends. Calls that have not
        begun by then, or when it is closed or dropped, are cancelled.

        Parameters
        ----------
        buffersize:
            How many calls may be submitted beyond those whose results were taken. With it, even
            an endless iterable is read only so far. Without, all calls are submitted at once.

        Raises
        ------
        ValueError
            If ``buffersize`` is below 1.
        TypeError
            If no iterable is given.
        """
        if not iterables:
            raise TypeError("map() takes at least one iterable")
        if buffersize is not None and buffersize < 1:
            raise ValueError(f"buffersize must be at least 1, not {buffersize}")
        first, *others = iterables
        spread = bool(others)
        items = zip(*iterables, strict=False) if spread else first
        return _Results(self, fn, items, spread, buffersize)

    def executor(self) -> RuntimeExecutor:
        """Return a :class:`concurrent.futures.Executor` that runs calls on this runtime."""
        return RuntimeExecutor(self)

    def wait(self, handle: TaskHandle[Any], timeout: float | None = None) -> None:
        """Wait for the end of the task of ``handle``, and raise its error.

        As :meth:`TaskHandle.wait <dftracer.utils.TaskHandle.wait>`, for at most ``timeout``
        seconds.

        Raises
        ------
        TimeoutError
            If the task has not ended in time. It goes on.
        concurrent.futures.CancelledError
            If the task was cancelled.
        BaseException
            Whatever the body raised.
        WaitRefusedError
            If waiting here could block for ever, as for :meth:`TaskHandle.get`.
        ForkedRuntimeError
            If the runtime was made before a ``fork()``.
        """
        handle.wait(timeout)

    def wait_all(self, raise_on_error: bool = False, progress: bool = False) -> None:
        """Wait until every task has ended.

        Called inside a task it waits for all tasks but those that are inside ``wait_all``
        themselves: for these it would wait for ever.

        Parameters
        ----------
        raise_on_error:
            Raise if tasks have failed since the last call.
        progress:
            Show meanwhile, on the standard error, how far the tasks of each name have come, if
            that takes more than half a second; see ``docs/progress.md``.

        Raises
        ------
        RuntimeError
            With ``raise_on_error``, if tasks have failed; it names them.
        """
        if not progress:
            super().wait_all(raise_on_error)
            return
        rows = RuntimeRows()
        with show(lambda: rows.of(self), is_cheap=False):
            super().wait_all(raise_on_error)

    def set_timeout(self, global_ms: float | str = 0) -> None:
        """Let every task that has not ended by then run out of time; 0 takes that back.

        Each gets a :class:`TaskTimeoutError` and is asked to stop; see ``docs/lifecycle.md``.

        Parameters
        ----------
        global_ms:
            Milliseconds from this call, or a text such as ``"30s"`` or ``"5m"``.

        Raises
        ------
        ValueError
            If that is negative or no duration.
        """
        self.set_timeout_ms(to_milliseconds(global_ms, "global_ms"))

    def set_default_task_timeout(self, ms: float | str = 0) -> None:
        """Limit how long each task may run, from its beginning; 0 takes the limit away.

        Applies to tasks that begin from now on. At its deadline a task fails with
        :class:`TaskTimeoutError` and is asked to stop.

        Parameters
        ----------
        ms:
            Milliseconds, or a text such as ``"30s"`` or ``"5m"``.

        Raises
        ------
        ValueError
            If that is negative or no duration.
        """
        self.set_default_task_timeout_ms(to_milliseconds(ms, "ms"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()


def _size_of_environment(variable: str) -> int:
    """Return the size that a variable gives to every runtime; 0 if that is no number above 0."""
    text = os.environ.get(variable, "").strip()
    return int(text) if text.isascii() and text.isdecimal() else 0


class _Results(_native.Results[T]):
    """The results of :meth:`Runtime.map`: dropped, it is closed."""

    # Not a function in Python: a signal's handler could raise in that, where nobody would hear.
    __del__ = _native.Results.close  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]


register_at_exit()
register_at_fork()
