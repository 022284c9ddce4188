"""Everything is killed at once under load, again and again: each call that delivered a token has one charge.

The parts of a real `tollgate up` and their supervisor get SIGKILL in one go at a random moment, and the same command
starts them again on the same directory. The backend lives on: it knows what it generated.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.money import parse_amount
from tests.chaos.form import times
from tests.conftest import Up
from tests.generating import VLLM, Generating, Pace, generating_backend, prompt
from tests.stage import eventually, listed

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

ROUNDS = times(short=2, full=20)
CUSTOMERS = 24
PACE_SECONDS = 0.005
"""Pause of a customer between two calls."""
SEED = 4
UNCHARGED_SECONDS = 1.0
"""How much of what a call delivered may stay uncharged."""


@dataclass(slots=True)
class Heard:
    """One call as its client saw it: when each token came, and whether the answer is complete."""

    streamed: bool
    moments: list[float] = field(default_factory=list)
    is_whole: bool = False


@dataclass(slots=True)
class Load:
    """Customers that call one model without pause until everything is gone."""

    number: int
    backend: Generating
    dice: random.Random
    heard: dict[str, Heard] = field(default_factory=dict)
    tokens: int = 0

    async def customer(self, client: httpx.AsyncClient, number: int) -> None:
        """Calls, one after the other, until one breaks."""
        with suppress(httpx.HTTPError):
            for call in range(1_000):
                name = f"r{self.number}-{number}-{call}"
                heard = self.heard[name] = Heard(streamed=self.dice.random() < 0.75)
                body = {"model": "m", "stream": heard.streamed, "max_tokens": 400, "user": name}
                body["messages"] = [{"role": "user", "content": prompt(name, number)}]
                await self._hear(client, body, heard)
                await asyncio.sleep(PACE_SECONDS)

    async def _hear(self, client: httpx.AsyncClient, body: dict[str, Any], heard: Heard) -> None:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code == 503:
                # A machine that is too busy turns calls away, and nothing is owed for them.
                return
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                self._line(line, heard)

    def _line(self, line: str, heard: Heard) -> None:
        heard.is_whole = heard.is_whole or line == "data: [DONE]" or not heard.streamed
        if heard.streamed and '"content"' in line:
            heard.moments.append(time.monotonic())
            self.tokens += 1


def pace_of(name: str) -> Pace:
    """Short and long answers, some of them slow, by the name of the call."""
    dice = random.Random(name)
    return Pace(dice.uniform(0, 0.05), dice.choice([1, 5, 40, 200]), dice.choice([0.002, 0.02]))


def descendants(pid: int) -> Iterator[int]:
    """A process and all that it and its children have started."""
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from descendants(int(child))


async def kill_everything(up: Up, dice: random.Random) -> float:
    """SIGKILL for every process there is, in any order; when it began."""
    every = list(descendants(up.child.pid))
    dice.shuffle(every)
    began = time.monotonic()
    for pid in every:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    async def gone() -> bool:
        return up.child.exit_code() is not None and up.parts_are_gone()

    await eventually(gone)
    return began


def forget_last(up: Up, dice: random.Random) -> None:
    """Take from the file of Redis what it had acknowledged last: it puts off writing for as long as it syncs."""
    file = up.directory / "redis" / "appendonly.aof"
    with file.open("r+b") as content:
        size = content.seek(0, os.SEEK_END)
        content.truncate(max(0, size - dice.randint(1, 40_000)))


async def free(client: httpx.AsyncClient) -> None:
    """Wait until nothing is held."""

    async def is_free() -> bool:
        answer = await client.get("/v1/billing/balance")
        return answer.is_success and parse_amount(answer.json()["held"]["amount"], "USD") == 0

    await eventually(is_free)


@pytest.fixture
async def backend() -> AsyncIterator[Generating]:
    """The model server, which outlives all."""
    async with generating_backend(VLLM, pace_of) as backend:
        yield backend


@pytest.fixture
async def up(tmp_path: Path, backend: Generating) -> AsyncIterator[Up]:
    """An `up` of this test alone."""
    running = Up(tmp_path / "data", arguments=(f"--backend={backend.url}",))
    try:
        await asyncio.to_thread(running.wait_ready)
        yield running
    finally:
        await asyncio.to_thread(running.child.stop, 15)


async def test_each_call_that_delivered_a_token_has_one_charge(up: Up, backend: Generating) -> None:
    dice = random.Random(SEED)
    known: set[str] = set()
    for number in range(ROUNDS):
        facts = up.facts
        headers = {"authorization": f"Bearer {facts['api_key']}"}
        limits = httpx.Limits(max_connections=CUSTOMERS)
        async with httpx.AsyncClient(
            base_url=facts["base_url"], headers=headers, trust_env=False, timeout=30, limits=limits
        ) as client:
            load = Load(number, backend, random.Random(dice.random()))
            customers = [asyncio.create_task(load.customer(client, who)) for who in range(CUSTOMERS)]
            enough = dice.randint(200, 4_000)

            async def is_moment(load: Load = load, enough: int = enough) -> bool:
                return load.tokens >= enough

            await eventually(is_moment, 30)
            killed = await kill_everything(up, dice)
            await asyncio.gather(*customers)
        await backend.idle()
        if number % 2:
            forget_last(up, dice)
        up.start_again()
        facts = await asyncio.to_thread(up.wait_ready)
        async with httpx.AsyncClient(
            base_url=facts["base_url"], headers=headers, trust_env=False, timeout=30
        ) as client:
            await charged(client, facts, load, killed, known)
            await free(client)
            operator = {"authorization": f"Bearer {facts['operator_key']}"}
            report = (await client.get("/operator/v1/verify", headers=operator)).json()
            assert report["ok"], report


async def charged(client: httpx.AsyncClient, facts: dict[str, Any], load: Load, killed: float, known: set[str]) -> None:
    """Wait for the charges of a round, and compare each with what its client heard and its backend did."""
    owed = {name for name, heard in load.heard.items() if heard.moments or heard.is_whole}
    admin_headers = {"authorization": f"Bearer {facts['admin_key']}"}

    async def all_booked() -> list[dict[str, Any]] | None:
        charges = await listed(client, facts["base_url"], admin_headers)
        return charges if owed <= {charge["end_user"] for charge in charges} else None

    charges = await eventually(all_booked)
    found = [charge for charge in charges if charge["call_id"] not in known]
    known |= {charge["call_id"] for charge in found}
    assert len({charge["end_user"] for charge in charges}) == len(charges), "a call was charged twice"
    for charge in found:
        heard, call = load.heard[charge["end_user"]], load.backend.calls[charge["end_user"]]
        assert parse_amount(charge["amount"]["amount"], "USD") > 0
        assert charge["output_tokens"] <= call.tokens
        if heard.is_whole:
            assert charge["output_tokens"] == call.tokens
        certain = sum(moment <= killed - UNCHARGED_SECONDS for moment in heard.moments)
        assert charge["output_tokens"] >= certain, (charge, heard)
