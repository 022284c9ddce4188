"""The operator's API, `/operator/v1`: one file per noun; every change is one transaction with its audit entry."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from gateway.api.operator import (
    alerts,
    backends,
    credentials,
    grants,
    language_models,
    organizations,
    oversight,
    prices,
    projects,
    reconciliation,
    spend_limits,
)
from gateway.auth import require_operator

# The guard stands here too, so that a route is guarded whatever its file forgets.
router = APIRouter(prefix="/operator/v1", tags=["operator"], dependencies=[Depends(require_operator)])
for room in (
    organizations,
    projects,
    credentials,
    grants,
    backends,
    language_models,
    prices,
    oversight,
    reconciliation,
    spend_limits,
    alerts,
):
    router.include_router(room.router)
