"""Two distributions in one environment that both own ``dftracer/utils``."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dftracer.utils

PACKAGES = Path(dftracer.utils.__file__).parents[1]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with a copy of the installed packages, to be imported from by another program."""
    shutil.copytree(PACKAGES / "utils", tmp_path / "dftracer" / "utils")
    shutil.copytree(PACKAGES / "asyncflow", tmp_path / "dftracer" / "asyncflow")
    return tmp_path


def run(site: Path, statement: str) -> "subprocess.CompletedProcess[str]":
    program = f"import sys; sys.path.insert(0, {str(site)!r}); {statement}"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, cwd=site, timeout=30)


def test_import_is_silent_when_the_package_is_alone(site: Path) -> None:
    result = run(site, "import dftracer.asyncflow, dftracer.utils; print(dftracer.utils.__file__)")
    assert (result.returncode, result.stderr) == (0, "")
    assert str(site) in result.stdout


def test_import_warns_when_the_other_wheel_lies_under_it(site: Path) -> None:
    (site / "dftracer" / "utils" / "dftracer_utils_ext.cpython-311-x86_64-linux-gnu.so").touch()
    result = run(site, "import dftracer.utils; print(dftracer.utils.Runtime().threads > 0)")
    assert result.stdout == "True\n"
    assert "RuntimeWarning: dftracer-utils is installed in the same environment" in result.stderr


def test_import_of_the_engine_says_why_when_the_other_wheel_lies_over_it(site: Path) -> None:
    (site / "dftracer" / "utils" / "__init__.py").write_text("class Runtime: ...\n")
    result = run(site, "import dftracer.asyncflow")
    assert result.returncode == 1
    assert "ImportError: 'dftracer.utils' belongs to another distribution" in result.stderr
