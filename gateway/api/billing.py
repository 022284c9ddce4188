"""What an organization reads of its money: balance, grants, charges, and the receipt of a call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, TypeAlias
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from billing import exports as files
from billing.hot.entries import decode_charge
from billing.store.charges import BookedCharge, ChargeFilter, corrections_of, find_charge, list_charges
from billing.store.grant_list import list_draws, list_grants
from billing.store.organizations import find_organization
from billing.store.pages import AnyRow, Page
from gateway.api import exports
from gateway.api.exports import file_of, instant
from gateway.auth import require_reader
from gateway.parts import Parts, parts_of
from models.account import AdminPrincipal, Principal
from models.call import Charge
from models.errors import NotFound, Unavailable
from models.ids import uuid7_time
from models.money import money

router = APIRouter(tags=["billing"])

Reader: TypeAlias = Annotated[Principal | AdminPrincipal, Depends(require_reader)]
PartsHere: TypeAlias = Annotated[Parts, Depends(parts_of)]
Limit: TypeAlias = Annotated[int, Query(ge=1, le=100)]
# Postgres keeps no NUL in a text, and a query with one would be an error of ours.
ModelName: TypeAlias = Annotated[str, Query(max_length=200, pattern=r"^[^\x00]*$")]

_STREAM_PAGE: Final = 1_000
_STREAM_PAGES: Final = 8
_STREAM_SLACK_MS: Final = 5_000


# Balance and grants --------------------------------------------------------------------------------------------------


@router.get("/v1/billing/balance")
async def read_balance(reader: Reader, parts: PartsHere) -> dict[str, Any]:
    """The organization's money now. It is read where calls are admitted, so that it is what the next call will meet.

    While that store is away the answer is 503: the book alone does not know what is held.
    """
    shard, currency = await _home(reader, parts)
    hot = await parts.hot.balance(shard, reader.organization_id)
    if hot is None:
        raise Unavailable("The balance is being built. Try again in a moment.")
    return {
        "object": "balance",
        "currency": currency,
        "balance": money(hot.balance, currency),
        "held": money(hot.held, currency),
        "available": money(hot.available, currency),
        "credit_limit": money(hot.credit_limit, currency),
        "as_of": _moment(parts.clock.now()),
    }


@router.get("/v1/billing/credit_grants")
async def read_credit_grants(
    reader: Reader, parts: PartsHere, after: UUID | None = None, limit: Limit = 20
) -> dict[str, Any]:
    """The organization's credit grants, newest first; `remaining` is as of the last booking."""
    async with parts.engine.connect() as connection:
        rows, more = await list_grants(connection, reader.organization_id, Page(after, limit, newest_first=True))
    return _list((_grant(row) for row in rows), more, "id")


@router.get("/v1/billing/credit_grants/{grant_id}/draws")
async def read_draws(
    grant_id: UUID,
    reader: Reader,
    parts: PartsHere,
    after: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    limit: Limit = 20,
) -> dict[str, Any]:
    """What was taken from a grant, oldest first: a row for each posting, below zero where it gave back."""
    async with parts.engine.connect() as connection:
        found = await list_draws(connection, reader.organization_id, grant_id, Page(after, limit))
    if found is None:
        raise NotFound("There is no such credit grant.")
    rows, more = found
    return _list((_draw(row) for row in rows), more, "id")


# Charges and receipts ------------------------------------------------------------------------------------------------


def _wanted(
    reader: Reader,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    model: ModelName | None = None,
    project_id: UUID | None = None,
    api_key_id: UUID | None = None,
) -> ChargeFilter:
    """The filter of a list of charges, within what the reader may see: an API key sees its own project."""
    scope = _visible_to(reader)
    if scope.project_id is not None and project_id not in (None, scope.project_id):
        raise NotFound("There is no such project.")
    return replace(
        scope,
        project_id=scope.project_id or project_id,
        created_after=instant(created_after, "created_after"),
        created_before=instant(created_before, "created_before"),
        model=model,
        api_key_id=api_key_id,
    )


Wanted: TypeAlias = Annotated[ChargeFilter, Depends(_wanted)]


@router.get("/v1/billing/charges")
async def read_charges(
    wanted: Wanted,
    parts: PartsHere,
    after: UUID | None = None,
    limit: Limit = 20,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """Booked charges, newest first; `created_after` is inclusive, `created_before` exclusive."""
    async with parts.engine.connect() as connection:
        rows, more = await list_charges(connection, wanted, Page(after, limit, newest_first=order == "desc"))
        corrections = await corrections_of(connection, [row.charge.call_id for row in rows])
    receipts = (receipt_json(row.charge, row, corrections.get(row.charge.call_id, ())) for row in rows)
    return _list(receipts, more, "call_id")


class CsvResponse(Response):
    """Names the type on the OpenAPI page."""

    media_type = "text/csv"


@router.get("/v1/billing/charges.csv", response_class=CsvResponse)
async def read_charges_csv(wanted: Wanted, parts: PartsHere, excel: bool = False) -> Response:
    """The same charges as one CSV file, oldest first; `excel` adds the byte order mark that Excel needs for UTF-8."""
    asked = files.Wanted(
        organization_id=wanted.organization_id,
        start=wanted.created_after,
        end=wanted.created_before,
        project_id=wanted.project_id,
        api_key_id=wanted.api_key_id,
        model=wanted.model,
    )
    return file_of(parts, await files.begin_export(parts.engine, files.KINDS["charges"], asked, excel=excel))


@router.get("/v1/calls/{call_id}")
async def read_receipt(call_id: str, reader: Reader, parts: PartsHere) -> dict[str, Any]:
    """The receipt of a call, from the moment it was settled; `funding` is empty until it is `booked`.

    `corrected_by` names the charges that correct it, each with a receipt of its own; their amounts are added to it.
    """
    scope, call = _visible_to(reader), _call_id(call_id)
    if (receipt := await _booked_receipt(parts, call, scope)) is not None:
        return receipt
    settled = await _find_settled(parts, reader, call)
    if settled is not None and _is_visible(settled, scope):
        return receipt_json(settled, None)
    # It may have moved from the stream to the book between the two looks.
    if (receipt := await _booked_receipt(parts, call, scope)) is None:
        raise NotFound("There is no such call, or it was not charged.")
    return receipt


@router.api_route("/v1/calls/{call_id}", methods=["PUT", "PATCH", "DELETE"], include_in_schema=False)
async def change_receipt(call_id: str, reader: Reader) -> None:
    """A receipt is never changed; the answer is the same for anyone.s call and for none, so it tells nothing."""
    raise NotFound("There is nothing here that can be changed.")


async def _booked_receipt(parts: Parts, call: UUID, scope: ChargeFilter) -> dict[str, Any] | None:
    async with parts.engine.connect() as connection:
        booked = await find_charge(connection, call, scope)
        if booked is None:
            return None
        corrections = await corrections_of(connection, [call])
    return receipt_json(booked.charge, booked, corrections.get(call, ()))


async def _find_settled(parts: Parts, reader: Principal | AdminPrincipal, call: UUID) -> Charge | None:
    """The charge of a call that is settled and still in its shard's stream.

    Entry ids are times of Redis and a call is settled after it was made, so reading begins there. Raises
    `Unavailable` where the stream is too long to be looked through: then it is not known whether there is one.
    """
    shard, _ = await _home(reader, parts)
    age = parts.clock.now() - uuid7_time(call)
    began_ms = await parts.hot.clock_ms() - int(age.total_seconds() * 1_000) - _STREAM_SLACK_MS
    position, needle = f"{max(0, began_ms)}-0", str(call).encode()
    for _page in range(_STREAM_PAGES):
        entries = await parts.hot.read(shard, position, _STREAM_PAGE)
        for entry in entries:
            if needle in entry.charge:
                charge = _decoded(entry.charge)
                if charge is not None and charge.call_id == call:
                    return charge
        if len(entries) < _STREAM_PAGE:
            return None
        position = entries[-1].id
    raise Unavailable("Many charges wait to be booked. Ask for this receipt again in a moment.", retry_after_ms=5_000)


def _decoded(payload: bytes) -> Charge | None:
    try:
        return decode_charge(payload)
    except ValueError:
        # The worker puts it aside for a person; to the caller there is no receipt yet.
        return None


# Who may see what, and how it looks ----------------------------------------------------------------------------------


def receipt_json(charge: Charge, booked: BookedCharge | None, corrected_by: Sequence[UUID] = ()) -> dict[str, Any]:
    """A charge as DESIGN section 6 names its fields; `booked` brings the funding, None where it is not booked yet.

    `corrected_by` are the charges that correct it.
    """
    currency = charge.currency
    return {
        "object": "charge",
        "call_id": str(charge.call_id),
        "created_at": _moment(charge.created_at),
        "ended_at": _moment(charge.ended_at),
        "organization_id": str(charge.organization_id),
        "project_id": str(charge.project_id),
        "api_key_id": str(charge.api_key_id),
        "end_user": charge.end_user,
        "endpoint": charge.endpoint,
        "model": charge.model,
        "deployment": charge.deployment,
        "version": charge.version,
        "streamed": charge.streamed,
        "batch": charge.batch,
        "ending": charge.ending.value,
        "usage_source": charge.usage_source.value,
        "input_tokens": charge.input_tokens,
        "cached_tokens": charge.cached_tokens,
        "cache_write_tokens": charge.cache_write_tokens,
        "output_tokens": charge.output_tokens,
        "reasoning_tokens": charge.reasoning_tokens,
        "images": charge.images,
        "audio_seconds": charge.audio_seconds,
        "amount": money(charge.amount, currency),
        "hold": money(charge.hold, currency),
        "price_version_ids": [str(version) for version in charge.price_version_ids],
        "funding": [
            {"source": source, "amount": money(units, currency)} for source, units in (booked.funding if booked else ())
        ],
        "reported": charge.reported,
        "counted": charge.counted,
        "flags": list(charge.flags),
        "corrects": None if charge.corrects is None else str(charge.corrects),
        "corrected_by": [str(one) for one in corrected_by] or None,
        "booked": booked is not None,
    }


def _grant(row: AnyRow) -> dict[str, Any]:
    return {
        "object": "credit_grant",
        "id": str(row.id),
        "kind": row.kind,
        "amount": money(int(row.amount), row.currency),
        "remaining": money(int(row.remaining), row.currency),
        "priority": row.priority,
        "effective_at": _moment(row.effective_at),
        "expires_at": _moment(row.expires_at),
        "rollover_max": money(int(row.rollover_max), row.currency),
        "rolled_from": None if row.rolled_from is None else str(row.rolled_from),
        "scope": row.scope,
        "voided_at": _moment(row.voided_at),
    }


def _draw(row: AnyRow) -> dict[str, Any]:
    return {
        "object": "credit_grant_draw",
        "id": str(row.id),
        "kind": row.kind,
        "effective_at": _moment(row.effective_at),
        "booked_at": _moment(row.booked_at),
        "amount": money(int(row.amount), row.currency),
    }


def _list(rows: Iterable[dict[str, Any]], more: bool, key: str) -> dict[str, Any]:
    data = list(rows)
    return {
        "object": "list",
        "data": data,
        "first_id": data[0][key] if data else None,
        "last_id": data[-1][key] if data else None,
        "has_more": more,
    }


def _visible_to(reader: Principal | AdminPrincipal) -> ChargeFilter:
    project_id = reader.project_id if isinstance(reader, Principal) else None
    return ChargeFilter(organization_id=reader.organization_id, project_id=project_id)


def _is_visible(charge: Charge, scope: ChargeFilter) -> bool:
    own_project = scope.project_id is None or charge.project_id == scope.project_id
    return charge.organization_id == scope.organization_id and own_project


async def _home(reader: Principal | AdminPrincipal, parts: Parts) -> tuple[int, str]:
    """Shard and currency of the reader's organization."""
    if isinstance(reader, Principal):
        return reader.shard, reader.currency
    async with parts.engine.connect() as connection:
        row = await find_organization(connection, reader.organization_id)
    if row is None:
        raise NotFound("There is no such organization.")
    return row.shard, row.currency


def _call_id(text: str) -> UUID:
    """The id in a path; what is no id is no call, which is the answer for another tenant's call too."""
    try:
        call = UUID(text)
        # A call is made at a time of the calendar; there are ids that name none.
        uuid7_time(call)
    except (ValueError, OverflowError):
        call = None
    if call is None or str(call) != text.lower():
        raise NotFound("There is no such call, or it was not charged.")
    return call


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


router.include_router(exports.router)
