"""Prompts to a server of the OpenAI-compatible API.

The server here is written for the tests, with the answers and faults that they ask for. The last
test is for a real one: it runs if ``DFTRACER_PROMPT_SERVER`` is its URL, and
``DFTRACER_PROMPT_MODEL`` names its model.
"""

import asyncio
import base64
import logging
import os
import pickle
import socket
import traceback
import urllib.parse
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import NewLoop
from engine_support import assert_nothing_kept, identity, launched
from prompt_server import HANG_UP, Answer, PromptServer, completion, error

from dftracer.asyncflow import (
    OpenAIBackend,
    PromptError,
    RuntimeExecutionBackend,
    WorkflowEngine,
)
from dftracer.asyncflow.backends.base import DescribedTask, State
from dftracer.utils import TaskTimeoutError

KEY = "sk-never'to\"be\\seen"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """See that nothing of the tester's environment is sent, or stands between."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("no_proxy", "*")


@asynccontextmanager
async def serving(
    api_key: str | None = None, **options: Any
) -> AsyncIterator[tuple[PromptServer, WorkflowEngine]]:
    """Run a server, and an engine with no other backend."""
    async with PromptServer(api_key) as server:
        backend = OpenAIBackend(server.url, "small", **options)
        async with await WorkflowEngine.create(backend) as flow:
            yield server, flow
        assert_nothing_kept(flow)


async def failure_of(flow: WorkflowEngine, description: dict[str, Any] | None = None) -> Exception:
    """Ask, and return the error that this must end with."""
    future = flow.prompt_task(identity)("hello", task_description=description)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each test looks at it
        await future
    return caught.value


# --- answers ------------------------------------------------------------------------------------


async def test_result_is_the_text_when_a_prompt_is_answered(new_loop: NewLoop) -> None:
    async with serving() as (_, flow):
        future = flow.prompt_task(identity)("hello")
        assert await future == "answer to hello"
        assert future.task["finish_reason"] == "stop"
        assert future.task["model"] == "small-2026"
        assert future.task["usage"]["total_tokens"] == 5
        assert future.task["response"]["id"] == "chatcmpl-1"


async def test_request_says_what_the_description_says_when_it_has_keys() -> None:
    async with serving() as (server, flow):

        @flow.prompt_task
        async def ask(
            question: str,
            task_description: dict[str, Any] = {"temperature": 0.2, "model": "large"},  # noqa: B006
        ) -> str:
            return question

        description = {
            "system": "be brief",
            "max_tokens": 9,
            "temperature": 0.5,
            "timeout": 30,
            "extra_body": {"top_k": 4},
        }
        assert await ask("why?", task_description=description) == "answer to why?"
        assert server.requests[0].body == {
            "model": "large",
            "temperature": 0.5,
            "max_tokens": 9,
            "top_k": 4,
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "why?"},
            ],
        }


async def test_prompts_and_functions_feed_each_other_when_one_engine_has_both_backends() -> None:
    async with PromptServer() as server:
        backends = [RuntimeExecutionBackend(), OpenAIBackend(server.url, "small", name="models")]
        async with await WorkflowEngine.create(backends) as flow:

            @flow.function_task
            def topic() -> str:
                return "graphs"

            @flow.prompt_task(backend="models")
            async def ask(about: str) -> str:
                return f"What of {about}?"

            @flow.executable_task
            def shout(text: str) -> list[str]:
                return ["echo", text.upper()]

            @flow.function_task
            def words(text: str) -> list[str]:
                return text.split()

            answer = ask(topic())
            assert await words(shout(answer)) == ["ANSWER", "TO", "WHAT", "OF", "GRAPHS?"]
            assert await ask(answer) == "answer to What of answer to What of graphs??"


async def test_text_is_empty_when_the_model_says_nothing() -> None:
    async with serving() as (server, flow):
        server.plan.append(completion("", {}))
        assert await flow.prompt_task(identity)("hello") == ""


# --- what it refuses ----------------------------------------------------------------------------


async def test_task_fails_unsent_when_its_description_has_an_unknown_key() -> None:
    async with serving() as (server, flow):
        failed = await failure_of(flow, {"temprature": 1, "seed": 2})
        assert isinstance(failed, ValueError)
        for part in ("'openai'", "'identity'", "'temprature'", "temperature"):
            assert part in str(failed)
        assert "'seed'" not in str(failed)
        assert server.requests == []


@pytest.mark.parametrize("timeout", [0, -1, "1", None, True, float("nan")])
async def test_task_fails_unsent_when_its_timeout_is_no_number_of_seconds(timeout: Any) -> None:
    async with serving() as (server, flow):
        failed = await failure_of(flow, {"timeout": timeout})
        assert isinstance(failed, ValueError)
        assert "'identity': timeout must be a number of seconds" in str(failed)
        assert server.requests == []


async def test_task_fails_with_its_name_when_its_request_cannot_be_written() -> None:
    async with serving() as (server, flow):
        failed = await failure_of(flow, {"temperature": object()})
        assert isinstance(failed, PromptError)
        assert "'identity'" in str(failed)
        assert "task_description" in str(failed)
        assert server.requests == []


async def test_functions_and_programs_fail_when_sent_to_a_model() -> None:
    async with serving() as (server, flow):
        for task in (
            flow.function_task(identity)("x"),
            flow.executable_task(identity)("echo x"),
        ):
            with pytest.raises(NotImplementedError, match=r"backend 'openai' .* task 'identity'"):
                await task
        assert server.requests == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"base_url": "localhost:8000"}, "base_url must be a URL"),
        ({"base_url": f"http://me:{KEY}@localhost"}, "base_url must not hold"),
        ({"base_url": f"http://localhost/v1?key={KEY}"}, "base_url must not hold"),
        ({"model": ""}, "model must be the name"),
        ({"max_concurrency": 0}, "max_concurrency must be 1 or more"),
        ({"max_retries": True}, "max_retries must be 0 or more"),
        ({"timeout": 0}, "timeout must be a number of seconds"),
    ],
)
def test_backend_is_refused_when_an_argument_is_none_of_its(
    arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        OpenAIBackend(**{"base_url": "http://localhost/v1", "model": "small", **arguments})
    assert KEY not in str(caught.value)


# --- limits and retries -------------------------------------------------------------------------


async def test_server_never_has_more_than_the_limit_when_there_are_many_prompts() -> None:
    async with serving(max_concurrency=3) as (server, flow):
        server.is_open.clear()
        futures = [flow.prompt_task(identity)(str(number)) for number in range(12)]
        await server.until(running=3)
        assert sorted(future.state for future in futures) == ["PENDING"] * 9 + ["RUNNING"] * 3
        server.is_open.set()
        assert await asyncio.gather(*futures) == [f"answer to {n}" for n in range(12)]
        assert server.most == 3


@pytest.mark.parametrize(
    "fault", [error(429, "slow down", retry_after="0.05"), error(500, "oops"), HANG_UP]
)
async def test_prompt_is_sent_again_when_the_server_is_at_fault_for_the_moment(
    fault: Answer,
) -> None:
    async with serving(max_retries=1) as (server, flow):
        server.plan.append(fault)
        assert await flow.prompt_task(identity)("hello") == "answer to hello"
        first, second = server.requests
        assert first.body == second.body
        waited = second.at - first.at
        if fault.status == 429:
            assert 0.05 <= waited < 0.3, "not as long as Retry-After says"
        else:
            assert waited > 0.3, "no pause before the second try"


@pytest.mark.parametrize(
    ("status", "advice"), [(429, "lower max_concurrency"), (503, "see the server's log")]
)
async def test_prompt_fails_when_its_retries_are_used_up(status: int, advice: str) -> None:
    async with serving(max_retries=3) as (server, flow):
        server.plan.extend([error(status, "too busy", retry_after="0.01")] * 4)
        failed = await failure_of(flow)
        assert isinstance(failed, PromptError)
        facts = (failed.status, failed.task, failed.backend, failed.model)
        assert facts == (status, "identity", "openai", "small")
        for part in ("'identity'", "'openai'", "'small'", str(status), "too busy", advice):
            assert part in str(failed)
        assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("status", "advice"),
    [(400, "task_description"), (404, "/v1/models"), (403, "no key was sent"), (418, "expects")],
)
async def test_prompt_fails_at_once_when_asking_again_is_of_no_use(
    status: int, advice: str
) -> None:
    async with serving() as (server, flow):
        server.plan.append(error(status, "never"))
        failed = await failure_of(flow)
        assert isinstance(failed, PromptError)
        assert failed.status == status
        for part in ("never", str(status), advice):
            assert part in str(failed)
        assert len(server.requests) == 1


async def test_prompt_fails_with_the_address_when_nobody_listens_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        async with await WorkflowEngine.create(OpenAIBackend(url, "small", max_retries=0)) as flow:
            failed = await failure_of(flow)
    assert isinstance(failed, PromptError)
    assert failed.status is None
    for part in (url, "ConnectionRefusedError", "see that the server runs"):
        assert part in str(failed)


@pytest.mark.parametrize(
    "body",
    ['{"id": oops', "{}", "[1]", "null", '{"choices": []}', '{"choices": [{"message": null}]}'],
)
async def test_prompt_fails_when_the_answer_is_none_of_the_protocol(body: str) -> None:
    async with serving(max_retries=0) as (server, flow):
        server.plan.append(Answer(200, body))
        failed = await failure_of(flow)
        assert isinstance(failed, PromptError)
        assert "cannot read the answer" in str(failed)
        assert "'identity'" in str(failed)


async def test_prompt_fails_when_the_answer_holds_no_text() -> None:
    async with serving() as (server, flow):
        server.plan.append(completion(None, {}))
        failed = await failure_of(flow)
        assert isinstance(failed, PromptError)
        assert "no text, finish_reason 'stop'" in str(failed)


@pytest.mark.parametrize("options", [{"timeout": 0.1}, {"timeout": 30}])
async def test_prompt_times_out_and_hangs_up_when_the_answer_is_slow(
    options: dict[str, Any], new_loop: NewLoop
) -> None:
    async with serving(**options) as (server, flow):
        server.is_open.clear()
        failed = await failure_of(flow, {"timeout": 0.1} if options["timeout"] == 30 else None)
        assert isinstance(failed, TaskTimeoutError)
        for part in ("'identity'", "'openai'", "0.1 seconds"):
            assert part in str(failed)
        await server.until(running=0, abandoned=1)
        assert len(server.requests) == 1


# --- the key ------------------------------------------------------------------------------------


async def test_key_is_sent_and_seen_nowhere_else_when_a_server_repeats_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    async with serving(KEY, api_key_env="MY_KEY") as (server, flow):
        future = flow.prompt_task(identity)("hello")
        assert await future == "answer to hello"
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
        server.api_key = "another"
        failed = await failure_of(flow)
        assert isinstance(failed, PromptError)
        assert failed.status == 401
        assert "wrong key: Bearer ***" in str(failed)
        assert "MY_KEY" in str(failed)
        server.plan.append(Answer(200, f'{{"choices": "{KEY}"}}'))
        unread = await failure_of(flow)

        seen = [repr(flow.backend), repr(future.task), caplog.text]
        for fault in (failed, unread):
            assert fault.__context__ is None
            assert fault.__cause__ is None
            seen += [repr(fault), str(vars(fault)), "".join(traceback.format_exception(fault))]
        assert [text for text in seen if KEY in text] == []
        assert "HTTP Request" in caplog.text, "nothing was logged at all"


@pytest.mark.parametrize(
    "message",
    [
        "x" * (501 - len(KEY)) + KEY,  # of which less than the key is shown
        f"quoted {KEY!r}",
        f"url {urllib.parse.quote(KEY)}",
        f"auth {base64.b64encode(b':' + KEY.encode()).decode()}",
        f"cut {KEY[:-3]}",
    ],
    ids=["at the limit", "quoted", "url", "auth", "cut"],
)
async def test_no_part_of_the_key_is_seen_when_a_server_repeats_it_in_its_own_way(
    message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    async with PromptServer() as server:
        backend, trace = OpenAIBackend(server.url, "small"), tmp_path / "t.pfw"
        async with await WorkflowEngine.create(backend, trace=trace) as flow:
            server.plan.append(error(400, message, x_echo=message))
            failed = await failure_of(flow)
    seen = (str(failed), repr(failed), caplog.text, trace.read_text())
    parts = [KEY[at : at + 8] for at in range(len(KEY) - 7)]
    parts.append(base64.b64encode(b":" + KEY.encode()).decode()[4:12])
    assert [part for part in parts for text in seen if part in text] == []
    assert "***" in str(failed)
    assert "x-echo" in caplog.text, "the header of the answer was logged"


def test_backend_is_refused_without_showing_it_when_the_key_is_given_for_its_name() -> None:
    with pytest.raises(ValueError, match="the name of an environment variable") as caught:
        OpenAIBackend("http://localhost/v1", "small", api_key_env=KEY)
    assert KEY not in str(caught.value)


async def test_no_key_is_sent_when_the_environment_has_none() -> None:
    async with serving("needed") as (server, flow):
        failed = await failure_of(flow)
        assert "authorization" not in server.requests[0].headers
        assert "no key was sent: put one into OPENAI_API_KEY" in str(failed)


async def test_start_fails_without_showing_it_when_the_key_cannot_be_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX: 1")
    with pytest.raises(ValueError, match="OPENAI_API_KEY in the environment is no API key") as e:
        await OpenAIBackend("http://localhost/v1", "small")
    assert KEY not in str(e.value)


def test_error_is_the_same_when_it_has_been_pickled() -> None:
    error = PromptError("no answer", "ask", "openai", "small", 500)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), vars(copy)) == (str(error), vars(error))


# --- cancellation and the end -------------------------------------------------------------------


async def test_connection_is_closed_when_a_prompt_is_cancelled(new_loop: NewLoop) -> None:
    async with serving() as (server, flow):
        server.is_open.clear()
        future = flow.prompt_task(identity)("hello")
        await server.until(running=1)
        future.cancel()
        assert future.cancelled()
        await server.until(running=0, abandoned=1)


async def test_prompts_are_never_sent_when_cancelled_while_they_wait_for_a_place() -> None:
    async with serving(max_concurrency=1) as (server, flow):
        server.is_open.clear()
        futures = [flow.prompt_task(identity)(str(number)) for number in range(4)]
        await server.until(running=1)
        for future in futures[1:3]:
            future.cancel()
        server.is_open.set()
        assert await asyncio.gather(futures[0], futures[3]) == ["answer to 0", "answer to 3"]
        prompts = [request.body["messages"][0]["content"] for request in server.requests]
        assert prompts == ["0", "3"]


async def test_every_task_is_reported_once_when_some_are_cancelled_before_they_begin() -> None:
    async with PromptServer() as server:
        reports: list[tuple[str, str]] = []
        async with OpenAIBackend(server.url, "small") as backend:
            backend.register_callback(lambda task, state: reports.append((task["uid"], state)))
            server.is_open.clear()
            tasks = [{"uid": u, "name": u, "prompt": u} for u in ("a", "b", "c")]
            await backend.submit_tasks(tasks)
            assert await backend.cancel_task("a")
            await server.until(running=2)
            assert await backend.cancel_task("b")
            assert not await backend.cancel_task("of nobody")
            await server.until(running=1, abandoned=1)
        ends = [report for report in reports if report[1] != "RUNNING"]
        assert sorted(ends) == [("a", "CANCELED"), ("b", "CANCELED"), ("c", "CANCELED")]


async def test_outcomes_are_reported_after_submit_when_there_is_no_engine() -> None:
    async with PromptServer() as server, OpenAIBackend(server.url, "small") as backend:
        outcomes: list[tuple[Any, State, Any]] = []
        all_reported = asyncio.Event()

        def report(reported: Sequence[tuple[Any, State, Any]]) -> bool:
            outcomes.extend(reported)
            if len(outcomes) == 3:
                all_reported.set()
            return False

        backend.connect(report)
        backend.report_running = True
        asked, refused = (
            DescribedTask({"uid": uid, "name": uid, "prompt": prompt})
            for uid, prompt in (("a", "hello"), ("b", None))
        )
        backend.submit([asked, refused])
        assert outcomes == []
        assert not backend.has_begun(asked)
        assert backend.tasks == {"a": asked.task, "b": refused.task}
        server.is_open.clear()
        await server.until(running=1)
        assert backend.has_begun(asked)
        server.is_open.set()
        await all_reported.wait()
        ends = {submission: (state, value) for submission, state, value in outcomes}
        assert ends[asked] == (State.DONE, "answer to hello")
        assert ends[refused][0] is State.FAILED
        assert isinstance(ends[refused][1], NotImplementedError)
        assert (asked, State.RUNNING, None) in outcomes
        assert asked.task["stdout"] == "answer to hello"
        assert not backend.has_begun(asked)
        assert backend.tasks == {}


async def test_earlier_submissions_are_not_reported_when_somebody_else_connects() -> None:
    async with PromptServer() as server:
        outcomes: list[tuple[Any, State, Any]] = []
        async with OpenAIBackend(server.url, "small") as backend:
            server.is_open.clear()
            backend.connect(lambda reported: bool(outcomes.extend(reported)))
            earlier, later = (DescribedTask({"uid": "a", "prompt": "hello"}) for _ in range(2))
            backend.submit([earlier])
            await server.until(running=1)
            backend.connect(lambda reported: bool(outcomes.extend(reported)))
            assert not backend.has_begun(earlier)
            assert not backend.cancel(earlier)
            backend.submit([later])
        assert outcomes == [(later, State.CANCELED, None)]
        await server.until(running=0, abandoned=1)


async def test_engines_use_a_backend_one_after_another_when_each_is_shut_down(
    new_loop: NewLoop,
) -> None:
    async with PromptServer() as server:
        backend = OpenAIBackend(server.url, "small")
        for _ in range(2):
            assert backend.state() == "IDLE"
            flow = await WorkflowEngine.create(backend)
            assert backend.state() == "INITIALIZED"
            server.is_open.set()
            assert await flow.prompt_task(identity)("hello") == "answer to hello"
            server.is_open.clear()
            unanswered = flow.prompt_task(identity)("bye")
            await server.until(running=1)
            await flow.shutdown()
            assert unanswered.cancelled()
        await server.until(running=0, abandoned=2)
        await backend.shutdown()


async def test_backend_serves_the_next_engine_when_the_first_has_left_it_running() -> None:
    async with PromptServer() as server, OpenAIBackend(server.url, "small") as backend:
        first = await WorkflowEngine.create(backend)
        server.is_open.clear()
        unanswered = first.prompt_task(identity)("old")
        await server.until(running=1)
        await first.shutdown(skip_execution_backend=True)
        assert unanswered.cancelled()
        second = await WorkflowEngine.create(backend)
        server.is_open.set()
        assert await second.prompt_task(identity)("new") == "answer to new"
        await second.shutdown()


async def test_submission_fails_when_the_backend_is_not_started() -> None:
    async with PromptServer() as server:
        flow = WorkflowEngine(OpenAIBackend(server.url, "small"))
        with pytest.raises(RuntimeError, match="backend 'openai' is not started"):
            await flow.prompt_task(identity)("hello")
        await launched()
        await flow.shutdown()


def test_backend_is_refused_when_another_event_loop_has_it() -> None:
    backend = OpenAIBackend("http://localhost/v1", "small")
    first = asyncio.new_event_loop()

    async def start() -> None:
        await backend

    first.run_until_complete(start())
    with pytest.raises(RuntimeError, match="serves another event loop"):
        asyncio.run(start())
    first.run_until_complete(backend.shutdown())
    first.close()


# --- the extra ----------------------------------------------------------------------------------


def test_import_names_the_extra_when_the_client_is_not_installed(
    run_script: Callable[..., str],
) -> None:
    out = run_script(
        """
        import sys
        import dftracer.asyncflow
        assert "openai" not in sys.modules
        sys.modules["openai"] = None
        try:
            from dftracer.asyncflow import OpenAIBackend
        except ImportError as error:
            print(error)
        assert not hasattr(dftracer.asyncflow, "NoSuchBackend")
        """
    )
    assert out == "OpenAIBackend needs 'openai': pip install 'dftracer-asyncflow[prompt]'\n"


# --- a real server ------------------------------------------------------------------------------


@pytest.mark.skipif(
    "DFTRACER_PROMPT_SERVER" not in os.environ, reason="DFTRACER_PROMPT_SERVER names no server"
)
async def test_prompts_are_answered_when_the_server_is_real() -> None:
    url, model = os.environ["DFTRACER_PROMPT_SERVER"], os.environ["DFTRACER_PROMPT_MODEL"]
    async with await WorkflowEngine.create(OpenAIBackend(url, model, max_concurrency=2)) as flow:
        ask = flow.prompt_task(identity)
        description = {"max_tokens": 8, "temperature": 0, "system": "Be brief."}
        futures = [ask(f"Name {n} colours.", task_description=description) for n in range(1, 6)]
        assert all(isinstance(text, str) for text in await asyncio.gather(*futures))
        for future in futures:
            assert 0 < future.task["usage"]["completion_tokens"] <= 8
            assert future.task["finish_reason"] in ("stop", "length")
