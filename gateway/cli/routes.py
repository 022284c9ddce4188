"""The commands `alias` and `maintenance`, `org route` and `price markup`: where calls go, and what resold ones cost."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, TypeAlias
from urllib.parse import quote

import typer

from gateway.cli.addresses import DATA_DIRECTORY, USAGE, end
from gateway.cli.operator_client import AsJson, DataDirectory, Key, Url, operator_client
from gateway.cli.prices import PerMillion
from gateway.cli.sales import ModelName
from gateway.cli.tenants import CurrencyCode, OrganizationId, instant

alias = typer.Typer(help="Aliases: names that stand for models, to move callers in one step.", no_args_is_help=True)
maintenance = typer.Typer(help="Maintenance: times without new calls.", no_args_is_help=True)

_ALIAS = ("id", "targets", "previous", "moved_at", "disabled_at")
_MAINTENANCE = ("id", "backend", "model", "starts_at", "ends_at", "state", "running_calls", "note")
_ROUTING = ("organization_id", "regions", "pool", "uses_shared")
_PRICE = ("model", "meter", "price_per_million", "currency", "book", "effective_from")

_Gateway: TypeAlias = tuple[Path, str | None, str | None, bool]
"""What `operator_client` is told."""

AliasName = Annotated[str, typer.Argument(help="The name that callers write.")]
Targets = Annotated[list[str], typer.Argument(help="MODEL or MODEL=WEIGHT.")]


@alias.command("add")
def add_alias(
    name: AliasName,
    target: Targets,
    prices_of: Annotated[str | None, typer.Option(help="Sell it at the prices that this model has now.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Add a name that stands for models. It has prices of its own.

    Example: `tollgate alias add chat chat-v1 --prices-of chat-v1`
    """
    body = {"id": name, "targets": _targets(target), "prices_of": prices_of}
    _change("/aliases", body, _ALIAS, (data_dir, url, operator_key, as_json))


@alias.command("list")
def list_aliases(
    url: Url = None, operator_key: Key = None, data_dir: DataDirectory = DATA_DIRECTORY, as_json: AsJson = False
) -> None:
    """List all aliases.

    Example: `tollgate alias list`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.all_of("/aliases"), _ALIAS)


@alias.command("move")
def move_alias(
    name: AliasName,
    target: Targets,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Move the callers of an alias to other targets or weights. Each caller stays where it is, if it can.

    Example: `tollgate alias move chat chat-v1=90 chat-v2=10`
    """
    _change(f"/aliases/{quote(name)}", {"targets": _targets(target)}, _ALIAS, (data_dir, url, operator_key, as_json))


@alias.command("back")
def move_back(
    name: AliasName,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Give an alias the targets that it had before it was last moved.

    Example: `tollgate alias back chat`
    """
    _change(f"/aliases/{quote(name)}", {"back": True}, _ALIAS, (data_dir, url, operator_key, as_json))


@alias.command("remove")
def remove_alias(
    name: AliasName,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Sell an alias no more; running calls end.

    Example: `tollgate alias remove chat`
    """
    _change(f"/aliases/{quote(name)}", {"disabled": True}, _ALIAS, (data_dir, url, operator_key, as_json))


@maintenance.command("plan")
def plan_maintenance(
    backend: Annotated[str, typer.Argument(help="Name of the backend.")],
    start: Annotated[str, typer.Option("--from", help="Instant from which it takes no new calls.")],
    finish: Annotated[str, typer.Option("--to", help="Instant at which it comes back by itself.")],
    model: Annotated[str | None, typer.Option(help="Only this model on it.")] = None,
    note: Annotated[str | None, typer.Option(help="What for.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Plan a time at which a backend takes no new calls; running ones end.

    Example: `tollgate maintenance plan gpu-1 --from 2027-01-10T02:00:00Z --to 2027-01-10T04:00:00Z`
    """
    body = {"backend": backend, "model": model, "starts_at": instant(start), "ends_at": instant(finish), "note": note}
    _change("/maintenance", body, _MAINTENANCE, (data_dir, url, operator_key, as_json))


@maintenance.command("list")
def list_maintenance(
    url: Url = None, operator_key: Key = None, data_dir: DataDirectory = DATA_DIRECTORY, as_json: AsJson = False
) -> None:
    """List all maintenance, the last planned first.

    Example: `tollgate maintenance list`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.all_of("/maintenance"), _MAINTENANCE)


@maintenance.command("cancel")
def cancel_maintenance(
    maintenance_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the maintenance.")],
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """End maintenance now, or let it not begin.

    Example: `tollgate maintenance cancel 01a20919-…`
    """
    path = f"/maintenance/{quote(maintenance_id, safe='')}/cancel"
    _change(path, None, _MAINTENANCE, (data_dir, url, operator_key, as_json))


def route_organization(
    organization: OrganizationId,
    region: Annotated[list[str] | None, typer.Option(help="Only in this region; can be repeated.")] = None,
    pool: Annotated[str | None, typer.Option(help="The deployments reserved for it.")] = None,
    pool_only: Annotated[bool, typer.Option("--pool-only", help="Never to what all share.")] = False,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Say where an organization's calls may go; without options, anywhere that is not reserved.

    Example: `tollgate org route 01a20916-… --region eu --pool acme`
    """
    path = f"/organizations/{quote(organization, safe='')}/routing"
    body: dict[str, Any] = {"regions": region or None, "pool": pool, "uses_shared": not pool_only}
    _change(path, body, _ROUTING, (data_dir, url, operator_key, as_json))


def publish_markup(
    model: ModelName,
    percent: Annotated[str, typer.Argument(help="What is added to the cost, such as 20 or 12.5.")],
    input: PerMillion = None,
    cached_input: PerMillion = None,
    output: PerMillion = None,
    request: PerMillion = None,
    currency: Annotated[CurrencyCode, typer.Option(help="Currency of the costs and prices.")] = CurrencyCode.USD,
    book: Annotated[str, typer.Option(help="Price book.")] = "default",
    start: Annotated[str | None, typer.Option("--from", help="Instant from which they are in force; else now.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Publish a model's prices as its costs and a markup. Costs are given here, else those of `tollgate cost set`.

    Example: `tollgate price markup gpt-oss-120b 20 --input 0.10 --output 0.50`
    """
    given = {"input": input, "cached_input": cached_input, "output": output, "request": request}
    costs = {name: cost for name, cost in given.items() if cost is not None}
    body: dict[str, Any] = {"model": model, "markup_ppm": _ppm(percent), "book": book, "currency": currency.value}
    body |= {"costs": costs or None, "effective_from": instant(start)}
    with operator_client(data_dir, url, operator_key, as_json) as client:
        published = client.post("/prices/markup", body)
        client.show(published if as_json else published["data"], _PRICE)


def _change(path: str, changes: dict[str, Any] | None, columns: Sequence[str], gateway: _Gateway) -> None:
    """Have something changed, and show what it is then."""
    with operator_client(*gateway) as client:
        client.show(client.post(path, changes), columns)


def _targets(texts: list[str]) -> list[dict[str, Any]]:
    targets = []
    for text in texts:
        name, _, weight = text.partition("=")
        if weight and not (weight.isascii() and weight.isdigit()):
            end(f"'{weight}' is no weight. Write MODEL=WEIGHT, with a whole number.", USAGE)
        targets.append({"model": name, "weight": int(weight or 1)})
    return targets


def _ppm(percent: str) -> int:
    try:
        millionths = Decimal(percent) * 10_000
    except InvalidOperation:
        end(f"'{percent}' is no percentage. Write it as 20 or 12.5.", USAGE)
    if not millionths.is_finite() or millionths != int(millionths):
        end("A markup has at most four decimal places of a percent.", USAGE)
    return int(millionths)
