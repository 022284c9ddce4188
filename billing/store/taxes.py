"""The seller as invoices show it, and the rules by which supplies are taxed; a rule is ended, never edited."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_one, fetch_optional, fetch_page
from billing.tax import TaxRule
from models.errors import Conflict
from models.ids import uuid7
from models.invoice import Party, TaxTreatment
from models.tables import seller, tax_rule


@dataclass(frozen=True, slots=True)
class NewTaxRule:
    """A rule for buyers of a country (None: of all without a rule of their own) from a moment on."""

    country: str | None
    rule: TaxRule
    effective_from: datetime


async def find_seller(connection: AsyncConnection) -> AnyRow | None:
    """The row of the seller; None where nobody said who it is."""
    return await fetch_optional(connection, select(seller))


def seller_party(row: AnyRow) -> Party:
    """The seller as a document shows it."""
    return Party(
        legal_name=row.legal_name,
        country=row.country,
        tax_id=row.tax_id,
        address=row.address,
        email=row.email,
        phone=row.phone,
        payment_details=row.payment_details,
    )


async def set_seller(connection: AsyncConnection, values: dict[str, Any]) -> AnyRow:
    """Say who the seller is; what was issued before keeps what it showed."""
    statement = upsert(seller).values(id=1, **values).on_conflict_do_update(index_elements=[seller.c.id], set_=values)
    return await fetch_one(connection, statement.returning(seller))


async def rule_at(connection: AsyncConnection, country: str | None, moment: datetime) -> TaxRule | None:
    """The rule for buyers of a country at a moment: its own, else the one of all others, else None."""
    row = await fetch_optional(
        connection,
        select(tax_rule)
        .where(or_(tax_rule.c.country == country, tax_rule.c.country.is_(None)), tax_rule.c.effective.contains(moment))
        .order_by(tax_rule.c.country.nulls_last())
        .limit(1),
    )
    return None if row is None else TaxRule(TaxTreatment(row.treatment), row.rate_ppm, row.is_inclusive, row.name)


async def add_rule(connection: AsyncConnection, new: NewTaxRule, created_by: str, now: datetime) -> AnyRow:
    """Store a rule, and end the open one of the same country where it begins.

    Raises `IntegrityError` where it overlaps one that has an end or begins later.
    """
    await connection.execute(
        update(tax_rule)
        .where(
            tax_rule.c.country.is_not_distinct_from(new.country),
            func.upper_inf(tax_rule.c.effective),
            func.lower(tax_rule.c.effective) < new.effective_from,
        )
        .values(effective=func.tstzrange(func.lower(tax_rule.c.effective), new.effective_from))
    )
    statement = insert(tax_rule).values(
        id=uuid7(now),
        country=new.country,
        treatment=new.rule.treatment.value,
        rate_ppm=new.rule.rate_ppm,
        is_inclusive=new.rule.is_inclusive,
        name=new.rule.name,
        effective=Range(new.effective_from, None, bounds="[)"),
        created_by=created_by,
        created_at=now,
    )
    return await fetch_one(connection, statement.returning(tax_rule))


async def end_rule(connection: AsyncConnection, rule_id: UUID, moment: datetime) -> AnyRow | None:
    """End an open rule; None where there is none of this id. Raises `Conflict` before its beginning, or ended."""
    row = await fetch_optional(connection, select(tax_rule).where(tax_rule.c.id == rule_id).with_for_update())
    if row is None:
        return None
    if row.effective.upper is not None or moment <= row.effective.lower:
        raise Conflict(
            "This tax rule has ended, or would end before it begins. Name a later moment, or add a new rule."
        )
    ended = Range(row.effective.lower, moment, bounds="[)")
    statement = update(tax_rule).where(tax_rule.c.id == rule_id).values(effective=ended)
    return await fetch_one(connection, statement.returning(tax_rule))


async def list_rules(connection: AsyncConnection, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of rules in the order of their making, ended ones among them."""
    return await fetch_page(connection, select(tax_rule), tax_rule.c.id, page)
