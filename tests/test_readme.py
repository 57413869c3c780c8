"""What the first page promises."""

from docs_support import ROOT, commands


def test_ci_runs_the_test_command_when_it_is_the_one_of_the_readme() -> None:
    (command,) = [line for line in commands("README.md") if "nox" in line]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert script[-1] == command
