"""Two engines in one event loop, each with its own tasks, one of which passes data to the other."""

import asyncio

from radical.asyncflow import WorkflowEngine


async def run_campaign(name, values):
    flow = await WorkflowEngine.create(uid=f"campaign.{name}")

    @flow.function_task
    async def square(value):
        return value * value

    @flow.function_task
    async def total(*values):
        return sum(values)

    @flow.executable_task
    async def sign(number):
        return f"/bin/echo {name} {number}"

    number = total(*(square(value) for value in values))
    text = await sign(await number)
    await flow.shutdown()
    return flow.uid, text.strip()


async def main():
    results = await asyncio.gather(
        run_campaign("small", range(5)), run_campaign("large", range(100, 105))
    )
    for uid, text in results:
        print(uid, "->", text)

    for attempt in range(3):
        print(await run_campaign(f"again{attempt}", [attempt]))


if __name__ == "__main__":
    asyncio.run(main())


# Output:
# campaign.small -> small 30
# campaign.large -> large 52030
# ('campaign.again0', 'again0 0')
# ('campaign.again1', 'again1 1')
# ('campaign.again2', 'again2 4')
