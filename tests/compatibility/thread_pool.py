"""A pool of threads, given to the backend, and what comes of being specific about imports."""

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

from radical.asyncflow.backends import LocalExecutionBackend
from radical.asyncflow.logging import init_default_logger
from radical.asyncflow.workflow_manager import WorkflowEngine

logger = logging.getLogger(__name__)


async def main():
    init_default_logger(logging.ERROR)
    pool = ThreadPoolExecutor(3, thread_name_prefix="mine")
    backend = await LocalExecutionBackend(pool)
    flow = await WorkflowEngine.create(backend=backend)
    print(backend.state(), backend.executor is pool, backend.name)

    @flow.function_task
    async def thread_name(*_):
        logger.info("not shown")
        await asyncio.sleep(0)
        return threading.current_thread().name.split("_")[0]

    @flow.block
    async def block(*_):
        first = thread_name()
        return await thread_name(first)

    @flow.prompt_task
    async def ask():
        return "Who are you?"

    print(await thread_name(), await block(block()))
    try:
        await ask()
    except NotImplementedError as error:
        print("no prompts:", "LocalExecutionBackend" in str(error))

    gathered = await asyncio.gather(*(block(number) for number in range(20)))
    print(set(gathered), len(gathered))
    await flow.shutdown()
    try:
        pool.submit(print)
    except RuntimeError:
        print("the pool is shut down")


if __name__ == "__main__":
    asyncio.run(main())


# Output:
# INITIALIZED True default
# mine mine
# no prompts: True
# {'mine'} 20
# the pool is shut down
