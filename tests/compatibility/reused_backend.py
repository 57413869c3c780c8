"""One backend for several engines, one after the other."""

import asyncio

from radical.asyncflow import NoopExecutionBackend, WorkflowEngine


async def main():
    backend = NoopExecutionBackend(name="nothing")
    for number in range(3):
        flow = await WorkflowEngine.create(backend=backend, uid=f"engine{number}")

        @flow.function_task
        async def compute(value):
            return value

        @flow.executable_task(backend="nothing")
        async def run(value):
            return f"program {value}"

        print(flow.uid, await compute(1), "|", await run(compute(2)))
        print(sorted(flow.components) == sorted(flow.dependencies), len(flow.components))
        await flow.shutdown(skip_execution_backend=number < 2)
    print(backend.attached_to)


if __name__ == "__main__":
    asyncio.run(main())


# Output:
# engine0 Dummy Output | Dummy Output
# True 3
# engine1 Dummy Output | Dummy Output
# True 3
# engine2 Dummy Output | Dummy Output
# True 3
# ['engine0', 'engine1', 'engine2']
