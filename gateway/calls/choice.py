"""Which model and which of its deployments may serve a call: aliases, organizations' rules, fallbacks. Pure.

A model that is no alias, has no fallback and one deployment costs a look at each of these and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from billing.admission import permit
from billing.pricing import ceiling
from gateway.backends import DIALECTS
from gateway.routing import caller_key, prefix_of, targets_for
from models.account import Principal
from models.call import CallRequest, Endpoint, HoldRequest
from models.catalog import Catalog, Deployment, Model, PricedAs, Rates
from models.errors import InvalidRequest, NotPermitted, Unavailable
from models.values import value

MAX_ATTEMPTS: Final = 3
"""How often a call is sent before it is given up, each time to another deployment."""

FALLBACK_FLAG: Final = "fallback"
"""On the receipt of a call that another model served than the one that was asked for."""

_DISABLED: Final = "All backends of this model are disabled. Nothing was charged; try again."


@value
class Leg:
    """How a call goes on with one of two models: that model, and under which name and at which rates it is charged."""

    model: Model
    name: str
    rates: Rates
    is_fallback: bool = False

    def charged(self, hold: HoldRequest) -> HoldRequest:
        """The hold at the rates of this leg. Its amount stays: it covers both."""
        if hold.rates is self.rates and hold.origin.model == self.name:
            return hold
        return replace(hold, origin=replace(hold.origin, model=self.name), rates=self.rates)

    def is_covered(self, hold: HoldRequest) -> bool:
        """Whether a hold is enough for this leg, too: not where it was made smaller since money was short."""
        return ceiling(hold.input_bound, hold.output_bound, self.rates) <= hold.amount


@value
class Reserve:
    """The deployments of the fallback; without `when_full` they stay out of it while another one can be waited for."""

    deployments: tuple[Deployment, ...]
    when_full: bool


@value
class Choice:
    """Where a call may go. `legs` has both models by their ids where there is a fallback; `prefix` is for affinity."""

    model: Model
    deployments: tuple[Deployment, ...]
    prefix: int | None = None
    reserve: Reserve | None = None
    legs: Mapping[str, Leg] | None = None

    def hold(self, request: HoldRequest) -> HoldRequest:
        """The hold of the call, large enough for whichever model serves it."""
        if self.legs is None:
            return request
        most = max(ceiling(request.input_bound, request.output_bound, leg.rates) for leg in self.legs.values())
        return request if most <= request.amount else replace(request, amount=most)


def choose(
    catalog: Catalog, offer: Model, rates: Rates, principal: Principal, request: CallRequest, now: datetime
) -> Choice:
    """Where a call of `offer`, which is sold to the caller at `rates`, may go.

    Raises why nowhere: `InvalidRequest` for what no engine of the model can serve, else `Unavailable`.
    """
    model = _target(catalog, offer, principal, request) if offer.targets else offer
    open_ones = catalog.deployments(model, principal.organization_id)
    if model.fallback is None:
        deployments = able(open_ones, request)
        return Choice(model, deployments, _prefix(request) if len(deployments) > 1 else None)
    return _with_fallback(catalog, offer, model, rates, principal, request, now)


def able(deployments: Sequence[Deployment], request: CallRequest) -> tuple[Deployment, ...]:
    """The deployments whose engine can serve the request; raises why not where none can."""
    refusal: InvalidRequest | None = None
    found = []
    for each in deployments:
        try:
            DIALECTS[each.backend.kind].check(request)
        except InvalidRequest as error:
            refusal = error
        else:
            found.append(each)
    if not found:
        raise refusal or Unavailable(_DISABLED)
    return tuple(found)


def _target(catalog: Catalog, alias: Model, principal: Principal, request: CallRequest) -> Model:
    """The caller's target of an alias, or the next one where that has no deployment for its organization."""
    caller = caller_key(principal.organization_id, principal.api_key_id, request.end_user)
    models = [catalog.models[name] for name in targets_for(alias.targets, caller)]
    for model in models:
        if catalog.deployments(model, principal.organization_id):
            return model
    return models[0]


def _with_fallback(
    catalog: Catalog,
    offer: Model,
    model: Model,
    rates: Rates,
    principal: Principal,
    request: CallRequest,
    now: datetime,
) -> Choice:
    leg = _fallback_leg(catalog, offer, model, rates, principal, now)
    spare = () if leg is None else _able_or_none(catalog, leg.model, principal, request)
    try:
        deployments = able(catalog.deployments(model, principal.organization_id), request)
    except Unavailable:
        if not spare:
            raise
        deployments = ()
    if leg is None or model.fallback is None or not spare:
        return Choice(model, deployments, _prefix(request) if len(deployments) > 1 else None)
    legs = {model.id: Leg(model, offer.id, rates), leg.model.id: leg}
    is_plural = len(deployments) > 1 or len(spare) > 1
    reserve = Reserve(spare, model.fallback.when_full)
    return Choice(model, deployments, _prefix(request) if is_plural else None, reserve, legs)


def _fallback_leg(
    catalog: Catalog, offer: Model, model: Model, rates: Rates, principal: Principal, now: datetime
) -> Leg | None:
    """How the fallback would serve the call; None where the key may not call it, or where it has no price of its own
    and needs one."""
    assert model.fallback is not None, "asked for a model that has one"
    spare = catalog.models.get(model.fallback.model)
    if spare is None:
        return None
    try:
        permit(principal, spare.id)
    except NotPermitted:
        return None
    if model.fallback.priced_as is PricedAs.REQUESTED:
        return Leg(spare, offer.id, rates, is_fallback=True)
    own = catalog.rates(principal.price_book, principal.currency, spare.id, now)
    return None if own is None else Leg(spare, spare.id, own, is_fallback=True)


def _able_or_none(catalog: Catalog, model: Model, principal: Principal, request: CallRequest) -> tuple[Deployment, ...]:
    try:
        return able(catalog.deployments(model, principal.organization_id), request)
    except (InvalidRequest, Unavailable):
        return ()


def _prefix(request: CallRequest) -> int | None:
    # Embeddings leave nothing in a cache that another call would find.
    return None if request.endpoint is Endpoint.EMBEDDINGS else prefix_of(request.body)
