"""A charge's line of CSV made in Python, cell by cell: the form that what Postgres makes is compared with."""

from __future__ import annotations

from datetime import UTC
from functools import partial

from billing.exports.cells import line, moment_cell, text_cell
from billing.store.charges import BookedCharge
from models.money import amount_text


def csv_row(booked: BookedCharge) -> str:
    """One line with its CRLF. Text cells are always quoted and guarded; numbers never are, so they stay numbers."""
    charge = booked.charge
    amount = partial(amount_text, code=charge.currency)
    cells = (
        str(charge.call_id),
        str(charge.organization_id),
        str(charge.project_id),
        str(charge.api_key_id),
        moment_cell(charge.created_at),
        moment_cell(charge.ended_at),
        charge.created_at.astimezone(UTC).strftime("%Y-%m"),
        text_cell(charge.endpoint),
        text_cell(charge.model),
        text_cell(charge.deployment),
        text_cell(charge.end_user or ""),
        "true" if charge.streamed else "false",
        charge.ending.value,
        charge.usage_source.value,
        str(charge.input_tokens),
        str(charge.cached_tokens),
        str(charge.cache_write_tokens),
        str(charge.output_tokens),
        str(charge.reasoning_tokens),
        amount(charge.amount),
        charge.currency,
        amount(charge.hold),
        text_cell(" ".join(f"{source}={amount(units)}" for source, units in booked.funding)),
        text_cell(" ".join(map(str, charge.price_version_ids))),
        text_cell(" ".join(charge.flags)),
        "" if charge.corrects is None else str(charge.corrects),
        str(booked.posting_id),
        str(charge.images),
        str(charge.audio_seconds),
        "true" if charge.batch else "false",
        text_cell(charge.version),
    )
    return line(cells)
