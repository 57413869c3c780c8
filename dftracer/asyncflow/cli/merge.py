"""Make one trace of several: ``dftracer-flow merge``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dftracer.asyncflow.cli.arguments import add_file, add_traces
from dftracer.asyncflow.cli.output import print_warnings, printable

if TYPE_CHECKING:
    import argparse

    from dftracer.asyncflow.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser("merge", help="make one trace of several, on one timeline")
    add_traces(parser)
    kinds = ".pfw.gz or .pfw; .json or .json.gz for strict JSON"
    add_file(parser, "-o", "--output", required=True, help=kinds)
    parser.set_defaults(act=run)


def run(given: argparse.Namespace) -> int:
    """Write the trace; files that are none are named, and it fails if all are."""
    from dftracer.utils.tracing import merge_traces

    print_warnings()
    print(f"{merge_traces(given.traces, given.output)} events in {printable(given.output)}")
    return 0
