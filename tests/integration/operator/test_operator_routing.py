"""Aliases, fallbacks, maintenance, organizations' routing, markups and discovery through the operator's API."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from billing.store.catalog import DeploymentPlan, add_deployment
from gateway.embedded.llamacpp import LlamaCpp
from models.catalog import Catalog, OrganizationRouting, PricedAs, Window
from tests.integration.operator.world import World, refusal
from tests.integration.test_up_discovery import listing, serving
from tests.rooms import MovableClock

pytestmark = pytest.mark.anyio


def catalog(world: World) -> Catalog:
    return world.parts.catalog.current


# Aliases -------------------------------------------------------------------------------------------------------------


async def two_versions(world: World) -> dict[str, Any]:
    """The models `tiny`, which has a price, and `small`; an alias of the first."""
    await world.model()
    await world.model("small")
    assert (await world.price()).status_code == 200
    assert (await world.price(meter="output", price_per_million="0.60")).status_code == 200
    body = {"id": "chat", "targets": [{"model": "tiny"}, {"model": "small", "weight": 0}], "prices_of": "tiny"}
    return await world.made("/aliases", body)


async def test_an_alias_moves_and_goes_back_in_one_step(world: World, clock: MovableClock) -> None:
    alias = await two_versions(world)
    assert alias["targets"] == [{"model": "tiny", "weight": 1}, {"model": "small", "weight": 0}]
    rates = catalog(world).rates("default", "USD", "chat", clock.now())
    assert rates is not None
    assert (rates.input, rates.output) == (150_000, 600_000)
    assert [each.model for each in catalog(world).models["chat"].targets] == ["tiny", "small"]
    canary = [{"model": "tiny", "weight": 90}, {"model": "small", "weight": 10}]
    moved = await world.made("/aliases/chat", {"targets": canary})
    assert (moved["targets"], moved["previous"]) == (canary, alias["targets"])
    assert [each.weight for each in catalog(world).models["chat"].targets] == [90, 10]
    all_of_them = await world.made("/aliases/chat", {"targets": [{"model": "small", "weight": 1}]})
    assert all_of_them["previous"] == canary
    back = await world.made("/aliases/chat", {"back": True})
    assert (back["targets"], back["previous"]) == (canary, all_of_them["targets"])
    assert await world.shown("/aliases/chat") == back
    assert (await world.shown("/aliases"))["data"] == [back]
    assert {each["id"] for each in (await world.shown("/models"))["data"]} == {"tiny", "small"}
    disabled = await world.made("/aliases/chat", {"disabled": True})
    assert disabled["disabled_at"] is not None
    assert "chat" not in catalog(world).models


async def test_a_repeated_move_has_one_effect(world: World) -> None:
    await two_versions(world)
    body = {"targets": [{"model": "small", "weight": 1}]}
    answers = [await world.made("/aliases/chat", body, idempotency_key="move") for _ in range(2)]
    assert answers[0] == answers[1]
    assert (await world.made("/aliases/chat", {"back": True}))["targets"][0]["model"] == "tiny"


ALIASES: dict[str, tuple[dict[str, Any], int, str]] = {
    "no such model": ({"targets": [{"model": "none"}]}, 400, "targets"),
    "an alias of an alias": ({"targets": [{"model": "chat"}]}, 400, "targets"),
    "of itself": ({"id": "tiny2", "targets": [{"model": "tiny2"}]}, 400, "targets"),
    "nobody": ({"targets": [{"model": "tiny", "weight": 0}]}, 400, "targets"),
    "one twice": ({"targets": [{"model": "tiny"}, {"model": "tiny"}]}, 400, "targets"),
    "no deployment": ({"targets": [{"model": "bare"}]}, 400, "targets"),
    "no target": ({"targets": []}, 422, "targets"),
    "below zero": ({"targets": [{"model": "tiny", "weight": -1}]}, 422, "targets.0.weight"),
    "a fraction": ({"targets": [{"model": "tiny", "weight": 0.5}]}, 422, "targets.0.weight"),
    "a path": ({"id": "../x"}, 422, "id"),
    "no prices to take": ({"prices_of": "small"}, 400, "prices_of"),
    "the name of a model": ({"id": "small"}, 409, ""),
}


async def test_what_no_alias_can_be(world: World, subtests: pytest.Subtests) -> None:
    await two_versions(world)
    await world.made("/models", {"id": "bare", "context_length": 1, "deployments": []})
    for name, (fields, status, param) in ALIASES.items():
        with subtests.test(name):
            response = await world.post("/aliases", {"id": "x", "targets": [{"model": "tiny"}]} | fields)
            assert refusal(response)[:2] == (status, param)
            assert await world.count("alias") == 1
    assert refusal(await world.post("/aliases/none", {"back": True}))[0] == 404
    assert refusal(await world.get("/aliases/tiny"))[0] == 404, "a model is no alias"
    assert refusal(await world.post("/aliases/chat", {"back": True}))[:2] == (400, "back")
    assert refusal(await world.post("/models/chat", {"context_length": 1}))[:2] == (400, "model_id")
    both = {"back": True, "targets": [{"model": "tiny"}]}
    assert refusal(await world.post("/aliases/chat", both))[:2] == (400, "back")


async def test_an_alias_outlives_a_disabled_target(world: World) -> None:
    await two_versions(world)
    both = [{"model": "tiny", "weight": 1}, {"model": "small", "weight": 1}]
    await world.made("/aliases/chat", {"targets": both})
    await world.made("/models/tiny", {"disabled": True})
    assert [each.model for each in catalog(world).models["chat"].targets] == ["small"]
    await world.made("/models/small", {"disabled": True})
    assert "chat" not in catalog(world).models
    assert refusal(await world.post("/aliases/chat", {"targets": both}))[:2] == (400, "targets")


async def test_an_alias_has_also_the_prices_that_are_still_to_come(world: World, clock: MovableClock) -> None:
    await world.model()
    for days, price in ((0, "0.15"), (30, "0.20")):
        start = clock.now() + timedelta(days=days)
        assert (await world.price(price_per_million=price, effective_from=start.isoformat())).status_code == 200
    await world.made("/aliases", {"id": "chat", "targets": [{"model": "tiny"}], "prices_of": "tiny"})
    for days, expected in ((0, 150_000), (31, 200_000)):
        rates = catalog(world).rates("default", "USD", "chat", clock.now() + timedelta(days=days))
        assert rates is not None, "an alias that has a price today has one in a month"
        assert rates.input == expected


async def test_a_move_to_where_an_alias_is_keeps_the_way_back(world: World) -> None:
    alias = await two_versions(world)
    everybody = {"targets": [{"model": "small", "weight": 1}]}
    moved = await world.made("/aliases/chat", everybody)
    assert await world.made("/aliases/chat", everybody) == moved
    assert (await world.made("/aliases/chat", {"back": True}))["targets"] == alias["targets"]


async def test_nobody_moves_to_a_model_whose_backends_are_disabled(world: World) -> None:
    await two_versions(world)
    await world.made("/backends/on-small", {"disabled": True})
    response = await world.post("/aliases/chat", {"targets": [{"model": "small", "weight": 1}]})
    assert refusal(response)[:2] == (400, "targets")
    await world.made("/aliases/chat", {"targets": [{"model": "tiny"}, {"model": "small", "weight": 0}]})


# Fallbacks -----------------------------------------------------------------------------------------------------------


async def test_a_model_gets_a_fallback_and_loses_it(world: World) -> None:
    await world.model()
    await world.model("small")
    rule = {"model": "small", "priced_as": "fallback", "when_full": True}
    assert (await world.made("/models/tiny", {"fallback": rule}))["fallback"] == rule
    known = catalog(world).models["tiny"].fallback
    assert known is not None
    assert (known.model, known.priced_as, known.when_full) == ("small", PricedAs.FALLBACK, True)
    assert (await world.made("/models/tiny", {"context_length": 8}))["fallback"] == rule, "what is left out stays"
    await world.made("/models/small", {"disabled": True})
    assert catalog(world).models["tiny"].fallback is None
    assert (await world.made("/models/tiny", {"fallback": None}))["fallback"] is None


async def test_what_no_fallback_can_be(world: World) -> None:
    await two_versions(world)
    for name in ("none", "tiny", "chat"):
        response = await world.post("/models/tiny", {"fallback": {"model": name}})
        assert refusal(response)[:2] == (400, "fallback"), name
    response = await world.post("/models/tiny", {"fallback": {"model": "small", "priced_as": "free"}})
    assert response.status_code == 422


# Maintenance ---------------------------------------------------------------------------------------------------------


async def test_maintenance_is_planned_and_cancelled(world: World, clock: MovableClock) -> None:
    await world.model()
    start = clock.now() + timedelta(hours=1)
    times = {"starts_at": start.isoformat(), "ends_at": (start + timedelta(hours=2)).isoformat()}
    planned = await world.made("/maintenance", {"backend": "on-tiny", "note": "new driver", **times})
    assert (planned["state"], planned["backend"], planned["model"]) == ("planned", "on-tiny", None)
    one = await world.made("/maintenance", {"backend": "on-tiny", "model": "tiny", **times})
    window = Window(start, start + timedelta(hours=2))
    assert catalog(world).models["tiny"].deployments[0].windows == (window, window)
    clock.move(timedelta(hours=2))
    listed = (await world.shown("/maintenance"))["data"]
    assert [(each["id"], each["state"]) for each in listed] == [(one["id"], "running"), (planned["id"], "running")]
    cancelled = await world.made(f"/maintenance/{planned['id']}/cancel")
    assert cancelled["state"] == "cancelled"
    again = await world.made(f"/maintenance/{planned['id']}/cancel")
    assert again["cancelled_at"] == cancelled["cancelled_at"]
    assert catalog(world).models["tiny"].deployments[0].windows == (window,)


async def test_what_no_maintenance_can_be(world: World, clock: MovableClock) -> None:
    await world.model()
    await world.made("/models", {"id": "bare", "context_length": 1, "deployments": []})
    now = clock.now()
    good = {"backend": "on-tiny", "starts_at": now.isoformat(), "ends_at": (now + timedelta(hours=1)).isoformat()}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"backend": "none"}, "backend"),
        ({"model": "bare"}, "model"),
        ({"model": "none"}, "model"),
        ({"ends_at": good["starts_at"]}, "ends_at"),
        ({"ends_at": (now + timedelta(days=32)).isoformat()}, "ends_at"),
        ({"starts_at": "2020-01-01T00:00:00Z", "ends_at": "2020-01-01T01:00:00Z"}, "ends_at"),
    ]
    for fields, param in wrong:
        assert refusal(await world.post("/maintenance", good | fields))[:2] == (400, param)
    assert (await world.post("/maintenance", good | {"ends_at": "2030-01-01T00:00:00"})).status_code == 422
    assert refusal(await world.post(f"/maintenance/{uuid4()}/cancel"))[0] == 404
    assert await world.count("maintenance") == 0


async def test_maintenance_that_is_over_has_taken_place(world: World, clock: MovableClock) -> None:
    await world.model()
    start = clock.now()
    times = {"starts_at": start.isoformat(), "ends_at": (start + timedelta(hours=1)).isoformat()}
    planned = await world.made("/maintenance", {"backend": "on-tiny", **times})
    clock.move(timedelta(hours=2))
    assert refusal(await world.post(f"/maintenance/{planned['id']}/cancel"))[0] == 409
    [listed] = (await world.shown("/maintenance"))["data"]
    assert (listed["state"], listed["cancelled_at"]) == ("over", None)


async def test_moments_at_the_ends_of_time_are_refused(world: World) -> None:
    await world.model()
    for moment in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        body = {"backend": "on-tiny", "starts_at": moment, "ends_at": "2030-01-01T00:00:00Z"}
        assert refusal(await world.post("/maintenance", body))[:2] == (422, "starts_at")
        assert refusal(await world.get("/prices", at=moment))[:2] == (422, "at")


# Organizations -------------------------------------------------------------------------------------------------------


async def test_an_organization_is_bound_to_regions_and_capacity(world: World) -> None:
    organization = await world.organization()
    path = f"/organizations/{organization['id']}/routing"
    free = {"regions": None, "pool": None, "uses_shared": True}
    assert (await world.shown(path)).items() >= free.items()
    bound = {"regions": ["eu", "ch"], "pool": "acme", "uses_shared": False}
    assert (await world.made(path, bound))["regions"] == ["ch", "eu"]
    rule = OrganizationRouting(frozenset({"eu", "ch"}), "acme", False)
    assert catalog(world).routing == {UUID(organization["id"]): rule}
    assert (await world.made(path, {})).items() >= free.items()
    assert refusal(await world.post(path, {"uses_shared": False}))[:2] == (400, "pool")
    assert (await world.post(path, {"regions": []})).status_code == 422
    assert refusal(await world.get(f"/organizations/{uuid4()}/routing"))[0] == 404
    assert refusal(await world.post(f"/organizations/{uuid4()}/routing", bound))[0] == 404


# Markups -------------------------------------------------------------------------------------------------------------


async def test_prices_are_published_as_stated_costs_and_a_markup(world: World) -> None:
    await world.model()
    costs = {"input": "0.10", "output": "0.40", "cached_input": "0.000003"}
    published = await world.made("/prices/markup", {"model": "tiny", "markup_ppm": 250_000, "costs": costs})
    found = {each["meter"]: each["price_per_million"] for each in published["data"]}
    assert found == {"input": "0.125000", "output": "0.500000", "cached_input": "0.000004"}, "3.75 is rounded, once"
    assert {each["id"] for each in (await world.shown("/prices", model="tiny"))["data"]} == {
        each["id"] for each in published["data"]
    }


async def test_a_markup_makes_no_price_that_could_not_be_published(world: World) -> None:
    await world.model()
    for cost in ("9" * 10, "9" * 12):
        body = {"model": "tiny", "markup_ppm": 100_000_000, "costs": {"input": cost}}
        status, _, message = refusal(await world.post("/prices/markup", body))
        assert (status, message.startswith("This price is larger")) == (400, True), message
    assert await world.count("price_version") == 0


async def test_prices_are_published_as_known_costs_and_a_markup(world: World, clock: MovableClock) -> None:
    await world.model()
    body = {"model": "tiny", "markup_ppm": 100_000}
    assert refusal(await world.post("/prices/markup", body))[:2] == (400, "costs")
    today = clock.now().date().isoformat()
    for kind, cost in (("input_token", "0.20"), ("output_token", "0.80")):
        stated = {"model": "tiny", "kind": kind, "price": cost, "effective_from": today}
        response = await world.post("/model_costs", stated)
        assert response.status_code == 200, response.text
    published = await world.made("/prices/markup", body)
    assert {each["meter"]: each["price_per_million"] for each in published["data"]} == {
        "input": "0.220000",
        "output": "0.880000",
    }
    assert refusal(await world.post("/prices/markup", body | {"currency": "EUR"}))[:2] == (400, "costs")
    assert (await world.post("/prices/markup", body | {"markup_ppm": -1})).status_code == 422


# Discovery -----------------------------------------------------------------------------------------------------------


async def test_a_url_alone_makes_a_backend_its_models_and_their_deployments(world: World, llamacpp: LlamaCpp) -> None:
    backend = await world.made("/backends", {"url": llamacpp.url, "create_models": True})
    assert (backend["kind"], backend["name"]) == ("llamacpp", f"llamacpp-127.0.0.1-{llamacpp.port}")
    model = await world.shown("/models/tiny")
    assert (model["context_length"], model["deployments"][0]["backend"]) == (4096, backend["name"])
    found = await world.shown(f"/backends/{backend['name']}/discovery")
    assert (found["kind"], found["has_counters"]) == ("llamacpp", True)
    assert [each["id"] for each in found["models"]] == ["tiny"]
    assert await world.count("price_version") == 0


async def test_models_are_taken_once_and_only_those_that_are_wanted(world: World) -> None:
    await world.model("known")
    entries = [{"id": name, "owned_by": "vllm", "max_model_len": 32768} for name in ("known", "new", "../up", "other")]
    entries[1]["parent"] = "known"
    with serving({"/v1/models": {"data": entries}}) as root:
        await world.made("/backends", {"name": "gpu", "url": root})
        taken = await world.made("/backends/gpu/models", {"models": ["known", "new"]})
        assert {key: taken[key] for key in ("created", "deployed", "known", "skipped")} == {
            "created": ["new"],
            "deployed": ["known"],
            "known": [],
            "skipped": [],
        }
        rest = await world.made("/backends/gpu/models", {})
        assert (rest["created"], rest["known"], rest["skipped"]) == (["other"], ["known", "new"], ["../up"])
        assert refusal(await world.post("/backends/gpu/models", {"models": ["absent"]}))[:2] == (400, "models")
        adapter = (await world.shown("/backends/gpu/discovery"))["models"][1]
        assert (adapter["id"], adapter["parent"], adapter["context_length"]) == ("new", "known", 32768)
    assert [each["backend"] for each in (await world.shown("/models/known"))["deployments"]] == ["on-known", "gpu"]


async def test_a_provider_is_asked_under_its_own_path_and_with_our_credential(world: World) -> None:
    entry = {"id": "gpt-oss", "context_length": 131072, "architecture": {"input_modalities": ["text", "image"]}}
    with serving({"/api/v1/models": {"data": [entry]}}) as root:
        body = {"url": root, "path_prefix": "/api/v1", "credential": "s3cr3t", "region": "us", "create_models": True}
        backend = await world.made("/backends", body | {"name": "provider"})
    assert (backend["kind"], backend["path_prefix"], backend["region"]) == ("openai", "/api/v1", "us")
    model = await world.shown("/models/gpt-oss")
    assert (model["context_length"], model["capabilities"]) == (131072, ["vision"])
    for prefix in ("v1", "/a/../b", "/a b", "/a?x", "/%2e%2e", "/"):
        assert (await world.post("/backends", body | {"name": "x", "path_prefix": prefix})).status_code == 422, prefix


async def test_a_deployment_is_taken_once_by_two_who_take_it_together(world: World) -> None:
    await world.model()
    backend = await world.made("/backends", {"name": "gpu", "kind": "vllm", "url": "http://127.0.0.1:9"})
    plan, engine, now = DeploymentPlan(UUID(backend["id"]), "tiny"), world.parts.engine, world.parts.clock.now()

    async def take() -> bool:
        async with engine.begin() as connection:
            return await add_deployment(connection, "tiny", plan, now)

    async with engine.begin() as first:
        assert await add_deployment(first, "tiny", plan, now)
        second = asyncio.create_task(take())
        await asyncio.wait({second}, timeout=0.3)
    assert await second is False
    assert [each["backend"] for each in (await world.shown("/models/tiny"))["deployments"]] == ["on-tiny", "gpu"]


@pytest.mark.parametrize("answer", [None, [], {"data": None}, {"data": "x"}])
async def test_what_is_no_model_server_is_no_backend(world: World, answer: Any) -> None:
    with serving({"/v1/models": answer}) as root:
        assert refusal(await world.post("/backends", {"url": root}))[:2] == (400, "kind")
    assert await world.count("backend") == 0


async def test_an_unknown_listing_is_another_openai_server(world: World) -> None:
    with serving(listing(owned_by="me")) as root:
        assert (await world.made("/backends", {"url": root, "name": "b"}))["kind"] == "openai"
