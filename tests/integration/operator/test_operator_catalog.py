"""Backends, models and prices through the operator's API, and the catalog that gateways make of them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import insert

from billing.store.engine import make_engine
from gateway.catalog import CatalogCache
from gateway.embedded.llamacpp import LlamaCpp
from models.ids import uuid7
from models.tables import charge
from tests.conftest import Database
from tests.integration.operator.world import World, refusal
from tests.rooms import MovableClock

pytestmark = pytest.mark.anyio


# Backends ------------------------------------------------------------------------------------------------------------


async def test_a_backend_is_created_shown_and_changed(world: World) -> None:
    body = {
        "name": "gpu-1",
        "kind": "vllm",
        "url": "http://10.0.0.7:8000/v1/",
        "credential": "hush",
        "max_in_flight": 8,
    }
    backend = await world.made("/backends", body)
    assert (backend["url"], backend["has_credential"], backend["max_in_flight"]) == ("http://10.0.0.7:8000", True, 8)
    assert "hush" not in str(backend)
    assert await world.shown("/backends/gpu-1") == await world.shown(f"/backends/{backend['id']}") == backend
    changed = await world.made("/backends/gpu-1", {"credential": None, "disabled": True, "kind": "sglang"})
    assert (changed["has_credential"], changed["kind"]) == (False, "sglang")
    assert changed["disabled_at"] is not None
    assert (await world.made("/backends/gpu-1", {"disabled": False}))["disabled_at"] is None
    assert (await world.shown("/backends"))["data"][0]["name"] == "gpu-1"
    assert refusal(await world.post("/backends", body))[0] == 409
    assert refusal(await world.post("/backends/none", {"disabled": True}))[0] == 404


URLS: dict[str, str] = {
    "another scheme": "ftp://host",
    "a file": "file:///etc/passwd",
    "no host": "http://",
    "no scheme": "//host",
    "a password": "http://user:secret@host",
    "a user": "http://good@evil",
    "a path": "http://host/v1/../admin",
    "another path": "http://host/x",
    "a query": "http://host?x=1",
    "a fragment": "http://host/#x",
    "no port": "http://host:99999",
    "a port of letters": "http://host:port",
    "a blank": "http://ho st",
    "a line break": "http://host\r\nX: y",
    "a backslash": "http://host\\@evil",
    "beyond ASCII": "http://höst",
    "the metadata address": "http://169.254.169.254",
    "a link-local address": "http://[fe80::1]",
    "no address": "http://0.0.0.0:80",
    "half an address": "http://[::1",
    "an empty part of a name": "http://a..b",
    "a part of a name that is too long": f"http://{'a' * 64}.example",
    "a name in Punycode that is none": "http://xn--a",
    "the metadata address as one number": "http://2852039166",
    "the metadata address in hexadecimal": "http://0xa9.0xfe.0xa9.0xfe",
}


async def test_what_no_backend_url_can_be(world: World, subtests: pytest.Subtests) -> None:
    for name, url in URLS.items():
        with subtests.test(name):
            response = await world.post("/backends", {"name": "b", "kind": "vllm", "url": url})
            assert response.status_code == 422, response.text
            assert "secret" not in response.text
            assert await world.count("backend") == 0


async def test_a_credential_cannot_forge_a_header(world: World) -> None:
    body = {"name": "b", "kind": "vllm", "url": "http://127.0.0.1:9", "credential": "a\r\nX: y"}
    response = await world.post("/backends", body)
    assert response.status_code == 422
    assert "X: y" not in response.text


async def test_a_server_is_asked_what_it_is(world: World, llamacpp: LlamaCpp) -> None:
    backend = await world.made("/backends", {"name": "local", "url": llamacpp.url})
    assert backend["kind"] == "llamacpp"


async def test_a_server_that_does_not_answer_needs_a_kind(world: World) -> None:
    assert refusal(await world.post("/backends", {"name": "b", "url": "http://127.0.0.1:9"}))[:2] == (400, "kind")


# Models --------------------------------------------------------------------------------------------------------------


async def test_a_model_is_created_shown_and_changed(world: World) -> None:
    model = await world.model("acme/tiny-1")
    path = "/models/acme/tiny-1"
    assert await world.shown(path) == model
    assert (
        model.items()
        >= {
            "id": "acme/tiny-1",
            "deployments": [
                {"backend": "on-acme-tiny-1", "backend_model": "served", "weight": 1, "priority": 0, "pool": None}
            ],
            "context_length": 4096,
            "tokenizer": None,
            "billed_count": "backend",
        }.items()
    )
    await world.made("/backends", {"name": "other", "kind": "sglang", "url": "http://127.0.0.1:9"})
    deployments = [{"backend": "other", "backend_model": "x", "weight": 3, "priority": 2, "pool": "acme"}]
    changed = await world.made(path, {"deployments": deployments, "billed_count": "lower", "context_length": 8192})
    assert changed == model | {"deployments": deployments, "billed_count": "lower", "context_length": 8192}
    disabled = await world.made(path, {"disabled": True})
    assert disabled["disabled_at"] is not None
    assert refusal(await world.post("/models", {"id": "acme/tiny-1", "context_length": 1, "deployments": []}))[0] == 409
    assert refusal(await world.get("/models/none"))[0] == 404
    assert refusal(await world.post("/models/none", {"disabled": True}))[0] == 404


async def test_a_model_may_be_named_by_a_file(world: World) -> None:
    body = {"id": "/srv/models/tiny-Q4_K_M.gguf", "context_length": 4096, "deployments": []}
    model = await world.made("/models", body)
    assert await world.shown(f"/models/{body['id']}") == model


async def test_a_deployment_keeps_its_id_when_it_comes_back(world: World) -> None:
    model = await world.model()
    before = world.parts.catalog.current.models["tiny"].deployments[0].id
    await world.made("/models/tiny", {"deployments": []})
    assert not world.parts.catalog.current.models["tiny"].deployments
    await world.made("/models/tiny", {"deployments": model["deployments"]})
    assert world.parts.catalog.current.models["tiny"].deployments[0].id == before


MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "a path as id": ({"id": "../../x"}, 422),
    "a way up as id": ({"id": "a/../x"}, 422),
    "a line break": ({"id": "a\r\nb"}, 422),
    "a long id": ({"id": "x" * 201}, 422),
    "no context": ({"context_length": 0}, 422),
    "an unknown backend": ({"deployments": [{"backend": "none", "backend_model": "m"}]}, 400),
    "an unknown id": ({"deployments": [{"backend": str(uuid4()), "backend_model": "m"}]}, 400),
    "an unknown count": ({"billed_count": "highest"}, 422),
}


async def test_what_no_model_can_be(world: World, subtests: pytest.Subtests) -> None:
    for name, (fields, status) in MODELS.items():
        with subtests.test(name):
            body = {"id": "m", "context_length": 4096, "deployments": []} | fields
            assert (await world.post("/models", body)).status_code == status
            assert await world.count("model") == 0


async def test_one_deployment_twice_is_refused(world: World) -> None:
    model = await world.model()
    response = await world.post("/models/tiny", {"deployments": model["deployments"] * 2})
    assert refusal(response)[:2] == (400, "deployments")


# Prices --------------------------------------------------------------------------------------------------------------


async def test_a_price_is_published_and_succeeded(world: World, clock: MovableClock) -> None:
    await world.model()
    first = (await world.price()).json()
    assert (
        first.items()
        >= {
            "book": "default",
            "model": "tiny",
            "meter": "input",
            "scheme": "unit",
            "price_per_million": "0.150000",
            "tiers": None,
            "currency": "USD",
            "effective_to": None,
        }.items()
    )
    start = (clock.now() + timedelta(days=1)).isoformat()
    second = (await world.price(price_per_million="0.2", effective_from=start)).json()
    listed = (await world.shown("/prices", model="tiny", meter="input"))["data"]
    assert listed == [first | {"effective_to": second["effective_from"]}, second]
    assert (await world.shown("/prices", at=clock.now().isoformat()))["data"] == [listed[0]]
    assert (await world.shown("/prices", book="other"))["data"] == []


async def test_prices_of_one_time_do_not_overlap(world: World, clock: MovableClock) -> None:
    await world.model()
    now = clock.now()
    days = [(now + timedelta(days=count)).isoformat() for count in (1, 2, 9)]
    bounds = {"effective_from": days[0], "effective_to": days[2]}
    assert (await world.price(**bounds)).status_code == 200
    for response in (await world.price(), await world.price(effective_from=days[1]), await world.price(**bounds)):
        status, _, message = refusal(response)
        assert status == 409
        assert "already has a price" in message
    before_and_after = [{"effective_to": bounds["effective_from"]}, {"effective_from": bounds["effective_to"]}]
    for each in before_and_after:
        assert (await world.price(**each)).status_code == 200
    assert await world.count("price_version") == 3


async def test_a_price_that_calls_were_charged_by_stays(world: World, clock: MovableClock, postgres: Database) -> None:
    await world.model()
    earlier = clock.now() - timedelta(hours=2)
    price = (await world.price(effective_from=earlier.isoformat())).json()
    hour_ago = clock.now() - timedelta(hours=1)
    await add_charge(postgres, UUID(price["id"]), hour_ago)
    since = (hour_ago - timedelta(minutes=1)).isoformat()
    status, _, message = refusal(await world.price(effective_from=since))
    assert status == 409
    assert "already charged" in message
    assert (await world.price(effective_from=(hour_ago + timedelta(minutes=1)).isoformat())).status_code == 200


PRICES: dict[str, tuple[dict[str, Any], int]] = {
    "below zero": ({"price_per_million": "-1"}, 400),
    "too fine": ({"price_per_million": "0.0000001"}, 400),
    "a float's text": ({"price_per_million": "1e3"}, 400),
    "a float": ({"price_per_million": 0.15}, 422),
    "too large": ({"price_per_million": "9" * 20}, 400),
    "an unknown model": ({"model": "none"}, 400),
    "an unknown meter": ({"meter": "smiles"}, 422),
    "an unknown currency": ({"currency": "GBP"}, 422),
    "tiers without a tier": ({"scheme": "graduated"}, 400),
    "a scheme that is not offered": ({"scheme": "auction"}, 422),
    "a time without a zone": ({"effective_from": "2026-01-01T00:00:00"}, 422),
    "over before it begins": ({"effective_to": "2020-01-01T00:00:00Z"}, 400),
}


async def test_what_no_price_can_be(world: World, subtests: pytest.Subtests) -> None:
    await world.model()
    for name, (fields, status) in PRICES.items():
        with subtests.test(name):
            response = await world.price(**fields)
            assert response.status_code == status, response.text
            assert await world.count("price_version") == 0


async def test_a_price_is_never_edited(world: World) -> None:
    await world.model()
    price = (await world.price()).json()
    headers = world.headers({})
    for method in ("PATCH", "PUT", "POST", "DELETE"):
        path = f"/operator/v1/prices/{price['id']}"
        response = await world.client.request(method, path, json={"price_per_million": "0"}, headers=headers)
        assert response.status_code == 404


# What a gateway makes of it ------------------------------------------------------------------------------------------


async def test_a_change_is_in_this_process_at_once(world: World, clock: MovableClock) -> None:
    assert not world.parts.catalog.loaded
    await world.model()
    await world.price()
    await world.price(meter="output", price_per_million="0.60")
    catalog = world.parts.catalog.current
    rates = catalog.rates("default", "USD", "tiny", clock.now())
    assert rates is not None
    assert (rates.input, rates.output, rates.cached_input) == (150_000, 600_000, 150_000)
    deployment = catalog.models["tiny"].deployments[0]
    assert (deployment.backend.name, deployment.backend_model) == ("on-tiny", "served")
    await world.made("/backends/on-tiny", {"disabled": True})
    assert not world.parts.catalog.current.models["tiny"].deployments
    await world.made("/models/tiny", {"disabled": True})
    assert world.parts.catalog.current.models == {}


async def test_another_process_sees_it_at_its_next_look(world: World, postgres: Database) -> None:
    engine = make_engine(postgres.app_url)
    moment = [0.0]
    cache = CatalogCache(engine, 1, monotonic=lambda: moment[0])
    try:
        assert await cache.refresh()
        assert set(cache.epochs) == set(range(16))
        before = cache.current
        await world.model()
        assert await cache.refresh()
        assert cache.current is before, "looked less than a second ago"
        moment[0] += 1
        assert await cache.refresh()
        assert "tiny" in cache.current.models
        same = cache.current
        assert await cache.refresh(force=True)
        assert cache.current is same, "nothing changed, so nothing is read again"
    finally:
        await engine.dispose()


async def test_the_last_good_catalog_stays_while_postgres_is_away(postgres: Database, world: World) -> None:
    await world.model()
    cache = world.parts.catalog
    away = CatalogCache(make_engine("postgresql://nobody@127.0.0.1:1/none"), 1)
    assert not await away.refresh(force=True)
    assert not away.loaded
    kept = cache.current
    cache._engine = away._engine
    assert not await cache.refresh(force=True)
    assert cache.current is kept


async def add_charge(postgres: Database, price_id: UUID, moment: datetime) -> None:
    """A booked charge by a price, without the rest of the book."""
    engine = make_engine(postgres.owner_url)
    texts = dict.fromkeys(("endpoint", "model", "deployment"), "x")
    tokens = ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
    numbers = dict.fromkeys((*tokens, "amount", "hold"), 0)
    ids = {name: uuid4() for name in ("organization_id", "project_id", "api_key_id")}
    fixed = {"currency": "USD", "streamed": False, "ending": "finished", "usage_source": "backend", "posting_id": 1}
    row = {"call_id": uuid7(moment), "created_at": moment, "ended_at": moment, "funding": []}
    try:
        async with engine.begin() as connection:
            values = texts | numbers | ids | fixed | row | {"price_version_ids": [price_id]}
            await connection.execute(insert(charge).values(values))
    finally:
        await engine.dispose()
