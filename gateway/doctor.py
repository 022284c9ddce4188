"""`doctor`: looks at what Tollgate stands on before money depends on it; each finding says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import httpx
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.hot.connection import HotConnection
from billing.store.catalog import load_catalog
from billing.store.engine import make_engine
from billing.tokens import TokenizerUnavailable, load_counter
from migrations.run import head
from models.catalog import Backend, Catalog, Model
from models.errors import Unavailable
from models.usage import BilledCount

OLDEST_REDIS: Final = (6, 2)
OLDEST_POSTGRES: Final = 15
SHORTEST_PEPPER: Final = 32
_FEWEST_LETTERS: Final = 8
"""Different characters that a secret of 32 has at least, if it was not typed in by leaning on a key."""

_DEFAULTS: Final = frozenset(
    {"postgres", "redis", "password", "passw0rd", "secret", "changeme", "change-me", "change_me", "default"}
    | {"admin", "root", "test", "example", "tollgate", "tollgate_app", "123456", "12345678", "foobared"}
)
_LOOPBACK: Final = frozenset({"", "localhost", "127.0.0.1", "::1"})
_TIMEOUT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: whether it is well, and a sentence; where it is not, what to do."""

    check: str
    ok: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Patient:
    """What to examine. `key_pepper` is None where it is not known here and cannot be looked at."""

    database_url: str
    redis_url: str
    key_pepper: str | None = None


async def examine(patient: Patient, now: datetime) -> tuple[Finding, ...]:
    """All findings, in the order in which they should be mended. Never raises for a part that is away."""
    redis, postgres = await asyncio.gather(_redis(patient.redis_url), _postgres(patient.database_url, now))
    return (*_secrets(patient), *redis, *postgres)


# Secrets -------------------------------------------------------------------------------------------------------------


def _secrets(patient: Patient) -> Iterator[Finding]:
    if patient.key_pepper is not None:
        fault = pepper_fault(patient.key_pepper)
        advice = "Make one with `openssl rand -base64 48`; every key must be issued again after a change."
        yield _finding("key_pepper", fault is None, "The key pepper is long and random.", f"{fault} {advice}")
    for name, url in (("database_url", patient.database_url), ("redis_url", patient.redis_url)):
        fault = password_fault(url)
        advice = f"Set a random password on the server and in TOLLGATE_{name.upper()}."
        yield _finding(name, fault is None, "Its password is not a usual one.", f"{fault} {advice}")


def pepper_fault(pepper: str) -> str | None:
    """What is wrong with the secret under which keys are hashed, or None."""
    if len(pepper) < SHORTEST_PEPPER:
        return f"TOLLGATE_KEY_PEPPER has fewer than {SHORTEST_PEPPER} characters."
    if len(set(pepper)) < _FEWEST_LETTERS or any(word in pepper.lower() for word in ("changeme", "change-me")):
        return "TOLLGATE_KEY_PEPPER can be guessed."
    return None


def password_fault(url: str) -> str | None:
    """What is wrong with the password in the URL of a server, or None. A server on this machine may have none."""
    parts = urlsplit(url)
    local = parts.scheme == "unix" or (parts.hostname or "") in _LOOPBACK
    password = unquote(parts.password or "")
    if not password:
        return None if local else "A server that other machines reach has no password."
    return "The password is a usual one." if password.lower() in _DEFAULTS or password == parts.username else None


# Redis ---------------------------------------------------------------------------------------------------------------


async def _redis(url: str) -> list[Finding]:
    try:
        facts = await _redis_facts(url)
    except (Unavailable, OSError, ValueError) as error:
        why = error.message if isinstance(error, Unavailable) else type(error).__name__
        return [Finding("redis", False, f"Redis cannot be asked ({why}). Start it, or correct TOLLGATE_REDIS_URL.")]
    found = facts.get("redis_version", "0")
    version = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    policy = facts.get("maxmemory_policy", "")
    old = f"Redis {found} is older than {OLDEST_REDIS[0]}.{OLDEST_REDIS[1]}. Update it."
    return [
        _finding("redis", version >= OLDEST_REDIS, f"Redis {found} answers.", old),
        _finding(
            "redis_aof",
            facts.get("aof_enabled") == "1",
            "Redis keeps an append-only file.",
            "Redis keeps no append-only file, so a restart would lose charges. Set `appendonly yes`.",
        ),
        _finding(
            "redis_aof_writes",
            facts.get("aof_last_write_status", "ok") == "ok",
            "Redis writes its append-only file.",
            "Redis cannot write its append-only file. Make room on its disk.",
        ),
        _finding(
            "redis_eviction",
            policy == "noeviction",
            "Redis never evicts.",
            f"Redis may drop holds and balances when memory is short ({policy}). Set `maxmemory-policy noeviction`.",
        ),
    ]


async def _redis_facts(url: str) -> dict[str, str]:
    # INFO, not CONFIG GET: hosted services forbid the latter, and the former says what is in force.
    connection = await HotConnection.connect(url)
    try:
        reply = await connection.execute("INFO", timeout_ms=int(_TIMEOUT_SECONDS * 1_000))
    finally:
        await connection.close()
    pairs = (line.partition(":") for line in reply.decode(errors="replace").splitlines() if not line.startswith("#"))
    return {name: value for name, colon, value in pairs if colon}


# Postgres, and what it knows of backends and models ------------------------------------------------------------------


async def _postgres(url: str, now: datetime) -> list[Finding]:
    try:
        async with asyncio.timeout(6 * _TIMEOUT_SECONDS), _connected(url) as connection:
            findings = [*await _server(connection), *await _role(connection)]
            schema = await _schema(connection)
            if not schema.ok:
                return [*findings, schema]
            catalog = await load_catalog(connection)
    except (SQLAlchemyError, OSError, TimeoutError, ValueError) as error:
        why = type(error).__name__
        advice = "Start it, or correct TOLLGATE_DATABASE_URL."
        return [Finding("postgres", False, f"Postgres cannot be asked ({why}). {advice}")]
    return [*findings, schema, *await _backends(catalog), *await _tokenizers(catalog), *_models(catalog, now)]


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[AsyncConnection]:
    engine = make_engine(url, pool_size=1, application_name="tollgate doctor")
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


async def _server(connection: AsyncConnection) -> list[Finding]:
    number = int((await connection.execute(text("show server_version_num"))).scalar_one())
    return [
        _finding(
            "postgres",
            number >= OLDEST_POSTGRES * 10_000,
            f"Postgres {number // 10_000} answers.",
            f"Postgres {number // 10_000} is older than {OLDEST_POSTGRES}. Update it.",
        )
    ]


async def _role(connection: AsyncConnection) -> list[Finding]:
    role = (
        await connection.execute(
            text(
                "select rolname, rolsuper, rolbypassrls, exists (select from pg_tables where tableowner = rolname"
                " and schemaname = 'public') as owns from pg_roles where rolname = current_user"
            )
        )
    ).one()
    advice = f"Run as a role of its own: `tollgate migrate` makes one. The role now is {role.rolname}."
    return [
        _finding(
            "postgres_superuser",
            not role.rolsuper,
            "The program's role is no superuser.",
            f"The program's role is a superuser, for whom no rule of the ledger holds. {advice}",
        ),
        _finding(
            "postgres_row_security",
            not role.rolbypassrls,
            "The program's role is bound by row security.",
            f"The program's role has BYPASSRLS. {advice}",
        ),
        _finding(
            "postgres_owner",
            not role.owns,
            "The program's role owns no table.",
            f"The program's role owns tables, so it could switch off what makes the ledger append-only. {advice}",
        ),
    ]


async def _schema(connection: AsyncConnection) -> Finding:
    exists = (await connection.execute(text("select to_regclass('alembic_version') is not null"))).scalar_one()
    found = (await connection.execute(text("select version_num from alembic_version"))).scalar() if exists else None
    newest = head()
    return _finding(
        "migrations",
        found == newest,
        f"The schema is the newest ({newest}).",
        f"The schema is {found or 'missing'}, this program needs {newest}. Run `tollgate migrate`.",
    )


async def _backends(catalog: Catalog) -> list[Finding]:
    deployments = (deployment for model in catalog.models.values() for deployment in model.deployments)
    backends = {deployment.backend.id: deployment.backend for deployment in deployments}
    async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
        return list(await asyncio.gather(*(_backend(client, backend) for backend in backends.values())))


async def _backend(client: httpx.AsyncClient, backend: Backend) -> Finding:
    headers = {"authorization": f"Bearer {backend.credential}"} if backend.credential else {}
    try:
        answer = await client.get(f"{backend.url.rstrip('/')}{backend.path_prefix or '/v1'}/models", headers=headers)
        fault = None if answer.status_code < 400 else f"answers {answer.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fault = f"cannot be reached ({type(error).__name__})"
    return _finding(
        "backend",
        fault is None,
        f"Backend {backend.name} answers.",
        f"Backend {backend.name} {fault}. Start it, or correct it with `tollgate backend`.",
    )


async def _tokenizers(catalog: Catalog) -> list[Finding]:
    # An alias counts as its targets do.
    return [await _tokenizer(model) for model in catalog.models.values() if not model.targets]


async def _tokenizer(model: Model) -> Finding:
    if model.tokenizer is None:
        return _finding(
            "tokenizer",
            model.billed_count is BilledCount.BACKEND,
            f"Model {model.id} is billed by its backend's count.",
            f"Model {model.id} is to be billed by our count, which is an estimate without a tokenizer. Give it the"
            " path of its tokenizer.json.",
        )
    try:
        await asyncio.to_thread(load_counter, model.tokenizer)
    except TokenizerUnavailable as error:
        return Finding("tokenizer", False, f"Model {model.id}: {error.message}")
    return Finding("tokenizer", True, f"Model {model.id} has its tokenizer.")


def _models(catalog: Catalog, now: datetime) -> Iterator[Finding]:
    for model in catalog.models.values():
        priced = any(
            name == model.id and catalog.rates(book, currency, name, now) is not None
            for book, currency, name in catalog.prices
        )
        yield _finding(
            "price",
            priced,
            f"Model {model.id} has a price.",
            f"Model {model.id} has no price in force that sells it. Set one with `tollgate price set`.",
        )
        yield _finding(
            "deployment",
            bool(model.deployments or model.targets),
            f"Model {model.id} is deployed.",
            f"Model {model.id} runs on no backend. Add one with `tollgate backend add`.",
        )


def _finding(check: str, ok: Any, fine: str, fault: str) -> Finding:
    return Finding(check, bool(ok), fine if ok else fault)
