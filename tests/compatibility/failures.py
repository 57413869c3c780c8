"""What a failure is to the task itself, to those that depend on it, and to the others."""

import asyncio

from radical.asyncflow import WorkflowEngine
from radical.asyncflow.errors import DependencyFailureError


async def main():
    flow = await WorkflowEngine.create()

    @flow.function_task
    async def load(name):
        if name == "missing":
            raise FileNotFoundError(f"no data set {name}")
        return name.upper()

    @flow.function_task
    async def merge(*names):
        return "+".join(names)

    @flow.executable_task
    async def program(code):
        return f"echo about to fail >&2; exit {code}"

    good, bad = load("first"), load("missing")
    merged = merge(good, bad)
    behind = merge(merged)
    aside = merge(good, load("second"))

    for name, future in (("bad", bad), ("merged", merged), ("behind", behind)):
        try:
            await future
        except DependencyFailureError as error:
            print(name, type(error).__name__, error.failed_dependencies)
            print("  cause:", type(error.__cause__).__name__)
        except FileNotFoundError as error:
            print(name, type(error).__name__, error)
    print("aside", await aside)
    try:
        await merged
    except DependencyFailureError as error:
        print("root:", error.root_cause is bad.exception())

    try:
        await program(3)
    except RuntimeError as error:
        print("program:", "about to fail" in str(error))
    print("goes on:", await merge(load("third")))

    async def with_retries(attempts):
        for attempt in range(1, attempts + 1):
            try:
                return await load("missing" if attempt < 3 else "at last")
            except FileNotFoundError:
                print("attempt", attempt, "failed")
        raise RuntimeError("out of attempts")

    print(await with_retries(5))
    await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())


# Output:
# bad FileNotFoundError no data set missing
# merged DependencyFailureError ['load']
#   cause: FileNotFoundError
# behind DependencyFailureError ['merge']
#   cause: DependencyFailureError
# aside FIRST+SECOND
# root: True
# program: True
# goes on: THIRD
# attempt 1 failed
# attempt 2 failed
# AT LAST
