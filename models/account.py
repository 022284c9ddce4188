"""Who calls and who pays: organization, project, API key, and the principal that a credential stands for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from models.money import Units


class BillingMode(StrEnum):
    """How an organization pays: before (credit grants), after (credit line), or both in this order."""

    PREPAID = "prepaid"
    POSTPAID = "postpaid"
    HYBRID = "hybrid"


@dataclass(frozen=True, slots=True)
class Limits:
    """Rate limits of one scope (an organization, a project or a key); None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_in_flight: int | None = None


NO_LIMITS = Limits()
"""The limits of a scope that has none: one for all, so that looking is free."""


@dataclass(frozen=True, slots=True)
class SpendLimit:
    """The most that may be spent in a month of the organization's calendar, in ledger units of its currency.

    `scope` is `organization`, `project:<id>` or `key:<id>`.
    """

    scope: str
    amount: Units


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of `/v1`: an API key with the project and organization it belongs to.

    `shard` is the Redis hash tag under which everything of the organization lives. `models` is None where the key
    may call every model that is sold. `expires_at_ms` is in milliseconds since 1970, of the billing clock.
    """

    organization_id: UUID
    project_id: UUID
    api_key_id: UUID
    shard: int
    currency: str
    price_book: str
    expires_at_ms: int | None = None
    models: frozenset[str] | None = None
    organization_limits: Limits = NO_LIMITS
    project_limits: Limits = NO_LIMITS
    key_limits: Limits = NO_LIMITS
    spend_limits: tuple[SpendLimit, ...] = ()
    timezone: str = "UTC"


@dataclass(frozen=True, slots=True)
class AdminPrincipal:
    """An administrator of one organization, known by an admin key."""

    organization_id: UUID
    admin_key_id: UUID


@dataclass(frozen=True, slots=True)
class OperatorPrincipal:
    """The operator of this Tollgate, known by an operator key."""

    operator_key_id: UUID
    name: str
