"""Each way that is shorter than the general one, against a model of what the general one does.

They are the plain calls of the engine, the callbacks of their futures, `Runtime.map`, the asyncio
task that coroutine bodies share, and the mailbox that outcomes go through. What happens is drawn
from seeds.
"""

import asyncio
import concurrent.futures
import contextvars
import functools
import gc
import random
import select
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from engine_support import assert_nothing_kept
from mailbox_support import Call

from dftracer.asyncflow import (
    Component,
    LocalExecutionBackend,
    NoopExecutionBackend,
    RuntimeExecutionBackend,
    WorkflowEngine,
)
from dftracer.utils import Runtime
from dftracer.utils.primitives import Graph, Mailbox

GUARD_S = 25


class BodyError(Exception):
    """What a body of these tests raises."""


def may_fail(number: int) -> int:
    if number % 7 == 3:
        raise BodyError(number)
    return number * 2


async def may_fail_async(number: int) -> int:
    return may_fail(number)


async def may_fail_later(number: int) -> int:
    await asyncio.sleep(0)
    return may_fail(number)


KINDS: list[Callable[[int], Any]] = [may_fail, may_fail_async, may_fail_later]


def end_of(number: int) -> tuple[str, int]:
    """What becomes of a body that is given ``number``."""
    return ("failed", number) if number % 7 == 3 else ("done", number * 2)


# --- plain calls of the engine -----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
async def test_each_plain_call_ends_once_when_cancels_race_with_outcomes(seed: int) -> None:
    chance, ends = random.Random(seed), dict[int, list[str]]()

    def note(number: int, future: asyncio.Future[int]) -> None:
        if future.cancelled():
            ends.setdefault(number, []).append("cancelled")
        elif (error := future.exception()) is not None:
            assert isinstance(error, BodyError)
            assert ("failed", error.args[0]) == end_of(number)
            ends.setdefault(number, []).append("failed")
        else:
            assert ("done", future.result()) == end_of(number)
            ends.setdefault(number, []).append("done")

    async with await WorkflowEngine.create() as flow:
        tasks = [flow.function_task(kind) for kind in KINDS]
        futures, to_cancel = [], set()
        for number in range(600):
            future = chance.choice(tasks)(number)
            future.add_done_callback(lambda ended, number=number: note(number, ended))
            futures.append(future)
            if chance.random() < 0.2:
                victim = chance.randrange(len(futures))
                if futures[victim].cancel():
                    to_cancel.add(victim)
            if chance.random() < 0.05:
                await asyncio.sleep(0)  # a turn, in which outcomes may come
        await asyncio.gather(*futures, return_exceptions=True)
        assert {n for n, future in enumerate(futures) if future.cancelled()} == to_cancel
        await asyncio.sleep(0)  # the callbacks of the last
        assert ends == {
            n: ["cancelled" if n in to_cancel else end_of(n)[0]] for n in range(len(futures))
        }
        assert_nothing_kept(flow)


async def test_each_plain_call_sees_its_own_context_when_many_are_made_in_turn() -> None:
    where = contextvars.ContextVar("where", default=-1)

    async with await WorkflowEngine.create() as flow:

        @flow.function_task
        def look() -> int:
            return where.get()

        @flow.function_task
        async def look_twice() -> int:
            seen = where.get()
            where.set(-2)  # in its own copy
            await asyncio.sleep(0)
            return seen if where.get() == -2 else -3

        futures = []
        for number in range(500):
            where.set(number)
            futures += [look(), look_twice()]
        seen = await asyncio.gather(*futures)
    assert seen == [number for number in range(500) for _ in range(2)]


def test_each_call_has_variables_of_its_own_when_made_where_none_are_set() -> None:
    where = contextvars.ContextVar[int]("where")

    async def main() -> list[Any]:
        async with await WorkflowEngine.create() as flow:

            @flow.function_task
            async def mark(number: int) -> int | None:
                seen = where.get(None)
                where.set(number)
                await asyncio.sleep(0)
                return seen if where.get() == number else -1

            @flow.function_task
            def mark_plainly(number: int) -> int | None:
                seen = where.get(None)
                where.set(number)
                return seen

            @flow.block
            async def nested(depth: int) -> list[Any]:
                seen = where.get(None)
                where.set(depth)
                below = await nested(depth - 1) if depth else []
                return [seen, *below]

            assert not contextvars.copy_context()
            futures = [mark(1), mark_plainly(2), nested(3), mark(4), mark_plainly(5), nested(0)]
            seen = await asyncio.gather(*futures)
            assert not contextvars.copy_context()
            return seen

    assert contextvars.Context().run(asyncio.run, main()) == [
        None,
        None,
        [None, 3, 2, 1],
        None,
        None,
        [None],
    ]


@pytest.mark.parametrize("kind", [RuntimeExecutionBackend, LocalExecutionBackend])
async def test_a_call_made_where_no_variable_is_set_sees_none_when_launched_with_others(
    kind: type[Any],
) -> None:
    where = contextvars.ContextVar[int]("where")

    async with await WorkflowEngine.create(await kind()) as flow:

        @flow.function_task
        def look_and_set() -> int | None:
            seen = where.get(None)
            where.set(2)
            return seen

        where.set(1)
        first = look_and_set()
        others = [contextvars.Context().run(look_and_set) for _ in range(20)]
        assert await asyncio.gather(first, *others) == [1, *[None] * 20]


@pytest.mark.parametrize("seed", range(20))
async def test_a_call_depends_on_its_futures_when_given_in_any_number_and_mixture(
    seed: int,
) -> None:
    chance = random.Random(seed)
    loop = asyncio.get_running_loop()

    def total(*values: Any) -> int:
        return sum(sum(value) if isinstance(value, list) else value for value in values)

    async with await WorkflowEngine.create() as flow:

        def more(*values: Any) -> int:
            return total(*values)

        calls, numbers = [flow.function_task(total), flow.function_task(more)], dict[Any, int]()
        edges = 0
        ended = [calls[0](number) for number in range(3)]
        await asyncio.gather(*ended)
        numbers.update((future, future.result()) for future in ended)
        later = [loop.create_future() for _ in range(2)]
        numbers.update((future, number) for number, future in enumerate(later))
        loop.call_soon(lambda: [future.set_result(numbers[future]) for future in later])
        for _ in range(60):
            # Often none but tasks; or whatever there is, and more than are compared one by one.
            own = [future for future in numbers if isinstance(future, Component)]
            pool = own[3:] if chance.random() < 0.5 else list(numbers)
            many = chance.randrange(24) if chance.random() < 0.2 else chance.randrange(4)
            args: list[Any] = chance.choices(pool, k=many) if pool else []
            expected = list(dict.fromkeys(f for f in args if isinstance(f, Component)))
            value = sum(numbers[future] for future in args)
            if chance.random() < 0.3:
                args.insert(chance.randrange(len(args) + 1), 1)
                value += 1
            if own and chance.random() < 0.1:
                nested = chance.choice(own)
                args.append([nested, 2])
                expected = list(dict.fromkeys([*expected, nested]))
                value += numbers[nested] + 2
            future = chance.choice(calls)(*args)
            numbers[future] = value
            edges += len(expected)
            named = future.task["metadata"]["dependencies"]
            assert [each["uid"] for each in named] == [each.uid for each in expected]
        assert await asyncio.gather(*numbers) == list(numbers.values())
        assert sum(sum(tally.sources.values()) for tally in flow._scheduler.counts) == edges
        assert_nothing_kept(flow)


@pytest.mark.parametrize("seed", range(5))
async def test_the_collector_finds_components_when_they_have_ended_in_any_way(seed: int) -> None:
    chance, references = random.Random(seed), []

    def keep(box: list[Any], number: int) -> list[Any]:
        if number % 7 == 3:
            raise BodyError(box)
        return box

    async with await WorkflowEngine.create() as flow:
        call = flow.function_task(keep)
        futures = []
        for number in range(50):
            box: list[Any] = [number]
            future = call(box, number)
            box.append(future)  # a circle, once it is the result or in the error
            references.append(weakref.ref(future))
            if chance.random() < 0.2:
                future.cancel()
            elif chance.random() < 0.2:
                future.set_result(box)
            futures.append(future)
            if chance.random() < 0.1:
                await asyncio.sleep(0)
        await asyncio.gather(*futures, return_exceptions=True)
        assert all(map(gc.is_tracked, futures))
        futures.clear()
        del box, future
        await flow.function_task(keep)([], 0)  # a worker lets go of its last when it has the next
        gc.collect()
        assert [reference() for reference in references if reference() is not None] == []


# --- callbacks of futures that end together ------------------------------------------------------


def callbacks_of(seed: int, *, is_debugged: bool) -> list[Any]:
    """Run calls whose futures have callbacks of many kinds; return what these have noted."""
    where = contextvars.ContextVar("where", default=-1)
    notes: list[Any] = []

    async def main() -> None:
        chance, loop = random.Random(seed), asyncio.get_running_loop()
        loop.set_debug(is_debugged)
        loop.slow_callback_duration = GUARD_S
        loop.set_exception_handler(
            lambda _, told: notes.append(("told", repr(told["exception"]), told["message"][:21]))
        )
        # It ends tasks in the order of their calls.
        async with await WorkflowEngine.create(NoopExecutionBackend()) as flow:
            call = flow.function_task(may_fail)

            def note(label: int, future: Any) -> None:
                notes.append((label, future.id, where.get(), future.result()))
                if label % 5 == 0:
                    raise BodyError(label)
                if label % 5 == 1:
                    late = f"late {label}"
                    future.add_done_callback(lambda same: notes.append((late, same is future)))

            async def watch(label: int, future: asyncio.Future[int]) -> None:
                notes.append((label, "awaited", await future, where.get()))

            watching = []
            for turn in range(3):
                futures = [call(number) for number in range(20)]
                for future in futures:
                    for _ in range(chance.randrange(4)):
                        where.set(label := chance.randrange(1_000))
                        callback = functools.partial(note, label)
                        future.add_done_callback(callback)
                        if chance.random() < 0.2:
                            future.remove_done_callback(callback)
                        elif chance.random() < 0.2:
                            watching.append(asyncio.ensure_future(watch(label, future)))
                notes.append((turn, len(await asyncio.gather(*futures))))
            await asyncio.gather(*watching)

    asyncio.run(main())
    return notes


@pytest.mark.parametrize("seed", range(10))
def test_callbacks_are_called_as_one_by_one_when_futures_end_together(seed: int) -> None:
    # In debug mode each goes through asyncio's own queue.
    assert callbacks_of(seed, is_debugged=False) == callbacks_of(seed, is_debugged=True)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_the_other_callbacks_are_called_when_one_ends_the_run_of_the_loop(
    kind: type[BaseException],
) -> None:
    loop, called = asyncio.new_event_loop(), list[int]()

    def note(number: int, _future: object) -> None:
        called.append(number)
        if number == 2:
            raise kind

    async def main() -> None:
        flow = await WorkflowEngine.create(NoopExecutionBackend())
        futures = [flow.function_task(may_fail)(number) for number in range(5)]
        for number, future in enumerate(futures):
            future.add_done_callback(functools.partial(note, number))
        await asyncio.gather(*futures)
        await flow.shutdown()

    try:
        work = loop.create_task(main())
        with pytest.raises(kind):
            loop.run_until_complete(work)
        assert called == [0, 1, 2]
        loop.run_until_complete(asyncio.wait_for(work, GUARD_S))
        assert called == [0, 1, 2, 3, 4]
    finally:
        loop.close()


async def test_the_other_callbacks_are_called_when_one_runs_the_loop_anew() -> None:
    loop: Any = asyncio.get_running_loop()
    called = list[int]()

    def note(number: int, _future: object) -> None:
        called.append(number)
        if number == 2:
            deadline = loop.time() + GUARD_S
            while len(called) < 5 and loop.time() < deadline:
                loop._run_once()  # as nest_asyncio does; its package changes asyncio for good
            called.append(-1)

    async with await WorkflowEngine.create(NoopExecutionBackend()) as flow:
        futures = [flow.function_task(may_fail)(number) for number in range(5)]
        for number, future in enumerate(futures):
            # Of no task, which could not be resumed while this one's loop is run within it.
            future.add_done_callback(functools.partial(note, number))
        ended = loop.create_future()
        futures[4].add_done_callback(lambda _: loop.call_soon(ended.set_result, None))
        await ended
    assert called == [0, 1, 2, 3, 4, -1]


def run_alone(source: str) -> str:
    """Run a program in an interpreter of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        cwd="/",  # not where a checkout could be imported
        capture_output=True,
        text=True,
        timeout=GUARD_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_calls_are_futures_when_those_of_asyncio_are_in_python() -> None:
    # As nest_asyncio makes them, which notebooks often begin with.
    assert run_alone("""
            import asyncio
            import sys

            asyncio.Future = asyncio.futures.Future = asyncio.futures._PyFuture
            asyncio.Task = asyncio.tasks.Task = asyncio.tasks._PyTask
            if sys.version_info >= (3, 14):
                # Each kind of task knows there only the current one of its own kind.
                asyncio.current_task = asyncio.tasks.current_task = asyncio.tasks._py_current_task

            from dftracer.asyncflow import WorkflowEngine

            async def main():
                async with await WorkflowEngine.create() as flow:
                    @flow.function_task
                    async def add(a, b):
                        return a + b

                    futures = [add(add(number, 1), 2) for number in range(10)]
                    assert futures[0].get_loop() is asyncio.get_running_loop()
                    assert isinstance(futures[0], asyncio.futures._PyFuture)
                    print(await asyncio.gather(*futures))

            asyncio.run(main())
        """) == str([number + 3 for number in range(10)])


def test_a_call_is_refused_when_made_in_the_child_of_a_fork() -> None:
    told = run_alone("""
        import asyncio, os, warnings

        from dftracer.asyncflow import WorkflowEngine

        warnings.simplefilter("ignore")  # CPython 3.12 warns of any fork with threads

        async def main():
            async with await WorkflowEngine.create() as flow:
                double = flow.function_task(lambda x: 2 * x)
                before = double(1)
                child = os.fork()
                if child == 0:
                    try:
                        double(2)
                        print("accepted", flush=True)
                    except RuntimeError as error:
                        print(error, flush=True)
                    os._exit(0)
                os.waitpid(child, 0)
                print(await before, await double(3))

        asyncio.run(main())
    """)
    refusal, results = told.splitlines()
    assert "outside the event loop of its engine" in refusal
    assert results == "2 6"


def test_calls_are_taken_when_the_loop_is_run_by_another_thread_than_before() -> None:
    loop = asyncio.new_event_loop()
    flow = loop.run_until_complete(WorkflowEngine.create())
    call = flow.function_task(may_fail)

    @flow.executable_task
    async def program() -> str:
        return "/bin/echo there"

    async def main() -> tuple[int, str]:
        results = await call(1), (await program()).strip()
        await flow.shutdown()
        return results

    with pytest.raises(RuntimeError, match="outside the event loop"):
        call(1)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        results = thread.submit(loop.run_until_complete, main()).result(GUARD_S)
        thread.submit(loop.close).result(GUARD_S)
    assert results == (2, "there")


def test_tasks_end_when_the_loop_is_run_by_another_thread_than_they_were_called_in() -> None:
    loop = asyncio.new_event_loop()
    flow = loop.run_until_complete(WorkflowEngine.create())

    @flow.executable_task
    async def program(text: str) -> str:
        return f"/bin/echo {text}"

    async def begin() -> list[Any]:
        return [program("one"), program("two"), flow.function_task(may_fail)(1)]

    async def end(futures: list[Any]) -> list[Any]:
        futures[1].set_result("by hand")
        results = await asyncio.wait_for(asyncio.gather(*futures), GUARD_S)
        await flow.shutdown()
        return results

    futures = loop.run_until_complete(begin())
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        results = thread.submit(loop.run_until_complete, end(futures)).result(2 * GUARD_S)
        thread.submit(loop.close).result(GUARD_S)
    assert [str(result).strip() for result in results] == ["one", "by hand", "2"]


async def test_a_component_belongs_to_the_loop_of_its_engine_when_asked() -> None:
    loop = asyncio.get_running_loop()
    async with await WorkflowEngine.create() as flow:
        future = flow.function_task(may_fail)(1)
        assert future.get_loop() is loop
        assert future._loop is loop
        assert await asyncio.wait_for(asyncio.shield(future), GUARD_S) == 2


# --- the graph -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_verdicts_are_as_of_one_by_one_when_nodes_end_together(seed: int) -> None:
    chance, together, one_by_one = random.Random(seed), Graph(), Graph()
    unfinished: list[int] = []
    ready: list[int] = []
    for number in range(200):
        parents = chance.sample(unfinished, min(len(unfinished), chance.randrange(4)))
        is_ready = together.add(number, parents)
        assert one_by_one.add(number, parents) is is_ready
        unfinished.append(number)
        if is_ready:
            ready.append(number)
    while ready:
        ending = chance.sample(ready, chance.randint(1, len(ready)))
        ready = [number for number in ready if number not in ending]
        if chance.random() < 0.1:
            assert together.finish(ending[0], done=False) == one_by_one.finish(
                ending.pop(0), done=False
            )
        now_ready, ended = together.finish_all(ending)
        verdicts = [v for number in ending for v in one_by_one.finish(number, done=True)]
        assert now_ready == [number for number, verdict in verdicts if verdict == "ready"]
        assert ended == [v for v in verdicts if v[1] != "ready"]
        ready += now_ready
    assert len(together) == len(one_by_one) == 0


def test_those_before_have_ended_when_one_of_several_nodes_is_refused() -> None:
    graph = Graph()
    graph.add(1, [])
    graph.add(2, [])
    graph.add(3, [2])
    with pytest.raises(ValueError, match="3"):
        graph.finish_all([1, 3, 2])
    assert [number in graph for number in (1, 2, 3)] == [False, True, True]


# --- map ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_map_yields_what_the_built_in_one_yields_when_calls_may_fail(seed: int) -> None:
    chance = random.Random(seed)
    function = chance.choice(KINDS)
    items = [chance.randrange(200) for _ in range(chance.randrange(300))]
    if chance.random() < 0.5:
        items = [item for item in items if end_of(item)[0] == "done"]
    buffersize = chance.choice([None, 1, 2, 7, 64, 1_000])
    expected: list[Any] = []
    for item in items:
        expected.append(end_of(item))
        if expected[-1][0] == "failed":
            break

    with Runtime(python_threads=chance.choice([1, 2, 4])) as runtime:
        told: list[Any] = []
        results = runtime.map(function, items, buffersize=buffersize)
        try:
            told += (("done", value) for value in results)
        except BodyError as error:
            told.append(("failed", error.args[0]))
        assert told == expected
        assert list(results) == []


def test_each_map_has_its_own_results_when_many_threads_map_and_leave_early() -> None:
    def use(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(15):
            size, taken = chance.randrange(1, 200), chance.randrange(200)
            results = runtime.map(abs, range(-size, 0), buffersize=chance.choice([None, 1, 3, 50]))
            values = [value for value, _ in zip(results, range(taken), strict=False)]
            assert values == [*range(size, 0, -1)][:taken]

    with (
        Runtime(python_threads=2) as runtime,
        concurrent.futures.ThreadPoolExecutor(4) as pool,
    ):
        for future in [pool.submit(use, seed) for seed in range(4)]:
            future.result(GUARD_S)
        runtime.wait_all()
        assert runtime.submit(abs, -1).get(GUARD_S) == 1


# --- the shared task of coroutine bodies -------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_neighbours_end_as_they_would_alone_when_bodies_are_of_every_kind(seed: int) -> None:
    where = contextvars.ContextVar("where", default=-1)
    chance = random.Random(seed)

    async def body(number: int, suspensions: int, end: str) -> int:
        if where.get() != -1:
            return -1  # another body's context
        where.set(number)
        task = asyncio.current_task()
        for _ in range(suspensions):
            await asyncio.sleep(0)
        if asyncio.current_task() is not task or where.get() != number:
            return -2  # another body's task or context
        if end == "raise":
            raise BodyError(number)
        if end == "cancel" and task is not None:
            task.cancel()
            await asyncio.sleep(0)
        return number

    with Runtime(python_threads=chance.choice([1, 2])) as runtime:
        plans = [
            (chance.choice([0, 0, 0, 1, 5]), chance.choice(["return"] * 8 + ["raise", "cancel"]))
            for _ in range(400)
        ]
        handles = [runtime.submit(body, number, *plan) for number, plan in enumerate(plans)]
        for number, (handle, (_, end)) in enumerate(zip(handles, plans, strict=True)):
            if end == "return":
                assert handle.get(GUARD_S) == number
            elif end == "raise":
                with pytest.raises(BodyError) as raised:
                    handle.get(GUARD_S)
                assert raised.value.args == (number,)
            else:
                with pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
                    handle.get(GUARD_S)


# --- the mailbox -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_each_token_is_told_once_when_many_submit_and_cancel_into_one_mailbox(seed: int) -> None:
    mailbox, submitters, each = Mailbox(), 4, 300
    together = threading.Barrier(submitters)
    refused: list[int] = []

    def submit(first: int) -> None:
        chance, numbers = random.Random(seed + first), range(first * each, (first + 1) * each)
        together.wait(GUARD_S)
        for start in range(numbers.start, numbers.stop, 10):
            calls = [Call(chance.choice(KINDS), number) for number in range(start, start + 10)]
            handles = runtime.submit_to(mailbox, calls)
            assert handles is not None
            for call, handle in zip(calls, handles, strict=True):
                if chance.random() < 0.3 and not handle.cancel():
                    refused.append(call.args[0])

    with (
        Runtime(python_threads=2) as runtime,
        concurrent.futures.ThreadPoolExecutor(submitters) as pool,
    ):
        futures = [pool.submit(submit, first) for first in range(submitters)]
        told: dict[int, tuple[str, Any]] = {}
        while len(told) < submitters * each:
            assert select.select([mailbox.fileno()], [], [], GUARD_S)[0], "an outcome is lost"
            for call, state, value in mailbox.drain(17):
                (number,) = call.args
                assert number not in told, "an outcome came twice"
                told[number] = (state, value)
        for future in futures:
            future.result(GUARD_S)
        runtime.wait_all()
    assert mailbox.drain(1) == []
    for number, (state, value) in told.items():
        if state != "cancelled":
            outcome = value.args[0] if isinstance(value, BodyError) else value
            assert (state, outcome) == end_of(number)
    assert all(told[number][0] != "cancelled" for number in refused)
