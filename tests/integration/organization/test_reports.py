"""What usage and cost reports answer besides sums: pages, empty buckets, and refusals; and never another's usage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from openai import BadRequestError, NotFoundError

from billing.store import usage_report
from gateway.app import make_api
from tests.integration.organization.trade import BEGIN, CALLS, END, Trade

pytestmark = pytest.mark.anyio

START, STOP = int(BEGIN.timestamp()), int(END.timestamp())
KINDS = (
    *("completions", "embeddings", "moderations", "audio_speeches", "audio_transcriptions", "images", "vector_stores"),
    *("file_search_calls", "web_search_calls", "code_interpreter_sessions", "decisions"),
)
NOTHING_SOLD = (
    *("audio_speeches", "vector_stores", "file_search_calls", "web_search_calls", "code_interpreter_sessions"),
    "decisions",
)
PATHS = (*(f"/v1/organization/usage/{kind}" for kind in KINDS), "/v1/organization/costs")


def error_of(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# Pages ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NOTHING_SOLD)
async def test_what_is_not_sold_has_empty_buckets(trade: Trade, kind: str) -> None:
    async with trade.client() as client:
        page = await getattr(client.admin.organization.usage, kind)(start_time=START, end_time=STOP)
    assert (page.object, page.has_more, page.next_page) == ("page", False, None)
    assert [(bucket.object, bucket.results) for bucket in page.data] == [("bucket", [])] * 4


async def test_pages_come_to_the_same_as_one(trade: Trade) -> None:
    async with trade.client() as client:
        report = client.admin.organization.usage.completions
        whole = await report(start_time=START, end_time=STOP, bucket_width="1h", limit=96, group_by=["model"])
        pages = [await report(start_time=START, end_time=STOP, bucket_width="1h", limit=7, group_by=["model"])]
        while pages[-1].next_page:
            pages.append(
                await report(
                    start_time=START,
                    end_time=STOP,
                    bucket_width="1h",
                    limit=7,
                    group_by=["model"],
                    page=pages[-1].next_page,
                )
            )
    assert [len(page.data) for page in pages] == [7] * 13 + [5]
    assert [bucket for page in pages for bucket in page.data] == whole.data
    assert all(result.object == "organization.usage.completions.result" for b in whole.data for result in b.results)


async def test_days_without_a_call_are_there(trade: Trade) -> None:
    async with trade.client() as client:
        page = await client.admin.organization.usage.completions(start_time=START - 3 * 86_400, end_time=STOP)
        costs = await client.admin.organization.usage.costs(start_time=START - 3 * 86_400, end_time=STOP)
    for report in (page, costs):
        assert [bool(bucket.results) for bucket in report.data] == [False] * 3 + [True] * 4


async def test_a_report_may_begin_before_anything_was(trade: Trade) -> None:
    """Found by Schemathesis: no call id is as old as that."""
    async with trade.client() as client:
        page = await client.admin.organization.usage.completions(start_time=0, end_time=60, bucket_width="1m")
    assert [(bucket.start_time, bucket.results) for bucket in page.data] == [(0, [])]


async def test_a_report_may_begin_within_a_day(trade: Trade) -> None:
    async with trade.client() as client:
        report = client.admin.organization.usage.completions
        days = await report(start_time=START + 3_600 * 30, end_time=STOP)
        hours = await report(start_time=START + 3_600 * 30, end_time=STOP, bucket_width="1h", limit=168)
    assert (days.data[0].start_time, days.data[0].end_time) == (START + 3_600 * 30, START + 2 * 86_400)
    of_hours = [result.num_model_requests for bucket in hours.data[:18] for result in bucket.results]  # type: ignore[union-attr]
    assert [result.num_model_requests for result in days.data[0].results] == [sum(of_hours)]  # type: ignore[union-attr]


async def test_minutes_read_by_the_index_of_charges(trade: Trade) -> None:
    """However long the book is, a report of minutes looks at the days about its own."""
    report = usage_report.Report(trade.ours.organization_id, usage_report.Width.MINUTE, BEGIN, BEGIN.replace(hour=1))
    statement = usage_report._statement(report, ())
    async with trade.engine.connect() as connection:
        raw = await connection.get_raw_connection()
        compiled = statement.compile(dialect=trade.engine.dialect, compile_kwargs={"literal_binds": True})
        assert raw.driver_connection is not None
        await raw.driver_connection.execute("set enable_seqscan = off")
        rows = await raw.driver_connection.fetch(f"explain {compiled}")
        await raw.driver_connection.execute("reset enable_seqscan")
    plan = "\n".join(row[0] for row in rows)
    assert "organization_id" in plan
    assert "call_id >=" in plan
    assert "Seq Scan" not in plan


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("query", "param"),
    [
        pytest.param("", "start_time", id="no start"),
        pytest.param("start_time=now", "start_time", id="a start in words"),
        pytest.param("start_time=1&bucket_width=1 day'--", "bucket_width", id="B10 SQL in the width"),
        pytest.param("start_time=1&group_by[]=project_id;drop table charge", "group_by", id="B10 SQL in group_by"),
        pytest.param("start_time=1&limit=1;select 1", "limit", id="B10 SQL in limit"),
        pytest.param("start_time=1&page=(select 1)", "page", id="B10 SQL in page"),
        pytest.param("start_time=1&sort=amount;drop", "sort", id="B10 an unknown parameter"),
        pytest.param("start_time=1&project_ids[]=' or 1=1--", "project_ids", id="B10 SQL for an id"),
    ],
)
async def test_b10_wrong_parameters_are_refused(trade: Trade, path: str, query: str, param: str) -> None:
    error = error_of(await trade.get(f"{path}?{query}"), 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert "sql" not in error["message"].lower()


async def test_the_client_raises_what_is_wrong(trade: Trade) -> None:
    async with trade.client() as client:
        with pytest.raises(BadRequestError) as raised:
            await client.admin.organization.usage.costs(start_time=START, bucket_width="1h")  # type: ignore[arg-type]
        assert raised.value.param == "bucket_width"
        with pytest.raises(BadRequestError) as raised:
            await client.admin.organization.usage.images(start_time=START, sizes=["256x256"])
        assert raised.value.param == "sizes"


async def test_too_many_results_are_not_answered(trade: Trade, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_report, "MOST_ROWS", 10)
    error = error_of(await trade.get(f"{PATHS[0]}?start_time={START}&group_by[]=api_key_id"), 400)
    assert error["param"] == "limit"


# Tenants -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
async def test_b05_another_tenants_usage_is_not_found(trade: Trade, path: str) -> None:
    """The same answer as for what does not exist; no parameter leads to another organization."""
    [(project, [key])] = trade.theirs.keys.items()
    missing = uuid4()
    filters = {"project_ids": (project, missing)}
    if path.rsplit("/", 1)[1] not in ("vector_stores", "code_interpreter_sessions"):
        filters["api_key_ids"] = (key, missing)
    for name, (theirs, nobodys) in filters.items():
        found = error_of(await trade.get(f"{path}?start_time={START}&{name}[]={theirs}"), 404)
        other = error_of(await trade.get(f"{path}?start_time={START}&{name}[]={nobodys}"), 404)
        assert found["message"].replace(str(theirs), "") == other["message"].replace(str(nobodys), "")
    organization = trade.theirs.organization_id
    error_of(await trade.get(f"{path}?start_time={START}&organization_id={organization}"), 400)


async def test_b05_each_side_sees_its_own_calls_only(trade: Trade) -> None:
    calls = {}
    for side in (trade.ours, trade.theirs):
        calls[side.organization_id] = 0
        async with trade.client(side) as client:
            for kind in KINDS[:6]:
                page = await getattr(client.admin.organization.usage, kind)(
                    start_time=START, end_time=STOP, group_by=["project_id"]
                )
                results = [result for bucket in page.data for result in bucket.results]
                calls[side.organization_id] += sum(result.num_model_requests for result in results)
                assert {result.project_id for result in results} <= {str(project) for project in side.keys}
    assert list(calls.values()) == [CALLS, 300]


async def test_the_client_is_told_that_anothers_project_is_not_there(trade: Trade) -> None:
    [project] = trade.theirs.keys
    async with trade.client() as client:
        with pytest.raises(NotFoundError):
            await client.admin.organization.usage.completions(start_time=START, project_ids=[str(project)])


@pytest.mark.parametrize("path", PATHS)
async def test_b08_only_an_admin_key_reads_reports(trade: Trade, path: str) -> None:
    query = f"{path}?start_time={START}"
    assert (await trade.get(query)).status_code == 200
    assert error_of(await trade.get(query, trade.ours.api_key), 403)["type"] == "permission_error"
    assert error_of(await trade.get(query, "tg_admin_" + "a" * 43), 401)["code"] == "invalid_api_key"


# The page ------------------------------------------------------------------------------------------------------------


def described() -> Iterator[tuple[str, set[str]]]:
    for path, operations in make_api(docs_enabled=True).openapi()["paths"].items():
        if path in PATHS:
            yield path, {parameter["name"] for parameter in operations["get"]["parameters"]}


def test_every_parameter_is_on_the_openapi_page() -> None:
    found = dict(described())
    assert set(found) == set(PATHS)
    assert all(
        {"start_time", "end_time", "bucket_width", "limit", "page", "group_by[]"} <= one for one in found.values()
    )
    assert {"batch", "models[]"} <= found["/v1/organization/usage/completions"]
    assert "batch" not in found["/v1/organization/usage/embeddings"]
    assert "line_items[]" in found["/v1/organization/costs"]
