"""One request of the operator as one transaction: the effect, its audit entry and its idempotent answer together."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final, TypeAlias
from uuid import UUID

import structlog
from fastapi import Depends, Header, Request
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
from gateway.auth import require_operator
from gateway.keys import seal, unseal
from gateway.parts import Parts, parts_of
from models.account import OperatorPrincipal
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

    async def audit(self, action: str, subject: str, organization_id: UUID | None = None, **detail: Any) -> None:
        """Write to the audit log what happened to `subject` (`<type>:<id>`); `detail` holds no secret."""
        await write_audit(
            self.connection,
            now=self.now,
            actor=self.actor,
            action=action,
            object=subject,
            organization_id=organization_id,
            detail=detail,
        )

    def project(self, organization_id: UUID) -> None:
        """Bring the organization's balance to the hot store after the commit."""
        self.organizations.add(organization_id)


Effect: TypeAlias = Callable[[Change], Awaitable[BaseModel]]


@dataclass(frozen=True, slots=True)
class OperatorRequest:
    """A request that passed the guard, with what it takes to answer it."""

    parts: Parts
    operator: OperatorPrincipal
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
                stored = StoredAnswer(200, self._sealed(content, change))
                if self.claim:
                    await keep_answer(connection, self.claim, stored)
        if change is not None:
            await self._after_commit(change)
        return JSONResponse(self._unsealed(stored.response), stored.status)

    def _change(self, connection: AsyncConnection, now: datetime) -> Change:
        retry_key = f"{self.claim.actor}:{self.claim.key}:{self.claim.request_digest.hex()}" if self.claim else None
        return Change(connection, now, _actor(self.operator), self._pepper, retry_key)

    @property
    def _pepper(self) -> bytes:
        return self.parts.settings.key_pepper.get_secret_value().encode()

    # A new key is shown again to the one who repeats the request, but the table must not know it: it is sealed there.

    def _sealed(self, content: dict[str, Any], change: Change) -> dict[str, Any]:
        if _VALUE not in content:
            return content
        sealed = seal(content[_VALUE], self._pepper)
        return {_SEALED if name == _VALUE else name: sealed if name == _VALUE else v for name, v in content.items()}

    def _unsealed(self, content: dict[str, Any]) -> dict[str, Any]:
        if _SEALED not in content:
            return content
        value = unseal(content[_SEALED], self._pepper)
        return {_VALUE if name == _SEALED else name: value if name == _SEALED else v for name, v in content.items()}

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


def _actor(operator: OperatorPrincipal) -> str:
    return f"operator:{operator.operator_key_id}"


async def operator_request(
    request: Request,
    operator: Annotated[OperatorPrincipal, Depends(require_operator)],
    idempotency_key: Annotated[
        str | None, Header(description="Repeats of a change under one key have one effect")
    ] = None,
) -> OperatorRequest:
    """The request of an operator; a FastAPI dependency, and with it the guard of every route that uses it."""
    if idempotency_key is None:
        return OperatorRequest(parts_of(request), operator, None)
    if not 0 < len(idempotency_key) <= 255 or len(request.headers.getlist("idempotency-key")) > 1:
        raise InvalidRequest("Idempotency-Key must be sent once, with 1 to 255 characters.", param="idempotency-key")
    # A lone key on another path or with another body is another request.
    asked = b"\0".join((request.method.encode(), request.scope["path"].encode(), await request.body()))
    digest = hashlib.sha256(asked).digest()
    return OperatorRequest(parts_of(request), operator, Claim(_actor(operator), idempotency_key, digest))


Operator: TypeAlias = Annotated[OperatorRequest, Depends(operator_request)]


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
