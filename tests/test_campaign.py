"""The campaign example, run as a program and compared with what regular expressions count."""

import ast
import asyncio
import inspect
import json
import os
import re
import sys
import sysconfig
import tokenize
from pathlib import Path
from typing import Any

import pytest
from prompt_server import PromptServer

distributed = pytest.importorskip("distributed", reason="distributed is not installed")
pytest.importorskip("openai", reason="openai is not installed")

CAMPAIGN = Path(__file__).resolve().parents[1] / "examples" / "campaign.py"
PACKAGE = Path(sysconfig.get_paths()["stdlib"], "json")


async def campaign(output: Path, *arguments: str) -> tuple[dict[str, Any], str, str]:
    """Run the example; return what it wrote, and both of its streams."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI_")}
    environ["PYTHONWARNINGS"] = "ignore:Creating scratch directories"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(CAMPAIGN), str(PACKAGE), "--json", str(output), *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environ,
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, err.decode()
    # On a busy machine Dask complains of how long things take.
    said = [line for line in err.decode().splitlines() if " - distributed." not in line]
    return json.loads(output.read_text(encoding="utf-8")), out.decode(), "\n".join(said)


def expected() -> tuple[dict[str, int], dict[str, str]]:
    """Count by tokens, not by syntax trees: the numbers, and the longest docstring of each file."""
    counts = dict.fromkeys(("files", "lines", "definitions", "documented", "words"), 0)
    longest = {}
    for path in PACKAGE.rglob("*.py"):
        counts["files"] += 1
        counts["lines"] += len(path.read_bytes().splitlines())
        docs = docstrings(path)
        counts["definitions"] += len(docs)
        counts["documented"] += sum(map(bool, docs))
        counts["words"] += sum(len(doc.split()) for doc in docs)
        longest[str(path)] = max(docs, key=len)
    return counts, longest


def docstrings(path: Path) -> list[str]:
    """Return the docstrings of the module and of each ``class`` and ``def``, or ``""`` for none."""
    skipped = {tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.ENCODING}
    docs: list[str] = []
    is_next, is_head, depth = True, False, 0
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if is_next and token.type not in skipped:
                is_doc = token.type == tokenize.STRING
                docs.append(inspect.cleandoc(ast.literal_eval(token.string)) if is_doc else "")
                is_next = False
            if token.type == tokenize.NAME and token.string in ("def", "class"):
                is_head = True
            elif token.type == tokenize.OP:
                depth += (token.string in "([{") - (token.string in ")]}")
                if is_head and token.string == ":" and not depth:
                    is_head, is_next = False, True
    return docs


async def test_the_totals_are_those_of_a_plain_count_when_prompts_are_answered(
    tmp_path: Path,
) -> None:
    counts, longest = expected()
    async with PromptServer() as server:
        result, out, err = await campaign(tmp_path / "out.json", "--base-url", server.url)
    assert err == ""
    assert {key: result[key] for key in counts} == counts
    assert f"{counts['documented']} of {counts['definitions']} definitions" in out

    ranked = sorted(longest.items(), key=lambda item: (len(item[1]), item[0]), reverse=True)[:3]
    assert result["longest"].startswith(f"{ranked[0][0]}: ")
    asked = {request.body["messages"][-1]["content"] for request in server.requests}
    assert len(asked) == len(server.requests) == len(result["summaries"]) == 3
    for path, doc in ranked:
        [(place, summary)] = [item for item in result["summaries"].items() if path in item[0]]
        prompt = f"Say in one short sentence what {place} is for:\n\n{doc}"
        assert prompt in asked
        assert summary == f"answer to {prompt}"
        assert f"{place}: {summary}" in out


async def test_the_rest_is_done_when_there_is_no_server_for_prompts(tmp_path: Path) -> None:
    result, _, err = await campaign(tmp_path / "out.json")
    assert err == "no summaries: give --base-url, as docs/prompts.md tells"
    counts, _ = expected()
    assert {key: result[key] for key in counts} == counts
    assert result["summaries"] == {}


async def test_the_program_of_the_page_says_the_same_when_it_is_moved(tmp_path: Path) -> None:
    page = Path(__file__).parents[1] / "docs" / "cluster.md"
    [program] = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    script = tmp_path / "program.py"
    script.write_text(program, encoding="utf-8")
    async with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=":0", asynchronous=True
    ) as cluster:
        for address in ("", cluster.scheduler_address):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(script)),
                env={**os.environ, "SCHEDULER": address},
                stdout=asyncio.subprocess.PIPE,
            )
            out, _ = await process.communicate()
            assert (process.returncode, out) == (0, b"sum 4950, hosts 1\n")
