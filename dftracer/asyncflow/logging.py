"""Logging for a program: coloured text on the console, text and JSON lines in files.

>>> from dftracer.asyncflow.logging import init_default_logger
>>> logger = init_default_logger("DEBUG", structured_logging=True, structured_file="run.json")

It is the standard library's logging, with formatters of ``colorlog`` and ``python-json-logger``.
Records that are written inside a task carry the task's name and number.
"""

from __future__ import annotations

import copy
import logging
import os
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import colorlog
from pythonjsonlogger.json import JsonFormatter

# Gives every record `task_name` and `task_id`.
import dftracer.utils  # noqa: F401  # pyright: ignore[reportUnusedImport]
from dftracer.utils.logs import log_color

STRUCTURED_FILE = "dftracer.asyncflow.logs.json"
"""Where JSON lines go, in the current directory, if no file is named at all."""

_TIME = "%(thin)s%(asctime)s.%(msecs)03d%(reset)s"
_LEVEL = "%(log_color)s%(levelname)s%(reset)s"

_STYLES = {
    "modern": (_TIME, _LEVEL, "%(purple)s[%(short_name)s]%(reset)s"),
    "core": (_TIME, _LEVEL, "%(purple)s[%(name)s:%(lineno)d]%(reset)s"),
    "execution_backend": (_TIME, _LEVEL, "%(yellow)s[%(threadName)s %(short_name)s]%(reset)s"),
    "minimal": (_LEVEL,),
}
"""The columns before the message."""

_DETAILS = "%(green)s[TID:%(thread_id)d PID:%(process)d%(task)s]%(reset)s"

_LEVEL_COLORS = {
    "DEBUG": "cyan",
    "INFO": "blue",
    "WARNING": "yellow",
    "ERROR": "red",
    "CRITICAL": "bold_red",
}

_JSON_KEYS = {"name": "logger", "levelname": "level", "exc_info": "exception"}
"""What attributes of a record are called in JSON, where that differs."""

_installed: weakref.WeakSet[logging.Handler] = weakref.WeakSet()
"""The handlers that were made here, which a next call replaces."""


def init_default_logger(
    log_level: int | str = logging.INFO,
    *,
    output_file: str | os.PathLike[str] | None = None,
    file_log_level: int | str | None = None,
    use_colors: bool = True,
    show_details: bool = False,
    style: str = "modern",
    clear_handlers: bool = False,
    logger_name: str | None = None,
    structured_logging: bool = False,
    structured_file: str | os.PathLike[str] | None = None,
) -> logging.Logger:
    """Send the records of a logger to the console, and to files if that is asked for.

    Calling it again for the same logger replaces what the last call has set up.

    Parameters
    ----------
    log_level:
        The lowest level that the console shows: a number or a name.
    output_file:
        A file to add the same text to, without colours. Directories on the way are made.
    file_log_level:
        The lowest level in files; ``log_level`` by default.
    use_colors:
        Colours where standard output is a terminal. ``NO_COLOR`` and ``FORCE_COLOR`` in the
        environment outweigh that.
    show_details:
        Add the ids of thread and process, and number and name of the task that logs.
    style:
        ``modern``: time, level and last part of the logger's name. ``core``: its whole name and
        the line in the source. ``execution_backend``: also the thread's name. ``minimal``: the
        level alone.
    clear_handlers:
        Remove and close whatever handlers the logger has.
    logger_name:
        The logger; by default the root logger, which also gets what :mod:`warnings` says.
    structured_logging:
        Write JSON too, one object a line.
    structured_file:
        Where to; by default ``output_file`` with the suffix ``.json``, or else
        ``dftracer.asyncflow.logs.json`` in the current directory.

    Raises
    ------
    ValueError
        If the style or a level is unknown.
    OSError
        If a file cannot be opened. Then nothing has changed.
    """
    if style not in _STYLES:
        raise ValueError(f"unknown style {style!r}: choose one of {', '.join(_STYLES)}")
    console_level = _to_level(log_level)
    file_level = console_level if file_log_level is None else _to_level(file_log_level)

    handlers: list[logging.Handler] = [_console(console_level, use_colors, show_details, style)]
    levels = [console_level]
    try:
        if output_file is not None:
            text = _TextFormatter(_template(style, show_details, " │ ", colors=False), _DATE)
            handlers.append(_file(Path(output_file), file_level, text))
            levels.append(file_level)
        if structured_logging:
            beside = Path(output_file).with_suffix(".json") if output_file is not None else None
            path = Path(structured_file or beside or STRUCTURED_FILE)
            handlers.append(_file(path, file_level, _JsonFormatter(show_details)))
            levels.append(file_level)
    except BaseException:
        for handler in handlers[1:]:
            handler.close()
        raise

    logger = logging.getLogger(logger_name)
    for handler in logger.handlers[:]:
        if clear_handlers or handler in _installed:
            logger.removeHandler(handler)
            handler.close()
    for handler in handlers:
        logger.addHandler(handler)
        _installed.add(handler)
    logger.setLevel(min(levels))
    if logger is logging.root:
        logging.captureWarnings(True)
    return logger


def get_logger(name: str | None = None, level: int | str = logging.INFO) -> logging.Logger:
    """Return a logger, which is set up for the console if its records would go nowhere."""
    logger = logging.getLogger(name)
    if not logger.hasHandlers():
        init_default_logger(level, logger_name=name)
    return logger


def get_structured_logger(
    name: str | None = None, level: int | str = logging.INFO
) -> StructuredLogger:
    """Return a logger whose methods take fields.

    If its records would go nowhere, it is set up for the console and for JSON lines in
    ``dftracer.asyncflow.logs.json`` in the current directory.
    """
    logger = logging.getLogger(name)
    if not logger.hasHandlers():
        init_default_logger(level, logger_name=name, structured_logging=True)
    return StructuredLogger(logger)


class StructuredLogger:
    """A logger whose methods take fields: ``log.info("task ended", seconds=3.5)``.

    In JSON lines the fields are keys beside the message, elsewhere attributes of the record. A
    field whose name is taken, such as ``name`` or ``args``, gets an underscore at its end.
    ``exc_info``, ``stack_info``, ``stacklevel`` and ``extra`` mean what they mean to any logger.
    Everything else is that of the logger.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, message: object, /, *args: object, **fields: Any) -> None:
        """Log ``message % args`` with ``fields`` at level ``DEBUG``."""
        self._write(logging.DEBUG, message, args, fields)

    def info(self, message: object, /, *args: object, **fields: Any) -> None:
        """As :meth:`debug`, at level ``INFO``."""
        self._write(logging.INFO, message, args, fields)

    def warning(self, message: object, /, *args: object, **fields: Any) -> None:
        """As :meth:`debug`, at level ``WARNING``."""
        self._write(logging.WARNING, message, args, fields)

    def error(self, message: object, /, *args: object, **fields: Any) -> None:
        """As :meth:`debug`, at level ``ERROR``."""
        self._write(logging.ERROR, message, args, fields)

    def critical(self, message: object, /, *args: object, **fields: Any) -> None:
        """As :meth:`debug`, at level ``CRITICAL``."""
        self._write(logging.CRITICAL, message, args, fields)

    def exception(self, message: object, /, *args: object, **fields: Any) -> None:
        """As :meth:`error`, with the exception that is being handled."""
        fields.setdefault("exc_info", True)
        self._write(logging.ERROR, message, args, fields)

    def log(self, level: int, message: object, /, *args: object, **fields: Any) -> None:
        """As :meth:`debug`, at any level."""
        self._write(level, message, args, fields)

    def _write(
        self, level: int, message: object, args: tuple[object, ...], fields: dict[str, Any]
    ) -> None:
        if not self._logger.isEnabledFor(level):
            return
        names = ("exc_info", "stack_info", "stacklevel", "extra")
        options = {name: fields.pop(name) for name in names if name in fields}
        fields = {**(options.pop("extra", None) or {}), **fields}
        if fields:
            # A record of now, for it depends on the record factory what attributes it has.
            taken = vars(logging.makeLogRecord({})).keys() | _JSON_KEYS.values()
            taken |= {"message", "asctime", "timestamp", "thread_id"}
            fields = {f"{key}_" if key in taken else key: fields[key] for key in fields}
        options["stacklevel"] = options.get("stacklevel", 1) + 2  # this method and its caller
        self._logger.log(level, message, *args, extra=fields, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)

    def __reduce__(self) -> tuple[type[StructuredLogger], tuple[logging.Logger]]:
        return type(self), (self._logger,)


_DATE = "%Y-%m-%d %H:%M:%S"


class _TextFormatter(logging.Formatter):
    """Adds what the columns speak of and a record does not have."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record = copy.copy(record)  # of no business to other handlers
        record.short_name = "main" if record.name == "__main__" else record.name.split(".")[-1]
        record.thread_id = threading.get_native_id()
        name = getattr(record, "task_name", None)
        record.task = "" if name is None else f" TASK:{getattr(record, 'task_id', '?')} {name}"
        return super().formatMessage(record)


class _ColoredFormatter(_TextFormatter, colorlog.ColoredFormatter):
    pass


class _JsonFormatter(JsonFormatter):
    def __init__(self, show_details: bool) -> None:
        fields = "%(levelname)s %(name)s %(message)s" + (" %(process)d" if show_details else "")
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            fields, rename_fields=_JSON_KEYS, timestamp=True
        )
        self._show_details = show_details

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        for key in ("task_name", "task_id"):
            if log_data.get(key, key) is None:
                del log_data[key]
        if self._show_details:
            log_data["thread_id"] = threading.get_native_id()
        return log_data


def _template(style: str, show_details: bool, separator: str, *, colors: bool) -> str:
    *before, last = (*_STYLES[style], "%(message)s")
    if show_details:
        before[-1 if style == "minimal" else 1] = f"{_DETAILS} {_LEVEL}"
    template = separator.join([*before, last])
    if not colors:
        for color in ("thin", "log_color", "purple", "yellow", "green", "reset"):
            template = template.replace(f"%({color})s", "")
    return template


def _console(level: int, use_colors: bool, show_details: bool, style: str) -> logging.Handler:
    handler = logging.StreamHandler(sys.stdout)
    try:
        separator = " │ "
        separator.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        separator = " | "
    template = _template(style, show_details, separator, colors=True)
    mode = log_color()
    formatter = _ColoredFormatter(
        template,
        _DATE,
        log_colors=_LEVEL_COLORS,
        stream=sys.stdout,
        no_color=mode == "never" or not (use_colors or mode == "always"),
        force_color=mode == "always",
    )
    handler.setFormatter(formatter)
    handler.setLevel(level)
    return handler


def _file(path: Path, level: int, formatter: logging.Formatter) -> logging.Handler:
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(formatter)
    handler.setLevel(level)
    return handler


def _to_level(level: int | str) -> int:
    if isinstance(level, int):
        return level
    is_text = isinstance(level, str)  # pyright: ignore[reportUnnecessaryIsInstance]
    names = (level, level.upper()) if is_text else ()
    for number in map(logging.getLevelName, names):
        if isinstance(number, int):
            return number
    raise ValueError(
        f"unknown log level {level!r}: choose DEBUG, INFO, WARNING, ERROR, CRITICAL or a number"
    )
