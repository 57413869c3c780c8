"""What the pages show is run as it stands there, and every link of theirs is followed."""

import ast
import asyncio
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest
from docs_support import (
    FRAMES,
    ROOT,
    Block,
    Settings,
    anchors,
    blocks,
    commands,
    is_run_by_commands,
    pages,
    programs,
    prose,
    source_of,
    text_of,
)
from prompt_server import PromptServer

import dftracer.utils

PROGRAMS = [block for page in pages() for block in programs(page) if not is_run_by_commands(block)]

RUN = ("dftracer-flow ", "python -m dftracer.asyncflow ")
NOT_RUN = (".venv/bin/", "pip ", "python3 -m venv ", "source ", "nox")
"""What a command begins with, those that install or check the project itself not being run."""
NOT_OURS = {
    "benchmarks/README.md": "takes other packages, and minutes",
    "docs/cli.md": "done by test_cli.py, which looks at what they print",
    "examples/README.md": "done by the tests of the examples",
    "docs/backends.md": "takes RADICAL-Pilot and Dragon",
}
"""Pages whose commands are not run here, and why."""

PREPARED = {
    "docs/tracing.md": "python -W error -c 'from dftracer.utils import Runtime; "
    'Runtime(trace="run.pfw.gz").submit(pow, 2, 2).get()\' && mkdir traces && cp run.pfw.gz traces/'
}
"""What has happened before the commands of a page are typed."""


@asynccontextmanager
async def dask_cluster() -> AsyncIterator[Settings]:
    """A real cluster at the place of the one that a page names."""
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    async with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=":0", asynchronous=True
    ) as cluster:
        yield {"tcp://host:8786": cluster.scheduler_address}


@asynccontextmanager
async def prompt_server() -> AsyncIterator[Settings]:
    """A server that answers prompts at the place of the one that a page names."""
    async with PromptServer() as server:
        yield {"http://localhost:8000/v1": server.url}


NEEDS = {"docs/dask.md": dask_cluster, "docs/prompts.md": prompt_server}
"""Pages whose programs need a server."""


COMMANDS = [page for page in pages() if commands(page) and page not in NOT_OURS]


def folder_for(page: str, path: Path) -> Path:
    """Where examples are run: with the files that they read."""
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, path / name)
    for block in programs(page):
        if "file" in block.marks:
            (path / block.marks["file"]).write_text(block.text, encoding="utf-8")
    return path


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
async def test_an_example_runs_when_it_is_taken_from_its_page(block: Block, tmp_path: Path) -> None:
    script = folder_for(block.page, tmp_path) / "example.py"
    need = NEEDS.get(block.page)
    async with need() if need else nullcontext({}) as settings:
        script.write_text(source_of(block, settings), encoding="utf-8")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-Werror",
            "-Wignore::UserWarning:distributed.node",  # another program has Dask's usual port
            "-Wignore:'asyncio.iscoroutinefunction' is deprecated",  # RHAPSODY on 3.14
            "-Wignore:Creating scratch directories",  # for which a busy machine takes a second
            str(script),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = (text.decode() for text in await process.communicate())
    assert process.returncode == 0, err
    assert "Traceback" not in err, err
    assert "Warning" not in err, err
    assert block.marks.get("prints", "") in out
    if block.output is not None:
        assert out.rstrip() == block.output.rstrip()


def test_the_first_example_tells_the_truth_when_it_counts_bytes(tmp_path: Path) -> None:
    script = folder_for("README.md", tmp_path) / "example.py"
    script.write_text(programs("README.md")[0].text, encoding="utf-8")
    output = subprocess.check_output([sys.executable, str(script)], cwd=tmp_path, text=True)
    sizes = [(tmp_path / name).stat().st_size for name in ("README.md", "pyproject.toml")]
    assert output == f"{sum(sizes)} bytes\n"


@pytest.mark.parametrize("page", COMMANDS)
def test_the_commands_of_a_page_run_when_they_are_typed(page: str, tmp_path: Path) -> None:
    folder = folder_for(page, tmp_path)
    (folder / "bin").mkdir()
    for name, called in (("python", ""), ("dftracer-flow", "-m dftracer.asyncflow")):
        shim = folder / "bin" / name
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} {called} "$@"\n')
        shim.chmod(0o755)
    typed = [line for line in commands(page) if not line.startswith(NOT_RUN)]
    assert [line for line in typed if not line.startswith(RUN)] == []
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-e", "-c", "\n".join([PREPARED.get(page, ":"), *typed])],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONWARNINGS": "default"},
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    for output in re.findall(r" -o (\S+)", "\n".join(typed)):
        assert (folder / output).stat().st_size > 0


@pytest.mark.parametrize("page", pages())
def test_an_extra_exists_when_a_page_says_to_install_it(page: str) -> None:
    known = metadata.metadata("dftracer-asyncflow").get_all("Provides-Extra") or []
    named = re.findall(r"(?:dftracer-asyncflow|pip install '?\.)\[([\w, -]+)\]", text_of(page))
    assert {each.strip() for names in named for each in names.split(",")} <= set(known)


@pytest.mark.parametrize("page", pages())
def test_a_link_leads_somewhere_when_it_is_in_a_page(page: str) -> None:
    broken = []
    for link in re.findall(r"\]\(([^()\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = Path(os.path.normpath((ROOT / page).parent / path)) if path else ROOT / page
        leads = target.exists() and target.is_relative_to(ROOT)
        if not leads or (anchor and anchor not in anchors(str(target.relative_to(ROOT)))):
            broken.append(link)
    assert broken == []


def test_every_public_name_is_in_the_reference_when_it_can_be_imported() -> None:
    reference = "".join(text_of(page) for page in pages() if page.startswith("docs/reference/"))
    for name in ("dftracer.asyncflow", "dftracer.utils", "dftracer.utils.dask"):
        module: Any = import_module(name)
        names = [*module.__all__, *getattr(module, "_EXTRAS", ())]
        described = set(re.findall(rf"{name}\.(\w+)$", reference, re.MULTILINE))
        assert set(names) - {"__version__"} <= described


def test_a_variable_is_in_the_reference_when_a_program_heeds_it() -> None:
    package = Path(dftracer.utils.__file__).parents[1]
    sources = [path.read_text(encoding="utf-8") for path in package.glob("*/**/*.py")]
    heeded = {name for text in sources for name in re.findall(r"\bDFTRACER_[A-Z_]+\b", text)}
    page = text_of("docs/reference/environment.md")
    ours = {"DFTRACER_TRACES_BEGUN"}  # what a process tells its children, and nobody else
    assert heeded - ours == set(re.findall(r"`(DFTRACER_[A-Z_]+)`", page))


def test_a_name_exists_when_the_guide_says_that_it_is_the_same() -> None:
    guide = text_of("docs/migration-dftracer-utils.md")
    rows = re.findall(r"^\| (.*?) \| same", guide, re.MULTILINE)
    names = re.findall(r"`([\w.]+)", " ".join(rows))
    assert len(names) > 30
    for name in names:
        module, _, last = f"dftracer.utils.{name}".rpartition(".")
        owners = (import_module(module), dftracer.utils.Runtime, dftracer.utils.TaskHandle)
        assert any(hasattr(owner, last) for owner in owners), name


def test_a_mark_is_known_when_it_is_above_a_block() -> None:
    marks = [block.marks for page in pages() for block in blocks(page)]
    known = {"continues", "within", "file", "prints", "output"}
    assert {name for each in marks for name in each} <= known
    assert {each["within"] for each in marks if "within" in each} == set(FRAMES)


def test_help_says_what_the_stub_says_when_a_name_is_public() -> None:
    stub = ast.parse(Path(dftracer.utils.__file__).with_name("_native.pyi").read_text())
    owners: list[tuple[Any, str, ast.AST]] = [
        (dftracer.utils, node.name, node)
        for node in stub.body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        and hasattr(dftracer.utils, node.name)
        and node.name != "Runtime"  # which has a class, and docstrings, of its own
    ]
    owners += [
        (getattr(dftracer.utils, node.name), member.name, member)
        for node in stub.body
        if isinstance(node, ast.ClassDef) and hasattr(dftracer.utils, node.name)
        for member in node.body
        if isinstance(member, ast.FunctionDef) and not member.name.startswith("_")
    ]
    different, count = [], 0
    for owner, name, node in owners:
        said = ast.get_docstring(node)
        if said is not None and (owner is not dftracer.utils.Runtime or name not in vars(owner)):
            count += 1
            if inspect.getdoc(getattr(owner, name)) != said:
                different.append(f"{owner.__name__}.{name}")
    assert count > 30
    assert different == []
