"""Fallbacks, maintenance, health, organizations, adapters and providers, from the call to the receipt."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.embedded.ports import free_port
from models.money import parse_amount
from tests.integration.routing.conftest import Town
from tests.scripted import (
    DONE,
    PLAIN,
    Asked,
    Script,
    Scripted,
    answer,
    end,
    open_stream,
    said,
    scripted_backend,
    send,
    stream,
    usage,
)
from tests.stage import ALWAYS, Tenant, eventually

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

FIVE_HUNDRED = answer(503, b"{}")


def well(script: Script = PLAIN) -> Script:
    """A backend that is well by its health checks, and answers calls with this script."""
    healthy = answer(200, b"{}")

    async def either(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await (script if asked.body is not None else healthy)(asked, writer)

    return either


def calls(backend: Scripted) -> list[Asked]:
    """What a backend was asked beside its health checks."""
    return [each for each in backend.asked if each.body is not None]


# Fallbacks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def tenant(town: Town) -> Tenant:
    return await town.stage.tenant()


CHEAP = {"input": "0.01", "output": "0.02"}
DEAR = {"input": "10", "output": "20"}


@pytest.mark.parametrize("prices", [CHEAP, DEAR], ids=["a cheaper one", "a dearer one"])
@pytest.mark.parametrize("priced_as", ["requested", "fallback"])
@pytest.mark.parametrize("fails", ["before the hold", "after the hold"])
async def test_another_model_serves_where_none_of_the_own_deployments_can(
    town: Town, tenant: Tenant, prices: dict[str, str], priced_as: str, fails: str
) -> None:
    async with scripted_backend(well(FIVE_HUNDRED)) as broken, scripted_backend(well()) as spare:
        fallback = await town.model({"backend": await town.backend(spare)}, prices=prices)
        rule = {"model": fallback, "priced_as": priced_as}
        own = [{"backend": await town.backend(broken)}] if fails == "after the hold" else []
        model = await town.model(*own, fallback=rule)
        reply = await town.chat(tenant, model)
        assert reply.status_code == 200, reply.text
        assert reply.json()["model"] == model
        receipt = await town.receipt(tenant, reply)
        assert receipt["flags"] == ["fallback"]
        charged = fallback if priced_as == "fallback" else model
        assert receipt["model"] == charged
        assert (
            receipt["deployment"]
            == (await town.stage.operate("GET", f"/models/{fallback}"))["deployments"][0]["backend"]
        )
        [asked] = calls(spare)
        assert asked.body["model"] == f"{fallback}-as-served"
        rates = {"requested": (150, 600), "fallback": tuple(int(float(each) * 1_000) for each in prices.values())}
        expected = 5 * rates[priced_as][0] + 2 * rates[priced_as][1]
        assert parse_amount(receipt["amount"]["amount"], "USD") == expected
        assert parse_amount(receipt["hold"]["amount"], "USD") >= expected
        assert receipt["price_version_ids"] == [
            each["id"] for each in (await town.stage.operate("GET", f"/prices?model={charged}"))["data"]
        ]
    await town.stage.verified(tenant)


async def test_the_own_deployment_serves_as_long_as_it_can(town: Town, tenant: Tenant) -> None:
    async with scripted_backend(well()) as own, scripted_backend(well()) as spare:
        fallback = await town.model({"backend": await town.backend(spare)})
        model = await town.model({"backend": await town.backend(own)}, fallback={"model": fallback})
        reply = await town.chat(tenant, model)
        assert (await town.receipt(tenant, reply))["flags"] == []
        assert (len(calls(own)), len(calls(spare))) == (1, 0)


async def test_the_last_attempt_is_the_fallbacks(town: Town, tenant: Tenant) -> None:
    async with scripted_backend(well(FIVE_HUNDRED)) as broken, scripted_backend(well()) as spare:
        fallback = await town.model({"backend": await town.backend(spare)})
        own = [{"backend": await town.backend(broken)} for _ in range(4)]
        model = await town.model(*own, fallback={"model": fallback})
        assert (await town.chat(tenant, model)).status_code == 200
        assert (len(calls(broken)), len(calls(spare))) == (2, 1)


@pytest.mark.parametrize("when_full", [True, False])
async def test_a_full_model_is_waited_for_unless_the_rule_says_otherwise(
    town: Town, tenant: Tenant, when_full: bool
) -> None:
    gate = asyncio.Event()

    async def holds(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await open_stream(writer)
        await gate.wait()
        await send(writer, said("x", finish="stop"), usage(5, 2), DONE)
        await end(writer)

    async with scripted_backend(well(holds)) as own, scripted_backend(well()) as spare:
        fallback = await town.model({"backend": await town.backend(spare)})
        rule = {"model": fallback, "when_full": when_full}
        model = await town.model({"backend": await town.backend(own, max_in_flight=1)}, fallback=rule)
        first = asyncio.create_task(town.chat(tenant, model))

        async def is_there() -> bool:
            return len(calls(own)) == 1

        await eventually(is_there)
        second = await town.chat(tenant, model)
        assert second.status_code == (200 if when_full else 429)
        assert len(calls(spare)) == int(when_full)
        gate.set()
        assert (await first).status_code == 200


async def test_a_key_is_not_served_by_a_model_that_it_may_not_call(town: Town) -> None:
    async with scripted_backend(well()) as spare:
        fallback = await town.model({"backend": await town.backend(spare)})
        model = await town.model(fallback={"model": fallback})
        bound = await town.stage.tenant(models=[model])
        assert (await town.chat(bound, model)).status_code == 503
        assert calls(spare) == []
        both = await town.stage.tenant(models=[model, fallback])
        assert (await town.chat(both, model)).status_code == 200


# Maintenance and health ----------------------------------------------------------------------------------------------


async def test_maintenance_drains_and_ends_by_itself(town: Town, tenant: Tenant) -> None:
    gate = asyncio.Event()

    async def holds(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await open_stream(writer)
        await send(writer, said("x"))
        await gate.wait()
        await send(writer, said("y", finish="stop"), usage(5, 2), DONE)
        await end(writer)

    async with scripted_backend(well(holds)) as one:
        name = await town.backend(one)
        model = await town.model({"backend": name})
        running = asyncio.create_task(town.chat(tenant, model))

        async def is_there() -> bool:
            return len(calls(one)) == 1

        await eventually(is_there)
        now = datetime.now(UTC)
        times = {"starts_at": now.isoformat(), "ends_at": (now + timedelta(seconds=3)).isoformat()}
        planned = await town.stage.operate("POST", "/maintenance", json={"backend": name, **times})
        assert (planned["state"], planned["running_calls"]) == ("running", 1)

        async def is_out() -> bool:
            return (await town.chat(tenant, model)).status_code == 503

        one.script = well()
        await eventually(is_out)
        taken = len(calls(one))
        refused = await town.chat(tenant, model)
        assert int(refused.headers["retry-after"]) <= 4
        assert len(calls(one)) == taken
        gate.set()
        assert (await running).status_code == 200, "what ran before ends well"

        async def is_back() -> bool:
            return (await town.chat(tenant, model)).status_code == 200

        await eventually(is_back)
        assert datetime.now(UTC) >= now + timedelta(seconds=3)


async def test_an_unhealthy_backend_gets_no_calls_until_it_is_well(town: Town, tenant: Tenant) -> None:
    async with scripted_backend(well()) as one, scripted_backend(well()) as two:
        first, second = await town.backend(one), await town.backend(two)
        model = await town.model({"backend": first}, {"backend": second})
        one.script = answer(500, b"{}")

        async def health(name: str) -> Any:
            return (await town.stage.operate("GET", f"/backends/{name}"))["health"]

        async def is_unwell() -> bool:
            return not (await health(first))["healthy"]

        await eventually(is_unwell)
        assert (await health(first))["reason"] == "It answers 500."
        assert (await health(second))["healthy"] is True
        known = len(calls(one))
        for number in range(10):
            assert (await town.chat(tenant, model, f"words {number}")).status_code == 200
        assert len(calls(one)) == known
        one.script = well()

        async def is_well() -> bool:
            return bool((await health(first))["healthy"])

        await eventually(is_well)


# Organizations -------------------------------------------------------------------------------------------------------


async def test_calls_stay_in_their_region_and_reserved_capacity_is_its_owners(town: Town, tenant: Tenant) -> None:
    owner, bound = await town.stage.tenant(), await town.stage.tenant()
    async with (
        scripted_backend(well()) as shared,
        scripted_backend(well()) as european,
        scripted_backend(well()) as reserved,
    ):
        model = await town.model(
            {"backend": await town.backend(shared)},
            {"backend": await town.backend(european, region="eu")},
            {"backend": await town.backend(reserved), "pool": "acme"},
        )
        rules: list[tuple[Tenant, dict[str, Any]]] = [
            (owner, {"pool": "acme"}),
            (bound, {"regions": ["eu"]}),
        ]
        for one, rule in rules:
            await town.stage.operate("POST", f"/organizations/{one.organization_id}/routing", json=rule)
        for number in range(12):
            for one in (tenant, owner, bound):
                assert (await town.chat(one, model, f"conversation {number}")).status_code == 200
        assert len(calls(reserved)) == 12, "the owner's, first of all"
        assert len(calls(shared)) + len(calls(european)) == 24
        assert len(calls(european)) >= 12
        reserved.script = european.script = answer(500, b"{}")
        before = len(calls(shared))
        assert (await town.chat(owner, model)).status_code in (200, 502)
        assert (await town.chat(bound, model)).status_code in (502, 503)
        assert len(calls(shared)) <= before + 1, "no call of the one that is bound to a region"


async def test_a_count_stays_where_the_call_would(town: Town) -> None:
    bound = await town.stage.tenant()
    rule = {"regions": ["eu"]}
    await town.stage.operate("POST", f"/organizations/{bound.organization_id}/routing", json=rule)
    says = answer(200, b'{"count": 14}')
    async with scripted_backend(well(says)) as elsewhere, scripted_backend(well(says)) as european:
        model = await town.model(
            {"backend": await town.backend(elsewhere, kind="vllm")},
            {"backend": await town.backend(european, kind="vllm", region="eu")},
        )

        async def counted() -> bool:
            body = {"model": model, "messages": [{"role": "user", "content": "a secret"}]}
            url = f"{town.stage.base_url}/v1/messages/count_tokens"
            reply = await town.stage.client.post(url, json=body, headers=bound.headers)
            return reply.status_code == 200 and reply.json() == {"input_tokens": 14, "is_estimate": False}

        await eventually(counted)
        assert calls(european)
        assert calls(elsewhere) == [], "no word of an organization that is bound to a region"


async def test_who_may_go_nowhere_is_told_so(town: Town) -> None:
    bound = await town.stage.tenant()
    await town.stage.operate("POST", f"/organizations/{bound.organization_id}/routing", json={"regions": ["mars"]})
    async with scripted_backend(well()) as one:
        model = await town.model({"backend": await town.backend(one, region="eu")})
        assert (await town.chat(bound, model)).status_code == 503
        listed = await town.stage.client.get(f"{town.stage.base_url}/v1/models", headers=bound.headers)
        assert model not in {each["id"] for each in listed.json()["data"]}
        assert calls(one) == []


async def test_counting_stays_in_its_region_and_reserved_capacity_is_its_owners(town: Town, tenant: Tenant) -> None:
    bound = await town.stage.tenant()
    await town.stage.operate("POST", f"/organizations/{bound.organization_id}/routing", json={"regions": ["eu"]})
    count = well(answer(200, b'{"count": 14, "max_model_len": 99, "tokens": [1]}'))
    async with scripted_backend(count) as reserved, scripted_backend(count) as shared, scripted_backend(count) as own:
        model = await town.model(
            {"backend": await town.backend(reserved, kind="vllm"), "pool": "acme"},
            {"backend": await town.backend(shared, kind="vllm")},
            {"backend": await town.backend(own, kind="vllm", region="eu")},
        )
        url = f"{town.stage.base_url}/v1/messages/count_tokens"
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        for one, anywhere in ((bound, 0), (tenant, 1)):
            reply = await town.stage.client.post(url, json=body, headers=one.headers)
            assert reply.json() == {"input_tokens": 14, "is_estimate": False}
            assert (len(calls(reserved)), len(calls(own)) >= 1, len(calls(shared)) <= anywhere) == (0, True, True)


# Conversations, adapters, providers ----------------------------------------------------------------------------------


async def test_each_conversation_keeps_its_deployment(town: Town, tenant: Tenant) -> None:
    async with scripted_backend(well()) as one, scripted_backend(well()) as two:
        model = await town.model({"backend": await town.backend(one)}, {"backend": await town.backend(two)})
        for _ in range(3):
            for number in range(12):
                assert (await town.chat(tenant, model, f"conversation {number}")).status_code == 200
        by_words = [sorted(each.body["messages"][0]["content"] for each in calls(backend)) for backend in (one, two)]
        assert len(by_words[0]) + len(by_words[1]) == 36
        assert set(by_words[0]).isdisjoint(by_words[1])
        assert by_words[0]
        assert by_words[1]


async def test_an_adapter_is_a_model_of_its_own_price_on_the_same_backend(town: Town, tenant: Tenant) -> None:
    async with scripted_backend(well()) as one:
        backend = await town.backend(one)
        base = await town.model({"backend": backend, "backend_model": "llama"})
        lora = await town.model({"backend": backend, "backend_model": "llama-sql-lora"}, prices=DEAR)
        for model, served, amount in ((base, "llama", 5 * 150 + 2 * 600), (lora, "llama-sql-lora", 90_000)):
            receipt = await town.receipt(tenant, await town.chat(tenant, model))
            assert calls(one)[-1].body["model"] == served
            assert (receipt["model"], parse_amount(receipt["amount"]["amount"], "USD")) == (model, amount)
            assert receipt.get("version", served) == served


async def test_a_provider_is_called_under_its_path_with_our_credential_at_a_markup(town: Town, tenant: Tenant) -> None:
    async with scripted_backend(well()) as provider:
        backend = await town.backend(provider, path_prefix="/api/v1", credential="s3cr3t")
        model = await town.model({"backend": backend}, prices={})
        markup = {"model": model, "markup_ppm": 200_000, "costs": {"input": "1", "output": "2"}}
        await town.stage.operate("POST", "/prices/markup", json=markup)
        reply = await town.chat(tenant, model)
        assert reply.status_code == 200, reply.text
        [asked] = calls(provider)
        assert (asked.path, asked.headers["authorization"]) == ("/api/v1/chat/completions", "Bearer s3cr3t")
        receipt = await town.receipt(tenant, reply)
        assert parse_amount(receipt["amount"]["amount"], "USD") == 5 * 1_200 + 2 * 2_400


async def test_a_long_prompt_at_a_provider_that_tells_no_context_is_charged_in_full(town: Town, tenant: Tenant) -> None:
    long = stream(said("hello", finish="stop"), usage(20_000, 2), DONE)
    listing = answer(200, b'{"data": [{"id": "untold"}]}')

    async def provider(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await (long if asked.body is not None else listing)(asked, writer)

    async with scripted_backend(provider) as one:
        body = {"name": "untold", "url": one.url, "kind": "openai", "create_models": True}
        await town.stage.operate("POST", "/backends", json=body)
        await town.stage.price("untold")
        receipt = await town.receipt(tenant, await town.chat(tenant, "untold", "many words " * 10_000))
        assert (receipt["input_tokens"], receipt["flags"]) == (20_000, [])
        assert parse_amount(receipt["amount"]["amount"], "USD") == 20_000 * 150 + 2 * 600


# What developers see -------------------------------------------------------------------------------------------------


async def test_a_model_that_is_sold_by_the_image_is_for_images(town: Town, tenant: Tenant) -> None:
    async with scripted_backend(well(stream(DONE))) as one:
        model = await town.model({"backend": await town.backend(one)}, prices={})
        row = {"book": "default", "model": model, "meter": "image", "currency": "USD", "price_each": "0.02"}
        await town.stage.operate("POST", "/prices", json=row | {"effective_from": ALWAYS})
        answer = await town.stage.client.get(f"{town.stage.base_url}/v1/models/{model}", headers=tenant.headers)
        assert answer.json()["endpoints"] == ["/v1/images/generations"]


async def test_a_developer_sees_limits_prices_and_aliases(town: Town, tenant: Tenant) -> None:
    async with scripted_backend(well(stream(DONE))) as one:
        backend = await town.backend(one, kind="vllm")
        model = await town.model({"backend": backend}, capabilities=["tools", "vision"])
        other = await town.model({"backend": backend}, context_length=2048, capabilities=["tools"])
        vectors = await town.model({"backend": backend}, capabilities=["embeddings"])
        targets = [{"model": model}, {"model": other}]
        await town.stage.operate(
            "POST", "/aliases", json={"id": f"{model}-any", "targets": targets, "prices_of": model}
        )
        url = f"{town.stage.base_url}/v1/models"
        answered = (await town.stage.client.get(url, headers=tenant.headers)).json()["data"]
        listed = {each["id"]: each for each in answered}
        told = listed[model]
        assert (told["context_length"], told["max_output_tokens"]) == (4096, 4096)
        assert told["capabilities"] == ["tools", "vision"]
        assert told["pricing"] == {
            "currency": "USD",
            "cached_input": "0.075000",
            "input": "0.150000",
            "output": "0.600000",
        }
        assert "/v1/chat/completions" in told["endpoints"]
        assert "/v1/images/generations" not in told["endpoints"], "its engine has none, and calls are refused"
        assert listed[vectors]["endpoints"] == ["/v1/embeddings"]
        alias = listed[f"{model}-any"]
        assert (alias["context_length"], alias["capabilities"]) == (2048, ["tools"])
        assert alias["pricing"] == told["pricing"]
        one_alone = await town.stage.client.get(f"{url}/{model}-any", headers=tenant.headers)
        assert one_alone.json() == alias
        await town.stage.operate("POST", f"/aliases/{model}-any", json={"disabled": True})
        assert (await town.stage.client.get(f"{url}/{model}-any", headers=tenant.headers)).status_code == 404


async def test_a_developer_sees_what_a_fallback_serves(town: Town, tenant: Tenant) -> None:
    async with scripted_backend(well()) as one:
        spare = await town.model({"backend": await town.backend(one)})
        model = await town.model(fallback={"model": spare})
        assert (await town.chat(tenant, model)).status_code == 200
        shown = await town.stage.client.get(f"{town.stage.base_url}/v1/models/{model}", headers=tenant.headers)
        assert (shown.status_code, shown.json()["id"]) == (200, model)
        bound = await town.stage.tenant(models=[model])
        assert (await town.chat(bound, model)).status_code == 503
        shown = await town.stage.client.get(f"{town.stage.base_url}/v1/models/{model}", headers=bound.headers)
        assert shown.status_code == 404, "the key may not call what would serve"


async def test_nobody_listens_and_another_deployment_serves(town: Town, tenant: Tenant) -> None:
    async with scripted_backend(well()) as one:
        away = f"http://127.0.0.1:{free_port()}"
        first = {"backend": await town.backend(away)}
        model = await town.model(first, {"backend": await town.backend(one), "priority": 1})
        assert (await town.chat(tenant, model)).status_code == 200
        assert len(calls(one)) == 1
