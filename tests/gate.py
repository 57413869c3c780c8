"""What a run of the tests says of itself: which tests were skipped and why, and its figures.

A skipped test is no passed test. Reasons that hold everywhere stand in ``skips.txt``; for any other
the run fails where ``CI`` is set, and elsewhere it is printed.
"""

import collections
import json
import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SKIPS = Path(__file__).with_name("skips.txt")


def allowed_reasons() -> list[re.Pattern[str]]:
    """The reasons in ``skips.txt``, a regular expression in each line that is no comment."""
    lines = SKIPS.read_text(encoding="utf-8").splitlines()
    return [re.compile(line) for line in lines if line.strip() and not line.startswith("#")]


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test, or a whole file, was skipped."""
    _path, _line, text = report.longrepr  # type: ignore[misc, str-unpack]
    return str(text).removeprefix("Skipped: ")


class Gate:
    """Counts outcomes in each process of a run, adds them up in the first, and judges the skips."""

    def __init__(self, terminal: Any) -> None:
        self.terminal = terminal  # none in a process of pytest-xdist
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.skips: collections.Counter[str] = collections.Counter()
        self.begun = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test by how it has ended."""
        if report.skipped:
            self.outcomes["skipped"] += 1
            self.skips[reason_of(report)] += 1
        elif report.when == "call" or report.failed:
            self.outcomes[report.outcome] += 1
        if report.failed and self.terminal is not None:
            # At once: a run that is ended from outside says nothing at its end.
            self.terminal.ensure_newline()
            self.terminal.line(f"{report.nodeid} failed in {report.when}")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count a file that was skipped as a whole."""
        if report.skipped:
            self.outcomes["skipped"] += 1
            self.skips[reason_of(report)] += 1

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Add up what a process of pytest-xdist has skipped while it collected: only it knows."""
        for reason in getattr(node, "workeroutput", {}).get("skipped files", ()):
            if not self.skips[reason]:
                self.outcomes["skipped"] += 1
                self.skips[reason] += 1

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the run for skips that no line of the list allows; write down the figures."""
        config = session.config
        if hasattr(config, "workeroutput"):
            config.workeroutput["skipped files"] = list(self.skips)
            return
        if os.environ.get("CI") and self.unexpected() and not session.exitstatus:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if path := os.environ.get("DFTRACER_FIGURES"):
            figures = {
                "python": platform.python_version(),
                "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
                "seconds": round(time.monotonic() - self.begun),
                "outcomes": self.outcomes,
                "skips": self.skips,
            }
            Path(path).write_text(json.dumps(figures), encoding="utf-8")

    def unexpected(self) -> list[str]:
        """Return the reasons of skips that no line of the list allows."""
        allowed = allowed_reasons()
        return [each for each in self.skips if not any(one.search(each) for one in allowed)]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say which skips are not on the list."""
        if unexpected := self.unexpected():
            terminalreporter.section(f"skipped for reasons that are not in {SKIPS.name}")
            for reason in unexpected:
                terminalreporter.line(f"{self.skips[reason]} x {reason}")
