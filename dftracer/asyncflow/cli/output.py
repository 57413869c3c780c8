"""What the commands print: their name, texts in any encoding, warnings of the library."""

from __future__ import annotations

import logging

NAME = "dftracer-flow"


def printable(text: object) -> str:
    """Return a text that can be printed, also if it is a name in no encoding."""
    return str(text).encode(errors="backslashreplace").decode()


def print_warnings() -> None:
    """Write what the library warns of to the standard error, as errors are."""
    logging.basicConfig(format=f"{NAME}: %(message)s", level=logging.WARNING)
