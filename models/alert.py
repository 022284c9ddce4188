"""What people are told of without asking: a limit reached, money running out, a payment that a person must book."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from uuid import UUID


class AlertKind(StrEnum):
    """What happened, as receivers of alerts know it."""

    SPEND_LIMIT_REACHED = "spend_limit.reached"
    SPEND_ALERT_REACHED = "spend_alert.reached"
    BALANCE_LOW = "balance.low"
    GRANT_EXPIRING = "credit_grant.expiring"
    GRANT_USED_UP = "credit_grant.used_up"
    PAYMENT_UNBOOKED = "payment.unbooked"


@dataclass(frozen=True, slots=True)
class Alert:
    """Something to tell once: as long as one of this kind about the same `subject` is in force, there is no other.

    Without an organization it is the operator's alone. `detail` is JSON, with money in its JSON form.
    """

    kind: AlertKind
    organization_id: UUID | None
    subject: str
    detail: dict[str, Any] = field(default_factory=dict)
