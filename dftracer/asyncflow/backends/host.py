"""What backends in this process share: the ways of functions and programs, there and back.

Functions run on the runtime here too, for subclasses that run them nowhere else. The way of a plain
function leads through :meth:`HostExecutionBackend.submit` and :meth:`HostExecutionBackend.poll`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from dftracer.asyncflow.backends.base import (
    Outcome,
    State,
    Submission,
)
from dftracer.asyncflow.backends.programs import (
    PROGRAM_OPTIONS,
    end_of_program,
    start_program,
    timeout_of,
)
from dftracer.asyncflow.backends.serving import LoopBackend
from dftracer.asyncflow.data.staging import StagesFiles
from dftracer.asyncflow.errors import let_out

FUNCTION_OPTIONS = frozenset({"timeout"})
"""What the options of a function may say."""

DELIVERIES_PER_TURN = 1_000
"""How many outcomes are handled before the event loop gets to do something else."""

LOOKS_PER_TURN = 16
"""How often in a row the next outcome may be waited for without a turn of the event loop, which
takes longer than a short function."""

_RUNNING = State.RUNNING

_log = logging.getLogger("dftracer.asyncflow")


class HostExecutionBackend(StagesFiles, LoopBackend):
    """Runs programs and functions through a runtime.

    Outcomes come through one file descriptor that the event loop watches: however many submissions
    end at a time, the loop is woken once.
    """

    keeps_timeouts = True

    def __init__(self, name: str = "default") -> None:
        super().__init__(name)
        self._programs: set[Submission] = set()
        """Which of what is unfinished or late are programs."""
        self._ignored: set[tuple[str, str]] = set()
        self._drained: list[Outcome] = []
        """What was taken from the mailbox and is not reported."""

    # --- submissions ----------------------------------------------------------------------------

    def submit(self, submissions: Sequence[Submission], ahead: int = 0) -> None:
        if not self.is_open or self.runtime is None or self.mailbox is None:
            raise RuntimeError(f"backend '{self.name}' is not started: await it first")
        try:
            handles = self.runtime.submit_to(
                self.mailbox, submissions, self.report_running, None, ahead
            )
        except TypeError:  # because of one of them
            handles = None
        if handles is None:
            self._submit_each(submissions, ahead)
            return
        self.unfinished.update(zip(submissions, handles))  # noqa: B905 - one for each
        if submissions:
            self.reader.kept = self

    def _submit_each(self, submissions: Sequence[Submission], ahead: int) -> None:
        """Begin to run submissions of any kind, in their order."""
        functions: list[Submission] = []
        timeouts: list[tuple[float, str] | None] = []
        for submission in submissions:
            try:
                if submission.function is not None:
                    timeouts.append(self._timeout_and_error(submission))
                    functions.append(submission)
                else:
                    if functions:
                        self._submit_functions(functions, timeouts, ahead)
                        functions, timeouts = [], []
                    self.start_program(submission)
            except BaseException as error:
                self.fail(submission, error)
                let_out(error)
        if functions:
            self._submit_functions(functions, timeouts, ahead)

    def _submit_functions(
        self,
        functions: Sequence[Submission],
        timeouts: Sequence[tuple[float, str] | None],
        ahead: int,
    ) -> None:
        assert self.runtime is not None
        assert self.mailbox is not None
        try:
            handles = self.runtime.submit_to(
                self.mailbox, functions, self.report_running, timeouts, ahead
            )
            assert handles is not None
        except BaseException as error:
            let_out(error)
            if len(functions) == 1:
                self.fail(functions[0], error)
                return
            for function, timeout in zip(functions, timeouts, strict=True):
                self._submit_functions([function], [timeout], ahead)
        else:
            self.unfinished.update(zip(functions, handles, strict=True))
            self.reader.kept = self

    def _timeout_and_error(self, submission: Submission) -> tuple[float, str] | None:
        """Return the seconds that a function may run, and what its error says then."""
        options = submission.options
        if not options:
            return None
        timeout = options.get("timeout")
        if len(options) > 1 or type(timeout) is not float or not 0 < timeout < math.inf:
            timeout = self.timeout_of_function(submission)
            if timeout is None:
                return None
        return timeout, (
            f"task '{submission.name}' on backend '{self.name}' has run out of time, which was "
            f"{timeout:g} s: it was asked to stop"
        )

    def timeout_of_function(self, submission: Submission) -> float | None:
        """Return the seconds that a function may run; raises as :func:`timeout_of` does."""
        options = submission.options
        if not options:
            return None
        if not options.keys() <= FUNCTION_OPTIONS:
            self._warn_of_ignored(submission, "function", FUNCTION_OPTIONS)
        return timeout_of(submission)

    def start_program(self, submission: Submission) -> None:
        """Start a program, which is then unfinished.

        Raises
        ------
        NotImplementedError
            If it is a prompt.
        TypeError, ValueError
            If its options cannot be understood.
        OSError
            If the directory of its output cannot be made.
        """
        assert self.runtime is not None
        if submission.command is None:
            raise NotImplementedError(
                f"backend '{self.name}' ({type(self).__name__}) cannot run task "
                f"'{submission.name}': it runs functions and programs, not prompts; name another "
                "backend for those"
            )
        options = submission.options
        if options and not options.keys() <= PROGRAM_OPTIONS:
            self._warn_of_ignored(submission, "program", PROGRAM_OPTIONS | {"shell"})
        self.unfinished[submission] = start_program(
            submission, self.runtime, self.mailbox, self._work_dir, self.report_running
        )
        self._programs.add(submission)
        self.reader.kept = self

    def _warn_of_ignored(self, submission: Submission, kind: str, known: frozenset[str]) -> None:
        for key in submission.options:
            if key not in known and (kind, key) not in self._ignored:
                self._ignored.add((kind, key))
                _log.warning(
                    "backend '%s' ignores '%s' in the task_description of a %s, first of task "
                    "'%s': it knows %s",
                    self.name,
                    key,
                    kind,
                    submission.name,
                    ", ".join(sorted(known)),
                )

    # --- outcomes -------------------------------------------------------------------------------

    def poll(self) -> None:
        """Report what has ended, or does within a moment, if that was worth waiting for lately.

        A short function takes less time than to wake the event loop from its sleep, which calls
        this when the mailbox holds something.
        """
        mailbox, unfinished, drained = self.mailbox, self.unfinished, self._drained
        if mailbox is None:
            return
        try:
            for _ in range(LOOKS_PER_TURN):
                # Into what is kept here: nothing is lost if a signal's handler raises meanwhile.
                outcomes: list[Outcome] = mailbox.drain(
                    DELIVERIES_PER_TURN, look=True, into=drained
                )
                if self.late or self._programs:
                    outcomes = self._outcomes_to_report(outcomes)
                else:
                    for submission, state, _value in outcomes:
                        if state is not _RUNNING:
                            unfinished.pop(submission, None)
                is_over = not outcomes or not self._report(outcomes)
                if self.late or self._programs:
                    for submission, state, _value in drained:
                        if state is not _RUNNING:
                            self._programs.discard(submission)
                            self.late.pop(submission, None)
                drained.clear()
                if is_over:
                    break
        except BaseException:
            if drained and self.loop is not None:
                self.loop.call_soon(self.reader)
            raise
        finally:
            if not unfinished and not self.late:
                self.reader.kept = None
                if not self.is_open:
                    self.stay_while_busy()  # a shutdown waits for this

    def _outcomes_to_report(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Leave out what is nobody's, and understand the ends of programs.

        When a signal's handler raises in it, this is done again.
        """
        kept: list[Outcome] = []
        for submission, state, value in outcomes:
            if state is _RUNNING:
                if submission in self.unfinished:
                    kept.append((submission, state, value))
                continue
            is_program = submission in self._programs
            if submission in self.late:
                continue
            self.unfinished.pop(submission, None)
            if is_program and state is not State.CANCELED:
                try:
                    state, value = end_of_program(submission, value, self._work_dir)
                except BaseException as error:  # not to lose the outcomes of the others
                    let_out(error)
                    state, value = State.FAILED, error
            kept.append((submission, state, value))
        return kept

    def has_begun(self, submission: Submission) -> bool:
        running = self.unfinished.get(submission)
        return running is not None and running.state == "running"

    # --- cancellation ---------------------------------------------------------------------------

    def cancel(self, submission: Submission) -> bool:
        running = self.unfinished.get(submission)
        return running is not None and bool(running.cancel())

    async def cancel_task(self, uid: str) -> bool:
        found = [submission for submission in self.unfinished if submission.uid == uid]
        return sum([self.cancel(submission) for submission in found]) > 0

    async def cancel_all_tasks(self) -> int:
        """Stop all tasks, each as :meth:`cancel_task` does; return how many."""
        return sum([self.cancel(submission) for submission in list(self.unfinished)])
