"""What the tests of files share: a real HTTP server, a backend that only listens, and tasks."""

import os
import shlex
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from engine_support import GUARD_S

from dftracer.asyncflow import InputFile, OutputFile, WorkflowEngine

CONTENT = bytes(range(256)) * 8_192
"""2 MiB: more than is read at a time."""


class FileServer(ThreadingHTTPServer):
    """Serves ``CONTENT`` under any path but these.

    ``/missing...`` and ``/status/<code>`` answer with an error, ``/truncated...`` breaks off,
    ``/held...`` sends a part and waits for :attr:`gate`, ``/flaky...`` fails the first time.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: Counter[str] = Counter()
        self.headers: dict[str, str] = {}
        self.gate = threading.Event()
        self.held = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away."""


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests[path] += 1
        self.server.headers = dict(self.headers)
        kind, _, rest = path.strip("/").partition("/")
        if kind == "status":
            self.send_error(int(rest))
        elif kind.startswith("missing"):
            self.send_error(404)
        elif kind.startswith("flaky") and self.server.requests[path] == 1:
            self.send_error(503)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            if kind.startswith("truncated"):
                self.wfile.write(CONTENT[:1_000])
                return
            if kind.startswith("held"):
                self.wfile.write(CONTENT[:1_000])
                self.server.held.set()
                self.server.gate.wait(GUARD_S)
                self.wfile.write(CONTENT[1_000:])
                return
            self.wfile.write(CONTENT)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[FileServer]:
    """Run a server until the block ends."""
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.gate.set()
            server.shutdown()
            thread.join()


class Recorder:
    """A foreign backend that runs nothing and writes down what it is told."""

    def __init__(
        self, *, implicit: bool = False, explicit: bool = False, name: str = "recorder"
    ) -> None:
        self.name = name
        if implicit or explicit:  # a backend need not have the attributes
            self.supports_implicit_data_linking = implicit
            self.supports_explicit_data_linking = explicit
        self.calls: list[tuple[Any, ...]] = []
        self.tasks: list[dict[str, Any]] = []

    def register_callback(self, func: Any) -> None:
        self.report = func

    async def submit_tasks(self, tasks: list[dict[str, Any]]) -> None:
        for task in tasks:
            self.calls.append(("submit", task["uid"]))
            self.tasks.append(task)
            task.update(return_value=task["args"], stdout="text")
            self.report(task, "DONE")

    async def cancel_task(self, uid: str) -> bool:
        return False

    async def shutdown(self) -> None:
        pass

    def link_implicit_data_deps(self, src_task: Any, dst_task: Any) -> None:
        self.calls.append(("implicit", src_task["uid"], dst_task["uid"]))

    def link_explicit_data_deps(
        self,
        src_task: Any = None,
        dst_task: Any = None,
        file_name: Any = None,
        file_path: Any = None,
    ) -> dict[str, Any]:
        source = src_task["uid"] if src_task else None
        self.calls.append(("explicit", source, dst_task["uid"], file_name, file_path))
        return {"target": file_name}


async def engine(work_dir: Path, **options: Any) -> WorkflowEngine:
    return await WorkflowEngine.create(work_dir=work_dir, uid="engine", **options)


class Tasks:
    """The tasks that most tests use."""

    def __init__(self, flow: WorkflowEngine) -> None:
        self.say = flow.executable_task(say)
        self.upper = flow.executable_task(upper)
        self.write = flow.function_task(write)
        self.read = flow.function_task(read)


def say(text: str, out: OutputFile, *dependencies: Any) -> str:
    return f"echo {text} > {shlex.quote(out.filename)}"


async def upper(source: InputFile, out: OutputFile, *dependencies: Any) -> list[str]:
    return ["sh", "-c", 'tr a-z A-Z < "$1" > "$2"', "sh", source.filename, os.fspath(out)]


def write(text: str, out: OutputFile, *dependencies: Any) -> Path:
    Path(out).write_text(text)
    assert out.filepath is not None
    return out.filepath


def read(source: InputFile, *dependencies: Any) -> str:
    return Path(source).read_text()
