"""The commands `alert`: what was noticed, and who is told of it."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.addresses import DATA_DIRECTORY
from gateway.cli.operator_client import AsJson, DataDirectory, Key, Url, operator_client
from models.alert import AlertKind

alert = typer.Typer(help="Alerts: limits reached, money running out.", no_args_is_help=True)
endpoint = typer.Typer(help="Who receives alerts.", no_args_is_help=True)
alert.add_typer(endpoint, name="endpoint")

_ALERT = ("created_at", "event", "organization_id", "data")
_ENDPOINT = ("id", "url", "organization_id", "events", "removed_at")

Organization = Annotated[str | None, typer.Option("--organization", help="Id of one organization.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.add_typer(alert, name="alert")


@alert.command("list")
def list_alerts(
    organization: Organization = None,
    event: Annotated[AlertKind | None, typer.Option(help="Only this event.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """List alerts, newest first.

    Example: `tollgate alert list --event balance.low`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        wanted = None if event is None else event.value
        client.show(client.all_of("/alerts", organization_id=organization, event=wanted), _ALERT)


@endpoint.command("add")
def add_endpoint(
    address: Annotated[str, typer.Argument(help="An https URL of a public host.")],
    organization: Organization = None,
    event: Annotated[list[AlertKind] | None, typer.Option(help="Only this event; can be repeated.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Send alerts to a URL: those of one organization, or everybody's. The secret that signs them is shown this once.

    Example: `tollgate alert endpoint add https://example.com/alerts --event balance.low`
    """
    events = [one.value for one in event] if event else None
    body = {"url": address, "organization_id": organization, "events": events}
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post("/alert_endpoints", body), ("value", *_ENDPOINT))


@endpoint.command("list")
def list_endpoints(
    organization: Organization = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """List who receives alerts, with those that were removed.

    Example: `tollgate alert endpoint list`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.all_of("/alert_endpoints", organization_id=organization), _ENDPOINT)


@endpoint.command("remove")
def remove_endpoint(
    endpoint: Annotated[str, typer.Argument(help="Id of the endpoint.")],
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Send nothing there any more, also not what waits.

    Example: `tollgate alert endpoint remove 01a20916-…`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post(f"/alert_endpoints/{endpoint}/remove"), _ENDPOINT)
