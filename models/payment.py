"""What a payment provider tells: that a payment succeeded, was refunded, or is disputed, whoever the provider is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID


class PaymentKind(StrEnum):
    """What happened to a payment."""

    SUCCEEDED = "succeeded"
    REFUNDED = "refunded"
    DISPUTED = "disputed"


class PaymentEventState(StrEnum):
    """What became of an event: `unbooked` waits for a person, `repeated` told again what was booked already."""

    BOOKED = "booked"
    REPEATED = "repeated"
    UNBOOKED = "unbooked"


@dataclass(frozen=True, slots=True)
class PaymentEvent:
    """One event of a provider, in the form that is the same for all.

    `reference` is the payment's, the same in every event about it. `amount_minor` is in the currency's minor unit
    (cents; whole won): of a refund it is all that was refunded of the payment so far, so that events may come twice
    and in any order. What the provider did not say, or not in a form that can be right, is None. `digest` is the same
    for every delivery of an event, and for no other.
    """

    provider: str
    event_id: str
    kind: PaymentKind
    type: str
    reference: str
    organization_id: UUID | None
    invoice_id: UUID | None
    amount_minor: int | None
    currency: str | None
    at: datetime
    digest: bytes
