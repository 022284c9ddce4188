"""What the usage and cost routes ask and answer alike: parameters, buckets of time, and pages of them.

The parameters are read here and not by FastAPI: arrays come with brackets, what is unknown is refused, and whatever is
wrong is a 400 in the shape of the OpenAI API.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request

from billing.store.usage_report import Report, Width, foreign_ids
from models.errors import InvalidRequest, NotFound

COMMON: Final = ("start_time", "end_time", "bucket_width", "limit", "page", "group_by", "project_ids")
"""Parameters that every report takes."""

LIMITS: Final = {Width.DAY: (7, 31), Width.HOUR: (24, 168), Width.MINUTE: (60, 1_440)}
"""Buckets of a page: the default and the most."""

_ARRAYS: Final = frozenset(
    {"group_by", "project_ids", "api_key_ids", "user_ids", "models", "line_items", "sizes", "sources"}
    | {"context_levels", "vector_store_ids"}
)
_MOST_VALUES: Final = 100
_LONGEST_VALUE: Final = 512
_LATEST: Final = 10**10
"""The year 2286, in Unix seconds."""
_PAGE: Final = "page_"
_TYPES: Final[Mapping[str, Mapping[str, Any]]] = {
    "start_time": {"type": "integer", "minimum": 0},
    "end_time": {"type": "integer", "minimum": 1},
    "bucket_width": {"type": "string", "enum": [width.value for width in Width], "default": "1d"},
    "limit": {"type": "integer", "minimum": 1},
    "batch": {"type": "boolean"},
}


@dataclass(frozen=True, slots=True)
class Asked:
    """The parameters of a report, checked: `lists` has its arrays without what they are grouped by."""

    start: int
    end: int | None
    width: Width
    limit: int
    page: int | None
    by: tuple[str, ...]
    lists: Mapping[str, tuple[str, ...]]
    batch: bool | None = None

    def wanted(self, name: str) -> tuple[str, ...]:
        """The values of an array; none where it is left out."""
        return self.lists.get(name, ())


@dataclass(frozen=True, slots=True)
class Bucket:
    """A span of time, in Unix seconds; the end is exclusive."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Window:
    """The buckets of a page, and where the next page begins, if there is one."""

    buckets: tuple[Bucket, ...]
    following: int | None


def described(names: Sequence[str], groups: Sequence[str]) -> dict[str, Any]:
    """The parameters on the OpenAPI page."""
    return {"parameters": [_described(name, groups) for name in (*COMMON, *names)]}


def _described(name: str, groups: Sequence[str]) -> dict[str, Any]:
    items: dict[str, Any] = {"type": "string", "enum": list(groups)} if name == "group_by" else {"type": "string"}
    is_array = name in _ARRAYS
    return {
        "name": f"{name}[]" if is_array else name,
        "in": "query",
        "required": name == "start_time",
        "schema": {"type": "array", "items": items} if is_array else dict(_TYPES.get(name, {"type": "string"})),
    }


# Parameters ----------------------------------------------------------------------------------------------------------


def asked(
    request: Request,
    names: Sequence[str],
    groups: Sequence[str],
    limits: Mapping[Width, tuple[int, int]] = LIMITS,
) -> Asked:
    """The parameters of a request that may have `COMMON` and `names`, and be grouped by `groups`.

    Raises `InvalidRequest`, which names the parameter.
    """
    given = _given(request, {*COMMON, *names})
    if "start_time" not in given:
        raise InvalidRequest("Say from when: start_time is required, in Unix seconds.", param="start_time")
    start = _number(given, "start_time", 0, _LATEST) or 0
    end = _number(given, "end_time", 1, _LATEST)
    if end is not None and end <= start:
        raise InvalidRequest("end_time must be after start_time.", param="end_time")
    width = Width(_word(given, "bucket_width", [width.value for width in limits]) or Width.DAY)
    usual, most = limits[width]
    by = tuple(dict.fromkeys(given.get("group_by", ())))
    if unknown := [name for name in by if name not in groups]:
        raise InvalidRequest(f"group_by takes {', '.join(groups)}, not {_shown(unknown[0])}.", param="group_by")
    batch = _word(given, "batch", ("true", "false"))
    return Asked(
        start,
        end,
        width,
        _number(given, "limit", 1, most) or usual,
        _page(given),
        by,
        {name: tuple(values) for name, values in given.items() if name in _ARRAYS and name != "group_by"},
        None if batch is None else batch == "true",
    )


def _given(request: Request, known: set[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for raw, value in request.query_params.multi_items():
        name = raw.removesuffix("[]")
        if name not in known or (raw.endswith("[]") and name not in _ARRAYS):
            raise InvalidRequest(f"Unknown parameter: {_shown(raw)}.", param=raw[:64], code="unknown_parameter")
        values = found.setdefault(name, [])
        values.append(value)
        if len(value) > _LONGEST_VALUE or "\0" in value:
            raise InvalidRequest(f"A value of {name} is too long, or no text.", param=name)
        if len(values) > (_MOST_VALUES if name in _ARRAYS else 1):
            most = f"at most {_MOST_VALUES} times" if name in _ARRAYS else "once"
            raise InvalidRequest(f"Give {name} {most}.", param=name)
    return found


def _number(given: Mapping[str, Sequence[str]], name: str, low: int, high: int) -> int | None:
    if name not in given:
        return None
    [value] = given[name]
    if not (value.isascii() and value.isdecimal() and len(value) < 20 and low <= int(value) <= high):
        raise InvalidRequest(f"{name} must be an integer from {low} to {high}.", param=name)
    return int(value)


def _word(given: Mapping[str, Sequence[str]], name: str, words: Sequence[str]) -> str | None:
    if name not in given:
        return None
    [value] = given[name]
    if value not in words:
        raise InvalidRequest(f"{name} must be {' or '.join(words)}, not {_shown(value)}.", param=name)
    return value


def _page(given: Mapping[str, Sequence[str]]) -> int | None:
    if "page" not in given:
        return None
    [value] = given["page"]
    digits = value.removeprefix(_PAGE)
    if not (value.startswith(_PAGE) and digits.isascii() and digits.isdecimal() and len(digits) <= 10):
        raise InvalidRequest("page must be the next_page of the page before.", param="page")
    return int(digits)


def _shown(value: str) -> str:
    return repr(value if len(value) <= 64 else value[:64] + "…")


# Buckets -------------------------------------------------------------------------------------------------------------


def window(asked: Asked, now: int) -> Window:
    """The buckets of the page that is asked for.

    They are whole minutes, hours or days in UTC, but for the first and the last of a report: these are cut to the
    minute (1m) or to the hour (1h, 1d) in which start_time and end_time lie. There are none after the bucket that runs
    `now`.
    """
    width = asked.width.seconds
    step = min(width, 3_600)
    start = asked.start // step * step
    end = -(-(now + 1) // width) * width
    if asked.end is not None:
        end = min(end, -(-asked.end // step) * step)
    first = start if asked.page is None else asked.page
    if asked.page is not None and not (start < first < end and first % width == 0):
        raise InvalidRequest("page is not of this report. Ask for its first page again.", param="page")
    buckets: list[Bucket] = []
    while first < end and len(buckets) < asked.limit:
        following = min((first // width + 1) * width, end)
        buckets.append(Bucket(first, following))
        first = following
    return Window(tuple(buckets), first if first < end else None)


def moment(seconds: int) -> datetime:
    """A moment in Unix seconds."""
    return datetime.fromtimestamp(seconds, UTC)


# Reports -------------------------------------------------------------------------------------------------------------


async def report_of(
    connection: AsyncConnection, organization_id: UUID, asked: Asked, buckets: Sequence[Bucket], by: tuple[str, ...]
) -> Report:
    """The report on some buckets; raises `NotFound` for a project or a key that is not the organization's."""
    projects = [_id(value, "project_ids") for value in asked.wanted("project_ids")]
    keys = [_id(value, "api_key_ids") for value in asked.wanted("api_key_ids")]
    no_projects, no_keys = await foreign_ids(connection, organization_id, projects, keys)
    if no_projects:
        raise NotFound(f"There is no project {min(no_projects)}.")
    if no_keys:
        raise NotFound(f"There is no API key {min(no_keys)}.")
    return Report(
        organization_id,
        asked.width,
        moment(buckets[0].start),
        moment(buckets[-1].end),
        by,
        project_ids=tuple(projects),
        api_key_ids=tuple(keys),
        models=asked.wanted("models"),
        batch=asked.batch,
    )


def _id(value: str, name: str) -> UUID:
    try:
        return UUID(value)
    except ValueError:
        raise InvalidRequest(f"{name} takes ids as lists show them, not {_shown(value)}.", param=name) from None


def page_json(window: Window, found: Iterable[tuple[datetime, Mapping[str, Any]]]) -> dict[str, Any]:
    """A page of buckets with the results that lie in them; buckets without one are there, and empty."""
    results: dict[int, list[Mapping[str, Any]]] = {}
    for at, result in found:
        # The first bucket may begin later than the day that Postgres counts it to.
        results.setdefault(max(int(at.timestamp()), window.buckets[0].start), []).append(result)
    return {
        "object": "page",
        "data": [
            {
                "object": "bucket",
                "start_time": bucket.start,
                "end_time": bucket.end,
                "results": results.get(bucket.start, []),
            }
            for bucket in window.buckets
        ],
        "has_more": window.following is not None,
        "next_page": None if window.following is None else f"{_PAGE}{window.following}",
    }


def told(by: Mapping[str, Any]) -> dict[str, Any]:
    """Columns that results are grouped by, as JSON has them."""
    return {name: str(value) if isinstance(value, UUID) else value for name, value in by.items()}
