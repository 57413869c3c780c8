"""Programs as tasks: how a submission becomes a process, and its end an outcome."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

from dftracer.asyncflow.backends.base import State, Submission
from dftracer.asyncflow.commands import to_text
from dftracer.asyncflow.errors import ExecutableError, text_of
from dftracer.utils import ProcessResult, Runtime, TaskHandle, TaskTimeoutError
from dftracer.utils.primitives import Mailbox
from dftracer.utils.redaction import keep_environment

PROGRAM_OPTIONS = frozenset({"cwd", "env", "stdin", "timeout", "tty"})
"""What the options of a program may say."""

_log = logging.getLogger("dftracer.asyncflow")

_has_warned = False
"""Whether it was said that ends are unknown."""

_TAIL = 8_000
"""How many bytes of a captured file an error repeats."""


def timeout_of(submission: Submission) -> float | None:
    """Return how many seconds a submission may run, or ``None`` for as long as it likes.

    Raises
    ------
    TypeError, ValueError
        If its options say something else.
    """
    timeout = submission.options.get("timeout")
    if timeout is None:
        return None
    if type(timeout) not in (int, float) and (
        isinstance(timeout, bool) or not isinstance(timeout, (int, float))
    ):
        kind = type(timeout).__name__
        raise TypeError(f"{_timeout_hint(submission)}, not {kind} {text_of(timeout)}")
    if not 0 < timeout < math.inf:
        raise ValueError(f"{_timeout_hint(submission)}, not {timeout}")
    return float(timeout)


def _timeout_hint(submission: Submission) -> str:
    return f"task '{submission.name}': timeout must be a number of seconds above 0"


def start_program(
    submission: Submission,
    runtime: Runtime,
    mailbox: Mailbox | None,
    work_dir: str,
    tell_begin: bool,
) -> TaskHandle[ProcessResult]:
    """Start a program; its end is posted to ``mailbox``, if any, under the submission.

    So is its beginning, with ``tell_begin``.

    Raises
    ------
    TypeError, ValueError
        If its options cannot be understood.
    OSError
        If the directory of its output cannot be made.
    """
    options = submission.options
    if options:
        _check_options(submission, options)
    env = options.get("env")
    if env:
        keep_environment(env)
    stdout = stderr = None
    if submission.capture_stdio:
        os.makedirs(work_dir, exist_ok=True)
        stdout, stderr = _files_of(submission, work_dir)
    command = submission.command
    assert command is not None
    return runtime.start_process(
        command,
        cwd=options.get("cwd"),
        env=None if env is None else list(env.items()),
        stdin=options.get("stdin"),
        stdout=stdout,
        stderr=stderr,
        timeout=timeout_of(submission) if options else None,
        name=submission.name,
        mailbox=mailbox,
        token=submission,
        tell_begin=tell_begin,
        note=submission.trace_note,
        tty=bool(options.get("tty")),
    )


def _check_options(submission: Submission, options: Mapping[str, Any]) -> None:
    env = options.get("env")
    _check(submission, "cwd", options.get("cwd"), (str, os.PathLike), "a path")
    stdin = options.get("stdin")
    _check(submission, "stdin", stdin, (bytes, str, os.PathLike), "bytes or the path of a file")
    _check(submission, "env", env, Mapping, "a dict of texts")
    _check(submission, "tty", options.get("tty"), bool, "true or false")
    variables: Mapping[Any, Any] = env or {}
    for name, value in variables.items():
        _check(submission, f"env[{text_of(name)}]", value, str, "a text")


def _check(submission: Submission, option: str, value: Any, kinds: Any, what: str) -> None:
    if value is not None and not isinstance(value, kinds):
        # What an environment holds is nobody else's business, unless it is but a number.
        is_secret = option.startswith("env") and not isinstance(value, (int, float))
        shown = "" if is_secret else f" {text_of(value)}"
        raise TypeError(
            f"task '{submission.name}': {option} must be {what}, not {type(value).__name__}{shown}"
        )


def end_of_program(
    submission: Submission, end: ProcessResult | BaseException, work_dir: str
) -> tuple[State, Any]:
    """Return what is to be reported of a program that was not cancelled, and describe the rest.

    One whose end is unknown, because somebody else has asked the system for it, is taken for done,
    as by ``subprocess``.
    """
    if isinstance(end, BaseException):
        return State.FAILED, _error_of_program(submission, end, work_dir)
    stdout, stderr = _describe_output(submission, end, work_dir)
    if end.exit_code == 0:
        return State.DONE, stdout
    if end.exit_code is None and end.signal is None:
        _warn_of_unknown_ends(submission.name)
        return State.DONE, stdout
    keep_environment()
    if submission.capture_stdio:
        stdout, stderr = _end_of_file(stdout), _end_of_file(stderr)
    command = to_text(list(submission.command or ()))
    return State.FAILED, ExecutableError(
        submission.name, command, end.exit_code, end.signal, stdout, stderr
    )


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


def _error_of_program(submission: Submission, error: BaseException, work_dir: str) -> BaseException:
    """Return why a program has failed, if not by its exit code; describe what it has written."""
    if isinstance(error, TaskTimeoutError) and error.result is not None:
        _describe_output(submission, error.result, work_dir)
    elif isinstance(error, OSError) and not isinstance(error, TimeoutError):
        program = submission.command[0] if submission.command else None
        what, file = "start the program", error.filename or program
        cwd = submission.options.get("cwd")
        if cwd is not None and not os.access(cwd, os.X_OK):  # the system tells no difference
            what, file = "start the program in this directory", cwd
        what = f"task '{submission.name}': cannot {what}: {error.strerror or error}"
        return type(error)(error.errno, what, file)
    return error


def _describe_output(
    submission: Submission, result: ProcessResult, work_dir: str
) -> tuple[str, str]:
    """Describe what a program has written, and return it, or the paths of the files."""
    if submission.capture_stdio:
        stdout, stderr = _files_of(submission, work_dir)
    else:
        stdout = result.stdout.decode(errors="replace")
        stderr = result.stderr.decode(errors="replace")
    submission.describe(stdout=stdout, stderr=stderr, exit_code=result.exit_code)
    return stdout, stderr


def _files_of(submission: Submission, work_dir: str) -> tuple[str, str]:
    path = os.path.join(work_dir, submission.uid)
    return f"{path}.stdout", f"{path}.stderr"


def _end_of_file(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return file.read(_TAIL).decode(errors="replace")
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
