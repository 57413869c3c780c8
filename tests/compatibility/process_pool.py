"""Functions in other processes: local ones, with what they refer to, and errors on the way back."""

import asyncio
import os
from concurrent.futures import ProcessPoolExecutor

from radical.asyncflow import LocalExecutionBackend, WorkflowEngine


async def main():
    backend = await LocalExecutionBackend(ProcessPoolExecutor(max_workers=2))
    flow = await WorkflowEngine.create(backend=backend)
    offset = 100

    @flow.function_task
    async def factorize(number):
        factors, divisor = [], 2
        while number > 1:
            while number % divisor == 0:
                factors.append(divisor)
                number //= divisor
            divisor += 1
        return factors

    @flow.function_task
    async def multiply(factors):
        await asyncio.sleep(0.01)
        product = offset
        for factor in factors:
            product *= factor
        return product

    @flow.function_task
    async def where():
        return os.getpid()

    @flow.function_task
    async def fail(number):
        raise ZeroDivisionError(f"cannot divide by {number}")

    @flow.executable_task
    async def show(text):
        return f"/bin/echo {text}"

    factors = [factorize(number) for number in (12, 97, 1001)]
    print(await asyncio.gather(*factors))
    print(await asyncio.gather(*(multiply(each) for each in factors)))
    print("in this process:", await where() == os.getpid())
    print((await show("a program beside them")).strip())
    failed = fail(0)
    results = await asyncio.gather(failed, multiply(failed), return_exceptions=True)
    print([type(result).__name__ for result in results], results[0])
    await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())


# Output:
# [[2, 2, 3], [97], [7, 11, 13]]
# [1200, 9700, 100100]
# in this process: False
# a program beside them
# ['ZeroDivisionError', 'DependencyFailureError'] cannot divide by 0
