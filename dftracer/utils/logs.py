"""How much the loggers of this package say, and in which colours."""

from __future__ import annotations

import logging

_LEVELS = {
    "trace": 5,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "off": logging.CRITICAL + 10,
}
_ALIASES = {"warning": "warn", "none": "off"}
_COLORS = ("auto", "always", "never")

_log = logging.getLogger("dftracer.utils")
_color = "auto"


def set_log_level(level: str) -> None:
    """Let the logger ``dftracer.utils`` say what is of this level, and above.

    It is a logger of the standard library: where its records go is up to the program, for example
    by :func:`logging.basicConfig` or :func:`dftracer.asyncflow.logging.init_default_logger`.

    Parameters
    ----------
    level:
        ``trace``, ``debug``, ``info``, ``warn`` or ``warning``, ``error``, ``off`` or ``none``.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    name = _ALIASES.get(level.lower(), level.lower())
    if name not in _LEVELS:
        raise ValueError(f"the level of a log must be one of {', '.join(_LEVELS)}, not {level!r}")
    _log.setLevel(_LEVELS[name])


def get_log_level() -> str:
    """Return the lowest level that the logger ``dftracer.utils`` says, as for `set_log_level`."""
    effective = _log.getEffectiveLevel()
    return next((name for name, level in _LEVELS.items() if effective <= level), "off")


def set_log_color(mode: str) -> None:
    """Say whether :func:`dftracer.asyncflow.logging.init_default_logger` makes coloured lines.

    Parameters
    ----------
    mode:
        ``auto``: on terminals, as that logger decides. ``always``, also into files and pipes, or
        ``never``. It holds for the loggers that are set up from then on, and ``NO_COLOR`` in the
        environment outweighs it.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    global _color
    if mode not in _COLORS:
        raise ValueError(f"colours of a log must be one of {', '.join(_COLORS)}, not {mode!r}")
    _color = mode


def log_color() -> str:
    """Return what :func:`set_log_color` was given last; ``auto`` before."""
    return _color
