"""Maps of items of all kinds, many at a time: each call has its one end."""

import contextvars
import gc
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from dftracer.utils import Runtime, TaskHandle, current_task

GUARD_S = 30
"""How long a test waits for what must come."""

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def own() -> TaskHandle[Any]:
    handle = current_task()
    assert handle is not None
    return handle


def echo(value: Any) -> Any:
    return value


class Script:
    """Items of all kinds, what their calls must come to, and how often each has begun."""

    def __init__(self, runtime: Runtime, seed: int) -> None:
        self.runtime = runtime
        self.begun: Counter[int] = Counter()
        dice = random.Random(seed)
        kinds = dice.choices(list(ACTIONS), weights=[30, *[2] * (len(ACTIONS) - 1)], k=600)
        if dice.random() < 0.5:
            kinds[dice.randrange(600)] = "fail"
        self.items = list(enumerate(kinds))
        self.taken = dice.choice([600, 600, dice.randrange(600)])
        self.buffersize = dice.choice([None, None, 300])

    def call(self, item: tuple[int, str]) -> Any:
        number, kind = item
        self.begun[number] += 1
        assert variable.get() == "unset"
        variable.set("mine")
        return ACTIONS[kind](self.runtime, number)

    def check(self) -> None:
        results = self.runtime.map(self.call, self.items, buffersize=self.buffersize)
        failure = next((n for n, kind in self.items if kind == "fail"), 600)
        read = min(self.taken, failure)
        assert [next(results) for _ in range(read)] == list(range(read))
        if read == failure < 600:
            with pytest.raises(LookupError, match=f"item {failure}$"):
                next(results)
        results.close()  # type: ignore[attr-defined]
        assert all(self.begun[number] == 1 for number in range(read))


def fail(runtime: Runtime, number: int) -> None:
    raise LookupError(f"item {number}")


def step_aside(runtime: Runtime, number: int) -> int:
    time.sleep(random.random() / 2_000)
    return number


def nest(runtime: Runtime, number: int) -> int:
    return runtime.submit(lambda: runtime.submit(echo, number).get()).get()


def nest_map(runtime: Runtime, number: int) -> int:
    return list(runtime.map(echo, range(number + 1)))[-1]


def nest_coroutine(runtime: Runtime, number: int) -> int:
    return runtime.submit(echo_later, number).get()


def look(runtime: Runtime, number: int) -> int:
    assert own().state == "running"
    tasks = [own().task_id, runtime.submit(lambda: own().task_id).get(), own().task_id]
    assert tasks[0] == tasks[2] != tasks[1]
    return number


async def echo_later(number: int) -> int:
    return number


ACTIONS: dict[str, Callable[[Runtime, int], Any]] = {
    "echo": lambda _, number: number,
    "sleep": step_aside,
    "nest": nest,
    "nest_map": nest_map,
    "nest_coroutine": nest_coroutine,
    "await": lambda _, number: echo_later(number),
    "look": look,
    "fail": fail,
}


@pytest.mark.parametrize("seed", range(6))
def test_each_call_has_its_one_end_when_items_are_of_all_kinds(seed: int) -> None:
    done = threading.Event()

    def meddle() -> None:
        while not done.wait(0.001):
            progress = runtime.get_progress()
            ids = [task["task_id"] for task in progress["tasks"]]
            assert len(set(ids)) == len(ids)
            runtime.is_responsive()
            gc.collect()

    with Runtime(threads=2, python_threads=random.Random(seed).choice([1, 2, 5])) as runtime:
        scripts = [Script(runtime, seed * 10 + part) for part in range(3)]
        errors: list[BaseException] = []

        def check(script: Script) -> None:
            try:
                script.check()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=check, args=(script,)) for script in scripts]
        meddler = runtime.submit_io(meddle)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(GUARD_S)
        done.set()
        meddler.get(GUARD_S)
        runtime.wait_all()
        assert not errors
        progress = runtime.get_progress()
        for script in scripts:
            assert set(script.begun.values()) <= {1}
        assert progress["running"] == progress["queued"] == 0
        ended = progress["completed"] + progress["failed"] + progress["cancelled"]
        assert progress["total"] == ended >= 3 * 300
        failed = sum(script.begun[n] for script in scripts for n, k in script.items if k == "fail")
        assert progress["failed"] == failed == len(runtime.get_failed())
