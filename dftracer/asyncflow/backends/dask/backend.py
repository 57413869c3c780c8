"""A backend that runs tasks on the workers of a Dask cluster.

Two event loops take part, if the Dask client has one of its own: the engine's, in which tasks are
submitted and reported, and the client's, in which Dask's messages arrive. What one has for the
other is collected and handed over with one wake-up for all of it.

Results stay on the cluster: what is reported is a :class:`DaskValue`. ``docs/dask.md`` is for
those who use this backend; ``dask_worker`` is what runs on the workers.

It is longer than most modules: the way of a task, there and back, is best read in one place.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distributed import Client, Future
from distributed.deploy import Cluster

from dftracer.asyncflow.backends.base import Callback, ExecutionBackend, Task, TaskStates
from dftracer.asyncflow.backends.dask import worker as dask_worker
from dftracer.asyncflow.backends.dask.connection import Connection, check_target
from dftracer.asyncflow.backends.dask.options import why_impossible
from dftracer.asyncflow.backends.dask.orders import DaskValue, Job, label_of, pack
from dftracer.asyncflow.errors import let_out, text_of_error

_BATCH_TASKS = 1_000
_BATCH_BYTES = 4_000_000
"""How much goes to the scheduler at a time, so that the first tasks run while others are sent."""

_PAUSE_S = 0.02
"""How long to wait for more results to fetch, while others are being fetched. To ask for one costs
as much as to ask for many: a third of what Dask takes for a small task."""

_PATIENCE_S = 2
_SMALL_BYTES = 10_000_000
"""When small results have not come after this time, they are asked for again. A scheduler that was
just about to get them from a worker that has died waits for it for 30 seconds."""

_TELL_AFTER_S = 0.25
"""How long a task runs before its worker tells that, unless somebody wants to know it of each. It
costs as much as a tenth of a small task."""

_SILENCE_S = 10.0
"""After how long without any news of the tasks that it has a cluster is asked for its workers."""

_log = logging.getLogger("dftracer.asyncflow")

_Begin = tuple[str, str, float]
"""The Dask key and the identifier of a task that has begun, and when."""

_Wanted = list[tuple[DaskValue, asyncio.Future[Any]]]
"""Results that are to be fetched, and who waits for each."""


@dataclass(slots=True, eq=False)
class _Pending:
    """A task that the cluster has not ended."""

    task: Task
    future: Future
    error: BaseException | None = None
    is_running: bool = False


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
        self._starting: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._token = uuid.uuid4().hex[:12]
        """Part of Dask's keys, as identifiers repeat between engines."""
        self._topic: str | None = None
        """Under which workers tell that tasks have begun."""
        self._pending: dict[str, _Pending] = {}
        """The unfinished tasks of the engine that is served, by their identifiers."""
        self._checked: dict[str, Task] = {}
        """Those of which it is being asked whether the cluster can run them."""
        self._checking: set[asyncio.Task[None]] = set()
        self._wanted: _Wanted = []
        self._fetching: set[asyncio.Future[Any]] = set()
        self._news: list[_Pending | _Begin] = []
        """What the engine does not know yet: tasks that have ended, and those that have begun.
        Belongs to the client's event loop."""
        self._next_look: asyncio.TimerHandle | None = None
        self._has_heard = False
        """Whether there was news of tasks since the last look."""
        self._has_told = False
        """Whether the log says that there is no worker."""

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
        if self._closing is not None:
            await asyncio.shield(self._closing)
        if self._connection is None:
            self._loop = loop
            if self._starting is None:
                self._starting = loop.create_task(self._connect())
            await asyncio.shield(self._starting)
        return self

    async def _connect(self) -> None:
        connection = Connection(self.name)
        try:
            await connection.open(self._target)
            self._connection = connection
        except BaseException:
            self._loop = None
            raise
        finally:
            self._starting = None

    def state(self) -> str:
        return "IDLE" if self._connection is None else "INITIALIZED"

    # --- to the cluster -------------------------------------------------------------------------

    async def submit_tasks(self, tasks: list[Task]) -> None:
        await self
        self.submit_nowait(tasks)

    def submit_nowait(self, tasks: list[Task]) -> None:
        """Begin to run ``tasks``, like :meth:`submit_tasks` on a backend that has started."""
        connection = self._connection
        if connection is None or self._loop is None or self._closing is not None:
            raise RuntimeError(f"backend '{self.name}' is not started: await it first")
        client = connection.client
        if client.status != "running":
            raise ConnectionError(
                f"backend '{self.name}' has no connection to its scheduler: its client is "
                f"{client.status}"
            )
        if self._topic is None:
            # The scheduler forgets what it was told under a client's name soon after the client.
            self._topic = client.id if connection.owns_client else f"dftracer-{self._token}"
            client.subscribe_topic(self._topic, self._note_begin)
        telling = (self._topic, 0.0 if self.report_running else _TELL_AFTER_S)
        free: list[Job] = []
        demanding: list[Job] = []
        pickled: dict[int, bytes] = {}
        for task in tasks:
            try:
                job = pack(self, task, client, self._token, telling, pickled)
            except BaseException as error:
                self._fail(task, error)
                let_out(error)
                continue
            (demanding if job.options.workers or job.options.resources else free).append(job)
        self._send(connection, free)
        if demanding:
            self._checked.update((job.task["uid"], job.task) for job in demanding)
            check = self._loop.create_task(self._check(connection, demanding))
            self._checking.add(check)
            check.add_done_callback(self._checking.discard)

    async def _check(self, connection: Connection, jobs: list[Job]) -> None:
        """Send those jobs that some worker can run, and fail the others."""
        failure: Exception | None = None
        workers: Mapping[str, Any] = {}
        try:
            identity = await connection.run(connection.client.scheduler.identity())
            workers = identity["workers"]
        except Exception as error:
            failure = error
        possible = []
        for job in jobs:
            if self._checked.pop(job.task["uid"], None) is not job.task:
                continue  # cancelled meanwhile
            if failure is not None:
                self._fail(job.task, self._lost(label_of(job.task), failure))
                continue
            try:
                reason = why_impossible(job.options, workers)
            except Exception as error:
                reason = f"it cannot be told which workers fit: {text_of_error(error)}"
            if reason is not None:
                self._fail(job.task, RuntimeError(f"{job.label}: {reason}"))
            else:
                possible.append(job)
        self._send(connection, possible)

    def _send(self, connection: Connection, jobs: list[Job]) -> None:
        """Submit jobs to the scheduler, as many at a time as are alike."""
        for batch in _batches(jobs):
            columns: list[list[Any]] = [[job.order for job in batch]]
            if batch[0].inputs:
                columns.append([job.inputs for job in batch])
            keys = [job.order.key for job in batch]
            try:
                futures = connection.client.map(
                    dask_worker.run, *columns, key=keys, pure=False, **batch[0].options.dask
                )
            except Exception as error:
                for job in batch:
                    self._fail(job.task, error)
            else:
                pending = [_Pending(j.task, f) for j, f in zip(batch, futures, strict=True)]
                self._pending.update((each.task["uid"], each) for each in pending)
                connection.tell_client(self._watch, connection, pending)
                self._look_later()

    # --- silence --------------------------------------------------------------------------------

    def _look_later(self) -> None:
        if self._next_look is None and self._loop is not None:
            self._next_look = self._loop.call_later(_SILENCE_S, self._look)

    def _look(self) -> None:
        """See whether nothing happens because there is nobody to do it."""
        self._next_look = None
        connection, loop = self._connection, self._loop
        if not self._pending or connection is None or loop is None:
            return
        self._look_later()
        if self._has_heard:
            self._has_heard = self._has_told = False
            return
        check = loop.create_task(self._tell_if_no_worker(connection))
        self._checking.add(check)
        check.add_done_callback(self._checking.discard)

    async def _tell_if_no_worker(self, connection: Connection) -> None:
        try:
            identity = await connection.run(connection.client.scheduler.identity())
        except Exception:
            return  # of the loss of the scheduler, each task tells
        if identity["workers"] or not self._pending:
            self._has_told = False
        elif not self._has_told:
            self._has_told = True
            _log.warning(
                "backend '%s': %d tasks wait, the first of them %s, for the scheduler at %s has no "
                "worker: are its jobs in a queue, or were they refused?",
                self.name,
                len(self._pending),
                label_of(next(iter(self._pending.values())).task),
                identity.get("address"),
            )

    # --- from the cluster -----------------------------------------------------------------------

    def _watch(self, connection: Connection, batch: list[_Pending]) -> None:
        """See to it that the ends of tasks are reported. In the client's event loop."""
        for pending in batch:
            connection.begin(self._wait_for(connection, pending))

    async def _wait_for(self, connection: Connection, pending: _Pending) -> None:
        future = pending.future
        try:
            pending.error = await future.exception()
            if isinstance(pending.error, dask_worker.SentError):
                pending.error = pending.error.open(label_of(pending.task))
            if pending.error is not None:
                pending.error = pending.error.with_traceback(await future.traceback())
            elif future.cancelled():
                pending.error = self._lost(label_of(pending.task), None)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # of somebody's unpickling, if anything
            pending.error = error
        self._tell(connection, pending)

    def _note_begin(self, event: tuple[float, Any]) -> None:
        if self._connection is not None and not isinstance(event[1], Mapping):  # Dask's own
            self._tell(self._connection, tuple(event[1]))

    def _tell(self, connection: Connection, news: _Pending | _Begin) -> None:
        """Let the engine know, together with what else there is in this turn."""
        self._news.append(news)
        if len(self._news) == 1:
            asyncio.get_running_loop().call_soon(self._hand_over, connection)

    def _hand_over(self, connection: Connection) -> None:
        news, self._news = self._news, []
        connection.tell_backend(self._deliver, news)

    def _deliver(self, news: list[_Pending | _Begin]) -> None:
        """Report what has begun or ended. In the engine's event loop."""
        self._has_heard = True
        for each in news:
            if isinstance(each, tuple):
                self._report_begin(*each)
            elif self._pending.get(each.task["uid"]) is each:
                del self._pending[each.task["uid"]]
                self._report_end(each)
            # Otherwise it was cancelled meanwhile, or is of an earlier engine.

    def _report_begin(self, key: str, uid: str, since: float) -> None:
        pending = self._pending.get(uid)
        if pending is None or pending.future.key != key:
            return  # of an earlier engine, or cancelled meanwhile
        if not pending.is_running:  # once, though Dask may run it again
            pending.is_running = True
            pending.task["started_at"] = since
            self._report(pending.task, TaskStates.RUNNING)

    def _report_end(self, pending: _Pending) -> None:
        task = pending.task
        if isinstance(pending.error, dask_worker.BodyCancelledError):
            self._report(task, TaskStates.CANCELED)
        elif pending.error is not None:
            self._fail(task, pending.error)
        elif task.get("executable"):
            task.update(exit_code=0, return_value=DaskValue(self, pending.future, task))
            self._report(task, TaskStates.DONE)
            del task["return_value"]  # it holds the task, to put there what the program has written
        else:
            task["return_value"] = DaskValue(self, pending.future, task)
            self._report(task, TaskStates.DONE)

    def _fail(self, task: Task, error: BaseException) -> None:
        task["exception"] = error
        task.update(getattr(error, "_outcome", {}))
        self._report(task, TaskStates.FAILED)

    def _report(self, task: Task, state: str) -> None:
        try:
            self._callback_func(task, state)
        except BaseException as error:  # one task's trouble, not that of those that come after it
            let_out(error)
            message = f"backend '{self.name}': the callback failed for {label_of(task)}"
            context = {"message": message, "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    @property
    def client(self) -> Client | None:
        """The client that tasks go through, while the backend is started."""
        return self._connection.client if self._connection is not None else None

    def is_running(self, uid: str) -> bool:
        pending = self._pending.get(uid)
        return pending is not None and pending.is_running

    def _lost(self, label: str, error: BaseException | None) -> ConnectionError:
        """Return the error of a task of which Dask knows nothing any more."""
        client = self.client
        what = "is gone"
        if client is not None and client.status == "running":
            what = "has been told to forget it: was it restarted?"
        scheduler = getattr(getattr(client, "scheduler", None), "address", "an unknown address")
        why = f" ({text_of_error(error)})" if error is not None else ""
        return ConnectionError(
            f"backend '{self.name}': {label} is lost: the scheduler at {scheduler} {what}{why}"
        )

    # --- values ---------------------------------------------------------------------------------

    def has(self, future: Future) -> bool:
        """Tell whether a Dask future can be used here: not if there is another client by now, or
        the scheduler was lost."""
        connection = self._connection
        return (
            connection is not None
            and connection.client is future.client
            and not (future.cancelled())
        )

    def fetch(self, value: DaskValue) -> asyncio.Future[Any]:
        """Bring a result here, together with the others that are wanted in this turn."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Any] = loop.create_future()
        if self._connection is None or self._connection.client is not value.future.client:
            result.set_exception(self._lost(value.label, None))
            return result
        self._wanted.append((value, result))
        if len(self._wanted) == 1:
            pause_s = _PAUSE_S if self._fetching else 0
            loop.call_later(pause_s, self._ask_for_values, self._connection)
        self._fetching.add(result)
        result.add_done_callback(self._fetching.discard)
        return result

    def _ask_for_values(self, connection: Connection) -> None:
        wanted, self._wanted = self._wanted, []
        connection.tell_client(self._gather_all, connection, wanted)

    def _gather_all(self, connection: Connection, wanted: _Wanted) -> None:
        """Fetch many results at a time. In the client's event loop."""
        ready = [each for each in wanted if each[0].future.status == "finished"]
        if ready:
            connection.begin(self._gather(connection, ready))
        for each in wanted:
            if each not in ready:  # lost for now; nobody else shall wait for it
                connection.begin(self._gather(connection, [each]))

    async def _gather(
        self, connection: Connection, wanted: _Wanted, patience_s: float = _PATIENCE_S
    ) -> None:
        values: Sequence[Any] | BaseException
        loop = asyncio.get_running_loop()
        again = loop.call_later(patience_s, self._gather_again, connection, wanted, patience_s)
        try:
            futures = [value.future for value, _ in wanted]
            values = await connection.client.gather(futures, asynchronous=True)
        except GeneratorExit:
            raise
        except BaseException as error:  # the end of the connection, or of somebody's unpickling
            if len(wanted) > 1:  # only some of them have failed
                for each in wanted:
                    connection.begin(self._gather(connection, [each]))
                return
            values = error
        finally:
            again.cancel()
        connection.tell_backend(self._deliver_values, wanted, values)

    def _gather_again(self, connection: Connection, wanted: _Wanted, patience_s: float) -> None:
        connection.begin(self._gather_small(connection, wanted, 4 * patience_s))

    async def _gather_small(
        self, connection: Connection, wanted: _Wanted, patience_s: float
    ) -> None:
        """Fetch results once more if they are small; who comes first has brought them."""
        wanted = [(value, result) for value, result in wanted if not result.done()]
        keys = [value.future.key for value, _ in wanted]
        with contextlib.suppress(Exception):  # of which the first request will tell
            sizes = await connection.client.nbytes(keys, summary=False)
            if wanted and sum(sizes.values()) <= _SMALL_BYTES:
                await self._gather(connection, wanted, patience_s)

    def _deliver_values(self, wanted: _Wanted, values: Sequence[Any] | BaseException) -> None:
        """Settle those who wait for values. In the engine's event loop."""
        for index, (value, result) in enumerate(wanted):
            if result.done():
                continue
            if not isinstance(values, BaseException):
                result.set_result(value.taken(values[index]))
            elif value.future.cancelled() or isinstance(values, asyncio.CancelledError):
                result.set_exception(self._lost(value.label, values))
            elif isinstance(values, Exception):
                result.set_exception(values)
            else:
                text = f"the result of {value.label} cannot be read here: {text_of_error(values)}"
                error = RuntimeError(text)
                error.__cause__ = values
                result.set_exception(error)

    # --- cancellation and the end ---------------------------------------------------------------

    async def cancel_task(self, uid: str) -> bool:
        return self.cancel_nowait(uid)

    def cancel_nowait(self, uid: str) -> bool:
        """Stop a task, like :meth:`cancel_task`."""
        task = self._checked.pop(uid, None)
        pending = self._pending.pop(uid, None)
        if pending is not None:
            # Dask stops it unless somebody else wants it, for example under the same key.
            pending.future.release()
            task = pending.task
        if task is None:
            return False
        self._report(task, TaskStates.CANCELED)
        return True

    async def cancel_all_tasks(self) -> int:
        """Stop all tasks, like :meth:`cancel_task`; return how many."""
        return sum([self.cancel_nowait(uid) for uid in [*self._checked, *self._pending]])

    def register_callback(self, func: Callback) -> None:
        # What still runs was another's: its identifiers may be used anew.
        for pending in self._pending.values():
            pending.future.release()
        self._pending.clear()
        self._checked.clear()
        self._unsubscribe()
        self._token = uuid.uuid4().hex[:12]
        super().register_callback(func)

    def _unsubscribe(self) -> None:
        if self._topic is not None and self.client is not None:
            with contextlib.suppress(Exception):  # there is no scheduler any more
                # It keeps what it calls.
                self.client.subscribe_topic(self._topic, _ignore)
                self.client.unsubscribe_topic(self._topic)
        self._topic = None

    async def shutdown(self) -> None:
        """Cancel what is unfinished, and close what this backend has made.

        Then the backend can be used again. It goes on when a caller is cancelled.
        """
        if self._loop is None:
            return
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            if self._starting is not None:
                await asyncio.wait([self._starting])
            await self.cancel_all_tasks()
            if self._next_look is not None:
                self._next_look.cancel()
                self._next_look = None
            self._unsubscribe()
            for waiting in [*self._checking, *self._fetching]:
                waiting.cancel()
            if self._connection is not None:
                await self._connection.close()
        finally:
            self._connection = self._loop = self._closing = None


def _ignore(_event: Any) -> None:
    """Take an event that comes too late."""


def _batches(jobs: list[Job]) -> Iterator[list[Job]]:
    """Yield jobs that can be sent together."""
    alike: dict[Any, list[Job]] = {}
    for job in jobs:
        # Those with keys that others may have too get futures of their own, which can be released.
        alone = id(job) if job.options.key or job.options.pure else None
        alike.setdefault((repr(job.options.dask), bool(job.inputs), alone), []).append(job)
    for group in alike.values():
        batch: list[Job] = []
        size = 0
        for job in group:
            batch.append(job)
            size += job.size
            if len(batch) == _BATCH_TASKS or size > _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch
