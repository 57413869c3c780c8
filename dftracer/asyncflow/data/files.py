"""The files that tasks read and write, as their calls declare them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from dftracer.asyncflow.data.downloads import download, name_in

URL_SCHEMES = frozenset(
    {"http", "https", "ftp", "ftps", "sftp", "file", "data", "s3", "azure", "r2", "gs"}
)
"""What makes a string a URL: the part before its first colon."""


class File:
    """A file by its name and its place.

    It stands for its path wherever Python takes one, such as in ``open(file)``.

    Attributes
    ----------
    filename : str
        Its name, without directories.
    filepath : pathlib.Path | None
        Where it is, if that is known. A task's body gets a copy of each file that its call
        declares, with the absolute path at which the body finds the file or shall write it.
    """

    filename: str
    filepath: Path | None = None

    @staticmethod
    def download_remote_url(url: str, directory: str | os.PathLike[str] | None = None) -> Path:
        """Download a file into ``directory``, the current one by default, and return its path.

        Blocks until the file is there, complete and under the name that ``url`` ends with.

        Raises
        ------
        DataError
            If a file of that name is there already, or the download fails.
        ImportError
            If the packages for this kind of URL are not installed.
        """
        return download(url, os.curdir if directory is None else directory)

    def __fspath__(self) -> str:
        if self.filepath is None:
            raise TypeError(f"{self!r} has no path yet: its task's body gets a copy that has")
        return os.fspath(self.filepath)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.filename!r})"


class InputFile(File):
    """A file that a task reads.

    Parameters
    ----------
    file:
        A URL; the path of a file that exists; or else the name of a file that another task writes
        and declares with :class:`OutputFile`. A path-like object is never a URL.

    Attributes
    ----------
    remote_url, local_file, other_task_file : str | None
        What was given, in the one that says what it is; the others are ``None``. A URL is
        downloaded before the task runs, not here.

    Raises
    ------
    ValueError
        If ``file`` is empty or names no file.
    TypeError
        If it is neither a string nor a path.
    """

    def __init__(self, file: str | os.PathLike[str]) -> None:
        self.remote_url: str | None = None
        self.local_file: str | None = None
        self.other_task_file: str | None = None
        text = _text_of(file)
        scheme, colon, _ = text.partition(":")
        if isinstance(file, str) and colon and scheme.lower() in URL_SCHEMES:
            self.remote_url = text
            self.filename = name_in(text)
            self.filepath = Path(self.filename)
        elif os.path.exists(text):
            self.local_file = text
            self.filepath = _absolute(text)
            self.filename = self.filepath.name
        else:
            self.other_task_file = text
            self.filename = _name_of(text)
            self.filepath = Path(text)


class OutputFile(File):
    """A file that a task writes.

    Parameters
    ----------
    filename:
        Its name. Of a path, only the last part counts.

    Raises
    ------
    ValueError
        If that is empty or names no file.
    TypeError
        If it is neither a string nor a path.
    """

    def __init__(self, filename: str | os.PathLike[str]) -> None:
        self.filename = _name_of(_text_of(filename))


def names_of(files: Iterable[File]) -> dict[str, list[str]]:
    """Return the names of the files of a task, as its metadata holds them."""
    return {
        "input_files": [file.filename for file in files if isinstance(file, InputFile)],
        "output_files": [file.filename for file in files if isinstance(file, OutputFile)],
    }


def _text_of(file: object) -> str:
    if not isinstance(file, (str, os.PathLike)):
        raise TypeError(f"a file is given by a string or a path, not {type(file).__name__}")
    text = os.fsdecode(file)  # pyright: ignore[reportUnknownArgumentType]
    if not text:
        raise ValueError("the name of a file cannot be empty")
    if "\0" in text:
        raise ValueError(f"the name of a file cannot hold a null character: {text!r}")
    return text


def _name_of(path: str) -> str:
    name = os.path.basename(path)
    if name in ("", os.curdir, os.pardir):
        raise ValueError(f"{path!r} does not include the name of a file")
    return name


def _absolute(path: str) -> Path:
    """Return the absolute path of what exists, under the name it was given."""
    given = Path(path)
    if given.name in ("", os.pardir):
        return given.resolve()
    return given.parent.resolve() / given.name
