"""Files as calls declare them, and the download of one."""

import base64
import copy
import logging
import os
import pickle
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from files_support import CONTENT, FileServer, serving

from dftracer.asyncflow import DataError, File, InputFile, OutputFile
from dftracer.asyncflow.data import downloads
from dftracer.asyncflow.data.downloads import name_in


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in an empty directory."""
    directory = tmp_path / "cwd"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


# --- what is declared ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
def test_input_is_local_when_the_file_exists(elsewhere: Path, kind: Any) -> None:
    (elsewhere / "data").mkdir()
    (elsewhere / "data" / "a file.txt").touch()
    file = InputFile(kind("data/a file.txt"))
    assert file.filename == "a file.txt"
    assert file.filepath == elsewhere / "data" / "a file.txt"
    assert file.local_file == "data/a file.txt"
    assert (file.remote_url, file.other_task_file) == (None, None)


@pytest.mark.parametrize("kind", [str, Path])
def test_input_is_of_another_task_when_nothing_is_there(kind: Any) -> None:
    file = InputFile(kind("out/table.csv"))
    assert file.filename == "table.csv"
    assert file.filepath == Path("out/table.csv")
    assert file.other_task_file == "out/table.csv"
    assert (file.remote_url, file.local_file) == (None, None)


@pytest.mark.parametrize(
    "scheme", "http https ftp ftps sftp file data s3 azure r2 gs HTTPS".split()
)
def test_input_is_remote_and_not_fetched_when_it_is_a_url(elsewhere: Path, scheme: str) -> None:
    url = f"{scheme}://host.invalid/path/table.csv"
    file = InputFile(url)
    assert file.remote_url == url
    assert file.filename == ("downloaded_file" if scheme == "data" else "table.csv")
    assert file.filepath == Path(file.filename)
    assert (file.local_file, file.other_task_file) == (None, None)
    assert os.listdir(elsewhere) == []


def test_input_is_a_path_when_its_scheme_is_unknown_or_it_is_path_like() -> None:
    assert InputFile("c:table.csv").other_task_file == "c:table.csv"
    assert InputFile(Path("http://host/table.csv")).other_task_file == "http:/host/table.csv"
    assert InputFile("//[a/table.csv").filename == "table.csv"


def test_input_keeps_the_name_it_was_given_when_it_is_a_symbolic_link(elsewhere: Path) -> None:
    (elsewhere / "run 42").mkdir()
    (elsewhere / "run 42" / "real.txt").touch()
    (elsewhere / "latest").symlink_to("run 42")
    (elsewhere / "latest" / "name.txt").symlink_to("real.txt")
    file = InputFile("latest/name.txt")
    assert file.filename == "name.txt"
    assert file.filepath == elsewhere / "run 42" / "name.txt"


def test_input_may_be_a_directory_when_it_exists(elsewhere: Path) -> None:
    assert InputFile(".").filepath == InputFile(f"../{elsewhere.name}/").filepath == elsewhere
    assert InputFile(".").filename == elsewhere.name


@pytest.mark.parametrize("name", ["", "missing/", "missing/..", "a\0b"])
def test_value_error_when_an_input_names_no_file(name: str) -> None:
    with pytest.raises(ValueError, match="name of a file"):
        InputFile(name)


@pytest.mark.parametrize("path", ["table.csv", "out/table.csv", Path("/out/table.csv")])
def test_output_is_a_name_when_given_a_path(path: Any) -> None:
    file = OutputFile(path)
    assert (file.filename, file.filepath) == ("table.csv", None)


@pytest.mark.parametrize("name", ["", "/", "out/", "..", ".", "out/..", "a\0b"])
def test_value_error_when_an_output_names_no_file(name: str) -> None:
    with pytest.raises(ValueError, match="name of a file"):
        OutputFile(name)


@pytest.mark.parametrize("kind", [InputFile, OutputFile])
@pytest.mark.parametrize("value", [None, 3, ["a"]])
def test_type_error_when_a_file_is_given_by_neither_text_nor_path(kind: Any, value: Any) -> None:
    with pytest.raises(TypeError, match="by a string or a path"):
        kind(value)


def test_a_file_stands_for_its_path_when_it_has_one(elsewhere: Path) -> None:
    (elsewhere / "a.txt").write_text("text")
    file = InputFile("a.txt")
    with open(file) as stream:
        assert stream.read() == "text"
    with pytest.raises(TypeError, match=r"OutputFile\('b.txt'\) has no path yet"):
        os.fspath(OutputFile("b.txt"))


def test_files_are_the_same_when_copied_or_pickled() -> None:
    for file in (InputFile("a.txt"), InputFile("http://host/b.txt"), OutputFile("c.txt")):
        for other in (copy.copy(file), pickle.loads(pickle.dumps(file))):
            assert type(other) is type(file)
            assert vars(other) == vars(file)
            assert isinstance(other, File)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://host/dir/table.csv", "table.csv"),
        ("http://host/table.csv?token=a/b&c=d.txt#part/e", "table.csv"),
        ("http://host/a%20b%27c%22.txt", "a b'c\".txt"),
        ("http://host/%E2%82%AC.txt", "€.txt"),
        ("http://host/dir/", "downloaded_file"),
        ("http://host", "downloaded_file"),
        ("http://host/?file=a.txt", "downloaded_file"),
        ("http://host/..", "downloaded_file"),
        ("http://host/%2e%2e", "downloaded_file"),
        ("http://host/%2E", "downloaded_file"),
        ("http://host/..%2f..%2fetc%2fpasswd", "passwd"),
        ("http://host/a%2f..", "downloaded_file"),
        ("http://host/a%00b%0a.txt", "a_b_.txt"),
        ("http://host/" + "a" * 300, "downloaded_file"),
        ("data:text/plain;base64,QUJD/../x", "downloaded_file"),
        ("s3://bucket/key/table.csv", "table.csv"),
    ],
)
def test_name_is_safe_when_a_url_ends_with_it(url: str, name: str) -> None:
    assert name_in(url) == name
    assert InputFile(url).filename == name


# --- a download ---------------------------------------------------------------------------------


def test_download_goes_to_the_current_directory_when_none_is_named(
    server: FileServer, elsewhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dftracer.asyncflow")
    url = server.url.replace("//", "//user:secret@") + "/dir/a%20file.bin?signature=secret"
    path = File.download_remote_url(url)
    assert path == elsewhere / "a file.bin"
    assert path.read_bytes() == CONTENT
    assert os.listdir(elsewhere) == ["a file.bin"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert server.headers["Accept-Encoding"] == "identity"
    assert server.headers["Authorization"] == "Basic dXNlcjpzZWNyZXQ="
    (record,) = caplog.records
    assert f"downloaded {server.url}/dir/a%20file.bin: 2.1 of 2.1 MB" in record.getMessage()


@pytest.mark.parametrize("kind", ["http", "file"])
def test_progress_is_logged_when_a_download_takes_long(
    server: FileServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr(downloads, "_TELL_EVERY_S", 0)
    caplog.set_level(logging.INFO, "dftracer.asyncflow")
    (tmp_path / "a.bin").write_bytes(CONTENT)
    url = f"{server.url}/a.bin" if kind == "http" else (tmp_path / "a.bin").as_uri()
    File.download_remote_url(url)
    *messages, last = [record.getMessage() for record in caplog.records]
    assert messages
    assert all(text.startswith(f"downloading {url}: ") for text in messages)
    assert all(" of 2.1 MB, " in text for text in messages)
    assert last.startswith(f"downloaded {url}: 2.1 of 2.1 MB, ")


def test_download_makes_the_directory_when_it_is_missing(
    server: FileServer, tmp_path: Path
) -> None:
    path = File.download_remote_url(f"{server.url}/a.bin", directory=tmp_path / "new" / "place")
    assert path == tmp_path / "new" / "place" / "a.bin"
    assert path.read_bytes() == CONTENT


def test_download_replaces_nothing_when_the_file_exists(
    server: FileServer, elsewhere: Path
) -> None:
    (elsewhere / "a.bin").write_text("precious")
    with pytest.raises(DataError, match=r"a\.bin exists already"):
        File.download_remote_url(f"{server.url}/a.bin")
    assert (elsewhere / "a.bin").read_text() == "precious"
    (elsewhere / "b.bin").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"b\.bin exists already"):
        File.download_remote_url(f"{server.url}/b.bin")
    assert not server.requests


def test_download_replaces_nothing_when_the_file_appears_meanwhile(
    server: FileServer, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def late(source: Path, target: Path) -> None:
        target.write_text("precious")
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(DataError, match="has appeared meanwhile"):
        File.download_remote_url(f"{server.url}/a.bin")
    assert (elsewhere / "a.bin").read_text() == "precious"
    assert os.listdir(elsewhere) == ["a.bin"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing.bin", "HTTP status 404 Not Found"),
        ("status/403", "HTTP status 403 Forbidden"),
        ("status/500", "HTTP status 500"),
        ("truncated.bin", "payload"),
    ],
)
def test_error_names_url_and_reason_when_a_download_fails(
    server: FileServer, elsewhere: Path, path: str, reason: str
) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        File.download_remote_url(f"{server.url}/{path}?signature=secret")
    assert f"{server.url}/{path}" in str(caught.value)
    assert "check the URL" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert os.listdir(elsewhere) == []


def test_error_names_the_host_when_nobody_answers(elsewhere: Path) -> None:
    with serving() as server:
        url = f"{server.url}/a.bin"
    with pytest.raises(DataError, match=r"127\.0\.0\.1"):
        File.download_remote_url(url)
    assert os.listdir(elsewhere) == []


@pytest.mark.parametrize(
    "url",
    [
        "data:text/plain;base64," + base64.b64encode(b"a::b, c/../d").decode(),
        "data:,a::b,%20c/../d",
        "DATA:,a::b,%20c/../d",
    ],
)
def test_content_is_in_the_url_when_it_is_a_data_url(elsewhere: Path, url: str) -> None:
    path = File.download_remote_url(url)
    assert path == elsewhere / "downloaded_file"
    assert path.read_bytes() == b"a::b, c/../d"


def test_local_file_is_copied_when_it_is_a_file_url(tmp_path: Path, elsewhere: Path) -> None:
    (tmp_path / "a b%20.txt").write_text("text")
    path = File.download_remote_url((tmp_path / "a b%20.txt").as_uri())
    assert path == elsewhere / "a b%20.txt"
    assert path.read_text() == "text"
    with pytest.raises(DataError, match="no such file"):
        File.download_remote_url((tmp_path / "b.txt").as_uri())


@pytest.mark.parametrize("module", ["fsspec", "aiohttp"])
def test_import_error_names_the_extra_when_a_package_is_missing(
    server: FileServer, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install dftracer-asyncflow\[remote\]"):
        File.download_remote_url(f"{server.url}/a.bin")
    assert os.listdir(elsewhere) == []


def test_import_error_names_the_plugin_when_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for scheme in ("s3", "r2"):
        with pytest.raises(ImportError, match="s3fs"):
            File.download_remote_url(f"{scheme}://bucket/key")
