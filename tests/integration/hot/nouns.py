"""Calls to try the hot store with: one organization each, prices and tokens of no importance."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from uuid import UUID

from billing.hot.keys import SHARD_KEYS, shard_of
from billing.hot.store import HotStore, NewBalance
from models.call import CallOrigin, Charge, Endpoint, Hold, HoldRequest, InFlightLimit, MonthlyLimit, RateBucket
from models.catalog import Rates
from models.ids import uuid7
from models.money import MilliUnits, Units
from models.usage import Ending, UsageSource

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PRICE = MilliUnits(1_000)
RATES = Rates(PRICE, PRICE, PRICE, PRICE, PRICE, version_ids=(uuid7(NOW),))
EPOCH = 7


@dataclass(frozen=True, slots=True)
class Tenant:
    """An organization that a test has to itself."""

    organization_id: UUID = field(default_factory=lambda: uuid7(NOW))
    project_id: UUID = field(default_factory=lambda: uuid7(NOW))
    api_key_id: UUID = field(default_factory=lambda: uuid7(NOW))

    @property
    def shard(self) -> int:
        """Where it lives in Redis."""
        return shard_of(self.organization_id)

    @property
    def rates_key(self) -> str:
        """The key of its rate buckets."""
        return f"{SHARD_KEYS[self.shard].rates}{self.organization_id}"

    @property
    def in_flight_key(self) -> str:
        """The key of its calls in flight."""
        return f"{SHARD_KEYS[self.shard].in_flight}{self.organization_id}"

    def request(
        self,
        amount: int = 100,
        *,
        buckets: tuple[RateBucket, ...] = (),
        in_flight: tuple[InFlightLimit, ...] = (),
        end_user: str | None = None,
        spend: tuple[MonthlyLimit, ...] = (),
    ) -> HoldRequest:
        """The hold of a new call."""
        origin = CallOrigin(
            call_id=uuid7(NOW),
            organization_id=self.organization_id,
            project_id=self.project_id,
            api_key_id=self.api_key_id,
            shard=self.shard,
            currency="USD",
            endpoint=Endpoint.CHAT_COMPLETIONS,
            model="tiny",
            streamed=True,
            created_at=NOW,
            end_user=end_user,
        )
        return HoldRequest(origin, Units(amount), RATES, 1_000, 1_000, buckets, in_flight, spend)


async def open_shard(store: HotStore, tenant: Tenant, posted: int = 1_000, credit_limit: int = 0) -> None:
    """Give the tenant's shard an epoch and the tenant its money."""
    balance = NewBalance(tenant.organization_id, posted, credit_limit, version=1)
    assert await store.install(tenant.shard, EPOCH, "0-0", [balance])


async def placed(store: HotStore, request: HoldRequest) -> Hold:
    """The hold of `request`, which must not be refused."""
    hold = await store.hold(request, EPOCH)
    assert isinstance(hold, Hold), hold
    return hold


def charge(hold: Hold, amount: int = 60, tokens: int = 60) -> Charge:
    """A finished call with `tokens` of input."""
    origin = hold.request.origin
    return Charge(
        call_id=origin.call_id,
        organization_id=origin.organization_id,
        project_id=origin.project_id,
        api_key_id=origin.api_key_id,
        currency=origin.currency,
        endpoint=origin.endpoint,
        model=origin.model,
        deployment="tiny@here",
        streamed=origin.streamed,
        ending=Ending.FINISHED,
        usage_source=UsageSource.BACKEND,
        input_tokens=tokens,
        cached_tokens=0,
        cache_write_tokens=0,
        output_tokens=0,
        reasoning_tokens=0,
        amount=amount,
        hold=hold.request.amount,
        price_version_ids=hold.request.rates.version_ids,
        created_at=origin.created_at,
        ended_at=NOW,
        end_user=origin.end_user,
    )


def with_amount(request: HoldRequest, amount: int) -> HoldRequest:
    """The same call with another hold."""
    return replace(request, amount=Units(amount))
