"""What an execution backend is: all that an engine asks of one, and what it is given.

A backend is given submissions that are ready to run, and reports what became of each. It knows
nothing of dependencies::

    backend.submit([submission, ...])                 the engine hands over what is ready
    report([(submission, state, value), ...])         the backend reports states

A *submission* is the task itself, or one attempt at it, read by attribute: see :class:`Submission`.
Its states are reported in this order, and nothing after the last:

``RUNNING``
    Only if the backend's ``report_running`` is true. The value is the time since when it runs, in
    seconds since the epoch, or ``None`` for now.
``DONE``
    The value is what a function has returned, which may be a :class:`RemoteValue`; for a program
    and a prompt, the text.
``FAILED``
    The value is the error.
``CANCELED``
    The value is ``None``.

Each submission gets exactly one of the last three, whatever happens. What else is known of it, such
as a program's exit code, is added to its description with :meth:`Submission.describe`, before.

The same backends speak the dictionary protocol, which RHAPSODY's and radical.asyncflow's backends
have, to programs that use them without an engine: ``submit_tasks`` takes dicts of the keys in
:class:`TaskDescription`, and a registered callback gets each of them with its state. Backends that
speak nothing else work below an engine too: see ``adapter.py``.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from dftracer.asyncflow.backends.submission import EMPTY as EMPTY
from dftracer.asyncflow.backends.submission import Callback as Callback
from dftracer.asyncflow.backends.submission import DescribedTask as DescribedTask
from dftracer.asyncflow.backends.submission import Outcome as Outcome
from dftracer.asyncflow.backends.submission import Report as Report
from dftracer.asyncflow.backends.submission import State as State
from dftracer.asyncflow.backends.submission import StateMapper as StateMapper
from dftracer.asyncflow.backends.submission import Submission as Submission
from dftracer.asyncflow.backends.submission import TaskDescription as TaskDescription
from dftracer.asyncflow.backends.submission import add_outcome as add_outcome
from dftracer.asyncflow.errors import let_out

if TYPE_CHECKING:
    from dftracer.utils.tracing import Trace


class RemoteValue:
    """A result that its backend has left where it was made.

    The engine passes it on as it is to function tasks that can have it so. For everybody else it
    fetches the value, when that is first asked for.
    """

    __slots__ = ()

    def is_on(self, backend: Any) -> bool:
        """Tell whether tasks on ``backend`` take this among their arguments, for the value."""
        raise NotImplementedError

    def fetch(self) -> Awaitable[Any]:
        """Bring the value here, or raise an ``Exception`` that says why that cannot be done.

        Called in the engine's event loop, once.
        """
        raise NotImplementedError


class LinksFiles(Protocol):
    """What a backend has besides that brings tasks their files. It works on descriptions."""

    supports_explicit_data_linking: bool

    async def stage_files(self, task: dict[str, Any]) -> str:
        """Put the inputs where the task will run, and return that directory."""
        ...

    async def check_outputs(self, task: dict[str, Any]) -> None:
        """Raise :exc:`~dftracer.asyncflow.DataError` unless the task has written its outputs."""


class ExecutionBackend(ABC):
    """What every backend of ours is.

    The methods of the first part are for engines, and are called in the event loop's thread. Those
    of the second are the dictionary protocol.
    """

    supports_implicit_data_linking = False
    supports_explicit_data_linking = False
    report_running = False
    """Whether somebody wants to know when tasks begin, at some cost. Set by the engine."""
    keeps_timeouts = False
    """Whether it ends a submission itself that runs for longer than the ``timeout`` in its options,
    counted from when it begins to run. For other backends the engine does, counted from when it
    hands the submission over."""
    window = 0
    """How many plain functions that other tasks wait for it is given at a time; 0 for all. With
    more, results would pile up before those who wait for them get their turn."""
    leaves_results = False
    """Whether it may report a :class:`RemoteValue`."""
    _own_tasks: Mapping[str, dict[str, Any]] | None = None
    """What a subclass has put in the place of :attr:`tasks`."""

    def __init__(self, name: str = "default") -> None:
        self.name = name
        self.is_attached = False
        self.attached_to: list[str] = []
        self._callback_func: Callback = _ignore_task
        self._report: Report = ignore_report
        self._work_dir = os.getcwd()

    # --- for engines ----------------------------------------------------------------------------

    def submit(self, submissions: Sequence[Submission], ahead: int = 0) -> None:
        """Begin to run submissions, and return before any is reported.

        Whatever happens to one of them is reported, and does not concern the others.

        ``ahead`` is 0 if these may wait until their turn. Otherwise a backend that can do so runs
        them before all that was submitted earlier and has not begun, except for what had the same
        number: that they follow. Later numbers are greater, also those of other engines.

        A subclass that overrides :meth:`submit_tasks` instead is handed dictionaries.

        Raises
        ------
        RuntimeError
            If the backend is not started; then none of them is run.
        """
        raise NotImplementedError

    def cancel(self, submission: Submission) -> bool:
        """Stop a submission; true if it will not, or may not, come to its end by itself.

        Its end is reported, unless that was done before.
        """
        raise NotImplementedError

    def poll(self) -> None:  # noqa: B027 - most have nothing to do
        """Report what ends within a moment, if it was worth waiting for that lately."""

    def has_begun(self, submission: Submission) -> bool:
        """Tell whether a submission runs, if that can be known without ``report_running``."""
        return False

    def describe_result(self, value: Any) -> dict[str, Any]:
        """Return what the description of a function that has returned ``value`` says of its end."""
        return {"return_value": value}

    def trace_to(self, trace: Trace) -> bool:
        """Write submissions to ``trace`` from now on; false if the engine has to.

        It then writes with each, besides what it knows itself, its ``trace_note``: when the task
        was called, and further members as JSON.
        """
        return False

    def connect(self, report: Report) -> None:
        """Give what is reported from now on to ``report``. Earlier submissions are nobody's."""
        self._callback_func = _ignore_task
        self._report = report

    def held(self) -> Iterable[Submission]:
        """Return the submissions whose ends it will report."""
        return ()

    def withdraw(self) -> None:  # noqa: B027 - most have nothing to do
        """Begin nothing more of what was submitted: the engine is shut down."""

    @abstractmethod
    async def shutdown(self) -> None:
        """Stop what runs and release everything. All submissions have been reported then."""

    @abstractmethod
    def state(self) -> str:
        """Return ``IDLE``, ``INITIALIZED`` or ``SHUTDOWN``."""

    # --- the dictionary protocol ----------------------------------------------------------------

    async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
        """Begin to run ``tasks``; return before they end."""
        backend: Any = self
        if hasattr(backend, "__await__"):
            await backend
        self.submit([DescribedTask(task) for task in tasks])

    async def cancel_task(self, uid: str) -> bool:
        """Stop a task; true if it will not, or may not, come to its end by itself."""
        raise NotImplementedError

    def register_callback(self, func: Callback) -> None:
        """Name the function that gets each task with each of its states."""
        self.connect(_ReportToCallback(func, self))
        self._callback_func = func

    def get_task_states_map(self) -> StateMapper:
        """Return the names of the states."""
        return StateMapper()

    @property
    def tasks(self) -> Mapping[str, dict[str, Any]]:
        """The descriptions of the tasks that it holds and has not reported the end of, by their
        ``uid``: as they are at this moment, and not to be changed. A subclass that keeps book by
        itself may put a dict of its own here."""
        if self._own_tasks is not None:
            return self._own_tasks
        return MappingProxyType({each.uid: each.as_dict() for each in self.held()})

    @tasks.setter
    def tasks(self, tasks: Mapping[str, dict[str, Any]]) -> None:
        self._own_tasks = tasks

    def build_task(  # noqa: B027 - most have nothing to do
        self, uid: Any = None, task_desc: Any = None, task_specific_kwargs: Any = None
    ) -> None:
        """Do nothing: a task needs no preparation here."""

    def link_explicit_data_deps(  # noqa: B027 - most have nothing to do
        self,
        src_task: dict[str, Any] | None = None,
        dst_task: dict[str, Any] | None = None,
        file_name: str | None = None,
        file_path: str | None = None,
    ) -> Any:
        """Do nothing: this backend brings tasks no files, and an engine does not call this."""

    def link_implicit_data_deps(  # noqa: B027 - most have nothing to do
        self, src_task: dict[str, Any] | None = None, dst_task: dict[str, Any] | None = None
    ) -> None:
        """Do nothing: tasks get no files that they do not declare, and an engine does not call
        this."""

    def task_state_cb(  # noqa: B027 - most have nothing to do
        self, task: Any = None, state: Any = None
    ) -> None:
        """Do nothing: states go to the registered callback."""


class _ReportToCallback:
    """A report that speaks the dictionary protocol."""

    def __init__(self, callback: Callback, backend: ExecutionBackend) -> None:
        self._callback = callback
        self._backend = backend

    def __call__(self, outcomes: Sequence[Outcome]) -> bool:
        for number, (submission, state, value) in enumerate(outcomes, 1):
            try:
                describe = self._backend.describe_result
                self._callback(add_outcome(submission, state, value, describe), state.value)
            except BaseException as error:  # one task's trouble, not that of those that come after
                try:
                    let_out(error)
                except BaseException:
                    self(outcomes[number:])
                    raise
                what = f"the callback failed for task '{submission.name}'"
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"backend '{self._backend.name}': {what}", "exception": error}
                )
        return False


def ignore_report(_outcomes: Sequence[Outcome]) -> bool:
    """Stand in for a report until there is one."""
    return False


def _ignore_task(_task: dict[str, Any], _state: str) -> None:
    """Stand in for a callback until there is one."""
