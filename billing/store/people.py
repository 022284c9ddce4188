"""People in Postgres: users of an organization, their places in its projects, and those who are invited."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, delete, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_one, fetch_optional, fetch_page
from models.ids import uuid7
from models.tables import invite, organization_user, project, project_user

# Users of an organization ---------------------------------------------------------------------------------------------


async def list_users(
    connection: AsyncConnection, organization_id: UUID, page: Page, emails: Collection[str] | None = None
) -> tuple[list[AnyRow], bool]:
    """A page of the users of an organization, oldest first; only those of `emails` where these are given."""
    statement = _users(organization_id)
    if emails is not None:
        statement = statement.where(organization_user.c.email.in_(emails))
    return await fetch_page(connection, statement, organization_user.c.id, page)


async def find_user(connection: AsyncConnection, organization_id: UUID, user_id: UUID) -> AnyRow | None:
    """A user of an organization."""
    return await fetch_optional(connection, _users(organization_id).where(organization_user.c.id == user_id))


async def find_user_by_email(connection: AsyncConnection, organization_id: UUID, email: str) -> AnyRow | None:
    """A user of an organization by the address, in lower case."""
    return await fetch_optional(connection, _users(organization_id).where(organization_user.c.email == email))


async def add_user(connection: AsyncConnection, organization_id: UUID, email: str, role: str, now: datetime) -> AnyRow:
    """Store a user; `IntegrityError` where there is one of this address."""
    values = {"organization_id": organization_id, "email": email, "role": role}
    statement = insert(organization_user).values(id=uuid7(now), created_at=now, **values)
    return await fetch_one(connection, statement.returning(organization_user))


async def update_user(connection: AsyncConnection, user_id: UUID, values: dict[str, Any]) -> AnyRow:
    """Change columns of a user who exists."""
    statement = update(organization_user).where(organization_user.c.id == user_id).values(values)
    return await fetch_one(connection, statement.returning(organization_user))


async def remove_user(connection: AsyncConnection, user_id: UUID, now: datetime) -> None:
    """End a user, in all projects as well."""
    await connection.execute(delete(project_user).where(project_user.c.user_id == user_id))
    await update_user(connection, user_id, {"removed_at": now})


async def projects_of_users(connection: AsyncConnection, user_ids: Sequence[UUID]) -> dict[UUID, list[AnyRow]]:
    """By user: the open projects they have a place in, with `name` and `role`."""
    found: dict[UUID, list[AnyRow]] = {user_id: [] for user_id in user_ids}
    rows = await connection.execute(
        select(project_user.c.user_id, project.c.id, project.c.name, project_user.c.role)
        .join(project, project.c.id == project_user.c.project_id)
        .where(project_user.c.user_id.in_(user_ids), project.c.archived_at.is_(None))
        .order_by(project.c.id)
    )
    for row in rows:
        found[row.user_id].append(row)
    return found


# Users of a project ---------------------------------------------------------------------------------------------------


async def put_into_project(
    connection: AsyncConnection, organization_id: UUID, project_id: UUID, user_id: UUID, role: str, now: datetime
) -> bool:
    """Give a user a place in a project; False where there is one already, which stays as it is."""
    values = {"organization_id": organization_id, "project_id": project_id, "user_id": user_id, "role": role}
    statement = upsert(project_user).values(created_at=now, **values).on_conflict_do_nothing()
    return await fetch_optional(connection, statement.returning(project_user.c.user_id)) is not None


async def find_project_user(connection: AsyncConnection, project_id: UUID, user_id: UUID) -> AnyRow | None:
    """A user of a project, with address and name."""
    statement = _project_users(project_id).where(project_user.c.user_id == user_id)
    return await fetch_optional(connection, statement)


async def list_project_users(connection: AsyncConnection, project_id: UUID, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of the users of a project, by their id."""
    return await fetch_page(connection, _project_users(project_id), project_user.c.user_id, page)


async def set_project_role(connection: AsyncConnection, project_id: UUID, user_id: UUID, role: str) -> None:
    """Change a user's role in a project."""
    place = (project_user.c.project_id == project_id, project_user.c.user_id == user_id)
    await connection.execute(update(project_user).where(*place).values(role=role))


async def take_out_of_project(connection: AsyncConnection, project_id: UUID, user_id: UUID) -> None:
    """End a user's place in a project."""
    place = (project_user.c.project_id == project_id, project_user.c.user_id == user_id)
    await connection.execute(delete(project_user).where(*place))


# Invites --------------------------------------------------------------------------------------------------------------


async def create_invite(connection: AsyncConnection, now: datetime, values: dict[str, Any]) -> AnyRow:
    """Store an invite; `values` are columns."""
    statement = insert(invite).values(id=uuid7(now), created_at=now, **values)
    return await fetch_one(connection, statement.returning(invite))


async def find_invite(connection: AsyncConnection, organization_id: UUID, invite_id: UUID) -> AnyRow | None:
    """An invite of an organization that was not deleted."""
    return await fetch_optional(connection, _invites(organization_id).where(invite.c.id == invite_id))


async def find_pending_invite(
    connection: AsyncConnection, organization_id: UUID, email: str, now: datetime
) -> AnyRow | None:
    """The newest invite of an address that can still be accepted."""
    statement = _invites(organization_id).where(
        invite.c.email == email, invite.c.accepted_at.is_(None), invite.c.expires_at > now
    )
    return await fetch_optional(connection, statement.order_by(invite.c.id.desc()).limit(1))


async def list_invites(connection: AsyncConnection, organization_id: UUID, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of the invites of an organization, oldest first."""
    return await fetch_page(connection, _invites(organization_id), invite.c.id, page)


async def end_invite(connection: AsyncConnection, invite_id: UUID, **moments: datetime) -> None:
    """Note that an invite was accepted or deleted, by `accepted_at` or `deleted_at`."""
    await connection.execute(update(invite).where(invite.c.id == invite_id).values(moments))


async def take_in(
    connection: AsyncConnection, organization_id: UUID, email: str, invited: AnyRow | None, now: datetime
) -> AnyRow:
    """Make a user of an address that is none yet: as the invite that waits for it says, else a reader."""
    if invited is None:
        return await add_user(connection, organization_id, email, "reader", now)
    user = await add_user(connection, organization_id, email, invited.role, now)
    for place in invited.projects:
        await put_into_project(connection, organization_id, UUID(place["id"]), user.id, place["role"], now)
    await end_invite(connection, invited.id, accepted_at=now)
    return user


def _users(organization_id: UUID) -> Select[*tuple[Any, ...]]:
    return select(organization_user).where(
        organization_user.c.organization_id == organization_id, organization_user.c.removed_at.is_(None)
    )


def _project_users(project_id: UUID) -> Select[*tuple[Any, ...]]:
    return (
        select(
            project_user.c.user_id.label("id"),
            project_user.c.role,
            project_user.c.created_at,
            organization_user.c.email,
            organization_user.c.name,
        )
        .join(organization_user, organization_user.c.id == project_user.c.user_id)
        .where(project_user.c.project_id == project_id)
    )


def _invites(organization_id: UUID) -> Select[*tuple[Any, ...]]:
    return select(invite).where(invite.c.organization_id == organization_id, invite.c.deleted_at.is_(None))
