"""What a mailbox tells its reader: beginnings and ends, in order."""

import gc
import select
import threading
import time
import weakref
from typing import Any

import pytest

from dftracer.utils import Runtime
from dftracer.utils.primitives import Mailbox

GUARD_S = 10


def next_of(mailbox: Mailbox, limit: int = 1_000) -> list[tuple[Any, str, Any]]:
    """Wait until there is something and take it."""
    assert select.select([mailbox.fileno()], [], [], GUARD_S)[0], "nothing has come"
    return mailbox.drain(limit)


def is_empty(mailbox: Mailbox) -> bool:
    return not select.select([mailbox.fileno()], [], [], 0)[0] and mailbox.drain(1) == []


def test_beginning_is_told_with_its_time_when_it_is_posted() -> None:
    mailbox, token = Mailbox(), object()
    before = time.time()
    mailbox.post(token)
    after = time.time()
    ((told, state, when),) = next_of(mailbox)
    assert told is token
    assert state == "running"
    assert before <= when <= after
    assert is_empty(mailbox)


def test_beginnings_keep_their_order_when_many_threads_post() -> None:
    mailbox, count = Mailbox(), 500
    posters = [
        threading.Thread(target=lambda n=n: [mailbox.post((n, i)) for i in range(count)])
        for n in range(4)
    ]
    for poster in posters:
        poster.start()
    told: list[Any] = []
    while len(told) < len(posters) * count:
        told += [token for token, _, _ in next_of(mailbox, 7)]
    for poster in posters:
        poster.join()
    assert is_empty(mailbox)
    for n in range(len(posters)):
        assert [i for poster, i in told if poster == n] == list(range(count))


def test_program_tells_its_beginning_before_its_end_when_it_is_asked_to() -> None:
    mailbox = Mailbox()
    with Runtime() as runtime:
        before = time.time()
        runtime.start_process(["true"], mailbox=mailbox, token="loud", tell_begin=True)
        told: list[Any] = []
        while len(told) < 2:
            told += next_of(mailbox)
        (first, begun, when), (second, end, result) = told
        assert (first, begun, second, end) == ("loud", "running", "loud", "done")
        assert before <= when <= time.time()
        assert result.exit_code == 0

        runtime.start_process(["true"], mailbox=mailbox, token="quiet")
        assert [(token, state) for token, state, _ in next_of(mailbox)] == [("quiet", "done")]


def test_program_tells_no_beginning_when_the_runtime_refuses_it() -> None:
    mailbox, runtime = Mailbox(), Runtime()
    runtime.shutdown()
    with pytest.raises(RuntimeError):
        runtime.start_process(["true"], mailbox=mailbox, token=1, tell_begin=True)
    assert is_empty(mailbox)


def test_token_is_released_when_its_mailbox_is_dropped_unread() -> None:
    class Token:
        pass

    mailbox, token = Mailbox(), Token()
    seen = weakref.ref(token)
    mailbox.post(token)
    del mailbox, token
    gc.collect()
    assert seen() is None


def test_each_outcome_comes_once_when_the_reader_looks_for_the_next() -> None:
    mailbox, count = Mailbox(), 2_000
    with Runtime(python_threads=1) as runtime:
        for number in range(count):
            runtime.submit_to(mailbox, [(number, int, (number,), None, "int", None)])
            outcomes = mailbox.drain(10, look=True) or next_of(mailbox)
            assert outcomes in ([(number, "done", number)], [])
            if not outcomes:  # the descriptor was to say what a look had seen
                assert next_of(mailbox) == [(number, "done", number)]
    assert mailbox.drain(10) == mailbox.drain(10, look=True) == []
