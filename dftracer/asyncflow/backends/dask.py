"""A backend that runs tasks on the workers of a Dask cluster.

Two event loops take part, if the Dask client has one of its own: the engine's, in which tasks are
submitted and reported, and the client's, in which Dask's messages arrive. What one has for the
other is collected and handed over with one wake-up for all of it.

Results stay on the cluster: what is reported is a :class:`DaskValue`. ``docs/dask.md`` is for
those who use this backend; ``dask_worker`` is what runs on the workers.

It is longer than most: what a task goes through here, on both sides, is best read in one place.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import uuid
from collections.abc import Coroutine, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask
from distributed import Client, Future, LocalCluster
from distributed.deploy import Cluster

from dftracer.asyncflow.backends import dask_worker
from dftracer.asyncflow.backends.base import Callback, ExecutionBackend, Task, TaskStates
from dftracer.asyncflow.backends.dask_options import why_impossible
from dftracer.asyncflow.backends.dask_orders import DaskValue, Job, pack
from dftracer.asyncflow.errors import text_of_error
from dftracer.utils.dask import DFTracerUtilsDaskWorkerPlugin

_log = logging.getLogger("dftracer.asyncflow")

_TCP_TIMEOUT_S = 20
"""How long a scheduler may be silent, if this backend connects to it. Dask's own 30 s are too long
to say within that time that it is gone."""
_CLOSE_TIMEOUT_S = 20
_BATCH_TASKS = 1_000
_BATCH_BYTES = 4_000_000
"""How much goes to the scheduler at a time, so that the first tasks run while others are sent."""


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
        mapping of arguments for a :class:`distributed.LocalCluster` of this backend's own.
        ``None`` makes that with Dask's default sizes.
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
        if not isinstance(self._target, (str, Client, Cluster, Mapping)):
            raise TypeError(
                "DaskExecutionBackend takes a scheduler's address, a Client, a cluster or a "
                f"mapping of arguments for a LocalCluster, not {type(self._target).__name__}"
            )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Client | None = None
        self._client_loop: asyncio.AbstractEventLoop | None = None
        self._own: list[Any] = []
        """What is to be closed, in this order."""
        self._starting: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._token = ""
        """Part of Dask's keys, as identifiers repeat between engines."""
        self._topic: str | None = None
        """Under which workers tell that tasks begin, if somebody wants to know."""
        self._pending: dict[str, _Pending] = {}
        """The unfinished tasks of the engine that is served, by their identifiers."""
        self._checked: dict[str, Task] = {}
        """Those of which it is being asked whether the cluster can run them."""
        self._checking: set[asyncio.Task[None]] = set()
        self._wanted: list[tuple[DaskValue, asyncio.Future[Any]]] = []
        self._fetching: set[asyncio.Future[Any]] = set()
        # These belong to the client's event loop.
        self._news: list[_Pending | tuple[str, float]] = []
        """What the engine does not know yet: tasks that have ended, and those that have begun, by
        their identifiers, with the time."""
        self._background: set[asyncio.Task[None]] = set()

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
        if self._client is None:
            self._loop = loop
            if self._starting is None:
                self._starting = loop.create_task(self._connect())
            await asyncio.shield(self._starting)
        return self

    async def _connect(self) -> None:
        try:
            client = await self._make_client()
            self._client_loop = client.loop.asyncio_loop
            await self._in_client_loop(_register_plugins(client))
            self._token = uuid.uuid4().hex[:12]
            self._client = client
        except BaseException:
            await self._close_own()
            self._loop = self._client_loop = None
            raise
        finally:
            self._starting = None

    async def _make_client(self) -> Client:
        target = self._target
        if isinstance(target, Client):
            if not target.loop.asyncio_loop.is_running():
                raise RuntimeError(
                    f"backend '{self.name}': the event loop of its Client does not run: make an "
                    "async Client in the engine's event loop, or a sync one"
                )
            return await target if target.asynchronous else target
        if isinstance(target, Mapping):
            arguments = {"dashboard_address": ":0", **target}
            target = await asyncio.to_thread(functools.partial(LocalCluster, **arguments))
            self._own.append(target)
        if isinstance(target, Cluster) and target.asynchronous:
            client = await Client(target, asynchronous=True, set_as_default=False)
        else:
            client = await asyncio.to_thread(self._connect_to, target)
        self._own.insert(0, client)
        return client

    def _connect_to(self, target: Any) -> Client:
        """Make a client with a thread and an event loop of its own. Blocks."""
        tcp = "distributed.comm.timeouts.tcp"
        timeout = min(dask.utils.parse_timedelta(dask.config.get(tcp)), _TCP_TIMEOUT_S)
        with dask.config.set({tcp: f"{timeout}s"}):
            try:
                return Client(target, set_as_default=False)
            except OSError as error:
                raise ConnectionError(
                    f"backend '{self.name}' cannot reach the scheduler at {target}: {error}"
                ) from error

    async def _in_client_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Await ``work`` in the event loop of the client."""
        assert self._client_loop is not None
        if self._client_loop is self._loop:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._client_loop))

    # --- to the cluster -------------------------------------------------------------------------

    async def submit_tasks(self, tasks: list[Task]) -> None:
        await self
        self.submit_nowait(tasks)

    def submit_nowait(self, tasks: list[Task]) -> None:
        """Begin to run ``tasks``, like :meth:`submit_tasks` on a backend that has started."""
        if self._client is None or self._loop is None or self._closing is not None:
            raise RuntimeError(f"backend '{self.name}' is not started: await it first")
        if self._client.status != "running":
            raise ConnectionError(
                f"backend '{self.name}' has no connection to its scheduler: its client is "
                f"{self._client.status}"
            )
        if self.report_running and self._topic is None:
            self._topic = f"dftracer-{self._token}"
            self._client.subscribe_topic(self._topic, self._note_begin)
        topic = self._topic if self.report_running else None
        free: list[Job] = []
        demanding: list[Job] = []
        pickled: dict[int, bytes] = {}
        for task in tasks:
            try:
                job = pack(self, task, self._token, topic, pickled)
            except Exception as error:
                self._fail(task, error)
                continue
            (demanding if job.options.workers or job.options.resources else free).append(job)
        self._send(free)
        if demanding:
            self._checked.update((job.task["uid"], job.task) for job in demanding)
            check = self._loop.create_task(self._check(self._client, demanding))
            self._checking.add(check)
            check.add_done_callback(self._checking.discard)

    async def _check(self, client: Client, jobs: list[Job]) -> None:
        """Send those jobs that some worker can run, and fail the others."""
        try:
            workers = (await self._in_client_loop(client.scheduler.identity()))["workers"]
        except Exception as error:
            for job in jobs:
                if self._checked.pop(job.task["uid"], None) is job.task:
                    self._fail(job.task, self._lost(job.task, error))
            return
        possible = []
        for job in jobs:
            if self._checked.pop(job.task["uid"], None) is not job.task:
                continue  # cancelled meanwhile
            if reason := why_impossible(job.options, workers):
                self._fail(job.task, RuntimeError(f"{job.label}: {reason}"))
            else:
                possible.append(job)
        self._send(possible)

    def _send(self, jobs: list[Job]) -> None:
        """Submit jobs to the scheduler, as many at a time as are alike."""
        assert self._client is not None
        assert self._client_loop is not None
        for batch in _batches(jobs):
            columns: list[list[Any]] = [[job.order for job in batch]]
            if batch[0].inputs:
                columns.append([job.inputs for job in batch])
            keys = [job.order.key for job in batch]
            try:
                futures = self._client.map(
                    dask_worker.run, *columns, key=keys, pure=False, **batch[0].options.dask
                )
                pending = [_Pending(j.task, f) for j, f in zip(batch, futures, strict=True)]
                self._client_loop.call_soon_threadsafe(self._watch, pending)
            except Exception as error:
                for job in batch:
                    self._fail(job.task, error)
            else:
                self._pending.update((each.task["uid"], each) for each in pending)

    # --- from the cluster -----------------------------------------------------------------------

    def _watch(self, batch: list[_Pending]) -> None:
        """See to it that the ends of tasks are reported. In the client's event loop."""
        for pending in batch:
            self._begin(self._wait_for(pending))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` in the client's event loop, which is the current one."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _wait_for(self, pending: _Pending) -> None:
        future = pending.future
        try:
            pending.error = await future.exception()
            if pending.error is not None:
                pending.error = pending.error.with_traceback(await future.traceback())
            elif future.cancelled():
                pending.error = self._lost(pending.task, None)
        except Exception as error:
            pending.error = error
        self._tell(pending)

    def _note_begin(self, event: tuple[float, tuple[str, float]]) -> None:
        uid, since = event[1]
        self._tell((uid, since))

    def _tell(self, news: _Pending | tuple[str, float]) -> None:
        """Let the engine know, together with what else there is in this turn."""
        self._news.append(news)
        if len(self._news) == 1:
            asyncio.get_running_loop().call_soon(self._hand_over)

    def _hand_over(self) -> None:
        news, self._news = self._news, []
        self._call_engine(self._deliver, news)

    def _call_engine(self, function: Any, *args: Any) -> None:
        """Call ``function`` in the engine's event loop, unless that is no more."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(function, *args)

    def _deliver(self, news: list[_Pending | tuple[str, float]]) -> None:
        """Report what has begun or ended. In the engine's event loop."""
        for pending in news:
            if isinstance(pending, tuple):
                self._report_begin(*pending)
                continue
            task = pending.task
            if self._pending.get(task["uid"]) is not pending:
                continue  # cancelled meanwhile, or of an earlier engine
            del self._pending[task["uid"]]
            if isinstance(pending.error, dask_worker.BodyCancelledError):
                self._callback_func(task, TaskStates.CANCELED)
            elif pending.error is not None:
                self._fail(task, pending.error)
            else:
                task["return_value"] = DaskValue(self, pending.future, task)
                if task.get("executable"):
                    task["exit_code"] = 0
                self._callback_func(task, TaskStates.DONE)

    def _report_begin(self, uid: str, since: float) -> None:
        pending = self._pending.get(uid)
        if pending is not None and not pending.is_running:  # once, though Dask may run it again
            pending.is_running = True
            pending.task["started_at"] = since
            self._callback_func(pending.task, TaskStates.RUNNING)

    def is_running(self, uid: str) -> bool:
        pending = self._pending.get(uid)
        return pending is not None and pending.is_running

    def _fail(self, task: Task, error: BaseException) -> None:
        task["exception"] = error
        task.update(getattr(error, "_outcome", {}))
        self._callback_func(task, TaskStates.FAILED)

    def _lost(self, task: Task, error: BaseException | None) -> ConnectionError:
        """Return the error of a task of which Dask knows nothing any more."""
        client = self._client
        if client is not None and client.status == "running":
            what = "has been told to forget it: was it restarted?"
        else:
            what = "is gone"
        scheduler = getattr(getattr(client, "scheduler", None), "address", "unknown")
        why = f" ({text_of_error(error)})" if error is not None else ""
        return ConnectionError(
            f"backend '{self.name}': task '{task['name']}' ({task['uid']}) is lost: the scheduler "
            f"at {scheduler} {what}{why}"
        )

    # --- values ---------------------------------------------------------------------------------

    def _fetch(self, value: DaskValue) -> asyncio.Future[Any]:
        """Bring a result here, together with the others that are wanted in this turn."""
        result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._loop is None or value.future.client is not self._client:
            result.set_exception(self._lost(value.task, None))
            return result
        self._fetching.add(result)
        result.add_done_callback(self._fetching.discard)
        self._wanted.append((value, result))
        if len(self._wanted) == 1:
            self._loop.call_soon(self._ask_for_values)
        return result

    def _ask_for_values(self) -> None:
        wanted, self._wanted = self._wanted, []
        assert self._client_loop is not None
        try:
            self._client_loop.call_soon_threadsafe(self._gather_all, wanted)
        except RuntimeError as error:  # it is closed
            self._deliver_values(wanted, error)

    def _gather_all(self, wanted: list[tuple[DaskValue, asyncio.Future[Any]]]) -> None:
        """Fetch many results at a time. In the client's event loop."""
        ready = [each for each in wanted if each[0].future.status == "finished"]
        if ready:
            self._begin(self._gather(ready))
        for each in wanted:
            if each[0].future.status != "finished":  # nobody else shall wait for it
                self._begin(self._gather([each]))

    async def _gather(self, wanted: list[tuple[DaskValue, asyncio.Future[Any]]]) -> None:
        values: Sequence[Any] | BaseException
        try:
            futures = [value.future for value, _ in wanted]
            values = await futures[0].client.gather(futures, asynchronous=True)
        except (Exception, asyncio.CancelledError) as error:
            if len(wanted) > 1:  # only some of them have failed
                for each in wanted:
                    self._begin(self._gather([each]))
                return
            values = error
        self._call_engine(self._deliver_values, wanted, values)

    def _deliver_values(
        self,
        wanted: list[tuple[DaskValue, asyncio.Future[Any]]],
        values: Sequence[Any] | BaseException,
    ) -> None:
        """Settle those who wait for values. In the engine's event loop."""
        for index, (value, result) in enumerate(wanted):
            if result.done():
                continue
            if not isinstance(values, BaseException):
                result.set_result(value.taken(values[index]))
            elif value.future.cancelled() or not isinstance(values, Exception):
                result.set_exception(self._lost(value.task, values))
            else:
                result.set_exception(values)

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
        self._callback_func(task, TaskStates.CANCELED)
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
        self._token = uuid.uuid4().hex[:12]
        if self._topic is not None and self._client is not None:
            with contextlib.suppress(Exception):  # it is closed
                self._client.unsubscribe_topic(self._topic)
        self._topic = None
        super().register_callback(func)

    async def shutdown(self) -> None:
        """Cancel what is unfinished, and close what this backend has made.

        Then the backend can be reused. It goes on when a caller is cancelled.
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
            for waiting in [*self._checking, *self._fetching]:
                waiting.cancel()
            if self._client_loop is not None:
                with contextlib.suppress(RuntimeError):
                    self._client_loop.call_soon_threadsafe(_cancel_all, self._background)
            await self._close_own()
        finally:
            self._client = self._client_loop = self._loop = self._closing = self._topic = None

    async def _close_own(self) -> None:
        own, self._own = self._own, []
        for each in own:
            try:
                if each.asynchronous:
                    await asyncio.wait_for(each.close(), _CLOSE_TIMEOUT_S)
                else:
                    await asyncio.to_thread(each.close, timeout=_CLOSE_TIMEOUT_S)
            except Exception as error:
                _log.warning(
                    "backend '%s' could not close its %s: %s",
                    self.name,
                    type(each).__name__,
                    text_of_error(error),
                )

    def state(self) -> str:
        return "IDLE" if self._client is None else "INITIALIZED"


async def _register_plugins(client: Client) -> None:
    await client.register_plugin(DFTracerUtilsDaskWorkerPlugin())
    await client.register_plugin(dask_worker.TaskStopper())


def _cancel_all(tasks: set[asyncio.Task[None]]) -> None:
    for task in list(tasks):
        task.cancel()


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
