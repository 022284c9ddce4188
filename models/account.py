"""Who calls and who pays: organization, project, API key, and the principal that a credential stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import TypeAlias
from uuid import UUID

from models.money import Units


class BillingMode(StrEnum):
    """How an organization pays: before (credit grants), after (credit line), or both in this order."""

    PREPAID = "prepaid"
    POSTPAID = "postpaid"
    HYBRID = "hybrid"


Network: TypeAlias = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Limits:
    """Rate limits of one scope (an organization, a project, a key, a model in a project); None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_in_flight: int | None = None
    requests_per_day: int | None = None


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
class KeyScope:
    """From where and for what a key may be used: metered paths and networks; None is every one."""

    endpoints: frozenset[str] | None = None
    networks: tuple[Network, ...] | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of `/v1`: an API key with the project and organization it belongs to.

    `shard` is the Redis hash tag under which everything of the organization lives. `models` is None where the key
    and its project may call every model that is sold, but for those in `denied`. `expires_at_ms` is in milliseconds
    since 1970, of the billing clock. `counted_as` is the key by whose counts its own limits are kept: the one that it
    was rotated from, so that two keys have no more than one. `scope` is None for a key without bounds, and
    `model_limits` has the project's rate limits by model.
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
    denied: frozenset[str] = frozenset()
    scope: KeyScope | None = None
    counted_as: UUID | None = None
    model_limits: Mapping[str, Limits] = field(default_factory=dict)

    def may_call(self, model: str) -> bool:
        """Whether the key and its project permit this model."""
        return (self.models is None or model in self.models) and model not in self.denied


@dataclass(frozen=True, slots=True)
class AdminPrincipal:
    """An administrator of one organization, known by an admin key, which may end at `expires_at`."""

    organization_id: UUID
    admin_key_id: UUID
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class OperatorPrincipal:
    """The operator of this Tollgate, known by an operator key."""

    operator_key_id: UUID
    name: str
