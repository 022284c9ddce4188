"""The commands of finance: `period`, `share`, `cost` and `report`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from gateway.cli.addresses import DATA_DIRECTORY
from gateway.cli.operator_client import AsJson, DataDirectory, Key, Url, operator_client
from gateway.cli.tenants import CurrencyCode, instant
from models.catalog import CostKind
from models.ledger import ShareRole

period = typer.Typer(help="Accounting periods: months in UTC, closed for good.", no_args_is_help=True)
share = typer.Typer(help="Shares of the revenue that others get.", no_args_is_help=True)
cost = typer.Typer(help="What usage costs the seller.", no_args_is_help=True)
report = typer.Typer(help="Reports of a month.", no_args_is_help=True)

_PERIOD = ("id", "status", "starts_at", "ends_at", "closed_at", "closed_by", "digest")
_SHARE = ("id", "role", "party", "ppm", "model", "organization_id", "effective_from", "effective_to")
_COST = ("model", "kind", "price", "currency", "effective_from", "effective_to")
_USE = ("day", "model", "backend", "gpu_seconds", "watt_hours")
_MARGIN = ("organization", "model", "calls", "revenue", "shares", "costs", "margin")

Month = Annotated[str, typer.Argument(help="A month, such as 2026-11.")]
ModelName = Annotated[str, typer.Argument(help="Id of the model.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.add_typer(period, name="period")
    app.add_typer(share, name="share")
    app.add_typer(cost, name="cost")
    app.add_typer(report, name="report")


@period.command("list")
def list_periods(
    url: Url = None, operator_key: Key = None, data_dir: DataDirectory = DATA_DIRECTORY, as_json: AsJson = False
) -> None:
    """List the periods from the first posting to the present.

    Example: `tollgate period list`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.all_of("/periods"), _PERIOD)


@period.command("close")
def close_period(
    month: Month,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Close a period for good: nothing is posted in it any more. What comes late is posted in the open one.

    Example: `tollgate period close 2026-11 --yes`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        if not yes:
            typer.confirm(f"Close {month} for good?", abort=True, err=True)
        client.show(client.post(f"/periods/{month}/close"), _PERIOD)


@share.command("add")
def add_share(
    role: Annotated[ShareRole, typer.Argument(help="For what it gets a share.")],
    party: Annotated[str, typer.Argument(help="Who gets it.")],
    ppm: Annotated[int, typer.Argument(help="Parts per million: 250000 is a quarter.", min=0, max=1_000_000)],
    model: Annotated[str | None, typer.Option(help="Only of calls of this model.")] = None,
    org: Annotated[str | None, typer.Option(help="Only of calls of the organization of this id.")] = None,
    start: Annotated[str | None, typer.Option("--from", help="Instant of the first call; else now.")] = None,
    stop: Annotated[str | None, typer.Option("--to", help="Instant after the last call.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Give a party a share of calls that are made from now on. The narrower one of its shares counts.

    Example: `tollgate share add reseller "Friend Ltd" 200000 --org 01a20916-…`
    """
    body: dict[str, Any] = {"role": role.value, "party": party, "ppm": ppm, "model": model, "organization_id": org}
    body |= {"effective_from": instant(start), "effective_to": instant(stop)}
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post("/revenue_shares", body), _SHARE)


@share.command("list")
def list_shares(
    url: Url = None, operator_key: Key = None, data_dir: DataDirectory = DATA_DIRECTORY, as_json: AsJson = False
) -> None:
    """List all shares, ended ones included.

    Example: `tollgate share list`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.all_of("/revenue_shares"), _SHARE)


@share.command("end")
def end_share(
    share_id: Annotated[str, typer.Argument(help="Id of the share.")],
    stop: Annotated[str | None, typer.Option("--to", help="Instant after the last call; else now.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """End a share: calls that are made later are not divided by it.

    Example: `tollgate share end 01a20916-…`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post(f"/revenue_shares/{share_id}/end", {"effective_to": instant(stop)}), _SHARE)


@cost.command("set")
def set_cost(
    model: ModelName,
    kind: Annotated[CostKind, typer.Argument(help="A unit: prices are per million tokens or requests, hour, kWh.")],
    price: Annotated[str, typer.Argument(help="Decimal price.")],
    start: Annotated[str, typer.Option("--from", help="First day, such as 2026-11-01.")],
    currency: Annotated[CurrencyCode, typer.Option(help="Currency of the price.")] = CurrencyCode.USD,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Say what a unit of usage costs the seller from a day on. What was in force ends there.

    Example: `tollgate cost set llama-3 gpu_hour 2.10 --from 2026-11-01`
    """
    body = {"model": model, "kind": kind.value, "price": price, "currency": currency.value, "effective_from": start}
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post("/model_costs", body), _COST)


@cost.command("list")
def list_costs(
    url: Url = None, operator_key: Key = None, data_dir: DataDirectory = DATA_DIRECTORY, as_json: AsJson = False
) -> None:
    """List what usage costs, past and future prices included.

    Example: `tollgate cost list`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.all_of("/model_costs"), _COST)


@cost.command("declare")
def declare_use(
    model: ModelName,
    backend: Annotated[str, typer.Argument(help="Name of the backend.")],
    day: Annotated[str, typer.Argument(help="A day in UTC, such as 2026-11-03.")],
    gpu_seconds: Annotated[int, typer.Option(min=0, help="GPU time: 86400 is one GPU for the day.")] = 0,
    watt_hours: Annotated[int, typer.Option(min=0, help="Power that was taken.")] = 0,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Declare what a model took on a backend on a day, in the place of what was declared before.

    Example: `tollgate cost declare llama-3 gpu-1 2026-11-03 --gpu-seconds 86400 --watt-hours 9600`
    """
    body: dict[str, Any] = {"model": model, "backend": backend, "day": day}
    body |= {"gpu_seconds": gpu_seconds, "watt_hours": watt_hours}
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post("/machine_use", body), _USE)


@cost.command("post")
def post_costs(
    month: Month,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Post what a month costs beyond what is posted of it; it can be repeated.

    Example: `tollgate cost post 2026-11`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        run = client.post("/costs/run", {"month": month})
        client.show(run if as_json else run["data"], ("posting_id", "amount"))


@report.command("margin")
def report_margin(
    month: Month,
    org: Annotated[str | None, typer.Option(help="Only of the organization of this id.")] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Show what is left of a month's revenue, after shares and posted costs, by organization and model.

    Example: `tollgate report margin 2026-11`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        margin = client.get("/reports/margin", month=month, organization_id=org, model=model)
        if as_json:
            client.show(margin, ())
            return
        client.show(margin["data"], _MARGIN)
        console = Console(highlight=False)
        for currency, sums in margin["totals"].items():
            told = ", ".join(f"{name} {amount['amount']}" for name, amount in sums.items())
            console.print(f"{currency}: {told}", soft_wrap=True)
