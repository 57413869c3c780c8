"""Bodies of programs that await what they depend on."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from radical.asyncflow import LocalExecutionBackend, WorkflowEngine


async def main():
    flow = await WorkflowEngine.create(await LocalExecutionBackend(ThreadPoolExecutor()))

    @flow.function_task
    async def number(value):
        return value

    @flow.executable_task
    async def show(value):
        return f"echo {await value}"

    @flow.executable_task
    async def show_all(*values):
        return f"echo {sum(await asyncio.gather(*values))}"

    @flow.executable_task
    async def show_soon(value, seconds):
        return f"echo {await asyncio.wait_for(value, seconds)} in {seconds}"

    print((await show(number(1))).strip())
    print((await show_all(number(1), number(2), number(3))).strip())
    print((await show_soon(number(4), 20)).strip())
    print((await show(show(number(5)))).strip())
    await flow.shutdown()


asyncio.run(main())

# Output:
# 1
# 6
# 4 in 20
# 5
