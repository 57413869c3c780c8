"""The census example, run as a program and compared with a plain sequential script."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from terminal_support import Terminal

CENSUS = Path(__file__).resolve().parents[1] / "examples" / "census.py"
SEQUENTIAL = Path(__file__).resolve().with_name("census_sequential.py")
COUNTS = (
    "files",
    "lines",
    "functions",
    "async_functions",
    "classes",
    "bytes",
    "longest",
    "failed",
)
TOP_LEVEL = "(top level)"

pytestmark = pytest.mark.skipif(shutil.which("wc") is None, reason="the census needs wc")


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run the interpreter of the tests on ``arguments`` and return its code and output."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def census(tree: Path | None, output: Path) -> dict[str, Any]:
    """Run the example on ``tree``, or on its default directory, and return what it wrote."""
    done = run(CENSUS, *([] if tree is None else [tree]), "--json", output, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return result


def sequential(tree: Path) -> dict[str, Any]:
    """Run the sequential script on ``tree`` and return what it printed."""
    done = run(SEQUENTIAL, tree)
    assert (done.returncode, done.stderr) == (0, "")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def comparable(counts: dict[str, Any]) -> dict[str, Any]:
    """Leave out of the errors what depends on the size of a thread's stack."""
    too_deep = ("RecursionError", "MemoryError")
    failed = {
        file: "too deep" if error.startswith(too_deep) else error
        for file, error in counts["failed"].items()
    }
    return {**counts, "failed": failed}


def assert_same_counts(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare every count of every package, and of the whole tree."""
    assert sorted(actual["packages"]) == sorted(expected["packages"])
    pairs = {
        name: (counts, expected["packages"][name]) for name, counts in actual["packages"].items()
    }
    pairs["(the whole tree)"] = (actual["total"], expected["total"])
    for name, (ours, theirs) in pairs.items():
        assert sorted(ours) == sorted(theirs) == sorted(COUNTS), name
        for count in COUNTS:
            assert comparable(ours)[count] == comparable(theirs)[count], f"{count} of {name}"


def bytes_below(tree: Path) -> int:
    """Add up the sizes of the files the census counts, in bytes, as ``os.stat`` tells them."""
    excluded = {"__pycache__", "site-packages", "dist-packages"}
    return sum(
        os.stat(path).st_size
        for path in tree.rglob("*.py")
        if path.is_file() and not excluded.intersection(path.relative_to(tree).parts)
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return an empty directory, beside which the tests may write their output."""
    path = tmp_path / "a tree"
    path.mkdir()
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return the path of the JSON file to write."""
    return tmp_path / "out.json"


def write(path: Path, content: str | bytes) -> Path:
    """Write a file with its folders, its line ends exactly as given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


GOOD = "import os\n\n\nclass A:\n    def f(self):\n        return 1\n\n    async def g(self): ...\n"
BROKEN = {
    "pkg/syntax.py": b"def broken(:\n",
    "pkg/null.py": b"x = 1\0\n",
    "pkg/cookie.py": b"# -*- coding: no-such-codec -*-\nx = 1\n",
    "pkg/not_utf8.py": b"x = '\xff\xfe'\n",
    "pkg/indent.py": b"if 1:\nx = 1\n",
    "pkg/deep_parentheses.py": b"x = " + b"(" * 250 + b")" * 250 + b"\n",
    "pkg/deep_operators.py": b"x = " + b"-" * 100_000 + b"1\n",
}
AWKWARD = (
    "pkg/name with spaces.py",
    'pkg/it\'s "quoted".py',
    "pkg/$HOME `id` *.py",
    "pkg/line\nbreak.py",
    "pkg/back\\slash.py",
    "pkg/caf\u00e9.py",
    "-n.py",
    "--files0-from=x.py",
    "total.py",
    "-x/-n.py",
    "package with spaces/total.py",
)


@pytest.fixture
def awkward(tree: Path) -> Path:
    """Return a tree of good files with awkward names, and of every kind of bad file."""
    for number, name in enumerate(AWKWARD):
        write(tree / name, GOOD + "\n" * number)
    for name, content in BROKEN.items():
        write(tree / name, content)
    write(tree / "pkg/empty.py", b"")
    write(tree / "pkg/carriage_returns.py", b"a = 1\rb = 2\r\nc = 3\n\rd = 4")
    write(tree / "pkg/form_feed.py", b"a = 1\n\x0c\nb = '\x0b\x1c'\n")
    write(tree / "pkg/nested/deeper/module.py", GOOD)
    write(tree / "pkg/data.txt", "not Python\n")
    (tree / "pkg/folder.py").mkdir()
    (tree / "pkg/broken_link.py").symlink_to("nowhere.py")
    (tree / "pkg/loop.py").symlink_to("loop.py")
    (tree / "pkg/good_link.py").symlink_to("empty.py")
    (tree / "linked_folder").symlink_to("pkg", target_is_directory=True)
    return tree


@pytest.mark.timeout(600)
def test_census_agrees_with_sequential_script_when_tree_is_standard_library(output: Path) -> None:
    library = Path(os.path.abspath(sysconfig.get_paths()["stdlib"]))

    result = census(None, output)

    assert result["root"] == str(library)
    assert_same_counts(result, sequential(library))
    assert result["total"]["bytes"] == bytes_below(library)


def test_census_agrees_with_sequential_script_when_files_are_awkward(
    awkward: Path, output: Path
) -> None:
    result = census(awkward, output)

    assert_same_counts(result, sequential(awkward))
    assert result["total"]["bytes"] == bytes_below(awkward)


def test_bad_files_are_listed_with_their_error_when_they_cannot_be_parsed(
    awkward: Path, output: Path
) -> None:
    failed = census(awkward, output)["total"]["failed"]

    assert sorted(failed) == sorted([*BROKEN, "pkg/broken_link.py", "pkg/loop.py"])
    kinds = {file: error.partition(":")[0] for file, error in failed.items()}
    assert kinds["pkg/syntax.py"] == "SyntaxError"
    assert kinds["pkg/null.py"] in ("ValueError", "SyntaxError")
    assert kinds["pkg/indent.py"] == "IndentationError"
    assert kinds["pkg/broken_link.py"] == "FileNotFoundError"
    assert kinds["pkg/loop.py"] == "OSError"
    assert kinds["pkg/deep_operators.py"] in ("MemoryError", "RecursionError")
    assert "no-such-codec" in failed["pkg/cookie.py"]


def test_table_lists_total_and_failures_when_printed(awkward: Path, output: Path) -> None:
    done = run(CENSUS, awkward, "--json", output)

    assert done.returncode == 0
    total = json.loads(output.read_text(encoding="utf-8"))["total"]
    rows = [line.split() for line in done.stdout.splitlines()]
    shown = [row for row in rows if row[:1] == ["total"]]
    numbers = ("files", "lines", "functions", "async_functions", "classes", "bytes")
    assert len(shown) == 1
    assert {f"{total[number]:,}" for number in numbers} <= set(shown[0])
    for file, error in total["failed"].items():
        assert f"  {file}: {error}" in done.stdout.splitlines()


def test_sizes_of_other_files_are_kept_when_one_file_of_many_is_broken(
    tree: Path, output: Path
) -> None:
    for number in range(300):
        write(tree / f"pkg/module_{number:03}.py", "#" * number)
    (tree / "pkg/module_150_gone.py").symlink_to("nowhere.py")

    result = census(tree, output)

    assert result["total"]["files"] == 301
    assert result["total"]["bytes"] == sum(range(300))
    assert list(result["total"]["failed"]) == ["pkg/module_150_gone.py"]


def test_files_are_counted_when_their_paths_do_not_fit_one_command_line(
    tree: Path, output: Path
) -> None:
    limit = os.pathconf(tree, "PC_PATH_MAX")  # bytes, with a zero byte at the end
    folder = tree / "pkg"
    while len(os.fsencode(folder)) + 2 * 201 + 20 < limit:
        folder /= "d" * 200
    for number in range(1200):
        write(folder / f"{'m' * 200}{number:04}.py", GOOD)

    result = census(tree, output)

    assert result["total"]["bytes"] == 1200 * len(GOOD)
    assert result["total"]["failed"] == {}


@pytest.mark.skipif(sys.platform == "darwin", reason="file names must be UTF-8 there")
def test_file_is_counted_when_its_name_is_not_utf8(tree: Path, output: Path) -> None:
    name = os.fsdecode(b"caf\xe9.py")
    write(tree / name, GOOD)
    write(tree / "pkg" / os.fsdecode(b"bad\xff.py"), b"def broken(:\n")

    result = census(tree, output)

    assert_same_counts(result, sequential(tree))
    assert result["packages"][TOP_LEVEL]["longest"]["file"] == name
    assert result["total"]["bytes"] == bytes_below(tree)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind this user"
)
def test_unreadable_file_is_listed_when_permission_is_missing(tree: Path, output: Path) -> None:
    write(tree / "pkg/good.py", GOOD)
    write(tree / "pkg/secret.py", GOOD).chmod(0)

    result = census(tree, output)

    assert result["total"]["failed"]["pkg/secret.py"].startswith("PermissionError")
    assert result["total"]["bytes"] == len(GOOD)
    assert_same_counts(result, sequential(tree))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_named_pipe_is_left_out_when_it_is_called_like_a_module(tree: Path, output: Path) -> None:
    write(tree / "good.py", GOOD)
    os.mkfifo(tree / "pipe.py")

    assert census(tree, output)["total"]["files"] == 1


def test_folders_are_left_out_when_they_hold_installed_or_compiled_code(
    tree: Path, output: Path
) -> None:
    write(tree / "kept.py", GOOD)
    write(tree / "site-packages/other.py", GOOD)
    write(tree / "pkg/dist-packages/deep/other.py", GOOD)
    write(tree / "pkg/__pycache__/other.py", GOOD)

    result = census(tree, output)

    assert list(result["packages"]) == [TOP_LEVEL]
    assert result["total"]["files"] == 1


def test_longest_function_is_first_by_file_and_line_when_several_are_equally_long(
    tree: Path, output: Path
) -> None:
    write(tree / "b/module.py", "def early():\n    a = 1\n    b = 2\n")
    write(tree / "a/module.py", "x = 1\nasync def one():\n    a\n    b\ndef two():\n    a\n    b\n")
    write(tree / "a/other.py", "@decorator\n@another\n@third\ndef decorated(): ...\n")

    result = census(tree, output)

    expected = {"file": "a/module.py", "line": 2, "lines": 3, "name": "one"}
    assert result["total"]["longest"] == result["packages"]["a"]["longest"] == expected
    assert result["packages"]["b"]["longest"]["name"] == "early"


def test_output_is_the_same_when_the_census_is_repeated(awkward: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"

    runs = [run(CENSUS, awkward, "--json", path, "--quiet") for path in (first, second)]

    assert [done.returncode for done in runs] == [0, 0]
    assert runs[0].stdout == runs[1].stdout
    assert first.read_bytes() == second.read_bytes()


def test_stderr_stays_empty_when_a_parsed_file_warns(tree: Path, output: Path) -> None:
    write(tree / "warns.py", "x = '\\d'\ny = 1 if 1is 1 else 0\nassert (1, 'always true')\n")

    done = run("-W", "always", CENSUS, tree, "--json", output, "--quiet")

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(output.read_text(encoding="utf-8"))["total"]["lines"] == 3


def test_progress_ends_with_a_line_per_task_when_stderr_is_not_a_terminal(
    tree: Path, output: Path
) -> None:
    for number in range(40):
        write(tree / f"module_{number}.py", GOOD)

    done = run(CENSUS, tree, "--json", output)

    *progress, last = done.stderr.splitlines()
    assert {line.partition(",")[0] for line in progress[-3:]} == {
        "parse: 40/40",
        "weigh: 1/1",
        "report: 1/1",
    }
    assert last.startswith("40 files in ")
    assert last.endswith(" files/s")


def test_progress_is_a_bar_per_task_when_stderr_is_a_terminal(tree: Path, output: Path) -> None:
    for number in range(10):
        write(tree / f"module_{number}.py", GOOD)

    command = [sys.executable, str(CENSUS), str(tree), "--json", str(output)]
    with Terminal(width=100) as terminal:
        done = terminal.run(command)
        lines = terminal.screen()

    assert done == 0
    bars = [line for line in lines if "━" in line]
    assert [line.split()[0] for line in bars] == ["parse", "weigh", "report"]
    assert [line.split()[2] for line in bars] == ["10/10", "1/1", "1/1"]
    assert lines[-1].startswith("10 files in ")


def test_table_is_cut_when_top_is_smaller_than_the_number_of_packages(
    tree: Path, output: Path
) -> None:
    for number in range(1, 5):
        write(tree / f"package_{number}/module.py", "x = 1\n" * number)

    done = run(CENSUS, tree, "--json", output, "--top", 2, "--quiet")

    first = [line.split(" ")[0] for line in done.stdout.splitlines()]
    assert first == ["package", "package_4", "package_3", "(2", "total"]
    assert len(json.loads(output.read_text(encoding="utf-8"))["packages"]) == 4


def test_json_is_written_to_current_directory_when_no_file_is_named(
    tree: Path, tmp_path: Path
) -> None:
    write(tree / "good.py", GOOD)
    command = [sys.executable, str(CENSUS), tree.name]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0
    result = json.loads((tmp_path / "census.json").read_text(encoding="utf-8"))
    assert result["root"] == str(tree)
    assert result["total"]["bytes"] == len(GOOD)


def test_census_fails_with_message_when_directory_does_not_exist(
    tmp_path: Path, output: Path
) -> None:
    done = run(CENSUS, tmp_path / "nowhere", "--json", output)

    assert (done.returncode, done.stdout) == (2, "")
    assert f"No such file or directory: {tmp_path / 'nowhere'}" in done.stderr
    assert not output.exists()


def test_census_fails_with_message_when_a_file_is_given(tmp_path: Path, output: Path) -> None:
    module = write(tmp_path / "module.py", GOOD)

    done = run(CENSUS, module, "--json", output)

    assert (done.returncode, done.stdout) == (2, "")
    assert f"Not a directory: {module}" in done.stderr
    assert not output.exists()


def test_census_fails_before_it_starts_when_the_json_cannot_be_written(
    tree: Path, tmp_path: Path
) -> None:
    done = run(CENSUS, tree, "--json", tmp_path / "nowhere" / "out.json")

    assert (done.returncode, done.stdout) == (2, "")
    assert f"No such file or directory: {tmp_path / 'nowhere'}" in done.stderr


def test_counts_are_zero_when_directory_is_empty(tree: Path, output: Path) -> None:
    result = census(tree, output)

    zeros = dict.fromkeys(COUNTS[:6], 0)
    assert result["packages"] == {}
    assert result["total"] == {**zeros, "longest": None, "failed": {}}
    assert_same_counts(result, sequential(tree))
