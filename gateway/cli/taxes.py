"""The commands `seller` and `tax`: who issues the invoices, and how supplies are taxed."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from gateway.cli.addresses import DATA_DIRECTORY
from gateway.cli.operator_client import AsJson, DataDirectory, Key, Url, operator_client
from gateway.cli.tenants import instant

seller = typer.Typer(help="The seller: who issues the invoices.", no_args_is_help=True)
tax = typer.Typer(help="Tax rules, by the buyer's country.", no_args_is_help=True)

_SELLER: Final = (
    *("legal_name", "country", "tax_id", "address", "email", "phone", "payment_details", "invoice_series"),
    "credit_note_series",
)
_RULE: Final = ("id", "country", "treatment", "rate", "included", "name", "effective_from", "effective_to")


@seller.command("set")
def set_seller(
    legal_name: Annotated[str, typer.Argument(help="Name on the invoices.")],
    country: Annotated[str, typer.Option(help="ISO code, such as DE.")],
    tax_id: Annotated[str | None, typer.Option(help="Tax or VAT number.")] = None,
    address: Annotated[str | None, typer.Option(help="Address, in one line.")] = None,
    email: Annotated[str | None, typer.Option(help="Where to ask.")] = None,
    phone: Annotated[str | None, typer.Option(help="Where to call.")] = None,
    payment_details: Annotated[str | None, typer.Option(help="Where to pay.")] = None,
    invoice_series: Annotated[str, typer.Option(help="What the numbers of invoices begin with.")] = "INV",
    credit_note_series: Annotated[str, typer.Option(help="What those of credit notes begin with.")] = "CN",
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Say who issues the invoices from now on; what is left out is taken away.

    Example: `tollgate seller set "Models GmbH" --country DE --tax-id DE123456789`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        body: dict[str, Any] = {"legal_name": legal_name, "country": country, "tax_id": tax_id, "address": address}
        body |= {"email": email, "phone": phone, "payment_details": payment_details}
        body |= {"invoice_series": invoice_series, "credit_note_series": credit_note_series}
        client.show(client.post("/seller", body), _SELLER)


@seller.command("show")
def show_seller(
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Show who issues the invoices.

    Example: `tollgate seller show`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.get("/seller"), _SELLER)


@tax.command("set")
def set_tax(
    name: Annotated[str, typer.Argument(help="Name of the tax on the invoice, such as VAT.")],
    rate: Annotated[str, typer.Option(help="In percent, such as 19.")] = "0",
    country: Annotated[str | None, typer.Option(help="Of the buyer; else all that have no rule.")] = None,
    treatment: Annotated[str, typer.Option(help="standard, exempt, reverse_charge or zero_rated.")] = "standard",
    included: Annotated[bool, typer.Option("--included", help="The prices contain the tax.")] = False,
    effective_from: Annotated[str | None, typer.Option(help="Instant of its beginning; else now.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Add a tax rule; the one of the same country ends where it begins.

    Example: `tollgate tax set VAT --rate 19 --country DE --effective-from 2026-01-01`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        body: dict[str, Any] = {"name": name, "rate": rate, "country": country, "treatment": treatment}
        body |= {"included": included, "effective_from": instant(effective_from)}
        client.show(client.post("/tax_rules", body), _RULE)


@tax.command("list")
def list_tax(
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """List all tax rules, with those that ended.

    Example: `tollgate tax list`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.all_of("/tax_rules"), _RULE)


@tax.command("end")
def end_tax(
    rule: Annotated[str, typer.Argument(help="Id of the rule.")],
    effective_to: Annotated[str | None, typer.Option(help="Instant of its end; else now.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """End a tax rule, without another in its place.

    Example: `tollgate tax end 01a20916-… --effective-to 2027-01-01`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        ended = client.post(f"/tax_rules/{rule}/end", {"effective_to": instant(effective_to)})
        client.show(ended, _RULE)
