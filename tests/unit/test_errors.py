"""The one table of errors: each exception's answer, and the answers of a FastAPI application that uses it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from structlog.testing import capture_logs

import models.errors
from gateway.api.errors import TABLE, error_body, install, render
from models.errors import (
    BackendFailed,
    BackendTimedOut,
    BrokenPromise,
    Conflict,
    InsufficientBalance,
    InvalidAmount,
    InvalidRequest,
    ModelNotFound,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    RateLimited,
    TollgateError,
    Unavailable,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("error", "status", "kind", "code", "param"),
    [
        pytest.param(InvalidRequest("no"), 400, "invalid_request_error", None, None, id="bad request"),
        pytest.param(
            InvalidRequest("no", param="n", code="bad_n"),
            400,
            "invalid_request_error",
            "bad_n",
            "n",
            id="bad parameter",
        ),
        pytest.param(InvalidRequest("no", status=413), 413, "invalid_request_error", None, None, id="too large"),
        pytest.param(InvalidRequest("no", status=415), 415, "invalid_request_error", None, None, id="wrong type"),
        pytest.param(InvalidRequest("no", status=431), 431, "invalid_request_error", None, None, id="long headers"),
        pytest.param(InvalidAmount("no"), 400, "invalid_request_error", None, None, id="bad amount, by its parent"),
        pytest.param(ModelNotFound("no"), 404, "not_found", "model_not_found", "model", id="model not found"),
        pytest.param(NotAuthenticated("no"), 401, "authentication_error", "invalid_api_key", None, id="no key"),
        pytest.param(NotPermitted("no"), 403, "permission_error", "permission_denied", None, id="wrong key"),
        pytest.param(NotFound("no"), 404, "not_found", "not_found", None, id="another tenant's"),
        pytest.param(Conflict("no"), 409, "conflict", "conflict", None, id="conflict"),
        pytest.param(
            InsufficientBalance("no"), 402, "insufficient_balance", "insufficient_balance", None, id="no money"
        ),
        pytest.param(RateLimited("no", 10), 429, "rate_limit_error", "rate_limit_exceeded", None, id="too fast"),
        pytest.param(Unavailable("no"), 503, "api_error", "unavailable", None, id="ledger away"),
        pytest.param(BackendFailed("no"), 502, "api_error", "backend_failed", None, id="backend failed"),
        pytest.param(BackendTimedOut("no"), 504, "api_error", "backend_timed_out", None, id="backend silent"),
    ],
)
async def test_shape(error: TollgateError, status: int, kind: str, code: str | None, param: str | None) -> None:
    rendered = render(error, request_id="r")
    assert rendered.status == status
    assert json.loads(rendered.body) == {"error": {"message": "no", "type": kind, "param": param, "code": code}}
    assert dict(rendered.headers)[b"content-length"] == b"%d" % len(rendered.body)
    assert dict(rendered.headers)[b"x-request-id"] == b"r"
    assert rendered.body == error_body(error)


def test_every_exception_has_a_row_or_a_parent_with_one() -> None:
    tree = [kind for kind in vars(models.errors).values() if isinstance(kind, type) and issubclass(kind, TollgateError)]
    assert [kind for kind in tree if kind not in TABLE] == [InvalidAmount]


@pytest.mark.parametrize(
    ("milliseconds", "seconds"),
    [
        pytest.param(0, b"1", id="never zero"),
        pytest.param(1, b"1", id="rounded up"),
        pytest.param(1_000, b"1", id="exact"),
        pytest.param(1_001, b"2", id="rounded up again"),
    ],
)
@pytest.mark.parametrize("kind", [RateLimited, Unavailable])
def test_retry_after(kind: type[RateLimited] | type[Unavailable], milliseconds: int, seconds: bytes) -> None:
    headers = dict(render(kind("later", milliseconds), request_id="r").headers)
    assert headers[b"retry-after"] == seconds
    assert headers[b"retry-after-ms"] == b"%d" % max(1, milliseconds)


def test_sdks_do_not_retry_for_money_and_learn_how_to_authenticate() -> None:
    assert dict(render(InsufficientBalance("no"), request_id="r").headers)[b"x-should-retry"] == b"false"
    assert dict(render(NotAuthenticated("no"), request_id="r").headers)[b"www-authenticate"] == b"Bearer"


def test_messages_carry_neither_internals_nor_keys_nor_broken_text() -> None:
    assert b"shard 3" not in render(BrokenPromise("shard 3 is off by 5"), request_id="r").body
    key = "tg_live_" + "a" * 40
    assert key.encode() not in render(InvalidRequest(f"unknown field {key!r}"), request_id="r").body
    assert b"?" in render(InvalidRequest("\ud800"), request_id="r").body
    assert len(render(InvalidRequest("x" * 100_000), request_id="r").body) < 2_000


class _Order(BaseModel):
    count: int
    credential: str | None = None


def _app() -> FastAPI:
    app = FastAPI()
    install(app)

    @app.post("/orders")
    async def order(body: _Order) -> dict[str, int]:
        return {"count": body.count}

    @app.get("/orders/{order_id}")
    async def look(order_id: UUID) -> str:
        return str(order_id)

    @app.get("/taken")
    async def taken() -> None:
        raise Conflict("it is taken")

    @app.get("/away")
    async def away() -> None:
        raise ConnectionRefusedError("postgresql://app:hunter2@db")

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("password=hunter2")

    return app


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(_app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_answers_carry_an_id_of_ours(client: httpx.AsyncClient) -> None:
    answer = await client.post("/orders", json={"count": 1}, headers={"x-request-id": "forged"})
    assert answer.status_code == 200
    assert UUID(answer.headers["x-request-id"]).version == 7
    refused = await client.get("/taken")
    assert refused.status_code == 409
    assert len(refused.headers.get_list("x-request-id")) == 1


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "code"),
    [
        pytest.param("GET", "/nothing", 404, "not_found", "not_found", id="unknown route"),
        pytest.param("GET", "/..%2f..%2fetc", 404, "not_found", "not_found", id="path traversal"),
        pytest.param("DELETE", "/taken", 405, "invalid_request_error", "method_not_allowed", id="unknown method"),
    ],
)
async def test_unknown_routes(
    client: httpx.AsyncClient, method: str, path: str, status: int, kind: str, code: str
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == (kind, code, None)
    assert (status == 405) == ("allow" in answer.headers)


async def test_validation_names_the_field_and_keeps_its_value(client: httpx.AsyncClient) -> None:
    answer = await client.post("/orders", json={"count": "many"})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "count", "invalid_value")
    answer = await client.post("/orders", json={"count": 1, "credential": ["hunter2"]})
    assert answer.json()["error"]["message"] == "credential: the value is not valid"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        pytest.param('{"count":', "application/json", id="cut short"),
        pytest.param("[1]", "application/json", id="a list"),
        pytest.param("", "application/json", id="nothing"),
        pytest.param('{"count": 1}', "application/x-www-form-urlencoded", id="what curl sends unless told"),
    ],
)
async def test_what_is_no_json_object_is_told_so(client: httpx.AsyncClient, body: str, content_type: str) -> None:
    answer = await client.post("/orders", content=body, headers={"content-type": content_type})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["message"] == "Send a body that is a JSON object, as content-type application/json."
    assert error["param"] is None


async def test_an_id_that_is_none_is_told_so(client: httpx.AsyncClient) -> None:
    error = (await client.get("/orders/mine")).json()["error"]
    assert error["message"] == "order_id: must be an id, as lists and answers show it"


async def test_the_unexpected_is_logged_under_its_id_and_says_nothing(client: httpx.AsyncClient) -> None:
    with capture_logs() as lines:
        answer = await client.get("/broken")
    assert answer.status_code == 500
    assert "hunter2" not in answer.text
    assert answer.json()["error"]["code"] == "internal_error"
    assert [(line["event"], line["request_id"]) for line in lines] == [
        ("unexpected_error", answer.headers["x-request-id"])
    ]


async def test_an_absent_database_is_503(client: httpx.AsyncClient) -> None:
    answer = await client.get("/away")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "hunter2" not in answer.text
