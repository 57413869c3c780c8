"""Task descriptions: a default of the function, overridden by calls, as the backend gets it."""

import asyncio
import logging

from radical.asyncflow import WorkflowEngine


async def main():
    logging.basicConfig(level=logging.ERROR)
    flow = await WorkflowEngine.create()

    @flow.function_task
    async def simulate(steps, task_description={"ranks": 4, "gpus": 1}):  # noqa: B006
        return steps * 2

    @flow.executable_task
    async def words(text, task_description={"shell": False}):  # noqa: B006
        return f"/bin/echo {text}"

    @flow.executable_task(capture_stdio=False)
    async def plain(text):
        return f"/bin/echo {text}"

    default = simulate(1)
    changed = simulate(2, task_description={"ranks": 8, "queue": "debug"})
    print(await asyncio.gather(default, changed))
    for future in (default, changed):
        print(sorted(future.task["task_backend_specific_kwargs"].items()))

    print(repr(await words("$HOME")))
    print(repr(await words("a  |  b")))
    print(repr(await plain("$((1 + 1))", task_description={"shell": True})))

    future = simulate(changed)
    await future
    task = future.task
    print(task["name"], task["is_service"], task["target_backend"])
    print([dependency["name"] for dependency in task["metadata"]["dependencies"]])
    print(task["uid"] == f"task.{future.id}", task["uid"] in flow.components)
    print(flow.components[task["uid"]]["type"], flow.components[task["uid"]]["future"] is future)
    print(
        [dependency["uid"] == changed.task["uid"] for dependency in flow.dependencies[task["uid"]]]
    )
    print(task["uid"] in flow.resolved)
    await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())


# Output:
# [2, 4]
# [('gpus', 1), ('ranks', 4)]
# [('gpus', 1), ('queue', 'debug'), ('ranks', 8)]
# '$HOME\n'
# 'a | b\n'
# '2\n'
# simulate False None
# ['simulate']
# True True
# task True
# [True]
# True
