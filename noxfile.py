"""Every check of the project. `nox` runs them all; `nox -l` lists them.

The tests run against the built wheel, never against the checkout: `dftracer` is a namespace that
other distributions share, and what users install is the wheel.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "rust", "typecheck", "imports", "docs", "tests"]

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
SOURCES = ["dftracer", "docs", "examples", "benchmarks", "tests", "noxfile.py"]


def install_wheel(session: nox.Session, *extras: str) -> None:
    """Build the wheel for the session's interpreter and install that, with `extras`."""
    wheels = Path(session.create_tmp()) / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    session.install("pip>=24")
    # One target folder for all sessions, so that only what has changed is compiled.
    env = {"CARGO_TARGET_DIR": os.environ.get("CARGO_TARGET_DIR", str(Path("target").resolve()))}
    session.run("pip", "wheel", "-q", "--no-deps", "-w", str(wheels), ".", env=env)
    wheel = next(wheels.glob("*.whl"))
    # By force: the version stays the same while the code changes.
    session.install("--force-reinstall", "--no-deps", str(wheel))
    extra = f"[{','.join(extras)}]" if extras else ""
    session.install(f"{wheel}{extra}")


@nox.session
def lint(session: nox.Session) -> None:
    """Style and common mistakes in the Python code."""
    session.install("ruff>=0.15")
    session.run("ruff", "check", *SOURCES)
    session.run("ruff", "format", "--check", *SOURCES)


@nox.session
def rust(session: nox.Session) -> None:
    """Format, lints, tests and models of the Rust code."""
    # PyO3 asks an interpreter what to build for; the module itself is linked by no test.
    env = {"PYO3_PYTHON": shutil.which("python", path=session.bin) or "python"}
    env["PYO3_BUILD_EXTENSION_MODULE"] = "1"
    session.run("cargo", "fmt", "--all", "--check", external=True)
    clippy = ["cargo", "clippy", "--workspace", "--all-targets", "--locked"]
    session.run(*clippy, "--", "-D", "warnings", external=True, env=env)
    session.run("cargo", "test", "-p", "dftracer-core", "--locked", external=True, env=env)
    # Every interleaving of threads at what they share. In a target folder of its own: it is other
    # code.
    model = {**env, "RUSTFLAGS": "--cfg dft_loom", "CARGO_TARGET_DIR": "target/loom"}
    loom = ["cargo", "test", "-p", "dftracer-core", "--release", "--locked", "--test", "loom_*"]
    session.run(*loom, external=True, env=model)


@nox.session
def typecheck(session: nox.Session) -> None:
    """Strict types in the Python code, and the stub against the real native module."""
    session.install("mypy>=1.15", "pytest>=8", "nox")
    install_wheel(session)
    session.run("mypy", "dftracer", "examples", "noxfile.py", "tests/typing_engine.py")
    session.run("mypy", "benchmarks")
    # Elsewhere, because here Python would take the checkout's package for the installed one.
    session.chdir(session.create_tmp())
    session.run("stubtest", "dftracer.utils._native")


@nox.session
def imports(session: nox.Session) -> None:
    """The direction of imports between the packages' layers."""
    session.install("import-linter>=2.3")
    install_wheel(session)
    session.run("lint-imports", "--config", "pyproject.toml", "--no-cache")


@nox.session
def docs(session: nox.Session) -> None:
    """The pages and the reference as a site, in ``.nox/site``; warnings are errors."""
    session.install(*nox.project.dependency_groups(nox.project.load_toml(), "docs"))
    install_wheel(session, "dask", "prompt")
    session.run("sphinx-build", "-qnW", "--keep-going", "-Ec", "docs", ".", ".nox/site")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The test suite against the wheel, on every CPython that is at hand."""
    install_wheel(session, "test")
    session.run("pytest", *session.posargs)
