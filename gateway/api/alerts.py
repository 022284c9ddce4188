"""What an organization was alerted of."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from billing.store.alerts import list_alerts
from gateway.api.operator.alerts import AskedAlerts, OwnAlert
from gateway.api.operator.shapes import ListOf, list_of
from gateway.auth import require_admin
from gateway.parts import Parts, parts_of
from models.account import AdminPrincipal

router = APIRouter(tags=["billing"])


@router.get("/v1/billing/alerts")
async def read_alerts(
    asked: Annotated[AskedAlerts, Query()],
    admin: Annotated[AdminPrincipal, Depends(require_admin)],
    parts: Annotated[Parts, Depends(parts_of)],
) -> ListOf[OwnAlert]:
    """The organization's alerts, newest first; `ended_at` is set once a balance is no longer low."""
    async with parts.engine.connect() as connection:
        page = asked.page(newest_first=True)
        rows, more = await list_alerts(connection, page, admin.organization_id, asked.event)
    return list_of([OwnAlert.of(row) for row in rows], more)
