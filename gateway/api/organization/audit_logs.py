"""The audit log as the organization sees it: who changed what of it, under the event names of the OpenAI API."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from billing.store.audit import OrganizationAuditFilter, list_audit_of
from billing.store.pages import AnyRow, Page
from gateway.api.operator.shapes import Asked, ListOf, Printable, list_of
from gateway.api.organization.requests import Admin
from gateway.api.organization.shapes import seconds

router = APIRouter()

_TYPES: Final = {
    **{
        f"{noun}.{verb}": f"{noun}.{verb}"
        for noun, verbs in {
            "project": ("created", "updated", "archived"),
            "api_key": ("created", "updated", "deleted", "rotated"),
            "service_account": ("created", "updated", "deleted"),
            "rate_limit": ("updated",),
            "model_permissions": ("updated", "deleted"),
            "spend_limit": ("updated", "deleted"),
            "spend_alert": ("created", "updated", "deleted"),
            "user": ("added", "updated", "deleted"),
            "invite": ("sent", "accepted", "deleted"),
            "organization": ("created", "updated", "closed"),
            "credit_grant": ("created", "voided"),
        }.items()
        for verb in verbs
    },
    "api_key.revoked": "api_key.deleted",
    "spend_limit.set": "spend_limit.updated",
    "spend_limit.removed": "spend_limit.deleted",
    "admin_key.created": "tenant.admin_api_key.created",
    "admin_key.rotated": "tenant.admin_api_key.created",
    "admin_key.revoked": "tenant.admin_api_key.deleted",
}
"""What the organization is shown, by what is kept, and under which name. Other entries are the operator's business."""

_WITHOUT_DETAIL: Final = ("organization", "credit_grant")
"""What operators note of these may be meant for themselves."""

_PAYLOADS: Final = {
    "created": "data",
    "added": "data",
    "sent": "data",
    "rotated": "data",
    "updated": "changes_requested",
}
_LATEST: Final = 253_402_300_799

_Word = Annotated[str, StringConstraints(min_length=1, max_length=300), Printable]
_Words = Annotated[list[_Word] | None, Field(max_length=200)]
_Second = Annotated[int | None, Field(ge=0, lt=_LATEST)]
_Entry = Annotated[int | None, Field(ge=0, lt=2**63)]


class ActingKey(BaseModel):
    """The key that an action was done with: an admin key, or `operator` for whoever operates this Tollgate."""

    id: str
    type: Literal["user", "service_account"] = "user"


class Actor(BaseModel):
    """Who acted."""

    type: Literal["api_key"] = "api_key"
    api_key: ActingKey


class ProjectOfEntry(BaseModel):
    """The project that an action was about."""

    id: str
    name: str | None


class AuditLog(BaseModel):
    """One action; what it was about is in the field that has the name of its type."""

    model_config = ConfigDict(extra="allow")

    id: str
    type: str
    effective_at: int
    actor: Actor
    project: ProjectOfEntry | None

    @classmethod
    def of(cls, row: AnyRow) -> AuditLog:
        """The answer for a row."""
        kind = _TYPES[row.action]
        project = None if row.project_id is None else ProjectOfEntry(id=str(row.project_id), name=row.project_name)
        actor = Actor(api_key=ActingKey(id=row.shown_actor.removeprefix("admin:")))
        plain = {"id": str(row.id), "type": kind, "effective_at": seconds(row.created_at)}
        return cls.model_validate(plain | {"actor": actor, "project": project, kind: _payload(row)})


class AskedAuditLogs(Asked):
    """Which actions to list."""

    after: _Entry = None
    before: _Entry = None
    since: _Second = Field(None, alias="effective_at[gte]")
    later_than: _Second = Field(None, alias="effective_at[gt]")
    earlier_than: _Second = Field(None, alias="effective_at[lt]")
    until: _Second = Field(None, alias="effective_at[lte]")
    event_types: _Words = Field(None, alias="event_types[]")
    actor_ids: _Words = Field(None, alias="actor_ids[]")
    actor_emails: _Words = Field(None, alias="actor_emails[]")
    project_ids: Annotated[list[UUID] | None, Field(max_length=200)] = Field(None, alias="project_ids[]")
    resource_ids: _Words = Field(None, alias="resource_ids[]")
    tenant_only: bool = False

    def wanted(self) -> OrganizationAuditFilter:
        """The same as conditions on the table."""
        starts = [second for second in (self.since, _next(self.later_than)) if second is not None]
        ends = [second for second in (self.earlier_than, _next(self.until)) if second is not None]
        return OrganizationAuditFilter(
            actions=_actions(self.event_types, is_tenant_only=self.tenant_only),
            starts_at=_moment(max(starts)) if starts else None,
            ends_at=_moment(min(ends)) if ends else None,
            actors=self._actors(),
            project_ids=self.project_ids,
            subjects=self.resource_ids,
        )

    def _actors(self) -> list[str] | None:
        if self.actor_emails is not None:
            # Nobody acts under an address here: actions are done with keys.
            return []
        if self.actor_ids is None:
            return None
        return [name for actor in self.actor_ids for name in (actor, f"admin:{actor}")]


@router.get("/audit_logs")
async def list_organization_audit_logs(asked: Annotated[AskedAuditLogs, Query()], request: Admin) -> ListOf[AuditLog]:
    """What was changed of the organization, newest first."""
    page = Page(asked.after, asked.limit, newest_first=True, before=asked.before)
    async with request.reading() as connection:
        rows, more = await list_audit_of(connection, request.organization_id, asked.wanted(), page)
    return list_of([AuditLog.of(row) for row in rows], more)


def _payload(row: AnyRow) -> dict[str, Any]:
    noun, _, verb = _TYPES[row.action].rpartition(".")
    payload: dict[str, Any] = {"id": row.object.partition(":")[2]}
    if verb in _PAYLOADS and noun not in _WITHOUT_DETAIL:
        detail = dict(row.detail)
        if noun == "project" and "name" in detail:
            detail.setdefault("title", detail["name"])
        payload[_PAYLOADS[verb]] = detail
    return payload


def _actions(types: Collection[str] | None, *, is_tenant_only: bool) -> list[str]:
    return [
        action
        for action, kind in _TYPES.items()
        if (types is None or kind in types) and (not is_tenant_only or kind.startswith("tenant."))
    ]


def _next(second: int | None) -> int | None:
    return None if second is None else second + 1


def _moment(second: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second)
