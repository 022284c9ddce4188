"""When keys were last used: remembered where they are let in, written down once a minute, waited for by nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import timedelta
from itertools import islice
from typing import Any, Final

import structlog
from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.store.keys import note_uses
from gateway.clock import Clock
from gateway.key_cache import KeyCache

INTERVAL_SECONDS: Final = 60.0
WRITE_TIMEOUT_SECONDS: Final = 5.0
BATCH_LIMIT: Final = 10_000
"""Keys in one statement; almost always that is all of them."""

_log = structlog.get_logger(__name__)


class KeyUses:
    """Brings the uses that a process remembers to the tables of their keys; only what is later than there counts."""

    def __init__(
        self,
        engine: AsyncEngine,
        clock: Clock,
        monotonic: Callable[[], float],
        caches: Mapping[Table, KeyCache[Any]],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._monotonic = monotonic
        self._caches = caches
        self._away = False

    async def run(self, stop: asyncio.Event) -> None:
        """Write about once a minute until `stop` is set."""
        while not stop.is_set():
            try:
                async with asyncio.timeout(INTERVAL_SECONDS):
                    await stop.wait()
            except TimeoutError:
                await self.write()

    async def write(self) -> bool:
        """Write down the uses since the last time; answers whether all are. What is not is kept for the next time."""
        for keys, cache in self._caches.items():
            waiting = cache.take_uses()
            try:
                while waiting:
                    batch = dict(islice(waiting.items(), BATCH_LIMIT))
                    await self._write(keys, batch)
                    for digest in batch:
                        del waiting[digest]
            except Exception as error:
                # Logged once per outage; whatever it is, what beside the calls is written must not end.
                if not self._away:
                    _log.warning("key_uses_not_written", reason=type(error).__name__)
                self._away = True
                return False
            finally:
                cache.give_back(waiting)
        self._away = False
        return True

    async def _write(self, keys: Table, uses: Mapping[bytes, float]) -> None:
        zero = self._clock.now() - timedelta(seconds=self._monotonic())
        moments = {digest: zero + timedelta(seconds=used) for digest, used in uses.items()}
        async with asyncio.timeout(WRITE_TIMEOUT_SECONDS), self._engine.begin() as connection:
            await note_uses(connection, keys, moments)
