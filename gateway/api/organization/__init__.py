"""The organization's admin API, `/v1/organization`, as the official SDK's admin client calls it; one file per noun."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from gateway.api.organization import (
    admin_api_keys,
    api_keys,
    audit_logs,
    costs,
    invites,
    model_permissions,
    project_users,
    projects,
    rate_limits,
    service_accounts,
    spend_alerts,
    spend_limits,
    usage,
    users,
)
from gateway.auth import require_admin

# The guard stands here too, so that a route is guarded whatever its file forgets.
router = APIRouter(prefix="/v1/organization", tags=["organization"], dependencies=[Depends(require_admin)])
for room in (
    projects,
    service_accounts,
    api_keys,
    rate_limits,
    model_permissions,
    spend_limits,
    spend_alerts,
    project_users,
    users,
    invites,
    admin_api_keys,
    audit_logs,
    usage,
    costs,
):
    router.include_router(room.router)
