"""The command line: ``dftracer-flow --help``, or ``python -m dftracer.asyncflow --help``.

Each command is a module here, with a function ``add`` that adds its parser, and one that does the
work and returns the exit code: 0, 1 if it has failed, 2 if it was asked wrongly. An interrupt makes
it 130.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from dftracer.asyncflow.cli import completion, doctor, graph, merge, report, run, top
from dftracer.asyncflow.cli.output import NAME
from dftracer.utils.primitives import __version__

COMMANDS = (run, graph, top, doctor, report, merge, completion)

INTERRUPTED = 130


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog=NAME, description="Run, watch and draw workflows of dftracer.asyncflow."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code."""
    given = make_parser().parse_args(arguments)
    try:
        code: int = given.act(given)
        if sys.stdout is not None:  # it may be closed
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read has had enough
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 1
    return code
