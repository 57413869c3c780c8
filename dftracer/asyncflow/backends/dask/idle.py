"""A warning for those whose tasks wait on a cluster that has no worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from dftracer.asyncflow.backends.base import Submission
from dftracer.asyncflow.backends.dask.connection import Connection, label_of

_SILENCE_S = 10.0
"""How long no task may begin or end before a cluster is asked for its workers."""

_log = logging.getLogger("dftracer.asyncflow")


class WorkerCheck:
    """Sees from time to time whether nothing happens because there is no worker, and logs that.

    Parameters
    ----------
    backend:
        How messages call the backend.
    unfinished:
        The submissions that the cluster has not ended.
    """

    def __init__(
        self, backend: str, connection: Connection, unfinished: Collection[Submission]
    ) -> None:
        self._backend = backend
        self._connection = connection
        self._unfinished = unfinished
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._has_heard = False
        """Whether a task has begun or ended since the timer was started."""
        self._has_warned = False

    def start(self) -> None:
        """Begin to check, unless that was begun. It ends when nothing is unfinished."""
        if self._timer is None:
            self._timer = self._loop.call_later(_SILENCE_S, self._check)

    def stop(self) -> None:
        """Check no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._asking is not None:
            self._asking.cancel()

    def heard(self) -> None:
        """Note that a task has begun or ended."""
        self._has_heard = True

    def _check(self) -> None:
        self._timer = None
        if not self._unfinished:
            return
        self.start()
        if self._has_heard:
            self._has_heard = self._has_warned = False
        elif self._asking is None or self._asking.done():
            self._asking = self._loop.create_task(self._warn_if_no_worker())

    async def _warn_if_no_worker(self) -> None:
        connection = self._connection
        try:
            identity = await connection.run(connection.client.scheduler.identity())
        except Exception:
            return  # each task fails with the loss of the scheduler
        waiting = list(self._unfinished)
        if identity["workers"] or not waiting:
            self._has_warned = False
        elif not self._has_warned:
            self._has_warned = True
            _log.warning(
                "backend '%s': %d tasks wait, the first of them %s, for the scheduler at %s has no "
                "worker: are its jobs in a queue, or were they refused?",
                self._backend,
                len(waiting),
                label_of(waiting[0]),
                identity.get("address"),
            )
