"""Sends alerts to those who receive them: signed, tried again for a day, to public addresses only."""

from __future__ import annotations

import asyncio
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import httpx
import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.alerting import next_attempt
from billing.store.alerts import Delivery, lease_deliveries, mark_delivery
from gateway.destinations import find_address, read_url
from gateway.keys import unseal
from gateway.signatures import sign
from models.errors import InvalidRequest

AT_ONCE: Final = 16
"""Deliveries that are made at a time."""

_ATTEMPT_SECONDS: Final = 10.0
_LEASE: Final = timedelta(minutes=1)
"""Longer than an attempt: after it, the worker that made it is taken for dead."""


FindAddress: TypeAlias = Callable[[httpx.URL], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Attempt:
    """How an attempt went: the receiver's status, or why there was none."""

    status: int | None
    error: str | None

    @property
    def is_taken(self) -> bool:
        """Whether the receiver has taken the alert."""
        return self.status is not None and 200 <= self.status < 300


class Post:
    """Sends alerts. `find_address` and `trusted` are for tests, whose receiver is on this machine."""

    def __init__(
        self, pepper: bytes, *, find_address: FindAddress = find_address, trusted: ssl.SSLContext | None = None
    ) -> None:
        self._pepper = pepper
        self._find_address = find_address
        # No connection is kept: it was made for one name, and another name at the same address must not get it.
        self._client = httpx.AsyncClient(
            verify=ssl.create_default_context() if trusted is None else trusted,
            limits=httpx.Limits(max_keepalive_connections=0),
            follow_redirects=False,
            # A proxy would resolve the name by itself.
            trust_env=False,
            timeout=_ATTEMPT_SECONDS,
        )

    async def close(self) -> None:
        """Close what is open."""
        await self._client.aclose()

    async def send(self, delivery: Delivery) -> Attempt:
        """Make one attempt. Of the answer nothing is read but its status; never raises for a receiver's fault."""
        try:
            async with asyncio.timeout(_ATTEMPT_SECONDS):
                return Attempt(await self._status(delivery), None)
        except InvalidRequest as error:
            return Attempt(None, error.message)
        except TimeoutError:
            return Attempt(None, f"There was no answer within {_ATTEMPT_SECONDS:g} seconds.")
        except (httpx.HTTPError, OSError, ValueError) as error:
            # The name of the fault alone: its text may quote the receiver.
            return Attempt(None, f"The receiver cannot be reached ({type(error).__name__}).")

    async def _status(self, delivery: Delivery) -> int:
        url = read_url(delivery.url)
        address = await self._find_address(url)
        body = body_of(delivery)
        secret = unseal(delivery.sealed_secret, self._pepper).encode()
        request = self._client.build_request(
            "POST",
            # The address that was checked, so that nothing is looked up in between; the certificate is the name's.
            url.copy_with(host=address),
            content=body,
            headers={
                "host": url.netloc.decode(),
                "content-type": "application/json",
                "user-agent": "Tollgate",
                "tollgate-event-id": str(delivery.alert_id),
                "tollgate-signature": sign(secret, body, int(time.time())),
            },
            extensions={"sni_hostname": url.host},
        )
        response = await self._client.send(request, stream=True)
        await response.aclose()
        return response.status_code


def body_of(delivery: Delivery) -> bytes:
    """What is sent: the alert as the feed shows it, the same to the byte in every attempt."""
    told = {
        "id": str(delivery.alert_id),
        "object": "alert",
        "event": delivery.kind,
        "created_at": delivery.created_at,
        "organization_id": None if delivery.organization_id is None else str(delivery.organization_id),
        "data": delivery.detail,
    }
    return msgspec.json.encode(told, order="sorted")


async def deliver(engine: AsyncEngine, post: Post, now: datetime) -> int:
    """Make the deliveries that are due, `AT_ONCE` at most; how many there were."""
    async with engine.begin() as connection:
        leased = await lease_deliveries(connection, now, now + _LEASE, AT_ONCE)
    if not leased:
        return 0
    attempts = await asyncio.gather(*(post.send(delivery) for delivery in leased))
    async with engine.begin() as connection:
        for delivery, attempt in zip(leased, attempts, strict=True):
            again = next_attempt(delivery.attempts, delivery.created_at, now, secrets.randbelow(1_001))
            await mark_delivery(
                connection,
                delivery,
                delivered_at=now if attempt.is_taken else None,
                next_at=None if attempt.is_taken else again,
                status=attempt.status,
                error=attempt.error,
            )
    return len(leased)
