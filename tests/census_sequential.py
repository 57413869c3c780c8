"""The census of ``examples/census.py`` as a plain sequential script, to compare with.

``python census_sequential.py DIRECTORY`` prints one JSON object on stdout::

    {"total": COUNTS, "packages": {NAME: COUNTS}}

COUNTS holds ``files``, ``functions``, ``async_functions`` and ``classes`` (numbers of each),
``lines`` (physical lines of the files that parse), ``bytes`` (sizes of the files that can be
opened), ``longest`` (``{"file", "line", "lines", "name"}`` or null) and ``failed``
(``{file: error}``).  Files are relative to DIRECTORY, with ``/`` between the parts.

It uses the standard library only, and shares no code with the example.
"""

from __future__ import annotations

import ast
import json
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

SKIPPED = ("__pycache__", "site-packages", "dist-packages")


def python_files(directory: str, prefix: str = "") -> list[str]:
    """List the ``*.py`` files below ``directory``, relative to it; links to folders are left out.

    A link to nothing is a file; a pipe, a socket or a device is not.
    """
    found: list[str] = []
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in SKIPPED:
                found.extend(python_files(entry.path, f"{prefix}{entry.name}/"))
        elif entry.name.endswith(".py") and (
            os.path.isfile(entry.path) or not os.path.exists(entry.path)
        ):
            found.append(prefix + entry.name)
    return found


def physical_lines(source: bytes) -> int:
    """Count the lines of ``source``, which end with CR LF, LF or CR; the last needs no end."""
    text = source.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return text.count(b"\n") + (1 if text and not text.endswith(b"\n") else 0)


def definitions(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every ``class``, ``def`` and ``async def`` statement of ``tree``, at any depth."""
    pending = [tree]
    while pending:
        node = pending.pop()
        pending.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def count_file(root: str, file: str) -> dict[str, Any]:
    """Return the counts of one file, with the list of its functions in place of the longest."""
    kinds: list[str] = []
    functions: list[dict[str, Any]] = []
    row: dict[str, Any] = {"file": file, "lines": 0, "bytes": 0, "error": None}
    row |= {"kinds": kinds, "functions": functions}
    try:
        with open(os.path.join(root, file), "rb") as stream:
            row["bytes"] = os.fstat(stream.fileno()).st_size
            source = stream.read()
        tree = ast.parse(source, filename=file)
    except Exception as error:  # whatever is wrong with a file, the others still count
        row["error"] = f"{type(error).__name__}: {error}"
        return row
    row["lines"] = physical_lines(source)
    for node in definitions(tree):
        kinds.append(type(node).__name__)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = 1 + node.end_lineno - node.lineno
            place = {"file": file, "line": node.lineno, "lines": length, "name": node.name}
            functions.append(place)
    return row


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the COUNTS of the files in ``rows``."""
    kinds = [kind for row in rows for kind in row["kinds"]]
    functions = [function for row in rows for function in row["functions"]]
    functions.sort(key=lambda function: (function["file"], function["line"]))
    functions.sort(key=lambda function: function["lines"], reverse=True)  # keeps ties in order
    return {
        "files": len(rows),
        "lines": sum(row["lines"] for row in rows),
        "functions": kinds.count("FunctionDef"),
        "async_functions": kinds.count("AsyncFunctionDef"),
        "classes": kinds.count("ClassDef"),
        "bytes": sum(row["bytes"] for row in rows),
        "longest": functions[0] if functions else None,
        "failed": {row["file"]: row["error"] for row in rows if row["error"] is not None},
    }


def census(root: str) -> dict[str, Any]:
    """Count every file below ``root``, and add the counts up by package and over all."""
    packages: dict[str, list[dict[str, Any]]] = {}
    for file in python_files(root):
        first, slash, _ = file.partition("/")
        packages.setdefault(first if slash else "(top level)", []).append(count_file(root, file))
    return {
        "total": summed([row for rows in packages.values() for row in rows]),
        "packages": {name: summed(rows) for name, rows in packages.items()},
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    json.dump(census(os.path.abspath(sys.argv[1])), sys.stdout)
