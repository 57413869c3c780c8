"""What the first page promises."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language in the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_ci_runs_the_test_command_when_it_is_the_one_of_the_readme() -> None:
    (command,) = [block.strip() for block in blocks("sh") if "nox" in block]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert script[-1] == command


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_an_example_runs_when_it_is_taken_from_the_readme(number: int, tmp_path: Path) -> None:
    for name in ("README.md", "pyproject.toml"):  # the example counts their bytes
        shutil.copy(ROOT / name, tmp_path / name)
    script = tmp_path / "example.py"
    script.write_text(blocks("python")[number], encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=50,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout
    if "sizes" in script.read_text(encoding="utf-8"):
        names = ("README.md", "pyproject.toml")
        size = sum((tmp_path / name).stat().st_size for name in names)
        assert result.stdout == f"{size} bytes\n"
