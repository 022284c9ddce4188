"""The commands `org`, `project` and `key`: who may call, and with which money."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from sqlalchemy.exc import SQLAlchemyError

from gateway.cli.addresses import DATA_DIRECTORY, FAILED, USAGE, end
from gateway.cli.operator_client import AsJson, DataDirectory, Key, Url, operator_client
from gateway.cli.run import read_settings
from gateway.keys import issue_operator_key_at
from models.account import BillingMode
from models.ledger import GrantKind

org = typer.Typer(help="Organizations: who pays, and how.", no_args_is_help=True)
project = typer.Typer(help="Projects: the parts an organization divides its use into.", no_args_is_help=True)
key = typer.Typer(help="API keys of a project.", no_args_is_help=True)

OrganizationId = Annotated[str, typer.Argument(help="Id of the organization.")]
ProjectId = Annotated[str, typer.Argument(help="Id of the project.")]
Limit = Annotated[int | None, typer.Option(min=0)]
Address = Annotated[str | None, typer.Option(help="Address on its invoices, in one line.")]
Email = Annotated[str | None, typer.Option(help="Where its invoices go.")]
Language = Annotated[str | None, typer.Option(help="Of its invoices: en or ko.")]
TermsDays = Annotated[int | None, typer.Option(help="Days after the issue in which it pays.", min=0, max=365)]
PurchaseOrder = Annotated[str | None, typer.Option(help="Its order number, for its invoices.")]
TaxTreatment = Annotated[
    str | None, typer.Option(help="standard, exempt, reverse_charge or zero_rated; else by its country.")
]

_ORGANIZATION = ("id", "name", "currency", "billing_mode", "credit_limit", "price_book", "limits", "closed_at")
_BILLED = ("legal_name", "country", "tax_id", "address", "email", "language", "payment_terms_days", "purchase_order")
_PROJECT = ("id", "name", "limits", "created_at", "archived_at")
_KEY = ("id", "name", "redacted_value", "models", "limits", "created_at", "expires_at", "revoked_at", "last_used_at")
_GRANT = ("id", "kind", "amount", "remaining", "priority", "expires_at")
_LONGEST_NAME = 200
_BALANCE = ("balance", "held", "credit_limit", "available")


class CurrencyCode(StrEnum):
    """Currencies that Tollgate keeps a ledger in."""

    USD = "USD"
    EUR = "EUR"
    KRW = "KRW"
    JPY = "JPY"


@org.command("create")
def create_organization(
    name: Annotated[str, typer.Argument(help="Name of the organization.")],
    currency: Annotated[CurrencyCode, typer.Option(help="It can never change.")] = CurrencyCode.USD,
    billing_mode: Annotated[BillingMode, typer.Option(help="How it pays.")] = BillingMode.PREPAID,
    credit_limit: Annotated[str | None, typer.Option(help="How far it may go below zero, such as 100.00.")] = None,
    legal_name: Annotated[str | None, typer.Option(help="Name on its invoices.")] = None,
    country: Annotated[str | None, typer.Option(help="ISO code, such as DE.")] = None,
    tax_id: Annotated[str | None, typer.Option(help="Its tax or VAT number.")] = None,
    timezone: Annotated[str, typer.Option(help="Time zone of its months.")] = "UTC",
    price_book: Annotated[str, typer.Option(help="The prices it pays.")] = "default",
    address: Address = None,
    email: Email = None,
    language: Language = None,
    payment_terms_days: TermsDays = None,
    purchase_order: PurchaseOrder = None,
    tax_treatment: TaxTreatment = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Create an organization.

    Example: `tollgate org create "Acme" --currency EUR --billing-mode postpaid --credit-limit 500.00`
    """
    body: dict[str, Any] = {"name": name, "currency": currency.value, "billing_mode": billing_mode.value}
    body |= {"legal_name": legal_name, "country": country, "tax_id": tax_id, "timezone": timezone}
    body |= {"price_book": price_book, "address": address, "email": email, "language": language}
    body |= {"payment_terms_days": payment_terms_days, "purchase_order": purchase_order, "tax_treatment": tax_treatment}
    if credit_limit is not None:
        body["credit_limit"] = {"amount": credit_limit, "currency": currency.value}
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post("/organizations", body), _ORGANIZATION)


@org.command("list")
def list_organizations(
    url: Url = None, operator_key: Key = None, data_dir: DataDirectory = DATA_DIRECTORY, as_json: AsJson = False
) -> None:
    """List all organizations.

    Example: `tollgate org list --json`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.all_of("/organizations"), ("id", "name", "currency", "billing_mode", "closed_at"))


@org.command("show")
def show_organization(
    organization: OrganizationId,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Show one organization.

    Example: `tollgate org show 01a20916-…`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.get(f"/organizations/{organization}"), _ORGANIZATION)


@org.command("update")
def update_organization(
    organization: OrganizationId,
    name: Annotated[str | None, typer.Option(help="Name of the organization.")] = None,
    legal_name: Annotated[str | None, typer.Option(help="Name on its invoices.")] = None,
    country: Annotated[str | None, typer.Option(help="ISO code, such as DE.")] = None,
    tax_id: Annotated[str | None, typer.Option(help="Its tax or VAT number.")] = None,
    address: Address = None,
    email: Email = None,
    language: Language = None,
    payment_terms_days: TermsDays = None,
    purchase_order: PurchaseOrder = None,
    tax_treatment: TaxTreatment = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Change what invoices say of an organization, from the next one on; what is left out stays.

    Example: `tollgate org update 01a20916-… --tax-id DE123456789 --payment-terms-days 14`
    """
    body: dict[str, Any] = {"name": name, "legal_name": legal_name, "country": country, "tax_id": tax_id}
    body |= {"address": address, "email": email, "language": language, "purchase_order": purchase_order}
    body |= {"payment_terms_days": payment_terms_days, "tax_treatment": tax_treatment}
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post(f"/organizations/{organization}", body), (*_ORGANIZATION, *_BILLED))


@org.command("grant")
def grant_credit(
    organization: OrganizationId,
    amount: Annotated[str, typer.Argument(help="Decimal amount in the organization's currency, such as 25.00.")],
    kind: Annotated[GrantKind, typer.Option(help="Bought, given, committed to, or given back.")] = GrantKind.PAID,
    priority: Annotated[int, typer.Option(help="Lower ones are spent first.", min=0, max=1_000)] = 50,
    expires_at: Annotated[str | None, typer.Option(help="Instant of expiry, such as 2027-01-01.")] = None,
    rollover_max: Annotated[str | None, typer.Option(help="How much of its rest goes into a next one.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Give an organization credit, which it can spend at once.

    Example: `tollgate org grant 01a20916-… 25.00 --expires-at 2027-01-01`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        path = f"/organizations/{organization}"
        currency = client.get(path)["currency"]
        money = {"amount": amount, "currency": currency}
        body: dict[str, Any] = {"amount": money, "kind": kind.value, "priority": priority}
        body |= {"expires_at": instant(expires_at)}
        if rollover_max is not None:
            body["rollover_max"] = {"amount": rollover_max, "currency": currency}
        client.show(client.post(f"{path}/credit_grants", body), _GRANT)


@org.command("balance")
def show_balance(
    organization: OrganizationId,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Show what an organization can spend now.

    Example: `tollgate org balance 01a20916-…`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.get(f"/organizations/{organization}/balance"), _BALANCE)


@org.command("close")
def close_organization(
    organization: OrganizationId,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Close an organization for good: its keys stop within seconds, its book stays.

    Example: `tollgate org close 01a20916-… --yes`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        name = client.get(f"/organizations/{organization}")["name"]
        if not yes:
            typer.confirm(f"Close {name} for good?", abort=True, err=True)
        client.show(client.post(f"/organizations/{organization}/close"), _ORGANIZATION)


@project.command("create")
def create_project(
    organization: OrganizationId,
    name: Annotated[str, typer.Argument(help="Name of the project.")],
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    max_in_flight: Limit = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Create a project of an organization.

    Example: `tollgate project create 01a20916-… "Website" --requests-per-minute 600`
    """
    body = {"name": name, "limits": _limits(requests_per_minute, tokens_per_minute, max_in_flight)}
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post(f"/organizations/{organization}/projects", body), _PROJECT)


@project.command("list")
def list_projects(
    organization: OrganizationId,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """List the projects of an organization.

    Example: `tollgate project list 01a20916-…`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.all_of(f"/organizations/{organization}/projects"), _PROJECT)


@key.command("create")
def create_key(
    project: ProjectId,
    name: Annotated[str, typer.Argument(help="What the key is for.")] = "default",
    model: Annotated[list[str] | None, typer.Option(help="Only this model; can be repeated.")] = None,
    endpoint: Annotated[list[str] | None, typer.Option(help="Only this path of calls; can be repeated.")] = None,
    network: Annotated[list[str] | None, typer.Option(help="Only from this network; can be repeated.")] = None,
    expires_at: Annotated[str | None, typer.Option(help="Instant of expiry, such as 2027-01-01.")] = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    max_in_flight: Limit = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Create an API key. Its value is shown this once.

    Example: `tollgate key create 01a20917-… "web server" --model tiny --expires-at 2027-01-01`
    """
    body: dict[str, Any] = {"name": name, "models": model or None, "expires_at": instant(expires_at)}
    body |= {"endpoints": endpoint or None, "networks": network or None}
    body |= {"limits": _limits(requests_per_minute, tokens_per_minute, max_in_flight)}
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post(f"/projects/{project}/api_keys", body), ("value", "id", "name", "models", "expires_at"))


@key.command("list")
def list_keys(
    project: ProjectId,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """List the API keys of a project, with the revoked ones.

    Example: `tollgate key list 01a20917-…`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.all_of(f"/projects/{project}/api_keys"), _KEY)


@key.command("rotate")
def rotate_key(
    project: ProjectId,
    key: Annotated[str, typer.Argument(help="Id of the key.")],
    overlap_seconds: Annotated[int, typer.Option(min=0, help="How long the old key works on.")] = 86_400,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Make a new API key with the bounds of another, which works on for a while. Its value is shown this once.

    Example: `tollgate key rotate 01a20917-… 01a20918-… --overlap-seconds 3600`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        body = {"overlap_seconds": overlap_seconds}
        made = client.post(f"/projects/{project}/api_keys/{key}/rotate", body)
        client.show(made, ("value", "id", "name", "models", "expires_at"))


@key.command("revoke")
def revoke_key(
    project: ProjectId,
    key: Annotated[str, typer.Argument(help="Id of the key.")],
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Revoke an API key: it stops within five seconds.

    Example: `tollgate key revoke 01a20917-… 01a20918-…`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post(f"/projects/{project}/api_keys/{key}/revoke"), _KEY)


@key.command("operator")
def issue_operator_key(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    as_json: AsJson = False,
) -> None:
    """Issue an operator key where there is none to ask with: in the database, with the settings of a gateway.

    Its value is shown this once. Whoever can read these settings (`TOLLGATE_DATABASE_URL`, `TOLLGATE_KEY_PEPPER`) can
    do this. More operators get their keys at `POST /operator/v1/operator_keys`.

    Example: `tollgate key operator "Ada"`
    """
    if not (0 < len(name) <= _LONGEST_NAME and name.isprintable()):
        end(f"A name has 1 to {_LONGEST_NAME} characters, on one line.", USAGE)
    settings = read_settings()
    database_url, pepper = settings.database_url.get_secret_value(), settings.key_pepper.get_secret_value()
    try:
        key_id, value = asyncio.run(issue_operator_key_at(database_url, name, pepper))
    except (SQLAlchemyError, OSError, ValueError) as error:
        end(
            f"The database cannot be used ({type(error).__name__}), and no key was made."
            " Run `tollgate migrate` if it is new, else `tollgate doctor` to see why.",
            FAILED,
        )
    answer = {"value": value, "id": str(key_id), "name": name}
    typer.echo(json.dumps(answer) if as_json else "\n".join(f"{word:5}  {text}" for word, text in answer.items()))


def instant(text: str | None) -> str | None:
    """An instant with its zone from what a person writes; without a zone it is UTC."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        end(f"'{text}' is no instant. Write it as 2027-01-01 or 2027-01-01T09:00:00Z.", USAGE)
    return moment.isoformat() if moment.tzinfo else f"{moment.isoformat()}Z"


def _limits(requests: int | None, tokens: int | None, in_flight: int | None) -> dict[str, int] | None:
    limits = {"requests_per_minute": requests, "tokens_per_minute": tokens, "max_in_flight": in_flight}
    return {name: value for name, value in limits.items() if value is not None} or None
