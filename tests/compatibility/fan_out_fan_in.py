"""Many tasks from one, and one from many: futures as positional and as keyword arguments."""

import asyncio

from radical.asyncflow import WorkflowEngine


async def main():
    flow = await WorkflowEngine.create()

    @flow.function_task
    async def split(text):
        return text.split()

    @flow.function_task
    async def count(words, initial):
        return sum(word.startswith(initial) for word in words)

    @flow.function_task
    async def add(*counts, offset=0):
        return sum(counts) + offset

    @flow.function_task
    async def report(a=0, b=0, total=0):
        return f"a={a} b={b} total={total}"

    words = split("apple bean avocado beet banana cherry")
    counts = [count(words, initial) for initial in "abc"]
    total = add(*counts, offset=count(words, "z"))
    print(await asyncio.gather(*counts), await total)
    print(await report(a=counts[0], b=counts[1], total=total))
    print(await add(counts[0], counts[0], counts[0]))

    diamond = split("one two")
    left, right = count(diamond, "o"), count(diamond, "t")
    print(await add(left, right))
    for finished in asyncio.as_completed([count(words, "b")]):
        print("as completed:", await finished)
    await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())


# Output:
# [2, 3, 1] 6
# a=2 b=3 total=6
# 6
# 2
# as completed: 3
