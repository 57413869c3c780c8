"""Durations as people write them, and what is no duration."""

import math
from fractions import Fraction
from typing import Any

import pytest

from dftracer.utils.durations import to_milliseconds


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (0.0, 0),
        (-0.0, 0),
        (1, 1),
        (1500, 1500),
        (2.4, 2),
        (2.6, 3),
        (10**12, 10**12),
        ("0s", 0),
        ("250ms", 250),
        ("30s", 30_000),
        ("5m", 300_000),
        ("5min", 300_000),
        ("2h", 7_200_000),
        ("1d", 86_400_000),
        ("1.5s", 1_500),
        (".5m", 30_000),
        ("007s", 7_000),
        (" 30 s ", 30_000),
        ("30\ts\n", 30_000),
    ],
)
def test_milliseconds_are_right_when_it_is_a_duration(value: Any, expected: int) -> None:
    milliseconds = to_milliseconds(value, "limit")
    assert milliseconds == expected
    assert type(milliseconds) is int


@pytest.mark.parametrize("value", [1e-300, 0.001, 0.4, 0.5, "0.0001ms", "0.00001s"])
def test_milliseconds_are_at_least_one_when_the_time_is_above_zero(value: Any) -> None:
    assert to_milliseconds(value, "limit") == 1


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "s",
        "30",
        "-30s",
        "+30s",
        "30S",
        "30 seconds",
        "30s 5m",
        "1h30m",
        "1e3s",
        "1,5s",
        "1.5.5s",
        "1_000s",
        ".s",
        "nan",
        "nan s",
        "inf",
        "infs",
        "0x10s",
        "٣s",
        "30s\0",
        "9" * 400 + "s",
    ],
)
def test_value_error_names_the_parameter_when_the_text_is_nonsense(value: str) -> None:
    with pytest.raises(ValueError, match="limit must be"):
        to_milliseconds(value, "limit")


@pytest.mark.parametrize("value", [-1, -0.001, -(10**9), math.nan, math.inf, -math.inf])
def test_value_error_names_the_parameter_when_the_number_is_no_time(value: float) -> None:
    with pytest.raises(ValueError, match="limit must be"):
        to_milliseconds(value, "limit")


def test_value_error_names_the_parameter_when_the_number_is_beyond_any_float() -> None:
    with pytest.raises(ValueError, match="limit must be"):
        to_milliseconds(10**400, "limit")


@pytest.mark.parametrize(
    "value", [None, True, False, b"30s", [30], object(), 1j, Fraction(3, 2), float, Ellipsis]
)
def test_type_error_names_the_parameter_when_it_is_neither_number_nor_text(value: Any) -> None:
    with pytest.raises(TypeError, match=f"limit must be.*{type(value).__name__}"):
        to_milliseconds(value, "limit")


def test_error_shows_the_text_when_it_is_nonsense() -> None:
    with pytest.raises(ValueError, match="'soon'"):
        to_milliseconds("soon", "limit")
