"""What is sent for a prompt: the body of the request, made from the task's ``task_description``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dftracer.asyncflow.errors import text_of

_SENT = frozenset(
    """extra_body frequency_penalty max_completion_tokens max_tokens model presence_penalty
    reasoning_effort response_format seed stop temperature top_p""".split()
)
"""The keys of a task_description that are sent as they are."""

_KEYS = sorted(_SENT | {"system", "timeout"})


@dataclass(frozen=True)
class Request:
    """What to send, and how long to wait for the answer."""

    body: dict[str, Any]
    """Arguments for the client's ``create()``, among them ``model`` and ``messages``."""
    timeout: float
    """Seconds, retries included."""


def make_request(
    prompt: str, options: Mapping[str, Any], model: str, timeout: float, who: str
) -> Request:
    """Return what to send for a prompt.

    Parameters
    ----------
    options:
        The task's ``task_description``.
    model, timeout:
        What applies if the options do not say it.
    who:
        The beginning of error messages.

    Raises
    ------
    ValueError
        If the options have an unknown key, or a timeout that is no number of seconds.
    """
    body = dict(options)
    if unknown := [key for key in body if key not in _KEYS]:
        raise ValueError(
            f"{who}: it knows no {', '.join(map(repr, unknown))} in task_description; it knows "
            f"{', '.join(_KEYS)}; what only this server knows goes into extra_body"
        )
    timeout = check_seconds(body.pop("timeout", timeout), f"{who}: timeout")
    messages = [{"role": "user", "content": prompt}]
    if (system := body.pop("system", None)) is not None:
        messages.insert(0, {"role": "system", "content": system})
    return Request({"model": model, **body, "messages": messages}, timeout)


def check_seconds(value: Any, what: str) -> float:
    """Return a number of seconds above 0, or raise ``ValueError`` with ``what`` for its name."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{what} must be a number of seconds above 0, not {text_of(value)}")
    return float(value)
