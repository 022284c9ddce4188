"""Shares of the revenue: which rules apply to a call, and what each party gets of it, to the last unit. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias
from uuid import UUID

from models.call import Charge
from models.ledger import ShareRole
from models.money import Units

WHOLE_PPM: Final = 1_000_000
"""Parts per million of a whole amount."""

Shares: TypeAlias = Mapping[tuple[ShareRole, str, str], Units]
"""What parties get: amounts by role, party and model. Never zero."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A party's share of calls of a model (None is all) by an organization (None is all), made while it is in force."""

    role: ShareRole
    party: str
    model: str | None
    organization_id: UUID | None
    ppm: int
    effective_from: datetime
    effective_to: datetime | None = None

    def covers(self, model: str | None, organization_id: UUID | None, moment: datetime) -> bool:
        """Whether it is about such a call; None stands for one that no rule names."""
        return (
            self.model in (None, model)
            and self.organization_id in (None, organization_id)
            and self.effective_from <= moment
            and (self.effective_to is None or moment < self.effective_to)
        )

    @property
    def narrowness(self) -> tuple[bool, bool]:
        """Of two rules for one role and party the one with the larger value counts."""
        return self.organization_id is not None, self.model is not None


def rules_of(
    rules: Iterable[Rule], model: str | None, organization_id: UUID | None, moment: datetime
) -> tuple[Rule, ...]:
    """The rules that apply to a call, one for each role and party, in the order of these."""
    narrowest: dict[tuple[str, str], Rule] = {}
    for rule in rules:
        if rule.covers(model, organization_id, moment):
            who = rule.role.value, rule.party
            if who not in narrowest or rule.narrowness > narrowest[who].narrowness:
                narrowest[who] = rule
    return tuple(narrowest[who] for who in sorted(narrowest))


def apportion(amount: int, weights: Sequence[int]) -> list[int]:
    """Divide an amount by weights, none negative and not all zero: whole parts that sum to it, by largest remainder.

    Each part is off its exact value by less than one. Of equal remainders the first gets more. The parts of a negative
    amount are those of the positive one, each negative.
    """
    total = sum(weights)
    assert total > 0, "someone must get it"
    assert min(weights) >= 0, "nobody gets less than nothing"
    size = abs(amount)
    parts = [size * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda place: -(size * weights[place] % total))
    for place in by_remainder[: size - sum(parts)]:
        parts[place] += 1
    return parts if amount >= 0 else [-part for part in parts]


def share_out(rules: Sequence[Rule], charges: Iterable[Charge]) -> Shares:
    """What parties get of charges, each of which is divided by itself; what is left of each is the operator's.

    A correction is divided as a charge of its amount would have been at the time of its call.
    """
    sums: dict[tuple[ShareRole, str, str], int] = {}
    for charge in charges:
        applying = rules_of(rules, charge.model, charge.organization_id, charge.created_at)
        if not applying or not charge.amount:
            continue
        ppms = [rule.ppm for rule in applying]
        *parts, _ = apportion(charge.amount, [*ppms, WHOLE_PPM - sum(ppms)])
        for rule, part in zip(applying, parts, strict=True):
            key = rule.role, rule.party, charge.model
            sums[key] = sums.get(key, 0) + part
    return {key: Units(amount) for key, amount in sums.items() if amount}


def largest_total(rules: Iterable[Rule], changed: Rule, since: datetime) -> int:
    """The most parts per million that `rules` take of any call from `since` on that `changed` may have an effect on.

    A rule that ends has an effect too: where it was the narrower one, the wider one counts again.
    """
    known = list(rules)
    organizations = {changed.organization_id}
    if changed.organization_id is None:
        organizations |= {rule.organization_id for rule in known}
    by_owner: dict[UUID | None, list[Rule]] = {}
    for rule in known:
        by_owner.setdefault(rule.organization_id, []).append(rule)
    largest = 0
    for organization_id in organizations:
        relevant = by_owner.get(None, []) + (by_owner.get(organization_id, []) if organization_id else [])
        models = {changed.model} if changed.model is not None else {None, *(rule.model for rule in relevant)}
        edges = {since, *(rule.effective_from for rule in relevant)}
        edges |= {rule.effective_to for rule in relevant if rule.effective_to is not None}
        for model in models:
            for moment in edges:
                if moment >= since:
                    applying = rules_of(relevant, model, organization_id, moment)
                    largest = max(largest, sum(rule.ppm for rule in applying))
    return largest
