"""Make a page of traces: ``dftracer-flow report``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dftracer.asyncflow.cli.arguments import add_file, add_traces
from dftracer.asyncflow.cli.output import print_warnings, printable

if TYPE_CHECKING:
    import argparse

    from dftracer.asyncflow.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser("report", help="make a page of traces")
    add_traces(parser)
    add_file(parser, "-o", "--output", default="report.html", help="default: %(default)s")
    parser.add_argument("--title", help="default: the names of the traces")
    parser.set_defaults(act=run)


def run(given: argparse.Namespace) -> int:
    """Write the page."""
    from dftracer.asyncflow.observe.report import write_report

    print_warnings()
    print(printable(write_report(given.traces, given.output, given.title)))
    return 0
