"""What in a call's arguments is a future, and what goes in its place."""

import asyncio
import concurrent.futures
import dataclasses
from collections import Counter, OrderedDict, UserList, defaultdict, deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from dftracer.asyncflow.engine.arguments import find_in_call, resolve


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Return a loop that never runs: its futures are ended by hand."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def ended(loop: asyncio.AbstractEventLoop, value: Any) -> "asyncio.Future[Any]":
    future = loop.create_future()
    future.set_result(value)
    return future


def found_in(value: Any) -> list["asyncio.Future[Any]"]:
    futures, _ = find_in_call((value,), {})
    return list(futures)


class Pair(NamedTuple):
    left: Any
    right: Any = None


class Words(list[Any]):
    """A list with a name."""

    def __init__(self, *words: Any, name: str = "words") -> None:
        super().__init__(words)
        self.name = name


class Settings(dict[str, Any]):
    """A dict of a class of its own."""


class Point(tuple[Any, ...]):
    """A tuple that is made of its parts, not of a sequence of them."""

    __slots__ = ()

    def __new__(cls, x: Any, y: Any) -> "Point":
        return super().__new__(cls, (x, y))


@dataclasses.dataclass
class Record:
    left: Any
    right: Any = None


@dataclasses.dataclass(frozen=True)
class FrozenRecord:
    left: Any
    right: Any = None


@dataclasses.dataclass
class SlottedRecord:
    __slots__ = ("left",)
    left: Any


@dataclasses.dataclass
class CountedRecord:
    """Computes a field and notes how often it was made."""

    source: Any
    scale: dataclasses.InitVar[int] = 1
    log: list[int] = dataclasses.field(default_factory=list)
    computed: Any = dataclasses.field(init=False)
    kind = "of the class, no field"

    def __post_init__(self, scale: int) -> None:
        self.log.append(scale)
        self.computed = self.source


@dataclasses.dataclass
class DerivedRecord(Record):
    own: Any = None


def test_futures_are_found_in_order_and_once_when_they_are_nested(
    loop: asyncio.AbstractEventLoop,
) -> None:
    a, b, c, d, e, f = (loop.create_future() for _ in range(6))
    value = [a, ((b,), {"x": c, "y": [a, Record(d, Pair(e, b))]}), DerivedRecord(1, own=f), a]
    assert found_in(value) == [a, b, c, d, e, f]


def test_futures_already_found_stay_first_when_more_are_found(
    loop: asyncio.AbstractEventLoop,
) -> None:
    first, second = loop.create_future(), loop.create_future()
    futures, _ = find_in_call((second, [first, second]), {"third": first})
    assert list(futures) == [second, first]


def test_a_task_is_found_when_it_is_nested() -> None:
    async def main() -> None:
        task = asyncio.ensure_future(asyncio.sleep(0, "value"))
        assert found_in([task]) == [task]
        await task
        assert resolve([task]) == ["value"]

    asyncio.run(main())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda future: {future},
        lambda future: frozenset([future]),
        lambda future: {future: "a key"},
        lambda future: deque([future]),
        lambda future: UserList([future]),
        lambda future: iter([future]),
        lambda future: (item for item in [future]),
        lambda future: lambda: future,
        lambda future: type("Plain", (), {"future": future})(),
        lambda future: type("Plain", (), {"future": future}),
    ],
    ids="set frozenset key deque UserList iterator generator function object class".split(),
)
def test_other_containers_are_handed_on_when_they_hold_futures(
    loop: asyncio.AbstractEventLoop, wrap: Any
) -> None:
    value = wrap(ended(loop, "value"))
    assert found_in(value) == []
    assert resolve(value) is value


def test_an_iterator_is_not_consumed_when_it_is_passed() -> None:
    value = iter([1, 2, 3])
    assert found_in([value]) == []
    assert list(resolve([value])[0]) == [1, 2, 3]


def test_a_future_of_threads_is_a_value_when_passed() -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    assert found_in([future]) == []
    assert resolve([future])[0] is future


@pytest.mark.parametrize(
    "value",
    [
        [1, [2, (3,)]],
        (1, {"a": []}),
        {"a": {"b": None}},
        Record([1], {"a": 2}),
        Pair(1, [2]),
        OrderedDict(a=1),
        defaultdict(list, a=[1]),
        Words(1, 2),
        Point(1, 2),
        [],
        (),
        {},
        Record,
        "text",
        b"bytes",
        None,
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_very_object_is_kept_when_it_holds_no_future(value: Any) -> None:
    assert found_in(value) == []
    assert resolve(value) is value
    assert resolve([value])[0] is value


def test_parts_without_futures_are_shared_when_others_are_replaced(
    loop: asyncio.AbstractEventLoop,
) -> None:
    plain: list[int] = [1, 2]
    given: list[Any] = [plain, {"future": ended(loop, "value"), "plain": plain}]
    resolved = resolve(given)
    assert resolved == [plain, {"future": "value", "plain": plain}]
    assert resolved[0] is resolved[1]["plain"] is plain
    assert isinstance(given[1]["future"], asyncio.Future)


def test_a_value_is_not_looked_into_when_it_is_the_result_of_a_future(
    loop: asyncio.AbstractEventLoop,
) -> None:
    inner = ended(loop, "inner")
    result = [inner]
    assert resolve([ended(loop, result)])[0] is result
    assert result == [inner]


def test_an_object_is_replaced_by_the_same_one_when_a_future_holds_it(
    loop: asyncio.AbstractEventLoop,
) -> None:
    value = object()
    future = ended(loop, value)
    resolved = resolve((future, [future], Pair(future)))
    assert resolved[0] is resolved[1][0] is resolved[2].left is value


@pytest.mark.parametrize(
    "make",
    [
        lambda x: [x],
        lambda x: (x,),
        lambda x: {"a": x, "b": 1},
        lambda x: Pair(1, x),
        lambda x: Words("a", x),
        lambda x: Settings(a=x),
        lambda x: Point(x, 1),
        lambda x: OrderedDict(b=x, a=1),
        lambda x: defaultdict(list, a=x),
        lambda x: Counter(a=x),
        lambda x: Record(x),
        lambda x: FrozenRecord(1, x),
        lambda x: SlottedRecord(x),
        lambda x: DerivedRecord(1, own=x),
    ],
    ids="list tuple dict namedtuple list-subclass dict-subclass tuple-subclass OrderedDict "
    "defaultdict Counter dataclass frozen-dataclass slotted-dataclass derived-dataclass".split(),
)
def test_the_type_is_kept_when_futures_are_replaced(
    loop: asyncio.AbstractEventLoop, make: Any
) -> None:
    future = ended(loop, 7)
    given = make(future)
    resolved = resolve(given)
    assert type(resolved) is type(given)
    assert resolved == make(7)
    assert given == make(future)


def test_the_order_of_keys_is_kept_when_futures_are_replaced(
    loop: asyncio.AbstractEventLoop,
) -> None:
    resolved = resolve(OrderedDict(b=ended(loop, 1), a=2, c=ended(loop, 3)))
    assert list(resolved.items()) == [("b", 1), ("a", 2), ("c", 3)]


def test_the_factory_is_kept_when_futures_in_a_defaultdict_are_replaced(
    loop: asyncio.AbstractEventLoop,
) -> None:
    resolved = resolve(defaultdict(list, a=ended(loop, 1)))
    assert resolved["missing"] == []


def test_attributes_are_kept_when_futures_in_a_subclass_are_replaced(
    loop: asyncio.AbstractEventLoop,
) -> None:
    given = Words("a", ended(loop, "b"), name="mine")
    resolved = resolve(given)
    assert (resolved, resolved.name) == (["a", "b"], "mine")
    settings = Settings(a=ended(loop, 1))
    settings.origin = "a file"  # type: ignore[attr-defined]
    assert resolve(settings).origin == "a file"


def test_the_constructor_does_not_run_when_futures_in_a_dataclass_are_replaced(
    loop: asyncio.AbstractEventLoop,
) -> None:
    given = CountedRecord(ended(loop, "value"), scale=3)
    assert found_in(given) == [given.source]
    resolved = resolve(given)
    assert (resolved.source, resolved.computed, resolved.kind) == ("value", "value", given.kind)
    assert resolved.log == [3]
    assert given.source is given.computed is not resolved.source


def test_a_field_is_passed_over_when_it_was_never_set(loop: asyncio.AbstractEventLoop) -> None:
    given = Record(ended(loop, "value"))
    del given.__dict__["right"]
    type_of_unset = dataclasses.make_dataclass("Unset", [("never", Any)], init=False)
    unset = type_of_unset()
    assert found_in([given, unset]) == [given.left]
    resolved = resolve([given, unset])
    assert resolved[0].left == "value"
    assert resolved[1] is unset


def test_an_unfinished_future_is_an_error_when_resolved(loop: asyncio.AbstractEventLoop) -> None:
    with pytest.raises(asyncio.InvalidStateError):
        resolve([loop.create_future()])


def test_a_deep_nest_is_searched_when_it_is_within_reason(loop: asyncio.AbstractEventLoop) -> None:
    future = ended(loop, "value")
    value: Any = future
    for _ in range(60):
        value = [{"deeper": (value,)}]
    assert found_in(value) == [future]
    resolved = resolve(value)
    for _ in range(60):
        resolved = resolved[0]["deeper"][0]
    assert resolved == "value"
