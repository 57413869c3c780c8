"""Results that stay on the cluster, and how they are fetched: many at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Sequence
from typing import Any

from distributed import Future

from dftracer.asyncflow.backends.base import ExecutionBackend, RemoteValue, Submission
from dftracer.asyncflow.backends.dask.arguments import Output
from dftracer.asyncflow.backends.dask.connection import Connection, label_of, lost_task
from dftracer.asyncflow.errors import text_of_error

_PAUSE_S = 0.02
"""How long to wait for more results to fetch, while others are being fetched. To ask for one costs
as much as to ask for many: a third of what Dask takes for a small task."""

_PATIENCE_S = 2
_SMALL_BYTES = 10_000_000
"""When small results have not come after this time, they are asked for again. A scheduler that was
just about to get them from a worker that has died waits for it for 30 seconds."""


class DaskValue(RemoteValue):
    """The result of a task, on the worker that ran it. It stays there as long as this lives."""

    __slots__ = ("_backend", "_description", "_results", "future", "label")

    def __init__(
        self, backend: ExecutionBackend, results: Results, future: Future, submission: Submission
    ) -> None:
        self._backend = backend
        self._results = results
        self.future = future
        self.label = label_of(submission)
        # Of a program, to put there what it has written.
        self._description = submission.as_dict() if submission.function is None else None

    def is_on(self, backend: Any) -> bool:
        return backend is self._backend and self._results.has(self.future)

    def fetch(self) -> Awaitable[Any]:
        return self._results.fetch(self)

    def result_of(self, fetched: Any) -> Any:
        """Return the task's result, given what has been fetched."""
        if type(fetched) is not Output:
            return fetched
        if self._description is not None:
            self._description.update(stdout=fetched.stdout, stderr=fetched.stderr)
        return fetched.stdout

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("the result of a Dask task can only be sent to Dask tasks")


_Wanted = list[tuple[DaskValue, "asyncio.Future[Any]"]]
"""Results that are to be fetched, and who waits for each."""


class Results:
    """Fetches the results of a backend's tasks.

    Parameters
    ----------
    backend:
        How messages call the backend.
    """

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._connection: Connection | None = None
        self._wanted: _Wanted = []
        self._fetching: set[asyncio.Future[Any]] = set()

    def open(self, connection: Connection) -> None:
        """Fetch over ``connection`` from now on."""
        self._connection = connection

    def close(self) -> None:
        """Cancel what is being fetched, and forget the connection."""
        self._connection = None
        for result in [*self._fetching]:
            result.cancel()

    def has(self, future: Future) -> bool:
        """Tell whether a Dask future can be used here: not if there is another client by now, or
        the scheduler was lost."""
        connection = self._connection
        return (
            connection is not None
            and connection.client is future.client
            and not (future.cancelled())
        )

    # --- in the backend's event loop ------------------------------------------------------------

    def fetch(self, value: DaskValue) -> asyncio.Future[Any]:
        """Bring a result here, together with the others that are wanted in this turn."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Any] = loop.create_future()
        if self._connection is None or self._connection.client is not value.future.client:
            result.set_exception(self._lost(value, None))
            return result
        self._wanted.append((value, result))
        if len(self._wanted) == 1:
            pause_s = _PAUSE_S if self._fetching else 0
            loop.call_later(pause_s, self._ask, self._connection)
        self._fetching.add(result)
        result.add_done_callback(self._fetching.discard)
        return result

    def _ask(self, connection: Connection) -> None:
        wanted, self._wanted = self._wanted, []
        connection.call_in_client_loop(self._gather_all, connection, wanted)

    def _settle(self, wanted: _Wanted, values: Sequence[Any] | BaseException) -> None:
        """Give values to those who wait for them."""
        for index, (value, result) in enumerate(wanted):
            if result.done():
                continue
            if not isinstance(values, BaseException):
                result.set_result(value.result_of(values[index]))
            elif value.future.cancelled() or isinstance(values, asyncio.CancelledError):
                result.set_exception(self._lost(value, values))
            elif isinstance(values, Exception):
                result.set_exception(values)
            else:
                text = f"the result of {value.label} cannot be read here: {text_of_error(values)}"
                error = RuntimeError(text)
                error.__cause__ = values
                result.set_exception(error)

    def _lost(self, value: DaskValue, error: BaseException | None) -> ConnectionError:
        client = self._connection.client if self._connection is not None else None
        return lost_task(self._backend, client, value.label, error)

    # --- in the client's event loop -------------------------------------------------------------

    def _gather_all(self, connection: Connection, wanted: _Wanted) -> None:
        """Fetch many results at a time."""
        ready = [each for each in wanted if each[0].future.status == "finished"]
        if ready:
            connection.run_in_background(self._gather(connection, ready))
        for each in wanted:
            if each not in ready:  # lost for now; nobody else shall wait for it
                connection.run_in_background(self._gather(connection, [each]))

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
                    connection.run_in_background(self._gather(connection, [each]))
                return
            values = error
        finally:
            again.cancel()
        connection.call_in_backend_loop(self._settle, wanted, values)

    def _gather_again(self, connection: Connection, wanted: _Wanted, patience_s: float) -> None:
        connection.run_in_background(self._gather_small(connection, wanted, 4 * patience_s))

    async def _gather_small(
        self, connection: Connection, wanted: _Wanted, patience_s: float
    ) -> None:
        """Fetch results once more if they are small; who comes first has brought them."""
        wanted = [(value, result) for value, result in wanted if not result.done()]
        keys = [value.future.key for value, _ in wanted]
        with contextlib.suppress(Exception):  # which the first request will raise too
            sizes = await connection.client.nbytes(keys, summary=False)
            if wanted and sum(sizes.values()) <= _SMALL_BYTES:
                await self._gather(connection, wanted, patience_s)
