"""Logging for programs: what is shown, where it goes, and what a second call changes."""

import io
import itertools
import json
import logging
import os
import pickle
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dftracer.asyncflow import WorkflowEngine
from dftracer.asyncflow.logging import (
    StructuredLogger,
    get_logger,
    get_structured_logger,
    init_default_logger,
)

Script = Callable[..., str]

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"

_numbers = itertools.count()


@pytest.fixture
def name() -> Iterator[str]:
    """Give a logger's name that nobody has used, and take its handlers away afterwards."""
    name = f"tests.logging{next(_numbers)}"
    yield name
    for handler in logging.getLogger(name).handlers[:]:
        logging.getLogger(name).removeHandler(handler)
        handler.close()


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)


class Console:
    """What has been written to standard output."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def read(self) -> str:
        """Return what is new."""
        return self._capsys.readouterr().out


@pytest.fixture
def console(capsys: pytest.CaptureFixture[str]) -> Console:
    """Keep standard output from the terminal."""
    return Console(capsys)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def read_json(path: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


# --- the console -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("style", "pattern"),
    [
        ("modern", rf"{TIME} │ INFO │ \[(?P<last>\w+)\] │ hello 1"),
        ("core", rf"{TIME} │ INFO │ \[(?P<full>[\w.]+):\d+\] │ hello 1"),
        ("execution_backend", rf"{TIME} │ INFO │ \[MainThread (?P<last>\w+)\] │ hello 1"),
        ("minimal", r"INFO │ hello 1"),
    ],
)
def test_line_has_the_columns_of_its_style_when_one_is_chosen(
    style: str, pattern: str, name: str, console: Console
) -> None:
    init_default_logger(logger_name=name, style=style).info("hello %d", 1)
    text = console.read()
    found = re.fullmatch(pattern + "\n", text)
    assert found, text
    names = {"last": name.split(".")[-1], "full": name}
    assert all(names[key] == value for key, value in found.groupdict().items())


@pytest.mark.parametrize("style", ["modern", "core", "execution_backend", "minimal"])
def test_line_tells_thread_and_process_when_details_are_shown(
    style: str, name: str, console: Console
) -> None:
    init_default_logger(logger_name=name, style=style, show_details=True).info("hello")
    ids = f"[TID:{threading.get_native_id()} PID:{os.getpid()}] INFO │ "
    assert ids in console.read()


def test_lines_below_the_level_are_dropped_when_one_is_given(name: str, console: Console) -> None:
    logger = init_default_logger("warning", logger_name=name, style="minimal")
    logger.info("quiet")
    logger.warning("loud")
    assert console.read() == "WARNING │ loud\n"
    assert not logger.isEnabledFor(logging.INFO)


def test_info_of_a_named_logger_is_shown_when_the_root_logger_is_untouched(
    name: str, console: Console
) -> None:
    assert logging.getLogger().level == logging.WARNING
    init_default_logger(logging.INFO, logger_name=name).info("shown")
    assert "shown" in console.read()


def test_traceback_follows_the_line_when_an_exception_is_logged(
    name: str, console: Console
) -> None:
    logger = init_default_logger(logger_name=name)
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("failed")
    lines = console.read().splitlines()
    assert lines[0].endswith("failed")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: broken"


@pytest.mark.parametrize(
    ("environment", "terminal", "use_colors", "colored"),
    [
        ({}, True, True, True),
        ({}, True, False, False),
        ({}, False, True, False),
        ({"NO_COLOR": "1"}, True, True, False),
        ({"FORCE_COLOR": "1"}, False, True, True),
    ],
)
def test_colors_are_used_when_the_terminal_has_them(
    environment: dict[str, str],
    terminal: bool,
    use_colors: bool,
    colored: bool,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    init_default_logger(logger_name=name, use_colors=use_colors).error("red")
    assert ("\x1b[31mERROR\x1b[0m" in stream.getvalue()) is colored
    assert ("\x1b" in stream.getvalue()) is colored


def test_columns_are_ascii_when_the_console_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", write_through=True))
    init_default_logger(logger_name=name, style="minimal").info("plain")
    assert raw.getvalue() == b"INFO | plain\n"


def test_record_is_left_as_it_was_when_it_is_shown(name: str, console: Console) -> None:
    seen: list[logging.LogRecord] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)

    logger = init_default_logger(logger_name=name, show_details=True)
    logger.addHandler(Keeper())
    logger.info("hello")
    added = vars(seen[0]).keys() - vars(logging.makeLogRecord({})).keys()
    assert added <= {"message", "asctime"}


# --- files -------------------------------------------------------------------------------------


def test_file_has_plain_lines_of_its_own_level_when_it_is_asked_for(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", stream := Terminal())
    path = tmp_path / "deep" / "er" / "run.log"
    logger = init_default_logger(
        logging.ERROR, logger_name=name, output_file=path, file_log_level="DEBUG"
    )
    logger.debug("détail")
    logger.error("both")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line.rsplit(" │ ")[-1] for line in lines] == ["détail", "both"]
    assert re.fullmatch(rf"{TIME} │ DEBUG │ \[\w+\] │ détail", lines[0])
    assert "détail" not in stream.getvalue()


def test_no_file_is_written_when_none_is_asked_for(
    name: str, console: Console, tmp_path: Path
) -> None:
    init_default_logger(logger_name=name).info("hello")
    get_logger(f"{name}.child").info("hello")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "file"),
    [
        ({}, "dftracer.asyncflow.logs.json"),
        ({"output_file": "logs/run.log"}, "logs/run.json"),
        ({"output_file": "logs/run.log", "structured_file": "other.jsonl"}, "other.jsonl"),
        ({"structured_file": Path("a/b.json")}, "a/b.json"),
    ],
)
def test_json_lines_go_to_the_named_file_or_beside_it_when_structured(
    options: dict[str, Any], file: str, name: str, console: Console
) -> None:
    logger = init_default_logger(logger_name=name, structured_logging=True, **options)
    logger.info("hello %s", "you", extra={"seconds": 1.5, "path": Path("x")})
    (line,) = read_json(file)
    assert re.match(r"\d{4}-\d\d-\d\dT.*\+00:00", line.pop("timestamp"))
    assert line == {
        "level": "INFO",
        "logger": name,
        "message": "hello you",
        "seconds": 1.5,
        "path": "x",
    }


def test_json_has_ids_and_the_error_when_details_are_shown(
    name: str, console: Console, tmp_path: Path
) -> None:
    logger = init_default_logger(
        logger_name=name, structured_logging=True, structured_file="a.json", show_details=True
    )
    try:
        raise KeyError("k")
    except KeyError:
        logger.exception("failed")
    (line,) = read_json("a.json")
    assert line["exception"].endswith("KeyError: 'k'")
    assert (line["process"], line["thread_id"]) == (os.getpid(), threading.get_native_id())


async def test_lines_name_the_task_when_its_body_logs(name: str, console: Console) -> None:
    logger = init_default_logger(
        logger_name=name, style="minimal", show_details=True, structured_logging=True
    )
    async with await WorkflowEngine.create() as flow:

        @flow.function_task
        def body() -> None:
            logger.info("inside")

        @flow.function_task
        async def coroutine() -> None:
            logger.info("inside too")

        await body()
        await coroutine()
    logger.info("outside")

    lines = console.read().splitlines()
    assert re.search(r" TASK:\d+ body\] INFO │ inside$", lines[0])
    assert re.search(r" TASK:\d+ coroutine\] INFO │ inside too$", lines[1])
    assert "TASK" not in lines[2]
    first, second, third = read_json("dftracer.asyncflow.logs.json")
    assert (first["task_name"], second["task_name"]) == ("body", "coroutine")
    assert isinstance(first["task_id"], int)
    assert first["task_id"] != second["task_id"]
    assert not third.keys() & {"task_name", "task_id"}


# --- calling it again, and wrongly -------------------------------------------------------------


def test_lines_come_once_when_it_is_called_twice(name: str, console: Console) -> None:
    for _ in range(2):
        logger = init_default_logger(
            logger_name=name, output_file="a.log", structured_logging=True, style="minimal"
        )
    logger.info("once")
    assert console.read() == "INFO │ once\n"
    assert Path("a.log").read_text(encoding="utf-8") == "INFO │ once\n"
    assert len(read_json("a.json")) == 1


def test_earlier_files_are_closed_when_it_is_called_again(name: str, console: Console) -> None:
    logger = init_default_logger(logger_name=name, output_file="a.log", structured_logging=True)
    files = [h for h in logger.handlers if isinstance(h, logging.FileHandler)]
    streams = [handler.stream for handler in files]
    init_default_logger(logger_name=name)
    assert len(streams) == 2
    assert all(stream.closed for stream in streams)
    assert len(logger.handlers) == 1


def test_handlers_of_others_are_kept_or_closed_when_told(name: str, console: Console) -> None:
    logger = logging.getLogger(name)
    theirs = logging.FileHandler("theirs.log", encoding="utf-8")
    logger.addHandler(theirs)
    init_default_logger(logger_name=name)
    assert theirs in logger.handlers
    assert len(logger.handlers) == 2

    stream = theirs.stream
    init_default_logger(logger_name=name, clear_handlers=True)
    assert theirs not in logger.handlers
    assert len(logger.handlers) == 1
    assert stream.closed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "fancy"}, "'fancy': choose one of modern, core, execution_backend, minimal"),
        ({"log_level": "LOUD"}, "'LOUD': choose DEBUG, INFO, WARNING, ERROR, CRITICAL or a number"),
        ({"log_level": None}, "None: choose DEBUG"),
        ({"file_log_level": "x", "output_file": "x.log"}, "'x': choose DEBUG"),
    ],
)
def test_value_error_names_the_choices_and_changes_nothing_when_one_is_unknown(
    options: dict[str, Any], message: str, name: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        init_default_logger(**{"logger_name": name, "structured_logging": True, **options})
    assert logging.getLogger(name).handlers == []
    assert list(tmp_path.iterdir()) == []


def test_logging_goes_on_as_before_when_a_file_cannot_be_opened(
    name: str, console: Console, tmp_path: Path
) -> None:
    logger = init_default_logger(logger_name=name, style="minimal")
    before = logger.handlers[:]
    with pytest.raises(IsADirectoryError):
        init_default_logger(
            logger_name=name,
            output_file="a.log",
            structured_logging=True,
            structured_file=tmp_path,
        )
    assert logger.handlers == before
    logger.info("still")
    assert console.read() == "INFO │ still\n"


# --- loggers by name ---------------------------------------------------------------------------


def test_root_and_warnings_are_shown_once_when_the_root_logger_is_set_up(
    run_script: Script,
) -> None:
    out = run_script(
        """
        import warnings
        from dftracer.asyncflow.logging import get_logger, get_structured_logger
        from dftracer.asyncflow.logging import init_default_logger

        init_default_logger(style="minimal", structured_logging=True, structured_file="a.json")
        assert init_default_logger(style="minimal").name == "root"
        get_logger("a").info("one")
        get_logger("a.b").info("two")
        get_structured_logger("c").info("three", x=1)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("careful", stacklevel=1)
        """
    )
    first, second, third, fourth, *_source = out.splitlines()
    assert [first, second, third] == ["INFO │ one", "INFO │ two", "INFO │ three"]
    assert fourth.startswith("WARNING │ ")
    assert fourth.endswith("UserWarning: careful")
    assert not Path("dftracer.asyncflow.logs.json").exists()


def test_loggers_set_themselves_up_when_the_program_has_not(
    run_script: Script, tmp_path: Path
) -> None:
    out = run_script(
        """
        from dftracer.asyncflow.logging import get_logger, get_structured_logger

        get_logger("a").info("one")
        get_logger("a", "DEBUG").info("two")
        get_logger("a.b").info("three")
        log = get_structured_logger("c", "ERROR")
        log.info("not shown")
        log.error("four", x=1)
        """
    )
    lines = out.splitlines()
    assert [line.rsplit(" │ ")[-1] for line in lines] == ["one", "two", "three", "four"]
    (line,) = read_json(tmp_path / "dftracer.asyncflow.logs.json")
    assert (line["message"], line["x"]) == ("four", 1)


# --- fields ------------------------------------------------------------------------------------


@pytest.fixture
def structured(name: str, console: Console) -> StructuredLogger:
    """Give a logger that writes JSON lines of all levels to ``a.json``."""
    init_default_logger(
        "DEBUG", logger_name=name, structured_logging=True, structured_file="a.json"
    )
    return get_structured_logger(name)


def test_fields_are_keys_beside_the_message_when_any_method_is_given_them(
    structured: StructuredLogger,
) -> None:
    structured.debug("m", x=0)
    structured.info("m", x=1)
    structured.warning("m", x=2)
    structured.error("m %s%%", 5, x=3)
    structured.critical("m 5%", x=4)
    structured.log(logging.INFO, "m", x=5, extra={"y": 6})
    try:
        raise ValueError("v")
    except ValueError:
        structured.exception("m", x=6)
    lines = read_json("a.json")
    assert [line["x"] for line in lines] == list(range(7))
    levels = "DEBUG INFO WARNING ERROR CRITICAL INFO ERROR"
    assert [line["level"] for line in lines] == levels.split()
    assert [line["message"] for line in lines[3:5]] == ["m 5%", "m 5%"]
    assert lines[5]["y"] == 6
    assert lines[6]["exception"].endswith("ValueError: v")


def test_fields_are_renamed_when_logging_needs_the_name(structured: StructuredLogger) -> None:
    taken = vars(logging.makeLogRecord({})).keys() - {"exc_info", "stack_info"}
    taken |= {"message", "asctime", "level", "logger", "timestamp", "exception", "self"}
    structured.info("text", **dict.fromkeys(taken, "mine"))
    (line,) = read_json("a.json")
    assert {key: value for key, value in line.items() if value == "mine"} == {
        key if key == "self" else f"{key}_": "mine" for key in taken
    }
    assert (line["message"], line["level"]) == ("text", "INFO")


def test_fields_are_attributes_when_another_handler_gets_the_record(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        StructuredLogger(logging.getLogger(name)).info("text", user="ada", name="eve")
    (record,) = caplog.records
    assert vars(record)["user"] == "ada"
    assert (record.name, vars(record)["name_"]) == (name, "eve")


def test_source_line_is_that_of_the_caller_when_a_structured_logger_writes(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = StructuredLogger(logging.getLogger(name))

    def write() -> None:
        log.warning("direct")
        log.warning("above", stacklevel=2)

    write()
    names = [record.funcName for record in caplog.records]
    assert names == [
        "write",
        "test_source_line_is_that_of_the_caller_when_a_structured_logger_writes",
    ]


def test_nothing_is_done_when_the_level_is_off(name: str, console: Console) -> None:
    init_default_logger("ERROR", logger_name=name)
    get_structured_logger(name).info("text %d", "no number", x=1)
    assert console.read() == ""


def test_the_rest_is_that_of_the_logger_when_a_structured_logger_is_asked(name: str) -> None:
    log = StructuredLogger(logging.getLogger(name))
    assert log.name == name
    log.setLevel(logging.ERROR)
    assert not log.isEnabledFor(logging.INFO)
    with pytest.raises(AttributeError, match="no_such"):
        _ = log.no_such
    copied = pickle.loads(pickle.dumps(log))
    assert copied.name == name
