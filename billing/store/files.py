"""Files of customers in Postgres: their content in chunks, so that any gateway can take one in and give it out."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_optional, fetch_page
from models.errors import InvalidRequest
from models.tables import file, file_chunk

CHUNK_BYTES: Final = 512 * 1024
MOST_FILES: Final = 10_000
"""Files that an organization can have: the bound on bytes alone would allow as many empty ones as anybody likes."""

ABANDONED: Final = timedelta(hours=2)
"""Age at which a file whose content is not complete is nobody's any more."""


async def begin_file(
    connection: AsyncConnection,
    file_id: UUID,
    *,
    organization_id: UUID,
    project_id: UUID,
    purpose: str,
    filename: str,
    now: datetime,
) -> None:
    """Store a file without content, which nobody sees before `complete_file`, and which is dropped without it."""
    values = {"organization_id": organization_id, "project_id": project_id, "purpose": purpose, "filename": filename}
    await connection.execute(insert(file).values(id=file_id, created_at=now, expires_at=now + ABANDONED, **values))


async def append_chunk(connection: AsyncConnection, file_id: UUID, seq: int, content: bytes) -> None:
    """Add the next piece of a file's content."""
    await connection.execute(insert(file_chunk).values(file_id=file_id, seq=seq, content=content))
    await connection.execute(
        update(file).where(file.c.id == file_id).values(size_bytes=file.c.size_bytes + len(content))
    )


async def refuse_full(connection: AsyncConnection, organization_id: UUID, most_bytes: int) -> None:
    """Raise `InvalidRequest` where the organization's files are more than they may be; call it after a change.

    Until the end of the transaction others who ask for the same organization wait: two uploads at once cannot both
    find the same room.
    """
    await connection.execute(select(func.pg_advisory_xact_lock(organization_id.int & (1 << 63) - 1)))
    statement = select(func.coalesce(func.sum(file.c.size_bytes), 0), func.count()).where(
        file.c.organization_id == organization_id
    )
    used, files = (await connection.execute(statement)).one()
    if used > most_bytes or files > MOST_FILES:
        bound = f"{most_bytes} bytes" if used > most_bytes else f"{MOST_FILES} files"
        raise InvalidRequest(
            f"Your organization's files together may be {bound}. Delete some that you need no more.",
            param="file",
            code="storage_full",
        )


async def complete_file(connection: AsyncConnection, file_id: UUID, expires_at: datetime) -> AnyRow:
    """The content is there: from now on the file is seen."""
    statement = update(file).where(file.c.id == file_id).values(is_complete=True, expires_at=expires_at)
    row: AnyRow = (await connection.execute(statement.returning(file))).one()
    return row


async def find_file(connection: AsyncConnection, project_id: UUID, file_id: UUID, now: datetime) -> AnyRow | None:
    """A file of a project, complete and not expired."""
    return await fetch_optional(
        connection,
        select(file).where(
            file.c.id == file_id, file.c.project_id == project_id, file.c.is_complete, file.c.expires_at > now
        ),
    )


async def list_files(
    connection: AsyncConnection, project_id: UUID, purpose: str | None, page: Page, now: datetime
) -> tuple[list[AnyRow], bool]:
    """A page of a project's files, and whether more follow."""
    statement = select(file).where(file.c.project_id == project_id, file.c.is_complete, file.c.expires_at > now)
    if purpose is not None:
        statement = statement.where(file.c.purpose == purpose)
    return await fetch_page(connection, statement, file.c.id, page)


async def read_chunk(connection: AsyncConnection, file_id: UUID, seq: int) -> bytes | None:
    """A piece of a file's content; None after the last, or where the file was deleted."""
    statement = select(file_chunk.c.content).where(file_chunk.c.file_id == file_id, file_chunk.c.seq == seq)
    content: bytes | None = (await connection.execute(statement)).scalar_one_or_none()
    return content


async def delete_file(connection: AsyncConnection, file_id: UUID) -> None:
    """Delete a file with its content."""
    await connection.execute(delete(file).where(file.c.id == file_id))


async def drop_files(connection: AsyncConnection, now: datetime, limit: int) -> int:
    """Delete some files that have expired, also those whose content never became complete; how many."""
    gone = select(file.c.id).where(file.c.expires_at <= now).limit(limit).with_for_update(skip_locked=True)
    result = await connection.execute(delete(file).where(file.c.id.in_(gone)))
    return int(result.rowcount)
