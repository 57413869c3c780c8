"""The Rust module. Users reach these names through :mod:`dftracer.utils`."""

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextvars import Context
from os import PathLike
from pathlib import Path
from types import CodeType, FrameType, GenericAlias
from typing import Any, Generic, Literal, Protocol, TypeVar, final, overload

from typing_extensions import Self, disjoint_base

from dftracer.utils.handle import Cancellation
from dftracer.utils.progress.snapshot import RuntimeProgress

_R = TypeVar("_R")
_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)

class _Submission(Protocol):
    """What :meth:`Runtime.submit_to` reads."""

    @property
    def function(self) -> Callable[..., Any] | None: ...
    @property
    def args(self) -> tuple[Any, ...]: ...
    @property
    def kwargs(self) -> dict[str, Any] | None: ...
    @property
    def name(self) -> str: ...
    @property
    def context(self) -> Context | None: ...
    @property
    def interrupt(self) -> bool: ...
    @property
    def options(self) -> Mapping[str, Any]: ...
    @property
    def trace_note(self) -> tuple[int, str] | None: ...

__all__ = [
    "Blocked",
    "CoroutineWorker",
    "ForkedRuntimeError",
    "Graph",
    "Mailbox",
    "ProcessResult",
    "Results",
    "Runtime",
    "RuntimeShutdownError",
    "SystemLimitError",
    "TaskHandle",
    "TooManyBlockedError",
    "Trace",
    "WaitRefusedError",
    "Waiting",
    "__version__",
    "after_fork_in_child",
    "after_fork_in_parent",
    "available_cpus",
    "bare_frame",
    "before_fork",
    "hide_secrets",
    "keep_secret",
    "running_task",
    "shutdown_all",
    "sleep",
    "track_all",
    "untrack",
]

__version__: str

def available_cpus() -> int:
    """Return how many CPUs this process may use.

    That is the smaller of its affinity mask and its cgroup's quota, not the number in the box.
    """

def sleep(seconds: float, /) -> None:
    """Sleep, and wake at once if the task that calls this is cancelled or times out.

    Parameters
    ----------
    seconds:
        How long; the interpreter is released meanwhile.

    Raises
    ------
    asyncio.CancelledError
        If the task, whose plain body calls this, is cancelled or times out.
    ValueError
        If ``seconds`` is not a number.
    """

def bare_frame(code: CodeType, globals: dict[str, Any], /) -> FrameType:
    """Return a frame that runs nothing and holds no variables, to stand in a traceback.

    Raises
    ------
    ValueError
        If ``code`` has free variables.
    """

def running_task() -> TaskHandle[Any] | None:
    """Return the handle of the plain body that runs on this thread."""

def shutdown_all(patience: float) -> tuple[list[str], BaseException | None]:
    """Shut down every runtime of this process for ever, and write the traces. Run at exit.

    Waits as long as tasks end. When none has ended for ``patience`` seconds, or a signal's handler
    raises, cancels the rest. Called again it does nothing.

    Returns
    -------
    tuple[list[str], BaseException | None]
        The names of the tasks that were cancelled, and what the signal's handler has raised.
    """

def keep_secret(forms: Sequence[str]) -> None:
    """Hide a secret in these forms from now on: in traces, and in texts for :func:`hide_secrets`.

    Of very many secrets, those that were not given lately are forgotten.
    """

def hide_secrets(text: str) -> str:
    """Return ``text`` with ``***`` for each known secret, each piece of one, and logins in URLs."""

def untrack(future: asyncio.Future[Any], /) -> None:
    """Take an unfinished asyncio future off the list that the garbage collector looks through.

    Until it is back, nothing that it is part of is found to be garbage. It is put back when the end
    of the task is posted whose token it is, or by :func:`track_all`.

    Raises
    ------
    TypeError
        If it is no asyncio future.
    """

def track_all(objects: list[Any], /) -> None:
    """Put objects back on the list that the garbage collector looks through."""

def before_fork() -> None:
    """Wait until no native thread holds a lock, or opens or closes a pipe.

    In the child of the fork a held lock would stay held for ever; the child closes open pipes.
    """

def after_fork_in_parent() -> None:
    """Let the native threads go on."""

def after_fork_in_child() -> None:
    """Mark every runtime made so far as a copy without threads. Run in the child of a fork."""

class RuntimeShutdownError(RuntimeError):
    """A task was submitted to a runtime that is shut down, or while the interpreter exits."""

class ForkedRuntimeError(RuntimeError):
    """A runtime that was made before a ``fork()`` was used in the child process.

    It has no threads there. :func:`~dftracer.utils.get_default_runtime` makes a new one.
    """

class WaitRefusedError(RuntimeError):
    """Waiting here could block for ever.

    For example because the task that is waited for waits, itself or through others, for the one
    that waits.
    """

class TooManyBlockedError(WaitRefusedError):
    """So many tasks of a runtime wait for others that one more could block for ever.

    Return futures, or use ``await``, instead of waiting inside so many tasks.
    """

class SystemLimitError(RuntimeError):
    """The system has refused a thread that a runtime needs.

    End other threads, or raise the limit.
    """

@disjoint_base
class TaskHandle(Generic[_T_co]):
    """One task and its outcome. Made by :meth:`Runtime.submit`.

    Every task has exactly one outcome: done, failed or cancelled. It lives as long as the handle;
    the arguments are released when the body has returned.

    A handle can be awaited in any asyncio event loop: ``await handle`` gives the result or raises,
    and cancels the task if the wait is cancelled.

    Parameters
    ----------
    native, future:
        A handle of any runtime or a :class:`concurrent.futures.Future` to make a handle around; at
        most one of them. Without either the handle has ended with ``None``.
    name, task_id:
        Name and number of the new handle; by default those of ``native``.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self: ...
    def __init__(
        self,
        native: TaskHandle[_T_co] | None = None,
        future: Future[_T_co] | None = None,
        name: str | None = None,
        task_id: int = -1,
    ) -> None: ...
    @property
    def task_id(self) -> int:
        """The number of the task within its runtime, from 0."""

    @property
    def name(self) -> str:
        """The name given at submission, or that of the callable.

        The latter is ``Class.method``, ``function`` or ``<lambda>``, with its module before it
        unless that is ``__main__``.
        """

    @property
    def state(self) -> Literal["queued", "running", "done", "failed", "cancelled"]:
        """How far the task is; the last three do not change any more."""

    @property
    def exception(self) -> BaseException | None:
        """The exception of a failed task; ``None`` before its end and if it did not fail."""

    def get(self, timeout: float | None = None) -> _T_co:
        """Wait for the end of the task and return its result.

        Parameters
        ----------
        timeout:
            Seconds to wait; ``None`` waits for ever.

        Raises
        ------
        TimeoutError
            If the task has not ended in time. It goes on.
        concurrent.futures.CancelledError
            If the task was cancelled.
        BaseException
            Whatever the body raised, with its traceback, each time anew.
        WaitRefusedError
            If waiting here could block for ever: the task waits for the one that calls this, or too
            many tasks of the runtime wait already (:class:`~dftracer.utils.TooManyBlockedError`).
        ForkedRuntimeError
            If the runtime was made before a ``fork()``.
        """

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the end of the task, and raise its error, as :meth:`get` does.

        To wait without that, use :meth:`Runtime.wait_all` or :func:`as_completed`.

        Parameters
        ----------
        timeout:
            Seconds to wait; ``None`` waits for ever.

        Raises
        ------
        TimeoutError
            If the task has not ended in time. It goes on.
        concurrent.futures.CancelledError
            If the task was cancelled.
        BaseException
            Whatever the body raised, with its traceback, each time anew.
        WaitRefusedError
            If waiting here could block for ever, as for :meth:`get`.
        ForkedRuntimeError
            If the runtime was made before a ``fork()``.
        """

    def done(self) -> bool:
        """Return whether the task has ended: done, failed or cancelled."""

    def cancel(self) -> Cancellation:
        """Stop the task if that can be done, and return what was done.

        A task that has not begun never will: ``DEQUEUED``. One that runs is asked to stop:
        ``REQUESTED``. A coroutine gets :class:`asyncio.CancelledError` where it waits; a child
        process is killed with its process group. The task of a plain body ends at once, and the
        body goes on: it gets the same error in the waits of this package, and can check
        :attr:`cancel_requested`. A file that is being staged does not appear any more, and its
        task ends at once, as one that hashes does. A task that has ended: ``TOO_LATE``.
        """

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody, or a deadline, wants the task to stop."""

    def add_done_callback(self, callback: Callable[[TaskHandle[_T_co]], object]) -> None:
        """Call ``callback(handle)`` once, when the task has ended, or at once if it has.

        It is called on the thread that ends the task; for programs and file work, and at
        deadlines, on a thread for callbacks. It may wait, fork and shut down. What it raises is
        logged; but where it is called within this method, or within :meth:`cancel`, what is no
        ``Exception`` is raised there, Ctrl-C above all.
        """

    def __await__(self) -> Generator[Any, Any, _T_co]: ...
    def _report(self) -> tuple[Literal["done", "failed", "cancelled"], Any]:
        """Return how a task has ended, and its value or exception."""

    def _deliver_to(self, mailbox: Mailbox, token: Any) -> None:
        """Post the end of the task to ``mailbox`` under ``token``."""

    def _withdraw(self, token: Any) -> bool:
        """Do not post ``token`` when the task ends; false if that was not to be, or has been."""

    def _adopt(self, state: str, value: Any | None) -> None:
        """End a handle that was made around a task of somebody else."""

    def __class_getitem__(cls, key: Any) -> GenericAlias: ...

@disjoint_base
class Results(Generic[_T]):
    """The results of one call for each item, in order; see :meth:`dftracer.utils.Runtime.map`."""

    def __new__(
        cls,
        runtime: Runtime,
        function: Callable[..., _T],
        items: Iterable[Any],
        spread: bool,
        buffersize: int | None,
    ) -> Self: ...
    def __class_getitem__(cls, key: Any) -> GenericAlias: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> _T: ...
    def close(self) -> None:
        """Cancel the calls that have not begun."""

@disjoint_base
class Runtime:
    """The native part of :class:`dftracer.utils.Runtime`, where it is documented."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self: ...
    def __init__(
        self,
        threads: int = 0,
        io_threads: int = 0,
        python_threads: int = 0,
        trace: str | PathLike[str] | None = None,
        keep_frames: bool = False,
        interrupt: bool = False,
    ) -> None: ...
    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of the pools, started or not: ``threads``, ``io_threads``,
        ``python_threads``."""

    @property
    def threads(self) -> int:
        """The number of compute threads."""

    @property
    def io_threads(self) -> int:
        """The number of I/O threads."""

    @property
    def python_threads(self) -> int:
        """The most Python workers there will be; 0 until the first is started."""

    @overload
    def submit(self, task_or_fn: TaskHandle[_R], /) -> TaskHandle[_R]: ...
    @overload
    def submit(
        self,
        task_or_fn: Callable[..., Coroutine[Any, Any, _R]],
        /,
        *args: Any,
        name: str | None = None,
        interrupt: bool = False,
        **kwargs: Any,
    ) -> TaskHandle[_R]: ...
    @overload
    def submit(
        self,
        task_or_fn: Callable[..., _R],
        /,
        *args: Any,
        name: str | None = None,
        interrupt: bool = False,
        **kwargs: Any,
    ) -> TaskHandle[_R]:
        """Run ``task_or_fn(*args, **kwargs)`` on a worker thread, in a copy of this context.

        A coroutine function runs in an :class:`asyncio.Task` on a worker's event loop; what is
        returned is its result. A handle is returned as it is.

        Parameters
        ----------
        name:
            The task's name, instead of that of the callable.
        interrupt:
            Whether a plain body that is cancelled or runs out of time gets
            :class:`asyncio.CancelledError`, thrown into its thread. That can break locks for the
            whole process; see "Cancellation" in ``docs/lifecycle.md``.

        Raises
        ------
        TypeError
            If ``task_or_fn`` is neither callable nor a handle.
        RuntimeShutdownError
            If the runtime is shut down.
        ForkedRuntimeError
            If it was made before a ``fork()``.
        """

    def start_trace(self, trace: Trace) -> None:
        """Write the tasks that are submitted from now on to ``trace``.

        A runtime writes to one trace in its life: if it does already, nothing changes.

        Raises
        ------
        ForkedRuntimeError
            If the runtime was made before a ``fork()``.
        """

    def traces_to(self, trace: Trace) -> bool:
        """Whether tasks are written to ``trace``."""

    def submit_to(
        self,
        mailbox: Mailbox,
        submissions: Iterable[_Submission],
        report_running: bool = False,
        timeouts: Sequence[tuple[float, str] | None] | None = None,
        ahead: int = 0,
    ) -> list[TaskHandle[Any]] | None:
        """Run many calls for one reader.

        Of each submission its attributes are read: ``function``, ``args``, ``kwargs`` (or
        ``None``), ``name``, ``interrupt`` as for :meth:`submit`, and ``context``. The body runs in
        that, which nothing else may run in, or in a new one if that is empty; ``None`` is a copy of
        this one. If the runtime has a trace, also ``trace_note``: when the call was created
        (:meth:`Trace.clock`), and members of a JSON object, without braces; or ``None``. Without
        ``timeouts``, also whether it has ``options``.

        Each outcome is posted to ``mailbox`` under the submission. A failure is the business of the
        mailbox's reader: :meth:`wait_all` and :meth:`get_failed` do not speak of it. To
        ``report_running`` is to post that each body begins, too. ``timeouts`` say of each for how
        many seconds it may run from then on, and with what text it fails
        (:class:`~dftracer.utils.TaskTimeoutError`) when they are over; it is asked to stop then.

        Bodies begin in the order of their submission. With a number other than 0, ``ahead``, these
        go ahead of all that waits in their lane, except for what was submitted last with the same
        number: that they follow. What goes ahead without a pause lets the others wait as long.

        Returns
        -------
        list[TaskHandle[Any]] | None
            ``None``, and none of them is run, if a ``function`` is ``None``, or there are options
            and no ``timeouts``, which only who understands options can give.

        Raises
        ------
        TypeError
            If one of them cannot be called; then none of them is.
        RuntimeShutdownError
            If the runtime takes no more tasks; then none of the calls is run.
        SystemLimitError
            If the system refuses the thread that keeps timeouts; nor then.
        """

    def submit_io(
        self,
        function: Callable[..., _R],
        /,
        *args: Any,
        name: str | None = None,
        interrupt: bool = False,
        **kwargs: Any,
    ) -> TaskHandle[_R]:
        """Run a call that blocks, such as one that reads files, on a thread of the I/O lane.

        There it takes no thread of a body that computes. A coroutine function runs on an event
        loop of the coroutine lane.

        Parameters
        ----------
        name:
            The task's name, instead of that of the callable.
        interrupt:
            Whether a plain body that is cancelled or runs out of time gets
            :class:`asyncio.CancelledError`, thrown into its thread. That can break locks for the
            whole process; see "Cancellation" in ``docs/lifecycle.md``.

        Raises
        ------
        TypeError
            If ``function`` is not callable.
        RuntimeShutdownError
            If the runtime is shut down.
        ForkedRuntimeError
            If it was made before a ``fork()``.
        """

    def start_process(
        self,
        argv: Sequence[str],
        *,
        cwd: str | PathLike[str] | None = None,
        env: Sequence[tuple[str, str]] | None = None,
        stdin: bytes | str | PathLike[str] | None = None,
        stdout: str | PathLike[str] | bool | None = None,
        stderr: str | PathLike[str] | bool | None = None,
        timeout: float | None = None,
        name: str | None = None,
        mailbox: Mailbox | None = None,
        token: Any | None = None,
        tell_begin: bool = False,
        note: tuple[int, str] | None = None,
        tty: bool = False,
    ) -> TaskHandle[ProcessResult]:
        """Run a program; :meth:`dftracer.utils.Runtime.run_process` says with what.

        With a ``mailbox``, the outcome is posted there under ``token``, and a failure is the
        business of its reader. With ``tell_begin`` that it begins is posted too, as by
        :meth:`Mailbox.post`. ``note`` is what ``trace_note`` is for :meth:`submit_to`.
        """

    def hash_files(
        self, paths: Sequence[str | PathLike[str]], *, name: str | None = None
    ) -> TaskHandle[list[str]]:
        """Hash the content of files, in parallel on the compute threads.

        Returns
        -------
        TaskHandle[list[str]]
            The SHA-256 of each file in hexadecimal, in the order of ``paths``. Fails with the
            :class:`OSError` of a file that cannot be read.
        """

    def stage_file(
        self,
        source: str | PathLike[str],
        target: str | PathLike[str],
        *,
        how: Literal["copy", "link", "symlink"] = "copy",
        name: str | None = None,
    ) -> TaskHandle[Path]:
        """Put a file at ``target``: a copy, a hard link, or a symbolic link.

        It appears there complete or not at all, and never replaces what is there
        (:class:`FileExistsError`). Directories on the way are made.

        Returns
        -------
        TaskHandle[Path]
            The target. Fails with the :class:`OSError` of the file that is the trouble.

        Raises
        ------
        ValueError
            If ``how`` is none of the three.
        """

    def get_progress(self) -> RuntimeProgress:
        """Return what the runtime is doing, as of now.

        ``total`` is the sum of ``completed``, ``failed``, ``cancelled``, ``running`` and
        ``queued``. ``tasks`` holds every task that is unfinished or whose handle is still held,
        with its times in milliseconds; a task that was submitted inside another is among its
        ``children``. ``workers`` holds the compute workers and those workers of the other lanes
        that have started; ``queue_depth`` is the number of tasks that wait in the worker's lane.
        ``errors`` holds the failures since :meth:`clear_failed`.

        All numbers are of one moment. What is made of them takes microseconds for each task, and
        lets other threads run meanwhile.
        """

    def is_responsive(self) -> bool:
        """Return whether tasks that wait will begin before long.

        False if in some lane tasks wait while all of its workers have been busy with the same
        tasks for more than 5 seconds; of a runtime that is shut down; and in a copy that a
        ``fork()`` has left without threads.
        """

    def set_error_callback(
        self, callback: Callable[[TaskHandle[Any], BaseException], object] | None
    ) -> None:
        """Call ``callback(handle, exception)`` for each task that fails; ``None`` ends that.

        It is called on the thread that ends the task, or as a done callback on one for callbacks,
        before anybody who waits for it wakes. What it raises is logged.
        """

    def set_timeout_ms(self, millis: int) -> None:
        """Let every task that has not ended in ``millis`` milliseconds run out of time; 0: none."""

    def set_default_task_timeout_ms(self, millis: int) -> None:
        """Limit how many milliseconds each task may run from now on; 0 takes the limit away."""

    def wait_all(self, raise_on_error: bool = False) -> None:
        """Wait until every task has ended.

        Called inside a task it waits for all tasks but those that are inside ``wait_all``
        themselves: for these it would wait for ever.

        Raises
        ------
        RuntimeError
            With ``raise_on_error``, if tasks have failed since the last call; it names them.
        """

    def get_failed(self) -> list[TaskHandle[Any]]:
        """Return handles of the tasks that have failed since the last :meth:`clear_failed`.

        The first 10,000 are kept; :attr:`failed_not_kept` counts the others. If the
        handle of a task was dropped, a new one is made: its exception is a copy whose traceback
        has no variables, unless the runtime was made with ``keep_frames``.
        """

    @property
    def failed_not_kept(self) -> int:
        """How many have failed since the last :meth:`clear_failed` that are not kept."""

    def clear_failed(self) -> None:
        """Forget the failed tasks."""

    def shutdown(self, wait: bool = True) -> None:
        """Take no more tasks; with ``wait``, return when all have ended and the threads are gone.

        Without it, what was submitted is still run. Inside a task of this runtime it never waits.
        Threads whose body goes on though its task was cancelled or has run out of time are left
        behind after ``DFTRACER_EXIT_PATIENCE_S`` (3 s), which is logged.
        """

    def wait_for_bodies(self) -> bool:
        """Wait until no body goes on whose task was cancelled or has run out of time, for at most
        ``DFTRACER_EXIT_PATIENCE_S`` (3 s); return whether all have returned."""

@final
@final
class ProcessResult:
    """How a child process ended."""

    @property
    def exit_code(self) -> int | None:
        """The exit code, or ``None`` if a signal ended it.

        Both are ``None`` if somebody else has taken its exit status: where ``SIGCHLD`` is ignored,
        or another thread of this process has waited for it.
        """

    @property
    def signal(self) -> int | None:
        """The number of the signal that ended it."""

    @property
    def stdout(self) -> bytes:
        """All that it wrote to its standard output."""

    @property
    def stderr(self) -> bytes:
        """All that it wrote to its standard error."""

@final
class Trace:
    """A trace file that is being written, by a thread of its own; dropping it closes the file.

    :func:`dftracer.utils.tracing.open_trace` makes one, and knows which file to write.

    Parameters
    ----------
    path:
        The file; compressed if it ends in ``.gz``.
    append:
        Go on after what is there instead of emptying it.
    process, host:
        The names of this process and of the machine.

    Raises
    ------
    BlockingIOError
        If another trace is being written to the file.
    OSError
        If the file cannot be written.
    """

    def __new__(cls, path: str, append: bool, process: str, host: str) -> Self: ...
    @property
    def path(self) -> Path:
        """The file."""

    @staticmethod
    def clock() -> int:
        """The time now in nanoseconds, for the times of :meth:`component`."""

    def component(
        self,
        kind: str,
        name: str,
        times: tuple[int, int, int, int],
        state: str,
        members: str,
        failure: BaseException | None = None,
    ) -> None:
        """Write the life of a component that none of our runtimes has run.

        Parameters
        ----------
        kind:
            ``"block"``, or anything else.
        times:
            When it was created, submitted, begun (0: never) and ended, by :meth:`clock`.
        state:
            ``"DONE"``, ``"FAILED"`` or ``"CANCELED"``.
        members:
            Members of a JSON object, without its braces.
        """

    def flush(self) -> None:
        """Wait until all that has ended before is in the file, or cannot be written.

        For at most 10 seconds: the file system may not answer, which is logged then.
        """

@final
class Mailbox:
    """What becomes of tasks, on its way to an event loop, which is woken once per burst.

    ``states`` are what its reader calls the four states; by default ``"running"``, ``"done"``,
    ``"failed"`` and ``"cancelled"``.
    """

    def __new__(cls, states: tuple[Any, Any, Any, Any] | None = None) -> Self: ...
    def fileno(self) -> int:
        """Return the descriptor that is readable while something waits."""

    def post(self, token: Any) -> None:
        """Post, from any thread, that the task of ``token`` begins now."""

    def drain(
        self, limit: int, *, look: bool = False, into: list[tuple[Any, Any, Any]] | None = None
    ) -> list[tuple[Any, Any, Any]]:
        """Take what is oldest, at most ``limit``: token, state, and value or exception.

        For the first state the value is when the task began, in seconds since the epoch.

        With ``look`` it is given a moment, of at most 50 µs, in which something may come: where
        such moments have not been in vain lately.

        They are added to ``into``, a list, where a signal's handler that raises when this returns
        does not lose them.
        """

@final
class Graph:
    """The unfinished nodes of a workflow: who waits for whom. Pure bookkeeping.

    A refused request changes nothing and raises :class:`ValueError`.
    """

    def __new__(cls) -> Self: ...
    def add(self, id: int, dependencies: list[int]) -> bool:
        """Add a node; true if it waits for nothing. All ``dependencies`` must be unfinished."""

    def finish(
        self, id: int, done: bool
    ) -> list[tuple[int, Literal["ready", "failed", "cancelled"]]]:
        """End a node that waits for nothing, well or with a failure.

        Returns
        -------
        list[tuple[int, str]]
            Who else is decided by this: nodes that became ready, and nodes that have ended
            because of a failed or cancelled dependency, each after those it waited for.
        """

    def finish_all(
        self, ids: list[int]
    ) -> tuple[list[int], list[tuple[int, Literal["failed", "cancelled"]]]]:
        """End nodes that wait for nothing, all of them well.

        If one is refused, those before it have ended.

        Returns
        -------
        tuple[list[int], list[tuple[int, str]]]
            The nodes that became ready by this, and those that have ended, as of :meth:`finish`.
        """

    def cancel(self, id: int) -> list[tuple[int, Literal["ready", "failed", "cancelled"]]]:
        """End a node as cancelled, whether it waits or not; return who else is decided by this."""

    def __len__(self) -> int: ...
    def __contains__(self, id: int, /) -> bool: ...

@final
class Blocked:
    """A context in which a task waits for others: its lane may start a spare worker meanwhile."""

    def __new__(cls) -> Self: ...
    def __enter__(self) -> None: ...
    def __exit__(self, _exc_type: Any | None, _exc: Any | None, _traceback: Any | None) -> None: ...

@final
class Waiting:
    """A context in which a task waits for the next end among ``handles``.

    ``wait_all`` in one of these tasks does not wait for the task that waits here.
    """

    def __new__(cls, handles: Sequence[TaskHandle[Any]]) -> Waiting: ...
    def __enter__(self) -> None: ...
    def __exit__(self, _exc_type: Any | None, _exc: Any | None, _traceback: Any | None) -> None: ...

@final
class CoroutineWorker:
    """The side of a coroutine worker that its event loop uses: the queue, sleep, outcomes."""

    def fileno(self) -> int:
        """Return the descriptor that is readable when there is work."""

    def awake(self) -> None:
        """Note that the loop is awake because of the descriptor, and will take work."""

    def leave(self) -> None:
        """End this process if it is the child of a fork that a body has made."""

    def rise(self) -> None:
        """Note that the loop is awake for another reason than the descriptor."""

    def begin(
        self, driver: Any, limit: int
    ) -> tuple[int, tuple[TaskHandle[Any], Coroutine[Any, Any, Any], Context, Any] | None]:
        """Make the first step of up to ``limit`` queued bodies in the asyncio task ``driver``.

        Stops early at a body that suspends, and returns its handle, coroutine, context and what it
        waits for; also where the next body is better off in a task of its own. The number is how
        many more may be begun; -1 if none is queued.
        """

    def rest(self, may_exit: bool) -> Literal["sleep", "retry", "exit"]:
        """Return what to do when there was no task: sleep, try again, or end the loop."""

    def pause(self) -> None:
        """Wake the waiters of ended tasks, because no task is taken for now."""

    @staticmethod
    def suspended(handle: TaskHandle[Any], task: Any, event_loop: Any) -> bool:
        """Note how a suspended task is cancelled; true if it is to be cancelled at once."""

    def succeed(self, handle: TaskHandle[_T], value: _T) -> None:
        """End a task with its value."""

    def fail(self, handle: TaskHandle[Any], error: BaseException, cancelled: bool) -> None:
        """End a task with an error, or as cancelled."""
