"""Draw what a script would do: ``dftracer-flow graph``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from dftracer.asyncflow import environment
from dftracer.asyncflow.cli.arguments import add_file, add_script, graph_file, script_command
from dftracer.asyncflow.cli.output import NAME

if TYPE_CHECKING:
    import argparse

    from dftracer.asyncflow.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "graph",
        help="draw what a script would do",
        description="Run a script dry, so that no task runs and each has a dummy result, and draw "
        "the graph of its calls; of several engines, each to a file of its own.",
    )
    add_file(
        parser,
        "-o",
        "--output",
        type=graph_file,
        required=True,
        metavar="FILE",
        help="the file: .mmd, .dot, .svg, .png or .html",
    )
    add_script(parser)
    parser.set_defaults(act=run)


def run(given: argparse.Namespace) -> int:
    """Run the script dry in a process of its own, and put its graphs where they belong.

    An interrupt is raised as one, whoever of the two processes was interrupted.
    """
    target: Path = given.output
    with tempfile.TemporaryDirectory(prefix=".dftracer-", dir=target.parent) as folder:
        added = {environment.DRY_RUN: "1", environment.GRAPH: str(Path(folder, target.name))}
        code = subprocess.run(script_command(given), env={**os.environ, **added}).returncode
        drawn = sorted(Path(folder).iterdir())
        for file in drawn:
            print(file.replace(target.parent / file.name))
    if code == -signal.SIGINT:
        raise KeyboardInterrupt
    if code:
        graph = "its graph goes as far as it came" if drawn else "there is no graph"
        print(
            f"{NAME} graph: {given.script} has failed, maybe because of a dummy result; {graph}",
            file=sys.stderr,
        )
    elif not drawn:
        print(
            f"{NAME} graph: there is no graph: {given.script} made no engine, or see above",
            file=sys.stderr,
        )
    return 0 if drawn and not code else 1
