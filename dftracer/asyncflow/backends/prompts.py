"""A backend for prompts: any server of the OpenAI-compatible API, such as vLLM or Ollama."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Generator, Mapping
from typing import Any

from openai import APIConnectionError, APIStatusError, AsyncOpenAI, Omit

from dftracer.asyncflow.backends.base import Callback, ExecutionBackend, Task, TaskStates
from dftracer.asyncflow.errors import PromptError, let_out, text_of, text_of_error
from dftracer.utils import TaskTimeoutError
from dftracer.utils.redaction import hide, hide_in_logs, keep

_REQUEST_KEYS = frozenset(
    """extra_body frequency_penalty max_completion_tokens max_tokens model presence_penalty
    reasoning_effort response_format seed stop temperature top_p""".split()
)
"""The keys of a task_description that are sent as they are."""

_KEYS = sorted(_REQUEST_KEYS | {"system", "timeout"})

_ADVICE = {
    400: "check the values in task_description",
    404: "check the model's name (GET {url}/models lists what there is) and base_url, which mostly "
    "ends in /v1",
    422: "check the values in task_description",
    429: "the server is too busy even after {retries} retries: lower max_concurrency or raise "
    "max_retries",
}


_REASON = 500
"""How many characters of a server's reason an error repeats."""

_LOGGERS = (
    *("httpx", "httpx2", "openai", "openai._base_client", "openai._legacy_response"),
    *(
        f"{library}.{part}"
        for library in ("httpcore", "httpcore2")
        for part in ("connection", "http11", "http2", "proxy", "socks")
    ),
)
"""Those of the client, which repeat what a server sends when they are at level ``DEBUG``."""


class OpenAIBackend(ExecutionBackend):
    """Sends prompts to a server of the OpenAI-compatible API; a task's result is the answer's text.

    Parameters
    ----------
    base_url:
        Where the API is, for example ``"http://localhost:8000/v1"``.
    model:
        The model that answers tasks that name none.
    name:
        The name by which decorators choose this backend.
    max_concurrency:
        How many prompts are with the server at a time; the others wait for a place.
    timeout:
        Seconds from sending a prompt to its answer, retries included, for tasks that say nothing
        else.
    max_retries:
        How often a prompt is sent again after a lost connection or a status 408, 409, 429 or 5xx:
        when ``Retry-After`` says, or else after 0.5 seconds, doubled each time up to 8, less a
        random part.
    api_key_env:
        The environment variable with the API key, read when the backend starts. If there is none,
        no key is sent.

    Notes
    -----
    A task's ``task_description`` may hold ``system`` (a text that goes before the prompt),
    ``timeout`` (seconds), and, sent as they are, ``model``, ``temperature``, ``top_p``,
    ``max_tokens``, ``max_completion_tokens``, ``stop``, ``seed``, ``frequency_penalty``,
    ``presence_penalty``, ``reasoning_effort``, ``response_format`` and ``extra_body`` (a dict of
    what only this server knows).

    When a task is done, its description has ``model``, ``finish_reason``, ``usage`` and
    ``response``, the whole answer.
    """

    keeps_timeouts = True

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        name: str = "openai",
        max_concurrency: int = 16,
        timeout: float = 600.0,
        max_retries: int = 4,
        api_key_env: str = "OPENAI_API_KEY",
    ) -> None:
        super().__init__(name)
        if not isinstance(base_url, str) or not base_url.startswith(("http://", "https://")):
            raise ValueError(
                "base_url must be a URL such as 'http://localhost:8000/v1', not "
                f"{text_of(base_url)}"
            )
        if not isinstance(api_key_env, str) or not api_key_env.isidentifier():
            # Not shown: it may be the key itself.
            raise ValueError(
                "api_key_env must be the name of an environment variable such as OPENAI_API_KEY, "
                "not the key itself"
            )
        if "@" in base_url or "?" in base_url or "#" in base_url:
            raise ValueError(
                "base_url must not hold a user name or password, nor a query, which would get into "
                f"logs: put an API key into {api_key_env} in the environment"
            )
        if not isinstance(model, str) or not model:
            raise ValueError(f"model must be the name of a model, not {text_of(model)}")
        for option, count, least in (
            ("max_concurrency", max_concurrency, 1),
            ("max_retries", max_retries, 0),
        ):
            if not isinstance(count, int) or isinstance(count, bool) or count < least:
                raise ValueError(f"{option} must be {least} or more, not {text_of(count)}")
        self._timeout = _seconds(timeout, "timeout")
        self._base_url = base_url
        self._model = model
        self._max_concurrency = max_concurrency
        self._max_retries = max_retries
        self._api_key_env = api_key_env
        self._client: AsyncOpenAI | None = None
        self._has_key = False
        self._is_open = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._places = asyncio.Semaphore(max_concurrency)
        self._requests: set[asyncio.Task[dict[str, Any]]] = set()
        self._by_uid: dict[str, asyncio.Task[dict[str, Any]]] = {}

    def __repr__(self) -> str:
        return f"<OpenAIBackend '{self.name}' {self._model} at {self._base_url}>"

    def __await__(self) -> Generator[Any, Any, OpenAIBackend]:
        return self._start().__await__()

    async def __aenter__(self) -> OpenAIBackend:
        return await self._start()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.shutdown()

    async def _start(self) -> OpenAIBackend:
        loop = asyncio.get_running_loop()
        if self._client is not None and self._loop is not loop:
            raise RuntimeError(
                f"backend '{self.name}' serves another event loop: shut it down there, or make "
                "one backend for each loop"
            )
        if self._client is None:
            key = os.environ.get(self._api_key_env, "").strip()
            if not (key.isascii() and key.isprintable()):
                raise ValueError(
                    f"backend '{self.name}': {self._api_key_env} in the environment is no API key: "
                    "it has characters that cannot be sent"
                )
            self._has_key = bool(key)
            keep(key)
            hide_in_logs(*_LOGGERS)
            self._client = AsyncOpenAI(
                base_url=self._base_url,
                api_key=key or "none",
                max_retries=self._max_retries,
                timeout=None,  # there is one around all the retries
            )
            self._loop = loop
            self._places = asyncio.Semaphore(self._max_concurrency)
        self._is_open = True
        return self

    async def submit_tasks(self, tasks: list[Task]) -> None:
        await self
        self.submit_nowait(tasks)

    def submit_nowait(self, tasks: list[Task]) -> None:
        """Begin to ask, like :meth:`submit_tasks` on a backend that has started."""
        if not self._is_open or self._client is None:
            raise RuntimeError(f"backend '{self.name}' is not started: await it first")
        for task in tasks:
            try:
                request, timeout = self._request_of(task)
            except BaseException as error:
                task["exception"] = error
                self._callback_func(task, TaskStates.FAILED)
                let_out(error)
                continue
            work = self._run(task, request, timeout, self._client, self._callback_func)
            running = asyncio.get_running_loop().create_task(work)
            self._requests.add(running)
            self._by_uid[task["uid"]] = running
            running.add_done_callback(functools.partial(self._end, task, self._callback_func))

    def _end(self, task: Task, report: Callback, ended: asyncio.Task[dict[str, Any]]) -> None:
        """Report what came of a task."""
        self._requests.discard(ended)
        if self._by_uid.get(task["uid"]) is ended:
            del self._by_uid[task["uid"]]
        if ended.cancelled():
            report(task, TaskStates.CANCELED)
        elif (error := ended.exception()) is not None:
            task["exception"] = error
            report(task, TaskStates.FAILED)
        else:
            task.update(ended.result())
            report(task, TaskStates.DONE)

    def _request_of(self, task: Task) -> tuple[dict[str, Any], float]:
        """Return what to send for a task, and how many seconds its answer may take."""
        who = f"backend '{self.name}' cannot run task '{task['name']}'"
        if task.get("prompt") is None:
            raise NotImplementedError(
                f"{who}: it answers prompts only; name another backend for functions and programs"
            )
        options = dict(task.get("task_backend_specific_kwargs") or {})
        if unknown := [key for key in options if key not in _KEYS]:
            raise ValueError(
                f"{who}: it knows no {', '.join(map(repr, unknown))} in task_description; it knows "
                f"{', '.join(_KEYS)}; what only this server knows goes into extra_body"
            )
        timeout = _seconds(options.pop("timeout", self._timeout), f"{who}: timeout")
        messages = [{"role": "user", "content": task["prompt"]}]
        if (system := options.pop("system", None)) is not None:
            messages.insert(0, {"role": "system", "content": system})
        if not self._has_key:
            options["extra_headers"] = {"Authorization": Omit()}
        return {"model": self._model, **options, "messages": messages}, timeout

    async def _run(
        self,
        task: Task,
        request: dict[str, Any],
        timeout: float,
        client: AsyncOpenAI,
        report: Callback,
    ) -> dict[str, Any]:
        """Ask, and return what goes into the task."""
        async with self._places:
            report(task, TaskStates.RUNNING)
            work = client.chat.completions.with_raw_response.create(**request)
            status = None
            try:
                answer = await asyncio.wait_for(work, timeout)
                try:
                    return _read(answer.http_response.json())
                except (ValueError, LookupError, TypeError) as error:
                    said = (
                        f"cannot read the answer: {text_of_error(error)}: see that base_url is "
                        "that of an OpenAI-compatible API"
                    )
            except (TimeoutError, asyncio.TimeoutError):
                said = ""
            except APIStatusError as error:
                status = error.status_code
                said = f"HTTP {status}, {_reason(error)}: {self._advice(status)}"
            except APIConnectionError as error:
                said = (
                    f"no connection, {_first_cause(error)}: see that the server runs and that "
                    "base_url is its address"
                )
            except Exception as error:
                said = f"cannot ask: {text_of_error(error)}: check the values in task_description"
        # Raised here, where no `except` makes the client's error part of it: that holds the
        # request, and with it the key.
        model = request["model"]
        who = f"task '{task['name']}' on backend '{self.name}', model '{model}' at {self._base_url}"
        if not said:
            raise TaskTimeoutError(
                f"{who}: no answer within {timeout:g} seconds: allow more, with timeout in "
                "task_description, or lower max_concurrency"
            )
        raise PromptError(f"{who}: {said}", task["name"], self.name, model, status)

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            if self._has_key:
                return f"see that {self._api_key_env} in the environment is a key for this server"
            return f"no key was sent: put one into {self._api_key_env} in the environment"
        if status >= 500:
            return f"see the server's log; it was asked again up to {self._max_retries} times"
        advice = _ADVICE.get(status, "see what the server expects")
        return advice.format(url=self._base_url, retries=self._max_retries)

    async def cancel_task(self, uid: str) -> bool:
        return self.cancel_nowait(uid)

    def cancel_nowait(self, uid: str) -> bool:
        """Stop a task and close its connection, like :meth:`cancel_task`."""
        request = self._by_uid.get(uid)
        return request is not None and request.cancel()

    async def shutdown(self) -> None:
        """Cancel what is unfinished and close the connections; then the backend can be reused.

        Every task has been reported when this returns.
        """
        self._is_open = False
        while self._requests:
            for request in self._requests:
                request.cancel()
            await asyncio.wait(self._requests)
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def state(self) -> str:
        return "INITIALIZED" if self._is_open else "IDLE"


def _seconds(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{what} must be a number of seconds above 0, not {text_of(value)}")
    return float(value)


def _read(response: Any) -> dict[str, Any]:
    """Return what is told of an answer: its text, and what goes with it."""
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


def _reason(error: APIStatusError) -> str:
    """Return the reason that a server gave, in whichever of the usual forms."""
    body: Any = error.body
    if isinstance(body, Mapping):
        body = body.get("message") or body.get("detail") or body
    return repr(hide(str(body), _REASON)) if body else "without a reason"


def _first_cause(error: BaseException) -> str:
    """Return the error at the beginning of a chain, which says most."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return text_of_error(error)
