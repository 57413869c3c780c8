"""What the environment says of engines that are made without saying it themselves.

``dftracer-flow run`` sets these variables; so may anybody else. ``docs/cli.md`` lists them all.
"""

from __future__ import annotations

import atexit
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftracer.asyncflow.backends.local.backend import LocalExecutionBackend
from dftracer.asyncflow.backends.local.pools import make_process_pool
from dftracer.asyncflow.backends.noop import NoopExecutionBackend
from dftracer.asyncflow.backends.runtime import RuntimeExecutionBackend
from dftracer.asyncflow.observe.graph.formats import writer_for
from dftracer.utils.default import threads_of_environment
from dftracer.utils.progress.status import is_asked_for, write_of_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from dftracer.asyncflow.observe.graph.model import WorkflowGraph
    from dftracer.utils.progress.counts import Row

BACKEND = "DFTRACER_BACKEND"
DRY_RUN = "DFTRACER_DRY_RUN"
GRAPH = "DFTRACER_GRAPH"

BACKENDS = "runtime, threads, processes, dask, dask:ADDRESS or noop"


def check_backend(name: str) -> str:
    """Return the name of a backend, if it is one that :func:`make_backend` knows.

    Raises
    ------
    ValueError
        If not.
    """
    kind, colon, address = name.partition(":")
    if kind not in ("runtime", "threads", "processes", "dask", "noop") or (
        colon and (kind != "dask" or not address)
    ):
        raise ValueError(f"there is no backend {name!r}: choose {BACKENDS}")
    return name


def make_backend(dry_run: bool) -> Any:
    """Return the backend of an engine that is given none: what ``DFTRACER_BACKEND`` says.

    In a dry run it is one that needs nothing.

    Raises
    ------
    ValueError
        If there is no such backend.
    ImportError
        If its extra is not installed.
    """
    name = os.environ.get(BACKEND) or "runtime"
    try:
        kind, _, address = check_backend(name).partition(":")
    except ValueError as error:
        raise ValueError(f"{BACKEND} in the environment: {error}") from None
    workers = threads_of_environment() or None
    if kind == "noop" or dry_run:
        return NoopExecutionBackend()
    if kind == "threads":
        return LocalExecutionBackend(ThreadPoolExecutor(workers))
    if kind == "processes":
        return LocalExecutionBackend(make_process_pool(workers))
    if kind == "dask":
        try:
            from dftracer.asyncflow.backends.dask.backend import DaskExecutionBackend
        except ModuleNotFoundError as error:
            raise ImportError(
                f"{BACKEND}={name} needs {error.name!r}: pip install 'dftracer-asyncflow[dask]'"
            ) from None
        own = {"n_workers": workers} if workers else None
        return DaskExecutionBackend(address or own, name="default")
    return RuntimeExecutionBackend()


def is_dry_run() -> bool:
    """Return whether ``DFTRACER_DRY_RUN`` asks every engine to run nothing."""
    return os.environ.get(DRY_RUN, "") not in ("", "0")


# --- engines that are looked at from elsewhere ----------------------------------------------------


def register(rows: Callable[[], list[Row]], graph: Callable[[], WorkflowGraph]) -> None:
    """Let an engine show its ``rows`` of tasks, and its graph at the end, if the environment asks.

    Raises
    ------
    ValueError
        If no graph can be saved to a file of the name that ``DFTRACER_GRAPH`` gives.
    """
    if is_asked_for():
        write_of_engine(rows)
    global _drawings
    path = os.environ.get(GRAPH)
    if path:
        try:
            writer_for(Path(path))
        except ValueError as error:
            raise ValueError(f"{GRAPH} in the environment: {error}") from None
        # Programs that this one starts shall not write there, too.
        del os.environ[GRAPH]
        _drawings = []
        atexit.register(_draw, Path(path).absolute(), _drawings)
    if _drawings is not None:
        _drawings.append(graph)


_drawings: list[Callable[[], WorkflowGraph]] | None = None
"""What returns the graphs that are saved when the interpreter exits."""


def _draw(first: Path, graphs: list[Callable[[], WorkflowGraph]]) -> None:
    if _drawings is not graphs:
        return  # in the child of a fork
    for number, graph in enumerate(graphs, 1):
        path = first if number == 1 else first.with_stem(f"{first.stem}-{number}")
        try:
            graph().save(path)
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{GRAPH}: the graph was not saved: {error}", file=sys.stderr)
            return


def _forget_in_child() -> None:
    global _drawings
    _drawings = None


os.register_at_fork(after_in_child=_forget_in_child)
