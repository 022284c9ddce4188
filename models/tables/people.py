"""People of an organization: invited, listed, given roles and removed here; what they may do is for the console."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, ForeignKeyConstraint, Index, Table, Text, UniqueConstraint, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB

from models.tables.columns import MOMENT, created_at, metadata, one_of

organization_user = Table(
    "organization_user",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("organization_id", Uuid, ForeignKey("organization.id"), nullable=False),
    # In lower case.
    Column("email", Text, nullable=False),
    Column("name", Text),
    Column("role", Text, nullable=False),
    Column("developer_persona", Text),
    Column("technical_level", Text),
    created_at(),
    Column("removed_at", MOMENT),
    one_of("role", "owner", "reader"),
    Index(
        "organization_user_email_key",
        "organization_id",
        "email",
        unique=True,
        postgresql_where=text("removed_at is null"),
    ),
    UniqueConstraint("organization_id", "id"),
)

project_user = Table(
    "project_user",
    metadata,
    Column("project_id", Uuid, primary_key=True),
    Column("user_id", Uuid, primary_key=True, index=True),
    Column("organization_id", Uuid, nullable=False),
    Column("role", Text, nullable=False),
    created_at(),
    one_of("role", "owner", "member"),
    ForeignKeyConstraint(["organization_id", "project_id"], ["project.organization_id", "project.id"]),
    ForeignKeyConstraint(["organization_id", "user_id"], ["organization_user.organization_id", "organization_user.id"]),
)

invite = Table(
    "invite",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("organization_id", Uuid, ForeignKey("organization.id"), nullable=False, index=True),
    Column("email", Text, nullable=False),
    Column("role", Text, nullable=False),
    # [{"id": project, "role": role in it}, ...]
    Column("projects", JSONB, nullable=False, server_default=text("'[]'::jsonb")),
    created_at(),
    Column("expires_at", MOMENT, nullable=False),
    Column("accepted_at", MOMENT),
    Column("deleted_at", MOMENT),
    one_of("role", "owner", "reader"),
)
