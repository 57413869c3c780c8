"""What an executable task's function may return, and the program that is run for it."""

from __future__ import annotations

import os
import re
import shlex
from typing import Any

from dftracer.asyncflow.errors import CommandError, text_of

SHELL = "/bin/sh"

_NEEDS_SHELL = re.compile(r"[|&;<>()$`*?\[\]#~=%{}!\n\r]|\\$")
"""Whatever a shell may read as more than a word, or splits otherwise. Quotes and backslashes are
not among it, but at the end: for these, splitting into words gives what a shell gives."""

_SHELL_WORDS = frozenset(
    """. : alias bg break builtin case cd command continue coproc declare dirs disown do done echo
    elif else enable esac eval exec exit export fc fg fi for function getopts hash help history if
    in jobs kill let local logout mapfile popd printf pushd pwd read readarray readonly return
    select set shift shopt source suspend test then time times trap type typeset ulimit umask
    unalias unset until wait while""".split()
)
"""Built into one shell or another: there is no program, or none that does quite the same."""


def to_argv(task: str, command: Any) -> list[str]:
    """Turn what the function of ``task`` returned into the words of a program.

    A string means what it means to a shell: it is split into words and run directly if no shell is
    needed for that, else it goes unchanged to ``/bin/sh -c``. A list or tuple of words is run as
    it is, without any shell.

    Raises
    ------
    CommandError
        If there is no program in it, or a quote is never closed.
    """
    if isinstance(command, str):
        return _split(task, command)
    if isinstance(command, (list, tuple)):
        return _words(task, command)
    raise CommandError(
        f"executable task '{task}' must return a command: a non-empty string or a list of words, "
        f"not {_describe(command)}"
    )


def to_text(argv: list[str]) -> str:
    """Return the command as one would type it."""
    if len(argv) == 3 and argv[:2] == [SHELL, "-c"]:
        return argv[2]
    return shlex.join(argv)


def _split(task: str, command: str) -> list[str]:
    if not command.strip():
        raise CommandError(
            f"executable task '{task}' must return a command, not {_describe(command)}"
        )
    if "\0" in command:
        raise CommandError(f"executable task '{task}': a command cannot hold a null character")
    if _NEEDS_SHELL.search(command):
        return [SHELL, "-c", command]
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise CommandError(
            f"executable task '{task}': {error}: check the quotes in {command!r}"
        ) from None
    if not words[0]:
        raise CommandError(f"executable task '{task}': the program's name is empty in {command!r}")
    if words[0] in _SHELL_WORDS:
        return [SHELL, "-c", command]
    return words


def _words(task: str, command: list[Any] | tuple[Any, ...]) -> list[str]:
    words = []
    for word in command:
        if not isinstance(word, (str, os.PathLike)):
            raise CommandError(
                f"executable task '{task}': every word of a command must be a string or a path, "
                f"not {_describe(word)}"
            )
        text = os.fsdecode(word)
        if "\0" in text:
            raise CommandError(f"executable task '{task}': a command cannot hold a null character")
        words.append(text)
    if not words or not words[0]:
        raise CommandError(f"executable task '{task}' returned a command without a program")
    return words


def _describe(value: Any) -> str:
    if value is None:
        return "None (is a return statement missing?)"
    if isinstance(value, str) and len(value) == 0:
        return "an empty one"
    return f"{type(value).__name__} {text_of(value)}"
