"""Money that comes in and goes back: payments, what of them is set against which invoice, and refunds.

What is not set against an invoice is the customer's credit: a paid grant, which calls draw on like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from billing.booking import Grant
from billing.settlement import post
from billing.store import balances, grants, invoices, ledger
from billing.store import payments as stored
from billing.store.ledger import Posting
from billing.store.organizations import find_organization
from billing.store.pages import AnyRow
from billing.tax import minor_unit
from models.errors import Conflict, InvalidRequest, NotFound
from models.ids import uuid7
from models.invoice import Allocation, Invoice, InvoiceKind, InvoiceState, Payment
from models.ledger import Account, AccountKind, GrantKind, PostingKind, Transfer
from models.money import LARGEST_BALANCE_UNITS, Units, amount_text

MANUAL: Final = "manual"
"""Provider of the payments that a person records."""

_PRIORITY: Final = 50
_CLOCKS: Final = timedelta(minutes=5)
_FIRST_YEAR: Final = 2000
"""The books begin with their first posting, and no period before this year can be closed, nor any after it then."""


@dataclass(frozen=True, slots=True)
class Locked:
    """An organization whose row and whose money are locked until the transaction ends."""

    row: AnyRow
    terms: balances.Terms

    @property
    def id(self) -> UUID:
        """Id of the organization."""
        found: UUID = self.row.id
        return found

    @property
    def currency(self) -> str:
        """The one currency that it pays in."""
        return self.terms.currency

    def account(self, kind: AccountKind) -> Account:
        """An account of the organization."""
        return Account(self.id, kind, self.currency)

    def sellers(self, kind: AccountKind) -> Account:
        """An account of the seller."""
        return Account(None, kind, self.currency)

    def effective(self, moment: datetime) -> datetime:
        """The moment, or where its period is closed the beginning of the open one."""
        return max(moment, self.terms.closed_until)


@dataclass(frozen=True, slots=True)
class NewPayment:
    """Money that came in. `invoice_ids` says what it is for; without, it pays what is due first."""

    provider: str
    reference: str
    amount: Units
    currency: str
    received_at: datetime
    invoice_ids: tuple[UUID, ...] | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """A payment, and whether it was recorded only now."""

    payment: Payment
    is_new: bool


async def lock(connection: AsyncConnection, organization_id: UUID) -> Locked:
    """Lock an organization for whoever moves its money. Raises `NotFound` for one that is not there.

    Its own row first, as whoever changes an organization does.
    """
    row = await find_organization(connection, organization_id, for_update=True)
    terms = (await balances.lock_money(connection, [organization_id])).get(organization_id)
    if row is None or terms is None:
        raise NotFound("There is no such organization.")
    return Locked(row, terms)


# Payments ------------------------------------------------------------------------------------------------------------


async def record_payment(
    connection: AsyncConnection, organization_id: UUID, new: NewPayment, now: datetime
) -> Recorded:
    """Record a payment once, set it against open invoices, and make the rest the customer's credit.

    A provider's reference is taken once: repeated with the same terms it changes nothing, with others it raises
    `Conflict`. Raises `InvalidRequest` for what cannot be paid.
    """
    owner = await lock(connection, organization_id)
    earlier = await stored.find_reference(connection, new.provider, new.reference)
    if earlier is not None:
        if (earlier.organization_id, earlier.amount, earlier.currency) != (organization_id, new.amount, new.currency):
            raise Conflict(
                "A payment with this reference was recorded before, of another amount or organization. Look it up, and"
                " use the reference of the new one."
            )
        return Recorded(earlier, is_new=False)
    _refuse_impossible(owner, new, now)
    payment_id = uuid7(now)
    allocated = await _plan(connection, owner, new)
    rest = Units(new.amount - sum(amount for _, amount in allocated))
    grant_id = await _grant(connection, owner, GrantKind.PAID, rest, now) if rest else None

    cash = owner.sellers(AccountKind.CASH_CLEARING)
    transfers = [Transfer(cash, owner.account(AccountKind.RECEIVABLE), amount) for _, amount in allocated]
    if rest:
        transfers.append(Transfer(cash, owner.account(AccountKind.CUSTOMER_PREPAID), rest))
    # Not before an invoice that it pays was in the books.
    moments = [new.received_at, *(each.finalized_at for each, _ in allocated if each.finalized_at is not None)]
    posting = Posting(
        owner.id,
        f"payment:{new.provider}:{new.reference}",
        PostingKind.PAYMENT,
        owner.effective(max(moments)),
        {"payment_id": str(payment_id), "provider": new.provider, "reference": new.reference}
        | ({"grant_id": str(grant_id)} if grant_id else {}),
    )
    posting_id = await post(connection, posting, transfers)
    paid = Payment(
        id=payment_id,
        organization_id=owner.id,
        provider=new.provider,
        reference=new.reference,
        amount=new.amount,
        currency=new.currency,
        received_at=new.received_at,
        refunded=Units(0),
        grant_id=grant_id,
        posting_id=posting_id,
        created_at=now,
        allocations=tuple(Allocation(each.id, amount, now, payment_id) for each, amount in allocated),
    )
    await stored.add_payment(connection, paid)
    await stored.add_allocations(connection, paid.allocations, posting_id)
    for each, amount in allocated:
        await settle(connection, each, amount, now)
    return Recorded(paid, is_new=True)


def _refuse_impossible(owner: Locked, new: NewPayment, now: datetime) -> None:
    if new.currency != owner.currency:
        raise InvalidRequest(f"The payment must be in {owner.currency}, the organization's currency.", param="amount")
    refuse_amount(new.amount, new.currency)
    if new.received_at > now + _CLOCKS:
        raise InvalidRequest(
            "A payment is recorded when it was received, and this is in the future.", param="received_at"
        )
    if new.received_at.year < _FIRST_YEAR:
        raise InvalidRequest(
            f"This payment would have come in in {new.received_at.year}. Correct the year.", param="received_at"
        )


def refuse_amount(amount: int, code: str) -> None:
    """Raise `InvalidRequest` for what is no amount of money that changes hands."""
    if amount <= 0:
        raise InvalidRequest("The amount must be above zero.", param="amount")
    if amount > LARGEST_BALANCE_UNITS:
        raise InvalidRequest("The amount is larger than the ledger can hold.", param="amount")
    if amount % minor_unit(code):
        raise InvalidRequest(
            f"The amount must be a multiple of the smallest coin, {amount_text(minor_unit(code), code)} {code}.",
            param="amount",
        )


async def _plan(connection: AsyncConnection, owner: Locked, new: NewPayment) -> list[tuple[Invoice, Units]]:
    """Which invoices a payment pays, and how much of each: those named in their order, else those due first."""
    wanted = invoices.InvoiceFilter(owner.id, InvoiceKind.INVOICE, (InvoiceState.OPEN,))
    unpaid = {each.id: each for each in await invoices.all_invoices(connection, wanted)}
    if new.invoice_ids is None:
        chosen = sorted(unpaid.values(), key=lambda each: (each.due_on or each.created_at.date(), each.id))
    else:
        if unknown := [each for each in new.invoice_ids if each not in unpaid]:
            raise InvalidRequest(
                f"Invoice {unknown[0]} is not an open invoice of this organization. Name open ones, or leave them out"
                " to pay what is due first.",
                param="invoice_ids",
            )
        chosen = [unpaid[each] for each in dict.fromkeys(new.invoice_ids)]
    left, allocated = int(new.amount), []
    for each in chosen:
        amount = min(left, each.due)
        if amount:
            allocated.append((each, Units(amount)))
            left -= amount
    return allocated


async def settle(connection: AsyncConnection, invoice: Invoice, amount: int, now: datetime) -> None:
    """Note that an amount of an invoice was settled, or is owed again where it is negative."""
    settled = invoice.settled + amount
    is_paid = settled == invoice.total
    values = {
        "settled": settled,
        "state": (InvoiceState.PAID if is_paid else InvoiceState.OPEN).value,
        "closed_at": now if is_paid else None,
    }
    await invoices.change_document(connection, invoice.id, values)


async def give_back(connection: AsyncConnection, owner: Locked, amount: Units, now: datetime) -> UUID:
    """A refund grant for what a customer gets back; whoever calls posts the money to `customer_prepaid`."""
    return await _grant(connection, owner, GrantKind.REFUND, amount, now)


async def _grant(connection: AsyncConnection, owner: Locked, kind: GrantKind, amount: Units, now: datetime) -> UUID:
    balance = await balances.balance_of(connection, owner.id)
    assert balance is not None, "its row is locked"
    if balance.posted + amount > LARGEST_BALANCE_UNITS:
        raise InvalidRequest("The balance would exceed the largest that can be kept.", param="amount")
    given = Grant(uuid7(now), kind, amount, _PRIORITY, now)
    await grants.add_grant(connection, given, organization_id=owner.id, currency=owner.currency, created_at=now)
    return given.id


async def allocate(
    connection: AsyncConnection, payment_id: UUID, invoice_id: UUID, amount: Units | None, key: str, now: datetime
) -> Payment:
    """Set what is left of a payment's credit against an invoice; without an amount as much as can be.

    The same key does it once. Raises `NotFound`, `Conflict` where nothing is left or owed, `InvalidRequest`.
    """
    payment, owner = await _locked(connection, payment_id)
    posting_key = f"allocate:{payment_id}:{key}"
    if await ledger.find_posting(connection, posting_key) is not None:
        return payment
    invoice = await invoices.find_invoice(connection, invoice_id, invoices.InvoiceFilter(owner.id, InvoiceKind.INVOICE))
    if invoice is None:
        raise NotFound("There is no such invoice of the organization that paid.")
    left = await _remaining(connection, payment.grant_id)
    coin = minor_unit(owner.currency)
    most = min(left, invoice.due) // coin * coin
    if most == 0:
        raise Conflict("Nothing is left of this payment, or nothing is owed of this invoice.")
    taken = most if amount is None else amount
    refuse_amount(taken, owner.currency)
    if taken > most:
        raise InvalidRequest(
            f"At most {amount_text(most, owner.currency)} {owner.currency} of this payment can be set against this"
            " invoice.",
            param="amount",
        )
    posting = Posting(
        owner.id,
        posting_key,
        PostingKind.PAYMENT,
        owner.effective(now),
        {"payment_id": str(payment_id), "invoice_id": str(invoice_id)},
    )
    prepaid, receivable = owner.account(AccountKind.CUSTOMER_PREPAID), owner.account(AccountKind.RECEIVABLE)
    posting_id = await post(connection, posting, [Transfer(prepaid, receivable, Units(taken))])
    assert payment.grant_id is not None, "something is left of it"
    await grants.draw(connection, [grants.Draw(posting_id, payment.grant_id, Units(taken))])
    allocated = Allocation(invoice_id, Units(taken), now, payment_id)
    await stored.add_allocations(connection, [allocated], posting_id)
    await settle(connection, invoice, taken, now)
    return replace(payment, allocations=(*payment.allocations, allocated))


# Refunds -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Refund:
    """Where the money of a refund comes from: grants, and invoices that are owed again for it."""

    draws: tuple[tuple[UUID, Units], ...]
    reopened: tuple[tuple[Invoice, Units], ...]
    missing: int


async def refund(
    connection: AsyncConnection, payment_id: UUID, amount: Units, key: str, now: datetime, *, reopens: bool = False
) -> Payment:
    """Pay back a part of a payment: first what of it is still credit, then credit that credit notes gave for it.

    With `reopens` also what paid invoices, the last one first: they are open again. The same key does it once. Raises
    `NotFound`, `InvalidRequest` above what was paid, `Conflict` where the money is spent.
    """
    payment, owner = await _locked(connection, payment_id)
    posting_key = f"refund:{payment_id}:{key}"
    earlier = await ledger.find_posting(connection, posting_key)
    if earlier is not None:
        if earlier["amount"] != str(amount):
            raise Conflict("This key refunded another amount of this payment before. Use a new key for a new refund.")
        return payment
    refuse_amount(amount, owner.currency)
    if amount > payment.amount - payment.refunded:
        raise InvalidRequest(
            f"At most {amount_text(payment.amount - payment.refunded, owner.currency)} {owner.currency} of this payment"
            " can be refunded: no more than was paid.",
            param="amount",
            status=422,
        )
    planned = await _plan_refund(connection, payment, amount, reopens=reopens)
    if planned.missing:
        raise Conflict(
            f"Of this payment {amount_text(amount - planned.missing, owner.currency)} {owner.currency} can be refunded:"
            " the rest is spent or paid invoices. Issue a credit note first, or ask for the paid invoices to be opened"
            " again."
        )
    await _pay_back(connection, owner, payment, planned, amount, posting_key, now)
    found = await stored.find_payment(connection, payment_id)
    assert found is not None, "it was found before"
    return found


async def _plan_refund(connection: AsyncConnection, payment: Payment, amount: int, *, reopens: bool) -> _Refund:
    paid: dict[UUID, int] = {}
    for each in payment.allocations:
        paid[each.invoice_id] = paid.get(each.invoice_id, 0) + each.amount
    credited = await stored.refund_grants(connection, [each for each, units in paid.items() if units])
    draws, missing = [], amount
    for grant_id in [payment.grant_id, *credited]:
        taken = min(missing, await _remaining(connection, grant_id))
        if taken and grant_id is not None:
            draws.append((grant_id, Units(taken)))
            missing -= taken
    reopened = []
    for invoice_id in reversed(paid) if reopens else ():
        invoice = await invoices.find_invoice(connection, invoice_id)
        assert invoice is not None, "a foreign key keeps it"
        taken = min(missing, paid[invoice_id])
        if taken and invoice.state in (InvoiceState.OPEN, InvoiceState.PAID):
            reopened.append((invoice, Units(taken)))
            missing -= taken
    return _Refund(tuple(draws), tuple(reopened), missing)


async def _pay_back(
    connection: AsyncConnection,
    owner: Locked,
    payment: Payment,
    planned: _Refund,
    amount: Units,
    posting_key: str,
    now: datetime,
) -> None:
    cash = owner.sellers(AccountKind.CASH_CLEARING)
    parts = (
        (AccountKind.CUSTOMER_PREPAID, sum(units for _, units in planned.draws)),
        (AccountKind.RECEIVABLE, sum(units for _, units in planned.reopened)),
    )
    posting = Posting(
        owner.id,
        posting_key,
        PostingKind.REFUND,
        owner.effective(now),
        {"payment_id": str(payment.id), "amount": str(amount)},
    )
    transfers = [Transfer(owner.account(kind), cash, Units(units)) for kind, units in parts if units]
    posting_id = await post(connection, posting, transfers)
    await grants.draw(connection, [grants.Draw(posting_id, grant_id, units) for grant_id, units in planned.draws])
    taken_back = [Allocation(each.id, Units(-units), now, payment.id) for each, units in planned.reopened]
    await stored.add_allocations(connection, taken_back, posting_id)
    for each, units in planned.reopened:
        await settle(connection, each, -units, now)
    await stored.note_refund(connection, payment.id, amount)


async def _locked(connection: AsyncConnection, payment_id: UUID) -> tuple[Payment, Locked]:
    """A payment as it is when the money of its organization is locked."""
    found = await stored.find_payment(connection, payment_id)
    if found is None:
        raise NotFound("There is no such payment.")
    owner = await lock(connection, found.organization_id)
    again = await stored.find_payment(connection, payment_id)
    assert again is not None, "payments are never deleted"
    return again, owner


async def _remaining(connection: AsyncConnection, grant_id: UUID | None) -> int:
    found = None if grant_id is None else await grants.find_grant(connection, grant_id)
    return 0 if found is None else found[2].remaining


def paired(debits: Sequence[tuple[Account, int]], credits: Sequence[tuple[Account, int]]) -> list[Transfer]:
    """The transfers that debit and credit these accounts by these amounts, which have the same sum."""
    transfers = []
    waiting = [(account, amount) for account, amount in credits if amount]
    for debit, amount in debits:
        left = amount
        while left:
            credit, due = waiting.pop(0)
            moved = min(left, due)
            transfers.append(Transfer(debit, credit, Units(moved)))
            left -= moved
            if due > moved:
                waiting.insert(0, (credit, due - moved))
    assert not waiting, "debits and credits have the same sum"
    return transfers
