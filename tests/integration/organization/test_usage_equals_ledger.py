"""Usage and costs from the official admin client equal the ledger, for every grouping and every width of buckets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Decimal
from importlib import import_module
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Final

import pytest

from billing.verify import Report, verify
from migrations import versions
from models.money import amount_text
from tests.integration.organization.trade import BEGIN, CALLS, DAYS, END, Trade, sql

pytestmark = pytest.mark.anyio

START, STOP = int(BEGIN.timestamp()), int(END.timestamp())
SPANS: Final = {"1m": (START + 86_400, START + 2 * 86_400), "1h": (START, STOP), "1d": (START, STOP)}
"""Of minutes one day, which is the most that a page has; what pages come to is a test of its own."""
UNITS: Final = {"1m": "minute", "1h": "hour", "1d": "day"}
MOST: Final = {"1m": 1_440, "1h": 168, "1d": 31}
TEXT: Final = (
    "not (endpoint in ('/v1/embeddings', '/v1/rerank', '/v1/moderations') or endpoint ~ '^/v1/(images|audio)/')"
)
TOKENS: Final = {"input_tokens": "sum(input_tokens)"}
CALLS_OF: Final = {"num_model_requests": "count(*) filter (where corrects is null)"}
KINDS: Final[Mapping[str, tuple[str, dict[str, str]]]] = {
    "completions": (
        TEXT,
        {
            **TOKENS,
            "output_tokens": "sum(output_tokens)",
            "input_cached_tokens": "sum(cached_tokens)",
            "input_cache_write_tokens": "sum(cache_write_tokens)",
            "input_uncached_tokens": "sum(input_tokens - cached_tokens - cache_write_tokens)",
            **CALLS_OF,
        },
    ),
    "embeddings": ("endpoint in ('/v1/embeddings', '/v1/rerank')", TOKENS | CALLS_OF),
    "moderations": ("endpoint = '/v1/moderations'", TOKENS | CALLS_OF),
    "images": ("endpoint like '/v1/images/%'", {"images": "sum(images)"} | CALLS_OF),
    "audio_transcriptions": ("endpoint like '/v1/audio/%'", {"seconds": "sum(audio_seconds)"} | CALLS_OF),
}
GROUPS: Final = ("project_id", "api_key_id", "model", "batch")


def subsets(names: Iterable[str]) -> list[tuple[str, ...]]:
    names = tuple(names)
    return list(chain.from_iterable(combinations(names, size) for size in range(len(names) + 1)))


async def told(trade: Trade, kind: str, *names: str, **asked: Any) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """What the client says, page by page: results by bucket and by all that they are grouped by."""
    found: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    expected, stop = SPANS[asked.get("bucket_width", "1d")]
    asked = {"start_time": expected, "end_time": stop, **asked}
    async with trade.client() as client:
        report = getattr(client.admin.organization.usage, kind)
        page: Any = None
        while page is None or page.has_more:
            more = {} if page is None else {"page": page.next_page}
            page = await report(**asked, **more)
            for bucket in page.data:
                assert bucket.start_time == expected, "buckets follow one another without a gap"
                expected = bucket.end_time
                for result in bucket.results:
                    by = [getattr(result, name) for name in asked.get("group_by", ())]
                    key = (bucket.start_time, *by)
                    assert key not in found, "a group is there once"
                    found[key] = tuple(getattr(result, name) for name in names)
    assert expected == asked["end_time"]
    return found


async def booked(trade: Trade, where: str, width: str, by: tuple[str, ...], *sums: str) -> dict[Any, tuple[Any, ...]]:
    """The same from the charges, by SQL."""
    columns = [f"{name}::text" if name.endswith("_id") else name for name in by]
    bucket = f"extract(epoch from date_trunc('{UNITS[width]}', ended_at, 'UTC'))::bigint"
    groups = ", ".join((bucket, *columns))
    places = ", ".join(str(place) for place in range(1, len(by) + 2))
    start, stop = SPANS[width]
    rows = await sql(
        trade,
        f"select {groups}, {', '.join(sums)} from charge where organization_id = :own and {where}"
        f" and ended_at >= to_timestamp({start}) and ended_at < to_timestamp({stop}) group by {places}",
        own=trade.ours.organization_id,
    )
    return {row[: len(by) + 1]: row[len(by) + 1 :] for row in rows}


@pytest.mark.parametrize("width", UNITS)
@pytest.mark.parametrize("kind", KINDS)
async def test_usage_equals_the_ledger(trade: Trade, kind: str, width: str) -> None:
    where, sums = KINDS[kind]
    groups = GROUPS if kind == "completions" else GROUPS[:3]
    for by in subsets(groups):
        found = await told(trade, kind, *sums, bucket_width=width, group_by=list(by), limit=MOST[width])
        assert found == await booked(trade, where, width, by, *sums.values()), by
        assert sum(values[-1] for values in found.values()) > 100


async def test_each_call_is_in_one_report(trade: Trade) -> None:
    """And none is left out, whatever its endpoint."""
    calls, tokens = 0, 0
    for kind, (_, sums) in KINDS.items():
        found = await told(trade, kind, "num_model_requests", *({"input_tokens"} & sums.keys()))
        calls += sum(values[0] for values in found.values())
        tokens += sum(values[1] for values in found.values() if len(values) > 1)
    assert calls == CALLS
    [(rows, of_text)] = await sql(
        trade,
        "select count(*) filter (where corrects is null),"
        " sum(input_tokens) filter (where model not in ('paint', 'listen'))"
        " from charge where organization_id = :own",
        own=trade.ours.organization_id,
    )
    assert (calls, tokens) == (rows, of_text)


@pytest.mark.parametrize("group", ["user_id", "service_tier", "api_source"])
async def test_groups_that_are_the_same_for_all_calls_change_no_sum(trade: Trade, group: str) -> None:
    asked = {"bucket_width": "1d", "limit": 31}
    whole = await told(trade, "completions", "num_model_requests", "output_tokens", **asked)
    found = await told(trade, "completions", "num_model_requests", "output_tokens", group_by=[group], **asked)
    assert list(found.values()) == list(whole.values())
    assert {key[1] for key in found} == {{"user_id": None, "service_tier": "default", "api_source": "unlabeled"}[group]}


async def test_images_are_told_by_their_source(trade: Trade) -> None:
    found = await told(trade, "images", "images", bucket_width="1d", group_by=["source", "size"])
    rows = await booked(trade, "endpoint like '/v1/images/%'", "1d", ("endpoint",), "sum(images)")
    names = {"/v1/images/generations": "image.generation", "/v1/images/edits": "image.edit"}
    assert found == {(start, names[path], None): images for (start, path), images in rows.items()}
    edits = await told(trade, "images", "images", bucket_width="1d", extra_query={"sources[]": "image.edit"})
    assert edits == {(start,): images for (start, path), images in rows.items() if path == "/v1/images/edits"}


# Filters -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", UNITS)
async def test_filters_leave_out_all_others(trade: Trade, width: str) -> None:
    first, second = list(trade.ours.keys)[:2]
    keys = [trade.ours.keys[first][0], trade.ours.keys[second][1]]
    filters: list[tuple[dict[str, Any], str]] = [
        ({"project_ids": [str(first)]}, f"project_id = '{first}'"),
        ({"project_ids": [str(first), str(second)]}, f"project_id in ('{first}', '{second}')"),
        ({"api_key_ids": [str(key) for key in keys]}, f"api_key_id in ('{keys[0]}', '{keys[1]}')"),
        ({"models": ["chat-small"]}, "model = 'chat-small'"),
        ({"models": ["no such model", "'; drop table charge--"]}, "false"),
        ({"batch": True}, "batch"),
        ({"batch": False}, "not batch"),
        ({"user_ids": ["user_1"]}, "false"),
        ({"batch": True, "models": ["embed", "chat-large"]}, "batch and model = 'chat-large'"),
    ]  # fmt: skip
    _, sums = KINDS["completions"]
    for asked, where in filters:
        found = await told(trade, "completions", *sums, bucket_width=width, limit=MOST[width], **asked)
        assert found == await booked(trade, f"{TEXT} and {where}", width, (), *sums.values()), where


# Costs ---------------------------------------------------------------------------------------------------------------


async def costs(trade: Trade, **asked: Any) -> list[tuple[int, Any]]:
    """All results, with the start of their bucket."""
    async with trade.client() as client:
        page = await client.admin.organization.usage.costs(start_time=START, end_time=STOP, limit=180, **asked)
    assert not page.has_more
    assert [bucket.start_time for bucket in page.data] == [START + 86_400 * day for day in range(DAYS)]
    return [(bucket.start_time, result) for bucket in page.data for result in bucket.results]


@pytest.mark.parametrize("by", subsets(("project_id", "api_key_id", "line_item", "user_id")), ids="+".join)
async def test_costs_equal_the_ledger(trade: Trade, by: tuple[str, ...]) -> None:
    columns = tuple(name for name in by if name in ("project_id", "api_key_id"))
    found: Counter[Any] = Counter()
    for start, result in await costs(trade, group_by=list(by)):
        assert result.amount.currency == "usd"
        assert result.amount.value == float(result.amount.exact)
        assert (result.line_item is None) == ("line_item" not in by)
        units = int(Decimal(result.amount.exact).scaleb(9))
        assert amount_text(units, "USD") == result.amount.exact
        found[(start, *(getattr(result, name) for name in columns))] += units
    assert dict(found) == {
        key: int(amount) for key, (amount,) in (await booked(trade, "true", "1d", columns, "sum(amount)")).items()
    }
    [(moved,)] = await sql(
        trade,
        "select sum(case when credit.kind = 'revenue' then amount else -amount end) from transfer"
        " join posting on posting.id = posting_id join account credit on credit.id = credit_account"
        " where posting.organization_id = :own and posting.kind = 'charge_batch'",
        own=trade.ours.organization_id,
    )
    assert sum(found.values()) == int(moved)


async def test_line_items_name_model_and_meter(trade: Trade) -> None:
    items: dict[str, list[Any]] = {}
    for _, result in await costs(trade, group_by=["line_item"]):
        items.setdefault(result.line_item, []).append(result)
    assert set(items) >= {
        *(f"chat-large, {meter}" for meter in ("input_tokens", "cached_input_tokens", "output_tokens", "requests")),
        *("chat-small, input_tokens", "chat-small, output_tokens", "embed, input_tokens"),
        *("paint, images", "paint, input_tokens", "listen, audio_seconds", "chat-large, adjustments"),
    }
    rows = await sql(
        trade,
        "select sum(images), sum(audio_seconds) from charge where organization_id = :own",
        own=trade.ours.organization_id,
    )
    quantities = {
        name: (sum(result.quantity for result in items[name]), items[name][0].quantity_unit)
        for name in ("paint, images", "listen, audio_seconds")
    }
    assert quantities == {
        "paint, images": (rows[0][0], "images"),
        "listen, audio_seconds": (rows[0][1], "duration_seconds"),
    }
    assert all(result.quantity is None for result in items["chat-large, adjustments"])


async def test_costs_of_some_line_items_are_those_of_the_whole(trade: Trade) -> None:
    wanted = ["paint, images", "chat-large, output_tokens"]
    whole = [
        (start, result.line_item, result.amount.exact)
        for start, result in await costs(trade, group_by=["line_item"])
        if result.line_item in wanted
    ]
    asked = await costs(trade, group_by=["line_item"], line_items=wanted)
    assert [(start, result.line_item, result.amount.exact) for start, result in asked] == whole
    together = await costs(trade, line_items=wanted)
    assert sum(Decimal(result.amount.exact) for _, result in together) == sum(Decimal(exact) for *_, exact in whole)


async def test_costs_of_a_key_are_those_of_its_charges(trade: Trade) -> None:
    [project_id, *_] = trade.ours.keys
    key = trade.ours.keys[project_id][0]
    found = await costs(trade, api_key_ids=[str(key)], project_ids=[str(project_id)])
    rows = await booked(trade, f"api_key_id = '{key}'", "1d", (), "sum(amount)")
    assert {(start,): int(Decimal(result.amount.exact).scaleb(9)) for start, result in found} == {
        start: int(amount) for start, (amount,) in rows.items()
    }


# The book behind it --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def report(trade: Trade) -> Report:
    return await verify(trade.engine, trade.hot)


@pytest.mark.parametrize("check", ["prices", "corrections", "usage", "transfers"])
async def test_the_book_of_the_trade_is_right(report: Report, check: str) -> None:
    """Charges of images and audio are priced again by `verify` as they were charged, corrections and sums too."""
    [found] = [each for each in report.checks if each.name == check]
    assert found.ok, found.findings
    assert found.rows > 0


async def test_the_migration_sums_hours_as_the_booking_does(trade: Trade) -> None:
    """What it makes of charges that were there before, and what was kept since: the same rows."""
    [module] = Path(versions.__file__).parent.glob("*_quantities.py")
    statement = import_module(f"{versions.__name__}.{module.stem}")._STATEMENTS[-1]
    columns = statement[statement.index("(") + 1 : statement.index(")")]
    again = await sql(trade, statement[statement.index("select ") :])
    kept = await sql(trade, f"select {columns} from usage_hour")
    assert len(kept) > 1_000
    assert sorted(map(str, again)) == sorted(map(str, kept))
