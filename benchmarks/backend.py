"""The model server of the benchmark: answers at once, with real usage numbers, in the forms that OpenAI's API has.

`python -m benchmarks.backend` prints its port and serves until its standard input closes. On the plain asyncio loop on
purpose: its transports write at once, so that every event is a segment of its own, where uvloop would join them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import httptools

from benchmarks.lines import end_of_input

ANSWER, BURST, PACED = "answer", "burst", "paced"
MODELS = (ANSWER, BURST, PACED)
"""`answer` streams in one write; `burst` sends 66 events, each in a write of its own; `paced` a millisecond apart."""

STREAM_TOKENS = 64
GAP_SECONDS = 0.001
PROMPT_TOKENS = 120
CONTEXT_LENGTH = 8192
_TEXT = "The answer is the same each time, so that nothing but the gateway makes a difference. " * 8
_ANSWER_TOKENS = 128


def answer_json(model: str) -> bytes:
    """A chat completion of about 1 KB."""
    choice = {"index": 0, "message": {"role": "assistant", "content": _TEXT}, "finish_reason": "stop"}
    return _compact(
        {
            "id": "chatcmpl-benchmark",
            "object": "chat.completion",
            "created": 1_760_000_000,
            "model": model,
            "choices": [choice],
            "usage": _usage(_ANSWER_TOKENS),
        }
    )


def answer_events(model: str) -> Iterator[bytes]:
    """The same answer as a stream: role, text, end, usage."""
    yield _event(model, {"role": "assistant", "content": ""}, None)
    yield _event(model, {"content": _TEXT}, None)
    yield _event(model, {}, "stop")
    yield _usage_event(model, _ANSWER_TOKENS)


def stream_events(model: str) -> Iterator[bytes]:
    """A stream of a token an event, 65 events with the one of the usage."""
    for place in range(STREAM_TOKENS):
        yield _event(model, {"content": f" token {place:02} of many"}, "stop" if place == STREAM_TOKENS - 1 else None)
    yield _usage_event(model, STREAM_TOKENS)


def _event(model: str, delta: dict[str, str], finish_reason: str | None) -> bytes:
    return _chunk(model, choices=[{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}])


def _usage_event(model: str, completion_tokens: int) -> bytes:
    return _chunk(model, choices=[], usage=_usage(completion_tokens))


def _chunk(model: str, **more: Any) -> bytes:
    head = {"id": "chatcmpl-benchmark", "object": "chat.completion.chunk", "created": 1_760_000_000, "model": model}
    return b"data: " + _compact(head | more) + b"\n\n"


def _usage(completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": completion_tokens,
        "total_tokens": PROMPT_TOKENS + completion_tokens,
    }


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# As HTTP -------------------------------------------------------------------------------------------------------------

_JSON_HEAD = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _json_response(body: bytes, status: bytes = b"200 OK") -> tuple[bytes, ...]:
    return (_JSON_HEAD % (status, len(body)) + body,)


def _stream_response(events: Sequence[bytes]) -> tuple[bytes, ...]:
    """Each event as a chunk of its own; the first carries the head and the last the end."""
    chunks = [b"%x\r\n%s\r\n" % (len(event), event) for event in (*events, b"data: [DONE]\n\n")]
    return (_STREAM_HEAD + chunks[0], *chunks[1:-1], chunks[-1] + b"0\r\n\r\n")


WHOLE = {model: _json_response(answer_json(model)) for model in MODELS}
STREAMED = {
    ANSWER: (b"".join(_stream_response([*answer_events(ANSWER)])),),
    BURST: _stream_response([*stream_events(BURST)]),
    PACED: _stream_response([*stream_events(PACED)]),
}
_LISTING = _json_response(
    _compact(
        {
            "object": "list",
            "data": [
                {"id": model, "object": "model", "owned_by": "benchmark", "max_model_len": CONTEXT_LENGTH}
                for model in MODELS
            ],
        }
    )
)
_NOT_FOUND = _json_response(b'{"error":{"message":"no such path"}}', b"404 Not Found")


class BackendConnection(asyncio.Protocol):
    """One keep-alive connection of a gateway, or of the load itself."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._url = b""
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the loop; a paced stream ends at its next event."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._url = self._body = b""

    def on_url(self, url: bytes) -> None:
        """Called by the parser."""
        self._url += url

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._body += body

    def on_message_complete(self) -> None:
        """Answer the request, at the pace of its model."""
        pieces, gap_seconds = self._answer()
        if gap_seconds:
            self._write_paced(iter(pieces))
        else:
            for piece in pieces:
                self._write(piece)

    def _answer(self) -> tuple[tuple[bytes, ...], float]:
        if self._url == b"/v1/models":
            return _LISTING, 0
        if self._url != b"/v1/chat/completions":
            return _NOT_FOUND, 0
        request = json.loads(self._body)
        model = request["model"]
        if request.get("stream"):
            return STREAMED[model], GAP_SECONDS if model == PACED else 0
        return WHOLE[model], 0

    def _write_paced(self, pieces: Iterator[bytes]) -> None:
        piece = next(pieces, None)
        if piece is not None and self._transport is not None:
            self._transport.write(piece)
            self._loop.call_later(GAP_SECONDS, self._write_paced, pieces)

    def _write(self, piece: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(piece)


async def serve() -> None:
    """Serve on a free port of loopback, printed as the only line of output."""
    server = await asyncio.get_running_loop().create_server(BackendConnection, "127.0.0.1", 0, backlog=1024)
    async with server:
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await end_of_input()


if __name__ == "__main__":
    asyncio.run(serve())
