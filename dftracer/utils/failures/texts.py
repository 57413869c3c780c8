"""Values and errors as texts for messages: short, without secrets, whatever their own code does."""

from __future__ import annotations

from dftracer.utils.failures.interruption import let_out
from dftracer.utils.redaction import hide

_LONGEST_TEXT = 500
_LONGEST_ERROR = 8_000
"""How many characters messages repeat of a value and of another error: a chain of errors of which
each repeats the last would double the text with each link."""


def text_of(value: object) -> str:
    """Return ``repr(value)`` without secrets, or what can be said if it raises."""
    try:
        return _cut(hide(repr(value)), _LONGEST_TEXT)
    except BaseException as fault:
        let_out(fault)
        return f"<{type(value).__name__} without a text>"


def text_of_error(error: BaseException | None) -> str:
    """Return type and text of an error without secrets, or its type alone if ``str()`` raises."""
    name = type(error).__name__
    try:
        return _cut(f"{name}: {hide(str(error))}", _LONGEST_ERROR)
    except BaseException as fault:
        let_out(fault)
        return name


def _cut(text: str, longest: int) -> str:
    """Return a text, or its beginning and its end if it is too long."""
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]} ... {text[-longest // 2 :]}"
