"""Routes of reconciliation: the ledger's tokens against the backends' own counters, and what was found before."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Literal

import httpx
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from billing.store import reconciliations as stored
from billing.store.pages import AnyRow, Page
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import Asked, BackendName, ListOf, list_of
from gateway.backends.counters import COUNTING, parse_counters
from models.catalog import Backend
from models.reconciliation import Counters, Verdict

router = APIRouter()

_TIMEOUT_SECONDS: Final = 2.0
_LARGEST_ANSWER_BYTES: Final = 8_000_000
_PASSED: Final = frozenset({Verdict.BASELINE, Verdict.EQUAL, Verdict.RESTARTED})


class Tokens(BaseModel):
    """Tokens of calls."""

    input_tokens: int
    output_tokens: int

    @classmethod
    def of(cls, row: AnyRow, prefix: str) -> Tokens | None:
        """The tokens in the columns of a row that begin with `prefix`; None where there are none."""
        found = getattr(row, f"{prefix}_input")
        return None if found is None else cls(input_tokens=found, output_tokens=getattr(row, f"{prefix}_output"))


class Reconciliation(BaseModel):
    """One backend from `since` to `at`: `metered` by its own count, `charged` by the ledger's, the first less the
    second is `difference`. `rounding` is how coarsely the backend writes its counters. Equal is expected of calls that
    ended normally: `estimated_calls` were charged by another count, and `calls_in_flight` ran while this was measured.
    """

    id: str
    object: Literal["reconciliation"] = "reconciliation"
    backend: str
    at: datetime
    since: datetime | None
    verdict: Verdict
    reason: str | None
    counters: Tokens | None
    rounding: Tokens | None
    metered: Tokens | None
    charged: Tokens | None
    difference: Tokens | None
    estimated_calls: int | None
    calls_in_flight: int | None

    @classmethod
    def of(cls, row: AnyRow) -> Reconciliation:
        """The answer for a row."""
        plain = {name: getattr(row, name) for name in ("backend", "at", "since", "verdict", "reason")}
        metered, charged = Tokens.of(row, "metered"), Tokens.of(row, "charged")
        counters = Tokens.of(row, "counter")
        return cls(
            **plain,
            id=str(row.id),
            counters=counters,
            rounding=None if counters is None else _rounding(row),
            metered=metered,
            charged=charged,
            difference=None if metered is None or charged is None else _difference(metered, charged),
            estimated_calls=row.estimated_calls,
            calls_in_flight=row.calls_in_flight,
        )


class ReconciliationRun(BaseModel):
    """The results for all backends; `ok` is false where one differs or could not be asked."""

    object: Literal["reconciliation_run"] = "reconciliation_run"
    ok: bool
    data: list[Reconciliation]
    without_counters: list[str] = Field(description="Backends of kinds that do not count tokens")


class AskedReconciliations(Asked):
    """Which results to list, newest first."""

    after: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    backend: BackendName | None = None


@router.get("/reconciliation")
async def list_reconciliations(
    asked: Annotated[AskedReconciliations, Query()], request: Operator
) -> ListOf[Reconciliation]:
    """What reconciliations found, newest first."""
    async with request.reading() as connection:
        page = Page(asked.after, asked.limit, newest_first=True)
        rows, more = await stored.list_reconciliations(connection, asked.backend, page)
    return list_of([Reconciliation.of(row) for row in rows], more)


@router.post("/reconciliation", response_model=ReconciliationRun)
async def reconcile(request: Operator) -> Response:
    """Compare the ledger's tokens with each backend's own counters since the last time, and keep the result."""
    # Imported when asked for: it draws in the hot store's stream, which no other route of the gateway needs.
    from billing.reconcile import Reconciler

    async def effect(change: Change) -> ReconciliationRun:
        await stored.one_at_a_time(change.connection)
        backends = await stored.enabled_backends(change.connection)
        counting = [each for each in backends if each.kind in COUNTING]
        pairs = [(each, await stored.last_base(change.connection, each.name)) for each in counting]
        async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
            parts = request.parts
            reconciler = Reconciler(parts.engine, parts.hot, lambda backend: read_counters(client, backend))
            results = await reconciler.reconcile(pairs, change.now)
        found = [Reconciliation.of(await stored.keep(change.connection, result)) for result in results]
        await change.audit("reconciliation.made", "reconciliation:all", backends=[each.backend for each in found])
        return ReconciliationRun(
            ok=all(each.verdict in _PASSED for each in found),
            data=found,
            without_counters=[each.name for each in backends if each.kind not in COUNTING],
        )

    return await request.change(effect)


async def read_counters(client: httpx.AsyncClient, backend: Backend) -> Counters:
    """A backend's counters now; raises `CountersUnreadable` with a sentence for the operator."""
    from billing.reconcile import CountersUnreadable

    headers = {"authorization": f"Bearer {backend.credential}"} if backend.credential else {}
    body = bytearray()
    try:
        async with client.stream("GET", f"{backend.url}/metrics", headers=headers) as answer:
            if not answer.is_success:
                raise CountersUnreadable(
                    f"It answers {answer.status_code} to /metrics. llama.cpp and SGLang show it with --metrics and"
                    " --enable-metrics."
                )
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > _LARGEST_ANSWER_BYTES:
                    raise CountersUnreadable("Its /metrics is larger than an engine's.")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CountersUnreadable(f"It does not answer /metrics ({type(error).__name__}).") from None
    try:
        return parse_counters(backend.kind, body.decode("utf-8", "replace"))
    except ValueError as error:
        raise CountersUnreadable(str(error)) from None


def _difference(metered: Tokens, charged: Tokens) -> Tokens:
    return Tokens(
        input_tokens=metered.input_tokens - charged.input_tokens,
        output_tokens=metered.output_tokens - charged.output_tokens,
    )


def _rounding(row: AnyRow) -> Tokens:
    return Tokens(input_tokens=row.input_rounding, output_tokens=row.output_rounding)
