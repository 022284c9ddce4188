"""Routes of the ledger, to read only: accounts and what moved them, the trial balance, and postings."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from billing.months import bounds_of
from billing.periods import parse_period
from billing.store import accounts as stored
from billing.store.pages import AnyRow, Page
from billing.store.periods import find_period
from billing.store.trial_balance import Line, digest_of, trial_balance
from gateway.api.operator.requests import Operator
from gateway.api.operator.shapes import Asked, CurrencyCode, ListOf, Moment, Money, list_of
from models.errors import InvalidRequest, NotFound
from models.ledger import DEBIT_NORMAL, AccountKind, PostingKind

router = APIRouter(prefix="/ledger")

Number = Annotated[int, Field(ge=0, lt=2**63)]


class LedgerAccount(BaseModel):
    """An account; `balance` is on its `normal` side, below zero where it is on the other."""

    id: str
    object: Literal["ledger_account"] = "ledger_account"
    organization_id: UUID | None
    kind: AccountKind
    normal: Literal["debit", "credit"]
    debits: Money
    credits: Money
    balance: Money

    @classmethod
    def of(cls, row: AnyRow) -> LedgerAccount:
        """The answer for a row."""
        kind = AccountKind(row.kind)
        return cls(
            id=str(row.id),
            organization_id=row.organization_id,
            kind=kind,
            normal=_normal(kind),
            debits=Money.of(row.debits, row.currency),
            credits=Money.of(row.credits, row.currency),
            balance=Money.of(_balance(kind, int(row.debits), int(row.credits)), row.currency),
        )


class LedgerEntry(BaseModel):
    """What a posting did to an account; the id is the posting's."""

    id: str
    object: Literal["ledger_entry"] = "ledger_entry"
    organization_id: UUID | None
    kind: PostingKind
    effective_at: datetime
    booked_at: datetime
    debits: Money
    credits: Money


class Side(BaseModel):
    """One account of a transfer."""

    account_id: str
    kind: AccountKind
    organization_id: UUID | None


class LedgerTransfer(BaseModel):
    """Money from one account's credit side to another's debit side."""

    debit: Side
    credit: Side
    amount: Money


class Seal(BaseModel):
    """The place of a posting in the chain, and the digest there."""

    seq: int
    digest: str


class LedgerPosting(BaseModel):
    """Why money moved, and from where to where; `seal` is null for some seconds after it was booked."""

    id: str
    object: Literal["ledger_posting"] = "ledger_posting"
    organization_id: UUID | None
    kind: PostingKind
    idempotency_key: str
    effective_at: datetime
    booked_at: datetime
    reverses: str | None
    billing_month: str | None
    source: dict[str, Any]
    transfers: list[LedgerTransfer]
    seal: Seal | None


class TrialBalanceLine(BaseModel):
    """All accounts of a kind in a currency, summed up."""

    account: AccountKind
    currency: CurrencyCode
    normal: Literal["debit", "credit"]
    debits: Money
    credits: Money
    balance: Money


class TrialBalance(BaseModel):
    """What was posted before `until`, by the dates of postings. `digest` is the SHA-256 of its lines."""

    object: Literal["trial_balance"] = "trial_balance"
    until: datetime
    period: str | None
    is_closed: bool
    lines: list[TrialBalanceLine]
    totals: dict[str, Money] = Field(description="Debits of each currency, which equal its credits")
    digest: str


class AskedAccounts(Asked):
    """Which accounts to list; `organization_id=seller` for those of no organization."""

    after: Number | None = None
    organization_id: UUID | Literal["seller"] | None = None
    kind: AccountKind | None = None
    currency: CurrencyCode | None = None


class AskedEntries(Asked):
    """Which entries of an account to list, oldest first."""

    after: Number | None = None


class AskedPostings(Asked):
    """Which postings to list, newest first; dates from `starts_at` (inclusive) to `ends_at` (exclusive)."""

    after: Number | None = None
    organization_id: UUID | None = None
    kind: PostingKind | None = None
    starts_at: Moment | None = None
    ends_at: Moment | None = None


class AskedTrialBalance(BaseModel):
    """Up to when: the end of a `period`, or a moment; else all there is."""

    model_config = {"extra": "forbid"}

    period: str | None = None
    until: Moment | None = None


@router.get("/accounts")
async def list_accounts(asked: Annotated[AskedAccounts, Query()], request: Operator) -> ListOf[LedgerAccount]:
    """Accounts and their balances, in the order in which they were opened."""
    owner = asked.organization_id
    wanted = stored.AccountFilter(
        owner if isinstance(owner, UUID) else None, asked.kind, asked.currency, is_sellers=owner == "seller"
    )
    async with request.reading() as connection:
        rows, more = await stored.list_accounts(connection, wanted, Page(asked.after, asked.limit))
    return list_of([LedgerAccount.of(row) for row in rows], more)


@router.get("/accounts/{account_id}/entries")
async def list_entries(
    account_id: Annotated[int, Path(ge=0, lt=2**63)], asked: Annotated[AskedEntries, Query()], request: Operator
) -> ListOf[LedgerEntry]:
    """The statement of an account: what each posting did to it, oldest first."""
    async with request.reading() as connection:
        account = await stored.find_account(connection, account_id)
        if account is None:
            raise NotFound("There is no such account.")
        rows, more = await stored.list_entries(connection, account_id, asked.after or 0, asked.limit)
    return list_of([_entry(row, account.currency) for row in rows], more)


@router.get("/trial_balance")
async def read_trial_balance(asked: Annotated[AskedTrialBalance, Query()], request: Operator) -> TrialBalance:
    """The trial balance at the end of a period, at a moment, or now; of a closed period the one it was closed with."""
    if asked.period is not None and asked.until is not None:
        raise InvalidRequest("Ask for a period or for a moment, not for both.", param="until")
    until = asked.until or request.parts.clock.now()
    if asked.period is not None:
        until = bounds_of(parse_period(asked.period), "UTC")[1]
    async with request.reading() as connection:
        closed = None if asked.period is None else await find_period(connection, asked.period)
        if closed is None:
            lines = await trial_balance(connection, until)
        else:
            lines = [
                Line(line["currency"], line["account"], int(line["debits"]), int(line["credits"]))
                for line in closed.trial_balance
            ]
    totals: dict[str, int] = {}
    for line in lines:
        totals[line.currency] = totals.get(line.currency, 0) + line.debits
    return TrialBalance(
        until=until,
        period=asked.period,
        is_closed=closed is not None,
        lines=[_line(line) for line in lines],
        totals={currency: Money.of(units, currency) for currency, units in totals.items()},
        digest=digest_of(lines).hex(),
    )


@router.get("/postings")
async def list_postings(asked: Annotated[AskedPostings, Query()], request: Operator) -> ListOf[LedgerPosting]:
    """Postings with their transfers, newest first."""
    wanted = stored.PostingFilter(asked.organization_id, asked.kind, asked.starts_at, asked.ends_at)
    async with request.reading() as connection:
        rows, more = await stored.list_postings(connection, wanted, Page(asked.after, asked.limit, newest_first=True))
        transfers = await stored.transfers_of(connection, [row.id for row in rows])
    return list_of([_posting(row, transfers.get(row.id, [])) for row in rows], more)


def _normal(kind: AccountKind) -> Literal["debit", "credit"]:
    return "debit" if kind in DEBIT_NORMAL else "credit"


def _balance(kind: AccountKind, debits: int, credits: int) -> int:
    return debits - credits if kind in DEBIT_NORMAL else credits - debits


def _entry(row: AnyRow, currency: str) -> LedgerEntry:
    return LedgerEntry(
        id=str(row.id),
        organization_id=row.organization_id,
        kind=PostingKind(row.kind),
        effective_at=row.effective_at,
        booked_at=row.booked_at,
        debits=Money.of(row.debits, currency),
        credits=Money.of(row.credits, currency),
    )


def _line(line: Line) -> TrialBalanceLine:
    kind = AccountKind(line.account)
    debits = Money.of(line.debits, line.currency)
    return TrialBalanceLine(
        account=kind,
        currency=debits.currency,
        normal=_normal(kind),
        debits=debits,
        credits=Money.of(line.credits, line.currency),
        balance=Money.of(_balance(kind, line.debits, line.credits), line.currency),
    )


def _posting(row: AnyRow, transfers: list[AnyRow]) -> LedgerPosting:
    return LedgerPosting(
        id=str(row.id),
        organization_id=row.organization_id,
        kind=PostingKind(row.kind),
        idempotency_key=row.idempotency_key,
        effective_at=row.effective_at,
        booked_at=row.booked_at,
        reverses=None if row.reverses is None else str(row.reverses),
        billing_month=None if row.billing_month is None else f"{row.billing_month:%Y-%m}",
        source=row.source,
        transfers=[
            LedgerTransfer(debit=_side(each, "debit"), credit=_side(each, "credit"), amount=_amount(each))
            for each in transfers
        ],
        seal=None if row.seal is None else Seal(seq=row.seal, digest=row.digest.hex()),
    )


def _side(row: AnyRow, side: str) -> Side:
    return Side(
        account_id=str(getattr(row, f"{side}_id")),
        kind=AccountKind(getattr(row, f"{side}_kind")),
        organization_id=getattr(row, f"{side}_organization_id"),
    )


def _amount(row: AnyRow) -> Money:
    return Money.of(row.amount, row.currency)
