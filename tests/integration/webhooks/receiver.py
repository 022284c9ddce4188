"""A real HTTPS server that receives alerts, under the name `receiver.test`.

`receiver.pem` is the key and certificate of that name alone, which nobody trusts but these tests.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

HOST = "receiver.test"
_PEM = Path(__file__).with_name("receiver.pem")


def trusted() -> ssl.SSLContext:
    """What a client needs to trust the receiver."""
    return ssl.create_default_context(cafile=str(_PEM))


@dataclass(frozen=True, slots=True)
class Received:
    """One request: its headers, names in lower case, and its body."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def told(self) -> dict[str, Any]:
        """The body's JSON."""
        told: dict[str, Any] = json.loads(self.body)
        return told


@dataclass(slots=True)
class Receiver:
    """What it was sent, and what it answers: `status`, with `headers` and a body that never ends where `is_endless`."""

    port: int = 0
    status: int = 200
    headers: tuple[str, ...] = ()
    is_endless: bool = False
    connections: int = 0
    received: list[Received] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"https://{HOST}:{self.port}/alerts?of=tollgate"

    async def find_address(self, url: httpx.URL) -> str:
        """The address of the receiver, for its name alone."""
        assert url.host == HOST, url
        return "127.0.0.1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request and its answer."""
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict((name.lower(), value) for name, _, value in (line.partition(": ") for line in head[1:-2]))
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.received.append(Received(head[0].split(" ")[1], headers, body))
            writer.write("\r\n".join((f"HTTP/1.1 {self.status} x", *self.headers, "", "")).encode())
            while self.is_endless:
                writer.write(b"x" * 65_536)
                await writer.drain()
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver that runs."""
    receiver = Receiver()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(_PEM)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=context)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
