"""Which deployments stand by: those that are neither unhealthy nor in maintenance, looked at beside the calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog

from gateway.calls.capacity import Capacity, deployments_of
from gateway.health import HealthChecks
from models.catalog import Catalog, Deployment

LONGEST_SLEEP_SECONDS: Final = 0.5
"""How late a changed catalog may be seen."""

SHORTEST_SLEEP_SECONDS: Final = 0.001
"""A window that begins now is begun when we are back."""

_log = structlog.get_logger("tollgate.calls")


class Standing:
    """Suspends deployments and lets them come back by themselves. `now` is the billing clock."""

    def __init__(
        self,
        capacity: Capacity,
        catalog: Callable[[], Catalog],
        health: HealthChecks,
        check_seconds: float,
        now: Callable[[], datetime],
    ) -> None:
        self._capacity = capacity
        self._catalog = catalog
        self._health = health
        self._check_seconds = check_seconds
        self._now = now

    async def run(self, stop: asyncio.Event) -> None:
        """Look again and again, and exactly when a window begins or ends, until `stop` is set."""
        checking = asyncio.create_task(self._check(stop)) if self._check_seconds else None
        try:
            while not stop.is_set():
                seconds = LONGEST_SLEEP_SECONDS
                try:
                    seconds = self.look()
                except Exception:
                    # Without this loop nobody would ever come back.
                    _log.exception("standing_failed")
                await asyncio.sleep(seconds)
        finally:
            if checking is not None:
                checking.cancel()
                await asyncio.gather(checking, return_exceptions=True)

    def look(self) -> float:
        """Suspend what must not take calls now; answers in how many seconds to look again."""
        catalog, now = self._catalog(), self._now()
        self._capacity.know(catalog)
        deployments = deployments_of(catalog)
        loop_time = asyncio.get_running_loop().time()
        out: dict[UUID, float] = {}
        for each in deployments:
            seconds = seconds_out(each, now)
            if not self._health.of(each.backend.id).is_healthy:
                seconds = max(seconds, self._check_seconds)
            if seconds:
                out[each.id] = loop_time + seconds
        self._capacity.suspend(out)
        return min(max(seconds_to_change(deployments, now), SHORTEST_SLEEP_SECONDS), LONGEST_SLEEP_SECONDS)

    async def _check(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            backends = {each.backend.id: each.backend for each in deployments_of(self._catalog())}
            try:
                await self._health.check(backends.values())
                self.look()
            except Exception:
                # What was known before stays.
                _log.exception("health_checks_failed")
            await asyncio.sleep(self._check_seconds)


def seconds_out(deployment: Deployment, now: datetime) -> float:
    """For how long maintenance keeps a deployment from taking calls; 0 where it does not now."""
    ends = [window.end for window in deployment.windows if window.contains(now)]
    return (max(ends) - now).total_seconds() if ends else 0.0


def seconds_to_change(deployments: Iterable[Deployment], now: datetime) -> float:
    """When the next window of any of them begins or ends."""
    edges = [edge for each in deployments for window in each.windows for edge in (window.start, window.end)]
    return min(((edge - now).total_seconds() for edge in edges if edge > now), default=LONGEST_SLEEP_SECONDS)
