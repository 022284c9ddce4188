"""The price that `verify` computes in SQL is the one that `billing.pricing` charged, for any tokens and rates."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import asyncpg
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from billing.pricing import price
from billing.store.repricing import MILLI_UNITS, RATE_COLUMNS, UNITS, rate_json
from models.catalog import TOKEN_METERS, Meter, Rates, Scheme, Steps, Tariff, Tier
from models.money import MilliUnits
from models.usage import TokenUsage
from tests.conftest import Database

_REPRICE = f"""
    select ({UNITS})::text from rows from (jsonb_to_recordset($1::jsonb) as (
      input_tokens int, cached_tokens int, cache_write_tokens int, output_tokens int, reasoning_tokens int,
      images int, audio_seconds int, {RATE_COLUMNS}
    )) with ordinality as call
    cross join lateral (select {MILLI_UNITS} as milli) exact order by ordinality
"""

_tokens = st.one_of(st.integers(0, 20), st.integers(0, 2**31 - 1))
# Halves of a unit come of rates that are odd multiples of 500, and of their parts.
_rates = st.one_of(st.integers(0, 30).map(lambda n: n * 125), st.integers(0, 2**63 - 1))


@st.composite
def _calls(draw: st.DrawFn) -> tuple[TokenUsage, Rates]:
    whole, output = draw(_tokens), draw(_tokens)
    cached = draw(st.integers(0, whole))
    parts = cached, draw(st.integers(0, whole - cached)), draw(st.integers(0, output))
    usage = TokenUsage(whole, output, *parts, images=draw(_tokens), audio_seconds=draw(_tokens))
    fresh, plain, request, image, audio_second = (MilliUnits(draw(_rates)) for _ in range(5))
    own = [MilliUnits(draw(_rates)) for _ in range(3)]
    rates = Rates(fresh, plain, own[0], own[1], own[2], request, steps=draw(_steps()))
    return usage, replace(rates, image=image, audio_second=audio_second)


@st.composite
def _steps(draw: st.DrawFn) -> Steps | None:
    # Which meters a step counts together is the catalog's affair: here any of them may be.
    tariffs = draw(st.lists(_tariffs(), max_size=3))
    minimum = draw(st.one_of(st.just(0), _rates))
    return Steps(tuple(tariffs), MilliUnits(minimum)) if tariffs or minimum else None


@st.composite
def _tariffs(draw: st.DrawFn) -> Tariff:
    priced = (*TOKEN_METERS, Meter.REQUEST, Meter.IMAGE, Meter.AUDIO_SECOND)
    meters = tuple(sorted(draw(st.sets(st.sampled_from(priced), min_size=1))))
    scheme = draw(st.sampled_from(Scheme))
    price = MilliUnits(draw(_rates))
    if scheme is Scheme.PACKAGE:
        return Tariff(meters, scheme, price, package_size=draw(st.one_of(st.integers(1, 9), st.integers(1, 2**53))))
    if scheme is Scheme.UNIT:
        return Tariff(meters, scheme, price)
    ends = sorted(draw(st.sets(st.one_of(st.integers(1, 20), st.integers(1, 2**53)), max_size=4)))
    return Tariff(meters, scheme, tiers=tuple(Tier(end, MilliUnits(draw(_rates))) for end in (*ends, None)))


def test_sql_prices_as_python_does(postgres: Database) -> None:
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(postgres.app_url))

        async def reprice(rows: list[dict[str, Any]]) -> list[int]:
            return [int(row[0]) for row in await connection.fetch(_REPRICE, json.dumps(rows))]

        @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(_calls(), min_size=1, max_size=40))
        @example([(TokenUsage(1, 0), _one(rate)) for rate in (499, 500, 501, 1_499, 1_500, 1_501, 2_500, 3_500)])
        def same(calls: list[tuple[TokenUsage, Rates]]) -> None:
            assert runner.run(reprice([_row(*call) for call in calls])) == [price(*call) for call in calls]

        same()
        runner.run(connection.close())


def _one(rate: int) -> Rates:
    zero = MilliUnits(0)
    return Rates(MilliUnits(rate), zero, zero, zero, zero)


def _row(usage: TokenUsage, rates: Rates) -> dict[str, Any]:
    tokens = {
        "input_tokens": usage.input,
        "cached_tokens": usage.cached,
        "cache_write_tokens": usage.cache_write,
        "output_tokens": usage.output,
        "reasoning_tokens": usage.reasoning,
        "images": usage.images,
        "audio_seconds": usage.audio_seconds,
    }
    return tokens | rate_json(rates)
