"""`last_used_at`: true to the minute for every kind of key, without a write for a call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from openai import AsyncOpenAI
from sqlalchemy import event, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.store.engine import make_engine
from billing.store.keys import note_uses
from gateway import key_uses
from gateway.embedded.redis import Redis
from models.tables import api_key, operator_key
from tests.conftest import Database
from tests.scripted import Scripted, scripted_backend
from tests.stage import Stage, eventually, raise_curtain

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


@pytest.fixture
async def backend() -> AsyncIterator[Scripted]:
    async with scripted_backend() as backend:
        yield backend


@pytest.fixture
async def stage(postgres: Database, redis: Redis, backend: Scripted) -> AsyncIterator[Stage]:
    async with raise_curtain(postgres.app_url, redis.url) as stage:
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        yield stage


@pytest.fixture
async def engine(postgres: Database) -> AsyncIterator[AsyncEngine]:
    engine = make_engine(postgres.app_url)
    yield engine
    await engine.dispose()


def now() -> int:
    return int(datetime.now(UTC).timestamp())


def move(stage: Stage, monkeypatch: pytest.MonkeyPatch, step: timedelta) -> None:
    """Move the gateway's billing clock."""
    monkeypatch.setattr(stage.app.parts.clock, "_offset", step)


async def written(stage: Stage) -> None:
    """What the gateway does once a minute."""
    assert await stage.app.parts.keys.uses.write()


async def test_an_administrator_sees_which_keys_are_used(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = await stage.tenant()
    url = f"{stage.base_url}/v1"
    async with AsyncOpenAI(admin_api_key=tenant.admin_key, base_url=url, max_retries=0) as sdk:
        admin = sdk.admin.organization
        account = await admin.projects.service_accounts.create(tenant.project_id, name="nightly")
        spare = await admin.admin_api_keys.create(name="spare")
        assert account.api_key is not None

        async def of_projects_keys() -> dict[str, int | None]:
            page = await admin.projects.api_keys.list(tenant.project_id)
            return {key.name: key.last_used_at for key in page.data}

        before = now()
        assert await of_projects_keys() == {"dev": None, "nightly": None}
        assert (await stage.chat(tenant)).status_code == 200
        await written(stage)
        shown = await of_projects_keys()
        assert shown["nightly"] is None
        assert shown["dev"] is not None
        assert before <= shown["dev"] <= now()

        move(stage, monkeypatch, timedelta(hours=1))
        headers = {"authorization": f"Bearer {account.api_key.value}"}
        assert (await stage.client.get(f"{url}/models", headers=headers)).status_code == 200
        await written(stage)
        key = await admin.projects.api_keys.retrieve(account.api_key.id, project_id=tenant.project_id)
        assert key.last_used_at is not None
        assert before + 3_600 <= key.last_used_at <= now() + 3_600
        assert (await of_projects_keys())["dev"] == shown["dev"], "not used since"

        admin_keys = {key.name: key.last_used_at async for key in admin.admin_api_keys.list()}
        assert admin_keys["spare"] is None
        assert admin_keys["admin"] is not None
        rotated = await stage.client.post(
            f"{url}/organization/projects/{tenant.project_id}/api_keys/{account.api_key.id}/rotate",
            json={},
            headers=tenant.admin_headers,
        )
        assert rotated.json()["last_used_at"] is None, "a successor has not been used"
        assert (await admin.admin_api_keys.retrieve(spare.id)).last_used_at is None


async def test_an_operator_sees_which_keys_are_used(stage: Stage) -> None:
    tenant = await stage.tenant()
    started = datetime.now(UTC).isoformat()
    made = await stage.operate("POST", "/operator_keys", json={"name": "spare"})
    assert made["last_used_at"] is None
    assert (await stage.chat(tenant)).status_code == 200
    await written(stage)
    for path, names in (
        ("/operator_keys", {"test": True, "spare": False}),
        (f"/projects/{tenant.project_id}/api_keys", {"dev": True}),
        (f"/organizations/{tenant.organization_id}/admin_keys", {"admin": False}),
    ):
        keys = (await stage.operate("GET", path))["data"]
        assert {key["name"]: key["last_used_at"] is not None for key in keys} == names
        for key in keys:
            used_at = key["last_used_at"]
            assert used_at is None or datetime.fromisoformat(used_at) <= datetime.now(UTC)
            assert used_at is None or path == "/operator_keys" or started <= used_at.replace("Z", "+00:00")


async def test_a_refused_key_was_not_used(stage: Stage) -> None:
    tenant = await stage.tenant()
    keys = f"/projects/{tenant.project_id}/api_keys"
    key = (await stage.operate("GET", keys))["data"][0]["id"]
    await stage.operate("POST", f"{keys}/{key}/revoke")
    assert (await stage.chat(tenant)).status_code == 401
    await written(stage)
    assert (await stage.operate("GET", keys))["data"][0]["last_used_at"] is None


async def test_a_gateway_that_stops_writes_what_it_knows(
    postgres: Database, redis: Redis, backend: Scripted, engine: AsyncEngine
) -> None:
    async with raise_curtain(postgres.app_url, redis.url) as stage:
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        tenant = await stage.tenant()
        assert (await stage.chat(tenant)).status_code == 200
        assert await last_uses(engine) == [None], "nobody has written yet"
    (used_at,) = await last_uses(engine)
    assert used_at is not None


async def test_calls_do_not_wait_for_what_cannot_be_written(
    stage: Stage, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_uses, "WRITE_TIMEOUT_SECONDS", 0.2)
    tenant = await stage.tenant()
    assert (await stage.chat(tenant)).status_code == 200
    async with engine.begin() as connection:
        await connection.execute(text("lock table api_key in share mode"))
        writing = asyncio.create_task(stage.app.parts.keys.uses.write())
        assert (await stage.chat(tenant)).status_code == 200
        assert not await writing
    assert await last_uses(engine) == [None]
    await written(stage)
    (used_at,) = await last_uses(engine)
    assert used_at is not None


async def test_many_calls_are_one_statement(stage: Stage) -> None:
    tenants = [await stage.tenant() for _ in range(3)]
    await written(stage)
    changed: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "UPDATE api_key" in statement:
            changed.append(statement)

    event.listen(stage.app.parts.engine.sync_engine, "before_cursor_execute", note)
    for tenant in tenants * 3:
        assert (await stage.chat(tenant)).status_code == 200
    assert changed == []
    await written(stage)
    assert len(changed) == 1


async def test_the_latest_use_stays(stage: Stage, engine: AsyncEngine) -> None:
    for _ in range(2):
        await stage.tenant()
    (one, two), start = await digests(engine), datetime(2026, 11, 1, tzinfo=UTC)
    day = timedelta(days=1)
    for uses, expected in (
        ({one: start}, [start, None]),
        ({one: start - day, two: start}, [start, start]),
        ({one: start + day, two: start}, [start + day, start]),
        ({b"nobody": start + day}, [start + day, start]),
    ):
        async with engine.begin() as connection:
            await note_uses(connection, api_key, uses)
        assert await last_uses(engine) == expected


async def test_two_gateways_never_wait_for_each_other(stage: Stage, engine: AsyncEngine) -> None:
    for number in range(9):
        await stage.operate("POST", "/operator_keys", json={"name": f"key {number}"})
    async with engine.connect() as connection:
        rows = await connection.execute(select(operator_key.c.digest).order_by(operator_key.c.id))
        known = list(rows.scalars())
    start = datetime(2026, 11, 1, tzinfo=UTC)

    async def write(order: Iterable[bytes], moment: datetime) -> None:
        async with engine.begin() as connection:
            # As where there are many keys: they are looked up one by one, in the order in which they are given.
            for plan in ("seqscan", "hashjoin", "mergejoin"):
                await connection.execute(text(f"set local enable_{plan} = off"))
            await note_uses(connection, operator_key, dict.fromkeys(order, moment))

    async def both_wait() -> bool:
        async with engine.connect() as connection:
            told = "select count(*) from pg_locks where not granted"
            return int((await connection.execute(text(told))).scalar_one()) == 2

    # They meet in the middle, which a third holds until both are there.
    async with engine.begin() as connection:
        middle = select(operator_key.c.id).where(operator_key.c.digest == known[len(known) // 2])
        await connection.execute(middle.with_for_update())
        later = start + timedelta(seconds=1)
        writing = [asyncio.create_task(write(known, start)), asyncio.create_task(write(known[::-1], later))]
        await eventually(both_wait)
    await asyncio.gather(*writing)
    async with engine.connect() as connection:
        latest = (await connection.execute(select(operator_key.c.last_used_at).distinct())).scalars().all()
    assert latest == [later]


async def last_uses(engine: AsyncEngine) -> list[Any]:
    """Of all API keys, oldest first."""
    async with engine.connect() as connection:
        return list((await connection.execute(select(api_key.c.last_used_at).order_by(api_key.c.id))).scalars())


async def digests(engine: AsyncEngine) -> list[bytes]:
    """Of all API keys, oldest first."""
    async with engine.connect() as connection:
        return list((await connection.execute(select(api_key.c.digest).order_by(api_key.c.id))).scalars())
