"""Run a script with other defaults for its engines: ``dftracer-flow run``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from dftracer.asyncflow import environment
from dftracer.asyncflow.cli.arguments import (
    add_file,
    add_script,
    graph_file,
    positive,
    script_command,
)
from dftracer.utils.progress import status
from dftracer.utils.tracing import ENVIRONMENT as TRACE

if TYPE_CHECKING:
    from dftracer.asyncflow.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "run",
        help="run a script, with other defaults for its engines",
        description="Run a script as 'python SCRIPT ARGUMENTS' does, in this process. What is said "
        "here holds for engines and runtimes of the script that do not say it themselves.",
    )
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="threads of runtimes, or workers of the backend (default: as many CPUs as there are)",
    )
    parser.add_argument("--backend", type=_backend, help=environment.BACKENDS)
    trace = "write a trace: FILE.pfw.gz, or a directory"
    add_file(parser, "--trace", metavar="PATH", help=trace)
    graph = "draw the graph when the script ends"
    add_file(parser, "--graph", type=graph_file, metavar="FILE", help=graph)
    parser.add_argument("--dry-run", action="store_true", help="run no task")
    add_script(parser)
    parser.set_defaults(act=run)


def _backend(text: str) -> str:
    try:
        return environment.check_backend(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(given: argparse.Namespace) -> int:
    """Become the script: its signals and its exit code are this command's from here on."""
    added = {status.ENVIRONMENT: os.environ.get(status.ENVIRONMENT) or "1"}
    if given.threads is not None:
        added["DFTRACER_THREADS"] = str(given.threads)
    if given.backend is not None:
        added[environment.BACKEND] = given.backend
    if given.trace is not None:
        # The script may go to another directory before it makes an engine.
        directory = os.sep if given.trace.endswith(os.sep) else ""
        added[TRACE] = os.path.abspath(given.trace) + directory
    if given.graph is not None:
        added[environment.GRAPH] = str(given.graph)
    if given.dry_run:
        added[environment.DRY_RUN] = "1"
    os.execve(sys.executable, script_command(given), {**os.environ, **added})
