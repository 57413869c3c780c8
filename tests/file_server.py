"""A real HTTP server in a thread, for the tests of remote files."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GUARD_S = 10
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
