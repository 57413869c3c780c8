"""Native libraries in the workers of pools that we make: these share the cores."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG_GUARD_S

from dftracer.utils import available_cpus

NAMES = ["OMP", "OPENBLAS", "MKL", "NUMEXPR", "RAYON"]

PROGRAM = """
import asyncio, json, os
{before}
from dftracer.asyncflow import WorkflowEngine

async def main():
    async with await WorkflowEngine.create() as flow:
        limits = await flow.function_task(
            lambda: {{k: v for k, v in os.environ.items() if k.endswith("_NUM_THREADS")}}
        )()
        print(json.dumps([limits, os.environ.get("RAYON_NUM_THREADS")]))

if __name__ == "__main__":
    {first}
    asyncio.run(main())
"""


def run(folder: Path, backend: str, *, first: str = "", before: str = "", **given: str) -> Any:
    """Run the program; return the variables in a worker, and one of the program itself."""
    program = folder / "program.py"
    program.write_text(PROGRAM.format(first=first or "pass", before=before))
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    environment |= {"DFTRACER_BACKEND": backend, **given}
    done = subprocess.run(
        [sys.executable, program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_GUARD_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_each_worker_has_its_share_when_the_pool_is_ours(tmp_path: Path, method: str) -> None:
    first = f"import multiprocessing; multiprocessing.set_start_method('{method}')"
    limits, here = run(tmp_path, "processes", first=first, DFTRACER_THREADS="2")
    share = max(1, available_cpus() // 2)
    assert limits == {f"{name}_NUM_THREADS": str(share) for name in NAMES}
    assert here is None


def test_what_the_user_has_set_stays_when_the_pool_is_ours(tmp_path: Path) -> None:
    limits, _ = run(tmp_path, "processes", DFTRACER_THREADS="2", MKL_NUM_THREADS="7")
    assert limits["MKL_NUM_THREADS"] == "7"
    assert limits["RAYON_NUM_THREADS"] == str(max(1, available_cpus() // 2))


def test_each_worker_has_its_share_when_the_dask_cluster_is_ours(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="distributed is not installed")
    limits, here = run(tmp_path, "dask", NUMEXPR_NUM_THREADS="7")
    expected = {f"{name}_NUM_THREADS": "1" for name in NAMES}
    assert limits == {**expected, "NUMEXPR_NUM_THREADS": "7"}
    assert here is None


def test_loaded_libraries_are_limited_when_threadpoolctl_is_there(tmp_path: Path) -> None:
    # Stand-ins for what has read its environment before it came into a forked worker.
    (tmp_path / "numpy.py").write_text("")
    (tmp_path / "threadpoolctl.py").write_text(
        "import os\ndef threadpool_limits(n): os.environ['SEEN_NUM_THREADS'] = str(n)\n"
    )
    first = "import multiprocessing; multiprocessing.set_start_method('fork')"
    limits, _ = run(tmp_path, "processes", first=first, before="import numpy", DFTRACER_THREADS="2")
    assert limits["SEEN_NUM_THREADS"] == limits["OMP_NUM_THREADS"]
