"""The virtual environments of the sides: made on demand under .venvs/, reused when right."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catalog import Side

BENCHMARKS = Path(__file__).resolve().parent
CHECKOUT = BENCHMARKS.parent
VENVS = BENCHMARKS / ".venvs"


class EnvironmentNotMadeError(Exception):
    """An environment could not be made; the message tells the last thing that was said."""


def child_environment() -> dict[str, str]:
    """This process's environment less what would change where a child imports from."""
    dropped = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "PYTHONNOUSERSITE": "1"}


def python_of(side: Side) -> Path:
    return VENVS / side.name / "bin" / "python"


def prepare(side: Side, wheel: Path | None) -> str:
    """Make the environment of `side` right and return a label of what is installed in it."""
    if side.from_checkout:
        return _prepare_ours(side, wheel)
    wanted = {"python": _python_identity(), "requirements": list(side.requirements)}
    if not _is_right(side, wanted):
        _make(side, with_pip=bool(side.requirements))
        if side.requirements:
            _pip(side, "install", *side.requirements)
        _mark(side, wanted)
    return ", ".join(side.requirements) or "standard library"


def _prepare_ours(side: Side, wheel: Path | None) -> str:
    if side.rust_flags:
        wheel = None  # it was built without them
    source = _digest([wheel]) if wheel is not None else _checkout_digest()
    wanted = {"python": _python_identity(), "source": source}
    if source is not None and _is_right(side, wanted):
        return str(_read_mark(side).get("installed", "ours"))
    _make(side, with_pip=True)
    if wheel is None:
        wheel = _build_wheel(side)
    _pip(side, "install", str(wheel))
    name, version = wheel.name.split("-")[:2]
    installed = f"{name}=={version}"
    _mark(side, {**wanted, "installed": installed})
    return installed


def _build_wheel(side: Side) -> Path:
    wheels = VENVS / "wheels" / side.name
    shutil.rmtree(wheels, ignore_errors=True)
    _say(f"building the wheel of {side.name} from the checkout")
    variables = {}
    if side.rust_flags:
        # A target folder of its own: it is other code.
        variables = {"RUSTFLAGS": side.rust_flags, "CARGO_TARGET_DIR": str(VENVS / "target")}
    pip = [str(python_of(side)), "-m", "pip", "--disable-pip-version-check"]
    _run([*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(CHECKOUT)], variables)
    return next(wheels.glob("*.whl"))


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw results as `report.as_json` gives them, with matplotlib in an environment of its own."""
    side = Side("plot", "plot", "plot", requirements=("matplotlib>=3.9",))
    prepare(side, None)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as source:
        json.dump(content, source)
        source.flush()
        _run([str(python_of(side)), str(BENCHMARKS / "plot.py"), source.name, str(path)])


def _make(side: Side, *, with_pip: bool) -> None:
    _say(f"making the environment of {side.name}")
    options = ["--clear"] if with_pip else ["--clear", "--without-pip"]
    _run([sys.executable, "-m", "venv", *options, str(VENVS / side.name)])


def _pip(side: Side, *arguments: str) -> None:
    _run([str(python_of(side)), "-m", "pip", "--disable-pip-version-check", *arguments])


def _run(command: list[str], variables: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**child_environment(), **(variables or {})},
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise EnvironmentNotMadeError(tail or f"exit code {done.returncode}")


def _python_identity() -> str:
    return f"{sys.implementation.name} {sys.version} {sysconfig.get_platform()}"


def _is_right(side: Side, wanted: Mapping[str, object]) -> bool:
    mark = _read_mark(side)
    return python_of(side).exists() and all(mark.get(key) == wanted[key] for key in wanted)


def _mark_path(side: Side) -> Path:
    return VENVS / side.name / "benchmarks.json"


def _read_mark(side: Side) -> dict[str, object]:
    try:
        mark = json.loads(_mark_path(side).read_text())
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) else {}


def _mark(side: Side, wanted: Mapping[str, object]) -> None:
    _mark_path(side).write_text(json.dumps(wanted))


def _checkout_digest() -> str | None:
    """A digest of the sources git knows of or would add, benchmarks/ left out.

    None when git cannot tell, and then the wheel is built anew.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    paths = [CHECKOUT / os.fsdecode(name) for name in listed.split(b"\0") if name]
    return _digest([path for path in paths if BENCHMARKS not in path.parents])


def _digest(paths: list[Path]) -> str:
    total = hashlib.sha256()
    for path in sorted(set(paths)):
        content = path.read_bytes() if path.is_file() else b""
        total.update(os.fsencode(path) + b"\0" + hashlib.sha256(content).digest())
    return total.hexdigest()


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
