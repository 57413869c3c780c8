"""Names that programs import from the modules themselves, and what they do there."""

import asyncio

from radical.asyncflow import NoopExecutionBackend, WorkflowEngine
from radical.asyncflow.backends import LocalExecutionBackend, StateMapper
from radical.asyncflow.utils import get_event_loop_or_raise, get_next_uid, reset_uid_counter
from radical.asyncflow.workflow_manager import (
    BLOCK,
    EXECUTABLE,
    FUNCTION,
    PROMPT,
    TASK,
    DependencyFailureError,
    InputFile,
    OutputFile,
)


def count():
    reset_uid_counter()
    numbers = [get_next_uid(), get_next_uid()]
    reset_uid_counter()
    return [*numbers, get_next_uid()]


def describe_error():
    try:
        get_event_loop_or_raise("Mine")
    except RuntimeError as error:
        return [text in str(error) for text in ("Mine must be created", "await Mine.create(")]


async def main():
    print("components:", TASK, BLOCK)
    print("tasks:", FUNCTION, EXECUTABLE, PROMPT)
    print("numbers:", *count())
    print("a loop:", get_event_loop_or_raise() is asyncio.get_running_loop())
    print("files:", InputFile("in.txt").filename, OutputFile("d/out.txt").filename)

    backend = await LocalExecutionBackend()
    flow = await WorkflowEngine.create(backend=backend)
    states = flow.task_states_map
    print("states:", isinstance(states, StateMapper), sorted(map(str, states.terminal_states)))
    print("running:", str(states.RUNNING), states.RUNNING in states.terminal_states)
    print("queue:", flow.queue.empty())
    print(
        "hooks:",
        backend.build_task(uid="task.000001", task_desc={}, task_specific_kwargs={}),
        backend.link_implicit_data_deps(src_task={}, dst_task={}),
        NoopExecutionBackend().task_state_cb({}, "DONE"),
        NoopExecutionBackend().link_explicit_data_deps({}, {}, "a.txt"),
        len(NoopExecutionBackend().tasks),
    )

    begun, go_on, limits = asyncio.Event(), asyncio.Event(), {"timeout": 60.0}
    loop = asyncio.get_running_loop()

    @flow.function_task(None, False, "default", False)
    async def slow(task_description=limits):
        loop.call_soon_threadsafe(begun.set)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(go_on.wait(), loop))
        return 1

    @flow.function_task
    async def dependent(value):
        return value

    @flow.function_task
    async def broken():
        raise OSError("no luck")

    @flow.executable_task
    async def no_command():
        return ""

    @flow.prompt_task
    async def no_prompt():
        return None

    print("descriptions:", slow.__task_description__, dependent.__task_description__)
    first = slow()
    second = dependent(first)
    await begun.wait()
    print("on the backend:", list(backend.tasks) == [first.task["uid"]])
    print("cancelled:", second.original_cancel(), second.cancelled(), first.cancelled())
    go_on.set()
    print("result:", await first)

    for call, text in (
        (lambda: dependent(broken()), "Cannot execute 'dependent' due to dependency failure"),
        (no_command, "'no_command' must return a non-empty command string"),
        (no_prompt, "'no_prompt' must return a non-empty string prompt"),
    ):
        try:
            await call()
        except (DependencyFailureError, ValueError) as error:
            print(type(error).__mro__[-3].__name__, text in str(error))
    await flow.shutdown()


if __name__ == "__main__":
    print("errors:", describe_error())
    asyncio.run(main())


# Output:
# errors: [True, True]
# components: task block
# tasks: function executable prompt
# numbers: 000001 000002 000001
# a loop: True
# files: in.txt out.txt
# states: True ['CANCELED', 'DONE', 'FAILED']
# running: RUNNING False
# queue: True
# hooks: None None None None 0
# descriptions: {'timeout': 60.0} {}
# on the backend: True
# cancelled: True True False
# result: 1
# Exception True
# Exception True
# Exception True
