"""The commands `invoice`: a month's run, the verbs of an invoice, and what is owed."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.cli.addresses import DATA_DIRECTORY, FAILED
from gateway.cli.operator_client import AsJson, DataDirectory, Key, OperatorClient, Url, operator_client

invoice = typer.Typer(help="Invoices: what customers owe for a month.", no_args_is_help=True)

InvoiceId = Annotated[str, typer.Argument(help="Id of the invoice.")]
OrganizationId = Annotated[str, typer.Argument(help="Id of the organization.")]
Why = Annotated[str, typer.Option("--reason", help="Why; it is kept with the invoice.")]

_ROW: Final = ("id", "number", "kind", "status", "month", "total", "amount_due", "due_on")
_ONE: Final = (
    *("id", "number", "kind", "status", "organization_id", "month", "issued_on", "due_on", "subtotal", "tax", "total"),
    *("amount_paid", "amount_due", "reason"),
)
_LINE: Final = ("project_name", "description", "quantity", "unit_price", "amount")
_OUTCOME: Final = ("organization_id", "result", "number", "total", "message", "skipped_months")
_AT_ONCE: Final = 10
"""Organizations of one request, so that it is answered in time and the bar moves."""


@invoice.command("run")
def run_invoices(
    month: Annotated[str, typer.Option(help="The month to bill, such as 2026-11.")],
    finalize: Annotated[bool, typer.Option("--finalize", help="Issue the invoices, too.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Do not wait for late calls.")] = False,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Bill a month: end it for every organization, draft the invoices and, with --finalize, issue them.

    It may be repeated: what was done stays. Exit code 1 where an organization was parked or refused.

    Example: `tollgate invoice run --month 2026-11 --finalize`
    """
    outcomes: list[dict[str, Any]] = []
    with operator_client(data_dir, url, operator_key, as_json) as client, _progress() as progress:
        owners = [each["id"] for each in client.all_of("/organizations")]
        task = progress.add_task(month, total=len(owners))
        for start in range(0, len(owners), _AT_ONCE):
            part = owners[start : start + _AT_ONCE]
            body = {"month": month, "finalize": finalize, "force": force, "organization_ids": part}
            outcomes += client.post("/invoices/run", body)["data"]
            progress.advance(task, len(part))
        progress.stop()
        client.show(outcomes if as_json else [each for each in outcomes if each["result"] != "unused"], _OUTCOME)
    raise typer.Exit(FAILED if any(each["result"] in ("parked", "refused") for each in outcomes) else 0)


def _progress() -> Progress:
    """A bar on standard error, where somebody watches it."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)


@invoice.command("list")
def list_invoices(
    organization: Annotated[str | None, typer.Option(help="Id of one organization.")] = None,
    status: Annotated[str | None, typer.Option(help="draft, open, paid, void or uncollectible.")] = None,
    month: Annotated[str | None, typer.Option(help="A month, such as 2026-11.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """List invoices and credit notes, newest first.

    Example: `tollgate invoice list --status open`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        found = client.all_of("/invoices", organization_id=organization, status=status, month=month)
        client.show(found, _ROW)


@invoice.command("show")
def show_invoice(
    invoice_id: InvoiceId,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Show an invoice with its lines.

    Example: `tollgate invoice show 01a20916-…`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        _show(client, client.get(f"/invoices/{invoice_id}"))


@invoice.command("finalize")
def finalize_invoice(
    invoice_id: InvoiceId,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Issue a draft: it gets its number and is owed.

    Example: `tollgate invoice finalize 01a20916-…`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        _show(client, client.post(f"/invoices/{invoice_id}/finalize"))


@invoice.command("void")
def void_invoice(
    invoice_id: InvoiceId,
    reason: Why,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Take an invoice back of which nothing was paid; its usage can be invoiced anew.

    Example: `tollgate invoice void 01a20916-… --reason "wrong customer"`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        _show(client, client.post(f"/invoices/{invoice_id}/void", {"reason": reason}))


@invoice.command("reissue")
def reissue_invoice(
    invoice_id: InvoiceId,
    reason: Why,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Void an invoice and draft its month anew, with the buyer and the tax of today; shows the new draft.

    Example: `tollgate invoice reissue 01a20916-… --reason "new address"`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        _show(client, client.post(f"/invoices/{invoice_id}/reissue", {"reason": reason}))


@invoice.command("credit")
def credit_invoice(
    invoice_id: InvoiceId,
    reason: Why,
    amount: Annotated[str | None, typer.Option(help="What to credit, with tax; else all that is left.")] = None,
    amendment: Annotated[str | None, typer.Option(help="Of a Korean tax invoice: why it is amended.")] = None,
    approval_number: Annotated[str | None, typer.Option(help="승인번호 of the original, where it is not kept.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Issue a credit note of an invoice; what was paid too much becomes the customer's credit.

    Example: `tollgate invoice credit 01a20916-… --amount 20.00 --reason "an outage"`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        body: dict[str, Any] = {"reason": reason, "amendment": amendment, "original_approval_number": approval_number}
        if amount is not None:
            currency = client.get(f"/invoices/{invoice_id}")["currency"]
            body["amount"] = {"amount": amount, "currency": currency}
        _show(client, client.post(f"/invoices/{invoice_id}/credit_notes", body))


@invoice.command("writeoff")
def write_off_invoice(
    invoice_id: InvoiceId,
    reason: Why,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Give up what is still owed of an invoice.

    Example: `tollgate invoice writeoff 01a20916-… --reason insolvent`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        _show(client, client.post(f"/invoices/{invoice_id}/write_off", {"reason": reason}))


@invoice.command("approve")
def approve_invoice(
    invoice_id: InvoiceId,
    approval_number: Annotated[str, typer.Argument(help="The 24 characters that the tax service gave.")],
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Keep the number (승인번호) that the Korean tax service gave an issued document.

    Example: `tollgate invoice approve 01a20916-… 202611301000000012345678`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        body = {"approval_number": approval_number}
        _show(client, client.post(f"/invoices/{invoice_id}/approval", body))


@invoice.command("release")
def release_organization(
    organization: OrganizationId,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Let the invoices of a parked organization be issued again, after a look at its draft.

    Example: `tollgate invoice release 01a20916-…`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        released = client.post(f"/organizations/{organization}/release")
        client.show(released, ("id", "name", "parked_reason"))


@invoice.command("ageing")
def show_ageing(
    as_of: Annotated[str | None, typer.Option(help="Day, such as 2026-12-31; else today.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Show what is owed, by how late it is.

    Example: `tollgate invoice ageing --as-of 2026-12-31`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        report = client.get("/receivables/ageing", as_of=as_of)
        rows = report["data"] if as_json else [each | each["buckets"] for each in report["data"]]
        buckets = ("not_due", "1_30", "31_60", "61_90", "over_90")
        client.show(report if as_json else rows, ("organization_id", *buckets, "total"))


@invoice.command("statement")
def show_statement(
    organization: OrganizationId,
    since: Annotated[str | None, typer.Option("--from", help="First day.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Last day.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Show the statement of an organization's account: invoices, payments, credit notes, and what is owed after each.

    Example: `tollgate invoice statement 01a20916-… --from 2026-11-01`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        query = {name: day for name, day in (("from", since), ("to", until)) if day is not None}
        found = client.get(f"/organizations/{organization}/statement", **query)
        client.show(found if as_json else found["entries"], ("on", "kind", "reference", "amount", "balance"))
        if not as_json:
            client.show(found, ("opening", "closing"))


def _show(client: OperatorClient, answer: dict[str, Any]) -> None:
    client.show(answer, _ONE)
    if not client.as_json:
        client.show(answer["lines"], _LINE)
