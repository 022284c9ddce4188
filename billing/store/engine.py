"""The connection to Postgres: one engine per program, safe behind PgBouncer in transaction mode."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

_SSL_MODE: Final = "sslmode"


def make_engine(
    url: str,
    *,
    pool_size: int = 5,
    application_name: str = "tollgate",
    command_timeout_seconds: int = 60,
) -> AsyncEngine:
    """An engine for a `postgresql://` URL (TCP, or a unix socket as `?host=/folder`); opens no connection yet.

    No statement stays prepared and no session setting is made, so that every transaction may meet another server
    process. Times are UTC. Raises `sqlalchemy.exc.ArgumentError` for text that is no URL.
    """
    return create_async_engine(
        _asyncpg_url(make_url(url)),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=10,
        pool_pre_ping=False,
        pool_recycle=1_800,
        # An error that is logged must not quote digests, credentials or what customers are called.
        hide_parameters=True,
        json_serializer=encode_json,
        json_deserializer=decode_json,
        connect_args={
            "timeout": 5,
            "command_timeout": command_timeout_seconds,
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": _unnamed,
            "server_settings": {"application_name": application_name, "timezone": "UTC"},
        },
    )


def encode_json(value: Any) -> str:
    """JSON text of a value, as it goes into a jsonb column."""
    return msgspec.json.encode(value).decode()


def decode_json(value: str | bytes) -> Any:
    """The value of a jsonb column."""
    return msgspec.json.decode(value)


def _unnamed() -> str:
    # The unnamed statement is replaced by the next one: nothing piles up in a server process shared through a pooler.
    return ""


def _asyncpg_url(url: URL) -> URL:
    url = url.set(drivername="postgresql+asyncpg")
    # libpq and asyncpg name this one parameter differently.
    mode = url.query.get(_SSL_MODE)
    if mode is not None:
        url = url.difference_update_query([_SSL_MODE]).update_query_dict({"ssl": mode})
    return url
