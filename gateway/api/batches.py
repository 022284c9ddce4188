"""Batches of a project, as the OpenAI API has them. What runs them is in `gateway.batches`."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import AfterValidator, Field, StringConstraints
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import JSONResponse

from billing.store import batches as stored
from billing.store.audit import write_audit
from billing.store.files import find_file
from billing.store.idempotency import Claim, StoredAnswer, claim, keep_answer
from billing.store.pages import AnyRow, Page
from gateway.api.files import LONGEST_LIFE_SECONDS, SHORTEST_LIFE_SECONDS, file_name, file_uuid, unix, uuid_in
from gateway.api.operator.shapes import Asked, Body
from gateway.auth import require_api_key
from gateway.parts import Parts, parts_of
from gateway.peers import check_endpoint
from models.account import Principal
from models.errors import Conflict, InvalidRequest, NotFound

router = APIRouter(prefix="/v1/batches", tags=["Batches"])

Caller = Annotated[Principal, Depends(require_api_key)]
TheParts = Annotated[Parts, Depends(parts_of)]

BatchEndpoint = Literal["/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings", "/v1/moderations"]
"""The endpoints whose calls can be lines of a batch."""

MOST_OPEN: Final = 100
"""Batches of an organization that have not ended."""

_WINDOW: Final = timedelta(hours=24)


def _storable(value: str) -> str:
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("must be text without NUL")
    return value


Storable = AfterValidator(_storable)
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=64), Storable],
        Annotated[str, StringConstraints(max_length=512), Storable],
    ],
    Field(max_length=16),
]


class Lifetime(Body):
    """How long output files are kept."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=SHORTEST_LIFE_SECONDS, le=LONGEST_LIFE_SECONDS)


class NewBatch(Body):
    """A batch to run: every line of its input file becomes a call of `endpoint`."""

    input_file_id: Annotated[str, StringConstraints(max_length=64)]
    endpoint: BatchEndpoint
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: Lifetime | None = None


class AskedBatches(Asked):
    """Which batches to list."""

    after: str | None = None


RetryKey = Annotated[
    str | None, Header(alias="idempotency-key", description="Repeats of a request under one key make one batch")
]


@router.post("", summary="Create a batch")
async def create_batch(
    body: NewBatch, request: Request, caller: Caller, parts: TheParts, idempotency_key: RetryKey = None
) -> JSONResponse:
    """Have every line of a file called within 24 hours, at batch prices where there are any."""
    if caller.scope is not None:
        check_endpoint(caller.scope, body.endpoint)
    repeated = _claim(body, request, caller, idempotency_key)
    now = parts.clock.now()
    async with parts.engine.begin() as connection:
        answer = None if repeated is None else await claim(connection, repeated, now)
        if answer is None:
            answer = StoredAnswer(200, _shape(await _create(connection, body, caller, parts)))
            if repeated is not None:
                await keep_answer(connection, repeated, answer)
    return JSONResponse(answer.response, answer.status)


@router.get("", summary="List batches")
async def list_batches(asked: Annotated[AskedBatches, Query()], caller: Caller, parts: TheParts) -> dict[str, Any]:
    """The project's batches, newest first."""
    page = Page(None if asked.after is None else _batch_uuid(asked.after), asked.limit, newest_first=True)
    async with parts.engine.connect() as connection:
        rows, more = await stored.list_batches(connection, caller.project_id, page)
    data = [_shape(row) for row in rows]
    ids = [one["id"] for one in data]
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more}


@router.get("/{batch_id}", summary="Look at a batch")
async def get_batch(batch_id: str, caller: Caller, parts: TheParts) -> dict[str, Any]:
    """One batch of the project, and how far it has come."""
    async with parts.engine.connect() as connection:
        row = await stored.find_batch(connection, caller.project_id, _batch_uuid(batch_id))
    if row is None:
        raise _no_batch()
    return _shape(row)


@router.post("/{batch_id}/cancel", summary="Cancel a batch")
async def cancel_batch(batch_id: str, caller: Caller, parts: TheParts) -> dict[str, Any]:
    """Begin no more lines. Those that run are ended, charged and answered; then the batch is `cancelled`."""
    now, own = parts.clock.now(), _batch_uuid(batch_id)
    async with parts.engine.begin() as connection:
        row = await stored.find_batch(connection, caller.project_id, own)
        if row is None:
            raise _no_batch()
        values = {"status": "cancelling", "cancelling_at": now}
        moved = await stored.move_batch(connection, own, ("validating", "in_progress"), values)
        if moved is not None:
            await _audit(connection, "batch.cancelled", moved, caller, parts)
            return _shape(moved)
        row = await stored.find_batch(connection, caller.project_id, own)
    assert row is not None, "batches stay"
    if row.status not in ("cancelling", "cancelled"):
        raise Conflict(f"This batch is {row.status} and cannot be cancelled any more.")
    return _shape(row)


async def _create(connection: AsyncConnection, body: NewBatch, caller: Principal, parts: Parts) -> AnyRow:
    now = parts.clock.now()
    file_id = file_uuid(body.input_file_id)
    file = await find_file(connection, caller.project_id, file_id, now)
    if file is None or file.purpose != "batch":
        raise NotFound("There is no such file of purpose batch in this project. Upload it first.")
    if await stored.count_open(connection, caller.organization_id) >= MOST_OPEN:
        raise InvalidRequest(
            f"Your organization has {MOST_OPEN} batches that have not ended. Wait for one of them.",
            code="too_many_batches",
        )
    lifetime = body.output_expires_after
    row = await stored.create_batch(
        connection,
        now,
        {
            "organization_id": caller.organization_id,
            "project_id": caller.project_id,
            "api_key_id": caller.api_key_id,
            "endpoint": body.endpoint,
            "input_file_id": file_id,
            "metadata": body.metadata,
            "output_seconds": LONGEST_LIFE_SECONDS if lifetime is None else lifetime.seconds,
            "expires_at": now + _WINDOW,
        },
    )
    await _audit(connection, "batch.created", row, caller, parts)
    return row


async def _audit(connection: AsyncConnection, action: str, row: AnyRow, caller: Principal, parts: Parts) -> None:
    await write_audit(
        connection,
        now=parts.clock.now(),
        actor=f"api_key:{caller.api_key_id}",
        action=action,
        object=f"batch:{row.id}",
        organization_id=row.organization_id,
        detail={"endpoint": row.endpoint, "input_file": str(row.input_file_id)},
    )


def _claim(body: NewBatch, request: Request, caller: Principal, key: str | None) -> Claim | None:
    if key is None:
        return None
    if not 0 < len(key) <= 255 or len(request.headers.getlist("idempotency-key")) > 1:
        raise InvalidRequest("Idempotency-Key must be sent once, with 1 to 255 characters.", param="idempotency-key")
    asked = f"POST\0/v1/batches\0{body.model_dump_json()}".encode()
    return Claim(f"api_key:{caller.api_key_id}", key, hashlib.sha256(asked).digest())


def _batch_uuid(name: str) -> UUID:
    return uuid_in("batch_", name, _no_batch())


def _no_batch() -> NotFound:
    return NotFound("There is no such batch in this project. List the batches to find its id.")


def _shape(row: AnyRow) -> dict[str, Any]:
    files = {name: getattr(row, name) for name in ("input_file_id", "output_file_id", "error_file_id")}
    moments = (
        *("created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at", "expired_at"),
        *("cancelling_at", "cancelled_at"),
    )
    return {
        "id": f"batch_{row.id.hex}",
        "object": "batch",
        "endpoint": row.endpoint,
        "model": row.model,
        "errors": None if row.errors is None else {"object": "list", "data": row.errors},
        **{name: None if file_id is None else file_name(file_id) for name, file_id in files.items()},
        "completion_window": "24h",
        "status": row.status,
        **{name: unix(getattr(row, name)) for name in moments},
        "request_counts": {"total": row.total, "completed": row.completed, "failed": row.failed},
        "usage": {
            "input_tokens": row.input_tokens,
            "input_tokens_details": {"cached_tokens": row.cached_tokens},
            "output_tokens": row.output_tokens,
            "output_tokens_details": {"reasoning_tokens": row.reasoning_tokens},
            "total_tokens": row.input_tokens + row.output_tokens,
        },
        "metadata": row.metadata,
    }
