"""A backend that runs tasks on the workers of a Dask cluster.

Two event loops take part, if the Dask client has one of its own: the engine's, in which tasks are
submitted and reported, and the client's, in which Dask's messages arrive. What one has for the
other is collected and handed over with one wake-up for all of it. This file is the first alone:
``watching.py`` and ``results.py`` say what is done in the second.

Results stay on the cluster: what is reported is a :class:`~.results.DaskValue`. ``docs/dask.md`` is
for those who use this backend; ``worker.py`` is what runs on the workers.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from distributed import Client, Future
from distributed.deploy import Cluster

from dftracer.asyncflow.backends.base import ExecutionBackend, Outcome, Report, State, Submission
from dftracer.asyncflow.backends.dask.connection import Connection, check_target
from dftracer.asyncflow.backends.dask.failures import BodyCancelledError
from dftracer.asyncflow.backends.dask.packing import Packed, Packer
from dftracer.asyncflow.backends.dask.results import DaskValue, Results
from dftracer.asyncflow.backends.dask.sending import Sender
from dftracer.asyncflow.backends.dask.watching import Begin, SentTask, Watcher
from dftracer.asyncflow.backends.ending import Ending
from dftracer.asyncflow.errors import let_out

_BEGIN_AFTER_S = 0.25
"""How long a task runs before its worker makes that known, unless somebody wants to know it of
each. It costs as much as a tenth of a small task."""


class DaskExecutionBackend(ExecutionBackend):
    """Runs functions and programs on the workers of a Dask cluster.

    Parameters
    ----------
    target:
        Where: the address of a scheduler, a :class:`distributed.Client`, a cluster object, or a
        mapping of arguments for a :class:`distributed.LocalCluster` of this backend's own, or
        with an ``address`` alone. ``None`` makes such a cluster with Dask's default sizes.
    name:
        The name by which decorators choose this backend.
    cluster, client, resources:
        Other names for ``target``; at most one of the four may be given.

    Raises
    ------
    TypeError
        If ``target`` is none of these, or there are several.

    Notes
    -----
    :meth:`shutdown` closes what this backend has made, and leaves running what it was given.
    """

    keeps_timeouts = True
    leaves_results = True

    def __init__(
        self,
        target: str | Client | Cluster | Mapping[str, Any] | None = None,
        name: str = "dask",
        *,
        cluster: str | Cluster | None = None,
        client: Client | None = None,
        resources: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(name)
        given = [each for each in (target, cluster, client, resources) if each is not None]
        if len(given) > 1:
            raise TypeError("give one of target, cluster, client and resources, not several")
        self._target: Any = given[0] if given else {}
        check_target(self._target)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: Connection | None = None
        self._watcher: Watcher | None = None
        self._sender = Sender(name, self._take_sent, self._report_soon)
        self._results = Results(name)
        self._starting: asyncio.Task[None] | None = None
        self._ending = Ending()
        self._token = uuid.uuid4().hex[:12]
        """Part of Dask's keys, as identifiers repeat between engines."""
        self._sent: dict[Submission, SentTask] = {}
        """The unfinished submissions that the cluster was given."""
        self._by_uid: dict[str, Submission] = {}
        """The same by their identifiers, which events have."""
        self._outcomes: list[Outcome] = []
        """What is to be reported in the next turn of the event loop."""

    # --- the beginning --------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, Any, DaskExecutionBackend]:
        return self._start().__await__()

    async def __aenter__(self) -> DaskExecutionBackend:
        return await self._start()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.shutdown()

    async def _start(self) -> DaskExecutionBackend:
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise RuntimeError(
                f"backend '{self.name}' serves another event loop: shut it down there, or make "
                "one backend for each loop"
            )
        if self._ending.is_under_way:
            await self.shutdown()
        if self._connection is None:
            self._loop = loop
            if self._starting is None:
                self._starting = loop.create_task(self._open())
            await asyncio.shield(self._starting)
        return self

    async def _open(self) -> None:
        connection = Connection(self.name)
        try:
            await connection.open(self._target)
        except BaseException:
            self._loop = None
            raise
        else:
            self._connection = connection
            self._watcher = Watcher(self.name, connection, self._take, self._sent)
            self._results.open(connection)
        finally:
            self._starting = None

    def state(self) -> str:
        return "IDLE" if self._connection is None else "INITIALIZED"

    @property
    def client(self) -> Client | None:
        """The client that tasks go through, while the backend is started."""
        return self._connection.client if self._connection is not None else None

    # --- to the cluster -------------------------------------------------------------------------

    def submit(self, submissions: Sequence[Submission], ahead: int = 0) -> None:
        """Begin to run submissions, and return before any is reported.

        What goes ``ahead`` has a higher priority, by 2**-30 for each turn of the engine: a
        ``priority`` in a ``task_description`` says more.

        Raises
        ------
        RuntimeError
            If the backend is not started.
        ConnectionError
            If its client has lost the scheduler. In both cases none of them is run.
        """
        connection, watcher = self._connection, self._watcher
        if connection is None or watcher is None or self._ending.is_under_way:
            raise RuntimeError(f"backend '{self.name}' is not started: await it first")
        client = connection.client
        if client.status != "running":
            raise ConnectionError(
                f"backend '{self.name}' has no connection to its scheduler: its client is "
                f"{client.status}"
            )
        topic = watcher.subscribe(self._token)
        begin_event = (topic, 0.0 if self.report_running else _BEGIN_AFTER_S)
        packer = Packer(self.name, client, self._token, begin_event, self._work_dir)
        failed: list[Outcome] = []
        tasks: list[Packed] = []
        for submission in submissions:
            try:
                tasks.append(packer.pack(submission))
            except BaseException as error:
                let_out(error)
                failed.append((submission, State.FAILED, error))
        for task in tasks if ahead else ():
            task.options.go_ahead(ahead)
        self._report_soon(failed)
        self._sender.send(connection, tasks)

    def _take_sent(self, tasks: list[Packed], futures: list[Future]) -> None:
        """Note what the scheduler was given, and wait for its end."""
        sent = [
            SentTask(packed.submission, future)
            for packed, future in zip(tasks, futures, strict=True)
        ]
        self._sent.update((each.submission, each) for each in sent)
        self._by_uid.update((packed.work.uid, packed.submission) for packed in tasks)
        if self._watcher is not None:
            self._watcher.watch(sent)

    # --- from the cluster -----------------------------------------------------------------------

    def _take(self, events: list[SentTask | Begin]) -> None:
        """Report what has begun or ended."""
        outcomes: list[Outcome] = []
        for event in events:
            if not isinstance(event, SentTask):
                outcomes += self._note_begin(*event)
            elif self._sent.get(event.submission) is event:
                self._forget(event.submission)
                outcomes.append(self._outcome_of(event))
            # Otherwise it was cancelled meanwhile, or is of an earlier engine.
        self._report_now(outcomes)

    def _note_begin(self, key: str, uid: str, since: float) -> list[Outcome]:
        """Note that a task runs; return what is to be reported of that."""
        submission = self._by_uid.get(uid)
        sent = self._sent.get(submission) if submission is not None else None
        if sent is None or sent.future.key != key:
            return []  # of an earlier engine, or cancelled meanwhile
        if sent.has_begun:  # Dask may run it again
            return []
        sent.has_begun = True
        if self.report_running:
            return [(sent.submission, State.RUNNING, since)]
        sent.submission.describe(started_at=since)
        return []

    def _outcome_of(self, ended: SentTask) -> Outcome:
        submission, error = ended.submission, ended.error
        if isinstance(error, BodyCancelledError):
            return submission, State.CANCELED, None
        if error is not None:
            if ended.facts:
                submission.describe(**ended.facts)
            return submission, State.FAILED, error
        if submission.function is None:
            submission.describe(exit_code=0)
        return submission, State.DONE, DaskValue(self, self._results, ended.future, submission)

    def _forget(self, submission: Submission) -> SentTask | None:
        """Take a submission out of the unfinished ones."""
        sent = self._sent.pop(submission, None)
        if sent is not None and self._by_uid.get(submission.uid) is submission:
            del self._by_uid[submission.uid]
        return sent

    def has_begun(self, submission: Submission) -> bool:
        sent = self._sent.get(submission)
        return sent is not None and sent.has_begun

    def _report_soon(self, outcomes: Sequence[Outcome]) -> None:
        """Report these in the next turn of the event loop, with what else there is then."""
        if outcomes and not self._outcomes and self._loop is not None:
            self._loop.call_soon(self._report_collected)
        self._outcomes += outcomes

    def _report_collected(self) -> None:
        outcomes, self._outcomes = self._outcomes, []
        self._report_now(outcomes)

    def _report_now(self, outcomes: Sequence[Outcome]) -> None:
        if not outcomes:
            return
        try:
            self._report(outcomes)
        except BaseException as error:
            let_out(error)
            message = f"backend '{self.name}': {len(outcomes)} states could not be reported"
            context = {"message": message, "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    # --- cancellation and the end ---------------------------------------------------------------

    def cancel(self, submission: Submission) -> bool:
        """Stop a submission; true if it is reported as cancelled."""
        sent = self._forget(submission)
        if sent is not None:
            # Dask stops it unless somebody else wants it, for example under the same key.
            sent.future.release()
        elif not self._sender.take_back(submission):
            return False
        self._report_soon([(submission, State.CANCELED, None)])
        return True

    async def cancel_task(self, uid: str) -> bool:
        for submission in self.held():
            if submission.uid == uid:
                return self.cancel(submission)
        return False

    async def cancel_all_tasks(self) -> int:
        """Stop all submissions; return how many."""
        return sum([self.cancel(each) for each in self.held()])

    def held(self) -> list[Submission]:
        return [*self._sender.unsent, *self._sent]

    def connect(self, report: Report) -> None:
        # What still runs was another's: its identifiers may be used anew.
        for sent in self._sent.values():
            sent.future.release()
        self._sent.clear()
        self._by_uid.clear()
        self._sender.close()
        self._outcomes.clear()
        if self._watcher is not None:
            self._watcher.unsubscribe()
        self._token = uuid.uuid4().hex[:12]
        super().connect(report)

    async def shutdown(self) -> None:
        """Cancel what is unfinished, and close what this backend has made.

        Then the backend can be used again. It goes on when a caller is cancelled.
        """
        if self._loop is None:
            return
        await self._ending.wait(self._close)

    async def _close(self) -> None:
        try:
            if self._starting is not None:
                await asyncio.wait([self._starting])
            await self.cancel_all_tasks()
            self._report_collected()
            if self._watcher is not None:
                self._watcher.close()
            self._sender.close()
            self._results.close()
            if self._connection is not None:
                await self._connection.close()
        finally:
            if self._ending.is_current():
                self._connection = self._watcher = self._loop = None
                self._ending.forget()
