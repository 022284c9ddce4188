"""The commands `backend` and `model`: what is sold, and where it runs."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import typer

from gateway.cli.addresses import DATA_DIRECTORY, USAGE, end
from gateway.cli.operator_client import AsJson, DataDirectory, Key, Url, operator_client
from models.catalog import BackendKind, PricedAs
from models.usage import BilledCount

model = typer.Typer(help="Models: what is sold.", no_args_is_help=True)
backend = typer.Typer(help="Backends: the model servers that calls are sent to.", no_args_is_help=True)

_BACKEND = (
    *("name", "kind", "url", "path_prefix", "region", "max_in_flight", "has_credential", "health", "running_calls"),
    "disabled_at",
)
_MODEL = ("id", "deployments", "context_length", "capabilities", "tokenizer", "billed_count", "fallback", "disabled_at")
_SERVED = ("id", "context_length", "capabilities", "tokenizer", "parent")
_TAKEN = ("created", "deployed", "known", "skipped")

BackendName = Annotated[str, typer.Argument(help="Name of the backend.")]
ModelName = Annotated[str, typer.Argument(help="Id of the model, as callers write it.")]


@backend.command("add")
def add_backend(
    name_or_address: Annotated[str, typer.Argument(metavar="[NAME] URL", help="Such as http://10.0.0.7:8000.")],
    address: Annotated[str | None, typer.Argument(hidden=True)] = None,
    kind: Annotated[BackendKind | None, typer.Option(help="Else the server is asked what it is.")] = None,
    credential: Annotated[
        str | None,
        typer.Option(envvar="TOLLGATE_BACKEND_CREDENTIAL", help="Token it demands; better in the environment."),
    ] = None,
    max_in_flight: Annotated[int | None, typer.Option(min=1, help="Calls it takes at a time.")] = None,
    region: Annotated[str | None, typer.Option(help="Where it stands, for organizations bound to regions.")] = None,
    create_models: Annotated[bool, typer.Option(help="Create the models that it serves, without prices.")] = False,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Add a model server, by its URL alone or with a name. A path in the URL is where its API is, instead of `/v1`.

    Example: `tollgate backend add gpu-1 http://10.0.0.7:8000 --max-in-flight 64`

    Example: `tollgate backend add openrouter https://openrouter.ai/api/v1 --kind openai`
    """
    name, given = (None, name_or_address) if address is None else (name_or_address, address)
    root, path_prefix = _split(given)
    body: dict[str, Any] = {"name": name, "url": root, "kind": kind.value if kind else None}
    body |= {"credential": credential, "max_in_flight": max_in_flight, "region": region, "path_prefix": path_prefix}
    body |= {"create_models": create_models or None}
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


@backend.command("discover")
def discover(
    name: BackendName,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Ask a backend which models it serves; nothing is changed.

    Example: `tollgate backend discover gpu-1`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        found = client.get(f"/backends/{quote(name, safe='')}/discovery")
        client.show(found if as_json else found["models"], _SERVED)


@backend.command("take")
def take_models(
    name: BackendName,
    model: Annotated[list[str] | None, typer.Option(help="Only this model; can be repeated.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Create the models that a backend serves, or deployments of known ones. They are sold once they have a price.

    Example: `tollgate backend take gpu-1 --model llama-3`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post(f"/backends/{quote(name, safe='')}/models", {"models": model or None}), _TAKEN)


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
    capability: Annotated[list[str] | None, typer.Option(help="Told to developers; can be repeated.")] = None,
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
    body |= {"tokenizer": tokenizer, "billed_count": billed_count.value, "capabilities": capability or None}
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


@model.command("deploy")
def deploy_model(
    name: ModelName,
    deployment: Annotated[str, typer.Argument(help="BACKEND or BACKEND=ITS-NAME-OF-THE-MODEL.")],
    weight: Annotated[int, typer.Option(min=1, help="Its share of the calls.")] = 1,
    priority: Annotated[int, typer.Option(min=0, help="Lower ones are used first.")] = 0,
    pool: Annotated[str | None, typer.Option(help="Only for organizations bound to this pool.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take this deployment away instead.")] = False,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Add a deployment to a model, or change or remove the one that is there.

    Example: `tollgate model deploy llama-3 gpu-2=meta-llama/Llama-3-8B --weight 2`
    """
    server, _, served = deployment.partition("=")
    new = {"backend": server, "backend_model": served or name, "weight": weight, "priority": priority, "pool": pool}
    with operator_client(data_dir, url, operator_key, as_json) as client:
        known = client.get(f"/models/{quote(name)}")["deployments"]
        kept = [each for each in known if any(each[key] != new[key] for key in ("backend", "backend_model"))]
        if remove and len(kept) == len(known):
            end(f"{name} has no deployment {server}={new['backend_model']}.", USAGE)
        client.show(client.post(f"/models/{quote(name)}", {"deployments": kept if remove else [*kept, new]}), _MODEL)


@model.command("fallback")
def set_fallback(
    name: ModelName,
    fallback: Annotated[str | None, typer.Argument(help="The model that serves where this one cannot.")] = None,
    priced_as: Annotated[PricedAs, typer.Option(help="At whose price it serves.")] = PricedAs.REQUESTED,
    when_full: Annotated[bool, typer.Option(help="Also where all deployments are full.")] = False,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Say which model serves where no deployment of this one can; without a second name, none.

    Example: `tollgate model fallback llama-3-70b llama-3-8b --priced-as fallback`
    """
    rule = None if fallback is None else {"model": fallback, "priced_as": priced_as.value, "when_full": when_full}
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post(f"/models/{quote(name)}", {"fallback": rule}, nulls=True), _MODEL)


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


def _split(address: str) -> tuple[str, str | None]:
    """Root and path of a server's URL; no path where it is the usual one."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address, None
    path = parts.path.rstrip("/")
    if not path or path == "/v1" or parts.query or parts.fragment:
        return address, None
    return f"{parts.scheme}://{parts.netloc}", path
