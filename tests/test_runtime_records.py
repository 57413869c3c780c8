"""The small records of tasks: what they leave out must not be missed."""

from __future__ import annotations

import contextvars
import gc
import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from handle_support import ended

from dftracer.utils import Runtime, TaskHandle

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime(threads=2, python_threads=2) as made:
        yield made


class Holder:
    """Something that can be watched, and can refer to anything."""

    def __init__(self) -> None:
        self.held: Any = None


def in_list(holder: Holder) -> Any:
    return [holder]


def in_empty_dict_filled_later(holder: Holder) -> Any:
    return {}


def in_tuple(holder: Holder) -> Any:
    return (1, (holder,))


def in_tuple_of_empty_dict(holder: Holder) -> Any:
    return (1, {})


def as_itself(holder: Holder) -> Any:
    return holder


def in_error(holder: Holder) -> Any:
    raise ValueError(holder)


def fill(result: Any, handle: TaskHandle[Any], holder: Holder) -> None:
    """Make the result refer to the handle through `holder`, also where it did not yet."""
    holder.held = handle
    empty = result[1] if isinstance(result, tuple) and isinstance(result[1], dict) else result
    if isinstance(empty, dict):
        empty["holder"] = holder


@pytest.mark.parametrize(
    "body",
    [in_list, in_empty_dict_filled_later, in_tuple, in_tuple_of_empty_dict, as_itself, in_error],
)
@pytest.mark.parametrize("collected_meanwhile", [False, True])
def test_handle_is_collected_when_its_outcome_leads_back_to_it(
    runtime: Runtime, body: Callable[[Holder], Any], collected_meanwhile: bool
) -> None:
    holder = Holder()
    gone = weakref.ref(holder)
    handle = ended(runtime.submit(body, holder))
    if collected_meanwhile:
        gc.collect()  # which takes containers of nothing but numbers off its list
    if body is not in_error:
        fill(handle.get(), handle, holder)
    holder.held = handle
    runtime.clear_failed()
    del handle, holder
    gc.collect()
    assert gone() is None


def test_body_starts_from_a_context_of_its_own_when_the_submitters_is_empty() -> None:
    def change(text: str) -> str:
        before = variable.get()
        variable.set(text)
        return before

    def submit_all() -> list[str]:
        handles = [runtime.submit(change, str(i)) for i in range(50)]
        handles += [runtime.submit(change, text=str(i)) for i in range(50)]
        return [handle.get() for handle in handles]

    with Runtime(threads=1, python_threads=1) as runtime:
        assert contextvars.Context().run(submit_all) == ["unset"] * 100


def test_body_sees_each_context_when_empty_and_filled_ones_alternate(runtime: Runtime) -> None:
    def submit(text: str | None) -> TaskHandle[str]:
        if text is not None:
            variable.set(text)
        return runtime.submit(variable.get)

    texts = [random.Random(7).choice([None, str(i)]) for i in range(300)]
    handles = [contextvars.Context().run(submit, text) for text in texts]
    assert [handle.get() for handle in handles] == [text or "unset" for text in texts]


def test_arguments_arrive_unchanged_however_many_there_are(runtime: Runtime) -> None:
    def echo(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    class Methods:
        def bound(self, *args: Any, **kwargs: Any) -> Any:
            return args, kwargs

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return args, kwargs

    for function in (echo, Methods().bound, Methods()):
        for count in range(5):
            for kwargs in ({}, {"key": 1}):
                args = tuple(range(count))
                assert runtime.submit(function, *args, **kwargs).get() == (args, kwargs)


def test_argument_is_released_before_the_outcome_is_told(runtime: Runtime) -> None:
    def look(held: Any, *others: int) -> None:
        del held

    for others in ((), (2,), (2, 3)):
        holder = Holder()
        gone = weakref.ref(holder)
        handle = runtime.submit(look, holder, *others)
        del holder
        handle.wait()
        assert gone() is None


def make_function(qualname: str, module: str | None) -> Callable[[], None]:
    def function() -> None:
        pass

    function.__qualname__ = qualname
    function.__module__ = module  # type: ignore[assignment]
    return function


def test_each_task_has_the_name_of_its_function_when_functions_share_code(
    runtime: Runtime,
) -> None:
    modules = ["one", "two", "__main__", None]
    functions = [make_function(f"name{i % 5}", modules[i % 4]) for i in range(40)]
    random.Random(3).shuffle(functions)
    handles = [runtime.submit(function) for function in functions]
    runtime.wait_all()
    for function, handle in zip(functions, handles, strict=True):
        in_main = function.__module__ in (None, "__main__")
        prefix = "" if in_main else f"{function.__module__}."
        assert handle.name == prefix + function.__qualname__


def test_names_follow_when_a_function_is_renamed_between_submissions(runtime: Runtime) -> None:
    function = make_function("before", "module")
    first = runtime.submit(function)
    function.__qualname__ = "after"
    second = runtime.submit(function)
    assert [first.name, second.name] == ["module.before", "module.after"]


@pytest.mark.filterwarnings("ignore:Assigning a code object:DeprecationWarning")
def test_function_is_told_from_its_coroutine_namesake_when_code_is_swapped(
    runtime: Runtime,
) -> None:
    def function(x: int) -> int:
        return x

    async def coroutine(x: int) -> int:
        return -x

    assert runtime.submit(function, 1).get() == 1
    function.__code__ = coroutine.__code__
    assert runtime.submit(function, 1).get() == -1


def test_function_is_let_go_when_its_task_has_ended(runtime: Runtime) -> None:
    function = make_function("kept", "module")
    gone = weakref.ref(function)
    handle = runtime.submit(function)
    handle.wait()
    del function
    assert gone() is None
    assert handle.name == "module.kept"
