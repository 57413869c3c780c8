"""A dry run: nothing happens, and everything has a result."""

import asyncio

from radical.asyncflow import NoopExecutionBackend, WorkflowEngine


async def main():
    flow = await WorkflowEngine.create(dry_run=True)

    @flow.function_task
    async def dangerous(*inputs):
        raise SystemExit("this must not happen")

    @flow.executable_task
    async def program(*inputs):
        return "rm -rf /nowhere"

    @flow.prompt_task
    async def ask(text):
        return f"What about {text}?"

    @flow.block
    async def block():
        return [await dangerous(), await program()]

    first = dangerous()
    print(await program(first), "|", await dangerous(program(), first), "|", await ask("it"))
    print(await block())
    print(flow.dry_run, isinstance(flow.backend, NoopExecutionBackend), flow.backend.state())
    await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())


# Output:
# Dummy Output | Dummy Output | Dummy Prompt Output
# ['Dummy Output', 'Dummy Output']
# True True IDLE
