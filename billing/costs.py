"""Posting own costs: what a month's usage costs the seller, posted again and again until nothing is left to post."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from billing.costing import CostKey, changes, costs_of
from billing.months import bounds_of
from billing.store import costs as stored
from billing.store import ledger
from billing.store.ledger import Posting
from billing.store.periods import closed_until
from models.errors import InvalidRequest
from models.ledger import Account, AccountKind, PostingKind, Transfer
from models.money import Units

_INSTANT: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class PostedCost:
    """A posting of costs; below zero where less is due than was posted before."""

    posting_id: int
    currency: str
    amount: Units


async def post_costs(connection: AsyncConnection, month: date, now: datetime) -> list[PostedCost]:
    """Post what a month costs beyond what is posted of it: nothing, where nothing has changed since.

    A posting for each currency, dated in the month, or where that period is closed in the open one. Raises
    `InvalidRequest` for a month that has not begun.
    """
    starts_at, ends_at = bounds_of(month, "UTC")
    if now < starts_at:
        raise InvalidRequest("This month has not begun, so nothing of it costs anything yet.", param="month")
    await stored.one_at_a_time(connection)
    opened = await closed_until(connection)
    due = costs_of(
        await stored.prices_of_costs(connection),
        await stored.used_in(connection, month),
        await stored.machines_in(connection, month),
    )
    by_currency: dict[str, dict[CostKey, Units]] = {}
    for key, amount in changes(due, await stored.posted_in(connection, month)).items():
        by_currency.setdefault(key.currency, {})[key] = amount
    effective_at = max(min(now, ends_at - _INSTANT), opened)
    return [
        await _post(connection, month, currency, amounts, effective_at) for currency, amounts in by_currency.items()
    ]


async def _post(
    connection: AsyncConnection, month: date, currency: str, amounts: dict[CostKey, Units], effective_at: datetime
) -> PostedCost:
    number = await stored.postings_of(connection, month, currency) + 1
    posting = Posting(
        None,
        f"cost:{month:%Y-%m}:{currency}:{number}",
        PostingKind.COST,
        effective_at,
        {"month": f"{month:%Y-%m}", "number": number},
    )
    await ledger.add_seller_accounts(connection, currency)
    accounts = await ledger.account_ids(connection, [], [currency])
    [posting_id] = await ledger.add_postings(connection, [posting])
    await stored.add_costs(connection, posting_id, month, amounts)
    total = Units(sum(amounts.values()))
    if total:
        spent = Account(None, AccountKind.PROVIDER_COST, currency)
        owed = Account(None, AccountKind.PROVIDER_PAYABLE, currency)
        debit, credit = (spent, owed) if total > 0 else (owed, spent)
        await ledger.add_transfers(connection, [(posting_id, Transfer(debit, credit, Units(abs(total))))], accounts)
    return PostedCost(posting_id, currency, total)
