"""Digests of documents in Postgres: what each was when it was first made, to compare with later."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import func, update
from sqlalchemy.ext.asyncio import AsyncConnection

from models.tables import invoice


async def keep_digest(connection: AsyncConnection, invoice_id: UUID, sha256: bytes) -> bytes:
    """Keep the digest of an issued document's PDF if it has none yet; the one that it has, which is the first."""
    kept = await connection.execute(
        update(invoice)
        .where(invoice.c.id == invoice_id, invoice.c.state != "draft")
        .values(pdf_sha256=func.coalesce(invoice.c.pdf_sha256, sha256))
        .returning(invoice.c.pdf_sha256)
    )
    first: bytes = kept.scalar_one()
    return first
