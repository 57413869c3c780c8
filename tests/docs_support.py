"""What the pages hold: examples to be run as they stand there, and links to be followed.

A comment above a fenced block, which nobody sees on a rendered page, says what is not plain:

``<!-- continues -->``
    It goes on where the block before has ended.
``<!-- within: FRAME -->``
    It is an excerpt: of a program that is among the ``FRAMES`` below.
``<!-- file: NAME -->``
    The commands of the page find it under that name.
``<!-- prints: TEXT -->``
    It prints that, among other things.
``<!-- output -->``
    It is all that the program before it prints.
"""

import re
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
Settings = dict[str, str]
"""What to put in the place of what, in the programs of a page."""

FRAMES = {
    "coroutine": """
        import asyncio
        from dftracer.asyncflow import DaskExecutionBackend, WorkflowEngine
        from dftracer.utils import Runtime

        async def main():
            {}
            await flow.shutdown()

        asyncio.run(main())
        """,
    "engine": """
        import asyncio
        from dftracer.asyncflow import WorkflowEngine

        async def main():
            async with await WorkflowEngine.create() as flow:
                {}

        asyncio.run(main())
        """,
    "client": """
        import dask
        from dask.distributed import Client
        from dftracer.utils.dask import DFTracerUtilsDaskWorkerPlugin

        with Client("tcp://host:8786") as client:
            client.register_plugin(DFTracerUtilsDaskWorkerPlugin())
            {}
        """,
}
"""What excerpts are taken from."""

_MARK = re.compile(r"<!-- (\w+)(?:: (.+))? -->")
_FENCE = re.compile(r"(```+)(\S*)")


@dataclass
class Block:
    """A fenced block: where it is, what it says, and what the comment above says of it."""

    page: str
    line: int
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)
    output: str | None = None
    """All that it prints, if the page tells."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Every page, by its path from the top folder."""
    found = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("*/README.md")]
    found += ROOT.glob("rust/*/README.md")
    return sorted({str(path.relative_to(ROOT)) for path in found})


def text_of(page: str) -> str:
    """What a page says."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """Every fenced block of a page, in order."""
    found: list[Block] = []
    marks: dict[str, str] = {}
    lines = enumerate(text_of(page).splitlines(), 1)
    for number, line in lines:
        if mark := _MARK.fullmatch(line.strip()):
            marks[mark[1]] = mark[2] or ""
        elif fence := _FENCE.match(line):
            inner = []
            for _, each in lines:
                if each.rstrip() == fence[1]:
                    break
                inner.append(each + "\n")
            found.append(Block(page, number, fence[2], "".join(inner), marks))
            marks = {}
        elif line.strip():
            marks = {}
    return found


def programs(page: str) -> list[Block]:
    """The Python blocks of a page, those that go on with one joined to it."""
    found: list[Block] = []
    for block in blocks(page):
        if block.language == "python" and "continues" in block.marks:
            found[-1].text += block.text
        elif block.language == "python":
            found.append(block)
        elif "output" in block.marks:
            found[-1].output = block.text
    return found


def commands(page: str) -> list[str]:
    """The lines of a page's shell blocks, without comments; those that are broken, in one."""
    shells = [block.text for block in blocks(page) if block.language in ("sh", "bash")]
    joined = "".join(shells).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def prose(page: str) -> str:
    """A page without its fenced blocks and without what is literal in a line."""
    text = re.sub(r"^(```+).*?^\1\s*?$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`]*`", lambda code: code[0] if "](" not in code[0] else "", text)


def anchors(page: str) -> set[str]:
    """What a link to a page may have behind ``#``: its headings, as code hosts write them."""
    text = re.sub(r"^(```+).*?^\1\s*?$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*?)\s*$", text, re.MULTILINE)
    plain = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", each).lower() for each in headings)
    return {re.sub(r"[^\w\- ]", "", each).replace(" ", "-") for each in plain}


def examples(page: str, language: str = "python") -> list[str]:
    """Return the fenced blocks of one language in a page of ``docs/``."""
    return [block.text for block in blocks(f"docs/{page}") if block.language == language]


def is_run_by_commands(block: Block) -> bool:
    name = block.marks.get("file")
    return name is not None and any(f" {name}" in line for line in commands(block.page))


def source_of(block: Block, settings: Settings) -> str:
    source = block.text
    if "within" in block.marks:
        frame = textwrap.dedent(FRAMES[block.marks["within"]])
        (indent,) = re.findall(r"^( *)\{\}$", frame, re.MULTILINE)
        if source.rstrip().endswith(":"):
            source += "    pass\n"
        source = frame.replace(indent + "{}\n", textwrap.indent(source, indent))
    for shown, real in settings.items():
        source = source.replace(shown, real)
    return source


def write_programs(folder: Path) -> None:
    """Write every program of the pages into a folder, for tools that read files."""
    for block in (block for page in pages() for block in programs(page)):
        name = re.sub(r"\W", "_", f"{block.page}_{block.line}")
        (folder / f"{name}.py").write_text(source_of(block, {}), encoding="utf-8")


if __name__ == "__main__":
    write_programs(Path(sys.argv[1]))
