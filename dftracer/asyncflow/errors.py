"""What can go wrong with a workflow, beyond what its own functions raise."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor
from typing import Any

from dftracer.utils.failures.interruption import let_out as let_out
from dftracer.utils.failures.texts import text_of as text_of
from dftracer.utils.failures.texts import text_of_error as text_of_error
from dftracer.utils.redaction import hide, hide_before_end

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


def add_note(error: BaseException, note: str) -> None:
    """Add a line to what is printed of an error; Python 3.10 keeps it and does not print it."""
    noted: Any = error
    noted.__notes__ = [*getattr(error, "__notes__", ()), note]
