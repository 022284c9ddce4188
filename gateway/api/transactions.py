"""A request that changes something, as one transaction: the effect, its audit entry and its idempotent answer."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeAlias
from uuid import UUID

import structlog
from fastapi import Request
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import JSONResponse

from billing.projection import project_balance
from billing.spending import count_spending
from billing.store.audit import write_audit
from billing.store.constraints import refusal
from billing.store.idempotency import Claim, StoredAnswer, claim, keep_answer
from gateway.keys import seal, unseal
from gateway.parts import Parts
from models.errors import InvalidRequest, Unavailable

PROJECTION_TIMEOUT_SECONDS: Final = 2.0
_VALUE, _SEALED = "value", "sealed_value"

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Change:
    """A change being made: everything that is written through `connection` commits together, or not at all."""

    connection: AsyncConnection
    now: datetime
    actor: str
    pepper: bytes
    retry_key: str | None
    organizations: set[UUID] = field(default_factory=set)
    revoked: list[bytes] = field(default_factory=list)
    catalog_changed: bool = False

    async def audit(
        self,
        action: str,
        subject: str,
        organization_id: UUID | None = None,
        project_id: UUID | None = None,
        /,
        **detail: Any,
    ) -> None:
        """Write to the audit log what happened to `subject` (`<type>:<id>`); `detail` holds no secret."""
        await write_audit(
            self.connection,
            now=self.now,
            actor=self.actor,
            action=action,
            object=subject,
            organization_id=organization_id,
            detail=detail,
            project_id=project_id,
        )

    def project(self, organization_id: UUID) -> None:
        """Bring the organization's balance to the hot store after the commit."""
        self.organizations.add(organization_id)


Effect: TypeAlias = Callable[[Change], Awaitable[BaseModel]]


@dataclass(frozen=True, slots=True)
class Transaction:
    """A request that passed its guard, with what it takes to answer it; `actor` is who asks, for the audit log."""

    parts: Parts
    actor: str
    claim: Claim | None

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection to read from."""
        async with _told_refusals(), self.parts.engine.connect() as connection:
            yield connection

    async def change(self, effect: Effect) -> JSONResponse:
        """Run an effect in a transaction and answer with what it returns.

        With an Idempotency-Key the same request again gets the same answer and has no effect. What the effect raises
        undoes all of it.
        """
        change: Change | None = None
        async with _told_refusals(), self.parts.engine.begin() as connection:
            now = self.parts.clock.now()
            stored = await claim(connection, self.claim, now) if self.claim else None
            if stored is None:
                change = self._change(connection, now)
                content = (await effect(change)).model_dump(mode="json")
                stored = StoredAnswer(200, self._sealed(content))
                if self.claim:
                    await keep_answer(connection, self.claim, stored)
        if change is not None:
            await self._after_commit(change)
        return JSONResponse(self._unsealed(stored.response), stored.status)

    def _change(self, connection: AsyncConnection, now: datetime) -> Change:
        retry_key = f"{self.claim.actor}:{self.claim.key}:{self.claim.request_digest.hex()}" if self.claim else None
        return Change(connection, now, self.actor, self._pepper, retry_key)

    @property
    def _pepper(self) -> bytes:
        return self.parts.settings.key_pepper.get_secret_value().encode()

    # A new key is shown again to the one who repeats the request, but the table must not know it: it is sealed there.

    def _sealed(self, content: dict[str, Any]) -> dict[str, Any]:
        return _with_keys(content, _VALUE, _SEALED, lambda value: seal(value, self._pepper))

    def _unsealed(self, content: dict[str, Any]) -> dict[str, Any]:
        return _with_keys(content, _SEALED, _VALUE, lambda value: unseal(value, self._pepper))

    async def _after_commit(self, change: Change) -> None:
        for digest in change.revoked:
            self.parts.keys.forget(digest)
        if change.catalog_changed:
            await self.parts.catalog.refresh(force=True)
        for organization_id in change.organizations:
            await self._project(organization_id)

    async def _project(self, organization_id: UUID) -> None:
        try:
            async with asyncio.timeout(PROJECTION_TIMEOUT_SECONDS), self.parts.engine.connect() as connection:
                await project_balance(connection, self.parts.hot, organization_id)
                await count_spending(connection, self.parts.hot, organization_id, self.parts.clock.now())
        except Exception as error:
            # The change is committed, so the answer is success: the worker projects what is behind within seconds.
            _log.warning("projection_left_to_worker", reason=type(error).__name__)


async def claim_of(request: Request, actor: str, idempotency_key: str | None) -> Claim | None:
    """What a request claims by its Idempotency-Key, or None without one."""
    if idempotency_key is None:
        return None
    if not 0 < len(idempotency_key) <= 255 or len(request.headers.getlist("idempotency-key")) > 1:
        raise InvalidRequest("Idempotency-Key must be sent once, with 1 to 255 characters.", param="idempotency-key")
    # A lone key on another path or with another body is another request.
    asked = b"\0".join((request.method.encode(), request.scope["path"].encode(), await request.body()))
    return Claim(actor, idempotency_key, hashlib.sha256(asked).digest())


def _with_keys(content: dict[str, Any], name: str, new_name: str, change: Callable[[str], str]) -> dict[str, Any]:
    """An answer with the keys in it, at any depth, under a new name and changed."""
    result: dict[str, Any] = {}
    for field_name, value in content.items():
        if isinstance(value, dict):
            result[field_name] = _with_keys(value, name, new_name, change)
        elif field_name == name and isinstance(value, str):
            result[new_name] = change(value)
        else:
            result[field_name] = value
    return result


@asynccontextmanager
async def _told_refusals() -> AsyncIterator[None]:
    """Turn what Postgres refuses into a sentence for the caller, and its absence into `Unavailable`."""
    try:
        yield
    except DBAPIError as error:
        told = refusal(error)
        if told is None:
            raise
        # Without its cause, whose text quotes values.
        raise told from None
    except (OSError, TimeoutError, PoolTimeout):
        raise Unavailable("The database cannot be reached now. Try again in a moment.") from None
