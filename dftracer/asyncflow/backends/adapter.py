"""Backends that speak the dictionary protocol alone, below an engine.

They are RHAPSODY's, radical.asyncflow's and users' own: anything with ``submit_tasks``,
``cancel_task``, ``register_callback`` and ``shutdown``. A subclass of one of our backends that
overrides a method of that protocol is one of them, and so is a proxy or mock of one: their methods
are to be called. Which of the two a backend is, its class says, once, when it is attached.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, cast

from dftracer.asyncflow.backends.base import (
    ExecutionBackend,
    Report,
    State,
    Submission,
)
from dftracer.asyncflow.commands import to_text
from dftracer.asyncflow.errors import ExecutableError, add_note, let_out
from dftracer.utils.redaction import keep_environment

_OVERRIDES = (
    "submit_tasks",
    "cancel_task",
    "register_callback",
    "get_task_states_map",
    "state",
    "build_task",
    "link_explicit_data_deps",
    "link_implicit_data_deps",
    "__getattr__",
    "__getattribute__",
)
"""What a subclass of one of our backends may override, and then wants to be called through."""

Run = Callable[[Coroutine[Any, Any, Any]], "asyncio.Task[Any]"]
"""Runs something in the event loop, in the background."""


def takes_submissions(backend: object) -> bool:
    """Tell whether a backend is to be given submissions, and not dictionaries."""
    # Not `isinstance`: a mock answers that as what it stands for.
    kind = type(backend)
    if not issubclass(kind, ExecutionBackend) or kind.submit is ExecutionBackend.submit:
        return False
    for name in _OVERRIDES:
        for each in kind.__mro__:
            if name in vars(each):
                if each is not object and not each.__module__.startswith("dftracer.asyncflow."):
                    return False
                break
    return True


def target_of(backend: Any, run_in_background: Run) -> ExecutionBackend:
    """Return what an engine hands its tasks to: a backend itself, or an adapter around it."""
    if takes_submissions(backend):
        target: ExecutionBackend = backend
        return target
    return DictionaryBackend(backend, run_in_background)


async def end_of(work: Any) -> Any:
    """Wait for what a method of a backend has begun; of a plain method, this is its result."""
    return await work if inspect.isawaitable(work) else work


class DictionaryBackend(ExecutionBackend):
    """Hands submissions to a backend as dictionaries, one for each.

    What the backend reports comes through the callback that is registered with it: see
    :class:`DictionaryReports`. It does not hear that a submission is to go ahead.
    """

    leaves_results = True

    def __init__(self, backend: Any, run_in_background: Run) -> None:
        self.backend = backend
        self.name: str = backend.name
        self.keeps_timeouts = getattr(backend, "keeps_timeouts", False) is True
        self.supports_implicit_data_linking = _says(backend, "supports_implicit_data_linking")
        self.supports_explicit_data_linking = _says(backend, "supports_explicit_data_linking")
        self._run_in_background = run_in_background
        self._waiting: dict[str, Submission] = {}
        """Those in calls of ``submit_tasks`` that have not begun, by their identifiers."""
        self._calls: set[asyncio.Task[Any]] = set()
        """The calls of ``submit_tasks``, which may wait there for the ends of tasks."""
        self._report: Report = lambda _: False

    @property
    def report_running(self) -> bool:
        return bool(getattr(self.backend, "report_running", False))

    @report_running.setter
    def report_running(self, wanted: bool) -> None:
        if hasattr(self.backend, "report_running"):
            with contextlib.suppress(AttributeError):
                self.backend.report_running = wanted

    def connect(self, report: Report) -> None:
        self._report = report

    def submit(self, submissions: Sequence[Submission], ahead: int = 0) -> None:
        self._waiting.update((submission.uid, submission) for submission in submissions)
        call = self._run_in_background(self._submit(list(submissions)))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _submit(self, submissions: list[Submission]) -> None:
        submissions = [each for each in submissions if self._waiting.pop(each.uid, None) is each]
        try:
            submissions = [each for each in submissions if self._has_folder(each)]
            if submissions:
                await end_of(self.backend.submit_tasks([s.as_dict() for s in submissions]))
        except asyncio.CancelledError:
            self._report([(submission, State.CANCELED, None) for submission in submissions])
            raise
        except BaseException as error:
            self._report([(submission, State.FAILED, error) for submission in submissions])
            let_out(error)

    def _has_folder(self, submission: Submission) -> bool:
        """Make the folder of a program's output; report the program as failed if that fails."""
        if submission.command is not None and submission.capture_stdio:
            try:
                os.makedirs(self.backend._work_dir, exist_ok=True)
            except OSError as error:
                self._report([(submission, State.FAILED, error)])
                return False
        return True

    def cancel(self, submission: Submission) -> bool:
        if self._waiting.pop(submission.uid, None) is None:
            self._run_in_background(self._cancel(submission))
        return True

    async def _cancel(self, submission: Submission) -> None:
        uid = submission.uid
        try:
            await end_of(self.backend.cancel_task(uid))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            message = f"backend '{self.name}' could not cancel {uid}"
            asyncio.get_running_loop().call_exception_handler(
                {"message": message, "exception": error}
            )
            let_out(error)

    def withdraw(self) -> None:
        for call in self._calls:
            call.cancel()

    async def shutdown(self) -> None:
        await end_of(self.backend.shutdown())

    def state(self) -> str:
        return str(end_state) if (end_state := self.backend.state()) else ""


def _says(backend: Any, name: str) -> bool:
    # A mock has every attribute.
    return getattr(backend, name, False) is True


class Reports(Protocol):
    """What is asked of the scheduler by those who report in the dictionary protocol."""

    uid: str
    loop: asyncio.AbstractEventLoop
    log: logging.Logger

    def is_in_other_thread(self) -> bool: ...
    def submission_of(self, task: Mapping[str, Any]) -> Any: ...
    def service_reports(self, task: Mapping[str, Any], state: State) -> None: ...
    def report(self, outcomes: Sequence[tuple[Any, State, Any]]) -> bool: ...
    def fail_here(self, component: Any, error: BaseException) -> None: ...


class DictionaryReports:
    """Takes what backends report in the dictionary protocol, as the engine's ``task_callbacks``.

    Parameters
    ----------
    scheduler:
        What gets the outcomes.
    backends:
        Those that report; their names of states are understood.
    """

    def __init__(self, scheduler: Reports, backends: Sequence[Any]) -> None:
        self._scheduler = scheduler
        self.states = state_names(backends)
        """Which state is meant by each name."""

    def take(
        self,
        task: Any,
        state: str,
        service_callback: Callable[[Any, Any, str], object] | None,
        again: Callable[..., object],
    ) -> None:
        """Take a task's new state, in whatever thread; ``again`` is called in the loop's."""
        scheduler = self._scheduler
        if scheduler.is_in_other_thread():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                scheduler.loop.call_soon_threadsafe(again, task, state, service_callback)
            return
        known = self.states.get(state)
        if known is None:
            scheduler.log.debug(
                "engine '%s': a backend reports %r, which is no state", scheduler.uid, state
            )
            return
        record = cast("Mapping[str, Any]", task if isinstance(task, dict) else task.as_dict())
        submission = scheduler.submission_of(record)
        if submission is None:  # cancelled meanwhile, ended by hand, or another engine's
            scheduler.service_reports(record, known)
            return
        component = getattr(submission, "component", submission)
        if service_callback is not None:
            try:
                service_callback(component, task, state)
            except BaseException as error:
                scheduler.fail_here(component, error)
            if component.done():
                return
        scheduler.report([(submission, known, _value_in(submission, known, record))])


def _value_in(submission: Submission, state: State, record: Mapping[str, Any]) -> Any:
    if state is State.RUNNING:
        return record.get("started_at")
    if state is State.DONE:
        return result_in(submission, record)
    if state is State.FAILED:
        return failure_in(submission, record)
    return None


def result_in(submission: Submission, record: Mapping[str, Any]) -> Any:
    """Return what a dictionary says that a task has given."""
    if submission.command is None and submission.prompt is None:
        return record.get("return_value")
    text = record.get("stdout")
    return record.get("return_value") if text is None else text


def failure_in(submission: Any, record: Mapping[str, Any]) -> Any:
    """Return the error of a task that a dictionary calls failed, as it or its program gave it."""
    error, command = record.get("exception"), getattr(submission, "command", None)
    # Some backends give a text or what ends an interpreter as the error of a program.
    if error is not None and not (command and isinstance(error, (str, SystemExit))):
        return error
    stdout, stderr = str(record.get("stdout") or ""), str(record.get("stderr") or "")
    exit_code = record.get("exit_code")
    if exit_code is None and isinstance(error, SystemExit):
        exit_code = error.code
    if not command or not isinstance(exit_code, int):
        failure = RuntimeError(stderr or str(error or "failed with unknown error"))
        component = getattr(submission, "component", submission)
        if hasattr(component, "definition"):
            backend = component.definition.target.name
            add_note(failure, f"of task '{submission.name}' on backend '{backend}'")
        return failure
    signal = -exit_code if exit_code < 0 else None  # as in `subprocess`
    keep_environment()
    return ExecutableError(
        submission.name, to_text(command), None if signal else exit_code, signal, stdout, stderr
    )


def state_names(backends: Sequence[Any]) -> dict[Any, State]:
    """Return which of our states is meant by each state that these backends may report."""
    names: dict[Any, State] = {state.value: state for state in State}
    for backend in backends:
        get_map = getattr(backend, "get_task_states_map", None)
        theirs = get_map() if callable(get_map) else None
        for state in State if theirs is not None else ():
            name = getattr(theirs, state.value, state.value)
            with contextlib.suppress(TypeError):  # a mock's need not be hashable
                names[name] = names[getattr(name, "value", name)] = state
    return names
