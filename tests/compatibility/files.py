"""Files that tasks declare, from the first to the last by way of a third."""

import asyncio
import os
import tempfile
from pathlib import Path

from radical.asyncflow import InputFile, OutputFile, WorkflowEngine


async def main():
    flow = await WorkflowEngine.create()

    @flow.executable_task
    async def double(source, target):
        return f"sed 's/$/0/' {source.filename} > {target.filename}"

    @flow.executable_task
    async def total(after, source):
        return f"paste -sd+ {source.filename}"

    source, target = InputFile("numbers.txt"), OutputFile("doubled.txt")
    doubled = double(source, target)
    print(repr(await doubled))
    print(repr(await total(doubled, InputFile("doubled.txt"))))
    print(doubled.task["metadata"]["input_files"], doubled.task["metadata"]["output_files"])
    print(source.filepath.name, source.local_file, source.remote_url, target.filename)
    await flow.shutdown()


if __name__ == "__main__":
    os.chdir(tempfile.mkdtemp())
    Path("numbers.txt").write_text("1\n2\n3\n")
    asyncio.run(main())


# Output:
# ''
# '10+20+30\n'
# ['numbers.txt'] ['doubled.txt']
# numbers.txt numbers.txt None doubled.txt
