"""The book: accounts, and transfers between two of them grouped in postings.

A transfer names the account it debits, the account it credits and one positive amount, so an unbalanced journal
cannot be written down.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from models.money import Units


class AccountKind(StrEnum):
    """The chart of accounts. The first four exist per organization, the others once per currency."""

    CUSTOMER_PREPAID = "customer_prepaid"
    CUSTOMER_PROMO = "customer_promo"
    UNBILLED = "unbilled"
    RECEIVABLE = "receivable"
    CASH_CLEARING = "cash_clearing"
    REVENUE = "revenue"
    PROMO_EXPENSE = "promo_expense"
    BREAKAGE = "breakage"
    ROUNDING = "rounding"
    SUSPENSE = "suspense"
    TAX_PAYABLE = "tax_payable"
    BAD_DEBT = "bad_debt"
    MODEL_OWNER_PAYABLE = "model_owner_payable"
    INFRASTRUCTURE_PAYABLE = "infrastructure_payable"
    RESELLER_PAYABLE = "reseller_payable"
    PROVIDER_COST = "provider_cost"
    PROVIDER_PAYABLE = "provider_payable"


ORGANIZATION_ACCOUNTS = (
    AccountKind.CUSTOMER_PREPAID,
    AccountKind.CUSTOMER_PROMO,
    AccountKind.UNBILLED,
    AccountKind.RECEIVABLE,
)
DEBIT_NORMAL = frozenset(
    {
        AccountKind.UNBILLED,
        AccountKind.RECEIVABLE,
        AccountKind.CASH_CLEARING,
        AccountKind.PROMO_EXPENSE,
        AccountKind.SUSPENSE,
        AccountKind.BAD_DEBT,
        AccountKind.PROVIDER_COST,
    }
)
"""Accounts that grow on the debit side."""


class PostingKind(StrEnum):
    """Why money moved."""

    CHARGE_BATCH = "charge_batch"
    TOPUP = "topup"
    GRANT = "grant"
    EXPIRE = "expire"
    VOID_GRANT = "void_grant"
    REVERSAL = "reversal"
    INVOICE = "invoice"
    VOID_INVOICE = "void_invoice"
    CREDIT_NOTE = "credit_note"
    PAYMENT = "payment"
    REFUND = "refund"
    WRITE_OFF = "write_off"
    COST = "cost"


class ShareRole(StrEnum):
    """For what a party gets a share of the revenue: the model, the machines, or the customer."""

    MODEL_OWNER = "model_owner"
    INFRASTRUCTURE_OWNER = "infrastructure_owner"
    RESELLER = "reseller"

    @property
    def account(self) -> AccountKind:
        """The seller's account of what is owed to such parties."""
        return _PAYABLE[self]


_PAYABLE = {
    ShareRole.MODEL_OWNER: AccountKind.MODEL_OWNER_PAYABLE,
    ShareRole.INFRASTRUCTURE_OWNER: AccountKind.INFRASTRUCTURE_PAYABLE,
    ShareRole.RESELLER: AccountKind.RESELLER_PAYABLE,
}


class GrantKind(StrEnum):
    """What a credit grant is worth to the books: bought, given, committed to, or given back."""

    PAID = "paid"
    PROMO = "promo"
    COMMIT = "commit"
    REFUND = "refund"


@dataclass(frozen=True, slots=True)
class Account:
    """One account; `organization_id` is None for the seller's own."""

    organization_id: UUID | None
    kind: AccountKind
    currency: str


@dataclass(frozen=True, slots=True)
class Transfer:
    """Money from one account's credit side to another's debit side."""

    debit: Account
    credit: Account
    amount: Units

    def __post_init__(self) -> None:
        if self.amount <= 0:
            raise ValueError(f"a transfer moves a positive amount: {self}")
        if self.debit.currency != self.credit.currency:
            raise ValueError(f"a transfer stays in one currency: {self}")
        if self.debit == self.credit:
            raise ValueError(f"a transfer needs two accounts: {self}")
