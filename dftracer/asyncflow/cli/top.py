"""Watch the progress of a running process: ``dftracer-flow top``."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from dftracer.asyncflow.cli.arguments import positive
from dftracer.asyncflow.cli.output import NAME, printable
from dftracer.utils.progress import status

if TYPE_CHECKING:
    import argparse

    from dftracer.asyncflow.cli.arguments import Commands

_POLL_S = 0.5
"""How often the status of the process is read."""


def add(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "top",
        help="watch the progress of a running process",
        description=f"Show how far the tasks of a process have come that '{NAME} run' has started, "
        f"or that has {status.ENVIRONMENT}=1 in its environment, until it ends.",
    )
    parser.add_argument(
        "pid", nargs="?", type=positive, metavar="PID", help="default: the one that began last"
    )
    parser.add_argument("--once", action="store_true", help="show it once")
    parser.set_defaults(act=run)


def run(given: argparse.Namespace) -> int:
    """Show the counts of a process until it ends, or once."""
    found = status.read(given.pid) if given.pid else next(reversed(status.read_all()), None)
    if found is None:
        print(f"{NAME} top: {_reason(given.pid)}", file=sys.stderr)
        return 1
    from dftracer.utils.progress.counts import Meter
    from dftracer.utils.progress.lines import Lines
    from dftracer.utils.progress.views import make_view

    print(f"{found.pid}: {printable(found.command)}", flush=True)
    view, meter = Lines(sys.stdout) if given.once else make_view(sys.stdout), Meter()
    shown = meter.measure(found.rows)
    drawn_at = float("-inf")
    try:
        while not given.once:
            now = time.monotonic()
            if now - drawn_at >= view.interval:
                view.draw(shown)
                drawn_at = now
            time.sleep(_POLL_S)
            later = status.read(found.pid)
            if later is None:
                break
            shown = meter.measure(later.rows)
    finally:
        view.close(shown)
    if not given.once:
        print(f"process {found.pid} has ended; this is what it told last")
    return 0


def _reason(pid: int | None) -> str:
    """Return why there is nothing to watch."""
    remedy = f"start it with '{NAME} run', or with {status.ENVIRONMENT}=1 in its environment"
    if pid is None:
        return f"no process of yours tells of its tasks: {remedy}"
    try:
        os.kill(pid, 0)  # no signal: it only asks
        is_ours = sys.platform != "linux" or os.stat(f"/proc/{pid}").st_uid == os.getuid()
    except (ProcessLookupError, FileNotFoundError):
        return f"there is no process {pid}"
    except PermissionError:
        is_ours = False
    if not is_ours:
        return f"process {pid} belongs to another user, whom alone it tells of its tasks"
    return f"process {pid} does not tell of its tasks: {remedy}"
