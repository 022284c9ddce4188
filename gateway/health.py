"""Health checks: every backend is asked at intervals whether it is well; one that is not gets no calls until it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

import httpx
import structlog

from models.catalog import Backend, BackendKind

UNHEALTHY_AFTER: Final = 3
"""Checks that must fail in a row: one alone may have met a pause of the engine. The breaker is sooner with calls."""

TIMEOUT_SECONDS: Final = 3.0

_PATHS: Final = {
    BackendKind.VLLM: "/health",
    BackendKind.SGLANG: "/health",
    BackendKind.LLAMACPP: "/health",
    BackendKind.TGI: "/health",
    BackendKind.OLLAMA: "/api/version",
}
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of a backend: how many checks have failed in a row, and why the last one did."""

    failures: int = 0
    reason: str | None = None
    checked_at: datetime | None = None

    @property
    def is_healthy(self) -> bool:
        """Whether calls are sent there; a backend is well until shown otherwise."""
        return self.failures < UNHEALTHY_AFTER

    def after(self, reason: str | None, now: datetime) -> Health:
        """What is known after another check, which failed for `reason` or (None) found the backend well."""
        return Health(0 if reason is None else self.failures + 1, reason, now)


def verdict(backend: Backend, status: int) -> str | None:
    """Why an answer with this status shows that a backend is not well, or None.

    Whoever answers with a 4xx is there; a server may not have the path that is asked for. A provider that does not
    take our credential serves no call.
    """
    if status >= 500:
        return f"It answers {status}."
    if status in (401, 403) and backend.kind is BackendKind.OPENAI:
        return f"It refuses the credential ({status})."
    return None


class HealthChecks:
    """The health of all backends, as this process sees it."""

    def __init__(self, now: Callable[[], datetime], transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._now = now
        self._known: dict[UUID, Health] = {}
        # trust_env off: a proxy of the environment must not answer for a backend. A new connection for each check: an
        # idle one may just have been given up by the server, which says nothing about its health.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._client = httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False, transport=transport, limits=limits)

    def of(self, backend: UUID) -> Health:
        """What is known of a backend."""
        return self._known.get(backend, _UNKNOWN)

    async def check(self, backends: Iterable[Backend]) -> None:
        """Ask all of these, at the same time, and forget the others. Never raises."""
        asked = {each.id: each for each in backends}
        reasons = await asyncio.gather(*map(self._ask, asked.values()))
        self._known = {
            backend.id: self._told(backend, reason) for backend, reason in zip(asked.values(), reasons, strict=True)
        }

    def _told(self, backend: Backend, reason: str | None) -> Health:
        before = self.of(backend.id)
        after = before.after(reason, self._now())
        if before.is_healthy != after.is_healthy:
            _log.warning("backend_well" if after.is_healthy else "backend_unwell", backend=backend.name, reason=reason)
        # A count without bounds would be a number without meaning.
        return replace(after, failures=min(after.failures, UNHEALTHY_AFTER))

    async def _ask(self, backend: Backend) -> str | None:
        path = _PATHS.get(backend.kind) or f"{backend.path_prefix or '/v1'}/models"
        headers = {"authorization": f"Bearer {backend.credential}"} if backend.credential else {}
        try:
            # All of it: a server that sends its answer byte by byte would otherwise have us wait for ever.
            async with asyncio.timeout(2 * TIMEOUT_SECONDS):
                async with self._client.stream("GET", backend.url + path, headers=headers) as response:
                    return verdict(backend, response.status_code)
        except TimeoutError:
            return "It does not answer in time."
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return f"It cannot be asked ({type(error).__name__})."

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


_UNKNOWN: Final = Health()
