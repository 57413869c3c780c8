"""Names of workflows: from a scope, from the call, and from the block that a call is made in."""

import asyncio

from radical.asyncflow import WorkflowEngine


async def main():
    flow = await WorkflowEngine.create()
    seen = {}

    @flow.function_task
    async def step(name):
        return name

    async def run_step(name, **options):
        future = step(name, **options)
        await future
        seen[name] = future.task["workflow_id"]

    @flow.block
    async def block(name):
        await run_step(f"{name}, inside")
        async with flow.workflow_scope("scope in the block"):
            await run_step(f"{name}, inside, in a scope")
        return name

    await run_step("outside")
    async with flow.workflow_scope("run-1") as workflow_id:
        print("scope:", workflow_id)
        await run_step("in the scope")
        await run_step("in the scope, named", workflow_id="by hand")
        await asyncio.gather(run_step("in a task of the scope"))
        future = block("block")
        await future
        seen["the block itself"] = future.block["workflow_id"]
        async with flow.workflow_scope("run-2"):
            await run_step("in the inner scope")
        await run_step("in the scope again")
    await run_step("outside again")
    async with flow.workflow_scope() as workflow_id:
        print("made up:", workflow_id.startswith("wf-"), len(workflow_id) > 3)

    inside = seen.pop("block, inside")
    print("inside a block:", inside == future.block["uid"])
    for name, workflow_id in seen.items():
        print(f"{name}: {workflow_id}")
    await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())


# Output:
# scope: run-1
# made up: True True
# inside a block: True
# outside: None
# in the scope: run-1
# in the scope, named: by hand
# in a task of the scope: run-1
# block, inside, in a scope: scope in the block
# the block itself: run-1
# in the inner scope: run-2
# in the scope again: run-1
# outside again: None
