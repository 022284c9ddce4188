"""The catalog and the shard epochs as this process knows them: read at intervals, looked up without waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.store.catalog import load_catalog, revision
from billing.store.shards import epochs
from models.catalog import Catalog

LOOK_TIMEOUT_SECONDS: Final = 5.0
SOONEST_LOOK_SECONDS: Final = 1.0
"""A call to an unknown model asks for a look; a flood of them causes one look in this time."""

_log = structlog.get_logger(__name__)


class CatalogCache:
    """The last good catalog. Empty until the first look; kept as it is while Postgres is away."""

    def __init__(
        self, engine: AsyncEngine, refresh_seconds: float, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._refresh_seconds = refresh_seconds
        self._monotonic = monotonic
        self._catalog = Catalog()
        self._epochs: dict[int, int] = {}
        self._revision: int | None = None
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()
        self._away = False

    @property
    def current(self) -> Catalog:
        """What is on sale, as of the last look."""
        return self._catalog

    @property
    def epochs(self) -> dict[int, int]:
        """The epoch of each shard in Postgres, as of the last look."""
        return self._epochs

    @property
    def loaded(self) -> bool:
        """Whether a catalog was ever read."""
        return self._revision is not None

    async def refresh(self, force: bool = False) -> bool:
        """Look for a changed catalog and changed epochs; answers whether what is held now is up to date.

        Without `force` it looks at most once a second and trusts the last look until then. Never raises for an
        absent Postgres: the last good catalog stays.
        """
        async with self._looking:
            if not force and self._monotonic() - self._looked_at < SOONEST_LOOK_SECONDS:
                return not self._away
            self._looked_at = self._monotonic()
            try:
                async with asyncio.timeout(LOOK_TIMEOUT_SECONDS):
                    await self._look()
            except Exception as error:
                # Logged once per outage; a catalog that cannot be read for any reason must not stop calls.
                if not self._away:
                    _log.warning("catalog_unavailable", reason=type(error).__name__)
                self._away = True
                return False
            self._away = False
            return True

    async def run(self, stop: asyncio.Event) -> None:
        """Refresh every `refresh_seconds` until `stop` is set."""
        while not stop.is_set():
            await self.refresh(force=True)
            try:
                async with asyncio.timeout(self._refresh_seconds):
                    await stop.wait()
            except TimeoutError:
                continue

    async def _look(self) -> None:
        async with self._engine.connect() as connection:
            # One snapshot for all the reads, so that no deployment is seen without its backend.
            await connection.execution_options(isolation_level="REPEATABLE READ")
            self._epochs = await epochs(connection)
            found = await revision(connection)
            if found != self._revision:
                self._catalog = await load_catalog(connection)
                self._revision = found
