"""Batches from creation to their files: what is run, what is refused, what is charged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from billing.store.batches import Line, add_lines, add_lost, ended_lines
from gateway.batches.runner import Batches
from models.ids import uuid7
from models.money import parse_amount
from tests.integration.batches.desk import Desk, jsonl, task
from tests.scripted import DONE, Asked, Scripted, answer, end, open_stream, said, send, usage
from tests.stage import ALWAYS, PRICES, eventually

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


async def test_every_line_is_a_call_with_a_receipt(desk: Desk) -> None:
    lines = [task(f"q{number}") for number in range(30)]
    lines[7]["body"]["model"] = "no-such-model"
    lines[11]["body"]["temperature"] = 9
    batch = await desk.create(jsonl(*lines), metadata={"night": "1"})
    assert (batch["status"], batch["metadata"], batch["completion_window"]) == ("validating", {"night": "1"}, "24h")
    batch = await desk.ended(batch)
    assert batch["status"] == "completed", batch
    assert batch["request_counts"] == {"total": 30, "completed": 28, "failed": 2}
    assert batch["usage"]["input_tokens"] == 28 * 5
    good, bad = await desk.results(batch)
    assert [line["custom_id"] for line in good] == [f"q{n}" for n in range(30) if n not in (7, 11)]
    assert [(line["custom_id"], line["response"]["status_code"]) for line in bad] == [("q7", 404), ("q11", 400)]
    assert bad[1]["response"]["body"]["error"]["param"] == "temperature"
    charges = await desk.stage.charges(desk.tenant, 28)
    assert {line["response"]["request_id"] for line in good} == {charge["call_id"] for charge in charges}
    assert await desk.spent() == sum(parse_amount(charge["amount"]["amount"], "USD") for charge in charges) > 0


async def test_a_batch_has_its_own_prices_where_there_are_any(desk: Desk) -> None:
    stage = desk.stage
    await stage.operate("POST", "/price_books", json={"id": "night", "parent": "default"})
    for meter, price in PRICES.items():
        half = str(float(price) / 2)
        row = {"book": "night", "model": "m", "meter": meter, "currency": "USD", "price_per_million": half}
        await stage.operate("POST", "/prices", json=row | {"effective_from": ALWAYS})
    book = await stage.operate("POST", "/price_books/default", json={"batch_book": "night"})
    assert book["batch_book"] == "night"
    await desk.ended(await desk.create(jsonl(task("one"))))
    [in_batch] = await stage.charges(desk.tenant, 1)
    assert (await stage.chat(desk.tenant, "hi")).status_code == 200
    charges = await stage.charges(desk.tenant, 2)
    alone = next(charge for charge in charges if charge["call_id"] != in_batch["call_id"])
    amounts = [parse_amount(charge["amount"]["amount"], "USD") for charge in (in_batch, alone)]
    assert 2 * amounts[0] == amounts[1]
    await stage.operate("POST", "/price_books/default", json={"batch_book": None})
    await desk.ended(await desk.create(jsonl(task("one"))))
    charges = await stage.charges(desk.tenant, 3)
    assert sorted(parse_amount(charge["amount"]["amount"], "USD") for charge in charges)[1:] == [amounts[1]] * 2
    await stage.operate("POST", "/price_books/default", json={"batch_book": "no-such"}, expect=400)
    await stage.operate("POST", "/price_books/no-such", json={"batch_book": None}, expect=404)
    await stage.verified(desk.tenant)


async def test_a_fallback_serves_a_line_at_its_own_price_for_batches(desk: Desk, backend: Scripted) -> None:
    stage = desk.stage
    await stage.backend(backend.url, kind="vllm", model="spare", known_as="y")
    rule = {"model": "spare", "priced_as": "fallback"}
    await stage.operate("POST", "/models/m", json={"deployments": [], "fallback": rule})
    await stage.operate("POST", "/price_books", json={"id": "night", "parent": "default"})
    for model in ("m", "spare"):
        for meter, price in PRICES.items():
            half = str(float(price) / 2)
            row = {"book": "night", "model": model, "meter": meter, "currency": "USD", "price_per_million": half}
            await stage.operate("POST", "/prices", json=row | {"effective_from": ALWAYS})
    await stage.operate("POST", "/price_books/default", json={"batch_book": "night"})
    await desk.ended(await desk.create(jsonl(task("one"))))
    [charge] = await stage.charges(desk.tenant, 1)
    assert charge["model"] == "spare"
    assert parse_amount(charge["amount"]["amount"], "USD") == 5 * 75 + 2 * 300


@pytest.mark.parametrize(
    ("lines", "faults"),
    [
        pytest.param(b"", [("empty_file", None)], id="blank lines only"),
        pytest.param(b'{"custom_id"', [("invalid_json_line", 2)], id="no JSON"),
        pytest.param(b"\xff", [("invalid_json_line", 2)], id="no UTF-8"),
        pytest.param(b"[" * 5_000, [("invalid_request", 2)], id="an array"),
        pytest.param(b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":' + b"[" * 9_000,
                     [("invalid_json_line", 2)], id="D03 nested"),
        pytest.param(b'{"custom_id":1}', [("invalid_request", 2)], id="a field of another type"),
        pytest.param(jsonl({**task("a"), "method": "GET"}, task("b", "/v1/embeddings")),
                     [("invalid_method", 2), ("mismatched_url", 3)], id="method and url"),
        pytest.param(jsonl(task("a"), task("b"), task("a")), [("duplicate_custom_id", 4)], id="the same id"),
        pytest.param(jsonl(task("a", stream=True)), [("invalid_request", 2)], id="a stream"),
        pytest.param(jsonl(task("a\0"), task("x" * 600)),
                     [("invalid_custom_id", 2), ("invalid_custom_id", 3)], id="ids that cannot be kept"),
        pytest.param(jsonl({**task("a"), "body": []}), [("invalid_request", 2)], id="a body that is no object"),
    ],
)  # fmt: skip
async def test_a_wrong_file_fails_with_line_numbers(
    desk: Desk, backend: Scripted, lines: bytes, faults: list[tuple[str, int | None]]
) -> None:
    batch = await desk.ended(await desk.create(b"\n" + lines))
    assert batch["status"] == "failed"
    assert [(fault["code"], fault["line"]) for fault in batch["errors"]["data"]] == faults
    assert all(fault["message"].endswith(".") for fault in batch["errors"]["data"])
    assert (batch["output_file_id"], batch["error_file_id"]) == (None, None)
    assert not backend.asked


async def test_what_is_refused_for_now_is_tried_again(desk: Desk, backend: Scripted) -> None:
    usual, refusals = backend.script, [503, 503, 500, 502]

    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if refusals:
            await answer(refusals.pop(), b"{}")(asked, writer)
        else:
            await usual(asked, writer)

    backend.script = script
    batch = await desk.ended(await desk.create(jsonl(task("a"))), 60)
    assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    await desk.stage.charges(desk.tenant, 1)
    await desk.spent()


async def test_a_backend_that_never_answers_well_ends_the_line(desk: Desk, backend: Scripted) -> None:
    backend.script = answer(400, b'{"error":{"message":"no"}}')
    batch = await desk.ended(await desk.create(jsonl(task("a"))))
    assert batch["request_counts"] == {"total": 1, "completed": 0, "failed": 1}
    _, [line] = await desk.results(batch)
    assert line["response"]["status_code"] == 400
    assert await desk.spent() == 0


async def test_without_money_a_line_fails_and_holds_nothing(desk: Desk, backend: Scripted) -> None:
    poor = Desk(desk.stage, await desk.stage.tenant(credit=None))
    batch = await poor.ended(await poor.create(jsonl(task("a"), task("b"))))
    assert batch["request_counts"] == {"total": 2, "completed": 0, "failed": 2}
    _, bad = await poor.results(batch)
    assert {line["response"]["status_code"] for line in bad} == {402}
    assert not backend.asked


async def test_the_rate_limit_of_the_key_applies_and_is_waited_for(desk: Desk) -> None:
    tenant = await desk.stage.tenant(limits={"requests_per_minute": 60})
    slow = Desk(desk.stage, tenant)
    batch = await slow.ended(await slow.create(jsonl(*(task(str(n)) for n in range(62)))), 60)
    assert batch["request_counts"] == {"total": 62, "completed": 62, "failed": 0}


def patient(go_on: asyncio.Event) -> Any:
    """A backend that begins each answer, and ends it once it may."""

    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await open_stream(writer)
        await send(writer, said("hello"))
        await go_on.wait()
        await send(writer, said(" there", finish="stop"), usage(5, 2), DONE)
        await end(writer)

    return script


async def test_money_that_is_held_for_other_lines_is_waited_for(desk: Desk, backend: Scripted) -> None:
    """A balance that covers all lines, but not what is held for them at a time."""
    go_on, stage = asyncio.Event(), desk.stage
    backend.script = patient(go_on)
    lines = [task(str(number)) for number in range(8)]
    batch = await desk.create(jsonl(lines[0]))

    async def asked(count: int) -> bool:
        return len(backend.asked) == count

    await eventually(partial(asked, 1))
    held = (await stage.balance(desk.tenant))["held"]["amount"]
    go_on.set()
    await desk.ended(batch)
    go_on.clear()
    poor = Desk(stage, await stage.tenant(credit=str(3 * Decimal(held))))
    batch = await poor.create(jsonl(*lines))

    async def all_were_tried() -> bool:
        async with stage.app.parts.engine.connect() as connection:
            tried = "select count(*) from batch_line where state = 'waiting' and delays > 1 and failures = 0"
            return bool((await connection.execute(text(tried))).scalar_one() == 5)

    await eventually(all_were_tried)
    assert await asked(1 + 3)
    go_on.set()
    batch = await poor.ended(batch, 60)
    assert batch["request_counts"] == {"total": 8, "completed": 8, "failed": 0}
    await stage.charges(poor.tenant, 8)
    await poor.spent()


async def test_a_cancelled_batch_ends_what_runs_and_begins_no_more(desk: Desk, backend: Scripted) -> None:
    go_on = asyncio.Event()
    backend.script = patient(go_on)
    batch = await desk.create(jsonl(*(task(str(number)) for number in range(40))))

    async def runs() -> bool:
        return len(backend.asked) == desk.stage.settings.batch_calls

    await eventually(runs)
    cancelled = await desk.ask("POST", f"/v1/batches/{batch['id']}/cancel")
    assert cancelled.json()["status"] == "cancelling"
    assert (await desk.ask("POST", f"/v1/batches/{batch['id']}/cancel")).json()["status"] == "cancelling"
    go_on.set()
    batch = await desk.ended(batch)
    assert batch["status"] == "cancelled"
    assert batch["cancelled_at"] >= batch["cancelling_at"] >= batch["created_at"]
    assert batch["request_counts"] == {"total": 40, "completed": 16, "failed": 24}
    good, bad = await desk.results(batch)
    assert (len(good), {line["error"]["code"] for line in bad}) == (16, {"batch_cancelled"})
    assert len(backend.asked) == 16
    await desk.stage.charges(desk.tenant, 16)
    again = await desk.ask("POST", f"/v1/batches/{batch['id']}/cancel")
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")


async def test_a_finished_batch_cannot_be_cancelled(desk: Desk) -> None:
    batch = await desk.ended(await desk.create(jsonl(task("a"))))
    answer = await desk.ask("POST", f"/v1/batches/{batch['id']}/cancel")
    assert (answer.status_code, answer.json()["error"]["type"]) == (409, "conflict")


async def test_a_revoked_key_stops_its_batch(desk: Desk, backend: Scripted) -> None:
    go_on = asyncio.Event()
    backend.script = patient(go_on)
    stage = desk.stage
    batch = await desk.create(jsonl(*(task(str(number)) for number in range(40))))

    async def runs() -> bool:
        return len(backend.asked) == stage.settings.batch_calls

    await eventually(runs)
    other = await stage.operate("POST", f"/projects/{desk.tenant.project_id}/api_keys", json={"name": "other"})
    keys = await stage.operate("GET", f"/projects/{desk.tenant.project_id}/api_keys")
    own = next(key["id"] for key in keys["data"] if key["name"] == "dev")
    await stage.operate("POST", f"/projects/{desk.tenant.project_id}/api_keys/{own}/revoke")
    desk.tenant.api_key = other["value"]
    # What is remembered of the key is older than the revocation for some seconds.
    await asyncio.sleep(stage.settings.key_cache_seconds)
    go_on.set()
    batch = await desk.ended(batch)
    assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("cancelled", "api_key_revoked")
    _, bad = await desk.results(batch)
    assert {line["error"]["code"] for line in bad} == {"api_key_revoked"}
    assert len(backend.asked) == 16


async def test_a_batch_out_of_time_keeps_what_it_has(desk: Desk, backend: Scripted) -> None:
    go_on = asyncio.Event()
    backend.script = patient(go_on)
    batch = await desk.create(jsonl(*(task(str(number)) for number in range(20))))

    async def runs() -> bool:
        return len(backend.asked) == desk.stage.settings.batch_calls

    await eventually(runs)
    async with desk.stage.app.parts.engine.begin() as connection:
        await connection.exec_driver_sql("update batch set expires_at = now()")

    async def is_ending() -> bool:
        return bool((await desk.look(batch))["status"] == "finalizing")

    await eventually(is_ending)
    go_on.set()
    batch = await desk.ended(batch)
    assert batch["status"] == "expired"
    assert batch["expired_at"] >= batch["finalizing_at"]
    good, bad = await desk.results(batch)
    assert (len(good), len(bad)) == (16, 4)
    assert {(line["response"], line["error"]["code"]) for line in bad} == {(None, "batch_expired")}
    await desk.stage.charges(desk.tenant, 16)


@pytest.mark.parametrize("endpoint", ["/v1/messages", "/chat/completions", "/v1/rerank", "", 5])
async def test_an_endpoint_that_no_batch_has_is_told_with_those_that_have(desk: Desk, endpoint: object) -> None:
    file_id = (await desk.upload(jsonl(task("a")))).json()["id"]
    body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h"}
    answer = await desk.ask("POST", "/v1/batches", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (422, "endpoint")
    assert "'/v1/chat/completions'" in error["message"]
    assert "/v1/messages" not in error["message"]


async def test_one_idempotency_key_makes_one_batch(desk: Desk) -> None:
    file_id = (await desk.upload(jsonl(task("a")))).json()["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    headers = {"idempotency-key": "once"}
    answers = [await desk.ask("POST", "/v1/batches", json=body, headers=headers) for _ in range(2)]
    assert [one.status_code for one in answers] == [200, 200]
    assert answers[0].content == answers[1].content
    other = await desk.ask("POST", "/v1/batches", json=body | {"metadata": {"a": "b"}}, headers=headers)
    assert other.status_code == 409
    assert len((await desk.ask("GET", "/v1/batches")).json()["data"]) == 1


async def test_lines_leave_half_of_a_backend_to_interactive_calls(desk: Desk, backend: Scripted) -> None:
    stage, go_on = desk.stage, asyncio.Event()
    await stage.operate("POST", "/backends/openai-m", json={"max_in_flight": 4})
    backend.script = patient(go_on)

    async def is_known() -> bool:
        models = stage.app.parts.catalog.current.models
        return models["m"].deployments[0].backend.max_in_flight == 4

    await eventually(is_known)
    batch = await desk.create(jsonl(*(task(str(number)) for number in range(10))))

    async def runs() -> bool:
        return len(backend.asked) == 2

    await eventually(runs)
    listeners = [stage.listen(desk.tenant, "hi") for _ in range(2)]

    async def all_run() -> bool:
        return len(backend.asked) == 4

    await eventually(all_run)
    await asyncio.sleep(1)
    assert len(backend.asked) == 4
    go_on.set()
    await asyncio.gather(*(one.task for one in listeners))
    assert all(one.is_done for one in listeners)
    assert (await desk.ended(batch))["request_counts"]["completed"] == 10


async def test_a_lost_attempt_is_given_back_once(desk: Desk) -> None:
    """Whatever the attempt was charged, and not again."""
    batch = await desk.ended(await desk.create(jsonl(task("a"))))
    [charge] = await desk.stage.charges(desk.tenant, 1)
    parts, call_id = desk.stage.app.parts, UUID(charge["call_id"])
    other = uuid7(parts.clock.now())
    organization_id = UUID(desk.tenant.organization_id)
    async with parts.engine.begin() as connection:
        lost = [(one, UUID(batch["id"].removeprefix("batch_")), 1) for one in (call_id, other)]
        await add_lost(connection, organization_id, lost)

    async def is_even() -> bool:
        return await desk.spent() == 0

    await eventually(is_even)
    async with parts.engine.begin() as connection:
        await connection.execute(text("update lost_attempt set look_at = now()"))

    async def are_seen() -> bool:
        async with parts.engine.connect() as connection:
            due = await connection.execute(text("select 1 from lost_attempt where look_at <= now()"))
            return not due.all()

    await eventually(are_seen)
    assert await desk.spent() == 0
    grants = await desk.stage.operate("GET", f"/organizations/{organization_id}/credit_grants")
    assert [(one["kind"], one["amount"]) for one in grants["data"] if one["kind"] == "promo"] == [
        ("promo", charge["amount"])
    ]


async def test_answers_are_read_a_few_at_a_time(desk: Desk, backend: Scripted) -> None:
    batch = await desk.ended(await desk.create(jsonl(task("a"))))
    batch_id = UUID(batch["id"].removeprefix("batch_"))
    async with desk.stage.app.parts.engine.connect() as connection:
        await add_lines(connection, batch_id, [Line(number, str(number), None, b"{}") for number in range(1, 6)])
        values = "update batch_line set state = 'done', call_id = batch_id, answer = repeat('x', 100)::bytea"
        await connection.execute(text(f"{values} where line < 5"))
        pages = []
        after = 0
        while rows := await ended_lines(connection, batch_id, after, 3, 250):
            pages.append([(row.line, row.is_done) for row in rows])
            after = rows[-1].line
        assert pages == [[(1, True), (2, True)], [(3, True), (4, True), (5, False)]]
        assert [row.line for row in await ended_lines(connection, batch_id, 0, 3, 1)] == [1]


async def test_a_line_is_paid_for_although_nobody_was_told_that_it_is_stored(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks after a commit: who tries again finds the line ended, by itself."""
    times = 0

    async def twice(own: Batches, store: Callable[[], Awaitable[None]]) -> None:
        nonlocal times
        for _ in range(2):
            await store()
            times += 1

    monkeypatch.setattr(Batches, "_persist", twice)
    batch = await desk.ended(await desk.create(jsonl(task("a"), task("b", model="no"))))
    assert (times, batch["request_counts"]) == (4, {"total": 2, "completed": 1, "failed": 1})
    async with desk.stage.app.parts.engine.connect() as connection:
        assert not (await connection.execute(text("select * from lost_attempt"))).all()
