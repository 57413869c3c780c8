"""What the function of an executable or prompt task may return, and what is run for it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from typing import Any

from dftracer.asyncflow.errors import CommandError, text_of
from dftracer.utils.redaction import hide

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


def to_argv(task: str, command: Any, shell: bool | None = None) -> list[str]:
    """Turn what the function of ``task`` returned into the words of a program.

    A string means what it means to a shell: it is split into words and run directly if no shell is
    needed for that, else it goes unchanged to ``/bin/sh -c``. A list or tuple of words is run as
    it is, without any shell.

    Parameters
    ----------
    shell:
        ``True`` runs any command in a shell, ``False`` none.

    Raises
    ------
    CommandError
        If there is no program in it, or a quote is never closed.
    """
    if shell is not None and not isinstance(shell, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise CommandError(
            f"executable task '{task}': 'shell' in its task_description must be True or False, not "
            f"{_describe(shell)}"
        )
    if isinstance(command, str):
        return _split(task, command, shell)
    if isinstance(command, (list, tuple)):
        words = _words(task, command)  # pyright: ignore[reportUnknownArgumentType]
        return [SHELL, "-c", shlex.join(words)] if shell else words
    raise CommandError(
        f"executable task '{task}' must return a non-empty command string or a list of words, not "
        f"{_describe(command)}"
    )


def to_text(argv: list[str]) -> str:
    """Return the command as one would type it."""
    if len(argv) == 3 and argv[:2] == [SHELL, "-c"]:
        return argv[2]
    return shlex.join(argv)


def to_prompt(task: str, prompt: Any) -> str:
    """Return what the function of ``task`` returned if it is a prompt.

    Raises
    ------
    CommandError
        If it is no text, or an empty one.
    """
    if isinstance(prompt, str) and prompt.strip():
        return prompt
    raise CommandError(
        f"prompt task '{task}' must return a non-empty string prompt, not {_describe(prompt)}"
    )


def _split(task: str, command: str, shell: bool | None) -> list[str]:
    if not command.strip():
        raise CommandError(
            f"executable task '{task}' must return a non-empty command string, not "
            f"{_describe(command)}"
        )
    if "\0" in command:
        raise CommandError(f"executable task '{task}': a command cannot hold a null character")
    if shell or (shell is None and _NEEDS_SHELL.search(command)):
        return [SHELL, "-c", command]
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise CommandError(
            f"executable task '{task}': {error}: check the quotes in {text_of(command)}"
        ) from None
    if not words[0]:
        raise CommandError(
            f"executable task '{task}': the program's name is empty in {text_of(command)}"
        )
    if shell is None and words[0] in _SHELL_WORDS:
        return [SHELL, "-c", command]
    return words


def _words(task: str, command: list[Any] | tuple[Any, ...]) -> list[str]:
    words: list[str] = []
    for word in command:
        if not isinstance(word, (str, os.PathLike)):
            raise CommandError(
                f"executable task '{task}': every word of a command must be a string or a path, "
                f"not {_describe(word)}"
            )
        text = os.fsdecode(word)  # pyright: ignore[reportUnknownArgumentType]
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


def program_of(command: Sequence[str]) -> str:
    """Return the program that a command runs: of a shell's the first word, without secrets."""
    if command[0] == SHELL and list(command[1:2]) == ["-c"]:
        words = command[2].split(None, 1)
        return hide(words[0]) if words else command[0]
    return command[0]
