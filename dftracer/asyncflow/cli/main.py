"""The command line: ``dftracer-flow --help``, or ``python -m dftracer.asyncflow --help``.

Each command is a function that adds its parser, in ``COMMANDS``, and one that does the work and
returns the exit code: 0, 1 if it has failed, 2 if it was asked wrongly, 130 if it was interrupted.
The work itself is done elsewhere; with seven commands this is a little longer than most modules.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftracer.asyncflow import environment
from dftracer.asyncflow.observe.graph.formats import writer_for
from dftracer.asyncflow.observe.graph.model import WorkflowGraph
from dftracer.utils.primitives import __version__
from dftracer.utils.progress import status
from dftracer.utils.tracing import ENVIRONMENT as TRACE

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

NAME = "dftracer-flow"

INTERRUPTED = 130

_LOOK_INTERVAL_S = 0.5


# --- run and graph --------------------------------------------------------------------------------


def _add_run(commands: Commands) -> None:
    parser = commands.add_parser(
        "run",
        help="run a script, with other defaults for its engines",
        description="Run a script as 'python SCRIPT ARGUMENTS' does, in this process. What is said "
        "here holds for engines and runtimes of the script that do not say it themselves.",
    )
    parser.add_argument(
        "--threads",
        type=_positive,
        metavar="N",
        help="threads of runtimes, or workers of the backend (default: as many CPUs as there are)",
    )
    parser.add_argument("--backend", type=_backend, help=environment.BACKENDS)
    trace = "write a trace: FILE.pfw.gz, or a directory"
    _add_file(parser, "--trace", metavar="PATH", help=trace)
    graph = "draw the graph when the script ends"
    _add_file(parser, "--graph", type=_graph_file, metavar="FILE", help=graph)
    parser.add_argument("--dry-run", action="store_true", help="run no task")
    _add_script(parser)
    parser.set_defaults(act=_run)


def _add_script(parser: argparse.ArgumentParser) -> None:
    _add_file(parser, "script", type=_script, metavar="SCRIPT", help="a Python file")
    given, rest = "what the script is given", argparse.REMAINDER
    _add_file(parser, "arguments", nargs=rest, metavar="ARGUMENTS", help=given)


def _run(given: argparse.Namespace) -> int:
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
    # The script is this process from here on: its signals and its exit code are this command's.
    os.execve(sys.executable, _command(given), {**os.environ, **added})


def _command(given: argparse.Namespace) -> list[str]:
    return [sys.executable, given.script, *given.arguments]


def _add_graph(commands: Commands) -> None:
    parser = commands.add_parser(
        "graph",
        help="draw what a script would do",
        description="Run a script dry, so that no task runs and each has a dummy result, and draw "
        "the graph of its calls; of several engines, each to a file of its own.",
    )
    _add_file(
        parser,
        "-o",
        "--output",
        type=_graph_file,
        required=True,
        metavar="FILE",
        help="the file: .mmd, .dot, .svg, .png or .html",
    )
    _add_script(parser)
    parser.set_defaults(act=_graph)


def _graph(given: argparse.Namespace) -> int:
    target: Path = given.output
    with tempfile.TemporaryDirectory(prefix=".dftracer-", dir=target.parent) as folder:
        added = {environment.DRY_RUN: "1", environment.GRAPH: str(Path(folder, target.name))}
        code = subprocess.run(_command(given), env={**os.environ, **added}).returncode
        drawn = sorted(Path(folder).iterdir())
        for file in drawn:
            print(file.replace(target.parent / file.name))
    if code == -signal.SIGINT:
        return INTERRUPTED
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


# --- top ------------------------------------------------------------------------------------------


def _add_top(commands: Commands) -> None:
    parser = commands.add_parser(
        "top",
        help="watch the progress of a running process",
        description=f"Show how far the tasks of a process have come that '{NAME} run' has started, "
        f"or that has {status.ENVIRONMENT}=1 in its environment, until it ends.",
    )
    parser.add_argument(
        "pid", nargs="?", type=_positive, metavar="PID", help="default: the one that began last"
    )
    parser.add_argument("--once", action="store_true", help="show it once")
    parser.set_defaults(act=_top)


def _top(given: argparse.Namespace) -> int:
    told = status.read(given.pid) if given.pid else next(reversed(status.read_all()), None)
    if told is None:
        print(f"{NAME} top: {_reason(given.pid)}", file=sys.stderr)
        return 1
    from dftracer.utils.progress.counts import Meter
    from dftracer.utils.progress.lines import Lines
    from dftracer.utils.progress.views import make_view

    print(f"{told.pid}: {_shown(told.command)}", flush=True)
    view, meter = Lines(sys.stdout) if given.once else make_view(sys.stdout), Meter()
    shown = meter.measure(told.rows)
    drawn_at = float("-inf")
    try:
        while not given.once:
            now = time.monotonic()
            if now - drawn_at >= view.interval:
                view.draw(shown)
                drawn_at = now
            time.sleep(_LOOK_INTERVAL_S)
            later = status.read(told.pid)
            if later is None:
                break
            shown = meter.measure(later.rows)
    finally:
        view.close(shown)
    if not given.once:
        print(f"process {told.pid} has ended; this is what it told last")
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


# --- reports --------------------------------------------------------------------------------------


def _add_report(commands: Commands) -> None:
    parser = commands.add_parser("report", help="make a page of traces")
    _add_traces(parser)
    _add_file(parser, "-o", "--output", default="report.html", help="default: %(default)s")
    parser.add_argument("--title", help="default: the names of the traces")
    parser.set_defaults(act=_report)


def _add_merge(commands: Commands) -> None:
    parser = commands.add_parser("merge", help="make one trace of several, on one timeline")
    _add_traces(parser)
    kinds = ".pfw.gz or .pfw; .json or .json.gz for strict JSON"
    _add_file(parser, "-o", "--output", required=True, help=kinds)
    parser.set_defaults(act=_merge)


def _add_traces(parser: argparse.ArgumentParser) -> None:
    several = "a trace, or a directory of them"
    _add_file(parser, "traces", nargs="+", metavar="TRACE", help=several)


def _report(given: argparse.Namespace) -> int:
    from dftracer.asyncflow.observe.report import write_report

    _say_warnings()
    print(_shown(write_report(given.traces, given.output, given.title)))
    return 0


def _merge(given: argparse.Namespace) -> int:
    from dftracer.utils.tracing import merge_traces

    _say_warnings()
    print(f"{merge_traces(given.traces, given.output)} events in {_shown(given.output)}")
    return 0


def _say_warnings() -> None:
    """Write what the library warns of to the standard error, as errors are."""
    logging.basicConfig(format=f"{NAME}: %(message)s", level=logging.WARNING)


def _shown(text: object) -> str:
    """Return a text that can be printed, also if it is a name in no encoding."""
    return str(text).encode(errors="backslashreplace").decode()


# --- this machine, this shell ---------------------------------------------------------------------


def _add_doctor(commands: Commands) -> None:
    parser = commands.add_parser(
        "doctor",
        help="tell what this machine and this installation offer",
        description="Tell what there is: CPUs, memory and limits of this process, versions, and "
        "which extras are installed, why one is not, and what to do about it.",
    )
    parser.set_defaults(act=_doctor)


def _doctor(_given: argparse.Namespace) -> int:
    from dftracer.asyncflow.cli.doctor import report

    for line in report():
        print(line)
    return 0


def _add_completion(commands: Commands) -> None:
    parser = commands.add_parser(
        "completion",
        help="print what completes these commands in a shell",
        description="Print a script for a shell. For bash and zsh, in what the shell reads when it "
        f'starts: eval "$({NAME} completion bash)"',
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    parser.set_defaults(act=_completion)


def _completion(given: argparse.Namespace) -> int:
    try:
        import shtab
    except ModuleNotFoundError:
        raise ImportError(
            "completion needs 'shtab': pip install 'dftracer-asyncflow[completion]'"
        ) from None
    print(shtab.complete(make_parser(), given.shell))
    return 0


COMMANDS: Sequence[Callable[[Commands], None]] = (
    _add_run,
    _add_graph,
    _add_top,
    _add_doctor,
    _add_report,
    _add_merge,
    _add_completion,
)

# --- all of them ----------------------------------------------------------------------------------


def _add_file(parser: argparse.ArgumentParser, *names: str, **said: Any) -> None:
    """Add an argument that a shell completes with the names of files."""
    action = parser.add_argument(*names, **said)
    by_shell = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
    setattr(action, "complete", by_shell)  # noqa: B010 - where shtab looks for it


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it must be a number above 0, not {text!r}")
    return int(text)


def _backend(text: str) -> str:
    try:
        return environment.check_backend(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _graph_file(text: str) -> Path:
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


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog=NAME, description="Run, watch and draw workflows of dftracer.asyncflow."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
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
