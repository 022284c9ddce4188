"""Which money pays for which charge, and what a correction gives back: pure arithmetic on one organization's grants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

from models.call import Charge
from models.errors import Conflict
from models.ledger import AccountKind, GrantKind
from models.money import Units
from models.usage import TokenUsage

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
    rollover_max: Units = Units(0)
    """How much of what is left at its expiry goes into a grant that follows it."""

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
    """One organization's part of a batch: its funded charges, and what they take from where; below zero: give back."""

    funded: tuple[FundedCharge, ...]
    draws: Mapping[UUID, Units]
    by_account: Mapping[AccountKind, Units]
    """Amounts to transfer to revenue, by the account that is debited; a negative one comes back from it. Never zero."""

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


def plan_bookings(batches: Iterable[Sequence[Charge]], grants: Iterable[Grant]) -> list[Booking]:
    """`plan_booking` of one batch after the other, each with what the ones before have left."""
    left = {grant.id: grant for grant in grants}
    bookings = []
    for batch in batches:
        bookings.append(booking := plan_booking(batch, left.values()))
        for grant_id, amount in booking.draws.items():
            left[grant_id] = replace(left[grant_id], remaining=Units(left[grant_id].remaining - amount))
    return bookings


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


# Corrections ---------------------------------------------------------------------------------------------------------

_METERED: Final = tuple(field.name for field in fields(TokenUsage))
_TERMS: Final = (
    *("call_id", "organization_id", "project_id", "api_key_id", "currency", "endpoint", "model", "hold"),
    "price_version_ids",
)
"""What two charges of one call cannot differ in: it was fixed with the hold."""


def correction_id(call_id: UUID) -> UUID:
    """The id of the one correction that a call can have, so that the primary key refuses a second.

    It has the time of the call's id, by which the table is partitioned and read, and bits of its hash for the rest.
    """
    digest = int.from_bytes(sha256(b"correction of " + call_id.bytes).digest()[:10])
    time = call_id.int >> 80 << 80
    return UUID(int=time | 0x7 << 76 | (digest >> 68 & 0xFFF) << 64 | 0b10 << 62 | digest & (1 << 62) - 1)


def correction(booked: Charge, journaled: Charge) -> Charge | None:
    """What makes a booked charge the one that its gateway had journaled; None where they cost and count the same.

    Its amount is the difference and may be negative. A row cannot say so of tokens: its columns have what the
    difference adds, as far as that is tokens of a call (`added_tokens`). All of it is in `counted`: `call`, the
    tokens of the whole call, and `difference`, signed. Raises `Conflict` where the two are not of one call.
    """
    if any(getattr(booked, term) != getattr(journaled, term) for term in _TERMS) or booked.corrects is not None:
        raise Conflict(f"call {booked.call_id}: what is journaled and what is booked are not of one call")
    call, before = tokens_of(journaled), tokens_of(booked)
    if call == before and journaled.amount == booked.amount:
        return None
    difference = {meter: getattr(call, meter) - getattr(before, meter) for meter in _METERED}
    added = added_tokens(difference)
    return replace(
        journaled,
        call_id=correction_id(booked.call_id),
        corrects=booked.call_id,
        amount=journaled.amount - booked.amount,
        input_tokens=added.input,
        cached_tokens=added.cached,
        cache_write_tokens=added.cache_write,
        output_tokens=added.output,
        reasoning_tokens=added.reasoning,
        images=added.images,
        audio_seconds=added.audio_seconds,
        # Of the booked one, so that both are in one period whatever a journal says.
        created_at=booked.created_at,
        counted={**(journaled.counted or {}), "call": asdict(call), "difference": difference},
    )


def added_tokens(difference: Mapping[str, Any]) -> TokenUsage:
    """The part of a signed difference that can stand in the columns of a charge: none below zero, parts within wholes.

    So where a journal knows of fewer tokens, columns add up to what the sweeper had seen, and only the amounts to what
    is owed. Raises `KeyError` where a meter of tokens is missing; older corrections know of no others.
    """
    whole, output = max(0, difference["input"]), max(0, difference["output"])
    cached = min(max(0, difference["cached"]), whole)
    written = min(max(0, difference["cache_write"]), whole - cached)
    images, audio_seconds = (max(0, difference.get(meter, 0)) for meter in ("images", "audio_seconds"))
    return TokenUsage(
        whole, output, cached, written, min(max(0, difference["reasoning"]), output), images, audio_seconds
    )


def tokens_of(charge: Charge) -> TokenUsage:
    """What is used by a charge's columns."""
    return TokenUsage(
        input=charge.input_tokens,
        output=charge.output_tokens,
        cached=charge.cached_tokens,
        cache_write=charge.cache_write_tokens,
        reasoning=charge.reasoning_tokens,
        images=charge.images,
        audio_seconds=charge.audio_seconds,
    )


def plan_return(charge: Charge, funding: Sequence[tuple[str, int]], grants: Mapping[str, Grant]) -> Booking:
    """Give the negative amount of a correction back to those who had paid the charge it corrects: the last one first.

    `funding` is who paid; `grants` has, by source, those that may still get money. What one would get that is voided
    or expired is taken off what the customer owes instead: it stays the customer's and never comes to life again.
    """
    assert charge.amount < 0, f"there is nothing to give back: {charge.amount}"
    due = -charge.amount
    draws: dict[UUID, Units] = {}
    sources: dict[str, int] = {}
    by_account: dict[AccountKind, int] = {}
    for source, paid in reversed(funding):
        back = min(due, paid)
        if back == 0:
            continue
        due -= back
        grant = grants.get(source)
        if grant is not None:
            draws[grant.id] = Units(-back)
        account, name = (AccountKind.UNBILLED, UNBILLED) if grant is None else (grant.account, source)
        by_account[account] = by_account.get(account, 0) - back
        sources[name] = sources.get(name, 0) - back
    assert due == 0, "a charge is paid by its sources to the last unit"
    return Booking(
        (FundedCharge(charge, tuple((name, Units(amount)) for name, amount in sources.items())),),
        draws,
        {kind: Units(amount) for kind, amount in by_account.items()},
    )
