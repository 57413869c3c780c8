"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Generator[Path, None, None]:
    """Make a context that gives the path of a new file, to be written in place of ``path``.

    At the end of the block the new file replaces what is at ``path``. If the block fails, the new
    file is removed, and what was at ``path`` is still there. Of what is no regular file, such as a
    pipe, the path itself is given.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        yield target
        return
    partial = target.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        yield partial
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(target, partial)
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
