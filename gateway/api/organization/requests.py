"""The requests of an organization's administrators: who asks, and what they claim by an Idempotency-Key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias
from uuid import UUID

from fastapi import Depends, Header, Request

from gateway.api.transactions import Change, Transaction, claim_of
from gateway.auth import require_admin
from gateway.parts import parts_of
from models.account import AdminPrincipal

__all__ = ["Admin", "AdminRequest", "Change"]


@dataclass(frozen=True, slots=True)
class AdminRequest(Transaction):
    """A request of an administrator."""

    admin: AdminPrincipal

    @property
    def organization_id(self) -> UUID:
        """The organization that is administered."""
        return self.admin.organization_id


async def admin_request(
    request: Request,
    admin: Annotated[AdminPrincipal, Depends(require_admin)],
    idempotency_key: Annotated[
        str | None, Header(description="Repeats of a change under one key have one effect")
    ] = None,
) -> AdminRequest:
    """The request of an administrator; a FastAPI dependency, and with it the guard of every route that uses it."""
    actor = f"admin:{admin.admin_key_id}"
    return AdminRequest(parts_of(request), actor, await claim_of(request, actor, idempotency_key), admin)


Admin: TypeAlias = Annotated[AdminRequest, Depends(admin_request)]
