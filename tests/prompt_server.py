"""A small server of the OpenAI-compatible API, for tests: it answers, refuses and fails as told.

It is no language model: an answer repeats the prompt. It listens in the event loop of the test.
"""

import asyncio
import json
from collections import deque
from contextlib import AsyncExitStack
from typing import Any, NamedTuple


class Request(NamedTuple):
    """What a client has sent, and when by the event loop's clock."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float


class Answer(NamedTuple):
    """What to answer instead of a completion."""

    status: int
    body: str
    headers: tuple[tuple[str, str], ...] = ()


HANG_UP = Answer(0, "")
"""Close the connection instead of answering."""


def error(status: int, message: str, **headers: str) -> Answer:
    """Refuse as such servers do. In names of headers, ``_`` stands for ``-``."""
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Answer(status, json.dumps({"error": {"message": message}}), named)


class PromptServer:
    """Answers ``POST /v1/chat/completions``; use it in an ``async with`` block."""

    def __init__(self, api_key: str | None = None) -> None:
        self.api_key = api_key
        self.plan: deque[Answer] = deque()
        """What to answer to the next requests; those beyond it get a completion."""
        self.requests: list[Request] = []
        self.is_open = asyncio.Event()
        """Requests are answered while this is set."""
        self.is_open.set()
        self.running = 0
        self.most = 0
        """How many requests were there at a time, at most."""
        self.abandoned = 0
        """How many connections the client has closed before it had its answer."""
        self.changed = asyncio.Condition()
        self._stack = AsyncExitStack()
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> "PromptServer":
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._stack.callback(server.close)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()
        for writer in self._connections.values():
            writer.transport.abort()
        await asyncio.gather(*self._connections)

    async def until(self, running: int | None = None, abandoned: int | None = None) -> None:
        """Wait until so many requests are here, or so many were given up."""
        async with self.changed:
            await self.changed.wait_for(
                lambda: running in (None, self.running) and abandoned in (None, self.abandoned)
            )

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections[connection] = writer
        try:
            while await self._serve(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            del self._connections[connection]
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request. False if the connection is of no use any more."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        now = asyncio.get_running_loop().time()
        request = Request(first.split()[1], headers, body, now)
        self.requests.append(request)
        await self._count(+1)
        try:
            if not await self._held(reader):
                self.abandoned += 1
                return False
            answer = self.plan.popleft() if self.plan else self._complete(request)
        finally:
            await self._count(-1)
        if answer is HANG_UP:
            writer.transport.abort()
            return False
        data = answer.body.encode()
        lines = [f"HTTP/1.1 {answer.status} As-Told", "content-type: application/json"]
        lines += [f"{name}: {value}" for name, value in answer.headers]
        lines += [f"content-length: {len(data)}", "", ""]
        writer.write("\r\n".join(lines).encode() + data)
        await writer.drain()
        return True

    async def _count(self, by: int) -> None:
        async with self.changed:
            self.running += by
            self.most = max(self.most, self.running)
            self.changed.notify_all()

    async def _held(self, reader: asyncio.StreamReader) -> bool:
        """Wait until requests are answered. False if the client goes away before."""
        gone = asyncio.ensure_future(reader.read(1))
        opened = asyncio.ensure_future(self.is_open.wait())
        try:
            await asyncio.wait([gone, opened], return_when=asyncio.FIRST_COMPLETED)
            return opened.done()
        finally:
            for wait in (gone, opened):
                wait.cancel()
            await asyncio.gather(gone, opened, return_exceptions=True)

    def _complete(self, request: Request) -> Answer:
        if self.api_key is not None and request.headers.get("authorization") != (
            f"Bearer {self.api_key}"
        ):
            # What a careless server does: it repeats what it was sent.
            return error(401, f"wrong key: {request.headers.get('authorization')}")
        if request.path != "/v1/chat/completions":
            return error(404, "no such path")
        return completion(f"answer to {request.body['messages'][-1]['content']}", request.body)


def completion(text: str | None, request: dict[str, Any]) -> Answer:
    """Answer with a text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    response = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": f"{request.get('model')}-2026",
        "choices": [{**choice, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    return Answer(200, json.dumps(response))
