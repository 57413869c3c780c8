"""A campaign over Python sources, with three backends at once.

Each task runs where it is best off, and futures lead from one backend to the next:

* ``read``, on the runtime of this process, reads a file: that is cheap, and waits for the disk;
* ``analyse``, on the workers of a Dask cluster, parses it, which keeps a CPU busy;
* ``summarise``, on a server of the OpenAI-compatible API, words what the longest docstrings say.

Without a server there are no summaries. ``docs/prompts.md`` tells how to start one:

    python examples/campaign.py                         # package json of this Python
    python examples/campaign.py src --json src.json     # any other directory
    python examples/campaign.py src --base-url http://localhost:8000/v1 --model Qwen/Qwen3-8B

The cluster is two worker processes on this machine; ``--scheduler`` names one that is there.
"""

import argparse
import ast
import asyncio
import json
import os
import sys
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dftracer.asyncflow import (
    DaskExecutionBackend,
    OpenAIBackend,
    RuntimeExecutionBackend,
    WorkflowEngine,
)

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
SHORT = {"max_tokens": 60}  # what the server is told with each prompt


@dataclass
class Analysis:
    """What was found in one file, or in all of them."""

    files: int = 0
    lines: int = 0
    definitions: int = 0  # modules, classes and functions, which may have a docstring
    documented: int = 0  # those that have one
    words: int = 0  # in the docstrings
    longest: tuple[int, str, str] = (0, "", "")  # length, place and text of the longest docstring


async def campaign(files: list[Path], backends: list[Any], summaries: int) -> dict[str, Any]:
    """Analyse ``files``; have so many docstrings summarised, if a backend can do that."""
    async with await WorkflowEngine.create(backends) as flow:

        @flow.function_task(backend="here")
        def read(path: Path) -> str:
            return path.read_text(encoding="utf-8")

        @flow.function_task(backend="cluster")
        def analyse(path: Path, text: str) -> Analysis:
            found = Analysis(files=1, lines=len(text.splitlines()))
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, DOCUMENTED):
                    found.definitions += 1
                    doc = ast.get_docstring(node) or ""
                    found.documented += bool(doc)
                    found.words += len(doc.split())
                    place = f"{path}: {getattr(node, 'name', 'the module')}"
                    found.longest = max(found.longest, (len(doc), place, doc))
            return found

        @flow.function_task(backend="here")
        def total(parts: list[Analysis]) -> Analysis:
            whole = Analysis()
            for part in parts:
                whole.files += part.files
                whole.lines += part.lines
                whole.definitions += part.definitions
                whole.documented += part.documented
                whole.words += part.words
                whole.longest = max(whole.longest, part.longest)
            return whole

        @flow.function_task(backend="here")
        def longest(parts: list[Analysis]) -> list[tuple[int, str, str]]:
            ranked = sorted((part.longest for part in parts), reverse=True)
            return [each for each in ranked[:summaries] if each[0]]

        # Futures as arguments: each task begins when the results that it needs are there.
        parts = [analyse(path, read(path)) for path in files]
        whole, chosen = total(parts), longest(parts)

        told = {}
        if len(backends) == 3:

            @flow.prompt_task(backend="models")
            async def summarise(place: str, doc: str, task_description: Any = SHORT) -> str:
                return f"Say in one short sentence what {place} is for:\n\n{doc}"

            docs = {place: doc for _, place, doc in await chosen}
            answers = await asyncio.gather(*map(summarise, docs, docs.values()))
            told = dict(zip(docs, answers, strict=True))

        result = asdict(await whole)
        result["longest"] = result["longest"][1]
        return {**result, "summaries": told}


def main() -> int:
    """Run the campaign from the command line and return the exit code."""
    default = Path(sysconfig.get_paths()["stdlib"], "json")
    parser = argparse.ArgumentParser(description="Analyse Python files on several backends.")
    parser.add_argument("directory", nargs="?", type=Path, default=default)
    parser.add_argument("--json", type=Path, default="campaign.json", help="file to write")
    parser.add_argument("--scheduler", help="address of a Dask scheduler (default: own workers)")
    parser.add_argument("--base-url", default=os.environ.get("OPENAI_BASE_URL"))
    parser.add_argument("--model", default=os.environ.get("OPENAI_MODEL", "Qwen/Qwen3-8B"))
    parser.add_argument("--summaries", type=int, default=3, help="how many (default: 3)")
    args = parser.parse_args()
    files = sorted(args.directory.rglob("*.py"))
    if not files:
        parser.error(f"no *.py below {args.directory}")

    workers = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    backends: list[Any] = [
        RuntimeExecutionBackend(name="here"),
        DaskExecutionBackend(args.scheduler or workers, name="cluster"),
    ]
    if args.base_url:
        backends.append(OpenAIBackend(args.base_url, args.model, name="models"))
    else:
        print("no summaries: give --base-url, as docs/prompts.md tells", file=sys.stderr)

    result = asyncio.run(campaign(files, backends, args.summaries))
    args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print("{files} files, {lines:,} lines, {words:,} words of documentation".format(**result))
    print("{documented} of {definitions} definitions have a docstring".format(**result))
    for place, summary in result["summaries"].items():
        print(f"{place}: {summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
