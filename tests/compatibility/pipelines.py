"""Several pipelines of three steps each, which all run at the same time."""

import asyncio
import threading

from radical.asyncflow import WorkflowEngine

PIPELINES = 4


async def main():
    flow = await WorkflowEngine.create()
    all_begun = threading.Barrier(PIPELINES)

    @flow.function_task
    async def generate(number):
        await asyncio.to_thread(all_begun.wait, 20)
        return list(range(number))

    @flow.executable_task
    async def as_lines(numbers):
        return "true"

    @flow.function_task
    async def check(numbers, output):
        return (sum(numbers), output)

    async def run_pipeline(number):
        data = generate(number)
        return await check(data, as_lines(data))

    print(await asyncio.gather(*(run_pipeline(number) for number in range(PIPELINES))))
    await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())


# Output:
# [(0, ''), (0, ''), (1, ''), (3, '')]
