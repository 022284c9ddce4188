"""Routes of rate limits: how often a project may call each model, and with how many tokens, kept by the hold."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Annotated, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, StringConstraints
from starlette.responses import Response

from billing.store import rate_limits as stored
from billing.store.pages import AnyRow
from gateway.api.operator.organizations import found_organization
from gateway.api.operator.shapes import Asked, Body, ListOf, list_of
from gateway.api.organization.projects import own_live_project, own_project
from gateway.api.organization.requests import Admin, Change
from gateway.api.organization.sold import check_sold, sold_models
from models.errors import InvalidRequest, NotFound

router = APIRouter()

NO_LIMIT: Final = 2_000_000_000
"""The API has no word for a model without a limit: this number stands for it, in answers and in requests."""
MOST_A_DAY: Final = 100_000_000
"""Beyond this the hot store could not count exactly; it is more than a thousand calls a second."""

_PREFIX: Final = "rl-"
_COLUMNS: Final = {
    "max_requests_per_1_minute": "requests_per_minute",
    "max_tokens_per_1_minute": "tokens_per_minute",
    "max_requests_per_1_day": "requests_per_day",
}
_PerMinute = Annotated[int, Field(ge=0, le=NO_LIMIT)]
_LimitId = Annotated[str, StringConstraints(min_length=4, max_length=210)]


class RateLimitUpdate(Body):
    """What is to change of a limit; what is left out stays."""

    max_requests_per_1_minute: _PerMinute | None = None
    max_tokens_per_1_minute: _PerMinute | None = None
    max_requests_per_1_day: _PerMinute | None = None
    max_images_per_1_minute: int | None = None
    max_audio_megabytes_per_1_minute: int | None = None
    batch_1_day_max_input_tokens: int | None = None


class RateLimit(BaseModel):
    """The limits of one model in a project; 2000000000 is no limit, as is null for a day."""

    id: str
    object: Literal["project.rate_limit"] = "project.rate_limit"
    model: str
    max_requests_per_1_minute: int
    max_tokens_per_1_minute: int
    max_requests_per_1_day: int | None
    max_images_per_1_minute: int | None = None
    max_audio_megabytes_per_1_minute: int | None = None
    batch_1_day_max_input_tokens: int | None = None

    @classmethod
    def of(cls, model: str, row: AnyRow | None) -> RateLimit:
        """The answer for a model, of which something was set or nothing (None)."""
        found = {name: None if row is None else getattr(row, column) for name, column in _COLUMNS.items()}
        of_minute = {name: NO_LIMIT if value is None else value for name, value in found.items() if "minute" in name}
        return cls(id=_PREFIX + model, model=model, **(found | of_minute))


class AskedLimits(Asked):
    """Which limits to list."""

    limit: int = Field(100, ge=1, le=100)
    after: _LimitId | None = None
    before: _LimitId | None = None


@router.get("/projects/{project_id}/rate_limits")
async def list_rate_limits(
    project_id: UUID, asked: Annotated[AskedLimits, Query()], request: Admin
) -> ListOf[RateLimit]:
    """The limits of a project, one of each model that is sold to the organization, by the model's id."""
    async with request.reading() as connection:
        await own_project(connection, request.organization_id, project_id)
        organization = await found_organization(connection, request.organization_id)
        models, more = _page(sold_models(request.parts, organization), asked)
        rows = await stored.rate_limits_of(connection, project_id, models)
    return list_of([RateLimit.of(model, rows.get(model)) for model in models], more)


@router.post("/projects/{project_id}/rate_limits/{rate_limit_id:path}", response_model=RateLimit)
async def update_rate_limit(
    project_id: UUID, rate_limit_id: _LimitId, body: RateLimitUpdate, request: Admin
) -> Response:
    """Limit how a project calls a model; `rate_limit_id` is `rl-` and the model's id. Gateways follow in seconds."""
    columns = _columns(body)

    async def effect(change: Change) -> RateLimit:
        await own_live_project(change.connection, request.organization_id, project_id)
        organization = await found_organization(change.connection, request.organization_id)
        model = rate_limit_id.removeprefix(_PREFIX)
        if not rate_limit_id.startswith(_PREFIX):
            raise NotFound("There is no such rate limit in this project.")
        try:
            await check_sold(request.parts, organization, [model], "rate_limit_id")
        except InvalidRequest:
            raise NotFound("There is no such rate limit in this project.") from None
        row = await stored.set_rate_limit(change.connection, project_id, model, change.now, columns)
        detail = body.model_dump(exclude_unset=True)
        subject = f"rate_limit:{rate_limit_id}"
        await change.audit("rate_limit.updated", subject, request.organization_id, project_id, **detail)
        return RateLimit.of(model, row)

    return await request.change(effect)


def _columns(body: RateLimitUpdate) -> dict[str, int | None]:
    sent = body.model_dump(exclude_none=True)
    for name in sent:
        if name not in _COLUMNS:
            raise InvalidRequest(
                f"'{name}' is not limited here: requests a minute, tokens a minute and requests a day are.", param=name
            )
    columns = {_COLUMNS[name]: None if value >= NO_LIMIT else value for name, value in sent.items()}
    if (columns.get("requests_per_day") or 0) > MOST_A_DAY:
        raise InvalidRequest(
            f"No more than {MOST_A_DAY} requests a day can be counted; {NO_LIMIT} is no limit.",
            param="max_requests_per_1_day",
        )
    return columns


def _page(models: Sequence[str], asked: AskedLimits) -> tuple[list[str], bool]:
    """The models of a page, and whether more follow."""
    start = 0 if asked.after is None else bisect_right(models, asked.after.removeprefix(_PREFIX))
    end = len(models) if asked.before is None else bisect_left(models, asked.before.removeprefix(_PREFIX))
    if asked.after is None and asked.before is not None:
        begin = max(0, end - asked.limit)
        return list(models[begin:end]), begin > 0
    return list(models[start : min(end, start + asked.limit)]), end > start + asked.limit
