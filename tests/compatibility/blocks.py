"""Blocks: coroutines that call tasks and other blocks, and depend on each other like tasks."""

import asyncio

from radical.asyncflow import WorkflowEngine


async def main():
    flow = await WorkflowEngine.create()

    @flow.function_task
    async def stage(name, *inputs):
        return f"{name}({','.join(inputs)})"

    @flow.block
    async def prepare(name):
        raw = stage("raw", name)
        return await stage("clean", raw)

    @flow.block
    async def analyse(*prepared):
        parts = [stage("part", each) for each in prepared]
        return " + ".join(await asyncio.gather(*parts))

    @flow.block
    async def campaign(*names):
        prepared = [prepare(name) for name in names]
        return await analyse(*prepared)

    print(await campaign("x", "y"))

    first = prepare("a")
    second = analyse(first, stage("free"))
    third = stage("last", second)
    print(await third)

    @flow.block
    async def broken():
        await stage(1, 2)

    try:
        await broken()
    except TypeError as error:
        print("broken:", error)
    dependent = stage("never", broken())
    print(type((await asyncio.gather(dependent, return_exceptions=True))[0]).__name__)
    await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())


# Output:
# part(clean(raw(x))) + part(clean(raw(y)))
# last(part(clean(raw(a))) + part(free()))
# broken: sequence item 0: expected str instance, int found
# DependencyFailureError
