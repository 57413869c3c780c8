"""A server that answers prompts: the client's connections to it, its key, how it is asked."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from openai import APIConnectionError, APIStatusError, AsyncOpenAI, Omit

from dftracer.asyncflow.backends.prompts.answers import (
    advice_on,
    first_cause,
    read_answer,
    reason_of,
)
from dftracer.asyncflow.backends.prompts.requests import Request
from dftracer.asyncflow.errors import PromptError, text_of_error
from dftracer.utils import TaskTimeoutError
from dftracer.utils.redaction import hide_in_logs, keep

_LOGGERS = (
    *("httpx", "httpx2", "openai", "openai._base_client", "openai._legacy_response"),
    *(
        f"{library}.{part}"
        for library in ("httpcore", "httpcore2")
        for part in ("connection", "http11", "http2", "proxy", "socks")
    ),
)
"""Those of the client, which repeat what a server sends when they are at level ``DEBUG``."""


class Server:
    """A client for a server, with the key that the environment holds when this is made.

    Parameters
    ----------
    backend:
        The name of the backend that asks, for messages.
    url:
        Where the API is.
    key_variable:
        The environment variable with the API key.
    max_retries:
        How often a question is sent again.

    Raises
    ------
    ValueError
        If the key has characters that cannot be sent.
    """

    def __init__(self, backend: str, url: str, key_variable: str, max_retries: int) -> None:
        key = os.environ.get(key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ValueError(
                f"backend '{backend}': {key_variable} in the environment is no API key: "
                "it has characters that cannot be sent"
            )
        self._backend = backend
        self._url = url
        self._key_variable = key_variable
        self._max_retries = max_retries
        self._has_key = bool(key)
        keep(key)
        hide_in_logs(*_LOGGERS)
        self._client = AsyncOpenAI(
            base_url=url,
            api_key=key or "none",
            max_retries=max_retries,
            timeout=None,  # there is one around all the retries
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ask(self, task: str, request: Request) -> dict[str, Any]:
        """Send a request of the task with this name; return what its description has of the answer.

        Raises
        ------
        TaskTimeoutError
            If there is no answer within the request's timeout.
        PromptError
            If there is none that can be used.
        """
        status = None
        extra = {} if self._has_key else {"extra_headers": {"Authorization": Omit()}}
        work = self._client.chat.completions.with_raw_response.create(**request.body, **extra)
        try:
            answer = await asyncio.wait_for(work, request.timeout)
            try:
                return read_answer(answer.http_response.json())
            except (ValueError, LookupError, TypeError) as error:
                said = (
                    f"cannot read the answer: {text_of_error(error)}: see that base_url is "
                    "that of an OpenAI-compatible API"
                )
        except (TimeoutError, asyncio.TimeoutError):
            said = ""
        except APIStatusError as error:
            status = error.status_code
            advice = advice_on(
                status, self._url, self._max_retries, self._key_variable, self._has_key
            )
            said = f"HTTP {status}, {reason_of(error)}: {advice}"
        except APIConnectionError as error:
            said = (
                f"no connection, {first_cause(error)}: see that the server runs and that "
                "base_url is its address"
            )
        except Exception as error:
            said = f"cannot ask: {text_of_error(error)}: check the values in task_description"
        # Raised here, where no `except` makes the client's error part of it: that holds the
        # request, and with it the key.
        model = request.body["model"]
        who = f"task '{task}' on backend '{self._backend}', model '{model}' at {self._url}"
        if not said:
            raise TaskTimeoutError(
                f"{who}: no answer within {request.timeout:g} seconds: allow more, with timeout in "
                "task_description, or lower max_concurrency"
            )
        raise PromptError(f"{who}: {said}", task, self._backend, model, status)
