"""Routes to look over the whole: who changed what, and whether the promises of the ledger hold."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, StringConstraints
from starlette.responses import JSONResponse, Response

from billing.store.audit import AuditFilter, list_audit
from billing.store.pages import AnyRow, Page
from gateway.api.operator.requests import Operator
from gateway.api.operator.shapes import Asked, ListOf, Printable, list_of

router = APIRouter()

Word = Annotated[str, StringConstraints(min_length=1, max_length=300), Printable]


class AuditEntry(BaseModel):
    """One change: `actor` did `action` to `subject`; `detail` is what was asked for."""

    id: str
    object: Literal["audit_log"] = "audit_log"
    created_at: datetime
    actor: str
    action: str
    subject: str
    organization_id: UUID | None
    detail: dict[str, Any]

    @classmethod
    def of(cls, row: AnyRow) -> AuditEntry:
        """The answer for a row."""
        plain = {name: getattr(row, name) for name in ("created_at", "actor", "action", "organization_id", "detail")}
        return cls(id=str(row.id), subject=row.object, **plain)


class AskedAudit(Asked):
    """Which entries to list, newest first."""

    after: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    organization_id: UUID | None = None
    actor: Word | None = None
    action: Word | None = None
    subject: Word | None = None


@router.get("/audit_logs")
async def list_audit_logs(asked: Annotated[AskedAudit, Query()], request: Operator) -> ListOf[AuditEntry]:
    """Changes made by operators, newest first."""
    wanted = AuditFilter(asked.organization_id, asked.actor, asked.action, asked.subject)
    async with request.reading() as connection:
        rows, more = await list_audit(connection, wanted, Page(asked.after, asked.limit, newest_first=True))
    return list_of([AuditEntry.of(row) for row in rows], more)


@router.get("/verify", response_model=dict[str, Any])
async def verify(request: Operator) -> Response:
    """Check the promises P1 to P6 on live data, as `tollgate verify --json` does.

    Each check has its promise, a sentence on what was compared, how many rows, how many are `wrong`, and the first of
    them as `findings`. There is none on invoices (P7) yet.
    """
    # Imported when asked for: it draws in all of the book, which no other route of the gateway needs.
    from billing.verify import verify as verify_book

    report = await verify_book(request.parts.engine, request.parts.hot)
    return JSONResponse(report.as_json())
