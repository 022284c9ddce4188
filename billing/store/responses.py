"""Responses that are kept because their callers asked for it, to be read again and to be gone on from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, fetch_optional
from models.tables import stored_response

LIFETIME: Final = timedelta(days=30)
"""How long a response is kept, as at OpenAI."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response with the items of the conversation that it answers."""

    id: UUID
    organization_id: UUID
    project_id: UUID
    response: dict[str, Any]
    input: list[Any]


async def store_response(connection: AsyncConnection, stored: StoredResponse, now: datetime) -> None:
    """Keep a response."""
    values = {
        "id": stored.id,
        "organization_id": stored.organization_id,
        "project_id": stored.project_id,
        "created_at": now,
        "expires_at": now + LIFETIME,
        "response": stored.response,
        "input": stored.input,
    }
    await connection.execute(insert(stored_response).values(values))


async def find_response(
    connection: AsyncConnection, project_id: UUID, response_id: UUID, now: datetime
) -> AnyRow | None:
    """A response of a project; None also for one that has expired."""
    statement = select(stored_response).where(
        stored_response.c.id == response_id,
        stored_response.c.project_id == project_id,
        stored_response.c.expires_at > now,
    )
    return await fetch_optional(connection, statement)


async def delete_response(connection: AsyncConnection, project_id: UUID, response_id: UUID) -> bool:
    """Forget a response; answers whether there was one."""
    statement = delete(stored_response).where(
        stored_response.c.id == response_id, stored_response.c.project_id == project_id
    )
    return (await connection.execute(statement)).rowcount > 0


async def drop_expired_responses(connection: AsyncConnection, now: datetime) -> None:
    """Forget what has expired."""
    await connection.execute(delete(stored_response).where(stored_response.c.expires_at <= now))
