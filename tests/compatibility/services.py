"""A service: its future is done when it is ready, though it runs on until the engine ends."""

import asyncio
import threading

from radical.asyncflow import WorkflowEngine


class States:
    DONE = "DONE"
    RUNNING = "RUNNING"
    CANCELED = "CANCELED"
    FAILED = "FAILED"
    terminal_states = frozenset({"DONE", "CANCELED", "FAILED"})


class ServiceBackend:
    """Runs functions in the event loop, and services in threads that tell where they listen."""

    def __init__(self):
        self.name = "services"
        self.attached_to = []
        self.stop = threading.Event()
        self.threads = []

    def get_task_states_map(self):
        return States()

    def register_callback(self, func):
        self.callback = func

    async def submit_tasks(self, tasks):
        for task in tasks:
            if task["is_service"]:
                self.callback(task, "RUNNING", self.when_ready)
            else:
                task["return_value"] = await task["function"](*task["args"], **task["kwargs"])
                self.callback(task, "DONE")

    def when_ready(self, future, task, state):
        loop = asyncio.get_running_loop()

        def serve():
            url = f"tcp://localhost/{task['name']}/{task['args'][0]}"
            loop.call_soon_threadsafe(future.set_result, url)
            self.stop.wait(20)

        self.threads.append(threading.Thread(target=serve))
        self.threads[-1].start()

    async def cancel_task(self, uid):
        return False

    async def shutdown(self):
        print("still serving:", sum(thread.is_alive() for thread in self.threads))
        self.stop.set()
        for thread in self.threads:
            thread.join()


async def main():
    flow = await WorkflowEngine.create(backend=ServiceBackend())

    @flow.function_task(service=True)
    async def database(name):
        raise AssertionError("the backend has its own way")

    @flow.function_task
    async def query(address, text):
        return f"{text} at {address}"

    first, second = database("one"), database("two")
    print(await query(first, "select"))
    print(await asyncio.gather(*(query(second, f"insert {number}") for number in range(2))))
    print(first.done(), first.result())
    await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())


# Output:
# select at tcp://localhost/database/one
# ['insert 0 at tcp://localhost/database/two', 'insert 1 at tcp://localhost/database/two']
# True tcp://localhost/database/one
# still serving: 2
