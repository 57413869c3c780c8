"""How our backends give a task its files: in a directory of its own, as links to where they are.

A task that declares files is staged before it runs. ``task["staging"]`` says what is put where,
``task["directory"]`` where the task runs and writes. A program runs there, since that is also its
``cwd``; a function is told the paths.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, cast

from dftracer.asyncflow.data.downloads import make_fresh_directory
from dftracer.asyncflow.errors import DataError, text_of
from dftracer.utils import Runtime, get_default_runtime

_WAYS = ("symlink", "link", "copy")


class StagesFiles:
    """Makes a backend, whose tasks see this machine's files, move them."""

    supports_explicit_data_linking = True
    _work_dir: str
    runtime: Runtime | None = None

    def link_explicit_data_deps(
        self,
        src_task: dict[str, Any] | None = None,
        dst_task: dict[str, Any] | None = None,
        file_name: str | None = None,
        file_path: str | None = None,
    ) -> dict[str, Any]:
        """Note that ``dst_task`` needs a file, which :meth:`stage_files` then brings.

        Parameters
        ----------
        src_task:
            The task that has written it; or ``None``, if it is at ``file_path``.
        dst_task:
            The task that reads it.
        file_name:
            Its name in both tasks' directories; by default that of ``file_path``.

        Returns
        -------
        dict
            ``source``, a path; ``target``, a name; ``action``, how it gets there; and ``producer``,
            the name of ``src_task``.
        """
        if dst_task is None or not (file_path or (src_task and file_name)):
            raise ValueError("name the task that reads, and either a task and a file or a path")
        options: dict[str, Any] = dst_task.get("task_backend_specific_kwargs") or {}
        if file_path:
            source = os.path.abspath(file_path)
        else:
            assert src_task is not None
            assert file_name is not None
            # A task that was not staged has written where this process is.
            source = os.path.abspath(os.path.join(src_task.get("directory", ""), file_name))
        link: dict[str, Any] = {
            "source": source,
            "target": file_name or os.path.basename(source),
            "action": options.get("staging", _WAYS[0]),
            "producer": None if file_path or src_task is None else src_task.get("name"),
        }
        dst_task.setdefault("staging", []).append(link)
        return link

    async def stage_files(self, task: dict[str, Any]) -> str:
        """Make the directory that ``task`` runs in, put its inputs there and return it.

        Raises
        ------
        DataError
            If an input is not where it should be, or cannot be put there.
        ValueError
            If the task's description asks for a way of staging that there is not.
        """
        directory: str = await asyncio.to_thread(_make_ready, task, self._work_dir)
        runtime = self.runtime or get_default_runtime()
        staged = [
            runtime.stage_file(
                link["source"],
                os.path.join(directory, link["target"]),
                how=link["action"],
                name=f"stage {link['target']}",
            )
            for link in task.get("staging", ())
        ]
        ends = await asyncio.gather(*staged, return_exceptions=True)
        for link, end in zip(task.get("staging", ()), ends, strict=True):
            if isinstance(end, FileExistsError):
                target = os.path.join(directory, link["target"])
                if await asyncio.to_thread(_is_same, link["source"], target):
                    continue  # another task that runs in that directory has the same input
            if isinstance(end, OSError):
                raise DataError(
                    f"task '{task['name']}': cannot {link['action']} its input file "
                    f"'{link['target']}' from {link['source']} to {directory}: {end.strerror}: "
                    "choose another 'staging' or 'cwd' in its task_description"
                ) from end
            if isinstance(end, BaseException):
                raise end
        task["directory"] = directory
        options = task["task_backend_specific_kwargs"]
        options.pop("staging", None)
        options.pop("cwd", None)
        if task["function"] is None:
            options["cwd"] = directory
        return directory

    async def check_outputs(self, task: dict[str, Any]) -> None:
        """Raise :class:`DataError` if ``task`` has not written what it declares to write."""
        await asyncio.to_thread(_check_outputs, task)


def _make_ready(task: dict[str, Any], work_dir: str) -> str:
    """Return the task's directory, made if it is the task's own, once its inputs can be staged."""
    options = task["task_backend_specific_kwargs"]
    way = options.get("staging", _WAYS[0])
    if way not in _WAYS:
        raise ValueError(
            f"task '{task['name']}': 'staging' in its task_description must be one of "
            f"{', '.join(map(repr, _WAYS))}, not {text_of(way)}"
        )
    outputs = task["metadata"]["output_files"]
    for link in task.get("staging", ()):
        name, source, producer = link["target"], link["source"], link["producer"]
        if not os.path.exists(source):
            raise DataError(
                f"task '{task['name']}': its input file '{name}' is not at {source}, "
                + (
                    f"where task '{producer}' was to write it"
                    if producer
                    else f"and none of the tasks it is called with declares OutputFile('{name}')"
                )
            )
        if name in outputs and way != "copy":
            raise DataError(
                f"task '{task['name']}' reads and writes '{name}', and would write to {source}: "
                'give the output another name, or "staging": "copy" in its task_description'
            )
        if way == "link":
            link["source"] = os.path.realpath(source)  # not a second name of a symbolic link
    cwd = options.get("cwd")
    if cwd is None:
        return make_fresh_directory(os.path.join(os.path.abspath(work_dir), task["uid"]))
    if not os.path.isdir(cwd):
        raise DataError(f"task '{task['name']}': its 'cwd' is no directory: {cwd}")
    return os.path.abspath(os.fsdecode(cwd))


def _is_same(source: str, target: str) -> bool:
    try:
        return os.path.samefile(source, target)
    except OSError:
        return False


def _check_outputs(task: dict[str, Any]) -> None:
    for name in task["metadata"]["output_files"]:
        path = cast("str", os.path.join(task["directory"], name))
        if os.path.exists(path):
            continue
        astray = (
            f"; there is one in this process's directory, {os.getcwd()}: write to the 'filepath' "
            "of the OutputFile that the function gets"
            if os.path.exists(name)
            else ""
        )
        raise DataError(
            f"task '{task['name']}' ended well without its output file '{name}': {path}{astray}"
        )
