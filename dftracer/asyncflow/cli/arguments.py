"""What the command line's arguments may be: files, scripts, numbers."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftracer.asyncflow.observe.graph.formats import writer_for
from dftracer.asyncflow.observe.graph.model import WorkflowGraph

if TYPE_CHECKING:
    # It has no public name.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]
    """What a command adds its parser to."""


def add_file(parser: argparse.ArgumentParser, *names: str, **options: Any) -> None:
    """Add an argument that a shell completes with the names of files."""
    action = parser.add_argument(*names, **options)
    by_shell = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
    setattr(action, "complete", by_shell)  # noqa: B010 - where shtab looks for it


def add_script(parser: argparse.ArgumentParser) -> None:
    """Add a script, and the arguments that are the script's own."""
    add_file(parser, "script", type=_script, metavar="SCRIPT", help="a Python file")
    given, rest = "what the script is given", argparse.REMAINDER
    add_file(parser, "arguments", nargs=rest, metavar="ARGUMENTS", help=given)


def add_traces(parser: argparse.ArgumentParser) -> None:
    """Add the traces to read."""
    several = "a trace, or a directory of them"
    add_file(parser, "traces", nargs="+", metavar="TRACE", help=several)


def script_command(given: argparse.Namespace) -> list[str]:
    """Return the words that run the script of :func:`add_script`."""
    return [sys.executable, given.script, *given.arguments]


def positive(text: str) -> int:
    """Read a number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it must be a number above 0, not {text!r}")
    return int(text)


def graph_file(text: str) -> Path:
    """Read the name of a file that a graph can be drawn to, here and now."""
    path = Path(text).absolute()
    try:
        # An empty one, to know it before the script has run for hours.
        writer_for(path)(WorkflowGraph("", (), (), is_folded=False))
    except (ImportError, RuntimeError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory {str(path.parent)!r}")
    return path


def _script(text: str) -> str:
    if not os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return text
