"""How packed submissions are given to the scheduler, and which of them cannot be run there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distributed import Future

from dftracer.asyncflow.backends.base import Outcome, State, Submission
from dftracer.asyncflow.backends.dask import worker
from dftracer.asyncflow.backends.dask.connection import Connection, label_of, lost_task
from dftracer.asyncflow.backends.dask.options import why_impossible
from dftracer.asyncflow.backends.dask.packing import Packed, batches
from dftracer.asyncflow.errors import text_of_error


class Sender:
    """Sends a backend's submissions.

    Those that demand certain workers or resources would wait for ever where there are none: the
    scheduler is asked first.

    Parameters
    ----------
    backend:
        How messages call the backend.
    take_sent:
        Is given those that were sent, each batch with its futures.
    report:
        Is given the outcomes of those that could not be.
    """

    def __init__(
        self,
        backend: str,
        take_sent: Callable[[list[Packed], list[Future]], None],
        report: Callable[[Sequence[Outcome]], None],
    ) -> None:
        self._backend = backend
        self._take_sent = take_sent
        self._report = report
        self._checked: dict[Submission, Packed] = {}
        """Those of which it is being asked whether the cluster can run them."""
        self._checks: set[asyncio.Task[None]] = set()

    @property
    def unsent(self) -> list[Submission]:
        """Those of which it is being asked whether the cluster can run them."""
        return list(self._checked)

    def send(self, connection: Connection, tasks: list[Packed]) -> None:
        """Send submissions, at once or when it is known that they can be run."""
        demanding = [each for each in tasks if each.options.workers or each.options.resources]
        if not demanding:
            self._send(connection, tasks)
            return
        first = {id(each) for each in demanding}
        self._send(connection, [each for each in tasks if id(each) not in first])
        self._checked.update((each.submission, each) for each in demanding)
        check = connection.loop.create_task(self._check(connection, demanding))
        self._checks.add(check)
        check.add_done_callback(self._checks.discard)

    def take_back(self, submission: Submission) -> bool:
        """Do not send a submission; false if it is not among the :attr:`unsent`."""
        return self._checked.pop(submission, None) is not None

    def close(self) -> None:
        """Send nothing any more of what was not sent."""
        self._checked.clear()
        for check in self._checks:
            check.cancel()

    async def _check(self, connection: Connection, demanding: list[Packed]) -> None:
        """Send those submissions that some worker can run, and fail the others."""
        lost: Exception | None = None
        workers: Mapping[str, Any] = {}
        try:
            identity = await connection.run(connection.client.scheduler.identity())
            workers = identity["workers"]
        except Exception as error:
            lost = error
        possible: list[Packed] = []
        failed: list[Outcome] = []
        for packed in demanding:
            submission = packed.submission
            if self._checked.get(submission) is not packed:
                continue  # cancelled meanwhile
            del self._checked[submission]
            why: Exception | None
            if lost is not None:
                why = lost_task(self._backend, connection.client, label_of(submission), lost)
            else:
                why = _refusal(packed, workers)
            if why is None:
                possible.append(packed)
            else:
                failed.append((submission, State.FAILED, why))
        self._report(failed)
        self._send(connection, possible)

    def _send(self, connection: Connection, tasks: list[Packed]) -> None:
        """Give submissions to the scheduler, as many at a time as are alike."""
        for batch in batches(tasks):
            columns: list[list[Any]] = [[packed.work for packed in batch]]
            if batch[0].inputs:
                columns.append([packed.inputs for packed in batch])
            keys = [packed.work.key for packed in batch]
            try:
                futures = connection.client.map(
                    worker.run, *columns, key=keys, pure=False, **batch[0].options.dask
                )
            except Exception as error:
                self._report([(packed.submission, State.FAILED, error) for packed in batch])
            else:
                self._take_sent(batch, futures)


def _refusal(packed: Packed, workers: Mapping[str, Any]) -> Exception | None:
    """Return the error of a submission that none of these workers can run."""
    try:
        reason = why_impossible(packed.options, workers)
    except Exception as error:
        reason = f"it cannot be known which workers fit: {text_of_error(error)}"
    return None if reason is None else RuntimeError(f"{packed.label}: {reason}")
