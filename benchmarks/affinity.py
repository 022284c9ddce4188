"""`python -m benchmarks.affinity`: what it gains that a conversation goes where its beginning is in the prefix cache.

Two real llama.cpp servers with the demo model, four slots each, serve one model. Two gateways on the same Postgres and
Redis, one of which forgets conversations, get the same load in turn: conversations that have a system prompt in common,
each of several turns that repeat all that was said. What the servers say they took from their cache is counted, and the
time to the first byte.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.tollgate import Tollgate
from gateway.embedded import llamacpp, tinymodel

SYSTEM_WORDS: Final = 150
WORDS_A_TURN: Final = 40
TOKENS_A_TURN: Final = 48
TURNS: Final = 6
SLOTS: Final = 4
_WORDS: Final = ("river", "stone", "engine", "market", "lantern", "garden", "signal", "harbour", "mirror", "winter")


@dataclass(frozen=True, slots=True)
class Size:
    """How many conversations a repetition has, how many at a time, and how long somebody thinks before a turn."""

    conversations: int
    at_a_time: int
    thinking_seconds: float


@dataclass(slots=True)
class Tally:
    """What one gateway's calls had in common with the caches."""

    prompt: int = 0
    cached: int = 0
    calls: int = 0
    stayed: int = 0
    followed: int = 0
    first_byte_seconds: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Part of the prompt tokens that came from a cache."""
        return self.cached / self.prompt

    def saw(self, order: list[str]) -> None:
        """The servers of one conversation, turn by turn."""
        self.followed += len(order) - 1
        self.stayed += sum(before == after for before, after in itertools.pairwise(order))


async def converse(
    client: httpx.AsyncClient, base_url: str, system: str, seed: int, thinking_seconds: float, tally: Tally
) -> list[str]:
    """One conversation from its first to its last turn; the ids of its calls."""
    calls = []
    chance = random.Random(seed)  # noqa: S311 - words, not secrets
    messages: list[dict[str, str]] = [{"role": "system", "content": system}]
    for _ in range(TURNS):
        # Somebody reads and writes: a turn that came at once would find the server that it just left the least loaded.
        await asyncio.sleep(chance.uniform(0, 2 * thinking_seconds))
        messages.append({"role": "user", "content": _text(chance, WORDS_A_TURN)})
        said, call_id = await ask(client, base_url, messages, tally)
        messages.append({"role": "assistant", "content": said})
        calls.append(call_id)
    return calls


async def _server(client: httpx.AsyncClient, base_url: str, call_id: str) -> str:
    """Where a call was served, by its receipt, which is there once the call is booked."""
    while True:
        answer = await client.get(f"{base_url}/v1/calls/{call_id}")
        if answer.is_success:
            return str(answer.json()["deployment"])
        await asyncio.sleep(0.1)


async def ask(
    client: httpx.AsyncClient, base_url: str, messages: list[dict[str, str]], tally: Tally
) -> tuple[str, str]:
    """One call: what was answered, and its id."""
    body = {"model": "tiny", "messages": messages, "max_tokens": TOKENS_A_TURN, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    text, usage, began = "", dict[str, Any](), time.perf_counter()
    async with client.stream("POST", f"{base_url}/v1/chat/completions", json=body) as answer:
        if not answer.is_success:
            raise RuntimeError(f"a call was refused: {answer.status_code} {(await answer.aread()).decode()}")
        is_first = True
        async for line in answer.aiter_lines():
            if is_first:
                tally.first_byte_seconds.append(time.perf_counter() - began)
                is_first = False
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
    tally.calls += 1
    tally.prompt += usage["prompt_tokens"]
    tally.cached += usage["prompt_tokens_details"]["cached_tokens"]
    return text, answer.headers["x-request-id"]


async def load(base_url: str, key: str, size: Size, seed: int) -> Tally:
    """Conversations, some at a time, with texts that nobody has seen before."""
    tally, gate = Tally(), asyncio.Semaphore(size.at_a_time)
    system = _text(random.Random(seed), SYSTEM_WORDS)  # noqa: S311
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=120, trust_env=False) as client:

        async def one(number: int) -> list[str]:
            async with gate:
                return await converse(client, base_url, system, 1_000 * seed + number, size.thinking_seconds, tally)

        for calls in await asyncio.gather(*map(one, range(size.conversations))):
            tally.saw([await _server(client, base_url, call_id) for call_id in calls])
    return tally


def _text(chance: random.Random, words: int) -> str:
    return " ".join(f"{chance.choice(_WORDS)}{chance.randrange(1_000)}" for _ in range(words))


def measure(repetitions: int, size: Size) -> dict[str, list[Tally]]:
    """The tallies of both gateways, repetition by repetition, in alternating order."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollgate-bench-")))
        directory.chmod(0o755)
        model, _ = tinymodel.make(directory / "model")
        servers = [llamacpp.start(model, log=directory / f"llamacpp-{number}.log", slots=SLOTS) for number in (1, 2)]
        for server in servers:
            stack.callback(server.child.stop, seconds=5)
        tollgate = Tollgate(directory / "tollgate", servers[0].url)
        stack.callback(tollgate.stop)
        _add_second(tollgate, servers[1].url)
        gateways = {
            "with affinity": stack.enter_context(tollgate.gateway(directory / "with.log")),
            "without": stack.enter_context(
                tollgate.gateway(directory / "without.log", ("-m", "benchmarks.forgetful", "serve"))
            ),
        }
        found: dict[str, list[Tally]] = {name: [] for name in gateways}
        for repetition in range(repetitions):
            for place, name in enumerate(sorted(gateways, reverse=bool(repetition % 2))):
                url = f"http://127.0.0.1:{gateways[name][0]}"
                seed = 10 * repetition + place + 1
                found[name].append(asyncio.run(load(url, tollgate.key, size, seed)))
        return found


def _add_second(tollgate: Tollgate, url: str) -> None:
    """Let the second server serve the model of the first one, as an operator would."""
    operator = f"{tollgate.facts['base_url']}/operator/v1"
    headers = {"authorization": f"Bearer {tollgate.facts['operator_key']}"}
    first = httpx.get(f"{operator}/backends", headers=headers, timeout=30, trust_env=False).json()["data"][0]["name"]
    second = {"url": url, "name": "second", "create_models": True, "max_in_flight": SLOTS}
    for path, body in (("", second), (f"/{first}", {"max_in_flight": SLOTS})):
        answer = httpx.post(f"{operator}/backends{path}", headers=headers, json=body, timeout=30, trust_env=False)
        if not answer.is_success:
            raise RuntimeError(f"a backend was refused: {answer.text}")
    # Known to all gateways, and no newcomer any more.
    time.sleep(31)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5, help="of each gateway (default: %(default)s)")
    parser.add_argument("--conversations", type=int, default=36, help="of each repetition (default: %(default)s)")
    parser.add_argument("--at-a-time", type=int, default=8, help="conversations (default: %(default)s)")
    parser.add_argument("--thinking", type=float, default=0.4, help="seconds before a turn (default: %(default)s)")
    options = parser.parse_args()
    found = measure(options.repetitions, Size(options.conversations, options.at_a_time, options.thinking))
    table = Table("gateway", "calls", "prompt tokens", "from a cache", "share (min-max)", "stayed", "first byte p50 ms")
    for name, tallies in found.items():
        shares = [100 * each.share for each in tallies]
        first = [1_000 * statistics.median(each.first_byte_seconds) for each in tallies]
        table.add_row(
            name,
            f"{sum(each.calls for each in tallies):,}",
            f"{sum(each.prompt for each in tallies):,}",
            f"{sum(each.cached for each in tallies):,}",
            f"{statistics.median(shares):.1f} % ({min(shares):.1f}-{max(shares):.1f})",
            f"{100 * sum(each.stayed for each in tallies) / sum(each.followed for each in tallies):.0f} %",
            f"{statistics.median(first):.1f}",
        )
    # Wide enough for all columns, also in a file.
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
