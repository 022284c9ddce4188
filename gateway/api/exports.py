"""Exports over HTTP: every kind for the operator, and an organization's own rows for its administrators."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final, Literal, TypeAlias
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response

from billing.exports import KINDS, Export, Kind, Wanted, begin_export, count_rows, make_manifest, stream
from billing.store.organizations import find_organization
from gateway.auth import require_admin, require_operator
from gateway.parts import Parts, parts_of
from models.account import AdminPrincipal
from models.errors import InvalidRequest, NotFound

router = APIRouter(tags=["exports"])

PartsHere: TypeAlias = Annotated[Parts, Depends(parts_of)]
Watermark: TypeAlias = Annotated[int, Query(ge=0, lt=2**63)]

_YEARS: Final = range(2000, 2200)


class AskedExport:
    """The query of an export: `from` (inclusive), `to` (exclusive), and the watermarks it lies between."""

    def __init__(
        self,
        start: Annotated[datetime | None, Query(alias="from")] = None,
        end: Annotated[datetime | None, Query(alias="to")] = None,
        watermark: Watermark | None = None,
        since: Watermark | None = None,
        profile: Literal["excel", "machine"] | None = None,
        excel: bool = False,
        manifest: bool = False,
    ) -> None:
        if excel and profile == "machine":
            raise InvalidRequest("excel and the profile machine contradict each other; give one of them.", "profile")
        self.start, self.end = instant(start, "from"), instant(end, "to")
        self.watermark, self.since = watermark, since
        self.excel = excel or profile == "excel"
        self.manifest = manifest

    async def answer(self, parts: Parts, kind: Kind, organization_id: UUID | None) -> Response:
        """The file, or its manifest."""
        wanted = Wanted(
            organization_id=organization_id,
            start=self.start,
            end=self.end,
            watermark=self.watermark,
            since=self.since,
        )
        export = await begin_export(parts.engine, kind, wanted, excel=self.excel)
        if self.manifest:
            return JSONResponse((await make_manifest(parts.engine, export)).as_json())
        rows = await count_rows(parts.engine, export)
        return file_of(parts, export, {} if rows is None else {"x-tollgate-rows": str(rows)})


Asked: TypeAlias = Annotated[AskedExport, Depends()]


@router.get("/operator/v1/exports/{kind}", dependencies=[Depends(require_operator)])
async def export(kind: str, asked: Asked, parts: PartsHere, organization: UUID | None = None) -> Response:
    """A file of all organizations or of one.

    The answer names its watermark in `x-tollgate-watermark`; giving it back repeats the file to the byte, and with
    `manifest=true` answers the manifest of that file instead. `since` leaves out what an earlier watermark had.
    """
    found = _kind(kind, [*KINDS.values()])
    if organization is not None:
        async with parts.engine.connect() as connection:
            if await find_organization(connection, organization) is None:
                raise NotFound("There is no such organization.")
    return await asked.answer(parts, found, organization)


@router.get("/v1/billing/exports/{kind}")
async def export_own(
    kind: str, asked: Asked, parts: PartsHere, admin: Annotated[AdminPrincipal, Depends(require_admin)]
) -> Response:
    """The same of the organization's own rows; the operator's books are not among the kinds."""
    found = _kind(kind, [each for each in KINDS.values() if not each.is_operators])
    return await asked.answer(parts, found, admin.organization_id)


def file_of(parts: Parts, export: Export, headers: dict[str, str] | None = None) -> StreamingResponse:
    """An export as a download."""
    kind = export.kind
    return StreamingResponse(
        stream(parts.engine, export),
        media_type=kind.media_type,
        headers={
            "content-disposition": f'attachment; filename="{kind.name}.{kind.extension}"',
            "x-tollgate-watermark": str(export.watermark),
            "x-content-type-options": "nosniff",
            "cache-control": "no-store",
            **(headers or {}),
        },
    )


def instant(moment: datetime | None, param: str) -> datetime | None:
    """A time of a query in UTC, which it is taken for where it names no zone."""
    if moment is None:
        return None
    if moment.year not in _YEARS:
        raise InvalidRequest(f"{param} must lie in the years {_YEARS.start} to {_YEARS.stop - 1}.", param=param)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _kind(name: str, kinds: list[Kind]) -> Kind:
    for kind in kinds:
        if kind.name == name:
            return kind
    raise NotFound(f"There is no such export. There is: {', '.join(sorted(each.name for each in kinds))}.")
