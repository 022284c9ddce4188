"""Which model and deployments may serve a call: aliases, the rules of organizations, fallbacks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from billing.admission import TEMPLATE_ALLOWANCE_TOKENS, hold_request
from billing.pricing import ceiling
from gateway.calls.choice import Choice, choose
from models.account import Principal
from models.call import CallOrigin, CallRequest, Endpoint, HoldRequest
from models.catalog import (
    BackendKind,
    Catalog,
    Deployment,
    Fallback,
    Meter,
    Model,
    OrganizationRouting,
    PricedAs,
    PriceVersion,
    Target,
)
from models.errors import InvalidRequest, NotPermitted, Unavailable
from models.money import MilliUnits, Units
from tests.unit.samples import NOW, PRINCIPAL, RATES, chat_request, deployment

OTHER = replace(PRINCIPAL, organization_id=UUID(int=77))


def at(number: int, *, region: str | None = None, **fields: Any) -> Deployment:
    one = deployment(fields.pop("kind", BackendKind.VLLM), number, model=fields.pop("model", "m"))
    return replace(one, backend=replace(one.backend, region=region), **fields)


def sold(*deployments: Deployment, **fields: Any) -> Model:
    return Model(fields.pop("id", "m"), 4_096, NOW, deployments=deployments, **fields)


def price(model: str, per_token: int) -> dict[tuple[str, str, str], tuple[PriceVersion, ...]]:
    versions = [
        PriceVersion(UUID(int=per_token + n), "default", model, meter, "USD", MilliUnits(per_token), NOW, None)
        for n, meter in enumerate((Meter.INPUT, Meter.OUTPUT))
    ]
    return {("default", "USD", model): tuple(versions)}


def chosen(
    catalog: Catalog, offer: str = "m", principal: Principal = PRINCIPAL, request: CallRequest | None = None
) -> Choice:
    return choose(catalog, catalog.models[offer], RATES, principal, request or chat_request(), NOW)


def numbers(choice: Choice) -> list[int]:
    return [each.backend.id.int - 10 for each in choice.deployments]


# One model -----------------------------------------------------------------------------------------------------------


def test_a_single_deployment_costs_no_hash_and_no_copy() -> None:
    model = sold(at(1))
    catalog = Catalog({"m": model})
    choice = chosen(catalog)
    assert choice == Choice(model, model.deployments)
    assert choice.deployments[0] is model.deployments[0]
    assert catalog.deployments(model, UUID(int=5)) is catalog.deployments(model, UUID(int=6))


def test_a_conversation_is_known_where_there_is_more_than_one_deployment() -> None:
    catalog = Catalog({"m": sold(at(1), at(2))})
    assert chosen(catalog).prefix is not None
    assert chosen(catalog, request=chat_request(endpoint=Endpoint.EMBEDDINGS, body={"input": "x"})).prefix is None


def test_why_no_deployment_can_serve() -> None:
    refused = chat_request(body={"messages": [], "dimensions": 3})
    with pytest.raises(InvalidRequest, match="dimensions"):
        chosen(Catalog({"m": sold(at(1, kind=BackendKind.LLAMACPP))}), request=refused)
    with pytest.raises(Unavailable, match="disabled"):
        chosen(Catalog({"m": sold()}))
    both = Catalog({"m": sold(at(1, kind=BackendKind.LLAMACPP), at(2))})
    assert numbers(chosen(both, request=refused)) == [2]


# Organizations -------------------------------------------------------------------------------------------------------

FOUR = (at(1, region="eu"), at(2, region="us"), at(3), at(4, region="eu", pool="acme"))


@pytest.mark.parametrize(
    ("rule", "open_ones"),
    [
        pytest.param(None, [1, 2, 3], id="without a rule everything but pools"),
        pytest.param(
            OrganizationRouting(frozenset({"eu"})), [1], id="one region, and nothing that does not say its own"
        ),
        pytest.param(OrganizationRouting(frozenset({"eu", "us"})), [1, 2], id="two regions"),
        pytest.param(OrganizationRouting(None, "acme"), [1, 2, 3, 4], id="a pool, and what all share"),
        pytest.param(OrganizationRouting(None, "acme", False), [4], id="a pool alone"),
        pytest.param(OrganizationRouting(frozenset({"eu"}), "acme"), [1, 4], id="a pool in a region"),
        pytest.param(OrganizationRouting(frozenset({"us"}), "acme", False), [], id="a pool elsewhere"),
        pytest.param(OrganizationRouting(None, "other", False), [], id="another pool"),
    ],
)
def test_where_an_organization_may_go(rule: OrganizationRouting | None, open_ones: list[int]) -> None:
    rules = {} if rule is None else {PRINCIPAL.organization_id: rule}
    catalog = Catalog({"m": sold(*FOUR)}, routing=rules)
    if open_ones:
        assert numbers(chosen(catalog)) == open_ones
    else:
        with pytest.raises(Unavailable):
            chosen(catalog)
    assert numbers(chosen(catalog, principal=OTHER)) == [1, 2, 3], "nobody else is touched"


def test_what_is_reserved_is_used_first() -> None:
    catalog = Catalog({"m": sold(*FOUR)}, routing={PRINCIPAL.organization_id: OrganizationRouting(None, "acme")})
    first = min(chosen(catalog).deployments, key=lambda each: each.priority)
    assert first.id == FOUR[3].id


# Aliases -------------------------------------------------------------------------------------------------------------


def two_versions(*weights: int) -> Catalog:
    targets = tuple(Target(f"v{number}", weight) for number, weight in enumerate(weights, start=1))
    models = {f"v{number}": sold(at(number, model=f"v{number}"), id=f"v{number}") for number in (1, 2)}
    return Catalog({**models, "chat": sold(id="chat", targets=targets)})


def test_an_alias_is_served_by_one_of_its_targets() -> None:
    assert chosen(two_versions(1, 0), "chat").model.id == "v1"
    assert chosen(two_versions(0, 1), "chat").model.id == "v2"
    users = [chat_request(end_user=f"user {number}") for number in range(200)]
    found = [chosen(two_versions(1, 1), "chat", request=user).model.id for user in users]
    assert set(found) == {"v1", "v2"}
    assert found == [chosen(two_versions(1, 1), "chat", request=user).model.id for user in users]


def test_an_alias_is_no_way_round_a_model_that_is_forbidden() -> None:
    key = replace(PRINCIPAL, denied=frozenset({"v2"}))
    assert chosen(two_versions(1, 0), "chat", key).model.id == "v1"
    with pytest.raises(NotPermitted, match="'v2', which now serves 'chat'"):
        chosen(two_versions(0, 1), "chat", key)


def test_a_target_that_is_closed_to_an_organization_is_passed_over() -> None:
    catalog = two_versions(1, 1)
    moved = at(2, model="v2", region="eu")
    catalog.models["v2"] = sold(moved, id="v2")
    catalog.routing[PRINCIPAL.organization_id] = OrganizationRouting(frozenset({"eu"}))
    for number in range(50):
        assert chosen(catalog, "chat", request=chat_request(end_user=str(number))).model.id == "v2"


# Fallbacks -----------------------------------------------------------------------------------------------------------


def with_fallback(*own: Deployment, rule: Fallback | None = None, per_token: int = 900_000) -> Catalog:
    spare = sold(at(5, model="spare"), id="spare")
    model = sold(*own, fallback=rule or Fallback("spare"))
    return Catalog({"m": model, "spare": spare}, price("spare", per_token))


def origin() -> CallOrigin:
    return CallOrigin(
        UUID(int=4), PRINCIPAL.organization_id, PRINCIPAL.project_id, PRINCIPAL.api_key_id, 1, "USD",
        Endpoint.CHAT_COMPLETIONS, "m", False, NOW,
    )  # fmt: skip


def held(choice: Choice) -> HoldRequest:
    return choice.hold(hold_request(chat_request(), origin(), PRINCIPAL, choice.model, RATES))


def test_a_fallback_is_in_reserve() -> None:
    choice = chosen(with_fallback(at(1)))
    assert numbers(choice) == [1]
    assert choice.reserve is not None
    assert [each.model for each in choice.reserve.deployments] == ["spare"]
    assert numbers(chosen(with_fallback())) == [], "it serves alone where the model has no deployment"


def test_a_fallback_at_the_price_of_the_model_needs_no_larger_hold() -> None:
    choice = chosen(with_fallback(at(1)))
    assert choice.legs is not None
    hold = held(choice)
    assert hold.amount == ceiling(hold.input_bound, hold.output_bound, RATES)
    assert choice.legs["spare"].charged(hold) is hold
    assert (choice.legs["spare"].is_fallback, choice.legs["m"].is_fallback) == (True, False)


@pytest.mark.parametrize("per_token", [pytest.param(900_000, id="dearer"), pytest.param(1, id="cheaper")])
def test_a_fallback_at_its_own_price_is_covered_and_charged_under_its_own_name(per_token: int) -> None:
    rule = Fallback("spare", PricedAs.FALLBACK)
    choice = chosen(with_fallback(at(1), rule=rule, per_token=per_token))
    assert choice.legs is not None
    hold, leg = held(choice), choice.legs["spare"]
    for each in choice.legs.values():
        assert each.is_covered(hold)
    charged = leg.charged(hold)
    assert (charged.origin.model, charged.rates, charged.amount) == ("spare", leg.rates, hold.amount)
    assert choice.legs["m"].charged(charged) == hold, "and back, where an attempt at the model comes after it"
    assert leg.is_covered(replace(hold, amount=Units(0))) is False


@pytest.mark.parametrize(
    ("change", "principal"),
    [
        pytest.param({"models": {}}, PRINCIPAL, id="the fallback is not sold"),
        pytest.param({"prices": {}}, PRINCIPAL, id="the fallback has no price"),
        pytest.param({}, replace(PRINCIPAL, models=frozenset({"m"})), id="the key may not call it"),
        pytest.param(
            {"routing": {PRINCIPAL.organization_id: OrganizationRouting(frozenset({"eu"}))}},
            PRINCIPAL,
            id="it runs where the organization's calls may not go",
        ),
    ],
)
def test_where_a_fallback_stays_out(change: dict[str, Any], principal: Principal) -> None:
    catalog = with_fallback(at(1, region="eu"), rule=Fallback("spare", PricedAs.FALLBACK))
    if "models" in change:
        change = {"models": {"m": catalog.models["m"]}}
    choice = chosen(replace(catalog, **change), principal=principal)
    assert (choice.reserve, choice.legs, numbers(choice)) == (None, None, [1])


def test_an_alias_falls_back_as_its_target_does() -> None:
    catalog = with_fallback(at(1))
    catalog.models["chat"] = sold(id="chat", targets=(Target("m", 1),))
    choice = chosen(catalog, "chat")
    assert choice.legs is not None
    assert {name: leg.name for name, leg in choice.legs.items()} == {"m": "chat", "spare": "chat"}


def test_a_fallback_at_its_own_price_is_covered_with_its_images_and_sounds() -> None:
    dear = PriceVersion(UUID(int=99), "default", "spare", Meter.IMAGE, "USD", MilliUnits(20_000_000_000), NOW, None)
    models = {
        "m": sold(at(1, kind=BackendKind.OPENAI), fallback=Fallback("spare", PricedAs.FALLBACK)),
        "spare": sold(at(5, kind=BackendKind.OPENAI, model="spare"), id="spare"),
    }
    prices = price("spare", 1)
    prices["default", "USD", "spare"] += (dear,)
    catalog = Catalog(models, prices)
    request = chat_request(endpoint=Endpoint.IMAGES, body={"prompt": "a cat"}, images_bound=3)
    choice = chosen(catalog, request=request)
    assert choice.legs is not None
    hold = choice.hold(hold_request(request, origin(), PRINCIPAL, choice.model, RATES))
    assert hold.amount >= ceiling(hold.input_bound, hold.output_bound, choice.legs["spare"].rates, images=3)
    assert not choice.legs["spare"].is_covered(replace(hold, amount=Units(hold.amount - 1)))


def test_a_fallback_with_a_longer_context_is_held_for_at_its_own_length() -> None:
    deployments = at(1, kind=BackendKind.OPENAI), at(5, kind=BackendKind.OPENAI, model="spare")
    models = {
        "m": sold(deployments[0], fallback=Fallback("spare", PricedAs.REQUESTED)),
        "spare": replace(sold(deployments[1], id="spare"), context_length=32_768),
    }
    request = chat_request(input_bound=20_000)
    choice = chosen(Catalog(models, {}), request=request)
    hold = choice.hold(hold_request(request, origin(), PRINCIPAL, choice.roomiest, RATES))
    assert hold.input_bound == 20_000 + TEMPLATE_ALLOWANCE_TOKENS


def test_no_fallback_serves_what_it_is_not_sold_for() -> None:
    image = PriceVersion(UUID(int=99), "default", "spare", Meter.IMAGE, "USD", MilliUnits(20_000_000_000), NOW, None)
    models = {
        "m": sold(at(1, kind=BackendKind.OPENAI), fallback=Fallback("spare", PricedAs.FALLBACK)),
        "spare": sold(at(5, kind=BackendKind.OPENAI, model="spare"), id="spare"),
    }
    catalog = Catalog(models, {("default", "USD", "spare"): (image,)})
    assert chosen(catalog, request=chat_request()).legs is None
    pictures = chat_request(endpoint=Endpoint.IMAGES, body={"prompt": "a cat"}, images_bound=1)
    assert chosen(catalog, request=pictures).legs is not None
