"""A backend of RHAPSODY: functions, programs, and output that goes to files."""

import asyncio
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor

from radical.asyncflow import WorkflowEngine
from rhapsody.backends import ConcurrentExecutionBackend


def read(path):
    with open(path) as file:
        return file.read().strip()


async def main():
    folder = tempfile.mkdtemp()
    backend = await ConcurrentExecutionBackend(ThreadPoolExecutor(4))
    flow = await WorkflowEngine.create(backend=backend, uid="session", work_dir=folder)

    @flow.function_task
    async def double(value):
        return value * 2

    @flow.executable_task
    async def count(number):
        return f"seq {number}"

    @flow.executable_task(capture_stdio=True)
    async def speak(text):
        return f"/bin/sh -c 'echo {text}; echo aside >&2'"

    @flow.executable_task
    async def show_folder(task_description={"cwd": "/", "env": {"WHO": "me"}}):  # noqa: B006
        return "/bin/sh -c 'pwd; echo $WHO'"

    @flow.executable_task
    async def fail():
        return "/bin/sh -c 'echo went wrong >&2; exit 4'"

    print(await double(double(10)), (await count(3)).split())
    spoken = speak("hello")
    path = await spoken
    print(os.path.basename(path) == f"{spoken.task['uid']}.stdout", read(path))
    print(read(path.replace(".stdout", ".stderr")))
    print((await show_folder()).split())
    try:
        await fail()
    except RuntimeError as error:
        print("failed:", "went wrong" in str(error))

    @flow.block
    async def block(number):
        return [await double(each) for each in range(number)]

    print(await asyncio.gather(*(block(number) for number in range(3))))
    slow = double(await double(1))
    dropped = double(slow)
    dropped.cancel()
    print(await slow, dropped.cancelled())
    await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())


# Output:
# 40 ['1', '2', '3']
# True hello
# aside
# ['/', 'me']
# failed: True
# [[], [0], [0, 2]]
# 4 True
