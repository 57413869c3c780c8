"""Programs for radical.asyncflow, of which nothing is changed but where they import from.

Each tells in a comment at its end what it prints. That is what radical.asyncflow 0.6.0 makes of it,
so `python tests/compatibility/quickstart.py` prints it too where that is installed.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAMS = sorted(Path(__file__).with_name("compatibility").glob("*.py"))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_the_output_is_the_same_when_a_program_imports_from_here(
    path: Path, run_script: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source, _, expected = path.read_text(encoding="utf-8").partition("\n# Output:\n")
    assert "from radical.asyncflow" in source
    output = run_script(source.replace("radical.asyncflow", "dftracer.asyncflow"))
    assert output.splitlines() == [line[2:] for line in expected.splitlines()]
    assert [entry.name for entry in tmp_path.iterdir()] == ["script.py"]


def test_there_are_programs_when_these_tests_run() -> None:
    assert len(PROGRAMS) > 10
