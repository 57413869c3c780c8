"""A census of the Python standard library, written as a workflow.

It shows the kinds of task, and how errors travel between them:

* ``parse``, a function task, runs once per file and counts what the file defines;
* ``weigh``, an executable task, runs ``wc -c`` over the files of a package;
* ``package``, a block, starts both for every file of one package and merges the results;
* ``report``, a function task, depends on all blocks, prints the table and writes the JSON.

A file that cannot be parsed fails its own task only. The block that awaits the task
collects the exception, lists it beside the counts, and the run goes on.

    python examples/census.py                           # the standard library of this Python
    python examples/census.py src --json src.json       # any other directory
"""

import argparse
import ast
import asyncio
import io
import json
import os
import shutil
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dftracer.asyncflow import WorkflowEngine

EXCLUDED = {"__pycache__", "site-packages", "dist-packages"}
TOP_LEVEL = "(top level)"
CHUNK = 128  # files per command: with paths of at most 4096 bytes, 512 KiB of arguments


@dataclass(frozen=True)
class Function:
    """One function: its length in lines, and the file and line of its ``def``."""

    lines: int
    file: str
    line: int
    name: str


@dataclass
class Tally:
    """What was counted in one file, one package or the whole tree."""

    files: int = 0  # found, whether or not they could be parsed
    lines: int = 0  # physical lines of the parsed files; the last may lack its line end
    functions: int = 0  # ``def`` statements at any depth, methods included
    async_functions: int = 0  # ``async def`` statements, not counted in ``functions``
    classes: int = 0  # ``class`` statements at any depth
    bytes: int = 0  # sizes of the files, whether or not they could be parsed
    longest: Function | None = None  # of those equally long, the first by file and line
    failed: dict[str, str] = field(default_factory=dict)  # file -> why it could not be counted


def longest(*functions: Function | None) -> Function | None:
    """Pick the function with the most lines; of those equally long, the first by file and line."""
    return min(filter(None, functions), key=lambda f: (-f.lines, f.file, f.line), default=None)


def merged(parts: Iterable[Tally]) -> Tally:
    """Add up the tallies of disjoint sets of files."""
    total = Tally()
    for part in parts:
        total.files += part.files
        total.lines += part.lines
        total.functions += part.functions
        total.async_functions += part.async_functions
        total.classes += part.classes
        total.bytes += part.bytes
        total.longest = longest(total.longest, part.longest)
        total.failed |= part.failed
    return total


def find_files(root: str) -> dict[str, list[str]]:
    """Map each package (a directory directly below ``root``) to its ``*.py`` files, sorted."""
    packages: dict[str, list[str]] = {}
    for folder, subfolders, names in os.walk(root, onerror=lambda e: print(e, file=sys.stderr)):
        subfolders[:] = set(subfolders) - EXCLUDED
        for name in names:
            path = Path(folder, name)
            # A broken link does not exist, yet is kept: it belongs in the list of failures.
            if name.endswith(".py") and (os.path.isfile(path) or not os.path.exists(path)):
                file = path.relative_to(root)
                package = file.parts[0] if len(file.parts) > 1 else TOP_LEVEL
                packages.setdefault(package, []).append(file.as_posix())
    return {package: sorted(files) for package, files in sorted(packages.items())}


async def census(root: str, output: Path, top: int, quiet: bool) -> int:
    """Count everything below ``root``, print and write the result, return the number of files."""
    packages = find_files(root)

    async with await WorkflowEngine.create() as flow:

        @flow.function_task
        def parse(file: str) -> Tally:
            data = Path(root, file).read_bytes()
            tally = Tally(files=1, lines=len(data.splitlines()))
            for node in ast.walk(ast.parse(data, filename=file)):
                tally.classes += isinstance(node, ast.ClassDef)
                tally.functions += isinstance(node, ast.FunctionDef)
                tally.async_functions += isinstance(node, ast.AsyncFunctionDef)
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    lines = (node.end_lineno or node.lineno) - node.lineno + 1
                    function = Function(lines, file, node.lineno, node.name)
                    tally.longest = longest(tally.longest, function)
            return tally

        @flow.executable_task
        async def weigh(files: list[str]) -> list[str]:
            # The empty file at the end makes ``wc`` print a total even for a single file.
            return ["wc", "-c", "--", *(os.path.join(root, file) for file in files), os.devnull]

        async def weigh_all(files: list[str]) -> Tally:
            try:
                stdout = await weigh(files)
                return Tally(bytes=int(stdout.splitlines()[-1].split()[0]))
            except RuntimeError as error:  # ``wc`` could not read every file: halve to find which
                if len(files) == 1:
                    return Tally(failed={files[0]: str(error)})
                halves = files[: len(files) // 2], files[len(files) // 2 :]
                return merged(await asyncio.gather(*map(weigh_all, halves)))

        @flow.block
        async def package(files: list[str]) -> Tally:
            parsing = [parse(file) for file in files]
            chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
            parts, results = await asyncio.gather(
                asyncio.gather(*map(weigh_all, chunks)),
                asyncio.gather(*parsing, return_exceptions=True),
            )
            for file, result in zip(files, results, strict=True):
                if isinstance(result, BaseException):
                    error = f"{type(result).__name__}: {result}"
                    parts.append(Tally(files=1, failed={file: error}))
                else:
                    parts.append(result)
            return merged(parts)

        @flow.function_task
        def report(tallies: dict[str, Tally]) -> int:
            total = merged(tallies.values())
            print(table(tallies, total, top))
            counts = {name: asdict(tally) for name, tally in tallies.items()}
            content = {"root": root, "total": asdict(total), "packages": counts}
            text = json.dumps(content, indent=2, sort_keys=True) + "\n"
            output.write_text(text, encoding="utf-8")
            return total.files

        with nullcontext() if quiet else flow.progress():
            # The arguments are the futures of the blocks: ``report`` runs when all have finished.
            return await report({name: package(files) for name, files in packages.items()})


def table(tallies: dict[str, Tally], total: Tally, top: int) -> str:
    """Format the ``top`` packages with the most lines, the total, and every failure."""
    width = max(map(len, [*tallies, TOP_LEVEL]))

    def row(name: str, t: Tally) -> str:
        best = f"{t.longest.name} ({t.longest.lines} lines)" if t.longest else "-"
        numbers = f"{t.files:8,}{len(t.failed):8,}{t.lines:12,}{t.functions:11,}"
        numbers += f"{t.async_functions:8,}{t.classes:9,}{t.bytes:14,}"
        return f"{name:{width}}{numbers}  {best}"

    heading = "   files  failed       lines  functions   async  classes         bytes"
    ranked = sorted(tallies, key=lambda name: (-tallies[name].lines, name))
    text = [f"{'package':{width}}{heading}  longest function"]
    text += [row(name, tallies[name]) for name in ranked[:top]]
    text += [f"({len(ranked) - top} more)"] * (len(ranked) > top)
    text += [row("total", total)]
    if total.longest:
        text += ["", f"The longest function is at {total.longest.file}:{total.longest.line}."]
    if total.failed:
        text += ["", f"Files that failed ({len(total.failed)}):"]
        text += [f"  {file}: {error}" for file, error in sorted(total.failed.items())]
    return "\n".join(text)


def main() -> int:
    """Run the census from the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="Count what a tree of Python files defines.")
    parser.add_argument("directory", nargs="?", default=sysconfig.get_paths()["stdlib"])
    parser.add_argument("--json", type=Path, default="census.json", help="file to write")
    parser.add_argument("--top", type=int, default=15, help="packages to print (default: 15)")
    parser.add_argument("--quiet", action="store_true", help="print no progress on stderr")
    args = parser.parse_args()
    for folder in (args.directory, args.json.parent):
        try:
            os.listdir(folder)
        except OSError as error:
            parser.error(f"{error.strerror}: {folder}")
    if args.top < 0 or shutil.which("wc") is None:
        parser.error("--top is negative" if args.top < 0 else "the program wc is needed")
    warnings.simplefilter("ignore")  # parsed files may warn, from several threads at once
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be any bytes

    start = time.perf_counter()
    files = asyncio.run(census(os.path.abspath(args.directory), args.json, args.top, args.quiet))
    seconds = time.perf_counter() - start
    if not args.quiet:
        rate = f"{files / seconds:,.0f} files/s"
        print(f"{files:,} files in {seconds:.1f} s, {rate}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
