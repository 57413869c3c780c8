"""Keys and passwords: that what others may see has them in no form."""

from __future__ import annotations

import base64
import html
import json
import logging
import os
import pickle
import sys
import traceback
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dftracer.asyncflow import ExecutableError, RuntimeExecutionBackend, WorkflowEngine
from dftracer.asyncflow.data import File
from dftracer.asyncflow.errors import DataError
from dftracer.utils import Runtime, TaskTimeoutError
from dftracer.utils.redaction import hide, hide_before_end, keep, keep_environment

GUARD_S = 30

KEY = "sk-Never'to\"be\\seen+in/any=text&0123456789"
"""With all that encodings change."""

ECHOES: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "JSON": json.dumps,
    "JSON in JSON": lambda key: json.dumps(json.dumps({"error": key})),
    "repr": repr,
    "repr in repr": lambda key: repr([repr({"error": key})]),
    "URL": lambda key: urllib.parse.quote(key, safe=""),
    "form": urllib.parse.quote_plus,
    "HTML": html.escape,
    "HTML by numbers": lambda key: "".join(f"&#{ord(letter)};" for letter in key),
    "escapes": lambda key: "".join(f"\\u{ord(letter):04x}" for letter in key),
    "percent": lambda key: "".join(f"%{ord(letter):02X}" for letter in key),
    "upper case": str.upper,
    "lines": lambda key: "\n".join(key[at : at + 5] for at in range(0, len(key), 5)),
    "spaces": " ".join,
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "base64 for URLs": lambda key: base64.urlsafe_b64encode(key.encode()).decode(),
    "basic auth": lambda key: base64.b64encode(f":{key}".encode()).decode(),
    "basic auth with a name": lambda key: base64.b64encode(f"me:{key}".encode()).decode(),
    "basic auth with a longer name": lambda key: base64.b64encode(f"user:{key}".encode()).decode(),
    "its beginning": lambda key: key[:-5],
    "its end": lambda key: key[5:],
}
"""How somebody may repeat a key."""


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
def test_key_is_hidden_when_somebody_repeats_it(echo: Callable[[str], str]) -> None:
    keep(KEY)
    text = echo(KEY)
    hidden = hide(f"refused: {text} is no key")
    assert hidden.startswith("refused: ")
    assert hidden.endswith(" is no key")
    # Of what is left, no eight letters in a row are of the key in that form.
    letters, left = "".join(filter(str.isalnum, text)), "".join(filter(str.isalnum, hidden[9:-10]))
    assert len(left) < 16
    assert not any(left[at : at + 8] in letters for at in range(len(left) - 7))


@pytest.mark.parametrize("length", range(480, 520))
def test_no_piece_stays_when_a_text_is_cut_in_the_middle_of_a_key(length: int) -> None:
    keep(KEY)
    text = "x" * (500 - length + 480) + KEY * 1_000
    assert KEY[:8] not in hide(text, 500)
    assert KEY[-8:] not in hide_before_end(KEY * 1_000 + "x" * (500 - length + 480), 500)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("curl https://me:pass@host/x?a=1", "curl https://***@host/x?a=1"),
        ("pip install -i https://ghp_token@host/simple", "pip install -i https://***@host/simple"),
        ("curl -H 'Authorization: Bearer abc' url", "curl -H 'Authorization: Bearer ***' url"),
        ('{"authorization": "Basic abc=="}', '{"authorization": "Basic ***"}'),
        ("curl -H 'X-Api-Key: abc'", "curl -H 'X-Api-Key: ***'"),
        ("DB_PASSWORD='a b' prog", "DB_PASSWORD=*** prog"),
        ("prog --password abc --token=def -v", "prog --password *** --token=*** -v"),
        ("curl -u me:abc host", "curl -u me:*** host"),
        ("GET /x?sig=abc&b=2", "GET /x?sig=***&b=2"),
        ("{'api_key': 'abc', 'n': 1}", "{'api_key': ***, 'n': 1}"),
        ("max_tokens=100 is above 50, unexpected token: 3", None),
        ("http://host:8000/v1 and me@host", None),
        ("", None),
    ],
)
def test_what_stands_where_secrets_do_is_hidden(text: str, hidden: str | None) -> None:
    assert hide(text) == (text if hidden is None else hidden)


def test_variables_are_hidden_by_their_names_when_they_are_no_paths(tmp_path: Path) -> None:
    keep_environment(
        {
            "MY_SERVICE_KEY": "one-secret-key",
            "DATABASE_URL": "postgres://me:another-login@host/db",
            "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path),
            "MONKEY": "anything-else",
        }
    )
    keep_environment({"A_TOKEN": b"bytes", b"B_TOKEN": "a text", "C_TOKEN": ""})  # type: ignore[dict-item]
    assert hide("one-secret-key, another-login") == "***, ***"
    assert hide(f"{tmp_path} anything-else") == f"{tmp_path} anything-else"


def test_text_passes_when_it_cannot_be_encoded() -> None:
    keep(KEY)
    assert hide("\ud800") == "\ud800"
    assert KEY not in hide(f"\ud800 {KEY}")
    keep("\ud800 half a pair")


# --- programs -----------------------------------------------------------------------------------

ECHO = """
import os, sys
print("x" * 1990 + os.environ["DB_PASSWORD"], "wrong login", repr(os.environ["DB_PASSWORD"]),
      "at postgres://me:other@host", file=sys.stderr)
sys.exit(3)
"""


async def test_failed_program_shows_no_password_when_it_repeats_it(tmp_path: Path) -> None:
    password, trace = 'pass\'word of "some" length', tmp_path / "t.pfw"
    backend = RuntimeExecutionBackend(Runtime(threads=1, io_threads=1, python_threads=1))
    async with await WorkflowEngine.create(backend, trace=trace) as flow:

        @flow.executable_task
        async def program() -> str:
            return f"TOKEN=short {sys.executable} -c '{ECHO}' https://me:also@host"

        with pytest.raises(ExecutableError) as caught:
            await program(task_description={"env": {**os.environ, "DB_PASSWORD": password}})
    error = caught.value
    copy = pickle.loads(pickle.dumps(error))
    seen = [str(error), repr(error), str(copy), repr(copy), trace.read_text()]
    seen.append("".join(traceback.format_exception(error)))
    for text in seen:
        assert "wrong login" in text
        assert not [part for part in (password[:9], "short", "also", "other") if part in text]
    assert password in error.stderr


@pytest.mark.parametrize("env", [[("A_KEY", "hidden-value")], {"A_KEY": b"hidden-value"}])
async def test_wrong_environment_is_refused_without_showing_it(env: Any) -> None:
    async with await WorkflowEngine.create() as flow:

        @flow.executable_task
        async def program() -> str:
            return "true"

        with pytest.raises(TypeError, match="env") as caught:
            await program(task_description={"env": env})
    assert "hidden-value" not in str(caught.value)


def test_name_of_a_command_has_no_password_when_it_was_made_of_it(tmp_path: Path) -> None:
    trace = tmp_path / "t.pfw"
    with Runtime(threads=1, io_threads=1, python_threads=1, trace=trace) as runtime:
        command = "sleep 60 # https://me:invisible@host"
        handle = runtime.run_process(command, timeout=0.01)
        with pytest.raises(TaskTimeoutError) as caught:
            handle.get(GUARD_S)
        runtime.run_process(
            ["/bin/sh", "-c", "echo $A_KEY >&2; exit 1"], env={"A_KEY": "invisible-variable"}
        ).get(GUARD_S)
        progress = json.dumps(runtime.get_progress())
    seen = (handle.name, str(caught.value), progress, trace.read_text())
    assert handle.name == "sleep 60 # https://***@host"
    assert not [text for text in seen if "me:invisible" in text or "invisible-variable" in text]


def test_text_of_an_error_has_no_password_when_it_is_traced(tmp_path: Path) -> None:
    def body() -> None:
        raise ConnectionError("no answer from https://me:invisible@host")

    trace = tmp_path / "t.pfw"
    runtime = Runtime(threads=1, io_threads=1, python_threads=1, trace=trace)
    with runtime, pytest.raises(ConnectionError):
        runtime.submit(body).get(GUARD_S)
    assert "https://***@host" in trace.read_text()
    assert "invisible" not in trace.read_text()


# --- downloads ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://me:invisible@127.0.0.1:1/data?sig=invisible-signature-of-it",
        "ftp://me:invisible@127.0.0.1:1/data",
        "http://me:in/visible@127.0.0.1:1/data",
        "http://invisible:invisible@[::1/data",
    ],
)
def test_download_fails_without_showing_the_password(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises((DataError, ValueError)) as caught:
        File.download_remote_url(url, tmp_path)
    text = "".join(traceback.format_exception(caught.value, chain=True)) + caplog.text
    assert "visible" not in text.replace("url = ", "")
    assert caught.value.__context__ is None
