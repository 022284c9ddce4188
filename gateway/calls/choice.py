"""Which model and which of its deployments may serve a call: aliases, organizations' rules, fallbacks. Pure.

A model that is no alias, has no fallback and one deployment costs a look at each of these and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from billing.admission import permit, permit_endpoint
from billing.pricing import ceiling
from gateway.backends import DIALECTS
from gateway.routing import caller_key, prefix_of, targets_for
from models.account import Principal
from models.call import CallRequest, HoldRequest
from models.catalog import Catalog, Deployment, Model, PricedAs, Rates
from models.errors import InvalidRequest, NotPermitted, Unavailable
from models.money import Units
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
        return self.most(hold) <= hold.amount

    def most(self, hold: HoldRequest) -> Units:
        """The highest possible price of the call, if this model serves it."""
        bounds = hold.input_bound, hold.output_bound
        return ceiling(*bounds, self.rates, hold.images_bound, hold.audio_seconds_bound)


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

    @property
    def roomiest(self) -> Model:
        """The model with the longest context of those that may serve the call: no prompt and no answer is longer."""
        if self.legs is None:
            return self.model
        return max((leg.model for leg in self.legs.values()), key=lambda model: model.context_length)

    def hold(self, request: HoldRequest) -> HoldRequest:
        """The hold of the call, large enough for whichever model serves it."""
        if self.legs is None:
            return request
        most = max(leg.most(request) for leg in self.legs.values())
        return request if most <= request.amount else replace(request, amount=most)


def choose(
    catalog: Catalog,
    offer: Model,
    rates: Rates,
    principal: Principal,
    request: CallRequest,
    now: datetime,
    *,
    is_batch: bool = False,
) -> Choice:
    """Where a call of `offer`, which is sold to the caller at `rates`, may go.

    Raises why nowhere: `InvalidRequest` for what no engine of the model can serve, else `Unavailable`.
    """
    model = _target(catalog, offer, principal, request) if offer.targets else offer
    open_ones = catalog.deployments(model, principal.organization_id)
    if model.fallback is None:
        deployments = able(open_ones, request)
        return Choice(model, deployments, _prefix(request) if len(deployments) > 1 else None)
    rates_of = catalog.batch_rates if is_batch else catalog.rates
    own = rates_of(principal.price_book, principal.currency, model.fallback.model, now)
    leg = _fallback_leg(catalog, offer, model, rates, own, principal, request)
    return _with_fallback(catalog, offer, model, leg, rates, principal, request)


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
    found = next((model for model in models if catalog.deployments(model, principal.organization_id)), models[0])
    if found.id in principal.denied:
        # An alias is permitted by its own name, but no way round what is forbidden.
        raise NotPermitted(f"This key may not call the model {found.id!r}, which now serves {alias.id!r}.")
    return found


def _with_fallback(
    catalog: Catalog,
    offer: Model,
    model: Model,
    leg: Leg | None,
    rates: Rates,
    principal: Principal,
    request: CallRequest,
) -> Choice:
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
    catalog: Catalog,
    offer: Model,
    model: Model,
    rates: Rates,
    own: Rates | None,
    principal: Principal,
    request: CallRequest,
) -> Leg | None:
    """How the fallback would serve the call; None where the key may not call it, or where it needs a price of its own
    for such a call and `own` has none."""
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
    if own is None:
        return None
    try:
        permit_endpoint(request, own)
    except InvalidRequest:
        return None
    return Leg(spare, spare.id, own, is_fallback=True)


def _able_or_none(catalog: Catalog, model: Model, principal: Principal, request: CallRequest) -> tuple[Deployment, ...]:
    try:
        return able(catalog.deployments(model, principal.organization_id), request)
    except (InvalidRequest, Unavailable):
        return ()


def _prefix(request: CallRequest) -> int | None:
    # What generates nothing leaves nothing in a cache that another call would find.
    return prefix_of(request.body) if request.endpoint.generates else None
