"""How much the loggers of `dftracer.utils` say, and in which colours."""

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from dftracer.asyncflow.logging import init_default_logger
from dftracer.utils import get_log_level, set_log_color, set_log_level

LEVELS = ["trace", "debug", "info", "warn", "error", "off"]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    logger = logging.getLogger("dftracer.utils")
    level = logger.level
    yield
    logger.setLevel(level)
    set_log_color("auto")


@pytest.mark.parametrize("level", LEVELS)
def test_level_is_what_was_set_last(level: str) -> None:
    set_log_level("info")
    set_log_level(level)
    assert get_log_level() == level
    set_log_level(level.upper())
    assert get_log_level() == level


@pytest.mark.parametrize(("alias", "level"), [("warning", "warn"), ("none", "off")])
def test_level_has_its_first_name_when_it_was_set_by_another(alias: str, level: str) -> None:
    set_log_level(alias)
    assert get_log_level() == level


def test_level_is_that_of_the_loggers_above_when_none_was_set(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logging.getLogger("dftracer.utils").setLevel(logging.NOTSET)
    with caplog.at_level(logging.ERROR, "dftracer"):
        assert get_log_level() == "error"


def test_level_is_refused_when_it_is_none() -> None:
    with pytest.raises(ValueError, match="'loud'"):
        set_log_level("loud")


@pytest.mark.parametrize("level", LEVELS)
def test_logger_says_what_is_of_its_level_and_above(level: str) -> None:
    set_log_level(level)
    logger = logging.getLogger("dftracer.utils.dask")
    said = [logger.isEnabledFor(number) for number in (5, 10, 20, 30, 40, 50)]
    first = LEVELS.index(level)
    assert said == [index >= first for index in range(5)] + [level != "off"]


def test_native_records_are_said_when_the_level_allows_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from dftracer.utils import Runtime

    set_log_level("info")
    Runtime().shutdown()
    assert caplog.records == []
    set_log_level("debug")
    Runtime().shutdown()
    assert {record.name for record in caplog.records} == {"dftracer.utils"}


@pytest.mark.parametrize(
    ("mode", "use_colors", "expected"),
    [
        ("auto", True, False),
        ("always", True, True),
        ("always", False, True),
        ("never", True, False),
    ],
)
def test_lines_into_a_pipe_are_coloured_when_that_is_asked(
    monkeypatch: pytest.MonkeyPatch, mode: str, use_colors: bool, expected: bool
) -> None:
    for variable in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "stdout", text := io.StringIO())
    set_log_color(mode)
    logger = init_default_logger("INFO", use_colors=use_colors, logger_name="coloured")
    logger.info("a line")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    assert "a line" in text.getvalue()
    assert ("\x1b[" in text.getvalue()) is expected


def test_mode_is_refused_when_it_is_none() -> None:
    with pytest.raises(ValueError, match="'rainbow'"):
        set_log_color("rainbow")
