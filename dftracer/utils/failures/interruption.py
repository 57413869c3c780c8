"""Exceptions that are meant for the whole program."""

from __future__ import annotations

import signal


def let_out(error: BaseException) -> None:
    """Raise ``error`` again if it is meant for the whole program, not for the code that it was
    raised in: Ctrl-C, or the exit of a signal's handler."""
    if isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit) and _is_of_a_signal(error)
    ):
        raise error


def _is_of_a_signal(error: BaseException) -> bool:
    """Return whether ``error`` was raised in the handler of a signal."""
    if hasattr(error, "_is_of_a_signal"):  # its traceback may have lost its frames since
        return True
    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    entry = error.__traceback__
    while entry is not None:
        if entry.tb_frame.f_code in handlers:
            error._is_of_a_signal = True  # type: ignore[attr-defined]
            return True
        entry = entry.tb_next
    return False


def _code_of(handler: object) -> object:
    """Return the code of a signal's handler, if that is written in Python."""
    method: object = getattr(type(handler), "__call__", None)  # noqa: B004
    return getattr(handler, "__code__", None) or getattr(method, "__code__", None)
