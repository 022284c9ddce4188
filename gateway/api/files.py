"""Files of a project, as the OpenAI API has them: kept for batches, in Postgres, and streamed in and out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from billing.store import files as stored
from billing.store.audit import write_audit
from billing.store.files import CHUNK_BYTES
from billing.store.pages import AnyRow, Page
from gateway.api.operator.shapes import Asked
from gateway.api.uploads import UploadForm
from gateway.auth import require_api_key
from gateway.parts import Parts, parts_of
from models.account import Principal
from models.errors import InvalidRequest, NotFound, TollgateError
from models.ids import uuid7

router = APIRouter(prefix="/v1/files", tags=["Files"])

Caller = Annotated[Principal, Depends(require_api_key)]
TheParts = Annotated[Parts, Depends(parts_of)]

UPLOAD_PATH: Final = "/v1/files"
FORM_BYTES: Final = 64 * 1024
"""What a form may have around its file."""

SHORTEST_LIFE_SECONDS: Final = 3_600
LONGEST_LIFE_SECONDS: Final = 30 * 86_400
"""Also what a file gets that nobody said anything of."""

_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FIELDS: Final = frozenset({"purpose", _ANCHOR, _SECONDS})


class AskedFiles(Asked):
    """Which files to list."""

    after: str | None = None
    limit: int = Field(10_000, ge=1, le=10_000)
    order: Literal["asc", "desc"] = "desc"
    purpose: Annotated[str, Field(max_length=64)] | None = None


@router.post("", summary="Upload a file", openapi_extra={
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": {
        "type": "object",
        "required": ["file", "purpose"],
        "properties": {
            "file": {"type": "string", "format": "binary"},
            "purpose": {"type": "string", "enum": ["batch"]},
            _ANCHOR: {"type": "string", "enum": ["created_at"]},
            _SECONDS: {"type": "integer", "minimum": SHORTEST_LIFE_SECONDS, "maximum": LONGEST_LIFE_SECONDS},
        },
    }}}},
})  # fmt: skip
async def create_file(request: Request, caller: Caller, parts: TheParts) -> dict[str, Any]:
    """Upload the input file of a batch, as a multipart form: a JSON object on each line. Kept for 30 days, or less."""
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise InvalidRequest("Compressed bodies are not taken; send the file as it is.", status=415)
    upload = _Upload(parts, caller, UploadForm(request.headers.getlist("content-type")))
    try:
        async for piece in request.stream():
            await upload.feed(piece)
        return _shape(await upload.complete())
    except ClientDisconnect:
        await upload.drop()
        raise InvalidRequest("The upload broke off. Send the file again.") from None
    except BaseException:
        await upload.drop()
        raise


@router.get("", summary="List files")
async def list_files(asked: Annotated[AskedFiles, Query()], caller: Caller, parts: TheParts) -> dict[str, Any]:
    """The project's files that have not expired, newest first unless `order` says otherwise."""
    after = None if asked.after is None else file_uuid(asked.after)
    page = Page(after, asked.limit, asked.order == "desc")
    async with parts.engine.connect() as connection:
        rows, more = await stored.list_files(connection, caller.project_id, asked.purpose, page, parts.clock.now())
    data = [_shape(row) for row in rows]
    ids = [one["id"] for one in data]
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more}


@router.get("/{file_id}", summary="Look at a file")
async def get_file(file_id: str, caller: Caller, parts: TheParts) -> dict[str, Any]:
    """One file of the project."""
    return _shape(await _found(parts, caller, file_id))


@router.get("/{file_id}/content", summary="Download a file", response_class=StreamingResponse)
async def get_content(file_id: str, caller: Caller, parts: TheParts) -> StreamingResponse:
    """The bytes of a file."""
    row = await _found(parts, caller, file_id)
    headers = {
        "content-length": str(row.size_bytes),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(row.filename, safe='')}",
    }
    return StreamingResponse(_content(parts, row), media_type="application/octet-stream", headers=headers)


@router.delete("/{file_id}", summary="Delete a file")
async def delete_file(file_id: str, caller: Caller, parts: TheParts) -> dict[str, Any]:
    """Delete a file. A batch that was validated goes on without its input file."""
    now = parts.clock.now()
    async with parts.engine.begin() as connection:
        row = await stored.find_file(connection, caller.project_id, file_uuid(file_id), now)
        if row is None:
            raise _no_file()
        await stored.delete_file(connection, row.id)
        await write_audit(
            connection,
            now=now,
            actor=f"api_key:{caller.api_key_id}",
            action="file.deleted",
            object=f"file:{row.id}",
            organization_id=caller.organization_id,
        )
    return {"id": file_name(row.id), "object": "file", "deleted": True}


class _Upload:
    """A file on its way from a form into chunks; of its content no more than a chunk is in memory."""

    def __init__(self, parts: Parts, caller: Principal, form: UploadForm) -> None:
        self._parts = parts
        self._caller = caller
        self._form = form
        self._now = parts.clock.now()
        self._id: UUID | None = None
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._size = 0
        self._seq = 0

    async def feed(self, piece: bytes) -> None:
        """A piece of the form."""
        self._form.feed(piece)
        content = self._form.take()
        self._waiting.append(content)
        self._waiting_bytes += len(content)
        self._size += len(content)
        most = self._parts.settings.max_file_bytes
        if self._size > most:
            raise InvalidRequest(f"The file is larger than {most} bytes.", param="file", status=413)
        if self._waiting_bytes >= CHUNK_BYTES:
            await self._store()

    async def complete(self) -> AnyRow:
        """All has come; the file as it is from now on."""
        form = self._form
        form.end()
        expires_at = self._now + timedelta(seconds=_life_seconds(form.fields))
        if not self._size:
            raise InvalidRequest("The file is empty. Write a JSON object on each line.", param="file")
        await self._store()
        assert self._id is not None, "it is not empty"
        async with self._parts.engine.begin() as connection:
            await write_audit(
                connection,
                now=self._now,
                actor=f"api_key:{self._caller.api_key_id}",
                action="file.created",
                object=f"file:{self._id}",
                organization_id=self._caller.organization_id,
                detail={"size_bytes": self._size},
            )
            return await stored.complete_file(connection, self._id, expires_at)

    async def drop(self) -> None:
        """It will not be complete. Should this fail, it is dropped later."""
        if self._id is None:
            return
        try:
            async with self._parts.engine.begin() as connection:
                await stored.delete_file(connection, self._id)
        except (OSError, TollgateError):
            return

    async def _store(self) -> None:
        content, self._waiting, self._waiting_bytes = b"".join(self._waiting), [], 0
        async with self._parts.engine.begin() as connection:
            begun = self._id or await self._begin(connection)
            for at in range(0, len(content), CHUNK_BYTES):
                await stored.append_chunk(connection, begun, self._seq, content[at : at + CHUNK_BYTES])
                self._seq += 1
            most = self._parts.settings.max_organization_file_bytes
            await stored.refuse_full(connection, self._caller.organization_id, most)
        self._id = begun

    async def _begin(self, connection: Any) -> UUID:
        file_id = uuid7(self._now)
        await stored.begin_file(
            connection,
            file_id,
            organization_id=self._caller.organization_id,
            project_id=self._caller.project_id,
            purpose="batch",
            filename=self._form.filename or "file",
            now=self._now,
        )
        return file_id


def _life_seconds(fields: dict[str, str]) -> int:
    """How long the file is kept, by the fields of its form, all of which are checked here."""
    if unknown := sorted(fields.keys() - _FIELDS):
        raise InvalidRequest(f"Unknown parameter: '{unknown[0]}'.", param=unknown[0], code="unknown_parameter")
    if fields.get("purpose") != "batch":
        raise InvalidRequest("'purpose' must be batch: other files are not kept here.", param="purpose")
    if _ANCHOR not in fields and _SECONDS not in fields:
        return LONGEST_LIFE_SECONDS
    if fields.get(_ANCHOR) != "created_at":
        raise InvalidRequest("'expires_after[anchor]' must be created_at.", param=_ANCHOR)
    seconds = fields.get(_SECONDS, "")
    is_number = seconds.isascii() and seconds.isdigit() and len(seconds) < 10
    if not is_number or not SHORTEST_LIFE_SECONDS <= int(seconds) <= LONGEST_LIFE_SECONDS:
        bounds = f"from {SHORTEST_LIFE_SECONDS} to {LONGEST_LIFE_SECONDS}"
        raise InvalidRequest(f"'expires_after[seconds]' must be a number {bounds}.", param=_SECONDS)
    return int(seconds)


async def _content(parts: Parts, row: AnyRow) -> AsyncIterator[bytes]:
    sent, seq = 0, 0
    while sent < row.size_bytes:
        # A connection for each piece: a client that reads slowly keeps none from others.
        async with parts.engine.connect() as connection:
            piece = await stored.read_chunk(connection, row.id, seq)
        if piece is None:
            # Deleted meanwhile. The end comes before the announced length, so the client knows.
            raise NotFound("The file was deleted while it was read.")
        yield piece
        sent, seq = sent + len(piece), seq + 1


async def _found(parts: Parts, caller: Principal, file_id: str) -> AnyRow:
    async with parts.engine.connect() as connection:
        row = await stored.find_file(connection, caller.project_id, file_uuid(file_id), parts.clock.now())
    if row is None:
        raise _no_file()
    return row


def file_uuid(name: str) -> UUID:
    """The id behind `file-<32 hex digits>`; what is no such name is no file, as another project's is not."""
    return uuid_in("file-", name, _no_file())


def uuid_in(prefix: str, name: str, error: TollgateError) -> UUID:
    """The id in a name that begins with a prefix; raises `error` for any other text."""
    digits = name.removeprefix(prefix)
    if len(digits) == 32 and name == prefix + digits and all(digit in "0123456789abcdef" for digit in digits):
        return UUID(digits)
    raise error


def file_name(file_id: UUID) -> str:
    """The id of a file as the OpenAI API has it."""
    return f"file-{file_id.hex}"


def _no_file() -> NotFound:
    return NotFound("There is no such file in this project, or it has expired. List the files to find its id.")


def _shape(row: AnyRow) -> dict[str, Any]:
    return {
        "id": file_name(row.id),
        "object": "file",
        "bytes": row.size_bytes,
        "created_at": unix(row.created_at),
        "expires_at": unix(row.expires_at),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
    }


def unix(moment: datetime | None) -> int | None:
    """Seconds since 1970, as the OpenAI API tells times."""
    return None if moment is None else int(moment.timestamp())
