"""The organization's own control plane, `/v1/organization`, as the OpenAI SDK's admin client speaks it."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from gateway.api.organization import costs, usage
from gateway.auth import require_admin

# The guard stands here too, so that a route is guarded whatever its file forgets.
router = APIRouter(prefix="/v1/organization", tags=["organization"], dependencies=[Depends(require_admin)])
for room in (usage, costs):
    router.include_router(room.router)
