"""How a server's answer is read: the text of a good one, the reason and advice of a bad one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openai import APIStatusError

from dftracer.asyncflow.errors import text_of, text_of_error
from dftracer.utils.redaction import hide

_REASON = 500
"""How many characters of a server's reason an error repeats."""

_ADVICE = {
    400: "check the values in task_description",
    404: "check the model's name (GET {url}/models lists what there is) and base_url, which mostly "
    "ends in /v1",
    422: "check the values in task_description",
    429: "the server is too busy even after {retries} retries: lower max_concurrency or raise "
    "max_retries",
}


def read_answer(response: Any) -> dict[str, Any]:
    """Return what a task's description has of an answer: its text as ``stdout``, and the rest.

    Raises
    ------
    ValueError, LookupError, TypeError
        If it is no answer of this protocol, or has no text.
    """
    choice = response["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise ValueError(f"no text, finish_reason {text_of(choice.get('finish_reason'))}")
    return {
        "stdout": text,
        "model": response.get("model"),
        "finish_reason": choice.get("finish_reason"),
        "usage": response.get("usage"),
        "response": response,
    }


def reason_of(error: APIStatusError) -> str:
    """Return the reason that a server gave, in whichever of the usual forms."""
    body: Any = error.body
    if isinstance(body, Mapping):
        body = body.get("message") or body.get("detail") or body
    return repr(hide(str(body), _REASON)) if body else "without a reason"


def advice_on(status: int, url: str, retries: int, key_variable: str, has_key: bool) -> str:
    """Return what a user may try after an answer with this HTTP status."""
    if status in (401, 403):
        if has_key:
            return f"see that {key_variable} in the environment is a key for this server"
        return f"no key was sent: put one into {key_variable} in the environment"
    if status >= 500:
        return f"see the server's log; it was asked again up to {retries} times"
    return _ADVICE.get(status, "see what the server expects").format(url=url, retries=retries)


def first_cause(error: BaseException) -> str:
    """Return the text of the error at the beginning of a chain, which says most."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return text_of_error(error)
