"""Cancelling what waits, what runs, a block with all of its tasks, and whatever is left."""

import asyncio
import time

from radical.asyncflow import WorkflowEngine


async def main():
    flow = await WorkflowEngine.create()
    gate = asyncio.Event()

    @flow.block
    async def wait_for_gate():
        await gate.wait()
        return "open"

    @flow.function_task
    async def use(value):
        return f"used {value}"

    @flow.executable_task
    async def sleep(seconds):
        return f"sleep {seconds}"

    async def end_of(future):
        try:
            return await future
        except asyncio.CancelledError:
            return "cancelled"

    source = wait_for_gate()
    kept, dropped = use(source), use(source)
    behind = use(dropped)
    await asyncio.sleep(0.1)
    print(dropped.cancel(), await end_of(dropped))
    gate.set()
    print(await end_of(kept), "|", await end_of(behind))
    print(dropped.cancelled(), kept.cancelled(), kept.cancel())

    begin = time.monotonic()
    running = sleep(60)
    await asyncio.sleep(0.3)
    running.cancel()
    print(await end_of(running), time.monotonic() - begin < 30)

    inner = []

    @flow.block
    async def outer():
        inner.append(sleep(60))
        inner.append(use(inner[0]))
        await inner[1]

    block = outer()
    await asyncio.sleep(0.3)
    block.cancel()
    print(await end_of(block), [await end_of(future) for future in inner])

    try:
        await asyncio.wait_for(sleep(60), timeout=0.3)
    except asyncio.TimeoutError:
        print("too late")

    gate.clear()
    left = [wait_for_gate(), use(sleep(60))]
    await asyncio.sleep(0.3)
    await flow.shutdown()
    print([await end_of(future) for future in left])
    print(time.monotonic() - begin < 30)


if __name__ == "__main__":
    asyncio.run(main())


# Output:
# True cancelled
# used open | cancelled
# True False False
# cancelled True
# cancelled ['cancelled', 'cancelled']
# too late
# ['cancelled', 'cancelled']
# True
