"""What an executable task may return, and the program that is run for it."""

import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from dftracer.asyncflow import CommandError, ExecutableError
from dftracer.asyncflow.commands import to_argv, to_text


class BytesPath:
    """A path in bytes."""

    def __fspath__(self) -> bytes:
        return b"name \xff"


class Text(str):
    """A string of a class of its own."""


@pytest.mark.parametrize(
    "command",
    ["ls -l 'a b'", '  ls  "x"  ', r"ls a\ b", "a/b-c_d.e:f,g+h@i^j", "''ls \"\" ''", "ls ünïcode"],
)
def test_a_string_is_split_when_it_needs_no_shell(command: str) -> None:
    assert to_argv("task", command) == shlex.split(command)
    assert to_argv("task", Text(command)) == shlex.split(command)


@pytest.mark.parametrize("character", list("|&;<>()$`*?[]#~={}!\n"))
def test_a_string_goes_to_the_shell_when_it_holds(character: str) -> None:
    command = f"ls a{character}b"
    assert to_argv("task", command) == ["/bin/sh", "-c", command]


@pytest.mark.parametrize("word", ["cd", "exec", "export", "umask", ".", "if", "'cd'", "set"])
def test_a_string_goes_to_the_shell_when_it_begins_with(word: str) -> None:
    command = f"  {word} somewhere"
    assert to_argv("task", command) == ["/bin/sh", "-c", command]


@pytest.mark.parametrize("kind", [list, tuple])
def test_words_are_taken_as_they_are_when_in_a(kind: type) -> None:
    words = ["program", "", " a b ", "$HOME", "*", ";", "~", "#", "a\nb", '"', "cd"]
    argv = to_argv("task", kind(words))
    assert argv == words
    assert type(argv) is list


def test_paths_become_words_when_in_a_list() -> None:
    argv = to_argv("task", [Path("/bin/ls"), BytesPath(), Text("text")])
    assert argv == ["/bin/ls", os.fsdecode(b"name \xff"), "text"]


NO_COMMANDS: list[tuple[Any, str]] = [
    (None, "None.*return"),
    ("", "empty"),
    ("   ", "'   '"),
    (" \t\n ", "str"),
    ([], "without a program"),
    ((), "without a program"),
    ([""], "without a program"),
    (["", "a"], "without a program"),
    ("''", "empty"),
    ('"" a', "empty"),
    (42, "int 42"),
    (0, "int 0"),
    (1.5, "float"),
    (True, "bool"),
    (b"ls", "bytes"),
    ({"ls": 1}, "dict"),
    ({"ls"}, "set"),
    pytest.param(iter(["ls"]), "iterator", id="iterator"),
    (Path("/bin/ls"), "Path"),
    (["ls", 1], "int 1"),
    (["ls", None], "None"),
    (["ls", b"-l"], "bytes"),
    (["ls", ["-l"]], "list"),
    ("echo 'never closed", "quot"),
    ('echo "never closed', "quot"),
    ("ls a\0b", "null"),
    (["ls", "a\0b"], "null"),
    (["l\0s"], "null"),
]


@pytest.mark.parametrize(("command", "reason"), NO_COMMANDS, ids=lambda value: repr(value)[:30])
def test_it_is_refused_with_the_task_and_the_reason_when_it_is_no_command(
    command: Any, reason: str
) -> None:
    with pytest.raises(CommandError, match=rf"(?s)'the task'.*{reason}") as caught:
        to_argv("the task", command)
    assert isinstance(caught.value, ValueError)


def test_it_is_refused_when_its_comparison_raises() -> None:
    class Awkward:
        def __eq__(self, other: object) -> bool:
            raise LookupError("no comparison")

        __hash__ = None  # type: ignore[assignment]

    with pytest.raises(CommandError, match="Awkward"):
        to_argv("task", Awkward())


@pytest.mark.parametrize("command", ["echo a | wc", "ls -l 'a b'", "cd / && ls"])
def test_the_text_runs_the_same_when_typed(command: str) -> None:
    text = to_text(to_argv("task", command))
    assert to_argv("task", text) == to_argv("task", command)


@pytest.mark.parametrize(
    "words", [["ls", "a b", "", "$HOME", "*"], ["/bin/sh", "-c"], ["sh", "-c", "ls"], ["a'b", '"']]
)
def test_the_text_gives_the_words_when_split(words: list[str]) -> None:
    assert shlex.split(to_text(words)) == words


def test_the_error_repeats_only_the_end_when_the_output_is_long() -> None:
    error = ExecutableError("mine", "ls -l", 3, None, "begin" + "x" * 10_000 + "end of stdout", "")
    text = str(error)
    assert "'mine'" in text
    assert "code 3" in text
    assert "ls -l" in text
    assert "stdout: ... xxx" in text
    assert text.endswith("xxxend of stdout")
    assert "begin" not in text
    assert "stderr" not in text
    assert len(text) < 5_000


def test_the_error_names_the_signal_when_one_ended_the_program() -> None:
    error = ExecutableError("mine", "ls", None, 9, "", "last words")
    assert "signal 9" in str(error)
    assert "last words" in str(error)
    assert "code" not in str(error)
