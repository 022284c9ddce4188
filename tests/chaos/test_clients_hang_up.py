"""Clients hang up at random points: none pays nothing, none more than was generated, the sums are the backend's.

What each backend makes possible is in docs/promises.md; the bounds there are the ones of these tests.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from tokenizers import Tokenizer

from gateway.backends.counters import parse_counters
from gateway.embedded.llamacpp import LlamaCpp
from gateway.embedded.redis import Redis
from models.catalog import BackendKind
from models.money import parse_amount
from models.reconciliation import Counters
from tests.chaos.form import times
from tests.conftest import Database
from tests.generating import OLLAMA, SGLANG, TEMPLATE_TOKENS, VLLM, Engine, Pace, generating_backend, prompt
from tests.stage import Stage, Tenant, eventually, raise_curtain

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

CLIENTS = times(short=100, full=1_000)
AT_ONCE = 32
SEED = 20_261_127
PATIENCE_SECONDS = 30
"""How long a client comes again with a call that is turned away; one that never was taken costs nothing."""
_WORDS = re.compile(rb'"content": ?"[^"]')
IN_FLIGHT = 8
"""Tokens on their way when a gateway closes: written by the backend before it hears that nobody reads any more."""
LLAMACPP_OVERRUN = 64
"""Tokens that llama.cpp generates before it notices that its client left, on average over calls at most."""


class Leaves(Enum):
    """When a client hangs up."""

    AT_ONCE = auto()
    EARLY = auto()
    AFTER_TOKENS = auto()
    AT_THE_END = auto()


@dataclass(slots=True)
class Client:
    """One call and the moment in which its client hangs up; `tokens` are events with text that it has read."""

    name: str
    streamed: bool
    leaves: Leaves
    seconds: float
    """Time after which it leaves in any case, where it does not stay to the end."""
    after_tokens: int
    words: int
    max_tokens: int
    is_abrupt: bool
    tokens: int = 0
    is_whole: bool = False
    refusal: bytes = b""
    """The whole answer that turned it away, where it never was taken."""

    @classmethod
    def some(cls, dice: random.Random, number: int, *, longest_seconds: float, max_tokens: int) -> Client:
        """A client by chance."""
        return cls(
            name=f"c{number}",
            streamed=dice.random() < 0.7,
            leaves=dice.choice(list(Leaves)),
            seconds=dice.uniform(0, longest_seconds),
            after_tokens=dice.randint(1, max_tokens),
            words=dice.randint(0, 60),
            max_tokens=dice.randint(1, max_tokens),
            is_abrupt=dice.random() < 0.5,
        )

    async def call(self, stage: Stage, tenant: Tenant) -> None:
        """Call, and come again as the SDKs do when a machine that is too busy turns the call away."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        await self._call_once(stage, tenant)
        while self.refusal and time.monotonic() < deadline:
            await asyncio.sleep(1)
            await self._call_once(stage, tenant)

    async def _call_once(self, stage: Stage, tenant: Tenant) -> None:
        """Send the call, read as long as wanted, and hang up."""
        self.tokens, self.is_whole, self.refusal = 0, False, b""
        url = urlsplit(stage.base_url)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        try:
            writer.write(self._request(stage, tenant))
            limit = {Leaves.AT_ONCE: self.seconds / 50, Leaves.EARLY: self.seconds}.get(self.leaves)
            with suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(limit):
                    await self._read(reader)
        finally:
            # With and without words: a reset throws away what was on its way, a close does not.
            writer.transport.abort() if self.is_abrupt else writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        received = b""
        wanted = self.after_tokens if self.leaves is Leaves.AFTER_TOKENS else None
        while piece := await reader.read(65_536):
            received += piece
            self.tokens = len(_WORDS.findall(received))
            self.refusal = received if received.startswith(b"HTTP/1.1 503") else b""
            is_over = self.refusal or b"data: [DONE]" in received or b'"finish_reason":"length"' in received
            self.is_whole = bool(is_over)
            if self.is_whole and self.leaves is not Leaves.EARLY:
                return
            if self.streamed and wanted is not None and self.tokens >= wanted:
                return

    def _request(self, stage: Stage, tenant: Tenant) -> bytes:
        message = {"role": "user", "content": prompt(self.name, self.words)}
        body: dict[str, Any] = {"model": "m", "messages": [message], "max_tokens": self.max_tokens}
        body |= {"stream": self.streamed, "user": self.name, "ignore_eos": True}
        request = stage.client.build_request(
            "POST", f"{stage.base_url}/v1/chat/completions", json=body, headers=tenant.headers
        )
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        return f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + request.read()


async def hang_up(stage: Stage, tenant: Tenant, clients: list[Client]) -> dict[str, dict[str, Any]]:
    """Let all of them call, some at a time; the charges by the name of the call, once all calls have ended."""
    some = asyncio.Semaphore(AT_ONCE)

    async def one(client: Client) -> None:
        async with some:
            await client.call(stage, tenant)

    await asyncio.gather(*(one(client) for client in clients))
    await stage.quiet()
    await stage.verified(tenant)
    # Nothing is on its way any more once the worker has booked all it finds.
    await stage.stop_worker()
    charges: list[dict[str, Any]] = await stage.listed(tenant)
    by_name = {charge["end_user"]: charge for charge in charges}
    assert len(by_name) == len(charges), "a call was charged twice"
    return by_name


def paid(charge: dict[str, Any]) -> int:
    """What a charge took, in ledger units."""
    return parse_amount(charge["amount"]["amount"], "USD")


@pytest.mark.parametrize("engine", [VLLM, SGLANG, OLLAMA], ids=lambda engine: engine.kind)
async def test_engines_that_are_played(
    postgres: Database, redis: Redis, tmp_path: Path, tiny_model: tuple[Path, Path], engine: Engine
) -> None:
    dice, tokenizer = random.Random(SEED), Tokenizer.from_file(str(tiny_model[1]))
    paces = {
        f"c{number}": Pace(dice.uniform(0, 0.08), dice.randint(1, 60), dice.uniform(0.001, 0.006))
        for number in range(CLIENTS)
    }
    clients = [Client.some(dice, number, longest_seconds=0.4, max_tokens=60) for number in range(CLIENTS)]
    async with (
        generating_backend(engine, paces.__getitem__, lambda text: len(tokenizer.encode(text))) as backend,
        raise_curtain(postgres.app_url, redis.url, journal_dir=tmp_path) as stage,
    ):
        await stage.backend(backend.url, kind=engine.kind, model="m", known_as="m", tokenizer=str(tiny_model[1]))
        tenant = await stage.tenant()
        charges = await hang_up(stage, tenant, clients)
        await backend.idle()

        # A call may be closed before the backend has read its request: its prompt is charged all the same.
        unread = charges.keys() - backend.calls.keys()
        assert backend.calls.keys() <= charges.keys()
        for name in unread:
            assert charges[name]["output_tokens"] == 0
        for client in clients:
            if (charge := charges.get(client.name)) is None:
                assert client.tokens == 0
                continue
            assert not client.refusal
            assert paid(charge) > 0
            if client.name in unread:
                continue
            call = backend.calls[client.name]
            # Without a usage report the prompt is our own count, which knows no template.
            least = call.prompt_tokens - (0 if charge["usage_source"].startswith("backend") else TEMPLATE_TOKENS)
            assert least <= charge["input_tokens"] <= call.prompt_tokens
            assert client.tokens <= charge["output_tokens"] or not client.streamed
            assert charge["output_tokens"] <= call.tokens
            heard = call.tokens if call.tokens_when_left is None else call.tokens_when_left
            assert charge["output_tokens"] >= heard - IN_FLIGHT, (client, call, charge)
            if charge["ending"] == "finished":
                assert charge["output_tokens"] == call.tokens
        generated = sum(call.tokens for call in backend.calls.values())
        charged = sum(charge["output_tokens"] for charge in charges.values())
        left = [call for call in backend.calls.values() if call.tokens_when_left is not None]
        overrun = sum(call.tokens - (call.tokens_when_left or 0) for call in left)
        assert 0 <= generated - charged <= overrun + IN_FLIGHT * len(left)


@dataclass(slots=True)
class Tap:
    """Between a gateway and llama.cpp: sees of which calls the request passed, and the count with their last event."""

    url: str = ""
    asked: set[str] = field(default_factory=set)
    generated: dict[str, int] = field(default_factory=dict)

    async def connect(self, host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection; when one side goes, the other one does."""
        far_reader, far_writer = await asyncio.open_connection(host, port)
        name = ""
        seen = b""

        async def up() -> None:
            nonlocal name, seen
            asked = b""
            while data := await reader.read(65_536):
                asked += data
                if found := re.search(rb'"content":"call (\w+):', asked):
                    name, seen, asked = found[1].decode(), b"", b""
                    self.asked.add(name)
                far_writer.write(data)

        async def down() -> None:
            nonlocal seen
            while data := await far_reader.read(65_536):
                seen = (seen + data)[-65_536:]
                if counts := re.findall(rb'"predicted_n":(\d+)', seen):
                    self.generated[name] = int(counts[-1])
                writer.write(data)

        ways = [asyncio.ensure_future(up()), asyncio.ensure_future(down())]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        writer.transport.abort()
        far_writer.transport.abort()


@asynccontextmanager
async def tapped(url: str) -> AsyncIterator[Tap]:
    """A tap before the llama.cpp at `url`."""
    tap, far = Tap(), urlsplit(url)
    assert far.hostname is not None
    assert far.port is not None
    host, port = far.hostname, far.port
    server = await asyncio.start_server(lambda *ends: tap.connect(host, port, *ends), "127.0.0.1", 0)
    tap.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield tap
    finally:
        server.close()


async def counters(client: httpx.AsyncClient, llamacpp: LlamaCpp) -> Counters:
    """What llama.cpp has counted, once it does nothing."""

    async def still() -> str | None:
        text = (await client.get(f"{llamacpp.url}/metrics")).text
        idle = all(f"\nllamacpp:requests_{what} 0\n" in text for what in ("processing", "deferred"))
        return text if idle else None

    return parse_counters(BackendKind.LLAMACPP, await eventually(still))


async def test_llamacpp(
    postgres: Database, redis: Redis, tmp_path: Path, tiny_model: tuple[Path, Path], llamacpp: LlamaCpp
) -> None:
    dice, tokenizer = random.Random(SEED), Tokenizer.from_file(str(tiny_model[1]))
    clients = [Client.some(dice, number, longest_seconds=1.0, max_tokens=300) for number in range(CLIENTS)]
    async with (
        tapped(llamacpp.url) as tap,
        raise_curtain(postgres.app_url, redis.url, journal_dir=tmp_path) as stage,
    ):
        await stage.backend(tap.url, kind="llamacpp", model="m", known_as="tiny", tokenizer=str(tiny_model[1]))
        tenant = await stage.tenant()
        before = await counters(stage.client, llamacpp)
        charges = await hang_up(stage, tenant, clients)
        after = await counters(stage.client, llamacpp)
    assert tap.asked <= charges.keys()
    template = {
        charge["input_tokens"] - len(tokenizer.encode(prompt(client.name, client.words)))
        for client in clients
        if (charge := charges.get(client.name)) is not None and charge["usage_source"] != "estimate"
    }
    assert len(template) == 1, (template, [client.refusal for client in clients if client.refusal])
    for client in clients:
        if (charge := charges.get(client.name)) is None:
            assert client.tokens == 0
            continue
        assert not client.refusal
        assert paid(charge) > 0
        assert charge["output_tokens"] <= tap.generated.get(client.name, 0)
        assert client.tokens <= charge["output_tokens"] or not client.streamed
        if charge["ending"] == "finished":
            assert charge["output_tokens"] == tap.generated[client.name]
    left = [charge for charge in charges.values() if charge["ending"] != "finished"]
    estimated = [charge for charge in left if charge["usage_source"] == "estimate"]
    uncharged = after.output - before.output - sum(charge["output_tokens"] for charge in charges.values())
    rounding = before.output_rounding + after.output_rounding
    assert -rounding <= uncharged <= LLAMACPP_OVERRUN * len(left) + rounding
    uncharged = after.input - before.input - sum(charge["input_tokens"] for charge in charges.values())
    rounding = before.input_rounding + after.input_rounding
    # A call that waited for a slot there may have been dropped before its prompt was worked on.
    least = -sum(charge["input_tokens"] for charge in estimated)
    assert least - rounding <= uncharged <= template.pop() * len(estimated) + rounding
