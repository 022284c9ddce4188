"""Attack A10: a flood of keys that nobody has, against a tenant who goes on calling."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import event

from gateway.keys import KeyKind, mint
from models.account import Principal
from models.errors import NotAuthenticated, Unavailable
from tests.integration.operator.world import World
from tests.rooms import PEPPER

pytestmark = pytest.mark.anyio

GARBAGE, WELL_FORMED, AT_ONCE = 20_000, 4_000, 500


async def test_a_flood_of_keys_costs_few_queries_and_no_tenant(world: World) -> None:
    keys = world.parts.keys
    tenant = (await world.api_key())["value"]
    await keys.principal(tenant)
    statements: list[str] = []
    event.listen(
        world.parts.engine.sync_engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2])
    )

    garbage = [f"tg_live_{number:033d}" for number in range(GARBAGE)]
    refused = await asyncio.gather(*(keys.principal(value) for value in garbage), return_exceptions=True)
    assert {type(each) for each in refused} == {NotAuthenticated}
    assert statements == []

    # Those who know the checksum get as far as Postgres, a few hundred keys with each query.
    unknown = [mint(KeyKind.API, PEPPER).value for _ in range(WELL_FORMED)]
    for start in range(0, WELL_FORMED, AT_ONCE):
        some = unknown[start : start + AT_ONCE]
        *outcomes, found = await asyncio.gather(
            *(keys.principal(value) for value in some), keys.principal(tenant), return_exceptions=True
        )
        assert isinstance(found, Principal)
        assert {type(each) for each in outcomes} <= {NotAuthenticated, Unavailable}
    assert len(statements) <= WELL_FORMED // 100
    assert len(set(statements)) == 1, "one statement text, whatever the number of keys"
