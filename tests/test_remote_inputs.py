"""Remote files as inputs of tasks, from a real HTTP server."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_support import GUARD_S, assert_nothing_kept, reached
from files_support import CONTENT, FileServer, Recorder, serving

from dftracer.asyncflow import DataError, InputFile, OutputFile, WorkflowEngine
from dftracer.asyncflow.data import downloads
from dftracer.utils import Cancellation, Runtime


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


async def engine(elsewhere: Path, **options: Any) -> WorkflowEngine:
    return await WorkflowEngine.create(work_dir=elsewhere.parent, uid="engine", **options)


def content_of(file: InputFile, *others: Any) -> bytes:
    return Path(file).read_bytes()


def files_below(directory: Path) -> list[str]:
    """Return the relative paths of all files in a directory, links included."""
    found = [path for path in directory.rglob("*") if path.is_symlink() or path.is_file()]
    return sorted(str(path.relative_to(directory)) for path in found)


async def test_file_is_downloaded_when_a_function_reads_it(
    server: FileServer, elsewhere: Path
) -> None:
    async with await engine(elsewhere) as flow:
        url = f"{server.url}/dir/a%20file.bin?signature=secret"
        assert await flow.function_task(content_of)(InputFile(url)) == CONTENT
    assert files_below(elsewhere.parent) == [
        "engine/download.000001/a file.bin",
        "engine/task.000001/a file.bin",
    ]


async def test_file_is_downloaded_once_when_many_tasks_read_it(
    server: FileServer, elsewhere: Path
) -> None:
    async with await engine(elsewhere) as flow:
        count = flow.executable_task(lambda file: ["wc", "-c", file.filename])
        url = f"{server.url}/a.bin"
        counts = [count(InputFile(url)) for _ in range(50)]
        assert await asyncio.gather(*counts) == [f"{len(CONTENT)} a.bin\n"] * 50
        assert await count(InputFile(url)) == f"{len(CONTENT)} a.bin\n"
        assert_nothing_kept(flow)
    assert server.requests == {"/a.bin": 1}


async def test_files_stay_apart_when_urls_end_with_the_same_name(
    server: FileServer, elsewhere: Path
) -> None:
    (elsewhere / "a.bin").write_text("precious")
    async with await engine(elsewhere) as flow:
        read = flow.function_task(content_of)
        inputs = [InputFile(f"{server.url}/{place}/a.bin") for place in range(20)]
        assert await asyncio.gather(*map(read, inputs)) == [CONTENT] * 20
        with pytest.raises(DataError, match=r"two input files named 'a\.bin'"):
            await read(*inputs[:2])
    assert (elsewhere / "a.bin").read_text() == "precious"
    assert os.listdir(elsewhere) == ["a.bin"]


async def test_file_stays_inside_when_a_url_leads_elsewhere(
    server: FileServer, elsewhere: Path
) -> None:
    async with await engine(elsewhere) as flow:
        url = f"{server.url}/..%2f..%2f..%2fescaped"
        assert await flow.function_task(content_of)(InputFile(url)) == CONTENT
    assert files_below(elsewhere.parent) == [
        "engine/download.000001/escaped",
        "engine/task.000001/escaped",
    ]


@pytest.mark.parametrize(
    ("path", "reason"),
    [("missing.bin", "HTTP status 404"), ("status/403", "status 403"), ("truncated", "payload")],
)
async def test_tasks_fail_when_a_download_fails(
    server: FileServer, elsewhere: Path, path: str, reason: str
) -> None:
    async with await engine(elsewhere) as flow:
        ran: list[Any] = []
        read = flow.function_task(ran.append)
        first, second = (read(InputFile(f"{server.url}/{path}")) for _ in range(2))
        for task in (first, second):
            with pytest.raises(DataError, match=rf"task 'append': cannot download.*{reason}"):
                await task
        assert ran == []
    assert_nothing_kept(flow)
    assert server.requests == {f"/{path}": 1}
    assert files_below(elsewhere.parent) == []


async def test_download_is_tried_again_when_it_has_failed_for_another_task(
    server: FileServer, elsewhere: Path
) -> None:
    async with await engine(elsewhere) as flow:
        read = flow.function_task(content_of)
        url = f"{server.url}/flaky.bin"
        with pytest.raises(DataError, match="HTTP status 503"):
            await read(InputFile(url))
        assert await read(InputFile(url)) == CONTENT
    assert server.requests == {"/flaky.bin": 2}


async def test_loop_goes_on_when_a_server_is_slow(server: FileServer, elsewhere: Path) -> None:
    async with await engine(elsewhere) as flow:
        read = flow.function_task(content_of)
        held = [read(InputFile(f"{server.url}/held/{number}")) for number in range(4)]
        await reached(server.held)
        assert await flow.function_task(lambda: "meanwhile")() == "meanwhile"
        assert await read(InputFile(f"{server.url}/a.bin")) == CONTENT
        assert [task.state for task in held] == ["PENDING"] * 4
        server.gate.set()
        assert await asyncio.gather(*held) == [CONTENT] * 4


async def test_download_goes_on_when_one_of_its_tasks_is_cancelled(
    server: FileServer, elsewhere: Path
) -> None:
    async with await engine(elsewhere) as flow:
        read = flow.function_task(content_of)
        first, second = (read(InputFile(f"{server.url}/held.bin")) for _ in range(2))
        await reached(server.held)
        assert first.cancel()
        server.gate.set()
        assert await second == CONTENT
        assert first.cancelled()
    assert server.requests == {"/held.bin": 1}


@pytest.mark.parametrize("end", ["cancel", "shutdown"])
async def test_download_is_stopped_when_nobody_waits_for_it(
    server: FileServer,
    elsewhere: Path,
    new_loop: Callable[[], Any],
    caplog: pytest.LogCaptureFixture,
    end: str,
) -> None:
    async with await engine(elsewhere) as flow:
        read = flow.function_task(content_of)
        tasks = [read(InputFile(f"{server.url}/held.bin")) for _ in range(3)]
        await reached(server.held)
        if end == "cancel":
            for task in tasks:
                assert task.cancel()
        else:
            await asyncio.wait_for(flow.shutdown(), GUARD_S)
        assert all(task.cancelled() for task in tasks)
        runtime = flow._scheduler.launcher.downloads._runtime
        assert runtime is not None
        await asyncio.to_thread(runtime.shutdown)  # waits for what is left of it
        assert files_below(elsewhere.parent) == []
    assert_nothing_kept(flow)
    assert [record for record in caplog.records if record.name == "dftracer.utils"] == []


async def test_another_download_begins_when_a_task_asks_while_the_first_one_stops(
    server: FileServer, elsewhere: Path
) -> None:
    async with await engine(elsewhere) as flow:
        read = flow.function_task(content_of)
        first = read(InputFile(f"{server.url}/held.bin"))
        await reached(server.held)
        assert first.cancel()
        await asyncio.sleep(0)
        second = read(InputFile(f"{server.url}/held.bin"))
        server.gate.set()
        assert await second == CONTENT
        assert first.cancelled()
    assert server.requests == {"/held.bin": 2}


async def test_download_is_stopped_when_the_body_that_makes_it_is_cancelled(
    server: FileServer, elsewhere: Path
) -> None:
    runtime = Runtime(threads=1, io_threads=1, python_threads=1)
    url = f"{server.url}/held.bin"
    seen: list[type[BaseException]] = []

    def body() -> None:
        try:
            InputFile.download_remote_url(url, elsewhere)
        except BaseException as error:
            seen.append(type(error))
            raise

    with runtime:
        handle = runtime.submit(body)
        await reached(server.held)
        assert handle.cancel() is Cancellation.REQUESTED
    assert seen == [asyncio.CancelledError]
    assert files_below(elsewhere) == []


async def test_download_is_stopped_between_chunks_when_it_is_no_transfer_of_http(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    source = elsewhere / "zeros"

    stop = threading.Event()

    def update(self: Any, size: int | None, count: int) -> None:
        begun.set()
        stop.wait(GUARD_S)

    source.write_bytes(bytes(3 * downloads._CHUNK))
    monkeypatch.setattr(downloads._Progress, "update", update)
    target = elsewhere / "target"
    copy = asyncio.to_thread(downloads.download, source.as_uri(), target, stop)
    copying = asyncio.create_task(copy)
    await reached(begun)
    stop.set()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert files_below(target) == []


async def test_foreign_backend_gets_the_downloaded_file_when_its_tasks_read_it(
    server: FileServer, elsewhere: Path
) -> None:
    place = elsewhere.parent / "engine" / "download.000001" / "a.bin"
    for explicit in (False, True):
        backend = Recorder(explicit=explicit)
        async with await engine(elsewhere, backend=backend) as flow:
            given = InputFile(f"{server.url}/a.bin")
            (got,) = await flow.function_task(content_of)(given)
            assert got.filepath == place
            assert got.remote_url == given.remote_url
            assert content_of(got) == CONTENT
        told = [call for call in backend.calls if call[0] == "explicit"]
        assert told == [("explicit", None, "task.000001", "a.bin", str(place))] * explicit
        place = place.parents[1] / "download.000001.2" / "a.bin"


async def test_no_file_is_downloaded_when_it_is_a_dry_run(
    server: FileServer, elsewhere: Path
) -> None:
    async with await engine(elsewhere, dry_run=True) as flow:
        task = flow.function_task(content_of)
        assert await task(InputFile(f"{server.url}/a.bin"), OutputFile("b")) == "Dummy Output"
    assert not server.requests


def test_program_ends_quietly_when_it_has_downloaded(
    server: FileServer, run_script: Callable[..., str]
) -> None:
    source = f"""
        import asyncio
        from dftracer.asyncflow import InputFile, WorkflowEngine

        async def main():
            async with await WorkflowEngine.create() as flow:
                @flow.function_task
                def size(file):
                    return file.filepath.stat().st_size
                print(await size(InputFile("{server.url}/a.bin")))

        asyncio.run(main())
    """
    assert run_script(source) == f"{len(CONTENT)}\n"


def test_program_ends_soon_when_a_download_hangs(
    server: FileServer, run_script: Callable[..., str]
) -> None:
    source = f"""
        import asyncio
        from dftracer.asyncflow import InputFile, WorkflowEngine

        async def main():
            async with await WorkflowEngine.create() as flow:
                task = flow.function_task(print)(InputFile("{server.url}/held.bin"))
                try:
                    await asyncio.wait_for(task, 0.3)
                except asyncio.TimeoutError:
                    print("gave up")

        asyncio.run(main())
    """
    assert run_script(source) == "gave up\n"
