"""``await handle``, in any asyncio event loop.

Each loop gets one mailbox, whose descriptor it watches: however many awaited tasks end at a time,
the loop is woken once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any
from weakref import WeakKeyDictionary

from dftracer.utils._native import Mailbox, TaskHandle

_DELIVERIES_PER_TURN = 1_000

_mailboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox] = WeakKeyDictionary()


def iterate(handle: TaskHandle[Any]) -> Generator[Any, Any, Any]:
    """Return what ``handle.__await__()`` returns: the steps of waiting in the running loop."""
    return _outcome(handle).__await__()


async def _outcome(handle: TaskHandle[Any]) -> Any:
    if not handle.done():
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        handle._deliver_to(_mailbox_of(loop), ended)
        try:
            await ended
        except asyncio.CancelledError:
            # As awaiting an asyncio task does: who gives up waiting gives up the task.
            handle.cancel()
            raise
    state, value = handle._report()
    if state == "cancelled":
        raise asyncio.CancelledError(f"task {handle.task_id} '{handle.name}' was cancelled")
    return handle.get() if state == "failed" else value


def _mailbox_of(loop: asyncio.AbstractEventLoop) -> Mailbox:
    mailbox = _mailboxes.get(loop)
    if mailbox is None:
        mailbox = _mailboxes[loop] = Mailbox()
        loop.add_reader(mailbox.fileno(), _deliver, mailbox)
    return mailbox


def _deliver(mailbox: Mailbox) -> None:
    for ended, _state, _value in mailbox.drain(_DELIVERIES_PER_TURN):
        if not ended.done():
            ended.set_result(None)
