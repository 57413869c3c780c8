"""What a mailbox tells its reader: beginnings and ends, in order."""

import asyncio
import gc
import select
import threading
import time
import weakref
from typing import Any

import pytest
from mailbox_support import Call

from dftracer.utils import Runtime, TaskTimeoutError
from dftracer.utils.primitives import Mailbox

GUARD_S = 10


def next_of(mailbox: Mailbox, limit: int = 1_000) -> list[tuple[Any, Any, Any]]:
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
            call = Call(int, number)
            runtime.submit_to(mailbox, [call])
            outcomes = mailbox.drain(10, look=True) or next_of(mailbox)
            assert outcomes in ([(call, "done", number)], [])
            if not outcomes:  # the descriptor was to say what a look had seen
                assert next_of(mailbox) == [(call, "done", number)]
    assert mailbox.drain(10) == mailbox.drain(10, look=True) == []


def all_of(mailbox: Mailbox, count: int) -> list[tuple[Any, Any, Any]]:
    """Wait for so many deliveries."""
    told: list[Any] = []
    while len(told) < count:
        told += next_of(mailbox)
    return told


def test_states_are_what_the_reader_calls_them() -> None:
    states = tuple(object() for _ in range(4))
    mailbox, fails = Mailbox(states), Call(int, "x")
    with Runtime(python_threads=1) as runtime:
        runtime.submit_to(mailbox, [Call(int), fails], report_running=True)
        told = [state for _, state, _ in all_of(mailbox, 4)]
        held = threading.Event()
        handles = runtime.submit_to(mailbox, [Call(held.wait, GUARD_S), Call(int)])
        assert handles is not None
        handles[1].cancel()
        ((_, last, nothing),) = next_of(mailbox)
        held.set()
    running, done, failed, cancelled = states
    assert told == [running, done, running, failed]
    assert (last, nothing) == (cancelled, None)


def test_mailbox_takes_four_names_or_none() -> None:
    for states in ((), ("running", "done"), ("a",) * 5, 4):
        with pytest.raises((TypeError, ValueError)):
            Mailbox(states)  # type: ignore[arg-type]


async def later(value: Any) -> Any:
    """Give the value back in another turn of the loop."""
    await asyncio.sleep(0)
    return value


def later_by_hand(value: Any) -> Any:
    """As `later`, as a function that returns a coroutine."""
    return later(value)


@pytest.mark.parametrize("function", [abs, later, later_by_hand])
def test_each_body_reports_its_beginning_once_and_before_its_end(function: Any) -> None:
    mailbox, calls = Mailbox(), [Call(function, n) for n in range(200)]
    with Runtime(python_threads=2) as runtime:
        before = time.time()
        runtime.submit_to(mailbox, calls, report_running=True)
        told = all_of(mailbox, 2 * len(calls))
    assert is_empty(mailbox)
    states: dict[Any, list[str]] = {call: [] for call in calls}
    for call, state, value in told:
        states[call].append(state)
        if state == "running":
            assert before - 1 <= value <= time.time() + 1
        else:
            assert value == call.args[0]
    assert set(map(tuple, states.values())) == {("running", "done")}


def test_nothing_begins_after_its_end_when_bodies_are_cancelled_as_they_begin() -> None:
    mailbox, calls = Mailbox(), [Call(time.sleep, 0) for _ in range(3_000)]
    with Runtime(python_threads=2) as runtime:
        handles = runtime.submit_to(mailbox, calls, report_running=True)
        assert handles is not None
        for handle in reversed(handles):
            handle.cancel()
        runtime.wait_all()
        ended, begun = set(), set()
        while len(ended) < len(calls):
            for call, state, _ in next_of(mailbox):
                assert call not in ended
                if state == "running":
                    assert call not in begun
                    begun.add(call)
                else:
                    ended.add(call)
    assert is_empty(mailbox)


def test_a_call_that_cannot_be_called_is_refused_with_all_others() -> None:
    mailbox = Mailbox()
    with Runtime(python_threads=1) as runtime:
        odd: Any = 5
        with pytest.raises(TypeError, match="callable"):
            runtime.submit_to(mailbox, [Call(abs, 1), Call(odd)])
        with pytest.raises(AttributeError):
            runtime.submit_to(mailbox, [Call(abs, 1), odd])
        runtime.wait_all()
    assert is_empty(mailbox)


def test_a_body_fails_with_its_own_text_when_it_runs_for_too_long() -> None:
    mailbox, held = Mailbox(), threading.Event()
    limited, endless = Call(held.wait, GUARD_S), Call(asyncio.sleep, GUARD_S)
    with Runtime(python_threads=1) as runtime:
        calls = [limited, Call(abs, 1), endless]
        # The second waits in the queue for longer than its own limit.
        timeouts = [(0.6, "too slow"), (0.5, "unfair"), (0.05, "slow, too")]
        runtime.submit_to(mailbox, calls, timeouts=timeouts)
        told = {call: (state, value) for call, state, value in all_of(mailbox, 3)}
        held.set()
    assert told[calls[1]] == ("done", 1)
    for call, text in ((limited, "too slow"), (endless, "slow, too")):
        state, error = told[call]
        assert state == "failed"
        assert type(error) is TaskTimeoutError
        assert str(error) == text
    assert is_empty(mailbox)


def test_the_shorter_of_two_limits_counts() -> None:
    mailbox, held = Mailbox(), threading.Event()
    with Runtime(python_threads=1) as runtime:
        runtime.set_default_task_timeout_ms(50)
        runtime.submit_to(mailbox, [Call(held.wait, GUARD_S)], timeouts=[(GUARD_S, "long")])
        ((_, state, error),) = next_of(mailbox)
        runtime.set_default_task_timeout_ms(1_000 * GUARD_S)
        runtime.submit_to(mailbox, [Call(held.wait, GUARD_S)], timeouts=[(0.05, "short")])
        ((_, other_state, other),) = next_of(mailbox)
        held.set()
    assert (state, other_state) == ("failed", "failed")
    assert "long" not in str(error)
    assert str(other) == "short"


def test_a_limit_is_taken_back_when_the_body_ends() -> None:
    mailbox = Mailbox()
    with Runtime(python_threads=1) as runtime:
        calls = [Call(abs, -1), Call(later, 1)]
        runtime.submit_to(mailbox, calls, timeouts=[(1.0, "no"), None])
        assert {end for _, end, _ in all_of(mailbox, 2)} == {"done"}
        # A later limit is over after those of the others would have been.
        held = threading.Event()
        runtime.submit_to(mailbox, [Call(held.wait, GUARD_S)], timeouts=[(1.1, "last")])
        ((_, _, error),) = next_of(mailbox)
        held.set()
    assert str(error) == "last"
    assert is_empty(mailbox)


def test_none_is_run_when_not_all_are_plain_calls() -> None:
    mailbox, nothing, optional = Mailbox(), Call(int), Call(int)
    nothing.function = None
    optional.options = {"timeout": None}
    with Runtime(python_threads=1) as runtime:
        assert runtime.submit_to(mailbox, [Call(int), nothing]) is None
        assert runtime.submit_to(mailbox, [Call(int), nothing], timeouts=[None, None]) is None
        assert runtime.submit_to(mailbox, [Call(int), optional]) is None
        runtime.wait_all()
        assert is_empty(mailbox)
        assert runtime.submit_to(mailbox, [optional], timeouts=[None]) is not None
        assert next_of(mailbox) == [(optional, "done", 0)]
