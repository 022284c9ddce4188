"""Where the command line finds a running Tollgate: options, `TOLLGATE_*`, or the `up.json` of a data directory."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import typer

DATA_DIRECTORY = Path(".tollgate")
FAILED = 1
USAGE = 2
STRANGE_KEY = "does not know this operator key. Check --operator-key, TOLLGATE_OPERATOR_KEY and --data-dir."


@dataclass(frozen=True, slots=True)
class Stores:
    """URLs of Postgres and Redis, and the pepper of the keys where the environment has it."""

    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    key_pepper: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Operated:
    """The operator's way in: root of the public address, and an operator key."""

    url: str
    operator_key: str = field(repr=False)


def find_stores(data_dir: Path) -> Stores:
    """The stores that the environment names, else those of `data_dir`; ends with code 2 where there are none."""
    database_url, redis_url = os.environ.get("TOLLGATE_DATABASE_URL"), os.environ.get("TOLLGATE_REDIS_URL")
    if database_url and redis_url:
        # An empty pepper is known to be empty; a missing one says nothing.
        return Stores(database_url, redis_url, os.environ.get("TOLLGATE_KEY_PEPPER"))
    if database_url or redis_url:
        end("Set both TOLLGATE_DATABASE_URL and TOLLGATE_REDIS_URL, or neither to use --data-dir.", USAGE)
    up = _read_up(data_dir)
    return Stores(up["database_url"], up["redis_url"])


def find_operated(data_dir: Path, url: str | None, operator_key: str | None) -> Operated:
    """The gateway to talk to; ends with code 2 where there is none."""
    url = url or os.environ.get("TOLLGATE_URL")
    operator_key = operator_key or os.environ.get("TOLLGATE_OPERATOR_KEY")
    if not (url and operator_key):
        up = _read_up(data_dir)
        if url and url.rstrip("/") != up["base_url"]:
            # The key of this machine's Tollgate must not travel to another address.
            end("Give the operator key of that address: --operator-key or TOLLGATE_OPERATOR_KEY.", USAGE)
        url, operator_key = up["base_url"], operator_key or up["operator_key"]
    return Operated(url.rstrip("/"), operator_key)


def end(message: str, code: int) -> NoReturn:
    """End the program with a sentence on stderr."""
    typer.echo(message, err=True)
    raise typer.Exit(code)


def _read_up(data_dir: Path) -> dict[str, Any]:
    path = data_dir / "up.json"
    try:
        up: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        end(
            f"No Tollgate is known here: {path} cannot be read. Run `tollgate up`, give --data-dir, or set TOLLGATE_URL"
            " and TOLLGATE_OPERATOR_KEY (for verify and doctor: TOLLGATE_DATABASE_URL and TOLLGATE_REDIS_URL).",
            USAGE,
        )
    return up
