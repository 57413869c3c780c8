"""A command, and a function of what it has written."""

import asyncio

from radical.asyncflow import WorkflowEngine


async def main():
    flow = await WorkflowEngine.create()

    @flow.executable_task
    async def measure():
        return "/bin/echo 5"

    @flow.function_task
    async def scale(text, factor=2):
        return int(text.strip()) * factor

    measured = measure()
    doubled = scale(measured)
    quadrupled = scale(measured, factor=4)
    print(repr(await measured), await doubled, await quadrupled)
    print(doubled.done(), doubled.result(), doubled.exception())
    await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())


# Output:
# '5\n' 10 20
# True 10 None
