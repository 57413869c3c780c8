"""A backend for prompts: any server of the OpenAI-compatible API, such as vLLM or Ollama."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Generator, Sequence
from typing import Any

from dftracer.asyncflow.backends.base import ExecutionBackend, Report, State, Submission
from dftracer.asyncflow.backends.prompts.requests import check_seconds, make_request
from dftracer.asyncflow.backends.prompts.server import Server
from dftracer.asyncflow.errors import text_of


class OpenAIBackend(ExecutionBackend):
    """Sends prompts to a server of the OpenAI-compatible API; a task's result is the answer's text.

    Prompts are sent in the order of their submission: none goes ahead.

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
        if not isinstance(base_url, str) or not base_url.startswith(("http://", "https://")):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                "base_url must be a URL such as 'http://localhost:8000/v1', not "
                f"{text_of(base_url)}"
            )
        if not isinstance(api_key_env, str) or not api_key_env.isidentifier():  # pyright: ignore[reportUnnecessaryIsInstance]
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
        if not isinstance(model, str) or not model:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"model must be the name of a model, not {text_of(model)}")
        for option, count, least in (
            ("max_concurrency", max_concurrency, 1),
            ("max_retries", max_retries, 0),
        ):
            if not isinstance(count, int) or isinstance(count, bool) or count < least:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ValueError(f"{option} must be {least} or more, not {text_of(count)}")
        self._timeout = check_seconds(timeout, "timeout")
        self._base_url = base_url
        self._model = model
        self._max_concurrency = max_concurrency
        self._max_retries = max_retries
        self._api_key_env = api_key_env
        self._server: Server | None = None
        self._is_open = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._places = asyncio.Semaphore(max_concurrency)
        self._work: set[asyncio.Task[dict[str, Any]]] = set()
        """What asks, also for submissions that are nobody's any more."""
        self._unfinished: dict[Submission, asyncio.Task[dict[str, Any]]] = {}
        """What asks for each submission that is to be reported."""
        self._begun: set[Submission] = set()
        """Those of them that are with the server."""

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
        if self._server is not None and self._loop is not loop:
            raise RuntimeError(
                f"backend '{self.name}' serves another event loop: shut it down there, or make "
                "one backend for each loop"
            )
        if self._server is None:
            self._server = Server(self.name, self._base_url, self._api_key_env, self._max_retries)
            self._loop = loop
            self._places = asyncio.Semaphore(self._max_concurrency)
        self._is_open = True
        return self

    def state(self) -> str:
        return "INITIALIZED" if self._is_open else "IDLE"

    # --- submissions ----------------------------------------------------------------------------

    def submit(self, submissions: Sequence[Submission], ahead: int = 0) -> None:
        if not self._is_open or self._server is None:
            raise RuntimeError(f"backend '{self.name}' is not started: await it first")
        loop = asyncio.get_running_loop()
        for submission in submissions:
            work = loop.create_task(self._run(submission, self._server))
            self._work.add(work)
            self._unfinished[submission] = work
            work.add_done_callback(functools.partial(self._end, submission))

    async def _run(self, submission: Submission, server: Server) -> dict[str, Any]:
        """Ask, and return what the description has of the answer."""
        who = f"backend '{self.name}' cannot run task '{submission.name}'"
        prompt = submission.prompt
        if prompt is None:
            raise NotImplementedError(
                f"{who}: it answers prompts only; name another backend for functions and programs"
            )
        request = make_request(prompt, submission.options, self._model, self._timeout, who)
        async with self._places:
            if submission in self._unfinished:
                self._begun.add(submission)
                if self.report_running:
                    self._report([(submission, State.RUNNING, None)])
            return await server.ask(submission.name, request)

    def _end(self, submission: Submission, ended: asyncio.Task[dict[str, Any]]) -> None:
        """Report what has become of a submission, unless it is nobody's any more."""
        self._work.discard(ended)
        error = None if ended.cancelled() else ended.exception()
        if self._unfinished.get(submission) is not ended:
            return
        del self._unfinished[submission]
        self._begun.discard(submission)
        if ended.cancelled():
            self._report([(submission, State.CANCELED, None)])
        elif error is not None:
            self._report([(submission, State.FAILED, error)])
        else:
            answer = ended.result()
            submission.describe(**answer)
            self._report([(submission, State.DONE, answer["stdout"])])

    def has_begun(self, submission: Submission) -> bool:
        return submission in self._begun

    def cancel(self, submission: Submission) -> bool:
        """Stop a submission and close its connection."""
        work = self._unfinished.get(submission)
        return work is not None and work.cancel()

    async def cancel_task(self, uid: str) -> bool:
        found = [submission for submission in self._unfinished if submission.uid == uid]
        return bool(found) and self.cancel(found[-1])

    def held(self) -> list[Submission]:
        return list(self._unfinished)

    def connect(self, report: Report) -> None:
        self._unfinished.clear()
        self._begun.clear()
        super().connect(report)

    async def shutdown(self) -> None:
        """Cancel what is unfinished and close the connections; then the backend can be reused.

        Every submission has been reported when this returns.
        """
        self._is_open = False
        while self._work:
            for work in self._work:
                work.cancel()
            await asyncio.wait(self._work)
        server, self._server = self._server, None
        if server is not None:
            await server.close()
