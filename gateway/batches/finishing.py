"""The last step of a batch: what came of its lines is written into files, in the order of the input."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.batches import (
    drop_lines,
    ended_lines,
    has_lines_running,
    is_good,
    lose_lines,
    move_batch,
    take_batch,
)
from billing.store.files import CHUNK_BYTES, append_chunk, begin_file, complete_file
from billing.store.pages import AnyRow
from gateway.batches.lines import own_error, result_line
from gateway.parts import Parts
from gateway.telemetry import BATCHES
from models.ids import uuid7
from models.tables import batch as batch_table

_LINES_AT_ONCE = 200
_BYTES_AT_ONCE = 8 * 1024 * 1024


class _Writer:
    """Writes an output file or error file of a batch, if it gets any lines."""

    def __init__(self, connection: AsyncConnection, batch: AnyRow, name: str, now: datetime) -> None:
        self._connection = connection
        self._batch = batch
        self._name = name
        self._now = now
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._seq = 0
        self.file_id: UUID | None = None

    async def write(self, line: bytes) -> None:
        """Add a line."""
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        if self._waiting_bytes >= CHUNK_BYTES:
            await self._flush()

    async def close(self) -> UUID | None:
        """The file, complete; None where there was nothing to write."""
        await self._flush()
        if self.file_id is not None:
            expires_at = self._now + timedelta(seconds=self._batch.output_seconds)
            await complete_file(self._connection, self.file_id, expires_at)
        return self.file_id

    async def _flush(self) -> None:
        content, self._waiting, self._waiting_bytes = b"".join(self._waiting), [], 0
        for at in range(0, len(content), CHUNK_BYTES):
            await self._append(content[at : at + CHUNK_BYTES])

    async def _append(self, piece: bytes) -> None:
        batch = self._batch
        if self.file_id is None:
            self.file_id = uuid7(self._now)
            await begin_file(
                self._connection,
                self.file_id,
                organization_id=batch.organization_id,
                project_id=batch.project_id,
                purpose="batch_output",
                filename=f"batch_{batch.id.hex}_{self._name}.jsonl",
                now=self._now,
            )
        await append_chunk(self._connection, self.file_id, self._seq, piece)
        self._seq += 1


async def finish(parts: Parts, batch: AnyRow) -> str | None:
    """Write the files of a batch whose lines run no more, and end it; its status then, or None where it goes on.

    One transaction: who dies in here has done nothing.
    """
    now = parts.clock.now()
    async with parts.engine.begin() as connection:
        if not await take_batch(connection, batch.id) or await has_lines_running(connection, batch.id):
            return None
        lost = await lose_lines(connection, batch.id, batch.organization_id)
        reason = _reason(batch)
        output, errors = _Writer(connection, batch, "output", now), _Writer(connection, batch, "error", now)
        after, undone = 0, 0
        while rows := await ended_lines(connection, batch.id, after, _LINES_AT_ONCE, _BYTES_AT_ONCE):
            for row in rows:
                told = (row.call_id, row.status, row.answer) if row.is_done else (None, None, reason)
                line = result_line(row.custom_id, row.line, batch.id, *told)
                await (output if is_good(row.status) else errors).write(line)
                undone += not row.is_done
            after = rows[-1].line
        values: dict[str, Any] = {"output_file_id": await output.close(), "error_file_id": await errors.close()}
        status = "cancelled" if batch.status == "cancelling" else "expired" if undone else "completed"
        values |= {"status": status, f"{status}_at": now, "failed": batch_table.c.total - batch_table.c.completed}
        await drop_lines(connection, batch.id)
        if await move_batch(connection, batch.id, (batch.status,), values) is None:
            await connection.rollback()
            return None
    BATCHES.lost(lost)
    BATCHES.ended(status)
    return status


def _reason(batch: AnyRow) -> bytes:
    """What is told of lines that were not run."""
    if batch.status != "cancelling":
        return own_error("batch_expired", "This request could not be executed before the completion window expired.")
    if batch.errors:
        return own_error(batch.errors[0]["code"], batch.errors[0]["message"])
    return own_error("batch_cancelled", "This request was not executed before the batch was cancelled.")
