"""`hledger` and `beancount`: the book for plain-text accounting, one transaction a posting, balances at month ends.

Both programs add up for themselves and refuse a file that does not balance or misses a balance: a proof of the double
entry that does not rest on our own arithmetic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, date, timedelta
from typing import Final, NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine

from billing.exports.frame import Export, Kind, Piece
from billing.exports.postings import Balances, Booked, accounts_of, opening, read
from models.ledger import Account, AccountKind
from models.money import CURRENCIES, amount_text

CLASSES: Final = {
    AccountKind.CUSTOMER_PREPAID: "liabilities",
    AccountKind.CUSTOMER_PROMO: "liabilities",
    AccountKind.UNBILLED: "assets",
    AccountKind.RECEIVABLE: "assets",
    AccountKind.CASH_CLEARING: "assets",
    AccountKind.REVENUE: "income",
    AccountKind.PROMO_EXPENSE: "expenses",
    AccountKind.BREAKAGE: "income",
    AccountKind.ROUNDING: "expenses",
    AccountKind.SUSPENSE: "assets",
    AccountKind.TAX_PAYABLE: "liabilities",
    AccountKind.BAD_DEBT: "expenses",
    AccountKind.MODEL_OWNER_PAYABLE: "liabilities",
    AccountKind.INFRASTRUCTURE_PAYABLE: "liabilities",
    AccountKind.RESELLER_PAYABLE: "liabilities",
    AccountKind.PROVIDER_COST: "expenses",
    AccountKind.PROVIDER_PAYABLE: "liabilities",
}
"""What kind of account each is to a bookkeeper."""


class Dialect(NamedTuple):
    """How a program writes what is in the book."""

    begin: Callable[[list[Account]], str]
    transaction: Callable[[Booked], str]
    opened: Callable[[Balances], str]
    closed: Callable[[Balances], str]


def _pieces(dialect: Dialect) -> Callable[[AsyncEngine, Export], AsyncIterator[Piece]]:
    async def pieces(engine: AsyncEngine, export: Export) -> AsyncIterator[Piece]:
        wanted = export.wanted
        yield Piece(dialect.begin(await accounts_of(engine, wanted)).encode())
        before = await opening(engine, wanted)
        if before is not None:
            yield Piece(dialect.opened(before).encode())
        async for part in read(engine, wanted):
            if isinstance(part, Balances):
                yield Piece(dialect.closed(part).encode())
            else:
                body = "".join(map(dialect.transaction, part)).encode()
                yield Piece(body, len(part), _debits(part), part[0].effective_at, part[-1].effective_at)

    return pieces


def _debits(postings: Iterable[Booked]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for posting in postings:
        for account, units in posting.entries:
            found[account.currency] += max(units, 0)
    return found


def _clean(text: str) -> str:
    """Text without what ends a description in either format."""
    return "".join(" " if not each.isprintable() or each in '";|\\' else each for each in text).strip()


def _day(posting: Booked) -> date:
    return posting.effective_at.astimezone(UTC).date()


def _said(posting: Booked) -> str:
    document = f", {posting.source_document}" if posting.source_document else ""
    return _clean(f"{posting.memo}{document}")


def _used(accounts: Iterable[Account]) -> list[str]:
    return sorted({account.currency for account in accounts})


# hledger -------------------------------------------------------------------------------------------------------------


def _hledger_name(account: Account) -> str:
    owner = "" if account.organization_id is None else f":{account.organization_id}"
    return f"{CLASSES[account.kind]}:{account.kind.value}{owner}"


def _hledger_lines(entries: Iterable[tuple[Account, int]]) -> str:
    return "".join(
        f"    {_hledger_name(account)}  {amount_text(units, account.currency)} {account.currency}\n"
        for account, units in entries
    )


def _hledger_begin(accounts: list[Account]) -> str:
    names = sorted({_hledger_name(account) for account in accounts})
    formats = (f"commodity 1000.{'0' * CURRENCIES[code].ledger_scale} {code}\n" for code in _used(accounts))
    return "".join((*formats, *(f"account {name}\n" for name in names), "\n"))


def _hledger_transaction(posting: Booked) -> str:
    return f"{_day(posting)} * ({posting.id}) {_said(posting)}\n{_hledger_lines(posting.entries)}\n"


def _hledger_opened(before: Balances) -> str:
    return f"{before.day} * opening balances\n{_hledger_lines(before.entries)}\n"


def _hledger_closed(after: Balances) -> str:
    lines = []
    for account, units in after.entries:
        code = account.currency
        lines.append(f"    {_hledger_name(account)}  0 {code} = {amount_text(units, code)} {code}\n")
    return f"{after.day} * balances\n{''.join(lines)}\n"


# beancount -----------------------------------------------------------------------------------------------------------

_FIRST_DAY: Final = "1970-01-01"


def _beancount_name(account: Account) -> str:
    words = "".join(word.capitalize() for word in account.kind.value.split("_"))
    # A part of a name begins with a capital or a digit.
    owner = "" if account.organization_id is None else f":{str(account.organization_id).upper()}"
    return f"{CLASSES[account.kind].capitalize()}:{words}{owner}"


def _beancount_lines(entries: Iterable[tuple[Account, int]]) -> str:
    return "".join(
        f"  {_beancount_name(account)}  {amount_text(units, account.currency)} {account.currency}\n"
        for account, units in entries
    )


def _beancount_begin(accounts: list[Account]) -> str:
    codes = _used(accounts)
    names = sorted({_beancount_name(account) for account in accounts})
    options = ['option "title" "Tollgate"\n', *(f'option "operating_currency" "{code}"\n' for code in codes)]
    options.append('option "inferred_tolerance_default" "*:0"\n\n')
    known = (f"{_FIRST_DAY} commodity {code}\n  precision: {CURRENCIES[code].ledger_scale}\n" for code in codes)
    opened = (f"{_FIRST_DAY} open {name} {','.join(codes)}\n" for name in names)
    return "".join((*options, *known, *opened, "\n"))


def _beancount_transaction(posting: Booked) -> str:
    return f'{_day(posting)} * "{_said(posting)}" ^posting-{posting.id}\n{_beancount_lines(posting.entries)}\n'


def _beancount_opened(before: Balances) -> str:
    return f'{before.day} * "opening balances"\n{_beancount_lines(before.entries)}\n'


def _beancount_closed(after: Balances) -> str:
    # A balance is that of the morning.
    morning = after.day + timedelta(days=1)
    lines = (
        f"{morning} balance {_beancount_name(account)}  {amount_text(units, account.currency)} ~ 0 {account.currency}\n"
        for account, units in after.entries
    )
    return "".join((*lines, "\n"))


# Kinds ---------------------------------------------------------------------------------------------------------------

HLEDGER: Final = Kind(
    name="hledger",
    schema="tollgate.hledger/1",
    pieces=_pieces(Dialect(_hledger_begin, _hledger_transaction, _hledger_opened, _hledger_closed)),
    total="debits",
    moment="effective_at",
    extension="journal",
    media_type="text/plain; charset=utf-8",
    is_operators=True,
    takes_since=False,
)
BEANCOUNT: Final = Kind(
    name="beancount",
    schema="tollgate.beancount/1",
    pieces=_pieces(Dialect(_beancount_begin, _beancount_transaction, _beancount_opened, _beancount_closed)),
    total="debits",
    moment="effective_at",
    extension="beancount",
    media_type="text/plain; charset=utf-8",
    is_operators=True,
    takes_since=False,
)
