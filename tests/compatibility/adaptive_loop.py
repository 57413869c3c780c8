"""A loop that simulates, trains on all that was simulated, and goes on until it is good enough."""

import asyncio

from radical.asyncflow import WorkflowEngine


async def main():
    flow = await WorkflowEngine.create()

    @flow.executable_task
    async def simulate(point):
        return f"/bin/echo {point}0"

    @flow.function_task
    async def train(model, *samples):
        samples = [float(sample) for sample in samples]
        model = dict(model)
        model["samples"] = model.get("samples", 0) + len(samples)
        model["mean"] = sum(samples) / len(samples)
        model["error"] = 100 / model["samples"]
        return model

    @flow.function_task
    async def choose(model):
        return [int(model["mean"]) % 7 + step for step in range(3)]

    model, points, iteration = {}, [1, 2, 3], 0
    while model.get("error", 100) > 10:
        iteration += 1
        trained = train(model, *(simulate(point) for point in points))
        chosen = choose(trained)
        model, points = await trained, await chosen
        print(f"{iteration}: mean {model['mean']:.0f}, error {model['error']:.1f}, next {points}")
    await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())


# Output:
# 1: mean 20, error 33.3, next [6, 7, 8]
# 2: mean 70, error 16.7, next [0, 1, 2]
# 3: mean 10, error 11.1, next [3, 4, 5]
# 4: mean 40, error 8.3, next [5, 6, 7]
