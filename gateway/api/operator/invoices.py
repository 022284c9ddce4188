"""Routes of invoices: the month's run, and every verb of one; what is owed, by how late it is."""

from __future__ import annotations

from collections import Counter
from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlalchemy import text
from starlette.responses import Response

from billing import invoices
from billing.receivables import Bucket, EntryKind, age, state
from billing.store import invoices as stored
from billing.store.payments import account_entries, open_items
from gateway.api.operator.invoice_shapes import InvoiceAnswer, Month
from gateway.api.operator.organizations import Organization, found_organization
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import AskedById, Body, ListOf, Money, PaidMoney, Text, list_of
from gateway.settings import Settings
from models.errors import InvalidRequest, NotFound
from models.invoice import AmendmentReason, Invoice, InvoiceKind, InvoiceState

router = APIRouter()

_AT_ONCE = 2
"""Organizations of a run at a time: it shares the connections with everything else."""


# The month's run -----------------------------------------------------------------------------------------------------


class NewRun(Body):
    """A month to bill. Without `organization_ids` all organizations; with `limit` that many, after the id `after`."""

    month: Month
    finalize: bool = False
    force: bool = Field(False, description="Do not wait for late calls until the grace is over")
    organization_ids: Annotated[list[UUID], Field(min_length=1, max_length=1_000)] | None = None
    after: UUID | None = None
    limit: int | None = Field(None, ge=1, le=1_000)


class Outcome(BaseModel):
    """What the run did for one organization; `message` says why it did not do all of it."""

    organization_id: UUID
    result: Literal["unused", "draft", "parked", "issued", "refused"]
    invoice_id: UUID | None
    number: str | None
    status: InvoiceState | None
    total: Money | None
    message: str | None
    skipped_months: list[str] = Field(description="Earlier months whose usage is on no invoice yet")

    @classmethod
    def of(cls, outcome: invoices.Outcome) -> Outcome:
        """The answer for an outcome."""
        made = outcome.invoice
        return cls.model_validate(
            {
                "organization_id": outcome.organization_id,
                "result": outcome.result,
                "invoice_id": None if made is None else made.id,
                "number": None if made is None else made.number_text,
                "status": None if made is None else made.state,
                "total": None if made is None else Money.of(made.total, made.currency),
                "message": outcome.message,
                "skipped_months": [f"{month:%Y-%m}" for month in outcome.skipped_months],
            }
        )


class InvoiceRun(BaseModel):
    """What the run did; `ok` is false where an organization was parked or refused."""

    object: Literal["invoice_run"] = "invoice_run"
    month: str
    ok: bool
    data: list[Outcome]
    last_id: UUID | None
    has_more: bool


@router.post("/invoices/run", response_model=InvoiceRun)
async def run_invoices(body: NewRun, request: Operator) -> Response:
    """End a month for the organizations, draft their invoices and, with `finalize`, issue them.

    Each organization is a transaction of its own, and what was done before stays: the run may be repeated.
    """

    async def effect(change: Change) -> InvoiceRun:
        owners, more = await _owners(change, body)
        policy = policy_of(request.parts.settings)
        wanted = invoices.Run(body.month, change.actor, policy, body.finalize, body.force)
        outcomes = []
        async for outcome in invoices.run(request.parts.engine, wanted, owners, change.now, at_once=_AT_ONCE):
            outcomes.append(Outcome.of(outcome))
            if outcome.result == "issued":
                change.project(outcome.organization_id)
            # A transaction in which nothing happens for a minute is ended by the server.
            await change.connection.execute(text("select 1"))
        results = Counter(each.result for each in outcomes)
        await change.audit("invoice.run", f"month:{body.month:%Y-%m}", finalize=body.finalize, results=dict(results))
        return InvoiceRun(
            month=f"{body.month:%Y-%m}",
            ok=all(each.result not in ("parked", "refused") for each in outcomes),
            data=outcomes,
            last_id=owners[-1] if owners else None,
            has_more=more,
        )

    return await request.change(effect)


async def _owners(change: Change, body: NewRun) -> tuple[list[UUID], bool]:
    if body.organization_ids is not None:
        return body.organization_ids, False
    more = None if body.limit is None else body.limit + 1
    owners = await stored.organizations_to_bill(change.connection, body.after, more)
    return owners[: body.limit], body.limit is not None and len(owners) > body.limit


def policy_of(settings: Settings) -> invoices.Policy:
    """The operator's decisions in the settings."""
    return invoices.Policy(settings.invoice_grace, settings.invoice_safety_units)


# Invoices ------------------------------------------------------------------------------------------------------------


class AskedInvoices(AskedById):
    """Which documents to list, newest first."""

    organization_id: UUID | None = None
    kind: InvoiceKind | None = None
    status: InvoiceState | None = None
    month: Month | None = None


class Reason(Body):
    """Why; it is kept with the invoice."""

    reason: Text


class NewCreditNote(Body):
    """What to credit of an invoice: `amount` with tax; without, all that is left of it.

    The amendment of a Korean tax invoice states its reason, and the number that the tax service gave the original
    where that is not kept yet.
    """

    amount: PaidMoney | None = None
    reason: Text
    amendment: AmendmentReason | None = None
    original_approval_number: Text | None = None


class Approval(Body):
    """The number (승인번호) that the Korean tax service gave the document."""

    approval_number: Text


@router.get("/invoices")
async def list_invoices(asked: Annotated[AskedInvoices, Query()], request: Operator) -> ListOf[InvoiceAnswer]:
    """Invoices and credit notes, drafts among them, newest first."""
    states = None if asked.status is None else (asked.status,)
    wanted = stored.InvoiceFilter(asked.organization_id, asked.kind, states, asked.month)
    async with request.reading() as connection:
        found, more = await stored.list_invoices(connection, wanted, asked.page(newest_first=True))
    return list_of([InvoiceAnswer.of(each) for each in found], more)


@router.get("/invoices/{invoice_id}")
async def get_invoice(invoice_id: UUID, request: Operator) -> InvoiceAnswer:
    """One invoice or credit note."""
    async with request.reading() as connection:
        found = await stored.find_invoice(connection, invoice_id)
    if found is None:
        raise NotFound("There is no such invoice.")
    return InvoiceAnswer.of(found)


@router.post("/invoices/{invoice_id}/finalize", response_model=InvoiceAnswer)
async def finalize_invoice(invoice_id: UUID, request: Operator) -> Response:
    """Issue a draft: it gets its number and is owed. An issued invoice stays as it is."""

    async def effect(change: Change) -> InvoiceAnswer:
        issued = await invoices.finalize(change.connection, invoice_id, change.now)
        return await _done(change, "invoice.finalized", issued, number=issued.number_text)

    return await request.change(effect)


@router.post("/invoices/{invoice_id}/void", response_model=InvoiceAnswer)
async def void_invoice(invoice_id: UUID, body: Reason, request: Operator) -> Response:
    """Take an issued invoice back of which nothing was paid: its usage can be invoiced anew."""

    async def effect(change: Change) -> InvoiceAnswer:
        voided = await invoices.void(change.connection, invoice_id, body.reason, change.now)
        return await _done(change, "invoice.voided", voided, reason=body.reason)

    return await request.change(effect)


@router.post("/invoices/{invoice_id}/reissue", response_model=InvoiceAnswer)
async def reissue_invoice(invoice_id: UUID, body: Reason, request: Operator) -> Response:
    """Void an invoice and draft its month anew, with the buyer and the tax of today; the answer is the new draft."""

    async def effect(change: Change) -> InvoiceAnswer:
        policy = policy_of(request.parts.settings)
        drafted = await invoices.reissue(change.connection, invoice_id, body.reason, change.now, policy)
        return await _done(change, "invoice.reissued", drafted, reason=body.reason, voided=str(invoice_id))

    return await request.change(effect)


@router.post("/invoices/{invoice_id}/write_off", response_model=InvoiceAnswer)
async def write_off_invoice(invoice_id: UUID, body: Reason, request: Operator) -> Response:
    """Give up what is still owed of an invoice: it is uncollectible for good."""

    async def effect(change: Change) -> InvoiceAnswer:
        lost = await invoices.write_off(change.connection, invoice_id, body.reason, change.now)
        return await _done(change, "invoice.written_off", lost, reason=body.reason)

    return await request.change(effect)


@router.post("/invoices/{invoice_id}/credit_notes", response_model=InvoiceAnswer)
async def create_credit_note(invoice_id: UUID, body: NewCreditNote, request: Operator) -> Response:
    """Credit a part of an invoice, or all that is left of it; what was paid too much becomes the customer's credit."""

    async def effect(change: Change) -> InvoiceAnswer:
        amount = body.amount
        wanted = invoices.NewCreditNote(
            body.reason,
            None if amount is None else amount.units(await _currency(change, invoice_id), "amount"),
            body.amendment,
            body.original_approval_number,
        )
        # The book keeps the key for ever, so nothing is credited twice even when the stored answer is long gone.
        key = change.retry_key or str(uuid4())
        note = await invoices.credit_note(change.connection, invoice_id, wanted, key, change.now)
        return await _done(change, "credit_note.issued", note, number=note.number_text, corrects=str(invoice_id))

    return await request.change(effect)


@router.post("/invoices/{invoice_id}/approval", response_model=InvoiceAnswer)
async def note_approval(invoice_id: UUID, body: Approval, request: Operator) -> Response:
    """Keep the number that the Korean tax service gave an issued document."""

    async def effect(change: Change) -> InvoiceAnswer:
        noted = await invoices.note_approval(change.connection, invoice_id, body.approval_number)
        return await _done(change, "invoice.approved", noted, approval_number=body.approval_number)

    return await request.change(effect)


@router.post("/organizations/{organization_id}/release", response_model=Organization)
async def release_organization(organization_id: UUID, request: Operator) -> Response:
    """Let the invoices of a parked organization be issued again, because a person has looked at them."""

    async def effect(change: Change) -> Organization:
        if await invoices.release(change.connection, organization_id):
            await change.audit("organization.released", f"organization:{organization_id}", organization_id)
        return Organization.of(await found_organization(change.connection, organization_id))

    return await request.change(effect)


async def _done(change: Change, action: str, document: Invoice, **detail: Any) -> InvoiceAnswer:
    await change.audit(action, f"invoice:{document.id}", document.organization_id, **detail)
    change.project(document.organization_id)
    return InvoiceAnswer.of(document)


async def _currency(change: Change, invoice_id: UUID) -> str:
    found = await stored.find_invoice(change.connection, invoice_id)
    if found is None:
        raise NotFound("There is no such invoice.")
    return found.currency


# What is owed --------------------------------------------------------------------------------------------------------


class AgeingAnswer(BaseModel):
    """What an organization owes, by the days that it is late."""

    organization_id: UUID
    currency: str
    buckets: dict[Bucket, Money]
    total: Money


class AgeingReport(BaseModel):
    """What everybody owes at the end of a day (UTC)."""

    object: Literal["ageing"] = "ageing"
    as_of: date
    data: list[AgeingAnswer]


class EntryAnswer(BaseModel):
    """A change of what is owed, and what is owed after it."""

    on: date
    kind: EntryKind
    reference: str
    amount: Money
    balance: Money


class StatementAnswer(BaseModel):
    """The statement of an organization's account, both days included."""

    object: Literal["statement"] = "statement"
    organization_id: UUID
    currency: str
    since: date
    until: date
    opening: Money
    entries: list[EntryAnswer]
    closing: Money


@router.get("/receivables/ageing")
async def get_ageing(request: Operator, as_of: date | None = None, organization_id: UUID | None = None) -> AgeingReport:
    """What is owed of all invoices at the end of a day, by how late it is; without a day, now."""
    day = as_of or _today(request)
    async with request.reading() as connection:
        found = age(await open_items(connection, _sensible(day, "as_of"), organization_id), day)
    return AgeingReport(
        as_of=day,
        data=[
            AgeingAnswer(
                organization_id=each.organization_id,
                currency=each.currency,
                buckets={bucket: Money.of(units, each.currency) for bucket, units in each.buckets.items()},
                total=Money.of(each.total, each.currency),
            )
            for each in found
        ],
    )


@router.get("/organizations/{organization_id}/statement")
async def get_statement(
    organization_id: UUID,
    request: Operator,
    since: Annotated[date | None, Query(alias="from")] = None,
    until: Annotated[date | None, Query(alias="to")] = None,
) -> StatementAnswer:
    """Everything that changed what an organization owes, from one day to another; without days, all of it."""
    first, last = since or date(2000, 1, 1), until or _today(request)
    if last < first:
        raise InvalidRequest("The statement ends before it begins. Let 'from' be the earlier day.", param="from")
    async with request.reading() as connection:
        row = await found_organization(connection, organization_id)
        statement = state(await account_entries(connection, organization_id), first, last)
    code = row.currency
    return StatementAnswer(
        organization_id=organization_id,
        currency=code,
        since=first,
        until=last,
        opening=Money.of(statement.opening, code),
        entries=[
            EntryAnswer(
                on=entry.on,
                kind=entry.kind,
                reference=entry.reference,
                amount=Money.of(entry.amount, code),
                balance=Money.of(entry.balance, code),
            )
            for entry in statement.entries
        ],
        closing=Money.of(statement.closing, code),
    )


def _today(request: Operator) -> date:
    now: datetime = request.parts.clock.now()
    return now.date()


def _sensible(day: date, param: str) -> date:
    if not 2000 <= day.year < 2200:
        raise InvalidRequest(f"{param} must lie in the years 2000 to 2199.", param=param)
    return day
