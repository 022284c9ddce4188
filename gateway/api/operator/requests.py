"""The requests of operators: who asks, and what they claim by an Idempotency-Key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from fastapi import Depends, Header, Request

from gateway.api.transactions import Change, Transaction, claim_of
from gateway.auth import require_operator
from gateway.parts import parts_of
from models.account import OperatorPrincipal

__all__ = ["Change", "Operator", "OperatorRequest"]


@dataclass(frozen=True, slots=True)
class OperatorRequest(Transaction):
    """A request of an operator."""

    operator: OperatorPrincipal


async def operator_request(
    request: Request,
    operator: Annotated[OperatorPrincipal, Depends(require_operator)],
    idempotency_key: Annotated[
        str | None, Header(description="Repeats of a change under one key have one effect")
    ] = None,
) -> OperatorRequest:
    """The request of an operator; a FastAPI dependency, and with it the guard of every route that uses it."""
    actor = f"operator:{operator.operator_key_id}"
    return OperatorRequest(parts_of(request), actor, await claim_of(request, actor, idempotency_key), operator)


Operator: TypeAlias = Annotated[OperatorRequest, Depends(operator_request)]
