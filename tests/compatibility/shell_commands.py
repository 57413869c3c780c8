"""Commands for a shell: pipes, variables, arithmetic, redirections, one after the other."""

import asyncio
import os
import tempfile

from radical.asyncflow import WorkflowEngine


async def main():
    os.environ["PLANET"] = "Mars"
    flow = await WorkflowEngine.create()
    folder = tempfile.mkdtemp()

    @flow.executable_task
    async def command(text, *after):
        return text

    commands = [
        "echo one two three | wc -w",
        "echo $PLANET",
        "echo $((6 * 7))",
        "cd / && pwd",
        "false || echo rescued",
        "for i in 1 2 3; do echo $i; done",
        "echo lost > /dev/null; echo kept",
        "echo to the error >&2",
        "test -d /tmp && echo a folder",
    ]
    outputs = await asyncio.gather(*(command(text) for text in commands))
    for text, output in zip(commands, outputs, strict=True):
        print(f"{text!r}: {output.strip()!r}")

    written = command(f"echo data > {folder}/file")
    print(repr(await command(f"cat {folder}/file", written)))
    await command(f"rm -r {folder}")
    print(await command(f"test -d {folder} || echo removed"))
    await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())


# Output:
# 'echo one two three | wc -w': '3'
# 'echo $PLANET': 'Mars'
# 'echo $((6 * 7))': '42'
# 'cd / && pwd': '/'
# 'false || echo rescued': 'rescued'
# 'for i in 1 2 3; do echo $i; done': '1\n2\n3'
# 'echo lost > /dev/null; echo kept': 'kept'
# 'echo to the error >&2': ''
# 'test -d /tmp && echo a folder': 'a folder'
# 'data\n'
# removed
#
