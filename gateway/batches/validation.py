"""The first step of a batch: its input file is read, and becomes lines to be run, or errors by line number."""

from __future__ import annotations

from itertools import islice

from msgspec import to_builtins
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.batches import add_lines, drop_lines, move_batch, take_batch
from billing.store.files import find_file, read_chunk
from billing.store.pages import AnyRow
from gateway.batches.lines import Fault, InputFile
from gateway.parts import Parts
from gateway.telemetry import BATCHES

_AT_ONCE = 200


async def validate(parts: Parts, batch: AnyRow) -> None:
    """Read the input file of a batch and begin or fail it, in one transaction; another gateway may be at it already."""
    now = parts.clock.now()
    async with parts.engine.begin() as connection:
        if not await take_batch(connection, batch.id):
            return
        source = InputFile(batch.endpoint, parts.settings.max_body_bytes)
        model = await _read(parts, connection, batch, source)
        if source.faults:
            await drop_lines(connection, batch.id)
            errors = to_builtins(source.faults)
            values = {"status": "failed", "failed_at": now, "errors": errors}
        else:
            values = {"status": "in_progress", "in_progress_at": now, "total": source.total, "model": model}
        if await move_batch(connection, batch.id, ("validating",), values) is None:
            # Cancelled, or ended by another, while it was read.
            await connection.rollback()
            return
    if source.faults:
        BATCHES.ended("failed")


async def _read(parts: Parts, connection: AsyncConnection, batch: AnyRow, source: InputFile) -> str | None:
    """Store the lines of the input file; the model of the first."""
    file = await find_file(connection, batch.project_id, batch.input_file_id, parts.clock.now())
    model: str | None = None
    seq = size = 0
    while file is not None and not source.is_hopeless:
        piece = await read_chunk(connection, file.id, seq)
        if piece is None and size < file.size_bytes:
            # Deleted meanwhile: what was read of it is not what was asked for.
            file = None
            break
        found = source.last_lines() if piece is None else source.lines(piece)
        while some := list(islice(found, _AT_ONCE)):
            model = model or some[0].model
            if not source.faults:
                await add_lines(connection, batch.id, some)
        if piece is None:
            return model
        seq, size = seq + 1, size + len(piece)
    if file is None:
        source.faults.append(Fault("file_not_found", "The input file was deleted or has expired. Upload it again."))
    return model
