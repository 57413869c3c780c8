"""The command line: ``python -m dftracer.asyncflow --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dftracer.asyncflow")
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="make a page of traces")
    report.add_argument(
        "traces", nargs="+", metavar="TRACE", help="a trace, or a directory of them"
    )
    report.add_argument("-o", "--output", default="report.html", help="default: %(default)s")
    report.add_argument("--title", help="default: the names of the traces")
    merge = commands.add_parser("merge", help="make one trace of several, on one timeline")
    merge.add_argument("traces", nargs="+", metavar="TRACE", help="a trace, or a directory of them")
    merge.add_argument(
        "-o", "--output", required=True, help=".pfw.gz or .pfw; .json or .json.gz for strict JSON"
    )
    given = parser.parse_args(arguments)
    try:
        if given.command == "report":
            from dftracer.asyncflow.report import write_report

            print(write_report(given.traces, given.output, given.title))
        else:
            from dftracer.utils.tracing import merge_traces

            print(f"{merge_traces(given.traces, given.output)} events in {given.output}")
    except (ImportError, OSError, ValueError) as error:
        print(f"{parser.prog} {given.command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
