"""Every check of the project. `nox` runs those that CI runs; `nox -l` lists all.

The tests run against the built wheel, never against the checkout: `dftracer` is a namespace that
other distributions share, and what users install is the wheel.

An interpreter that is not at hand is passed over, as is a test for which something is missing here,
unless `CI` is set: then each of them is a failure. `.ci/run` installs what is needed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nox

IS_CI = bool(os.environ.get("CI"))
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14", "3.15"]
WHOLE = ["3.11", "3.14"]
"""What all tests run on."""
LOWEST = "3.10"
"""What the tests run on with the lowest versions of what we depend on."""
SOURCES = ["dftracer", "docs", "examples", "benchmarks", "tests", "noxfile.py"]
INTERPRETER_TESTS = [
    "tests/test_engine.py",
    "tests/test_engine_awaited_parameters.py",
    "tests/test_engine_chains.py",
    "tests/test_engine_futures.py",
    "tests/test_engine_signals.py",
    "tests/test_fast_paths.py",
    "tests/test_mailbox.py",
    "tests/test_ownership.py",
    *sorted(map(str, Path("tests").glob("test_runtime*.py"))),
]
"""Tests of what depends on the interpreter: threads, coroutines, fork, exit, signals."""
DEPENDENCY_TESTS = [
    "tests/test_asyncflow_logging.py",
    "tests/test_cli.py",
    "tests/test_dask_backend.py",
    "tests/test_dask_options.py",
    "tests/test_dask_plugin.py",
    "tests/test_graph_views.py",
    "tests/test_local_backend.py",
    "tests/test_pool_recovery.py",
    "tests/test_progress.py",
    "tests/test_prompt_backend.py",
    "tests/test_remote_inputs.py",
    "tests/test_remote_results.py",
    "tests/test_report.py",
    "tests/test_telemetry.py",
    "tests/test_remote_tracebacks.py",
]
"""Tests of what uses other projects' packages."""
RESULTS = Path(".nox/results")

nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = IS_CI
nox.options.sessions = [
    "lint",
    "rust",
    "targets",
    "typecheck",
    "imports",
    "docs",
    *(f"tests-{version}" for version in WHOLE),
    *(f"interpreter-{version}" for version in PYTHONS if version not in WHOLE),
    "lowest",
    "portable",
    "sanitizer",
    "summary",
]


def cargo_env(folder: str = "") -> dict[str, str]:
    """One target folder for all sessions, so that only what has changed is compiled.

    It is kept where `CARGO_TARGET_DIR` says; `folder` is one inside it, for other flags.
    """
    target = Path(os.environ.get("CARGO_TARGET_DIR", "target")).resolve() / folder
    return {"CARGO_TARGET_DIR": str(target)}


def build_wheel(session: nox.Session, env: dict[str, str] | None = None) -> Path:
    """Build the wheel for the session's interpreter."""
    wheels = Path(session.create_tmp()) / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    python = str(Path(session.bin) / "python")
    build = ["uv", "build", "-q", "--wheel", "--python", python, "--out-dir", str(wheels)]
    session.run(*build, env=env or cargo_env())
    return next(wheels.glob("*.whl"))


def install_wheel(session: nox.Session, *extras: str, env: dict[str, str] | None = None) -> None:
    """Build the wheel for the session's interpreter and install that, with `extras`."""
    wheel = build_wheel(session, env)
    extra = f"[{','.join(extras)}]" if extras else ""
    # By force: the version stays the same while the code changes.
    session.install("--reinstall-package", "dftracer-asyncflow", f"{wheel}{extra}")


def run_tests(
    session: nox.Session,
    *arguments: str,
    env: dict[str, str] | None = None,
    success_codes: Sequence[int] = (0,),
) -> None:
    """Print what is installed, run pytest on all cores, and keep its figures for the summary."""
    session.run("uv", "pip", "list", "--format=freeze")
    RESULTS.mkdir(parents=True, exist_ok=True)
    figures = RESULTS.resolve() / f"{session.name}.json"
    figures.unlink(missing_ok=True)
    # Not the plugin of a package that others bring along: an old one does not know a new pytest.
    workers = ["-n", "2", "--dist", "loadfile", "-p", "no:anyio"]
    # A run in which a process has died ends: with another in its place it may hang for good.
    workers += ["--max-worker-restart=0", "--durations=20"]
    settings = {"DFTRACER_FIGURES": str(figures), **(env or {})}
    session.run("pytest", *workers, *arguments, env=settings, success_codes=success_codes)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and common mistakes in the Python code."""
    session.install("ruff>=0.15")
    session.run("ruff", "check", *SOURCES)
    session.run("ruff", "format", "--check", *SOURCES)


@nox.session
def rust(session: nox.Session) -> None:
    """Format, lints, tests and models of the Rust code."""
    session.run(".ci/rust-circles", external=True)
    # PyO3 asks an interpreter what to build for; the module itself is linked by no test.
    env = cargo_env()
    env["PYO3_PYTHON"] = shutil.which("python", path=session.bin) or "python"
    env["PYO3_BUILD_EXTENSION_MODULE"] = "1"
    session.run("cargo", "fmt", "--all", "--check", external=True)
    clippy = ["cargo", "clippy", "--workspace", "--all-targets", "--locked"]
    session.run(*clippy, "--", "-D", "warnings", external=True, env=env)
    core = ["cargo", "test", "-p", "dftracer-core", "--locked"]
    session.run(*core, external=True, env=env)
    # What wakes threads and event loops on systems that are not Linux.
    portable = {**env, "RUSTFLAGS": "--cfg dft_portable", **cargo_env("portable")}
    session.run(*core, external=True, env=portable)
    # Every interleaving of what threads share.
    models = [f"--test={path.stem}" for path in sorted(Path("rust/core/tests").glob("loom_*.rs"))]
    loom = {**env, "RUSTFLAGS": "--cfg dft_loom", **cargo_env("loom")}
    session.run(*core, "--release", *models, external=True, env=loom)


@nox.session
def targets(session: nox.Session) -> None:
    """The code compiles for other systems and for interpreters without the GIL."""
    nightly = rust_nightly(session)
    env = {**cargo_env("targets"), "PYO3_BUILD_EXTENSION_MODULE": "1"}
    cargo = [f"{nightly}/bin/cargo", "check", "-q", "--workspace", "--locked"]
    foreign = [*cargo, "-Zbuild-std=std,panic_unwind", "--target"]
    for target in ("aarch64-apple-darwin", "aarch64-unknown-linux-gnu"):
        config = interpreter_config(session, "3.14")
        settings = {**env, "RUSTC": f"{nightly}/bin/rustc", "PYO3_CONFIG_FILE": config}
        session.run(*foreign, target, external=True, env=settings)
    cargo[0] = "cargo"
    for version in ("3.14", "3.15"):
        config = interpreter_config(session, version, "Py_GIL_DISABLED")
        session.run(*cargo, external=True, env={**env, "PYO3_CONFIG_FILE": config})


def interpreter_config(session: nox.Session, version: str, flags: str = "") -> str:
    """Describe an interpreter that is not here to PyO3."""
    path = Path(session.create_tmp()).resolve() / f"cpython-{version}{flags and '-' + flags}.txt"
    path.write_text(
        f"implementation=CPython\nversion={version}\nshared=true\nabi3=false\npointer_width=64\n"
        f"build_flags={flags}\nsuppress_build_script_link_lines=true\n",
        encoding="utf-8",
    )
    return str(path)


def rust_nightly(session: nox.Session) -> str:
    """Return the folder of a nightly toolchain that has the standard library's source."""
    found = subprocess.run([".ci/rust-nightly"], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode and IS_CI:
        session.error("there is no nightly toolchain with the standard library's source here")
    if found.returncode:
        session.skip("there is no nightly toolchain with the standard library's source here")
    return found.stdout.strip()


@nox.session
def sanitizer(session: nox.Session) -> None:
    """The tests of the Rust core under ThreadSanitizer."""
    nightly = rust_nightly(session)
    env = {
        **cargo_env("sanitizer"),
        "RUSTC": f"{nightly}/bin/rustc",
        "RUSTFLAGS": "-Zsanitizer=thread",
        "TSAN_OPTIONS": "halt_on_error=1",
        "RUST_TEST_THREADS": "2",
    }
    host = f"{os.uname().machine}-unknown-linux-gnu"
    command = [f"{nightly}/bin/cargo", "test", "-p", "dftracer-core", "--locked", "--lib"]
    session.run(*command, "-Zbuild-std", "--target", host, external=True, env=env)


@nox.session
def typecheck(session: nox.Session) -> None:
    """Strict types in the Python code and the pages, and the stub against the native module."""
    session.install("mypy>=1.15", "pyright[nodejs]>=1.1.400", "pytest>=8", "nox")
    install_wheel(session)
    for platform in ("linux", "darwin"):
        checked = ["dftracer", "examples", "noxfile.py", "tests/typing_engine.py"]
        session.run("mypy", "--platform", platform, *checked)
    session.run("mypy", "benchmarks")
    session.run("pyright")
    # What a user's editor says of the pages' programs and of the calls that must have types.
    programs = Path(session.create_tmp()) / "programs"
    shutil.rmtree(programs, ignore_errors=True)
    programs.mkdir()
    shutil.copy("tests/typing_engine.py", programs)
    session.run("python", "tests/docs_support.py", str(programs))
    silent = ["UnknownArgumentType", "UnknownLambdaType", "UnknownMemberType", "UnusedImport"]
    silent += ["UnknownParameterType", "UnknownVariableType", "MissingParameterType"]
    silent += ["MissingImports", "MissingModuleSource"]  # of optional packages
    settings = {"typeCheckingMode": "strict", **{f"report{name}": False for name in silent}}
    (programs / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    session.run("pyright", "-p", str(programs))
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
    """All tests, with the newest versions of what we depend on."""
    install_wheel(session, "test")
    run_tests(session, *session.posargs)


@nox.session(python=PYTHONS)
def interpreter(session: nox.Session) -> None:
    """The tests of what depends on the interpreter."""
    install_wheel(session)
    session.install(*nox.project.dependency_groups(nox.project.load_toml(), "interpreter"))
    run_tests(session, *(session.posargs or INTERPRETER_TESTS))


@nox.session(python=LOWEST)
def lowest(session: nox.Session) -> None:
    """The tests of what uses other packages, with the lowest versions that we allow."""
    project = nox.project.load_toml()["project"]
    extras = dict(project["optional-dependencies"])
    of_tests = extras.pop("test")
    ours = [*project["dependencies"], *(each for extra in extras.values() for each in extra)]
    session.install("--upgrade", "--resolution", "lowest-direct", str(build_wheel(session)), *ours)
    named = {re.split(r"[\[>=;]", each)[0] for each in ours}
    session.install(*[each for each in of_tests if re.split(r"[\[>=;]", each)[0] not in named])
    run_tests(session, *(session.posargs or DEPENDENCY_TESTS))


@nox.session(python=["3.14t"])
def freethreaded(session: nox.Session) -> None:
    """All tests without the GIL, on an interpreter that is built from Debian's source.

    There is no 3.13t: PyO3 refuses to build for free-threaded versions before 3.14.
    """
    install_wheel(session, "test")
    run_tests(session, *session.posargs, env={"PYTHON_GIL": "0"})


@nox.session(python=WHOLE[0])
def portable(session: nox.Session) -> None:
    """The tests of what depends on the interpreter, woken as on systems that are not Linux."""
    env = {**cargo_env("portable"), "RUSTFLAGS": "--cfg dft_portable"}
    install_wheel(session, env=env)
    session.install(*nox.project.dependency_groups(nox.project.load_toml(), "interpreter"))
    run_tests(session, *(session.posargs or INTERPRETER_TESTS))


@nox.session(python=WHOLE[-1])
def coverage(session: nox.Session) -> None:
    """Which lines of Python and Rust no test reaches: in ``.nox/coverage/report``.

    Asked for by hand: with it, a run of everything takes a third longer.
    """
    found = subprocess.run([".ci/llvm-tools"], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        session.error("llvm-cov and llvm-profdata of the Rust compiler's version are needed")
    tools = found.stdout.strip()
    flags = "-Cinstrument-coverage -Cllvm-args=-runtime-counter-relocation"
    env = {**cargo_env("coverage"), "RUSTFLAGS": flags, "CARGO_PROFILE_RELEASE_STRIP": "none"}
    env["CARGO_PROFILE_RELEASE_LTO"] = "off"
    env["LLVM_PROFILE_FILE"] = str(Path(session.create_tmp()).resolve() / "of-build-%m.profraw")
    install_wheel(session, "test", env=env)
    session.install("pytest-cov>=7", "coverage>=7.10")
    folder = Path(session.virtualenv.location).resolve() / "report"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    # All processes count in one mapped file for each module, so that those count, too, that a test
    # kills.
    profiles = {"LLVM_PROFILE_FILE": str(folder / "%m%c.profraw")}
    lines = folder / "python.json"
    python = ["--cov", "--cov-report", f"json:{lines}"]
    # Programs that have become somebody else by their end must be able to write there, too.
    with tempfile.TemporaryDirectory() as shared:
        os.chmod(shared, 0o777)
        data = {"COVERAGE_FILE": f"{shared}/data"}
        # Whether tests pass is the business of the session `tests`. A few cannot here: what they
        # do to their programs, such as limits for files, hinders the counting of lines.
        settings = {**profiles, **data}
        run_tests(session, *python, *session.posargs, env=settings, success_codes=(0, 1))
    tested = ["cargo", "test", "-q", "-p", "dftracer-core", "--locked", "--release", "--lib"]
    session.run(*tested, "--no-run", external=True, env=env)
    session.run(*tested, external=True, env={**env, **profiles})
    merged = folder / "rust.profdata"
    raw = sorted(map(str, folder.glob("*.profraw")))
    session.run(
        f"{tools}/llvm-profdata", "merge", "--sparse", *raw, "-o", str(merged), external=True
    )
    native = next(Path(session.virtualenv.location).rglob("_native*.so"))
    cores = (Path(env["CARGO_TARGET_DIR"]) / "release" / "deps").glob("dftracer_core-*")
    core = max((each for each in cores if not each.suffix), key=lambda each: each.stat().st_mtime)
    chosen = ["--instr-profile", str(merged), str(native), "--object", str(core)]
    chosen += ["--ignore-filename-regex", "/registry/|/rustc/|/tests[.]rs"]
    export = [f"{tools}/llvm-cov", "export", "--format=lcov", *chosen]
    with (folder / "rust.lcov").open("w", encoding="utf-8") as counts:
        session.run(*export, external=True, stdout=counts)
    figures = [str(lines), str(folder / "rust.lcov"), str(folder / "unreached.txt")]
    session.run("python", ".ci/unreached", *figures)


@nox.session
def summary(session: nox.Session) -> None:
    """What was run: for each interpreter the tests, why some were skipped, and the minutes."""
    for path in sorted(RESULTS.glob("*.json")):
        figures = json.loads(path.read_text(encoding="utf-8"))
        outcomes = figures["outcomes"]
        lock = "" if figures["gil"] else " without the GIL"
        session.log(
            f"{path.stem}: CPython {figures['python']}{lock}, {sum(outcomes.values())} tests: "
            f"{', '.join(f'{count} {name}' for name, count in sorted(outcomes.items()))}, "
            f"{figures['seconds'] / 60:.1f} minutes"
        )
        for reason, count in sorted(figures["skips"].items()):
            session.log(f"    {count} skipped: {reason}")
