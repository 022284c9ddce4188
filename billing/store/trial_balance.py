"""The trial balance: what was debited and credited to each kind of account up to a moment, organizations summed up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True)
class Line:
    """One kind of account in one currency; amounts are ledger units."""

    currency: str
    account: str
    debits: int
    credits: int

    def as_json(self) -> dict[str, str]:
        """The line as a closed period keeps it."""
        return {
            "currency": self.currency,
            "account": self.account,
            "debits": str(self.debits),
            "credits": str(self.credits),
        }


_LINES = text(
    """
    select account.currency, account.kind as account, sum(side.debit) as debits, sum(side.credit) as credits
      from (
        select posting_id, debit_account as account_id, amount as debit, 0 as credit from transfer
        union all
        select posting_id, credit_account, 0, amount from transfer
      ) side
      join posting on posting.id = side.posting_id
      join account on account.id = side.account_id
      where posting.effective_at < :until
      group by 1, 2
      order by account.currency collate "C", account.kind collate "C"
    """
)


async def trial_balance(connection: AsyncConnection, until: datetime) -> list[Line]:
    """Every kind of account that was moved before `until`, by the date of the postings, in the order of the names."""
    rows = await connection.execute(_LINES, {"until": until})
    return [Line(row.currency, row.account, int(row.debits), int(row.credits)) for row in rows]


def digest_of(lines: Iterable[Line]) -> bytes:
    """SHA-256 of the lines, each as `currency account debits credits` and a line feed, in the order of the names."""
    ordered = sorted(lines, key=lambda line: (line.currency, line.account))
    text = "".join(f"{line.currency} {line.account} {line.debits} {line.credits}\n" for line in ordered)
    return sha256(text.encode()).digest()
