"""A backend that misbehaves on purpose: says what a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

Script = Callable[["Asked", asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came; `body` is decoded, but for a form, which is bytes."""

    path: str
    headers: dict[str, str]
    body: Any


@dataclass(slots=True)
class Scripted:
    """The backend; `script` decides each answer and may be changed at any time."""

    script: Script
    url: str = ""
    connections: int = 0
    asked: list[Asked] = field(default_factory=list)
    closed: int = 0
    """Answers during which the gateway broke the connection."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, kept open for one request after another."""
        self.connections += 1
        first = asyncio.ensure_future(reader.read(1))
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while start := await first:
                head = (start + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {
                    name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
                }
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                is_form = headers.get("content-type", "").startswith("multipart/")
                asked = Asked(head[0].split(" ")[1], headers, body if is_form else json.loads(body or b"null"))
                self.asked.append(asked)
                answer = asyncio.ensure_future(self.script(asked, writer))
                # Nothing comes before the answer is complete but the end of the connection.
                first = asyncio.ensure_future(reader.read(1))
                await asyncio.wait({answer, first}, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done() or answer.exception() is not None:
                    self.closed += 1
                    answer.cancel()
                    break
        first.cancel()
        writer.close()


def chunk(**fields: Any) -> bytes:
    """One SSE event."""
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def said(text: str, *, finish: str | None = None, index: int = 0) -> bytes:
    """One SSE event of a chat."""
    return chunk(id="c", model="x", choices=[{"index": index, "delta": {"content": text}, "finish_reason": finish}])


def usage(prompt: Any, completion: Any) -> bytes:
    """The last SSE event with usage."""
    total = prompt + completion if isinstance(prompt, int) and isinstance(completion, int) else None
    numbers = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
    return chunk(id="c", choices=[], usage=numbers)


DONE = b"data: [DONE]\n\n"


async def open_stream(writer: asyncio.StreamWriter, *headers: str) -> None:
    """Send the head of a stream that ends with the connection's last chunk."""
    lines = ["HTTP/1.1 200 OK", "content-type: text/event-stream", "transfer-encoding: chunked", *headers]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    await writer.drain()


async def send(writer: asyncio.StreamWriter, *pieces: bytes) -> None:
    """Send pieces of a stream, each as one HTTP chunk."""
    for piece in pieces:
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()


async def end(writer: asyncio.StreamWriter) -> None:
    """End a stream."""
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def stream(*pieces: bytes, headers: tuple[str, ...] = ()) -> Script:
    """A script that streams these pieces."""

    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await open_stream(writer, *headers)
        await send(writer, *pieces)
        await end(writer)

    return script


def answer(status: int, body: bytes, *headers: str) -> Script:
    """A script that answers at once with JSON."""

    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(body)}", *headers]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
        await writer.drain()

    return script


PLAIN = stream(said("hello", finish="stop"), usage(5, 2), DONE)


@asynccontextmanager
async def scripted_backend(script: Script = PLAIN) -> AsyncIterator[Scripted]:
    """Run a scripted backend on a port of its own."""
    backend = Scripted(script)
    server = await asyncio.start_server(backend.serve, "127.0.0.1", 0)
    backend.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield backend
    finally:
        server.close()
