"""What happens to the files of a task between its call and its launch.

A backend that can bring files learns where each input comes from; remote inputs are downloaded; and
the body of the task gets files that know where they are.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from dftracer.asyncflow.backends.noop import NoopExecutionBackend
from dftracer.asyncflow.data import File, InputFile
from dftracer.asyncflow.data.downloads import Downloads
from dftracer.asyncflow.errors import DataError

Task = dict[str, Any]


def links_implicitly(backend: Any) -> bool:
    """Tell whether a backend wants to know what a task depends on if no file is declared."""
    return bool(getattr(backend, "supports_implicit_data_linking", False))


async def link(
    task: Task,
    files: Collection[File],
    producers: Sequence[Task],
    backend: Any,
    implicit_data: bool,
    downloads: Downloads,
) -> dict[File, File]:
    """Prepare the files of a task that is about to be launched.

    Parameters
    ----------
    files:
        What its call declares.
    producers:
        The descriptions of what it depends on, all of which have ended well.
    implicit_data:
        Whether to link what no file is declared for, on a backend that can.

    Returns
    -------
    dict
        What the body gets in place of the declared files.

    Raises
    ------
    DataError
        If an input cannot be had, or it is not clear which of two files is meant.
    """
    if isinstance(backend, NoopExecutionBackend):
        return {}
    if implicit_data and links_implicitly(backend):
        for producer in producers:
            if not producer["metadata"].get("output_files"):
                await _call(backend.link_implicit_data_deps, producer, task)

    inputs = _by_name(task, files)
    sources = _sources(task, inputs, producers)
    elsewhere = {name: file for name, file in inputs.items() if name not in sources}
    paths = await _fetch(task, elsewhere, backend._work_dir, downloads)
    if getattr(backend, "supports_explicit_data_linking", False):
        for name, producer in sources.items():
            await _call(
                backend.link_explicit_data_deps, src_task=producer, dst_task=task, file_name=name
            )
        for name, path in paths.items():
            await _call(
                backend.link_explicit_data_deps,
                src_task=None,
                dst_task=task,
                file_name=name,
                file_path=path,
            )
    directory = None
    if hasattr(backend, "stage_files") and files:
        directory = await backend.stage_files(task)
    return {file: _placed(file, directory, paths) for file in files}


def _by_name(task: Task, files: Collection[File]) -> dict[str, InputFile]:
    """Return the inputs by their names, of which none may stand for two files."""
    named: dict[str, InputFile] = {}
    for file in files:
        if isinstance(file, InputFile):
            other = named.setdefault(file.filename, file)
            if _origin(other) != _origin(file):
                raise DataError(
                    f"task '{task['name']}' has two input files named '{file.filename}': "
                    f"{_origin(other)} and {_origin(file)}: give one of them another name"
                )
    return named


def _origin(file: InputFile) -> str:
    return file.remote_url or os.fspath(file)


def _sources(
    task: Task, inputs: dict[str, InputFile], producers: Sequence[Task]
) -> dict[str, Task]:
    """Return which task has written which input."""
    sources: dict[str, Task] = {}
    for producer in producers:
        for name in producer["metadata"].get("output_files", ()):
            if name not in inputs:
                continue
            url = inputs[name].remote_url
            if url or sources.setdefault(name, producer) is not producer:
                other = url or f"task '{sources[name]['name']}'"
                raise DataError(
                    f"task '{task['name']}': its input file '{name}' comes from {other} and from "
                    f"task '{producer['name']}': give one of them another name"
                )
    return sources


async def _fetch(
    task: Task, inputs: dict[str, InputFile], directory: str, downloads: Downloads
) -> dict[str, str]:
    """Return the path of each input, having downloaded those that are remote."""
    paths = {name: os.fspath(file) for name, file in inputs.items()}
    urls = {name: file.remote_url for name, file in inputs.items() if file.remote_url}
    fetching = [downloads.fetch(url, directory) for url in urls.values()]
    ends = await asyncio.gather(*fetching, return_exceptions=True)
    for name, end in zip(urls, ends, strict=True):
        if isinstance(end, DataError):
            raise DataError(f"task '{task['name']}': {end}") from end
        if isinstance(end, BaseException):
            raise end
        paths[name] = os.fspath(end)
    return paths


def _placed(file: File, directory: str | None, paths: dict[str, str]) -> File:
    """Return a copy of ``file`` that knows where the task finds it."""
    placed = copy.copy(file)
    if directory is not None:
        placed.filepath = Path(directory, file.filename)
    elif isinstance(file, InputFile) and file.remote_url:
        placed.filepath = Path(paths[file.filename])
    return placed


async def _call(hook: Any, *args: Any, **kwargs: Any) -> None:
    answer = hook(*args, **kwargs)
    if inspect.isawaitable(answer):
        await answer
