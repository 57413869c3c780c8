"""The backend of an engine that is given none."""

import os
import threading

import pytest
from engine_support import GUARD_S

from dftracer.asyncflow import WorkflowEngine

pytestmark = pytest.mark.usefixtures("new_loop")


async def test_four_bodies_meet_when_no_backend_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DFTRACER_THREADS", raising=False)
    monkeypatch.delenv("DFTRACER_BACKEND", raising=False)
    barrier = threading.Barrier(4)
    async with await WorkflowEngine.create() as flow:
        meet = flow.function_task(lambda: barrier.wait(GUARD_S))
        calls = [meet() for _ in range(4)]
        assert sorted([await call for call in calls]) == [0, 1, 2, 3]
        sizes = flow.backend.runtime.sizes
        assert sizes["python_threads"] == min(32, (os.cpu_count() or 1) + 4)


async def test_the_environment_says_how_many_workers_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DFTRACER_THREADS", "3")
    monkeypatch.delenv("DFTRACER_BACKEND", raising=False)
    async with await WorkflowEngine.create() as flow:
        assert flow.backend.runtime.sizes["python_threads"] == 3
