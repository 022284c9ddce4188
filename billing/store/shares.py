"""Rules of revenue shares in Postgres, what postings gave to parties by them, and a party's statement."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import insert, or_, select, text, update
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.shares import WHOLE_PPM, Rule, Shares, largest_total
from billing.store.pages import AnyRow, Page, fetch_one, fetch_optional, fetch_page
from billing.store.shards import hold_all
from models.errors import Conflict, InvalidRequest, NotFound
from models.ids import uuid7
from models.ledger import ShareRole
from models.tables import revenue_share

_ADD = text(
    """
    insert into share (posting_id, role, party, model, amount)
      select * from unnest(
        cast(:postings as bigint[]), cast(:roles as text[]), cast(:parties as text[]), cast(:models as text[]),
        cast(:amounts as numeric[])
      )
    """
)


async def rules_for(connection: AsyncConnection, organization_ids: Collection[UUID]) -> list[Rule]:
    """The rules that may be about calls of these organizations, of all times."""
    rows = await connection.execute(
        select(revenue_share).where(
            or_(revenue_share.c.organization_id.is_(None), revenue_share.c.organization_id.in_(organization_ids))
        )
    )
    return [rule_of(row) for row in rows]


async def add_shares(connection: AsyncConnection, postings: Sequence[tuple[int, Shares]]) -> None:
    """Note what postings give to parties."""
    rows = [(posting_id, *key, amount) for posting_id, shares in postings for key, amount in shares.items()]
    if rows:
        names = ("postings", "roles", "parties", "models", "amounts")
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        await connection.execute(_ADD, columns | {"roles": [role.value for _, role, *_ in rows]})


@dataclass(frozen=True, slots=True)
class NewRule:
    """A rule to publish; `effective_from` None is from now on."""

    role: ShareRole
    party: str
    model: str | None
    organization_id: UUID | None
    ppm: int
    effective_from: datetime | None
    effective_to: datetime | None


async def publish_rule(connection: AsyncConnection, new: NewRule, created_by: str, now: datetime) -> AnyRow:
    """Store a rule, for calls that are made from now on: what is booked was divided by the rules of its time.

    Call `hold_rules` before `now` is taken. Raises `InvalidRequest` where it begins in the past or would take more
    than all of a call, and `IntegrityError` where it overlaps another for the same party and calls.
    """
    start = new.effective_from or now
    if start < now:
        raise InvalidRequest(
            "Calls of that time are booked already. Let the share begin now or later.", "effective_from"
        )
    if new.effective_to is not None and new.effective_to <= start:
        raise InvalidRequest("effective_to must be later than effective_from.", "effective_to")
    rule = Rule(new.role, new.party, new.model, new.organization_id, new.ppm, start, new.effective_to)
    rows = (await connection.execute(select(revenue_share))).all()
    _refuse_excess([*(rule_of(row) for row in rows), rule], rule, now)
    statement = insert(revenue_share).values(
        id=uuid7(now),
        role=new.role.value,
        party=new.party,
        model=new.model,
        organization_id=new.organization_id,
        ppm=new.ppm,
        effective=Range(start, new.effective_to, bounds="[)"),
        created_by=created_by,
        created_at=now,
    )
    return await fetch_one(connection, statement.returning(revenue_share))


async def end_rule(connection: AsyncConnection, rule_id: UUID, moment: datetime | None, now: datetime) -> AnyRow:
    """End a rule that has no end yet; `moment` None is now. Call `hold_rules` before `now` is taken."""
    row = await fetch_optional(connection, select(revenue_share).where(revenue_share.c.id == rule_id))
    if row is None:
        raise NotFound("There is no such revenue share.")
    if row.effective.upper is not None:
        raise Conflict("This share has an end already. Publish another one for the time after it.")
    end = moment or now
    if end < now:
        raise InvalidRequest("Calls of that time are booked already. Let the share end now or later.", "effective_to")
    if end <= row.effective.lower:
        raise InvalidRequest("A share must end after it begins.", "effective_to")
    rows = (await connection.execute(select(revenue_share).where(revenue_share.c.id != rule_id))).all()
    ended = Range(row.effective.lower, end, bounds="[)")
    changed = rule_of(row)
    rest = [*(rule_of(other) for other in rows), _ending(changed, end)]
    _refuse_excess(rest, changed, now)
    statement = update(revenue_share).where(revenue_share.c.id == rule_id).values(effective=ended)
    return await fetch_one(connection, statement.returning(revenue_share))


async def hold_rules(connection: AsyncConnection) -> None:
    """Wait for the bookings that run and let none begin: each is made by the rules before a change or after it."""
    await hold_all(connection)
    # Two changes wait for each other too, since each must see what the other takes.
    await connection.execute(text("select pg_advisory_xact_lock(7346017, 2)"))


async def list_rules(connection: AsyncConnection, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of rules in the order of their publication, ended ones among them."""
    return await fetch_page(connection, select(revenue_share), revenue_share.c.id, page)


_STATEMENT = text(
    """
    select share.role, posting.organization_id, share.model, organization.currency, sum(share.amount) as amount,
        count(distinct share.posting_id) as postings
      from share
      join posting on posting.id = share.posting_id
      join organization on organization.id = posting.organization_id
      where share.party = :party and posting.effective_at >= :starts_at and posting.effective_at < :ends_at
      group by 1, 2, 3, 4
      order by 1, 2, 3, 4
    """
)


async def statement_of(connection: AsyncConnection, party: str, starts_at: datetime, ends_at: datetime) -> list[AnyRow]:
    """What a party got by postings of a time: a row for each role, organization, model and currency."""
    values = {"party": party, "starts_at": starts_at, "ends_at": ends_at}
    return list((await connection.execute(_STATEMENT, values)).all())


def rule_of(row: AnyRow) -> Rule:
    """The value that a row holds."""
    return Rule(
        ShareRole(row.role),
        row.party,
        row.model,
        row.organization_id,
        row.ppm,
        row.effective.lower,
        row.effective.upper,
    )


def _ending(rule: Rule, end: datetime) -> Rule:
    return Rule(rule.role, rule.party, rule.model, rule.organization_id, rule.ppm, rule.effective_from, end)


def _refuse_excess(rules: Sequence[Rule], changed: Rule, now: datetime) -> None:
    total = largest_total(rules, changed, now)
    if total > WHOLE_PPM:
        raise InvalidRequest(
            f"The shares of some calls would add up to {total:,} parts per million, which is more than all of them"
            f" ({WHOLE_PPM:,}). Lower this share, or end another first.",
            param="ppm",
        )
