"""Backends of one's own: as simple as the contract allows, chosen by name."""

import asyncio
import os
import subprocess
import tempfile
import threading

from radical.asyncflow import WorkflowEngine


class States:
    DONE = "finished"
    RUNNING = "active"
    CANCELED = "dropped"
    FAILED = "broken"
    terminal_states = frozenset({"finished", "dropped", "broken"})


class Backend:
    """Runs every task in a thread of its own, and is as simple as the contract allows."""

    def __init__(self, name):
        self.name = name
        self.is_attached = False
        self.attached_to = []
        self.threads = []
        self.ready = threading.Event()

    def __await__(self):
        yield from ()
        return self

    def get_task_states_map(self):
        return States()

    def register_callback(self, func):
        self.callback = func
        self.loop = asyncio.get_running_loop()

    async def submit_tasks(self, tasks):
        for task in tasks:
            thread = threading.Thread(target=self.run, args=(task,))
            self.threads.append(thread)
            thread.start()

    def run(self, task):
        self.tell(task, "active")
        try:
            if task.get("prompt"):
                task["stdout"] = f"<answer to {task['prompt']!r} from {self.name}>"
            elif task.get("function"):
                task["return_value"] = asyncio.run(
                    task["function"](*task["args"], **task["kwargs"])
                )
            else:
                self.run_program(task)
        except Exception as error:
            task["exception"] = error
            self.tell(task, "broken")
        else:
            self.tell(task, "finished")

    def run_program(self, task):
        out = os.path.join(self._work_dir, f"{task['uid']}.stdout")
        with open(out, "wb") as file:
            subprocess.run([task["executable"], *task["arguments"]], stdout=file, check=True)
        task["stdout"] = out
        if not task["capture_stdio"]:
            with open(out) as file:
                task["stdout"] = file.read()

    def tell(self, task, state):
        self.loop.call_soon_threadsafe(self.callback, task, state)

    async def cancel_task(self, uid):
        return False

    async def shutdown(self):
        for thread in self.threads:
            thread.join()
        print("shut down:", self.name, "after", len(self.threads))


async def main():
    with tempfile.TemporaryDirectory() as folder:
        backends = [await Backend("plain"), await Backend("model")]
        flow = await WorkflowEngine.create(backend=backends, uid="mine", work_dir=folder)
        os.makedirs(os.path.join(folder, "mine"), exist_ok=True)

        @flow.function_task
        async def pick(numbers):
            return max(numbers)

        @flow.executable_task(capture_stdio=True)
        async def save(number):
            return f"/bin/echo number {number}"

        @flow.executable_task
        async def show(path):
            return f"/bin/cat {path}"

        @flow.prompt_task(backend="model")
        async def ask(text):
            return f"Explain: {text.strip()}"

        @flow.function_task(backend="model")
        async def fail(answer):
            raise ValueError(f"do not like {answer}")

        path = await save(await pick([3, 9, 4]))
        print(path.removeprefix(folder))
        shown = show(path)
        print(repr(await shown))
        answer = ask(await shown)
        print(await answer)
        try:
            await fail(answer)
        except ValueError as error:
            print("failed:", error)
        print([backend.attached_to for backend in backends], flow.backend.name)
        await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())


# Output:
# /mine/task.000002.stdout
# 'number 9\n'
# <answer to 'Explain: number 9' from model>
# failed: do not like <answer to 'Explain: number 9' from model>
# [['mine'], ['mine']] plain
# shut down: plain after 3
# shut down: model after 2
