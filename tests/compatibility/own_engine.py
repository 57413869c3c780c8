"""An engine of one's own: a subclass that sees how every component ends."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from radical.asyncflow import LocalExecutionBackend, WorkflowEngine

ENDS = []


class Engine(WorkflowEngine):
    def handle_component_success(self, component, component_fut):
        super().handle_component_success(component, component_fut)
        ENDS.append(f"done: {component_fut.result()!r}")

    def handle_component_failure(self, component, component_fut, override_error_message=None):
        super().handle_component_failure(component, component_fut, override_error_message)
        ENDS.append(f"failed: {type(component_fut.exception()).__name__}")

    async def execute_block(self, block_fut, func, *args, **kwargs):
        ENDS.append(f"block of {args}")
        await super().execute_block(block_fut, func, *args, **kwargs)


async def main():
    flow = await Engine.create(await LocalExecutionBackend(ThreadPoolExecutor()))

    @flow.function_task
    async def half(value):
        if value % 2:
            raise ValueError(f"{value} is odd")
        return value // 2

    @flow.executable_task
    async def show(value):
        return f"echo {value}"

    @flow.block
    async def quarter(value):
        return await half(half(value))

    print(await half(6), await show(7), await quarter(8))
    await asyncio.gather(half(half(2)), return_exceptions=True)
    await flow.shutdown()
    for end in ENDS:
        print(end)


asyncio.run(main())

# Output:
# 3 7
#  2
# done: 3
# done: '7\n'
# block of (8,)
# done: 4
# done: 2
# done: 2
# done: 1
# failed: ValueError
