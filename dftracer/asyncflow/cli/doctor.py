"""What this machine and this installation offer: ``dftracer-flow doctor``."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dftracer.utils import available_cpus
from dftracer.utils.primitives import __version__

if TYPE_CHECKING:
    import argparse

    from dftracer.asyncflow.cli.arguments import Commands

EXTRAS = {
    "completion": (("shtab",), "completion of commands in a shell"),
    "dask": (("distributed",), "DaskExecutionBackend"),
    "progress": (("rich",), "bars instead of lines"),
    "prompt": (("openai",), "OpenAIBackend, for prompt tasks"),
    "remote": (("fsspec", "aiohttp"), "input files that are URLs"),
    "telemetry": (("rhapsody.telemetry", "opentelemetry.sdk"), "start_telemetry()"),
    "viz": (("plotly", "graphviz"), "reports, and graphs as images"),
}
"""What each extra brings, and for what."""

PROGRAMS = {"dot": ("graphs as images", "apt install graphviz")}


def add(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "doctor",
        help="tell what this machine and this installation offer",
        description="Tell what there is: CPUs, memory and limits of this process, versions, and "
        "which extras are installed, why one is not, and what to do about it.",
    )
    parser.set_defaults(act=run)


def run(_given: argparse.Namespace) -> int:
    """Print the report."""
    for line in report():
        print(line)
    return 0


def report() -> Iterator[str]:
    """Yield the lines of the report."""
    yield f"dftracer-asyncflow {__version__} in {Path(__file__).parents[2]}"
    yield (
        f"Python {platform.python_version()} ({platform.python_implementation()}, {_gil()}) in "
        f"{sys.prefix}"
    )
    yield f"{platform.platform()}"
    yield ""
    yield f"CPUs         {available_cpus()} to be used by default: {_cpus()}"
    yield f"memory       {_memory()}"
    yield f"descriptors  {_descriptors()}"
    settings = sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith("DFTRACER_"))
    yield f"environment  {' '.join(settings) or 'no DFTRACER_ variable is set'}"
    yield ""
    yield "extras"
    for extra, (modules, use) in EXTRAS.items():
        problems = [problem for module in modules if (problem := _problem_of(module))]
        if not problems:
            versions = ", ".join(map(_version_of, modules))
            yield f"  + {extra:11} {use} ({versions})"
        else:
            yield f"  - {extra:11} {use}: {'; '.join(problems)}"
            yield f"    {'':11} pip install 'dftracer-asyncflow[{extra}]'"
    for program, (use, command) in PROGRAMS.items():
        path = shutil.which(program)
        if path:
            yield f"  + {program:11} {use} ({path})"
        else:
            yield f"  - {program:11} {use}: there is no program of that name in PATH"
            yield f"    {'':11} {command}"


def _gil() -> str:
    is_enabled = getattr(sys, "_is_gil_enabled", lambda: True)()
    return "with the GIL" if is_enabled else "without the GIL"


def _cpus() -> str:
    parts = [f"{os.cpu_count()} in the machine"]
    if sys.platform == "linux":
        parts.append(f"{len(os.sched_getaffinity(0))} by affinity")
    quota = cpu_quota()
    parts.append("no quota by cgroup" if quota is None else f"{quota:g} by the cgroup's quota")
    return ", ".join(parts)


def _memory() -> str:
    parts = [f"{_gib(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))} in the machine"]
    if sys.platform == "linux":
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = dict(line.split(":", 1) for line in lines)
        parts.append(f"{_gib(int(found['MemAvailable'].split()[0]) * 1024)} available")
    limit = memory_limit()
    parts.append("no limit by cgroup" if limit is None else f"{_gib(limit)} by the cgroup's limit")
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        parts.append(f"{_gib(address_space)} by ulimit -v")
    return ", ".join(parts)


def _descriptors() -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = "unlimited" if hard == resource.RLIM_INFINITY else f"{hard:,}"
    if soft == resource.RLIM_INFINITY:
        return "unlimited"
    programs = soft * 3 // 4 // 3
    advice = "" if soft >= min(hard, 4096) or hard == soft else f"; more with ulimit -n {hard}"
    return f"{soft:,} (at most {highest}): {programs:,} programs at a time{advice}"


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def cpu_quota(
    proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """Return how many CPUs the cgroups of this process allow; ``None`` if as many as there are."""
    quotas: list[float] = []
    for folder in _folders("cpu", proc, root):
        both = _words(folder / "cpu.max") or (
            _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        )
        if len(both) == 2 and both[0] not in ("max", "-1"):
            quotas.append(int(both[0]) / int(both[1]))
    return min(quotas, default=None)


def memory_limit(
    proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the bytes that the cgroups of this process allow; ``None`` if there is no limit."""
    limits: list[int] = []
    for folder in _folders("memory", proc, root):
        words = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        # The first version of cgroups says "no limit" with a number near 2^63.
        if words and words[0] != "max" and int(words[0]) < 2**60:
            limits.append(int(words[0]))
    return min(limits, default=None)


def _folders(controller: str, proc: Path, root: Path) -> Iterator[Path]:
    """Yield the directories of this process's cgroup and of those above, in both versions."""
    try:
        lines = proc.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        for base in (top, root / controller) if controllers else (top,):
            folder = base / path.lstrip("/")
            yield folder
            yield from (each for each in folder.parents if each.is_relative_to(base))


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").split()
    except OSError:
        return []


def _problem_of(module: str) -> str | None:
    """Return why a module cannot be imported, if it cannot."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        return f"{error.name!r} is not installed"
    except Exception as error:
        return f"{module!r} cannot be imported: {type(error).__name__}: {error}"
    return None


def _version_of(module: str) -> str:
    top = module.partition(".")[0]
    for name in importlib.metadata.packages_distributions().get(top, ()):
        if not name.startswith("opentelemetry-") or name == "opentelemetry-sdk":
            return f"{name} {importlib.metadata.version(name)}"
    return module
