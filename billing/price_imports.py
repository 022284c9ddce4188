"""Publishing a whole price list: all of it or nothing, and what is in force already is left alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeAlias

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.price_lists import Line, refuse_faults
from billing.store.catalog import missing_models
from billing.store.constraints import refusal
from billing.store.prices import all_versions, end_version, publish, versions_like
from models.catalog import PriceDraft, PriceVersion
from models.errors import InvalidRequest, TollgateError, Unavailable


@dataclass(slots=True)
class Imported:
    """What an import did: versions that are new, versions that got an end, and how many lines said nothing new."""

    published: list[PriceVersion] = field(default_factory=list)
    ended: list[PriceVersion] = field(default_factory=list)
    unchanged: int = 0


@dataclass(frozen=True, slots=True)
class Publish:
    """The line is a new version."""


@dataclass(frozen=True, slots=True)
class LeaveAlone:
    """The line says what is there."""


@dataclass(frozen=True, slots=True)
class End:
    """The line says when an open version ends."""

    version: PriceVersion


Step: TypeAlias = Publish | LeaveAlone | End


async def import_prices(connection: AsyncConnection, lines: Sequence[Line], created_by: str, now: datetime) -> Imported:
    """Publish the lines of a price list in the order of their beginnings, within the caller's transaction.

    Raises `InvalidRequest` that names each wrong line; the caller then rolls back, so that nothing is published.
    """
    unknown = set(await missing_models(connection, sorted({line.draft.model for line in lines})))
    refuse_faults(
        {
            line.number: "There is no such model. Create it before its prices."
            for line in lines
            if line.draft.model in unknown
        }
    )
    known: dict[tuple[str, ...], list[PriceVersion]] = {}
    for version in await all_versions(connection):
        known.setdefault(_thing(version), []).append(version)
    imported = Imported()
    faults: dict[int, str] = {}
    for line in sorted(lines, key=lambda line: line.draft.effective_from or now):
        thing = _thing(line.draft)
        try:
            step = step_of(line.draft, known.get(thing, []), now)
            if isinstance(step, LeaveAlone):
                imported.unchanged += 1
                continue
            # A refusal of the database is undone to here, so that the lines after it are looked at too.
            async with connection.begin_nested():
                await _take(connection, step, line.draft, imported, created_by, now)
            known[thing] = await versions_like(connection, line.draft)
        except DBAPIError as error:
            told = refusal(error)
            if told is None or isinstance(told, Unavailable):
                raise
            faults[line.number] = told.message
        except Unavailable:
            raise
        except TollgateError as error:
            faults[line.number] = error.message
    refuse_faults(faults)
    return imported


def step_of(draft: PriceDraft, versions: Sequence[PriceVersion], now: datetime) -> Step:
    """What a line asks for, given the `versions` of the same thing. Raises `InvalidRequest` for a rewritten past."""
    if draft.effective_from is None:
        in_force = next((one for one in versions if one.in_force(now)), None)
        if in_force is None or _terms(in_force) != _terms(draft):
            return Publish()
        return LeaveAlone() if draft.effective_to in (None, in_force.effective_to) else Publish()
    same_start = next((one for one in versions if one.effective_from == draft.effective_from), None)
    if same_start is None:
        return Publish()
    if _terms(same_start) != _terms(draft):
        raise InvalidRequest(
            "Another price begins at this moment, and a price is never edited. Let the new one begin later."
        )
    if same_start.effective_to == draft.effective_to:
        return LeaveAlone()
    if same_start.effective_to is None:
        return End(same_start)
    end = same_start.effective_to.isoformat()
    raise InvalidRequest(f"This price was published to end at {end}. State that end, or leave the line out.")


async def _take(
    connection: AsyncConnection, step: Step, draft: PriceDraft, imported: Imported, created_by: str, now: datetime
) -> None:
    match step:
        case Publish():
            imported.published.append(await publish(connection, draft, created_by, now))
        case End(version=version):
            assert draft.effective_to is not None, "an end is a moment"
            await end_version(connection, version, draft.effective_to)
            imported.ended.append(replace(version, effective_to=draft.effective_to))
        case LeaveAlone():
            pass


def _thing(price: PriceDraft | PriceVersion) -> tuple[str, ...]:
    return price.book, price.model, price.currency, price.meter


def _terms(price: PriceDraft | PriceVersion) -> tuple[object, ...]:
    return price.scheme, price.price, price.tiers, price.package_size, price.tiers_over
