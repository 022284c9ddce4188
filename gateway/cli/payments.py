"""The commands `payment`: money that came in, what it pays, and what goes back."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from gateway.cli.addresses import DATA_DIRECTORY
from gateway.cli.operator_client import AsJson, DataDirectory, Key, Url, operator_client
from gateway.cli.tenants import OrganizationId, instant

payment = typer.Typer(help="Payments: money that came in.", no_args_is_help=True)

PaymentId = Annotated[str, typer.Argument(help="Id of the payment.")]

_ROW: Final = ("id", "organization_id", "reference", "amount", "allocated", "refunded", "received_at")


@payment.command("record")
def record_payment(
    organization: OrganizationId,
    amount: Annotated[str, typer.Argument(help="Decimal amount in the organization's currency, such as 25.00.")],
    reference: Annotated[str, typer.Option(help="The bank's reference; it is taken once.")],
    received_at: Annotated[str | None, typer.Option(help="When it came in, such as 2026-12-03; else now.")] = None,
    invoice: Annotated[list[str] | None, typer.Option(help="Id of an invoice that it pays; may be repeated.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Record a payment: it pays what is due first, and the rest becomes the organization's credit.

    Example: `tollgate payment record 01a20916-… 119.00 --reference "bank 2026-12-03/17"`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        money = {"amount": amount, "currency": client.get(f"/organizations/{organization}")["currency"]}
        body: dict[str, Any] = {"organization_id": organization, "amount": money, "reference": reference}
        body |= {"received_at": instant(received_at), "invoice_ids": invoice or None}
        client.show(client.post("/payments", body), _ROW)


@payment.command("list")
def list_payments(
    organization: Annotated[str | None, typer.Option(help="Id of one organization.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """List payments, newest first.

    Example: `tollgate payment list --json`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.all_of("/payments", organization_id=organization), _ROW)


@payment.command("allocate")
def allocate_payment(
    payment_id: PaymentId,
    invoice: Annotated[str, typer.Argument(help="Id of the invoice to pay.")],
    amount: Annotated[str | None, typer.Option(help="How much; else as much as can be.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Set what is still credit of a payment against an open invoice.

    Example: `tollgate payment allocate 01a20916-… 01a20917-…`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        body: dict[str, Any] = {"invoice_id": invoice}
        if amount is not None:
            body["amount"] = {"amount": amount, "currency": client.get(f"/payments/{payment_id}")["amount"]["currency"]}
        client.show(client.post(f"/payments/{payment_id}/allocations", body), _ROW)


@payment.command("refund")
def refund_payment(
    payment_id: PaymentId,
    amount: Annotated[str, typer.Argument(help="How much went back, such as 25.00.")],
    reopen: Annotated[bool, typer.Option("--reopen", help="Also of what paid invoices: they are owed again.")] = False,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Record that a part of a payment went back to who paid.

    Example: `tollgate payment refund 01a20916-… 25.00`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        currency = client.get(f"/payments/{payment_id}")["amount"]["currency"]
        body = {"amount": {"amount": amount, "currency": currency}, "reopens_invoices": reopen}
        client.show(client.post(f"/payments/{payment_id}/refunds", body), _ROW)
