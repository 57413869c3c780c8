"""Tasks that leave their results in one dictionary, in rounds, as with a distributed one."""

import asyncio

from radical.asyncflow import WorkflowEngine


async def main():
    flow = await WorkflowEngine.create()
    store = {}

    @flow.function_task
    async def produce(key, value):
        store[key] = value
        return key

    @flow.function_task
    async def combine(target, *keys):
        store[target] = sum(store[key] for key in keys)
        return target

    last = None
    for round_number in range(4):
        keys = [produce(f"{round_number}.{part}", round_number * part) for part in range(3)]
        if last is not None:
            keys.append(last)
        last = combine(f"sum {round_number}", *keys)
    print(await last)
    print({key: value for key, value in sorted(store.items()) if key.startswith("sum")})
    print(len(store))
    await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())


# Output:
# sum 3
# {'sum 0': 0, 'sum 1': 3, 'sum 2': 9, 'sum 3': 18}
# 16
