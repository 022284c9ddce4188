"""The parts a running gateway is made of, opened once by `gateway.app` and handed to every route."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from billing.hot.store import HotStore
    from gateway.auth import KeyRing
    from gateway.catalog import CatalogCache
    from gateway.clock import Clock
    from gateway.health import HealthChecks
    from gateway.memory import Memory
    from gateway.settings import Settings


@dataclass(slots=True)
class Parts:
    """Shared by all calls of one process; closed in the reverse order by `gateway.app`."""

    settings: Settings
    clock: Clock
    engine: AsyncEngine
    hot: HotStore
    keys: KeyRing
    catalog: CatalogCache
    memory: Memory
    health: HealthChecks | None = None
    """Where this process asks backends how they are: not in a test of single routes."""


def parts_of(connection: HTTPConnection) -> Parts:
    """The parts of the application that serves this request; a FastAPI dependency."""
    parts: Parts = connection.app.state.parts
    return parts
