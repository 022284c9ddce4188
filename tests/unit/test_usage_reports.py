"""Buckets and parameters of usage reports, and the line items of costs."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from billing.invoicing import UsageGroup
from billing.line_items import LineItem, line_items, merged
from billing.store.usage_report import Width
from gateway.api.organization.reports import Asked, asked, page_json, window
from models.catalog import Meter, PriceVersion
from models.errors import InvalidRequest
from models.money import MilliUnits

DAY, HOUR = 86_400, 3_600
NOON = 1_795_694_400
"""A noon in UTC: 2026-11-26."""
MIDNIGHT = NOON - 12 * HOUR


def request(query: str) -> Request:
    return Request({"type": "http", "query_string": query.encode(), "headers": []})


def read(query: str) -> Asked:
    return asked(request(query), ("models", "batch"), ("project_id", "model"))


def spans(query: str, now: int = NOON) -> list[tuple[int, int]]:
    return [(bucket.start, bucket.end) for bucket in window(read(query), now).buckets]


# Buckets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param(
            f"start_time={MIDNIGHT - DAY}",
            [(MIDNIGHT - DAY, MIDNIGHT), (MIDNIGHT, MIDNIGHT + DAY)],
            id="days up to the one that runs",
        ),
        pytest.param(
            f"start_time={MIDNIGHT - 5 * HOUR - 7}&end_time={MIDNIGHT + HOUR + 1}",
            [(MIDNIGHT - 6 * HOUR, MIDNIGHT), (MIDNIGHT, MIDNIGHT + 2 * HOUR)],
            id="the first and the last day are cut to the hour",
        ),
        pytest.param(
            f"start_time={NOON - 90}&end_time={NOON}&bucket_width=1m",
            [(NOON - 120, NOON - 60), (NOON - 60, NOON)],
            id="minutes are whole",
        ),
        pytest.param(
            f"start_time={NOON - 1}&bucket_width=1h", [(NOON - HOUR, NOON), (NOON, NOON + HOUR)], id="hours are whole"
        ),
        pytest.param(
            f"start_time={MIDNIGHT}&end_time={MIDNIGHT + 9 * DAY}", [(MIDNIGHT, MIDNIGHT + DAY)], id="no later ones"
        ),
        pytest.param(f"start_time={NOON + DAY}", [], id="nothing has happened yet"),
        pytest.param(f"start_time={MIDNIGHT}&end_time={MIDNIGHT + 1}", [(MIDNIGHT, MIDNIGHT + HOUR)], id="a second"),
    ],
)
def test_buckets(query: str, expected: list[tuple[int, int]]) -> None:
    assert spans(query) == expected


@given(
    start=st.integers(NOON - 40 * DAY, NOON),
    length=st.integers(1, 40 * DAY),
    width=st.sampled_from(Width),
    limit=st.integers(1, 31),
)
def test_pages_cover_the_whole_span_without_a_gap(start: int, length: int, width: Width, limit: int) -> None:
    if width is Width.MINUTE:
        length = 1 + length % DAY
    query = f"start_time={start}&end_time={start + length}&bucket_width={width}&limit={limit}"
    page = window(read(query), NOON)
    found = list(page.buckets)
    while page.following is not None:
        assert len(page.buckets) == limit
        again = page_json(page, [])["next_page"]
        page = window(read(f"{query}&page={again}"), NOON)
        found += page.buckets
    assert found[0].start <= start < found[0].end
    assert found[-1].end >= min(start + length, NOON)
    assert all(one.end == two.start and two.start % width.seconds == 0 for one, two in pairwise(found))
    assert all(0 < bucket.end - bucket.start <= width.seconds for bucket in found)


def test_a_result_of_a_day_that_was_cut_is_in_its_bucket() -> None:
    page = window(read(f"start_time={MIDNIGHT - 2 * HOUR}&end_time={MIDNIGHT + DAY}"), NOON)
    found = [(datetime.fromtimestamp(MIDNIGHT - DAY, UTC), {"n": 1}), (datetime.fromtimestamp(MIDNIGHT, UTC), {"n": 2})]
    assert [bucket["results"] for bucket in page_json(page, found)["data"]] == [[{"n": 1}], [{"n": 2}]]


# Parameters ----------------------------------------------------------------------------------------------------------


def test_arrays_come_with_brackets_or_without() -> None:
    found = read(
        "start_time=1&group_by[]=model&group_by%5B%5D=project_id&group_by=model&models[]=a,b&models=c&batch=true"
    )
    assert found.by == ("model", "project_id")
    assert found.wanted("models") == ("a,b", "c")
    assert found.batch is True
    assert (found.width, found.limit, found.end, found.page) == (Width.DAY, 7, None, None)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        pytest.param("", "start_time", id="no start"),
        pytest.param("start_time=", "start_time", id="an empty start"),
        pytest.param("start_time=-1", "start_time", id="before all time"),
        pytest.param("start_time=1e9", "start_time", id="a float"),
        pytest.param("start_time=٣", "start_time", id="digits of another script"),
        pytest.param("start_time=99999999999", "start_time", id="after all time"),
        pytest.param("start_time=1&start_time=2", "start_time", id="two starts"),
        pytest.param("start_time=5&end_time=5", "end_time", id="nothing between"),
        pytest.param("start_time=1&bucket_width=1w", "bucket_width", id="another width"),
        pytest.param("start_time=1&limit=0", "limit", id="no bucket"),
        pytest.param("start_time=1&limit=32", "limit", id="more days than a page has"),
        pytest.param("start_time=1&limit=169&bucket_width=1h", "limit", id="more hours"),
        pytest.param("start_time=1&limit=1441&bucket_width=1m", "limit", id="more minutes"),
        pytest.param("start_time=1&group_by[]=amount;drop", "group_by", id="B10 SQL in group_by"),
        pytest.param("start_time=1&group_by[]=(select 1)", "group_by", id="B10 a query in group_by"),
        pytest.param("start_time=1&page=1'", "page", id="B10 SQL in page"),
        pytest.param("start_time=1&page=page_1 or 1=1", "page", id="B10 more SQL in page"),
        pytest.param("start_time=1&batch=maybe", "batch", id="neither true nor false"),
        pytest.param("start_time=1&order=(select 1)", "order", id="B10 SQL in what is no parameter"),
        pytest.param("start_time=1&limit[]=1", "limit[]", id="an array that is none"),
        pytest.param("start_time=1&models[]=a%00", "models", id="a NUL"),
        pytest.param("start_time=1&models[]=" + "a" * 513, "models", id="a long value"),
        pytest.param("start_time=1" + "&models[]=a" * 101, "models", id="many values"),
    ],
)
def test_what_is_wrong_is_named(query: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        read(query)
    assert error.value.param == param


@pytest.mark.parametrize("page", [MIDNIGHT - 2 * DAY, MIDNIGHT + 1, MIDNIGHT + DAY, 0])
def test_a_page_of_another_report_is_refused(page: int) -> None:
    with pytest.raises(InvalidRequest) as error:
        window(read(f"start_time={MIDNIGHT - DAY}&page=page_{page}"), NOON)
    assert error.value.param == "page"


# Line items ----------------------------------------------------------------------------------------------------------

INPUT, IMAGE = UUID(int=1), UUID(int=2)
PRICES = {
    number: PriceVersion(number, "default", "m", meter, "USD", MilliUnits(price), datetime(2026, 1, 1, tzinfo=UTC))
    for number, meter, price in ((INPUT, Meter.INPUT, 333), (IMAGE, Meter.IMAGE, 40_000_001))
}


def group(amount: int, prices: tuple[UUID, ...] = (INPUT, IMAGE), **sums: int) -> UsageGroup:
    given: dict[str, Any] = {"calls": 1, "input_tokens": 0, "cached_tokens": 0, "cache_write_tokens": 0}
    given |= {"output_tokens": 0, "reasoning_tokens": 0, **sums}
    return UsageGroup(UUID(int=9), None, "m", prices, amount=amount, unbilled=0, **given)


@pytest.mark.parametrize(
    ("used", "items"),
    [
        pytest.param(
            group(40_000, input_tokens=1, images=1),
            [LineItem("m, input_tokens", 0, 1, "tokens"), LineItem("m, images", 40_000, 1, "images")],
            id="a token and an image",
        ),
        pytest.param(
            group(40_000, (IMAGE,), images=1, input_tokens=7),
            [LineItem("m, input_tokens", 0, 7, "tokens"), LineItem("m, images", 40_000, 1, "images")],
            id="tokens without a price are free",
        ),
        pytest.param(
            group(50, input_tokens=3_000),
            [LineItem("m, input_tokens", 999, 3_000, "tokens"), LineItem("m, adjustments", -949)],
            id="a call that was cut to its hold",
        ),
        pytest.param(group(0), [], id="nothing"),
    ],
)
def test_items(used: UsageGroup, items: list[LineItem]) -> None:
    assert line_items(used, PRICES) == items


@given(amount=st.integers(-(10**6), 10**12), tokens=st.integers(0, 10**9), images=st.integers(0, 10**6))
def test_items_add_up_to_the_charges(amount: int, tokens: int, images: int) -> None:
    found = line_items(group(amount, input_tokens=tokens, images=images), PRICES)
    assert sum(item.amount for item in found) == amount


def test_items_of_one_name_become_one() -> None:
    assert merged(LineItem("a", 1, 2, "tokens"), LineItem("a", 3, 4, "tokens")) == LineItem("a", 4, 6, "tokens")
    assert merged(LineItem("a", 1), LineItem("a", -3)) == LineItem("a", -2)
