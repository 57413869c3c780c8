"""What a decorator says about trying a call again, and how long each attempt may take."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from dftracer.asyncflow.errors import text_of

RetryOn = type[BaseException] | tuple[type[BaseException], ...] | Callable[[Exception], bool]
Backoff = float | Callable[[int], float]

_LONGEST_PAUSE_S = 60.0
"""Up to which a pause is doubled, unless the first is longer."""


@dataclass(frozen=True)
class Policy:
    """What a decorator says about the attempts of its calls."""

    retries: int
    retry_on: RetryOn
    backoff: Backoff
    timeout: float | None

    def wants_retry(self, error: Exception, raised: Any) -> bool:
        """Tell whether an attempt that has failed with ``error`` is worth another.

        Its body has ``raised`` the same, or what cannot be the error of a future.
        """
        wanted: Any = self.retry_on
        if isinstance(wanted, (type, tuple)):
            kinds = cast("tuple[type[BaseException], ...]", wanted)
            return isinstance(error, kinds) or isinstance(raised, kinds)
        return bool(wanted(error))

    def pause_after(self, attempt: int) -> float:
        """Return how many seconds to wait after the attempt of that number, the first being 1."""
        if callable(self.backoff):
            return _seconds("what backoff() returns", self.backoff(attempt), least=0)
        longest = max(self.backoff, _LONGEST_PAUSE_S)
        pause = min(self.backoff * 2.0 ** min(attempt - 1, 64), longest)
        return pause * random.uniform(0.5, 1.0)  # so that those who failed together part


def policy_of(asker: str, retries: Any, retry_on: Any, backoff: Any, timeout: Any) -> Policy | None:
    """Return what the options of a decorator mean; ``None`` if there is but one, endless attempt.

    Raises
    ------
    TypeError, ValueError
        If one of them makes no sense; the message begins with ``asker``.
    """
    if isinstance(retries, bool) or not isinstance(retries, int):
        raise TypeError(f"{asker}: retries must be a whole number, not {text_of(retries)}")
    if retries < 0:
        raise ValueError(f"{asker}: retries must be 0 or more, not {retries}")
    if not _is_filter(retry_on):
        raise TypeError(
            f"{asker}: retry_on must be an exception type, a tuple of them, or a plain function "
            f"that takes an exception and tells whether to retry, not {text_of(retry_on)}"
        )
    pause: Any = backoff
    if not callable(backoff):
        pause = _seconds(f"{asker}: backoff", backoff, least=0, or_else=" or a function")
    if timeout is not None:
        timeout = _seconds(f"{asker}: timeout", timeout, or_else=" or None")
    return Policy(retries, retry_on, pause, timeout) if retries or timeout is not None else None


def _is_filter(value: Any) -> bool:
    if isinstance(value, type):
        return issubclass(value, BaseException)
    if isinstance(value, tuple):
        kinds: Any = value  # pyright: ignore[reportUnknownVariableType]
        return bool(kinds) and all(isinstance(each, type) and _is_filter(each) for each in kinds)
    return callable(value) and not inspect.iscoroutinefunction(value)


def _seconds(what: str, value: Any, *, least: float | None = None, or_else: str = "") -> float:
    bound = "above 0" if least is None else f"of {least} or more"
    hint = f"{what} must be a number of seconds {bound}{or_else}, not {text_of(value)}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(hint)
    if not (0 < value < math.inf or value == least):
        raise ValueError(hint)
    return float(value)
