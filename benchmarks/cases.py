"""One measurement: `python cases.py SIDE ROW [--quick]`, printing one line of JSON.

Started by run.py with the Python of the side's environment. The line holds `value`, `n` and
`extra`, or `absent` when the side has no case for the row.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from importlib import import_module

from catalog import find_row, find_side
from sides import Case


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Run one case on one side and print its time.")
    parser.add_argument("side")
    parser.add_argument("row")
    parser.add_argument("--quick", action="store_true", help="the small size of the row")
    options = parser.parse_args(arguments)

    row = find_row(options.row)
    cases: dict[str, Case] = import_module(find_side(options.side).module).CASES
    case = cases.get(row.case)
    if case is None:
        print(json.dumps({"absent": True}))
        return 0
    n = row.size_on(options.side, quick=options.quick)
    _allow_many_descriptors()
    watch = case(row.warm_up_for(n), n)
    value = watch.bytes if row.unit == "bytes" else watch.seconds
    if value is None:
        raise RuntimeError(f"case {row.case!r} measured no {row.unit}")
    extra = {
        "cpu_seconds": round(watch.cpu_seconds, 4),
        "peak_rss_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    print(json.dumps({"value": value, "n": n, "extra": extra}))
    return 0


def _allow_many_descriptors() -> None:
    """Programs take two pipes each, and the customary limit is 1,024 descriptors."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
