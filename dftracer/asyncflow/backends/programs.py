"""Programs as tasks: how a description becomes a process, and its end an outcome."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

from dftracer.asyncflow.backends.base import Task, TaskStates
from dftracer.asyncflow.commands import to_text
from dftracer.asyncflow.errors import ExecutableError, text_of
from dftracer.utils import ProcessResult, Runtime, TaskHandle, TaskTimeoutError
from dftracer.utils.primitives import Mailbox
from dftracer.utils.redaction import keep_environment

PROGRAM_OPTIONS = frozenset({"cwd", "env", "stdin", "timeout", "tty"})
"""What a program's ``task_backend_specific_kwargs`` may say."""

_log = logging.getLogger("dftracer.asyncflow")

_has_warned = False
"""Whether it was said that ends are unknown."""

_TAIL = 8_000
"""How many bytes of a captured file an error repeats."""


def name_of(task: Task) -> str:
    """Return how messages speak of a task."""
    return str(task.get("name") or task["uid"])


def options_of(task: Task) -> Mapping[str, Any]:
    """Return what the user wants to tell the backend about a task."""
    return task.get("task_backend_specific_kwargs") or {}


def timeout_of(task: Task) -> float | None:
    """Return how many seconds a task may run, or ``None`` for as long as it likes.

    Raises
    ------
    TypeError, ValueError
        If its description says something else.
    """
    timeout = options_of(task).get("timeout")
    if timeout is None:
        return None
    hint = f"task '{name_of(task)}': timeout must be a number of seconds above 0"
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"{hint}, not {type(timeout).__name__} {text_of(timeout)}")
    if not 0 < timeout < math.inf:
        raise ValueError(f"{hint}, not {timeout}")
    return float(timeout)


def argv_of(task: Task) -> list[str]:
    """Return the words of a program."""
    return [task["executable"], *(task.get("arguments") or ())]


def start_program(
    task: Task, runtime: Runtime, mailbox: Mailbox | None, work_dir: str, tell_begin: bool
) -> TaskHandle[ProcessResult]:
    """Start the program of a task; its end is posted to ``mailbox``, if any, under the task.

    So is its beginning, with ``tell_begin``.

    Raises
    ------
    TypeError, ValueError
        If its description cannot be understood.
    OSError
        If the directory of its output cannot be made.
    """
    options = options_of(task)
    cwd, env, stdin = options.get("cwd"), options.get("env"), options.get("stdin")
    _check(task, "cwd", cwd, (str, os.PathLike), "a path")
    _check(task, "stdin", stdin, (bytes, str, os.PathLike), "bytes or the path of a file")
    _check(task, "env", env, Mapping, "a dict of texts")
    _check(task, "tty", options.get("tty"), bool, "true or false")
    for name, value in (env or {}).items():
        _check(task, f"env[{text_of(name)}]", value, str, "a text")
    if env:
        keep_environment(env)
    stdout = stderr = None
    if task.get("capture_stdio"):
        os.makedirs(work_dir, exist_ok=True)
        stdout, stderr = _files_of(task, work_dir)
    return runtime.start_process(
        argv_of(task),
        cwd=cwd,
        env=None if env is None else list(env.items()),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        timeout=timeout_of(task),
        name=name_of(task),
        mailbox=mailbox,
        token=task,
        tell_begin=tell_begin,
        note=task.get("trace_note"),
        tty=bool(options.get("tty")),
    )


def _check(task: Task, option: str, value: Any, kinds: Any, what: str) -> None:
    if value is not None and not isinstance(value, kinds):
        # What an environment holds is nobody else's business, unless it is but a number.
        is_secret = option.startswith("env") and not isinstance(value, (int, float))
        shown = "" if is_secret else f" {text_of(value)}"
        raise TypeError(
            f"task '{name_of(task)}': {option} must be {what}, not {type(value).__name__}{shown}"
        )


def record_program(task: Task, result: ProcessResult, work_dir: str) -> str:
    """Put the end of a program into its task and return the state that it means.

    One of whose end others have been told is taken for done, as by ``subprocess``.
    """
    stdout, stderr = _record_output(task, result, work_dir)
    if result.exit_code is None and result.signal is None:
        _warn_of_unknown_ends(name_of(task))
        return TaskStates.DONE
    if result.exit_code == 0:
        return TaskStates.DONE
    keep_environment()
    task["exception"] = ExecutableError(
        name_of(task), to_text(argv_of(task)), result.exit_code, result.signal, stdout, stderr
    )
    return TaskStates.FAILED


def _warn_of_unknown_ends(name: str) -> None:
    """Say so once: all others are likely to end in the same way."""
    global _has_warned
    if not _has_warned:
        _has_warned = True
        _log.warning(
            "task '%s' is taken for done, though how its program has ended is unknown, and others "
            "may follow: SIGCHLD is ignored, or another thread waits for any child",
            name,
        )


def record_failure(task: Task, error: BaseException, work_dir: str) -> str:
    """Put an error other than a bad exit code into a program's task; return its state."""
    if isinstance(error, TaskTimeoutError) and error.result is not None:
        _record_output(task, error.result, work_dir)
    elif isinstance(error, OSError) and not isinstance(error, TimeoutError):
        what, file = "start the program", error.filename or task["executable"]
        cwd = options_of(task).get("cwd")
        if cwd is not None and not os.access(cwd, os.X_OK):  # the system tells no difference
            what, file = "start the program in this directory", cwd
        what = f"task '{name_of(task)}': cannot {what}: {error.strerror or error}"
        error = type(error)(error.errno, what, file)
    task["exception"] = error
    return TaskStates.FAILED


def _record_output(task: Task, result: ProcessResult, work_dir: str) -> tuple[str, str]:
    """Put what a program has written into its task; return what an error should repeat."""
    texts = (result.stdout.decode(errors="replace"), result.stderr.decode(errors="replace"))
    stdout, stderr = told = _files_of(task, work_dir) if task.get("capture_stdio") else texts
    task.update(stdout=stdout, stderr=stderr, exit_code=result.exit_code)
    if told is texts or result.exit_code == 0:
        return texts
    return _end_of_file(stdout), _end_of_file(stderr)


def _files_of(task: Task, work_dir: str) -> tuple[str, str]:
    path = os.path.join(work_dir, task["uid"])
    return f"{path}.stdout", f"{path}.stderr"


def _end_of_file(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return file.read(_TAIL).decode(errors="replace")
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
