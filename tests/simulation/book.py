"""Postgres in a simulation: a fresh database for each run, and an engine that lets one transaction in at a time.

Two transactions at once would meet in the database's locks, in an order that the seed does not decide. Between the
transactions, and between the steps of one that asks Redis, everything else goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.engine import make_engine
from gateway.embedded.postgres import Postgres
from tests.simulation.clock import SimulatedClock

_KEPT_STATEMENTS: Final = 500


@dataclass(slots=True)
class _Turn:
    """A transaction; `waits` is how many of its steps wait for simulated time instead of Postgres."""

    waits: int = 0


_turn: ContextVar[_Turn | None] = ContextVar("turn", default=None)


def in_transaction() -> bool:
    """Whether who asks is inside a transaction."""
    return _turn.get() is not None


@contextmanager
def transaction_waits() -> Iterator[None]:
    """What happens in here, inside a transaction, takes simulated time."""
    turn = _turn.get()
    assert turn is not None, "there is a transaction"
    turn.waits += 1
    try:
        yield
    finally:
        turn.waits -= 1


async def paused_sleep(seconds: float) -> None:
    """`asyncio.sleep` for code that sleeps inside a transaction."""
    with transaction_waits():
        await asyncio.sleep(seconds)


class Book:
    """In the place of an `AsyncEngine`; `is_away` refuses new transactions."""

    def __init__(self, url: str, clock: SimulatedClock) -> None:
        self._engine = make_engine(url, pool_size=2, application_name="simulation")
        event.listen(self._engine.sync_engine, "do_connect", _keep_statements)
        self._clock = clock
        self._entry = asyncio.Lock()
        self._current: _Turn | None = None
        self.is_away = False
        clock.is_real_work_going_on = self._is_busy

    def begin(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A transaction that is committed at its end."""
        return self._alone(self._engine.begin)

    def connect(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection, with what is done on it rolled back unless committed."""
        return self._alone(self._engine.connect)

    async def dispose(self) -> None:
        """Close the connections."""
        with self._clock.outside():
            await self._engine.dispose()

    def _is_busy(self) -> bool:
        return self._current is not None and self._current.waits == 0

    @asynccontextmanager
    async def _alone(self, enter: Any) -> AsyncIterator[AsyncConnection]:
        async with self._entry:
            if self.is_away:
                raise ConnectionRefusedError("Postgres is away")
            self._current = turn = _Turn()
            token = _turn.set(turn)
            try:
                async with enter() as connection:
                    yield connection
            finally:
                _turn.reset(token)
                self._current = None


def _keep_statements(_dialect: object, _record: object, _arguments: object, options: dict[str, Any]) -> None:
    """Statements stay prepared: there is no pooler here, and to prepare each anew is half of the waiting."""
    del options["prepared_statement_name_func"]
    options["prepared_statement_cache_size"] = _KEPT_STATEMENTS


class Databases:
    """Makes the database of a run from a migrated one, and takes it away again."""

    def __init__(self, server: Postgres, template: str, owner: str, role: str, password: str) -> None:
        self._server = server
        self._template = template
        self._owner = owner
        self._role = role
        self._password = password

    async def make(self, name: str) -> str:
        """A new database; its URL for the program's own role."""
        await self._do(f'create database "{name}" owner "{self._owner}" template "{self._template}"')
        return self._server.url(name, self._role, self._password)

    async def drop(self, name: str) -> None:
        """Take it away, with whoever is in it."""
        await self._do(f'drop database "{name}" with (force)')

    async def _do(self, statement: str) -> None:
        connection = await asyncpg.connect(self._server.url("postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()
