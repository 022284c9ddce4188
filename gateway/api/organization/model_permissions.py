"""Routes of model permissions: the models that the keys of a project may call, or may not."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from billing.store.organizations import update_project
from billing.store.pages import AnyRow
from gateway.api.operator.organizations import found_organization
from gateway.api.operator.shapes import Body, ModelId
from gateway.api.organization.projects import own_live_project, own_project
from gateway.api.organization.requests import Admin, Change
from gateway.api.organization.shapes import DeletedSetting
from gateway.api.organization.sold import check_sold

router = APIRouter()


class ModelPermissionsUpdate(Body):
    """The whole list: an allow list permits what is on it, a deny list all that is not."""

    mode: Literal["allow_list", "deny_list"]
    model_ids: Annotated[list[ModelId], Field(max_length=1_000)]


class ModelPermissions(BaseModel):
    """The list of a project; without one it is a deny list with nothing on it."""

    object: Literal["project.model_permissions"] = "project.model_permissions"
    mode: Literal["allow_list", "deny_list"]
    model_ids: list[str]

    @classmethod
    def of(cls, row: AnyRow) -> ModelPermissions:
        """The answer for a row of a project."""
        return cls(mode=row.models_mode or "deny_list", model_ids=row.models or [])


@router.get("/projects/{project_id}/model_permissions")
async def get_model_permissions(project_id: UUID, request: Admin) -> ModelPermissions:
    """What the keys of a project may call."""
    async with request.reading() as connection:
        return ModelPermissions.of(await own_project(connection, request.organization_id, project_id))


@router.post("/projects/{project_id}/model_permissions", response_model=ModelPermissions)
async def update_model_permissions(project_id: UUID, body: ModelPermissionsUpdate, request: Admin) -> Response:
    """Permit or forbid models to the keys of a project; gateways follow within seconds."""

    async def effect(change: Change) -> ModelPermissions:
        project = await own_live_project(change.connection, request.organization_id, project_id)
        organization = await found_organization(change.connection, request.organization_id)
        models = list(dict.fromkeys(body.model_ids))
        # What is on the list already may stay there when it is sold no longer.
        await check_sold(request.parts, organization, set(models) - set(project.models or ()), "model_ids")
        row = await update_project(change.connection, project_id, {"models_mode": body.mode, "models": models})
        detail = {"mode": body.mode, "model_ids": models}
        subject = f"model_permissions:{project_id}"
        await change.audit("model_permissions.updated", subject, organization.id, project_id, **detail)
        return ModelPermissions.of(row or project)

    return await request.change(effect)


@router.delete("/projects/{project_id}/model_permissions", response_model=DeletedSetting)
async def delete_model_permissions(project_id: UUID, request: Admin) -> Response:
    """Let the keys of a project call every model that is sold."""

    async def effect(change: Change) -> DeletedSetting:
        await own_live_project(change.connection, request.organization_id, project_id)
        await update_project(change.connection, project_id, {"models_mode": None, "models": None})
        subject = f"model_permissions:{project_id}"
        await change.audit("model_permissions.deleted", subject, request.organization_id, project_id)
        return DeletedSetting(object="project.model_permissions.deleted")

    return await request.change(effect)
