"""The begins and ends of tasks on the cluster, as its scheduler sends them.

Dask's messages arrive in the event loop of its client. What they say is collected there and handed
to the backend's event loop with one wake-up for all that there is in one turn.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from distributed import Future

from dftracer.asyncflow.backends.base import Submission
from dftracer.asyncflow.backends.dask.connection import Connection, label_of, lost_task
from dftracer.asyncflow.backends.dask.failures import SentError
from dftracer.asyncflow.backends.dask.idle import WorkerCheck


@dataclass(slots=True, eq=False)
class SentTask:
    """A submission that the cluster was given."""

    submission: Submission
    future: Future
    has_begun: bool = False
    error: BaseException | None = None
    """Why it has failed, when it has ended."""
    facts: Mapping[str, Any] | None = None
    """What else is known of it then, for its description."""


Begin = tuple[str, str, float]
"""The Dask key and the identifier of a task that has begun, and when, in seconds since the
epoch."""

Handler = Callable[[list[SentTask | Begin]], None]
"""Takes what has happened, in the backend's event loop: tasks that have ended, and beginnings."""


class Watcher:
    """Hears what becomes of tasks.

    Parameters
    ----------
    backend:
        How messages call the backend.
    handle:
        Is given what has happened.
    unfinished:
        The submissions that the cluster has not ended.
    """

    def __init__(
        self,
        backend: str,
        connection: Connection,
        handle: Handler,
        unfinished: Collection[Submission],
    ) -> None:
        self._backend = backend
        self._connection = connection
        self._handle = handle
        self._worker_check = WorkerCheck(backend, connection, unfinished)
        self._topic: str | None = None
        self._events: list[SentTask | Begin] = []
        """What has happened in this turn. Belongs to the client's event loop."""

    # --- in the backend's event loop ------------------------------------------------------------

    def subscribe(self, token: str) -> str:
        """Listen for beginnings; return the topic under which workers make them known.

        ``token`` makes the topic differ from those of others on the same cluster.
        """
        if self._topic is None:
            # The scheduler forgets events under a client's name soon after the client.
            connection = self._connection
            topic = connection.client.id if connection.owns_client else f"dftracer-{token}"
            connection.client.subscribe_topic(topic, self._note_begin)
            self._topic = topic
        return self._topic

    def unsubscribe(self) -> None:
        """Listen for beginnings no more."""
        if self._topic is not None:
            client = self._connection.client
            with contextlib.suppress(Exception):  # there is no scheduler any more
                # It keeps what it calls.
                client.subscribe_topic(self._topic, _ignore)
                client.unsubscribe_topic(self._topic)
        self._topic = None

    def watch(self, tasks: list[SentTask]) -> None:
        """Handle the ends of these tasks, too."""
        self._connection.call_in_client_loop(self._watch_all, tasks)
        self._worker_check.start()

    def close(self) -> None:
        """Listen no more."""
        self._worker_check.stop()
        self.unsubscribe()

    def _take(self, events: list[SentTask | Begin]) -> None:
        self._worker_check.heard()
        self._handle(events)

    # --- in the client's event loop -------------------------------------------------------------

    def _watch_all(self, tasks: list[SentTask]) -> None:
        for task in tasks:
            self._connection.run_in_background(self._wait_for(task))

    async def _wait_for(self, task: SentTask) -> None:
        future = task.future
        try:
            error = await future.exception()
            if isinstance(error, SentError):
                task.facts = error.facts
                error = error.open(label_of(task.submission))
            if error is not None:
                error = error.with_traceback(await future.traceback())
            elif future.cancelled():
                client = self._connection.client
                error = lost_task(self._backend, client, label_of(task.submission), None)
            task.error = error
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # of somebody's unpickling, if anything
            task.error = error
        self._add(task)

    def _note_begin(self, event: tuple[float, Any]) -> None:
        if not isinstance(event[1], Mapping):  # an event of Dask's own
            self._add(tuple(event[1]))

    def _add(self, event: SentTask | Begin) -> None:
        """Hand an event over, together with what else there is in this turn."""
        self._events.append(event)
        if len(self._events) == 1:
            asyncio.get_running_loop().call_soon(self._hand_over)

    def _hand_over(self) -> None:
        events, self._events = self._events, []
        self._connection.call_in_backend_loop(self._take, events)


def _ignore(_event: Any) -> None:
    """Take an event that comes too late."""
