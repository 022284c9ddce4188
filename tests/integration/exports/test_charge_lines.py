"""The lines that Postgres makes are those of Python, byte for byte, whatever strange text is in them."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.exports import KINDS, Manifest, Wanted, begin_export, lines, stream
from billing.exports.charges import LINES
from billing.store.charges import BookedCharge, ChargeFilter, list_charges
from billing.store.pages import Page
from models.call import Charge
from models.ids import uuid7
from models.tables import charge as charges
from models.usage import Ending, UsageSource
from tests.charge_lines import csv_row
from tests.integration.book.conftest import engine

__all__ = ["engine"]

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

MARCH = datetime(2026, 3, 1, tzinfo=UTC)
# All that Postgres keeps, with what hurts over-represented.
TEXTS = st.one_of(
    st.sampled_from(
        ["", "=1+1", "+1", "-1", "@SUM(A1)", "'", '"', "\t=", "\r\n=", "a\r\nb", "\\N", "%s :x", "한국어", "\ufeff="]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30),
)
UNITS = st.integers(-(2**63), 2**63 - 1)
MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2199, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001 - bounds of a strategy are naive
NAMES = [field.name for field in fields(Charge)]
FUNDING = st.lists(st.tuples(st.one_of(st.uuids().map(str), st.just("unbilled"), TEXTS), UNITS), max_size=3)


@st.composite
def booked_charges(draw: st.DrawFn) -> BookedCharge:
    """A charge with any text, amounts and times; its tokens and flags keep the table's rules."""
    cached, written, reasoning = (draw(st.integers(0, 10**6)) for _ in range(3))
    charge = Charge(
        call_id=uuid7(MARCH + timedelta(milliseconds=draw(st.integers(0, 10**9)))),
        organization_id=draw(st.uuids()),
        project_id=draw(st.uuids()),
        api_key_id=draw(st.uuids()),
        currency=draw(st.sampled_from(["USD", "EUR", "KRW", "JPY"])),
        endpoint=draw(TEXTS),
        model=draw(TEXTS),
        deployment=draw(TEXTS),
        streamed=draw(st.booleans()),
        ending=draw(st.sampled_from(Ending)),
        usage_source=draw(st.sampled_from(UsageSource)),
        input_tokens=cached + written + draw(st.integers(0, 10**6)),
        cached_tokens=cached,
        cache_write_tokens=written,
        output_tokens=reasoning + draw(st.integers(0, 10**6)),
        reasoning_tokens=reasoning,
        amount=draw(UNITS),
        hold=draw(UNITS),
        price_version_ids=tuple(draw(st.lists(st.uuids(), max_size=3))),
        created_at=draw(MOMENTS),
        ended_at=draw(MOMENTS),
        end_user=draw(st.none() | TEXTS),
        flags=tuple(draw(st.lists(TEXTS, max_size=3))),
        corrects=draw(st.none() | st.uuids()),
    )
    if charge.amount < 0 or charge.amount > charge.hold:
        charge = replace(charge, corrects=draw(st.uuids()))
    return BookedCharge(charge, tuple(draw(FUNDING)), draw(st.integers(1, 100)))


def generated(examples: int) -> list[BookedCharge]:
    """As many charges as hypothesis makes; all of them go through one database."""
    made: list[BookedCharge] = []

    @settings(max_examples=examples, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck))
    @given(booked_charges())
    def collect(one: BookedCharge) -> None:
        made.append(one)

    collect()
    return made


async def book(engine: AsyncEngine, made: list[BookedCharge]) -> None:
    """Put them into the table as they are."""
    async with engine.begin() as connection:
        for one in made:
            values = {name: getattr(one.charge, name) for name in NAMES}
            values |= {"price_version_ids": list(one.charge.price_version_ids), "flags": list(one.charge.flags)}
            values |= {"funding": [list(part) for part in one.funding], "posting_id": one.posting_id}
            await connection.execute(insert(charges).values(values))


@pytest.mark.parametrize("rows_per_page", [7, 50, 5_000])
async def test_postgres_writes_what_python_writes(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, rows_per_page: int
) -> None:
    monkeypatch.setattr(lines, "ROWS_PER_PAGE", rows_per_page)
    made = generated(150)
    await book(engine, made)
    export = await begin_export(engine, KINDS["charges"], Wanted())
    manifest = Manifest(export)
    file = b"".join([piece async for piece in stream(engine, export, manifest)])
    expected = sorted(made, key=lambda one: one.charge.call_id)
    assert file == LINES.head + "".join(map(csv_row, expected)).encode()
    assert manifest.rows == len(made)
    sums: dict[str, int] = {}
    for one in made:
        sums[one.charge.currency] = sums.get(one.charge.currency, 0) + one.charge.amount
    assert manifest.totals == sums
    assert manifest.first == min(one.charge.created_at for one in made)
    assert manifest.last == max(one.charge.created_at for one in made)


async def test_a_session_in_another_time_zone_writes_the_same(engine: AsyncEngine) -> None:
    await book(engine, generated(20))
    export = await begin_export(engine, KINDS["charges"], Wanted())
    usual = b"".join([piece async for piece in stream(engine, export)])
    async with engine.begin() as connection:
        stored, _ = await list_charges(connection, ChargeFilter(), Page(limit=100))
        await connection.exec_driver_sql("set time zone 'Asia/Seoul'")
        await connection.exec_driver_sql("set datestyle to 'SQL, DMY'")
    assert b"".join([piece async for piece in stream(engine, export)]) == usual
    assert usual == LINES.head + "".join(map(csv_row, stored)).encode()
