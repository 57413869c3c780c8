"""Programs for radical.asyncflow, of which nothing is changed but where they import from.

Each tells in a comment at its end what it prints. That is what radical.asyncflow 0.6.0 makes of it,
so `python tests/compatibility/quickstart.py` prints it too where that is installed.
"""

import asyncio
import importlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dftracer.asyncflow import LocalExecutionBackend, RuntimeExecutionBackend, WorkflowEngine

PROGRAMS = sorted(Path(__file__).with_name("compatibility").glob("*.py"))
GUIDE = (Path(__file__).parents[1] / "docs" / "migration.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_the_output_is_the_same_when_a_program_imports_from_here(
    path: Path, run_script: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source, _, expected = path.read_text(encoding="utf-8").partition("\n# Output:\n")
    assert "from radical.asyncflow" in source
    # Without a handler for logs, what shutdown() cancels is said on standard error.
    stderr = None if "flow.shutdown()" in source else ""
    own = source.replace("radical.asyncflow", "dftracer.asyncflow")
    options = ("-W", "ignore:'asyncio.iscoroutinefunction' is deprecated")  # RHAPSODY on 3.14
    output = run_script(own, options=options, stderr=stderr)
    assert output.splitlines() == [line[2:] for line in expected.splitlines()]
    assert os.listdir(tmp_path) == ["script.py"]


def test_there_are_programs_when_these_tests_run() -> None:
    assert len(PROGRAMS) > 10


# --- what the guide says --------------------------------------------------------------------------


def test_one_line_is_another_when_the_program_of_the_guide_is_moved(
    run_script: Callable[..., str],
) -> None:
    (diff,) = re.findall(r"```diff\n(.*?)```", GUIDE, re.DOTALL)
    lines = diff.splitlines()
    assert [line[0] for line in lines if line[:1] in ("-", "+")] == ["-", "+"]
    moved = "\n".join(line[1:] for line in lines if not line.startswith("-"))
    output = run_script(moved)
    assert output.startswith("together: ")
    assert f"`{output.strip()}`" in GUIDE


def names_in(heading: str) -> list[str]:
    """The names of which a part of the guide says that they are the same here."""
    _, _, part = GUIDE.partition(f"\n### {heading}\n")
    rows = re.findall(r"^\| (.*?) \| same", part.partition("\n### ")[0], re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`(.*?)`", row)]
    assert names
    return names


def test_names_are_there_when_the_guide_says_so_of_modules() -> None:
    for name in names_in("Modules"):
        module, _, attribute = f"dftracer.asyncflow.{name}".rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


async def test_names_are_there_when_the_guide_says_so_of_objects() -> None:
    async def body() -> None: ...

    async with await WorkflowEngine.create() as flow:
        task, block = flow.function_task(body)(), flow.block(body)()
        await asyncio.gather(task, block)
        description: Any = {**task.task, **block.block}
        missing = [name for name in names_in("An engine") if not hasattr(flow, name)]
        missing += [
            name
            for name in names_in("What a call returns")
            if not (hasattr(task, name) or hasattr(block, name) or name in description)
            and name != "asyncio.Future"
        ]
        for backend in (RuntimeExecutionBackend(), LocalExecutionBackend()):
            missing += [name for name in names_in("A backend") if not hasattr(backend, name)]
    assert missing == []
