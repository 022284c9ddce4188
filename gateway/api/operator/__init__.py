"""The operator's API, `/operator/v1`: one file per noun; every change is one transaction with its audit entry."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from gateway.api.operator import (
    alerts,
    aliases,
    backends,
    costs,
    credentials,
    documents,
    grants,
    invoices,
    language_models,
    ledger,
    maintenance,
    markups,
    organizations,
    oversight,
    payments,
    periods,
    price_books,
    prices,
    projects,
    reconciliation,
    routing,
    shares,
    spend_limits,
    taxes,
)
from gateway.auth import require_operator

# The guard stands here too, so that a route is guarded whatever its file forgets.
router = APIRouter(prefix="/operator/v1", tags=["operator"], dependencies=[Depends(require_operator)])
for room in (
    # Before whatever takes `/invoices/{id}`, which would take `{id}.pdf` for an id.
    documents,
    organizations,
    projects,
    credentials,
    grants,
    backends,
    language_models,
    aliases,
    maintenance,
    routing,
    price_books,
    prices,
    markups,
    oversight,
    reconciliation,
    spend_limits,
    invoices,
    payments,
    taxes,
    ledger,
    periods,
    shares,
    costs,
    alerts,
):
    router.include_router(room.router)
