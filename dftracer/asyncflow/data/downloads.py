"""Getting remote files: one into a directory, and each once for all tasks of an engine."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from dftracer.asyncflow.errors import DataError, text_of_error
from dftracer.utils import Runtime, current_task
from dftracer.utils.redaction import hide, hide_in_logs, keep

_log = logging.getLogger("dftracer.asyncflow")

_AT_A_TIME = 8
"""How many files an engine downloads side by side."""
_CHUNK = 1 << 20
"""How many bytes are read at a time."""
_TELL_EVERY_S = 5
_STALLED_AFTER_S = 60
"""How long a server may send nothing."""
_SIGNATURE = 16
"""How long the values in the query of a URL are that may be signatures or keys."""
_STOPPED_WITHIN_S = 0.2
"""How often a thread that waits for a transfer looks whether it is to stop."""
_GIVEN_UP_AFTER_S = 2
"""How long a download that is to stop may take for that, before its thread is replaced."""

_AS_FSSPEC: dict[str, tuple[str, dict[str, Any]]] = {
    "azure": ("az", {}),
    "ftps": ("ftp", {"tls": True}),
    "r2": ("s3", {}),
}
"""Schemes that fsspec knows by another name, and with which options."""


def name_in(url: str) -> str:
    """Return the name of the file that ``url`` ends with: one that cannot lead elsewhere."""
    parts = urlsplit(url)
    path = "" if parts.scheme == "data" else unquote(parts.path)
    name = "".join(c if c.isprintable() else "_" for c in path.rpartition("/")[2])
    if name in ("", os.curdir, os.pardir) or len(os.fsencode(name)) > 255:
        return "downloaded_file"
    return name


def download(
    url: str, directory: str | os.PathLike[str], stop: threading.Event | None = None
) -> Path:
    """Download a file into ``directory`` and return its absolute path. Blocks.

    The file appears complete or not at all, and replaces none. Its progress is logged. Nothing is
    thrown into the thread to stop it, as the libraries that transfer may hold locks: it looks by
    itself whether ``stop`` is set, or the task that it is called in is to stop.

    Raises
    ------
    asyncio.CancelledError
        If it is to stop.
    DataError
        If a file of that name is there already, or the download fails.
    ImportError
        If the packages for this kind of URL are not installed.
    """
    target = Path(directory).resolve() / name_in(url)
    shown = _without_secrets(url)
    for secret in _secrets_in(url):
        keep(secret)
    hide_in_logs("fsspec", "fsspec.http")
    if os.path.lexists(target):
        raise DataError(f"cannot download {shown}: {target} exists already: move it away first")
    partial = target.with_name(f".{uuid.uuid4().hex}.partial")
    progress = _Progress(shown, stop)
    progress.check()
    target.parent.mkdir(parents=True, exist_ok=True)
    failed: Exception | None = None
    cause: Exception | None = None
    try:
        _fetch(url, partial, progress)
        os.link(partial, target)  # unlike a rename, it refuses to replace what is there
    except Exception as error:
        cause, failed = error, _failure(url, shown, target, error)
    finally:
        partial.unlink(missing_ok=True)
    if failed is not None:
        # Raised here, where it does not become part of an error that may show the whole URL.
        try:
            raise failed from (None if any(_secrets_in(url)) else cause)
        finally:
            del failed, cause  # which hold this frame
    progress.tell("downloaded")
    return target


def _failure(url: str, shown: str, target: Path, error: Exception) -> Exception:
    if isinstance(error, ImportError):
        return ImportError(
            f"cannot download {shown}: {error}; 'pip install dftracer-asyncflow[remote]' brings "
            "what http, https, ftp, file and data URLs take, other kinds take one package more"
        )
    if isinstance(error, FileExistsError):
        return DataError(f"cannot download {shown}: {target} has appeared meanwhile")
    return DataError(
        f"cannot download {shown}: {_reason(url, error)}: check the URL, and that this machine "
        "may reach it"
    )


def _fetch(url: str, partial: Path, progress: _Progress) -> None:
    import fsspec

    scheme, _, rest = url.partition(":")
    scheme = scheme.lower()
    with open(partial, "xb") as target:
        if scheme in ("http", "https"):
            _fetch_http(url, target, progress)
            return
        if scheme == "data":
            store, path = fsspec.filesystem(scheme), url
        else:
            scheme, options = _AS_FSSPEC.get(scheme, (scheme, {}))
            store, path = fsspec.url_to_fs(f"{scheme}:{rest}", **options)
            if scheme in ("file", "ftp", "sftp"):  # the others have keys, not paths
                path = unquote(path)
        with store.open(path, "rb") as source:
            size = getattr(source, "size", None)
            while chunk := source.read(_CHUNK):
                progress.check()
                target.write(chunk)
                progress.update(size, target.tell())


def _fetch_http(url: str, target: BinaryIO, progress: _Progress) -> None:
    import aiohttp
    import fsspec

    # Proxies are those of the environment. By default, all must be done in 5 minutes.
    timeout = aiohttp.ClientTimeout(total=None, sock_read=_STALLED_AFTER_S)
    http = fsspec.filesystem("http", client_kwargs={"trust_env": True, "timeout": timeout})
    callback = fsspec.Callback(hooks={"progress": progress.update})
    identity = {"Accept-Encoding": "identity"}  # the bytes as they are stored
    transfer = asyncio.run_coroutine_threadsafe(
        http._get_file(url, target, callback=callback, headers=identity), http.loop
    )
    try:
        while not transfer.done():
            progress.check()
            concurrent.futures.wait([transfer], timeout=_STOPPED_WITHIN_S)
    except BaseException:
        transfer.cancel()
        raise
    transfer.result()


class _Progress:
    """How far a download is, told every few seconds, and whether it is to go on."""

    def __init__(self, what: str, stop: threading.Event | None) -> None:
        self._what = what
        self._stop = stop
        self._begun = self._told = time.monotonic()
        self._size: int | None = None
        self._bytes = 0

    def update(self, size: int | None, count: int, **_: Any) -> None:
        """Take note of what has arrived. It may be called in another thread."""
        self._size, self._bytes = size, count
        if time.monotonic() - self._told >= _TELL_EVERY_S:
            self._told = time.monotonic()
            self.tell("downloading")

    def check(self) -> None:
        """Raise ``asyncio.CancelledError`` if the download is to stop."""
        task = current_task()
        is_cancelled = task is not None and task.cancel_requested
        if is_cancelled or (self._stop is not None and self._stop.is_set()):
            raise asyncio.CancelledError

    def tell(self, word: str) -> None:
        of = "" if self._size is None else f" of {self._size / 1e6:.1f}"
        duration = time.monotonic() - self._begun
        _log.info("%s %s: %.1f%s MB, %.1f s", word, self._what, self._bytes / 1e6, of, duration)


def _without_secrets(url: str) -> str:
    """Return what messages show of a URL: neither names and passwords nor signatures."""
    if url.partition(":")[0].lower() == "data":
        return "a data URL"
    return re.split(r"[?#]", hide(url).replace("://***@", "://", 1), maxsplit=1)[0]


def _secrets_in(url: str) -> Iterator[str]:
    """Yield the password in a URL and the values of its query, which may be signatures."""
    if url.partition(":")[0].lower() == "data":
        return
    _, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    login, _, _ = rest.rpartition("@")
    name, colon, password = login.partition(":")
    yield from (password, unquote(password)) if colon else (name,)
    for part in query.split("&"):
        value = part.partition("=")[2]
        if len(value) >= _SIGNATURE:
            yield from (value, unquote(value))


def _reason(url: str, error: Exception) -> str:
    status = getattr(error, "status", None)
    if status is not None:
        return f"HTTP status {status} {getattr(error, 'message', '')}".rstrip()
    if isinstance(error, FileNotFoundError):
        is_http = url.lower().startswith("http")
        return "HTTP status 404 Not Found" if is_http else "there is no such file"
    return text_of_error(error)


class Downloads:
    """The remote files of one engine: each is downloaded once, however many tasks read it."""

    def __init__(self) -> None:
        self._by_url: dict[str, asyncio.Task[Path]] = {}
        self._waiting: dict[str, int] = {}
        self._numbers = itertools.count(1)
        self._runtime: Runtime | None = None

    async def fetch(self, url: str, directory: str) -> Path:
        """Return where the file of ``url`` is, below ``directory`` if it must be downloaded.

        A download that all have ceased to wait for is stopped; one that has failed is tried again
        for the next who asks.
        """
        task = self._by_url.get(url)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.create_task(self._download(url, directory), name="download")
            self._by_url[url] = task
        self._waiting[url] = self._waiting.get(url, 0) + 1
        try:
            await asyncio.wait([task])  # unlike awaiting it, leaves it alone when cancelled
        finally:
            self._waiting[url] -= 1
            if not self._waiting[url]:
                del self._waiting[url]
                if not task.done():
                    del self._by_url[url]  # who asks while it stops gets another one
                    task.cancel()
                    await asyncio.wait([task])
        return task.result()

    async def _download(self, url: str, directory: str) -> Path:
        if self._runtime is None:
            # Of its own: elsewhere they would keep other work from threads.
            self._runtime = Runtime(threads=1, io_threads=_AT_A_TIME, python_threads=1)
        place = os.path.join(directory, f"download.{next(self._numbers):06d}")
        stop = threading.Event()
        handle = self._runtime.submit_io(_download_to_fresh, url, place, stop, name="download")
        ended = asyncio.ensure_future(handle)
        try:
            await asyncio.wait([ended])
        except asyncio.CancelledError:
            # Its task would end at once if that were cancelled, but its files go when it stops.
            stop.set()
            await asyncio.wait([ended], timeout=_GIVEN_UP_AFTER_S)
            raise
        finally:
            if ended.done():
                _ = ended.cancelled() or ended.exception()  # asyncio tells of what nobody has seen
            ended.cancel()
        return ended.result()


def _download_to_fresh(url: str, place: str, stop: threading.Event) -> Path:
    directory = make_fresh_directory(place)
    try:
        return download(url, directory, stop)
    except BaseException:
        os.rmdir(directory)
        raise


def make_fresh_directory(path: str) -> str:
    """Make a directory that was not there: ``path``, or that with the first number that is free."""
    for suffix in itertools.chain([""], (f".{number}" for number in itertools.count(2))):
        try:
            os.makedirs(path + suffix)
        except FileExistsError:
            continue
        return path + suffix
    raise AssertionError("numbers do not end")
