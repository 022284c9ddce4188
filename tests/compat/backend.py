"""A backend that does on command what a random model cannot: one model for each thing that clients must understand."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from tests.scripted import DONE, Asked, Scripted, answer, chunk, end, open_stream, send, stream

WORDS: Final = ("Hello", " from", " the", " backend", ".")
TEXT: Final = "".join(WORDS)
WEATHER: Final = {"city": "Paris", "degrees": 21}
AFTER_TOOLS: Final = "It is 21 degrees in Paris."
REFUSAL: Final = "I cannot help with that."
THOUGHT: Final = "The user wants the weather."
INPUT_TOKENS: Final = 11
CACHED_TOKENS: Final = 3
OUTPUT_TOKENS: Final = 5
REASONING_TOKENS: Final = 2
SLOW_SECONDS: Final = 30
"""How long the model `slow` would talk, and `silent` keep silent, if nobody hung up."""


def _delta(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return chunk(id="c", object="chat.completion.chunk", created=1, model="x", choices=[choice])


def _usage(reasoning_tokens: int = 0) -> bytes:
    numbers = {
        "prompt_tokens": INPUT_TOKENS,
        "completion_tokens": OUTPUT_TOKENS,
        "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
        "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }
    return chunk(id="c", object="chat.completion.chunk", created=1, model="x", choices=[], usage=numbers)


def _spoken(*words: str) -> list[bytes]:
    first = _delta({"role": "assistant", "content": ""})
    return [first, *(_delta({"content": word}) for word in words), _delta({}, "stop"), _usage(), DONE]


def _pieces(text: str) -> list[str]:
    return [text[start : start + 7] for start in range(0, len(text), 7)]


def _called(name: str, arguments: str) -> list[bytes]:
    def call(**function: str) -> dict[str, Any]:
        return {"index": 0, "function": function}

    first = {**call(name=name, arguments=""), "id": "call_1", "type": "function"}
    return [
        _delta({"role": "assistant", "content": None, "tool_calls": [first]}),
        *(_delta({"tool_calls": [call(arguments=piece)]}) for piece in _pieces(arguments)),
        _delta({}, "tool_calls"),
        _usage(),
        DONE,
    ]


async def _tools(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Calls the first function that it is offered, once."""
    has_result = any(message["role"] == "tool" for message in asked.body["messages"])
    if has_result or not asked.body.get("tools"):
        await stream(*_spoken(AFTER_TOOLS))(asked, writer)
    else:
        name = asked.body["tools"][0]["function"]["name"]
        await stream(*_called(name, json.dumps({"city": "Paris"})))(asked, writer)


async def _schema(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Fills in the schema, which some clients send as a format and others as a function."""
    filled = json.dumps(WEATHER)
    if asked.body.get("response_format"):
        await stream(*_spoken(*_pieces(filled)))(asked, writer)
    else:
        await stream(*_called(asked.body["tools"][0]["function"]["name"], filled))(asked, writer)


async def _breaks(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Dies after two words: the stream has no end."""
    await open_stream(writer)
    await send(writer, *_spoken(*WORDS)[:3])
    raise ConnectionResetError


async def _slow(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Goes on until its client leaves."""
    await open_stream(writer)
    for number in range(SLOW_SECONDS * 20):
        await send(writer, _delta({"content": f"word {number} "}))
        await asyncio.sleep(0.05)
    await send(writer, *_spoken()[-3:])
    await end(writer)


async def _silent(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Says nothing, until its client leaves."""
    await asyncio.sleep(SLOW_SECONDS)
    await stream(*_spoken(*WORDS))(asked, writer)


_THINKING: Final = [
    _delta({"role": "assistant", "reasoning_content": ""}),
    *(_delta({"reasoning_content": piece}) for piece in _pieces(THOUGHT)),
    *(_delta({"content": word}) for word in WORDS),
    _delta({}, "stop"),
    _usage(REASONING_TOKENS),
    DONE,
]
_REFUSING: Final = [
    _delta({"role": "assistant", "content": None, "refusal": ""}),
    *(_delta({"refusal": piece}) for piece in _pieces(REFUSAL)),
    _delta({}, "stop"),
    _usage(),
    DONE,
]
_BUSY: Final = json.dumps({"error": {"message": "busy", "type": "overloaded", "param": None, "code": 503}}).encode()
SCENARIOS: Final = {
    "parrot": stream(*_spoken(*WORDS)),
    "tools": _tools,
    "schema": _schema,
    "refuses": stream(*_REFUSING),
    "thinks": stream(*_THINKING),
    "breaks": _breaks,
    "busy": answer(503, _BUSY),
    "slow": _slow,
    "silent": _silent,
}
"""By the name of the model."""


async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Answer as the model that is asked for does; there is nothing here but chat completions."""
    if asked.path == "/v1/chat/completions":
        await SCENARIOS[asked.body["model"]](asked, writer)
    else:
        await answer(404, b'{"error": {"message": "Not Found", "type": "NotFoundError", "code": 404}}')(asked, writer)


@contextmanager
def running_backend() -> Iterator[Scripted]:
    """The backend in a thread of its own: those who ask it are processes, and the tests wait for them."""
    backend = Scripted(script)
    is_open = threading.Event()
    loop = asyncio.new_event_loop()
    closing = asyncio.Event()

    connections: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections[task] = writer
        await backend.serve(reader, writer)
        with suppress(ConnectionError):
            await writer.wait_closed()
        del connections[task]

    async def serve() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        backend.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        is_open.set()
        await closing.wait()
        server.close()
        for writer in connections.values():
            writer.transport.abort()
        if connections:
            await asyncio.wait(set(connections))

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="scripted backend")
    thread.start()
    try:
        assert is_open.wait(10)
        yield backend
    finally:
        loop.call_soon_threadsafe(closing.set)
        thread.join(10)
        loop.close()
