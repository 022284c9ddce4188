"""Routes of usage: what an organization's calls used, in buckets of time, grouped and filtered, kind by kind.

Each call is in the report of one kind. The ones of vector stores, searches, code interpreters, speeches and decisions
are there because the SDK has them, and empty because nothing of that is sold here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, TypeAlias

from fastapi import APIRouter, Depends
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request

from billing.store.usage_report import Report, Used, usage_of
from gateway.api.organization.reports import Asked, Bucket, asked, described, page_json, report_of, told, window
from gateway.auth import require_admin
from gateway.parts import Parts, parts_of
from models.account import AdminPrincipal
from models.errors import InvalidRequest

router = APIRouter(prefix="/usage")

Admin: TypeAlias = Annotated[AdminPrincipal, Depends(require_admin)]
PartsHere: TypeAlias = Annotated[Parts, Depends(parts_of)]

_COLUMNS: Final = ("project_id", "api_key_id", "model", "batch")
_CONSTANT: Final = {"service_tier": "default", "api_source": "unlabeled"}
"""Groups that are the same for all calls here. What no call has (a user, a size, a store) is null."""

_SOURCES: Final = {
    "image.generation": "/v1/images/generations",
    "image.edit": "/v1/images/edits",
    "image.variation": "/v1/images/variations",
}
_SOURCE_OF: Final = {path: source for source, path in _SOURCES.items()}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of usage: the `object` of its results, parameters, groups, quantities by the columns that they sum, and
    the endpoints of its calls; without endpoints it has no calls.
    """

    object: str
    parameters: tuple[str, ...]
    groups: tuple[str, ...]
    quantities: Mapping[str, str]
    endpoints: tuple[str, ...] = ()


_OWNED: Final = ("project_id", "user_id", "api_key_id")
_GROUPS: Final = (*_OWNED, "model")
_FILTERS: Final = ("user_ids", "api_key_ids", "models")
_CALLS: Final = {"num_model_requests": "calls"}
_TOKENS: Final = {"input_tokens": "input_tokens"} | _CALLS
_COMPLETIONS: Final = {
    "output_tokens": "output_tokens",
    "input_cached_tokens": "cached_tokens",
    "input_cache_write_tokens": "cache_write_tokens",
} | _TOKENS

EMBEDDINGS: Final = Kind("embeddings", _FILTERS, _GROUPS, _TOKENS, ("/v1/embeddings", "/v1/rerank"))
MODERATIONS: Final = Kind("moderations", _FILTERS, _GROUPS, _TOKENS, ("/v1/moderations",))
IMAGES: Final = Kind(
    "images",
    (*_FILTERS, "sizes", "sources"),
    (*_GROUPS, "size", "source"),
    {"images": "images"} | _CALLS,
    tuple(_SOURCES.values()),
)
TRANSCRIPTIONS: Final = Kind(
    "audio_transcriptions",
    _FILTERS,
    _GROUPS,
    {"seconds": "audio_seconds"} | _CALLS,
    ("/v1/audio/transcriptions", "/v1/audio/translations"),
)
COMPLETIONS: Final = Kind(
    "completions",
    (*_FILTERS, "batch"),
    (*_GROUPS, "batch", "service_tier", "api_source"),
    _COMPLETIONS,
    # All others: a call of an endpoint that this list has not heard of is still in a report.
    tuple(path for kind in (EMBEDDINGS, MODERATIONS, IMAGES, TRANSCRIPTIONS) for path in kind.endpoints),
)
DECISIONS: Final = replace(COMPLETIONS, object="decisions", endpoints=())
SPEECHES: Final = Kind("audio_speeches", _FILTERS, _GROUPS, {"characters": "calls"} | _CALLS)
VECTOR_STORES: Final = Kind("vector_stores", (), ("project_id",), {"usage_bytes": "calls"})
CODE_INTERPRETERS: Final = Kind("code_interpreter_sessions", (), ("project_id",), {"num_sessions": "calls"})
FILE_SEARCHES: Final = Kind(
    "file_searches",
    ("user_ids", "api_key_ids", "vector_store_ids"),
    (*_OWNED, "vector_store_id"),
    {"num_requests": "calls"},
)
WEB_SEARCHES: Final = Kind(
    "web_searches",
    (*_FILTERS, "context_levels"),
    (*_GROUPS, "context_level", "api_source"),
    {"num_requests": "calls"} | _CALLS,
)


@router.get("/completions", openapi_extra=described(COMPLETIONS.parameters, COMPLETIONS.groups))
async def read_completions(request: Request, admin: Admin, parts: PartsHere) -> dict[str, Any]:
    """Usage of all calls that have text for an answer: chat, completions, responses and messages."""
    return await _report(request, admin, parts, COMPLETIONS)


@router.get("/embeddings", openapi_extra=described(EMBEDDINGS.parameters, EMBEDDINGS.groups))
async def read_embeddings(request: Request, admin: Admin, parts: PartsHere) -> dict[str, Any]:
    """Usage of embeddings, and of rerankings."""
    return await _report(request, admin, parts, EMBEDDINGS)


@router.get("/moderations", openapi_extra=described(MODERATIONS.parameters, MODERATIONS.groups))
async def read_moderations(request: Request, admin: Admin, parts: PartsHere) -> dict[str, Any]:
    """Usage of moderations."""
    return await _report(request, admin, parts, MODERATIONS)


@router.get("/images", openapi_extra=described(IMAGES.parameters, IMAGES.groups))
async def read_images(request: Request, admin: Admin, parts: PartsHere) -> dict[str, Any]:
    """Images that were made. Their sizes are not kept: `size` is null."""
    return await _report(request, admin, parts, IMAGES)


@router.get("/audio_transcriptions", openapi_extra=described(TRANSCRIPTIONS.parameters, TRANSCRIPTIONS.groups))
async def read_transcriptions(request: Request, admin: Admin, parts: PartsHere) -> dict[str, Any]:
    """Seconds of audio that were transcribed or translated."""
    return await _report(request, admin, parts, TRANSCRIPTIONS)


@router.get("/audio_speeches", openapi_extra=described(SPEECHES.parameters, SPEECHES.groups))
async def read_speeches(request: Request, admin: Admin, parts: PartsHere) -> dict[str, Any]:
    """Empty buckets: no speech is sold here."""
    return await _report(request, admin, parts, SPEECHES)


@router.get("/decisions", openapi_extra=described(DECISIONS.parameters, DECISIONS.groups))
async def read_decisions(request: Request, admin: Admin, parts: PartsHere) -> dict[str, Any]:
    """Empty buckets: no decisions are sold here."""
    return await _report(request, admin, parts, DECISIONS)


@router.get("/vector_stores", openapi_extra=described(VECTOR_STORES.parameters, VECTOR_STORES.groups))
async def read_vector_stores(request: Request, admin: Admin, parts: PartsHere) -> dict[str, Any]:
    """Empty buckets: there are no vector stores here."""
    return await _report(request, admin, parts, VECTOR_STORES)


@router.get("/file_search_calls", openapi_extra=described(FILE_SEARCHES.parameters, FILE_SEARCHES.groups))
async def read_file_searches(request: Request, admin: Admin, parts: PartsHere) -> dict[str, Any]:
    """Empty buckets: no file searches are sold here."""
    return await _report(request, admin, parts, FILE_SEARCHES)


@router.get("/web_search_calls", openapi_extra=described(WEB_SEARCHES.parameters, WEB_SEARCHES.groups))
async def read_web_searches(request: Request, admin: Admin, parts: PartsHere) -> dict[str, Any]:
    """Empty buckets: no web searches are sold here."""
    return await _report(request, admin, parts, WEB_SEARCHES)


@router.get(
    "/code_interpreter_sessions", openapi_extra=described(CODE_INTERPRETERS.parameters, CODE_INTERPRETERS.groups)
)
async def read_code_interpreters(request: Request, admin: Admin, parts: PartsHere) -> dict[str, Any]:
    """Empty buckets: no code interpreters are sold here."""
    return await _report(request, admin, parts, CODE_INTERPRETERS)


async def _report(request: Request, admin: AdminPrincipal, parts: Parts, kind: Kind) -> dict[str, Any]:
    wanted = asked(request, kind.parameters, kind.groups)
    if wanted.wanted("sizes"):
        raise InvalidRequest("The sizes of images are not kept. Leave sizes out.", param="sizes")
    page = window(wanted, int(parts.clock.now().timestamp()))
    found: list[Used] = []
    if page.buckets:
        async with parts.engine.begin() as connection:
            found = await _usage(connection, admin, wanted, page.buckets, kind)
    return page_json(page, [(used.bucket, _result(kind, wanted, used)) for used in found])


async def _usage(
    connection: AsyncConnection, admin: AdminPrincipal, wanted: Asked, buckets: tuple[Bucket, ...], kind: Kind
) -> list[Used]:
    by: list[str] = [name for name in _COLUMNS if name in wanted.by]
    if "source" in wanted.by:
        by.append("endpoint")
    report = await report_of(connection, admin.organization_id, wanted, buckets, tuple(by))
    if not kind.endpoints or wanted.wanted("user_ids"):
        # No call has a user: keys belong to projects and to service accounts.
        return []
    return await usage_of(connection, _of_kind(report, kind, wanted.wanted("sources")))


def _of_kind(report: Report, kind: Kind, sources: tuple[str, ...]) -> Report:
    if unknown := [source for source in sources if source not in _SOURCES]:
        raise InvalidRequest(f"sources takes {', '.join(_SOURCES)}, not {unknown[0][:64]!r}.", param="sources")
    endpoints = tuple(_SOURCES[source] for source in sources) or kind.endpoints
    return replace(report, endpoints=endpoints, is_rest=kind is COMPLETIONS)


def _result(kind: Kind, wanted: Asked, used: Used) -> dict[str, Any]:
    result: dict[str, Any] = {"object": f"organization.usage.{kind.object}.result"}
    result |= {name: used.sums[column] for name, column in kind.quantities.items()}
    if kind is COMPLETIONS:
        parts = used.sums["cached_tokens"] + used.sums["cache_write_tokens"]
        result["input_uncached_tokens"] = used.sums["input_tokens"] - parts
    result |= dict.fromkeys(kind.groups)
    by = told(used.by)
    if "endpoint" in by:
        by["source"] = _SOURCE_OF[by.pop("endpoint")]
    return result | {name: value for name, value in _CONSTANT.items() if name in wanted.by} | by
