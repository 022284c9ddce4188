"""Which money pays for which charge: the draw-down of one organization's credit grants, as pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from models.call import Charge
from models.ledger import AccountKind, GrantKind
from models.money import Units

UNBILLED: Final = "unbilled"
"""Source of what no grant covers: it is delivered, so it is owed."""

_NEVER: Final = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class GrantScope:
    """What a grant may pay for; None is no limit."""

    models: frozenset[str] | None = None
    project_ids: frozenset[UUID] | None = None

    @property
    def limited(self) -> bool:
        """Whether it names anything at all."""
        return self.models is not None or self.project_ids is not None

    def covers(self, charge: Charge) -> bool:
        """Whether the grant may pay for this charge."""
        return (self.models is None or charge.model in self.models) and (
            self.project_ids is None or charge.project_id in self.project_ids
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """A credit grant with money left."""

    id: UUID
    kind: GrantKind
    remaining: Units
    priority: int
    effective_at: datetime
    expires_at: datetime | None = None
    scope: GrantScope = GrantScope()

    @property
    def account(self) -> AccountKind:
        """The customer's account in which its money lies."""
        return AccountKind.CUSTOMER_PROMO if self.kind is GrantKind.PROMO else AccountKind.CUSTOMER_PREPAID


@dataclass(frozen=True, slots=True)
class FundedCharge:
    """A charge with the sources that pay for it: grant ids, and `unbilled` for the rest; they sum to its amount."""

    charge: Charge
    funding: tuple[tuple[str, Units], ...]


@dataclass(frozen=True, slots=True)
class Booking:
    """One organization's part of a batch: its funded charges, and what they take from where."""

    funded: tuple[FundedCharge, ...]
    draws: Mapping[UUID, Units]
    by_account: Mapping[AccountKind, Units]
    """Amounts to transfer to revenue, by the account that is debited; only positive ones."""

    @property
    def total(self) -> Units:
        """Sum of the charges."""
        return Units(sum(self.by_account.values()))


def draw_order(grants: Iterable[Grant]) -> list[Grant]:
    """Grants in the order in which they are used up (facts: billing, section 3)."""
    return sorted(
        grants,
        key=lambda grant: (
            not grant.scope.limited,
            grant.priority,
            grant.expires_at or _NEVER,
            grant.kind is not GrantKind.PROMO,
            grant.effective_at,
            grant.id,
        ),
    )


def plan_booking(charges: Sequence[Charge], grants: Iterable[Grant]) -> Booking:
    """Fund one organization's charges, in their order, from its grants; what these do not cover is unbilled.

    A grant pays from the moment it is effective until the posting that expires it, whatever the clock says in between.
    """
    ordered = draw_order(grants)
    remaining = {grant.id: int(grant.remaining) for grant in ordered}
    draws: dict[UUID, int] = {}
    by_account: dict[AccountKind, int] = {}
    funded = []
    for charge in charges:
        sources: list[tuple[str, Units]] = []
        owed = charge.amount
        for grant in ordered:
            take = min(owed, remaining[grant.id])
            if take == 0 or not grant.scope.covers(charge):
                continue
            owed -= take
            remaining[grant.id] -= take
            draws[grant.id] = draws.get(grant.id, 0) + take
            by_account[grant.account] = by_account.get(grant.account, 0) + take
            sources.append((str(grant.id), Units(take)))
        if owed:
            by_account[AccountKind.UNBILLED] = by_account.get(AccountKind.UNBILLED, 0) + owed
            sources.append((UNBILLED, Units(owed)))
        funded.append(FundedCharge(charge, tuple(sources)))
    return Booking(
        tuple(funded),
        {grant_id: Units(amount) for grant_id, amount in draws.items()},
        {kind: Units(amount) for kind, amount in by_account.items()},
    )


def refusal(charge: Charge, currency: str | None) -> str | None:
    """Why a decoded charge from the stream cannot be booked, or None; `currency` is its organization's, None if
    there is no such organization."""
    if currency is None:
        return "unknown organization"
    if charge.currency != currency:
        return f"currency {charge.currency} is not the organization's, {currency}"
    if charge.corrects is not None:
        return "a correction is booked from the ledger, not from the stream"
    if charge.call_id.version != 7:
        return "the call id is no UUIDv7"
    return None
