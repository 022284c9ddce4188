"""A gateway is killed in the middle of a batch: no line is lost, and none is paid for twice."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.embedded.redis import Redis
from models.money import parse_amount
from tests.beside import gateway_beside
from tests.conftest import Database
from tests.integration.batches.desk import Desk, jsonl, task
from tests.scripted import DONE, Asked, Scripted, end, open_stream, said, send, usage
from tests.stage import Stage, eventually, raise_curtain

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

LINES = 24


@pytest.fixture
async def stage(postgres: Database, redis: Redis, backend: Scripted) -> AsyncIterator[Stage]:
    """A gateway that runs no lines itself: the ones that are killed do."""
    async with raise_curtain(postgres.app_url, redis.url, batch_calls=0) as stage:
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        yield stage


@pytest.fixture(autouse=True)
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_BATCH_LEASE_SECONDS", "2")
    monkeypatch.setenv("TOLLGATE_CATALOG_REFRESH_SECONDS", "0.2")


async def paid_once(desk: Desk, batch: dict[str, object]) -> int:
    """Wait until the tenant has paid for the answers in its file, and for nothing else; what came back meanwhile."""
    batch = await desk.ended(batch, 60)
    assert (batch["status"], batch["request_counts"]) == (
        "completed",
        {"total": LINES, "completed": LINES, "failed": 0},
    )
    good, bad = await desk.results(batch)
    assert ([line["custom_id"] for line in good], bad) == ([f"q{n}" for n in range(LINES)], [])
    receipts = [line["response"]["request_id"] for line in good]
    assert len(set(receipts)) == LINES

    async def costs() -> int | None:
        charges = {charge["call_id"]: charge for charge in await desk.listed()}
        if not charges.keys() >= set(receipts):
            return None
        return sum(parse_amount(charges[one]["amount"]["amount"], "USD") for one in receipts)

    owed: int = await eventually(costs)

    async def is_even() -> bool:
        return bool(await desk.spent() == owed)

    await eventually(is_even, 60)
    charged = sum(parse_amount(one["amount"]["amount"], "USD") for one in await desk.listed())
    return int(charged) - owed


@pytest.mark.parametrize("point", ["after_hold", "after_send", "after_journal", "after_settle"])
async def test_killed_at_a_step_of_a_line(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    desk = Desk(stage, await stage.tenant())
    monkeypatch.setenv("TOLLGATE_FAILPOINT", point)
    with gateway_beside(stage, tmp_path, drain_seconds=5) as first:
        batch = await desk.create(jsonl(*(task(f"q{number}") for number in range(LINES))))
        assert await first.ended(30) == -9
    monkeypatch.delenv("TOLLGATE_FAILPOINT")
    with gateway_beside(stage, tmp_path, drain_seconds=5):
        returned = await paid_once(desk, batch)
    assert returned > 0 or point in ("after_hold", "after_send")


async def test_killed_in_the_middle_of_answers(stage: Stage, backend: Scripted, tmp_path: Path) -> None:
    desk = Desk(stage, await stage.tenant())
    go_on, begun = asyncio.Event(), itertools.count()

    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await open_stream(writer)
        await send(writer, said("hello"))
        if next(begun) >= 5:
            await go_on.wait()
        await send(writer, said(" there", finish="stop"), usage(5, 2), DONE)
        await end(writer)

    backend.script = script
    with gateway_beside(stage, tmp_path, drain_seconds=5) as first:
        batch = await desk.create(jsonl(*(task(f"q{number}") for number in range(LINES))))

        async def is_stuck() -> bool:
            return len(backend.asked) >= 16 + 5

        await eventually(is_stuck, 30)
        # Until what was delivered is noted on disk.
        await asyncio.sleep(1)
        first.child.signal(signal.SIGKILL)
        assert await first.ended(10) == -9
    go_on.set()
    with gateway_beside(stage, tmp_path, drain_seconds=5):
        assert await paid_once(desk, batch) > 0
    grants = await stage.operate("GET", f"/organizations/{desk.tenant.organization_id}/credit_grants")
    assert {grant["kind"] for grant in grants["data"]} == {"paid", "promo"}


async def test_two_gateways_share_a_batch_and_one_is_stopped(stage: Stage, backend: Scripted, tmp_path: Path) -> None:
    desk = Desk(stage, await stage.tenant())
    usual = backend.script

    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        await usual(asked, writer)

    backend.script = script
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with (
        gateway_beside(stage, tmp_path / "a", drain_seconds=5) as first,
        gateway_beside(stage, tmp_path / "b", drain_seconds=5) as second,
    ):

        async def are_ready() -> bool:
            try:
                looks = [await stage.client.get(f"{one.base_url}/readyz") for one in (first, second)]
            except httpx.TransportError:
                return False
            return all(look.status_code == 200 for look in looks)

        await eventually(are_ready, 30)
        batch = await desk.create(jsonl(*(task(f"q{number}") for number in range(LINES))))

        async def has_begun() -> bool:
            return len(backend.asked) >= 4

        await eventually(has_begun, 30)
        first.child.signal(signal.SIGTERM)
        assert await first.ended(10) == 0
        assert await paid_once(desk, batch) == 0
    assert len(backend.asked) == LINES
