"""Calls that are ended: by a hold that is spent, by the stop of a process, by what a client does on its connection."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.embedded.redis import Redis
from models.money import parse_amount
from tests.conftest import Database
from tests.integration.overload.conftest import Gate, House, asked
from tests.scripted import PLAIN, Asked, chunk, open_stream, scripted_backend, send
from tests.stage import Stage, Tenant, all_hear, eventually, mistyped, raise_curtain

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


def endless(kind: str) -> Any:
    """A backend that never stops; it tells its usage as engines of this kind do."""

    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await open_stream(writer)
        number = 0
        while True:
            number += 1
            choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": None}
            if kind == "llamacpp":
                told = {"timings": {"cache_n": 0, "prompt_n": 3, "predicted_n": number}}
            else:
                told = {"usage": {"prompt_tokens": 3, "completion_tokens": number, "total_tokens": number + 3}}
            await send(writer, chunk(id="c", model="x", choices=[choice], **(told if kind != "ollama" else {})))

    return script


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("kind", ["vllm", "llamacpp", "ollama"])
async def test_a_backend_that_never_stops_costs_no_more_than_the_hold(house: House, kind: str, is_stream: bool) -> None:
    tenant = await house.tenant()
    async with scripted_backend(endless(kind)) as backend:
        sale = await house.sell(backend, kind=kind)
        answer = await house.chat(tenant, sale, stream=is_stream)
        assert answer.status_code == 200
        if is_stream:
            assert answer.text.endswith("data: [DONE]\n\n")
            last = json.loads(answer.text.split("\n\n")[-3].removeprefix("data: "))
            assert last["choices"][0]["finish_reason"] == "length"
        else:
            assert answer.json()["choices"][0]["finish_reason"] == "length"
            assert answer.json()["usage"]["completion_tokens"] == 5

        async def is_closed() -> bool:
            return backend.closed == 1

        await eventually(is_closed)
        assert len(backend.asked) == 1
    [charge] = await house.stage.charges(tenant, 1)
    url = f"{house.stage.base_url}/v1/calls/{answer.headers['x-request-id']}"
    receipt = (await house.stage.client.get(url, headers=tenant.headers)).json()
    assert receipt["ending"] == charge["ending"] == "hold_spent"
    assert receipt["output_tokens"] == 5
    amount, hold = (parse_amount(receipt[name]["amount"], "USD") for name in ("amount", "hold"))
    assert 0 < amount <= hold
    assert await house.paid(tenant) == amount


async def began(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """The next answer on a connection, one with a length: status, headers and body."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 15)).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    return int(head[0].split(" ")[1]), headers, await reader.readexactly(int(headers["content-length"]))


def request(tenant: Tenant, model: str, words: str = "hi") -> tuple[bytes, bytes]:
    """Head and body of a call."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": words}], "max_tokens": 5}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nauthorization: Bearer {tenant.api_key}\r\n\r\n"
    )
    return head.encode(), body


async def connected(stage: Stage) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = stage.base_url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def test_pipelined_calls_are_answered_in_their_order_and_each_is_charged(house: House) -> None:
    tenant = await house.tenant()
    async with scripted_backend() as backend:
        sale = await house.sell(backend, max_in_flight=1)
        reader, writer = await connected(house.stage)
        calls = [b"".join(request(tenant, sale.model, f"call {number}")) for number in range(5)]
        others = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
        writer.write(calls[0] + calls[1] + others + calls[2] + calls[3] + others + calls[4])
        answers = [await began(reader) for _ in range(7)]
        writer.close()
        assert [status for status, _, _ in answers] == [200] * 7
        assert [b'"choices"' in body for _, _, body in answers] == [True, True, False, True, True, False, True]
        words = [each.body["messages"][0]["content"] for each in backend.asked]
        assert words == [f"call {number}" for number in range(5)]
    charges = await house.stage.charges(tenant, 5)
    ids = [headers["x-request-id"] for _, headers, body in answers if b'"choices"' in body]
    assert {charge["call_id"] for charge in charges} == set(ids)


async def test_a_client_that_leaves_with_calls_in_its_pipeline_pays_for_the_first_at_most(house: House) -> None:
    tenant, gate = await house.tenant(), Gate()
    async with scripted_backend(gate) as backend:
        sale = await house.sell(backend)
        _, writer = await connected(house.stage)
        writer.write(b"".join(request(tenant, sale.model)) * 3)
        await asked(backend, 1)
        writer.close()

        async def is_closed() -> bool:
            return backend.closed == 1

        await eventually(is_closed)
        await house.stage.quiet()
        assert len(backend.asked) == 1
    [charge] = await house.stage.charges(tenant, 1)
    assert charge["ending"] == "client_gone"


async def test_a_flood_of_refused_requests_in_one_read_is_answered(house: House) -> None:
    tenant = await house.tenant()
    async with scripted_backend() as backend:
        sale = await house.sell(backend)
        reader, writer = await connected(house.stage)
        # The first has to be looked up, so that all others are there before it is answered.
        unknown = f"authorization: Bearer {mistyped(tenant.api_key)}".encode()
        first = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + unknown + b"\r\ncontent-length: 0\r\n\r\n"
        count = 1_000
        writer.write(b"".join(request(tenant, sale.model)))
        assert (await began(reader))[0] == 200
        writer.write(first + b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n" * count)
        statuses = [(await began(reader))[0] for _ in range(count + 1)]
        assert set(statuses) == {401}
        # The connection is as good as before.
        writer.write(b"".join(request(tenant, sale.model)))
        assert (await began(reader))[0] == 200
        writer.close()


# The stop of a process -----------------------------------------------------------------------------------------------


async def nothing_is_left(stage: Stage, *tenants: Tenant) -> None:
    await stage.quiet()
    assert stage.app.running.capacity.room.running_calls == 0
    assert stage.app.running.capacity.room.waiting_calls == 0
    for tenant in tenants:
        assert parse_amount((await stage.balance(tenant))["held"]["amount"], "USD") == 0


async def limited(stage: Stage, limit: int) -> None:
    """At most this many calls at the model's backend."""
    await stage.operate("POST", "/backends/openai-m", json={"max_in_flight": limit})

    async def is_known() -> bool:
        model = stage.app.parts.catalog.current.models.get("m")
        return model is not None and model.deployments[0].backend.max_in_flight == limit

    await eventually(is_known)


async def test_who_waits_when_the_drain_ends_is_refused_at_once(postgres: Database, redis: Redis) -> None:
    gate = Gate()
    async with (
        scripted_backend(gate) as backend,
        raise_curtain(postgres.app_url, redis.url, wait_seconds=60, drain_seconds=60) as stage,
    ):
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        await limited(stage, 1)
        tenant, other = await stage.tenant(), await stage.tenant()
        running = stage.listen(tenant)
        await all_hear([running], "hello")
        waiting = asyncio.create_task(stage.chat(other))

        async def waits() -> bool:
            return stage.app.running.capacity.room.waiting_calls == 1

        await eventually(waits)
        draining = asyncio.create_task(stage.app.drain())

        async def is_refused() -> bool:
            return (await stage.chat(other)).status_code == 503

        await eventually(is_refused)
        assert not waiting.done(), "it came before the drain, and may still be served within its window"
        stage.app.hurry()
        answer = await waiting
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        await running.task
        assert "event: error" in running.text
        await draining
        assert len(backend.asked) == 1
        [charge] = await stage.charges(tenant, 1)
        assert charge["ending"] == "drained"
        await nothing_is_left(stage, tenant, other)


async def test_a_call_whose_body_comes_after_the_drain_began_is_refused(postgres: Database, redis: Redis) -> None:
    async with (
        scripted_backend(PLAIN) as backend,
        raise_curtain(postgres.app_url, redis.url) as stage,
    ):
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        tenant = await stage.tenant()
        assert (await stage.chat(tenant)).status_code == 200
        reader, writer = await connected(stage)
        head, body = request(tenant, "m")
        writer.write(head + body[:10])

        async def is_reading() -> bool:
            # The key is known, so the head is dealt with in the turn in which it comes; ask on another connection.
            return (await stage.client.get(f"{stage.base_url}/healthz")).status_code == 200

        await eventually(is_reading)
        await stage.app.drain()
        writer.write(body[10:])
        status, headers, _ = await began(reader)
        assert (status, headers["connection"]) == (503, "close")
        assert await reader.read() == b""
        writer.close()
        assert len(backend.asked) == 1
        await stage.charges(tenant, 1)
        await nothing_is_left(stage, tenant)


async def test_a_process_has_a_limit_of_its_own(postgres: Database, redis: Redis) -> None:
    gate = Gate()
    async with (
        scripted_backend(gate) as backend,
        raise_curtain(postgres.app_url, redis.url, max_running_calls=2, max_waiting_calls=1, wait_seconds=60) as stage,
    ):
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        tenant = await stage.tenant()
        calls = [asyncio.create_task(stage.chat(tenant)) for _ in range(10)]

        async def others_are_turned_away() -> bool:
            return sum(call.done() for call in calls) == 7

        await eventually(others_are_turned_away)
        await asked(backend, 2)
        gate.let(10)
        statuses = [(await call).status_code for call in calls]
        assert statuses.count(200) == 3
        assert set(statuses) <= {200, 429, 503}
        assert gate.most == 2
        await stage.charges(tenant, 3)
        await nothing_is_left(stage, tenant)
