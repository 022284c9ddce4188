"""A backend that generates as vLLM, SGLang or Ollama does, and counts what it generated, whoever still listens.

Its engine works apart from its connections: it goes on for as long as the engine it plays does after a client left.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.scripted import DONE, chunk, end, open_stream, send, usage

WORD = " and"
"""What it says, again and again: one token of the demo model's tokenizer, however many follow each other."""
TEMPLATE_TOKENS = 7
"""Prompt tokens that stand for a chat template, which nobody but the backend counts."""
_NAME = re.compile(r"call (\S+):")


def prompt(name: str, words: int = 0) -> str:
    """The text of a prompt by which the backend knows a call again."""
    return f"call {name}:" + WORD * words


@dataclass(frozen=True, slots=True)
class Engine:
    """Habits of an engine (their sources are in `gateway/backends`)."""

    kind: str
    is_continuous: bool
    """Whether it tells usage with each token."""
    abort_seconds: tuple[float, float] = (0.0, 0.0)
    """How long it generates on after its client left."""


VLLM = Engine("vllm", is_continuous=True)
SGLANG = Engine("sglang", is_continuous=True, abort_seconds=(2.0, 4.0))
OLLAMA = Engine("ollama", is_continuous=False)


@dataclass(frozen=True, slots=True)
class Pace:
    """The speed at which a call is answered, and the tokens of its answer."""

    prefill_seconds: float
    tokens: int
    token_seconds: float


@dataclass(slots=True)
class Generated:
    """What the backend did for one call."""

    prompt_tokens: int
    tokens: int = 0
    tokens_when_left: int | None = None
    """Tokens generated when it heard that the client had left."""


@dataclass(slots=True)
class Generating:
    """The backend; `pace` is asked for each call, `count` counts a text's tokens."""

    engine: Engine
    pace: Callable[[str], Pace]
    count: Callable[[str], int] = lambda text: text.count(WORD) + 3
    dice: random.Random = field(default_factory=lambda: random.Random(7))
    url: str = ""
    calls: dict[str, Generated] = field(default_factory=dict)
    _working: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, kept open for one request after another."""
        first = asyncio.ensure_future(reader.read(1))
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while start := await first:
                head = (start + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                if head.startswith("GET "):
                    self._list_models(writer)
                    first = asyncio.ensure_future(reader.read(1))
                    continue
                length = int(head.lower().partition("content-length:")[2].split("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                first = asyncio.ensure_future(reader.read(1))
                if not await self._answer(body, writer, first):
                    break
        first.cancel()
        writer.close()

    async def idle(self) -> None:
        """Return when nothing is generated any more."""
        while self._working:
            await asyncio.wait(set(self._working))

    def _list_models(self, writer: asyncio.StreamWriter) -> None:
        body = json.dumps({"data": [{"id": "m", "owned_by": self.engine.kind, "max_model_len": 4096}]}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
        writer.write(b"content-length: %d\r\n\r\n%b" % (len(body), body))

    async def _answer(self, body: Any, writer: asyncio.StreamWriter, left: asyncio.Future[bytes]) -> bool:
        """Whether the client was there until the end."""
        text = body["messages"][0]["content"]
        found = _NAME.match(text)
        assert found is not None, text
        name, pace = found[1], self.pace(found[1])
        assert name not in self.calls, f"{name} was sent twice"
        call = self.calls[name] = Generated(self.count(text) + TEMPLATE_TOKENS)
        tokens: asyncio.Queue[bool] = asyncio.Queue()
        working = asyncio.create_task(self._generate(call, min(pace.tokens, body["max_tokens"]), pace, tokens))
        self._working.add(working)
        working.add_done_callback(self._working.discard)
        writing = asyncio.ensure_future(self._write(call, writer, tokens))
        either: set[asyncio.Future[Any]] = {writing, left}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if writing.done() and writing.exception() is None:
            return True
        writing.cancel()
        call.tokens_when_left = call.tokens
        low, high = self.engine.abort_seconds
        asyncio.get_running_loop().call_later(self.dice.uniform(low, high), working.cancel)
        return False

    async def _generate(self, call: Generated, count: int, pace: Pace, tokens: asyncio.Queue[bool]) -> None:
        # The speed of a model, not a wait for something.
        await asyncio.sleep(pace.prefill_seconds)
        for number in range(1, count + 1):
            call.tokens = number
            tokens.put_nowait(number == count)
            await asyncio.sleep(pace.token_seconds)

    async def _write(self, call: Generated, writer: asyncio.StreamWriter, tokens: asyncio.Queue[bool]) -> None:
        await open_stream(writer)
        sent, is_last = 0, False
        while not is_last:
            is_last = await tokens.get()
            sent += 1
            choice = {"index": 0, "delta": {"content": WORD}, "finish_reason": "length" if is_last else None}
            more = {"usage": _usage(call.prompt_tokens, sent)} if self.engine.is_continuous else {}
            await send(writer, chunk(id="c", model="m", choices=[choice], **more))
        await send(writer, usage(call.prompt_tokens, sent), DONE)
        await end(writer)


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


@asynccontextmanager
async def generating_backend(
    engine: Engine, pace: Callable[[str], Pace], count: Callable[[str], int] | None = None
) -> AsyncIterator[Generating]:
    """Run one on a port of its own; on the way out it has stopped generating."""
    backend = Generating(engine, pace) if count is None else Generating(engine, pace, count)
    server = await asyncio.start_server(backend.serve, "127.0.0.1", 0)
    backend.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield backend
    finally:
        server.close()
        await backend.idle()
