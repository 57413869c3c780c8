"""What the tests of reports share: traces made up, and pages in a real browser."""

import gzip
import json
from pathlib import Path
from typing import Any

SECOND = 1_000_000
BEGIN = 1_700_000_000 * SECOND


def event(name: str, start: float, end: float, **more: Any) -> dict[str, Any]:
    """Return a task that ran between two seconds."""
    arguments = {"state": "done", "engine": "e", **more}
    return {
        "name": name,
        "cat": arguments.pop("cat", "python"),
        "pid": 1,
        "tid": arguments.pop("tid", 1),
        "ts": BEGIN + int(start * SECOND),
        "dur": int((end - start) * SECOND),
        "ph": "X",
        "args": arguments,
    }


def write(path: Path, events: list[dict[str, Any]]) -> Path:
    """Write a trace; each event is a line."""
    lines = [json.dumps({"id": number, **each}) for number, each in enumerate(events)]
    path.write_bytes(gzip.compress("\n".join(["[", *lines, "]", ""]).encode()))
    return path


def shift(seconds: float) -> int:
    """Return seconds as a trace tells them."""
    return int(seconds * SECOND)


class Browser:
    """A page in Chromium, which must neither complain nor ask for anything else."""

    def __init__(self, chromium: Any, path: Path) -> None:
        self.page = chromium.new_page(viewport={"width": 1400, "height": 1000})
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_function("window.report && report.drawn > 0")

    def ask(self, script: str) -> Any:
        """Return the value of an expression."""
        return self.page.evaluate(script)

    def wait_until(self, script: str, value: str | bool) -> None:
        """Wait until an expression has a value: what the browser itself tells a page takes time."""
        self.page.wait_for_function(f"{script} === {json.dumps(value)}")

    def settle(self) -> None:
        """Wait until everything that was ordered is on the screen."""
        self.page.evaluate("() => new Promise(r => requestAnimationFrame(() => setTimeout(r, 0)))")

    def span(self) -> float:
        """Return how much time the chart shows, in µs."""
        return float(self.ask("report.view.to - report.view.from"))

    def check(self, path: Path) -> None:
        """See that nothing went wrong."""
        assert self.complaints == []
        assert [url for url in self.requests if not url.startswith("data:")] == [path.as_uri()]
