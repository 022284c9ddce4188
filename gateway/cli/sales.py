"""The commands `backend` and `model`: what is sold, and where it runs."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.addresses import DATA_DIRECTORY
from gateway.cli.operator_client import AsJson, DataDirectory, Key, Url, operator_client
from models.catalog import BackendKind
from models.usage import BilledCount

model = typer.Typer(help="Models: what is sold.", no_args_is_help=True)
backend = typer.Typer(help="Backends: the model servers that calls are sent to.", no_args_is_help=True)

_BACKEND = ("name", "kind", "url", "max_in_flight", "has_credential", "disabled_at")
_MODEL = ("id", "deployments", "context_length", "tokenizer", "billed_count", "disabled_at")

BackendName = Annotated[str, typer.Argument(help="Name of the backend.")]
ModelName = Annotated[str, typer.Argument(help="Id of the model, as callers write it.")]


@backend.command("add")
def add_backend(
    name: BackendName,
    address: Annotated[str, typer.Argument(help="Root of the server, such as http://10.0.0.7:8000.")],
    kind: Annotated[BackendKind | None, typer.Option(help="Else the server is asked what it is.")] = None,
    credential: Annotated[
        str | None,
        typer.Option(envvar="TOLLGATE_BACKEND_CREDENTIAL", help="Token it demands; better in the environment."),
    ] = None,
    max_in_flight: Annotated[int | None, typer.Option(min=1, help="Calls it takes at a time.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Add a model server.

    Example: `tollgate backend add gpu-1 http://10.0.0.7:8000 --max-in-flight 64`
    """
    body: dict[str, Any] = {"name": name, "url": address, "kind": kind.value if kind else None}
    body |= {"credential": credential, "max_in_flight": max_in_flight}
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post("/backends", body), _BACKEND)


@backend.command("list")
def list_backends(
    url: Url = None, operator_key: Key = None, data_dir: DataDirectory = DATA_DIRECTORY, as_json: AsJson = False
) -> None:
    """List all backends.

    Example: `tollgate backend list`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.all_of("/backends"), _BACKEND)


@backend.command("remove")
def remove_backend(
    name: BackendName,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Send a backend no new calls; running ones end.

    Example: `tollgate backend remove gpu-1`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post(f"/backends/{quote(name, safe='')}", {"disabled": True}), _BACKEND)


@model.command("add")
def add_model(
    name: ModelName,
    backend: Annotated[list[str], typer.Option(help="BACKEND or BACKEND=ITS-NAME-OF-THE-MODEL; can be repeated.")],
    context_length: Annotated[int, typer.Option(min=1, help="Tokens of prompt and answer together.")],
    tokenizer: Annotated[str | None, typer.Option(help="Path of a tokenizer.json, or an encoding's name.")] = None,
    billed_count: Annotated[BilledCount, typer.Option(help="Whose count is billed.")] = BilledCount.BACKEND,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Add a model. It can be called once it has a price.

    Example: `tollgate model add llama-3 --backend gpu-1=meta-llama/Llama-3-8B --context-length 8192`
    """
    pairs = [each.partition("=") for each in backend]
    deployments = [{"backend": server, "backend_model": served or name} for server, _, served in pairs]
    body = {"id": name, "deployments": deployments, "context_length": context_length}
    body |= {"tokenizer": tokenizer, "billed_count": billed_count.value}
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post("/models", body), _MODEL)


@model.command("list")
def list_models(
    url: Url = None, operator_key: Key = None, data_dir: DataDirectory = DATA_DIRECTORY, as_json: AsJson = False
) -> None:
    """List all models.

    Example: `tollgate model list`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.all_of("/models"), _MODEL)


@model.command("remove")
def remove_model(
    name: ModelName,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Sell a model no more; running calls end.

    Example: `tollgate model remove llama-3`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post(f"/models/{quote(name)}", {"disabled": True}), _MODEL)
