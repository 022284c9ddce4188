"""The verbs of invoices: a month is cut off, drafted, finalized; what was issued is voided, credited or written off.

Each is one transaction that locks its organization's money first and the series of numbers last, and each may be
repeated: what is done stays as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing import invoicing
from billing.months import bounds_of, day_of, next_month
from billing.payments import Locked, give_back, lock, paired, refuse_amount, settle
from billing.settlement import post
from billing.store import grants, ledger, organizations, payments, taxes
from billing.store import invoices as stored
from billing.store.audit import write_audit
from billing.store.ledger import Posting
from billing.store.pages import AnyRow
from billing.tax import Assessment, TaxRule, assess, decide, part_of_tax
from models.errors import Conflict, InvalidRequest, NotFound, TollgateError
from models.ids import uuid7
from models.invoice import (
    Allocation,
    AmendmentReason,
    Invoice,
    InvoiceKind,
    InvoiceState,
    Korea,
    Line,
    LineKind,
    Party,
    Tax,
    TaxTreatment,
)
from models.ledger import AccountKind, PostingKind, Transfer
from models.money import Units, amount_text

_SERIES: Final = "INV"
_INSTANT: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator decided: how long late calls are waited for, and above which totals (ledger units by
    currency) a person looks first."""

    grace: timedelta = timedelta(hours=24)
    largest_totals: Mapping[str, int] = field(default_factory=dict)


# Months and drafts ---------------------------------------------------------------------------------------------------


async def cut_off(
    connection: AsyncConnection,
    organization_id: UUID,
    month: date,
    now: datetime,
    grace: timedelta,
    *,
    is_forced: bool = False,
) -> stored.BillingMonth:
    """End an organization's month: from now on its late calls are billed in the next one. Ended once, it stays.

    `is_forced` does not wait for the grace. Raises `Conflict` before the month is over.
    """
    owner = await lock(connection, organization_id)
    known = await stored.find_month(connection, organization_id, month)
    if known is not None:
        return known
    starts_at, ends_at = bounds_of(month, owner.terms.timezone)
    if now < ends_at:
        raise Conflict(f"{month:%Y-%m} is not over for this organization: it ends at {_told(ends_at)}.")
    if now < ends_at + grace and not is_forced:
        raise Conflict(
            f"{month:%Y-%m} waits for late calls until {_told(ends_at + grace)}. Ask again then, or force the cut-off."
        )
    ended = stored.BillingMonth(organization_id, month, owner.terms.timezone, starts_at, ends_at, now)
    await stored.add_month(connection, ended, next_month(month))
    return ended


async def draft(
    connection: AsyncConnection, organization_id: UUID, month: date, now: datetime, policy: Policy
) -> Invoice | None:
    """The invoice of a month that was cut off: made, or made anew while it is a draft; None where nothing was used.

    Where it looks insane the organization is parked: a person must look before it is issued. Raises `Conflict` for a
    month that was not cut off.
    """
    owner = await lock(connection, organization_id)
    ended = await stored.find_month(connection, organization_id, month)
    if ended is None:
        raise Conflict(f"{month:%Y-%m} was not cut off for this organization. Run the invoices of that month.")
    known = await _of_month(connection, organization_id, month)
    if known is not None and known.state is not InvoiceState.DRAFT:
        return known
    made = await _compose(connection, owner, ended)
    if made is None:
        return None
    invoice_id = uuid7(now) if known is None else known.id
    values = made.columns(owner.row)
    if known is None:
        head = {"id": invoice_id, "organization_id": organization_id, "kind": InvoiceKind.INVOICE.value}
        bounds = {"month": month, "starts_at": ended.starts_at, "ends_at": ended.ends_at, "created_at": now}
        seller = await taxes.find_seller(connection)
        series = _SERIES if seller is None else seller.invoice_series
        head |= {"series": series, "currency": owner.currency}
        await stored.add_document(connection, head | bounds | values, made.lines)
    else:
        await stored.change_draft(connection, invoice_id, values, made.lines)
    # What a person has looked at is not stopped again for the same total.
    if known is None or known.total != made.assessed.total:
        await _park_if_insane(connection, owner, month, made.assessed.total, policy)
    return await _found(connection, invoice_id)


@dataclass(frozen=True, slots=True)
class _Composed:
    """What a month comes to."""

    month: invoicing.Month
    lines: Sequence[Line]
    rule: TaxRule
    assessed: Assessment

    @property
    def tax(self) -> Tax:
        """Its tax."""
        rule, assessed = self.rule, self.assessed
        return Tax(rule.treatment, assessed.subtotal, assessed.tax, rule.rate_ppm, rule.name, rule.is_inclusive)

    def columns(self, organization: AnyRow) -> dict[str, Any]:
        """The same as columns, with what the document says of its buyer."""
        return {
            "subtotal": self.assessed.subtotal,
            "tax": self.assessed.tax,
            "total": self.assessed.total,
            "rounding": self.assessed.rounding,
            "tax_detail": stored.tax_json(self.tax),
            "buyer": stored.party_json(buyer_party(organization)),
            "language": organization.language,
            "purchase_order": organization.purchase_order,
        }


async def _compose(connection: AsyncConnection, owner: Locked, ended: stored.BillingMonth) -> _Composed | None:
    groups = await stored.usage_of(connection, owner.id, ended.month)
    if not groups:
        return None
    prices = await stored.pinned_prices(connection, {each for group in groups for each in group.price_version_ids})
    month = invoicing.compose(groups, prices)
    # As it was when the month ended: a rule that begins with the next one is not for it.
    rule = await taxes.rule_at(connection, owner.row.country, ended.ends_at - _INSTANT)
    own = owner.row.tax_treatment
    decided = decide(rule, None if own is None else TaxTreatment(own))
    assert month.exact == sum(line.amount for line in month.lines), "the lines add up to what is owed"
    assessed = assess(month.exact, decided, owner.currency)
    lines = invoicing.round_lines(month.lines, assessed, decided, owner.currency)
    return _Composed(month, lines, decided, assessed)


async def _park_if_insane(connection: AsyncConnection, owner: Locked, month: date, total: int, policy: Policy) -> None:
    earlier = await stored.earlier_totals(connection, owner.id, month, invoicing.MONTHS_LOOKED_BACK)
    reason = invoicing.insanity(total, earlier, policy.largest_totals.get(owner.currency), owner.currency)
    if reason is not None:
        columns = {"parked_reason": f"{month:%Y-%m}: {reason}"}
        await organizations.update_organization(connection, owner.id, columns)


async def release(connection: AsyncConnection, organization_id: UUID) -> bool:
    """Let invoices of a parked organization be issued again, because a person has looked; whether it was parked."""
    owner = await lock(connection, organization_id)
    if owner.row.parked_reason is None:
        return False
    await organizations.update_organization(connection, organization_id, {"parked_reason": None})
    return True


async def _of_month(connection: AsyncConnection, organization_id: UUID, month: date) -> Invoice | None:
    wanted = stored.InvoiceFilter(organization_id, InvoiceKind.INVOICE, month=month)
    alive = [each for each in await stored.all_invoices(connection, wanted) if each.state is not InvoiceState.VOID]
    return alive[0] if alive else None


def buyer_party(row: AnyRow) -> Party:
    """An organization as a document shows it."""
    return Party(
        legal_name=row.legal_name or row.name,
        country=row.country,
        tax_id=row.tax_id,
        address=row.address,
        email=row.email,
    )


# Issuing -------------------------------------------------------------------------------------------------------------


async def finalize(connection: AsyncConnection, invoice_id: UUID, now: datetime) -> Invoice:
    """Issue a draft: it gets its number, its parties as they are now, and its place in the ledger.

    The draft is made anew first, so that it has the buyer and the tax of this moment; its usage cannot change any
    more. Nothing owed is paid at once. An issued invoice is answered as it is. Raises `Conflict` while the
    organization is parked, or no seller is set.
    """
    known, owner = await _locked(connection, invoice_id)
    if known.state is not InvoiceState.DRAFT:
        return known
    assert known.month is not None, "a draft is of a month"
    ended = await stored.find_month(connection, owner.id, known.month)
    assert ended is not None, "a month is drafted when it was cut off"
    made = await _compose(connection, owner, ended)
    assert made is not None, "usage is never taken out of a month"
    seller = await _issuable(connection, owner, made)

    posting_id = await _post_invoice(connection, owner, invoice_id, made, now)
    issued_on = day_of(now, ended.timezone)
    is_paid = made.assessed.total == 0
    await stored.change_draft(connection, invoice_id, made.columns(owner.row), made.lines)
    values: dict[str, Any] = {
        "state": (InvoiceState.PAID if is_paid else InvoiceState.OPEN).value,
        "seller": stored.party_json(taxes.seller_party(seller)),
        "issued_on": issued_on,
        "due_on": issued_on + timedelta(days=owner.row.payment_terms_days),
        "posting_id": posting_id,
        "finalized_at": now,
        "closed_at": now if is_paid else None,
        "series": seller.invoice_series,
    }
    if seller.country == "KR":
        # A month's consolidated tax invoice is dated with its last day.
        written_on = next_month(ended.month) - timedelta(days=1)
        korea = Korea(made.assessed.subtotal, made.assessed.tax, written_on, seller.tax_id, owner.row.tax_id)
        values["korea"] = stored.korea_json(korea)
    # Last, because everybody who issues an invoice waits for the number.
    values["number"] = await stored.next_number(connection, seller.invoice_series)
    await stored.change_document(connection, invoice_id, values)
    return await _found(connection, invoice_id)


async def _issuable(connection: AsyncConnection, owner: Locked, made: _Composed) -> AnyRow:
    """The seller, where nothing forbids that the invoice is issued."""
    if owner.row.parked_reason is not None:
        raise Conflict(
            f"This organization is parked ({owner.row.parked_reason}). Look at the draft, then let it go with"
            " `tollgate invoice release`."
        )
    seller = await taxes.find_seller(connection)
    if seller is None:
        raise Conflict("Nobody is named as the seller yet. Say who issues the invoices with `tollgate seller set`.")
    if made.rule.treatment is TaxTreatment.REVERSE_CHARGE and owner.row.tax_id is None:
        raise Conflict(
            "The buyer owes the tax itself (reverse charge), so its tax number must be on the invoice. Set the"
            " organization's tax_id."
        )
    return seller


async def _post_invoice(
    connection: AsyncConnection, owner: Locked, invoice_id: UUID, made: _Composed, now: datetime
) -> int:
    """What was used becomes what is owed. Where credit paid for all, the posting moves nothing, but is there."""
    receivable, unbilled = owner.account(AccountKind.RECEIVABLE), owner.account(AccountKind.UNBILLED)
    prepaid, revenue = owner.account(AccountKind.CUSTOMER_PREPAID), owner.sellers(AccountKind.REVENUE)
    tax, rounding = owner.sellers(AccountKind.TAX_PAYABLE), owner.sellers(AccountKind.ROUNDING)
    month, assessed = made.month, made.assessed
    # Where prices contain the tax, it was booked as revenue with the charges.
    taxed = revenue if made.rule.is_inclusive else receivable
    # Of what becomes credit: what a correction took back of revenue lies in `unbilled`, below zero.
    corrected = max(month.returned - month.rebate, 0)
    moved = [
        (receivable, unbilled, month.exact + assessed.rounding),
        (unbilled, rounding, max(assessed.rounding, 0)),
        (rounding, unbilled, max(-assessed.rounding, 0)),
        (taxed, tax, assessed.tax),
        (revenue, unbilled, max(month.rebate - month.returned, 0)),
        (revenue, prepaid, month.returned - corrected),
        (unbilled, prepaid, corrected),
    ]
    transfers = [Transfer(debit, credit, Units(amount)) for debit, credit, amount in moved if amount]
    grant_id = await give_back(connection, owner, Units(month.returned), now) if month.returned else None
    posting = Posting(
        owner.id,
        f"invoice:{invoice_id}",
        PostingKind.INVOICE,
        owner.effective(now),
        {"invoice_id": str(invoice_id)} | ({"grant_id": str(grant_id)} if grant_id else {}),
    )
    return await post(connection, posting, transfers)


async def note_approval(connection: AsyncConnection, invoice_id: UUID, approval_number: str) -> Invoice:
    """Keep the number that the Korean tax service gave a document when it was sent there; once.

    Raises `Conflict` for a document without Korean fields or with another number.
    """
    known, _ = await _locked(connection, invoice_id)
    check_approval(approval_number)
    if known.korea is None or known.state is InvoiceState.DRAFT:
        raise Conflict("Only an issued invoice of a Korean seller has an approval number.")
    if known.korea.approval_number not in (None, approval_number):
        raise Conflict(f"This document has the approval number {known.korea.approval_number}, which stays.")
    korea = stored.korea_json(known.korea) | {"approval_number": approval_number}
    await stored.change_document(connection, invoice_id, {"korea": korea})
    return await _found(connection, invoice_id)


def check_approval(number: str) -> None:
    """Raise `InvalidRequest` for what is no approval number (승인번호) of the Korean tax service."""
    if len(number) != 24 or not (number.isascii() and number.isalnum() and number[:8].isdigit()):
        raise InvalidRequest(
            "An approval number (승인번호) has 24 characters, of which the first 8 are a date.", param="approval_number"
        )


# Taking back ---------------------------------------------------------------------------------------------------------


async def void(connection: AsyncConnection, invoice_id: UUID, reason: str, now: datetime) -> Invoice:
    """Take an issued invoice back as if it had never been: its usage can be invoiced anew, its number stays used.

    Raises `Conflict` for a draft, and for one of which anything was paid or credited.
    """
    known, owner = await _locked(connection, invoice_id)
    if known.state is InvoiceState.VOID:
        return known
    _only_invoices(known)
    if known.state is InvoiceState.UNCOLLECTIBLE or known.settled or await _credited(connection, known):
        raise Conflict(
            "Something of this invoice was paid, credited or written off, so it cannot be voided. Issue a credit note"
            " of it, or refund the payment first."
        )
    if known.posting_id is not None:
        posting = Posting(
            owner.id,
            f"void_invoice:{invoice_id}",
            PostingKind.VOID_INVOICE,
            owner.effective(now),
            {"invoice_id": str(invoice_id)},
            reverses=known.posting_id,
        )
        transfers = await ledger.transfers_of(connection, known.posting_id)
        draws = await _returned(connection, known)
        swapped = [Transfer(each.credit, each.debit, each.amount) for each in transfers]
        posting_id = await post(connection, posting, swapped)
        await grants.draw(connection, [grants.Draw(posting_id, *each) for each in draws])
    values = {"state": InvoiceState.VOID.value, "reason": reason, "closed_at": now}
    await stored.change_document(connection, invoice_id, values)
    return await _found(connection, invoice_id)


async def _returned(connection: AsyncConnection, known: Invoice) -> list[tuple[UUID, Units]]:
    """The credit that an invoice's rebate gave, which its void takes back; `Conflict` where it was spent meanwhile."""
    source = await ledger.find_posting(connection, f"invoice:{known.id}")
    if source is None or "grant_id" not in source:
        return []
    grant_id = UUID(source["grant_id"])
    found = await grants.find_grant(connection, grant_id)
    given = await grants.amount_of(connection, grant_id)
    if found is None or found[2].remaining != given:
        raise Conflict(
            "This invoice gave credit back, and some of it is spent, so it cannot be voided. Issue a credit note of it."
        )
    return [(grant_id, given)]


async def reissue(connection: AsyncConnection, invoice_id: UUID, reason: str, now: datetime, policy: Policy) -> Invoice:
    """Void an invoice and draft its month anew, with the buyer and the tax of today; the new draft.

    Repeated, it answers the invoice that took its place.
    """
    voided = await void(connection, invoice_id, reason, now)
    assert voided.month is not None, "only invoices of a month are issued"
    drafted = await draft(connection, voided.organization_id, voided.month, now, policy)
    assert drafted is not None, "usage is never taken out of a month"
    return drafted


async def write_off(connection: AsyncConnection, invoice_id: UUID, reason: str, now: datetime) -> Invoice:
    """Give up what is still owed of an open invoice. Raises `Conflict` where nothing is."""
    known, owner = await _locked(connection, invoice_id)
    if known.state is InvoiceState.UNCOLLECTIBLE:
        return known
    _only_invoices(known)
    if known.state is not InvoiceState.OPEN:
        raise Conflict(f"Only an open invoice can be written off, and this one is {known.state.value}.")
    posting = Posting(
        owner.id,
        f"write_off:{invoice_id}",
        PostingKind.WRITE_OFF,
        owner.effective(now),
        {"invoice_id": str(invoice_id)},
    )
    bad_debt, receivable = owner.sellers(AccountKind.BAD_DEBT), owner.account(AccountKind.RECEIVABLE)
    await post(connection, posting, [Transfer(bad_debt, receivable, known.due)])
    values = {"state": InvoiceState.UNCOLLECTIBLE.value, "reason": reason, "closed_at": now}
    await stored.change_document(connection, invoice_id, values)
    return await _found(connection, invoice_id)


# Credit notes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewCreditNote:
    """What to credit of an invoice: `amount` with tax; None is all that is left of it.

    A Korean amendment has a reason of its own, and the number that the tax service gave the original.
    """

    reason: str
    amount: Units | None = None
    amendment: AmendmentReason | None = None
    original_approval_number: str | None = None


async def credit_note(
    connection: AsyncConnection, invoice_id: UUID, new: NewCreditNote, key: str, now: datetime
) -> Invoice:
    """Credit a part of an issued invoice: less is owed of it, and what was paid too much is the customer's credit.

    Tax goes back in proportion. The same key does it once. Raises `Conflict` for a state that forbids it,
    `InvalidRequest` above what is left of the invoice, or without what a Korean amendment must say.
    """
    known, owner = await _locked(connection, invoice_id)
    posting_key = f"credit_note:{invoice_id}:{key}"
    earlier = await ledger.find_posting(connection, posting_key)
    if earlier is not None:
        return await _same_note(connection, UUID(earlier["credit_note_id"]), new)
    _only_invoices(known)
    if known.state not in (InvoiceState.OPEN, InvoiceState.PAID):
        raise Conflict(f"Only an open or paid invoice can be credited, and this one is {known.state.value}.")
    notes = await _credited(connection, known)
    credited = sum(each.total for each in notes)
    amount = known.total - credited if new.amount is None else new.amount
    if amount > known.total - credited or known.total == credited:
        raise InvalidRequest(
            f"Of this invoice {amount_text(known.total - credited, owner.currency)} {owner.currency} can still be"
            " credited.",
            param="amount",
            status=422,
        )
    refuse_amount(amount, owner.currency)
    tax = part_of_tax(
        known.tax.amount, known.total, credited, sum(each.tax.amount for each in notes), amount, owner.currency
    )
    note = _Note(uuid7(now), known, Units(amount - tax), tax)
    return await _issue_note(connection, owner, note, new, posting_key, now)


@dataclass(frozen=True, slots=True)
class _Note:
    """What a credit note takes back of an invoice: `of` is the invoice, the rest its own."""

    id: UUID
    of: Invoice
    subtotal: Units
    tax: Units

    @property
    def total(self) -> Units:
        return Units(self.subtotal + self.tax)


async def _issue_note(
    connection: AsyncConnection, owner: Locked, note: _Note, new: NewCreditNote, posting_key: str, now: datetime
) -> Invoice:
    seller = await taxes.find_seller(connection)
    assert seller is not None, "an invoice is issued when there is one"
    issued_on = day_of(now, owner.terms.timezone)
    columns = _note_columns(owner, note, new, seller, issued_on) | {"created_at": now}
    await stored.add_document(connection, columns, [Line(LineKind.ITEM, new.reason, note.subtotal, note.subtotal)])
    posting_id = await _post_note(connection, owner, note, posting_key, now)
    issued = {
        "state": InvoiceState.PAID.value,
        "settled": note.total,
        "issued_on": issued_on,
        "posting_id": posting_id,
        "finalized_at": now,
        "closed_at": now,
        "number": await stored.next_number(connection, seller.credit_note_series),
    }
    await stored.change_document(connection, note.id, issued)
    return await _found(connection, note.id)


def _note_columns(owner: Locked, note: _Note, new: NewCreditNote, seller: AnyRow, issued_on: date) -> dict[str, Any]:
    """The document as it is written down first, without number or posting."""
    korea = _amended(note.of, new, note.subtotal, note.tax, issued_on)
    return {
        "id": note.id,
        "organization_id": owner.id,
        "kind": InvoiceKind.CREDIT_NOTE.value,
        "corrects": note.of.id,
        "series": seller.credit_note_series,
        "currency": owner.currency,
        "month": note.of.month,
        "starts_at": note.of.starts_at,
        "ends_at": note.of.ends_at,
        "subtotal": note.subtotal,
        "tax": note.tax,
        "total": note.total,
        "tax_detail": stored.tax_json(note.of.tax),
        "buyer": stored.party_json(buyer_party(owner.row)),
        "seller": stored.party_json(taxes.seller_party(seller)),
        "language": owner.row.language,
        "purchase_order": note.of.purchase_order,
        "reason": new.reason,
        "korea": None if korea is None else stored.korea_json(korea),
    }


async def _post_note(connection: AsyncConnection, owner: Locked, note: _Note, key: str, now: datetime) -> int:
    """Revenue and tax go back: first against what is owed of the invoice, what is more becomes credit."""
    owed = Units(min(note.total, note.of.due))
    over = Units(note.total - owed)
    grant_id = await give_back(connection, owner, over, now) if over else None
    posting = Posting(
        owner.id,
        key,
        PostingKind.CREDIT_NOTE,
        owner.effective(now),
        {"invoice_id": str(note.of.id), "credit_note_id": str(note.id)}
        | ({"grant_id": str(grant_id)} if grant_id else {}),
    )
    transfers = paired(
        [(owner.sellers(AccountKind.REVENUE), note.subtotal), (owner.sellers(AccountKind.TAX_PAYABLE), note.tax)],
        [(owner.account(AccountKind.RECEIVABLE), owed), (owner.account(AccountKind.CUSTOMER_PREPAID), over)],
    )
    posting_id = await post(connection, posting, transfers)
    if owed:
        await payments.add_allocations(connection, [Allocation(note.of.id, owed, now, None, note.id)], posting_id)
        await settle(connection, note.of, owed, now)
    return posting_id


def _amended(known: Invoice, new: NewCreditNote, subtotal: Units, tax: Units, today: date) -> Korea | None:
    """The Korean fields of an amendment; None where the original had none."""
    if known.korea is None:
        if new.amendment is not None or new.original_approval_number is not None:
            raise InvalidRequest("This invoice is no Korean tax invoice, so nothing of one is amended.", "amendment")
        return None
    if new.amendment is None:
        reasons = ", ".join(AmendmentReason)
        raise InvalidRequest(f"An amended Korean tax invoice states its reason, one of: {reasons}.", "amendment")
    original = new.original_approval_number or known.korea.approval_number
    if original is not None:
        check_approval(original)
    # What was wrong from the start is dated as the original was; what changed later, with the day of the change.
    since = (AmendmentReason.MISTAKE, AmendmentReason.ISSUED_TWICE, AmendmentReason.LOCAL_LETTER_OF_CREDIT)
    return Korea(
        supply_value=subtotal,
        tax=tax,
        written_on=known.korea.written_on if new.amendment in since else today,
        seller_registration=known.korea.seller_registration,
        buyer_registration=known.korea.buyer_registration,
        reason=new.amendment,
        original_approval_number=original,
        note=new.reason,
    )


async def _same_note(connection: AsyncConnection, note_id: UUID, new: NewCreditNote) -> Invoice:
    found = await _found(connection, note_id)
    if new.amount not in (None, found.total) or found.reason != new.reason:
        raise Conflict("This key credited something else before. Use a new key for a new credit note.")
    return found


async def _credited(connection: AsyncConnection, known: Invoice) -> list[Invoice]:
    return await stored.all_invoices(connection, stored.InvoiceFilter(corrects=known.id))


# A run over all organizations ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """What to do for every organization: `month` is a first day, `actor` is who is in the audit log."""

    month: date
    actor: str
    policy: Policy
    finalizes: bool = False
    is_forced: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did for one organization.

    `result` is `unused` (no usage, so no invoice), `draft`, `parked`, `issued`, or `refused` with a sentence in
    `message`. `skipped_months` are earlier ones whose usage is on no invoice.
    """

    organization_id: UUID
    result: str
    invoice: Invoice | None = None
    message: str | None = None
    skipped_months: tuple[date, ...] = ()


async def run(
    engine: AsyncEngine, wanted: Run, organization_ids: Sequence[UUID], now: datetime, *, at_once: int = 3
) -> AsyncIterator[Outcome]:
    """Bill organizations, each in transactions of its own; what was done before is left as it is."""
    for start in range(0, len(organization_ids), at_once):
        part = organization_ids[start : start + at_once]
        for outcome in await asyncio.gather(*(bill(engine, wanted, each, now) for each in part)):
            yield outcome


async def bill(engine: AsyncEngine, wanted: Run, organization_id: UUID, now: datetime) -> Outcome:
    """Cut off, draft and, where asked, finalize the month of one organization.

    In two transactions: a draft stays when it cannot be issued.
    """
    made: Invoice | None = None
    try:
        async with engine.begin() as connection:
            await cut_off(
                connection, organization_id, wanted.month, now, wanted.policy.grace, is_forced=wanted.is_forced
            )
            made = await draft(connection, organization_id, wanted.month, now, wanted.policy)
            skipped = tuple(await stored.months_without_invoice(connection, organization_id, wanted.month))
            row = await organizations.find_organization(connection, organization_id)
            if made is not None and made.created_at == now:
                await _audit(connection, wanted, made, "invoice.drafted", now)
        if made is None:
            return Outcome(organization_id, "unused", skipped_months=skipped)
        if made.state is not InvoiceState.DRAFT:
            return Outcome(organization_id, "issued", made, skipped_months=skipped)
        if row is not None and row.parked_reason is not None:
            return Outcome(organization_id, "parked", made, row.parked_reason, skipped)
        if not wanted.finalizes:
            return Outcome(organization_id, "draft", made, skipped_months=skipped)
        async with engine.begin() as connection:
            made = await finalize(connection, made.id, now)
            await _audit(connection, wanted, made, "invoice.finalized", now)
        return Outcome(organization_id, "issued", made, skipped_months=skipped)
    except TollgateError as error:
        return Outcome(organization_id, "refused", made, error.message)


async def _audit(connection: AsyncConnection, wanted: Run, made: Invoice, action: str, now: datetime) -> None:
    await write_audit(
        connection,
        now=now,
        actor=wanted.actor,
        action=action,
        object=f"invoice:{made.id}",
        organization_id=made.organization_id,
        detail={"month": f"{wanted.month:%Y-%m}", "number": made.number_text, "total": str(made.total)},
    )


# Finding -------------------------------------------------------------------------------------------------------------


async def _locked(connection: AsyncConnection, invoice_id: UUID) -> tuple[Invoice, Locked]:
    """A document as it is when the money of its organization is locked."""
    owner_id = await stored.owner_of(connection, invoice_id)
    if owner_id is None:
        raise NotFound("There is no such invoice.")
    owner = await lock(connection, owner_id)
    return await _found(connection, invoice_id), owner


async def _found(connection: AsyncConnection, invoice_id: UUID) -> Invoice:
    found = await stored.find_invoice(connection, invoice_id)
    if found is None:
        raise NotFound("There is no such invoice.")
    return found


def _only_invoices(known: Invoice) -> None:
    if known.kind is not InvoiceKind.INVOICE:
        raise Conflict("A credit note is final. If it was wrong, correct it with the next invoice.")
    if known.state is InvoiceState.DRAFT:
        raise Conflict("This invoice is a draft: it is owed to nobody yet. Finalize it first, or draft it anew.")


def _told(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")
