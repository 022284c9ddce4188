"""A gateway is killed with two hundred calls open: each has one end, at its last checkpoint, and nothing is held."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator

import msgspec
import pytest

from billing.hot.connection import HotConnection
from billing.hot.keys import SHARDS
from billing.hot.store import HotStore, make_hot_store
from billing.pricing import price
from billing.rebuild import ensure_epoch
from billing.settlement import book_shard
from billing.store.engine import make_engine
from billing.store.shards import epochs
from billing.sweeper import Swept
from billing.verify import verify
from gateway.embedded.redis import Redis
from models.call import HoldRequest
from models.usage import TokenUsage
from tests.conftest import Database
from tests.integration.book.shop import HOLD, Shop, Tenant
from tests.integration.sweeper.lives import silence, sweep

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

CALLS = 200
ACCEPTED, WAITING = 150, 25
"""So many calls stream, so many wait for a backend, and the rest have no checkpoint yet."""
SWEEPERS = 4
PAID = 2 * CALLS * HOLD

_GATEWAY = f"""
import asyncio, sys
import msgspec
from billing.hot.store import make_hot_store
from models.call import Checkpoint, Hold, HoldRequest
from models.usage import TokenUsage, UsageSource

async def main():
    epochs, requests = msgspec.json.decode(sys.stdin.buffer.read(), type=tuple[dict[int, int], list[HoldRequest]])
    hot = await make_hot_store(sys.argv[1], instance="doomed")
    for request in requests:
        assert isinstance(await hot.hold(request, epochs[request.origin.shard]), Hold)
        print("held", flush=True)
    streaming = [request.origin for request in requests[:{ACCEPTED}]]
    waiting = [request.origin for request in requests[{ACCEPTED}:{ACCEPTED + WAITING}]]
    tokens = 0
    while True:
        tokens += 3
        usage = TokenUsage(100, tokens, cached=40)
        points = [Checkpoint(origin, usage, UsageSource.BACKEND_PARTIAL, "here", True) for origin in streaming]
        points += [Checkpoint(origin, TokenUsage(100, 0), UsageSource.ESTIMATE) for origin in waiting]
        await hot.checkpoint(points)
        print(tokens, flush=True)

asyncio.run(main())
"""


@pytest.fixture
async def shop(postgres: Database, redis: Redis) -> AsyncIterator[Shop]:
    """A shop with a Redis that shows every epoch."""
    engine, hot = make_engine(postgres.app_url), await make_hot_store(redis.url)
    for shard in range(SHARDS):
        assert await ensure_epoch(engine, hot, shard)
    shop = Shop(engine, hot)
    await shop.open()
    yield shop
    await hot.close()
    await engine.dispose()


async def _live_and_die(shop: Shop, redis_url: str, requests: list[HoldRequest], lines: int) -> list[str]:
    """Run a gateway with these calls and kill it when it has said so many lines; all that it said."""
    async with shop.engine.connect() as connection:
        shown = await epochs(connection)
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _GATEWAY, redis_url, stdin=pipe, stdout=pipe, stderr=nothing
    )
    assert gateway.stdin is not None
    assert gateway.stdout is not None
    gateway.stdin.write(msgspec.json.encode((shown, requests)))
    gateway.stdin.close()
    said: list[str] = []
    async with asyncio.timeout(30):
        while len(said) < lines:
            line = await gateway.stdout.readline()
            assert line, "the gateway ended by itself"
            said.append(line.decode().strip())
        gateway.send_signal(signal.SIGKILL)
        said += (await gateway.stdout.read()).decode().split()
        assert await gateway.wait() == -signal.SIGKILL
    return said


async def _sweep_everywhere(redis_url: str) -> list[Swept]:
    """Several workers sweep all shards at once."""
    async with contextlib.AsyncExitStack() as stack:
        stores = []
        for _ in range(SWEEPERS):
            store = await make_hot_store(redis_url)
            stack.push_async_callback(store.close)
            stores.append(store)
        return await asyncio.gather(*(sweep(store, shard) for shard in range(SHARDS) for store in stores))


async def _seen_dead(raw: HotConnection, hot: HotStore) -> None:
    for shard in range(SHARDS):
        if "doomed" in await hot.signs_of_life(shard):
            await silence(raw, hot, shard, "doomed")


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(60, id="while it takes holds"),
        pytest.param(CALLS, id="around its first checkpoint"),
        pytest.param(CALLS + 1, id="after its first checkpoint"),
        pytest.param(CALLS + 30, id="in the middle of its streams"),
    ],
)
async def test_every_call_has_one_end(shop: Shop, redis: Redis, lines: int) -> None:
    tenants: list[Tenant] = [await shop.tenant(paid=PAID) for _ in range(3)]
    requests = [shop.request(tenants[number % 3]) for number in range(CALLS)]
    said = await _live_and_die(shop, redis.url, requests, lines)
    acknowledged = [int(line) for line in said if line != "held"]
    raw = await HotConnection.connect(redis.url)
    open_before = [
        hold.hold.request.origin.call_id
        for tenant in tenants
        for hold in await shop.hot.open_holds(tenant.shard, tenant.organization_id)
    ]
    # One more than it knew of, where it died between the hold and the answer.
    assert len(open_before) - said.count("held") in (0, 1)
    await _seen_dead(raw, shop.hot)
    await raw.close()

    swept = await _sweep_everywhere(redis.url)
    recovered = {charge.call_id: charge for look in swept for charge in look.recovered}
    voided = [void.hold.request.origin.call_id for look in swept for void in look.voided]
    assert sorted([*recovered, *voided]) == sorted(open_before)
    for tenant in tenants:
        balance = await shop.hot.balance(tenant.shard, tenant.organization_id)
        spent = sum(c.amount for c in recovered.values() if c.organization_id == tenant.organization_id)
        assert balance is not None
        assert (balance.held, balance.balance) == (0, PAID - spent)
        assert await shop.hot.open_holds(tenant.shard, tenant.organization_id) == ()

    # The last checkpoint that was acknowledged, or the one that was under way.
    least = acknowledged[-1] if acknowledged else 0
    streaming = {request.origin.call_id for request in requests[:ACCEPTED]}
    assert recovered.keys() <= streaming
    if acknowledged:
        assert recovered.keys() == streaming
    for charge in recovered.values():
        assert charge.output_tokens in (least, least + 3)
        assert charge.amount == price(TokenUsage(100, charge.output_tokens, cached=40), shop.rates)

    for shard in range(SHARDS):
        await book_shard(shop.engine, shop.hot, shard)
    assert await shop.charged() == {call_id: charge.amount for call_id, charge in recovered.items()}
    report = await verify(shop.engine, shop.hot)
    assert report.ok, [finding for check in report.checks for finding in check.findings]
