"""What can go wrong with a workflow, beyond what its own functions raise."""

from __future__ import annotations

import signal
from concurrent.futures import BrokenExecutor
from typing import Any

from dftracer.utils.redaction import hide, hide_before_end

_LONGEST_TEXT = 500
_LONGEST_ERROR = 8_000
"""How many characters messages repeat of a value and of another error: a chain of errors of which
each repeats the last would double the text with each link."""

_TAIL = 2_000
"""How many characters of a program's output an error repeats."""


class DependencyFailureError(Exception):
    """A task or block was not run because something it depends on failed.

    The error of the first failed dependency is the ``__cause__``. In a long chain every 20th has
    the root cause there, so that what is printed stays short.

    Attributes
    ----------
    failed_dependencies : list[str]
        The names of the direct dependencies that failed, in the order of the arguments.
    root_cause : BaseException | None
        The error at the beginning of the chain: never itself a ``DependencyFailureError``.
    """

    def __init__(
        self,
        message: str,
        failed_dependencies: list[str] | None = None,
        root_cause: BaseException | None = None,
    ) -> None:
        super().__init__(message)
        self.failed_dependencies = failed_dependencies or []
        self._link = 0
        """How many errors of its chain are between this and the last that skips the middle."""
        self.root_cause = root_cause
        self.__cause__ = root_cause


class CommandError(ValueError):
    """An executable task's function returned something that is no command."""


class ExecutableError(RuntimeError):
    """A program ran and did not end well.

    Attributes
    ----------
    task : str
        The name of the task.
    command : str
        What was run, as one would type it.
    exit_code : int | None
        The exit code, or ``None`` if a signal ended the program.
    signal : int | None
        The signal that ended it.
    stdout, stderr : str
        All that it wrote, or the end of it if that went to files; the message repeats the end.

    Notes
    -----
    Message and ``repr`` show no passwords and keys that they can be known by: see
    ``docs/lifecycle.md``. The attributes hold what was written as it is.
    """

    def __init__(
        self,
        task: str,
        command: str,
        exit_code: int | None,
        signal: int | None,
        stdout: str,
        stderr: str,
    ) -> None:
        super().__init__(task, command, exit_code, signal, stdout, stderr)
        self.task = task
        self.command = command
        self.exit_code = exit_code
        self.signal = signal
        self.stdout = stdout
        self.stderr = stderr

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __str__(self) -> str:
        end = (
            f"was ended by signal {self.signal}"
            if self.exit_code is None
            else f"exited with code {self.exit_code}"
        )
        lines = [f"task '{self.task}': command {end}: {hide(self.command)}"]
        for name, text in (("stderr", self.stderr), ("stdout", self.stdout)):
            if text.strip():
                cut = "... " if len(text) > _TAIL else ""
                lines.append(f"{name}: {cut}{hide_before_end(text, _TAIL).rstrip()}")
        return "\n".join(lines)


class PromptError(RuntimeError):
    """A prompt got no answer.

    Attributes
    ----------
    task, backend, model : str
        The names of the task, of the backend that asked, and of the model that it asked.
    status : int | None
        The HTTP status that the server answered with, if it was an error's.
    """

    def __init__(
        self, message: str, task: str, backend: str, model: str, status: int | None
    ) -> None:
        super().__init__(message, task, backend, model, status)
        self.task = task
        self.backend = backend
        self.model = model
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


class DataError(RuntimeError):
    """A file is not where a task needs it: an input cannot be had, or an output was not written."""


class WorkerDiedError(BrokenExecutor):
    """A task was lost with the worker process that held it, or with the pool of that worker."""


class CircularWaitError(RuntimeError):
    """A block can never end: it waits for a call that waits, maybe by others, for the block.

    The message names the calls of that circle, and who waits for whom.
    """


class EngineShutdownError(RuntimeError):
    """A task or block was called on an engine that is shut down."""


def text_of(value: object) -> str:
    """Return ``repr(value)`` without secrets, or what can be said if it raises."""
    try:
        return _cut(hide(repr(value)), _LONGEST_TEXT)
    except BaseException as fault:
        let_out(fault)
        return f"<{type(value).__name__} without a text>"


def text_of_error(error: BaseException | None) -> str:
    """Return type and text of an error without secrets, or its type alone if ``str()`` raises."""
    name = type(error).__name__
    try:
        return _cut(f"{name}: {hide(str(error))}", _LONGEST_ERROR)
    except BaseException as fault:
        let_out(fault)
        return name


def _cut(text: str, longest: int) -> str:
    """Return a text, or its beginning and its end if it is too long."""
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]} ... {text[-longest // 2 :]}"


def let_out(error: BaseException) -> None:
    """Raise ``error`` again if it is meant for the whole program, not for the code that it came up
    in: Ctrl-C, or the exit of a signal's handler."""
    if isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit) and _is_of_a_signal(error)
    ):
        raise error


def _is_of_a_signal(error: BaseException) -> bool:
    """Tell whether the handler of a signal is among those that ``error`` has come through."""
    if hasattr(error, "_is_of_a_signal"):  # its traceback may have lost its frames since
        return True
    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    entry = error.__traceback__
    while entry is not None:
        if entry.tb_frame.f_code in handlers:
            error._is_of_a_signal = True  # type: ignore[attr-defined]
            return True
        entry = entry.tb_next
    return False


def _code_of(handler: Any) -> Any:
    """Return the code of a signal's handler, if that is written in Python."""
    code = getattr(handler, "__code__", None)
    return code or getattr(getattr(type(handler), "__call__", None), "__code__", None)  # noqa: B004
