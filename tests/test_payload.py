"""What crosses the border to another process: calls, outcomes and errors as bytes."""

import pickle
import subprocess
import sys
import threading
from typing import Any

import pytest

from dftracer.utils.payload import (
    ByValue,
    RemoteTracebackError,
    dumps_by_reference,
    is_packed_outcome,
    pack_call,
    pack_cancelled,
    pack_error,
    read_error,
    read_outcome,
    run_call,
    why_unsendable,
)

LABEL = "task 'f' on backend 'b'"


class PairError(Exception):
    """Cannot be made again from its ``args``."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.pair = first, second


class Unreadable:
    """Is pickled, and cannot be read again."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise LookupError("not to be read")


def _fail() -> None:
    raise PairError(1, 2)


def outcome_of(function: Any, *args: Any, **kwargs: Any) -> tuple[str, Any]:
    packed = run_call(pack_call(LABEL, function, args, kwargs))
    assert is_packed_outcome(packed)
    return read_outcome(LABEL, packed)


def test_a_call_runs_when_the_other_process_has_nothing_of_ours() -> None:
    program = (
        "import pickle, sys; run, call = pickle.load(sys.stdin.buffer); outcome = run(call);"
        "assert not [name for name in sys.modules if name.startswith('dftracer')];"
        "sys.stdout.buffer.write(pickle.dumps(outcome))"
    )
    call = pack_call(LABEL, lambda x, y: x + y, (1,), {"y": 2})
    ended = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps((ByValue(run_call), call)),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert read_outcome(LABEL, pickle.loads(ended.stdout)) == ("done", 3)


def test_an_outcome_is_that_of_the_body_when_it_returns_or_awaits() -> None:
    async def body(value: int) -> int:
        return value

    assert outcome_of(divmod, 7, 2) == ("done", (3, 1))
    assert outcome_of(body, 5) == ("done", 5)
    assert read_outcome(LABEL, pack_cancelled()) == ("cancelled", None)
    assert not is_packed_outcome(("done", "x", 1))


def test_an_error_has_its_attributes_and_its_traceback_when_it_was_raised_elsewhere() -> None:
    state, error = outcome_of(_fail)
    assert state == "failed"
    assert type(error) is PairError
    assert (str(error), error.pair) == ("1 and 2", (1, 2))
    assert type(error.__cause__) is RemoteTracebackError
    assert "raise PairError(1, 2)" in str(error.__cause__)


@pytest.mark.parametrize(
    ("args", "kwargs", "part"),
    [
        ((1, threading.Lock()), {}, "argument 2"),
        ((), {"key": threading.Lock()}, "argument 'key'"),
    ],
)
def test_a_call_is_refused_when_a_part_cannot_be_pickled(args: Any, kwargs: Any, part: str) -> None:
    with pytest.raises(pickle.PicklingError, match=f"{LABEL}: {part} cannot be sent"):
        pack_call(LABEL, max, args, kwargs)


def test_an_outcome_says_what_could_not_be_read_when_it_was_sent() -> None:
    state, error = outcome_of(print, Unreadable())
    assert (state, type(error)) == ("failed", pickle.UnpicklingError)
    assert f"{LABEL} cannot begin" in str(error)
    assert "LookupError: not to be read" in str(error)
    state, error = outcome_of(threading.Lock)
    assert (state, type(error)) == ("failed", pickle.PicklingError)
    assert "has a result that cannot be sent" in str(error)
    state, error = outcome_of(Unreadable)
    assert (state, type(error)) == ("failed", pickle.UnpicklingError)
    assert "has a result that cannot be read here" in str(error)


def test_an_error_stands_for_another_when_that_cannot_be_packed() -> None:
    error = ValueError("odd", threading.Lock())
    assert pack_error(error) is None
    read = read_error(LABEL, None, "ValueError: odd")
    assert (type(read), str(read)) == (
        RuntimeError,
        f"{LABEL} raised ValueError: odd, which cannot be read here",
    )


def test_an_error_keeps_its_cause_when_links_are_asked_for() -> None:
    error = LookupError("later")  # which have no tracebacks: these cannot be pickled alone
    error.__cause__ = PairError(1, 2)
    for links, kind in ((True, PairError), (False, type(None))):
        packed = pack_error(error, links=links)
        assert type(read_error(LABEL, packed, "").__cause__) is kind


def test_a_part_goes_by_reference_when_the_other_process_can_import_it() -> None:
    assert pickle.loads(dumps_by_reference([PairError, 1]) or b"") == [PairError, 1]
    assert dumps_by_reference(lambda: 1) is None
    assert dumps_by_reference(sys.modules["__main__"]) is None

    def replace(part: Any) -> Any:
        return (int, ("7",)) if part is PairError else NotImplemented

    assert pickle.loads(dumps_by_reference([PairError], replace) or b"") == [7]


def test_a_value_is_sendable_when_cloudpickle_alone_can_pickle_it() -> None:
    assert why_unsendable(lambda: 1) is None
    assert why_unsendable(b"") is None
    assert isinstance(why_unsendable([threading.Lock()]), TypeError)
