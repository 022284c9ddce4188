"""Commands that run Tollgate: `up`, `serve`, `worker` and `migrate`."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from alembic.util import CommandError
from pydantic import ValidationError
from sqlalchemy.exc import ArgumentError, DBAPIError

from gateway.cli.addresses import DATA_DIRECTORY, FAILED, USAGE, end
from gateway.settings import Settings

# The same name as in gateway.embedded.supervisor, which is imported only where it is needed: it needs the wheels.
_STARTED_BY_UP = "TOLLGATE_STARTED_BY_UP"
_DEFAULT_ROLE = "tollgate_app"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    for command in (up, serve, worker, migrate):
        app.command(no_args_is_help=False)(command)


def up(
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Public port.")] = 8080,
    data_dir: Annotated[Path, typer.Option(help="Where everything is kept.", file_okay=False)] = DATA_DIRECTORY,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="URL of a model server; may be repeated. None: the ones found on the usual local ports."),
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Use the demo model, even if a model server is found.")] = False,
) -> None:
    """Run a complete Tollgate on this machine: Postgres, Redis, worker, gateway and, if there is none, a demo model.

    Example: `tollgate up --port 8080 --backend http://127.0.0.1:11434`
    """
    # Imported here: the other commands must run without the wheels of the embedded servers.
    from gateway.embedded.errors import CannotStart
    from gateway.embedded.supervisor import Options, run

    if demo and backend:
        end("Choose --demo or --backend, not both.", USAGE)
    clock = _read_clock()
    options = Options(port=port, data_directory=data_dir, backends=tuple(backend or ()), demo=demo, clock=clock)
    try:
        run(options, typer.echo)
    except CannotStart as error:
        end(error.message, FAILED)


def serve() -> None:
    """Run a gateway with the settings of the environment (`TOLLGATE_*`), until SIGTERM.

    Example: `TOLLGATE_PORT=8080 tollgate serve`
    """
    settings = read_settings()
    from gateway import app

    app.serve(settings)


def worker() -> None:
    """Move settled charges from Redis to Postgres, until SIGTERM. Any number of workers may run.

    Example: `tollgate worker`
    """
    settings = read_settings()
    from gateway.telemetry import configure_logging

    configure_logging(settings.log_level)
    asyncio.run(_work(settings))


def migrate(
    role: Annotated[
        str | None, typer.Option(help="Role of the program; else the one in TOLLGATE_DATABASE_URL.")
    ] = None,
) -> None:
    """Bring the database to the newest schema, as the owner of its tables (TOLLGATE_OWNER_DATABASE_URL).

    Example: `TOLLGATE_OWNER_DATABASE_URL=postgresql://owner@db/tollgate tollgate migrate`
    """
    owner_url = os.environ.get("TOLLGATE_OWNER_DATABASE_URL")
    if not owner_url:
        end("Set TOLLGATE_OWNER_DATABASE_URL (Postgres of the role that owns the tables).", USAGE)
    from migrations.run import head
    from migrations.run import migrate as bring_up

    role = role or urlsplit(os.environ.get("TOLLGATE_DATABASE_URL", "")).username or _DEFAULT_ROLE
    try:
        bring_up(owner_url, role)
    except (ArgumentError, ValueError):
        end("Correct TOLLGATE_OWNER_DATABASE_URL: write it as postgresql://ROLE:PASSWORD@HOST:5432/DATABASE.", USAGE)
    except OSError as error:
        why = error.strerror or type(error).__name__
        end(f"Postgres does not answer ({why}). Start it, or correct TOLLGATE_OWNER_DATABASE_URL.", FAILED)
    except DBAPIError as error:
        # The driver's own words are one step below, without the name of its class.
        told = error.orig and error.orig.__cause__
        end(f"Postgres refused, and nothing has changed: {told or error.orig}", FAILED)
    except CommandError as error:
        end(f"Nothing has changed: {error}. Run the newest Tollgate that this database has seen.", FAILED)
    typer.echo(f"The database has schema {head()}, and the role {role} has its rights.")


def read_settings() -> Settings:
    """The settings of the environment. Ends the program with code 2 and one sentence a fault where they are no good."""
    try:
        settings = Settings()  # type: ignore[call-arg]  # pydantic reads the environment
    except ValidationError as error:
        end("\n".join(_sentence(fault["type"], fault["loc"], fault["msg"]) for fault in error.errors()), USAGE)
    if settings.clock is not None and _STARTED_BY_UP not in os.environ:
        end("TOLLGATE_CLOCK rehearses time under `tollgate up` only; unset it.", USAGE)
    return settings


def _sentence(kind: str, location: tuple[int | str, ...], reason: str) -> str:
    """What to do about one setting; never its value, which may be a secret."""
    field = str(location[0]).removeprefix("TOLLGATE_").lower()
    name = f"TOLLGATE_{field.upper()}"
    described = Settings.model_fields[field].description if field in Settings.model_fields else None
    if kind == "missing":
        return f"Set {name} ({described})."
    return f"Correct {name} ({described}): {reason.removeprefix('Value error, ')}."


def _read_clock() -> datetime | None:
    text = os.environ.get("TOLLGATE_CLOCK")
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        end("Correct TOLLGATE_CLOCK: write an instant such as 2027-01-31T23:00:00Z.", USAGE)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


async def _work(settings: Settings) -> None:
    from gateway.worker import run_worker

    stop = asyncio.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(one, stop.set)
    await run_worker(settings, stop)
