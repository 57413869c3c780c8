"""Durations as people write them."""

from __future__ import annotations

import math
import re

_MILLISECONDS = {"ms": 1, "s": 1_000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_LONGEST = 2**63 - 1
"""More milliseconds than any clock will see, and as many as native code takes."""
_TEXT = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(ms|s|min|m|h|d)\s*")


def to_milliseconds(value: float | str, name: str) -> int:
    """Turn a number of milliseconds, or a text such as ``"30s"`` or ``"5m"``, into milliseconds.

    The units of a text are ``ms``, ``s``, ``m`` or ``min``, ``h`` and ``d``. A time above 0 is at
    least 1 ms.

    Raises
    ------
    ValueError
        If it is negative, not a number, endless, or not such a text; it names ``name``.
    TypeError
        If it is neither a number nor a text.
    """
    hint = f"{name} must be a number of milliseconds or a text such as '30s' or '5m'"
    if isinstance(value, str):
        match = _TEXT.fullmatch(value)
        if match is None:
            raise ValueError(f"{hint}, not {value!r}")
        milliseconds = float(match[1]) * _MILLISECONDS[match[2]]
    elif type(value) is bool or not isinstance(value, (int, float)):  # pyright: ignore
        raise TypeError(f"{hint}, not {type(value).__name__}")
    else:
        try:
            milliseconds = float(value)
        except OverflowError:
            milliseconds = math.inf
    if not 0 <= milliseconds < math.inf:
        raise ValueError(f"{hint}, finite and not below 0: not {value!r}")
    return min(max(1, round(milliseconds)), _LONGEST) if milliseconds > 0 else 0
