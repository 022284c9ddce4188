"""The scopes of a key as the admin API names them, each a text: what it may call, from where, for how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from pydantic import TypeAdapter, ValidationError

from billing.store.keys import KeyBounds
from billing.store.pages import AnyRow
from gateway.api.issuing import endpoint_path, network_text
from gateway.api.operator.shapes import ModelId
from gateway.api.organization.shapes import LARGEST_CENTS
from models.errors import InvalidRequest

READ_ONLY: Final = "api.all.read"
_EVERYTHING: Final = frozenset({"api.all", "api.model.request", "model.request"})
_MODEL: Final = TypeAdapter[str](ModelId)


class Scopes(NamedTuple):
    """Bounds of a key: None is none. `spend_cents` is the most that it may spend in a month."""

    models: tuple[str, ...] | None = None
    endpoints: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None
    spend_cents: int | None = None


def parse_scopes(texts: Sequence[str]) -> Scopes:
    """The bounds that scopes name together; several of one kind are alternatives, none of a kind is no bound.

    Raises `InvalidRequest` for a scope that is not known: nothing is believed to be bounded that is not.
    """
    found: dict[str, list[str]] = {"model": [], "endpoint": [], "network": [], "spend": []}
    is_read_only = False
    for text in texts:
        kind, colon, value = text.partition(":")
        if text == READ_ONLY:
            is_read_only = True
        elif colon and kind in found:
            try:
                found[kind].append(_checked(kind, value))
            except (ValidationError, ValueError):
                raise _wrong(text) from None
        elif text not in _EVERYTHING:
            raise _wrong(text)
    if len(found["spend"]) > 1:
        raise InvalidRequest("Give one scope 'spend:<cents>', not several.", param="scopes")
    return Scopes(
        models=_bound(found["model"]),
        # A key that may only read may call no endpoint that costs anything.
        endpoints=_bound(found["endpoint"]) or (() if is_read_only else None),
        networks=_bound(found["network"]),
        spend_cents=int(found["spend"][0]) if found["spend"] else None,
    )


def scopes_of(bounds: KeyBounds | AnyRow, spend_cents: int | None = None) -> list[str]:
    """The scopes of a key's bounds; `parse_scopes` of them gives the same again.

    A key that an operator has allowed no model is told as one that only reads: it may not do more.
    """
    endpoints = () if bounds.models is not None and not bounds.models else bounds.endpoints
    return [
        *([READ_ONLY] if endpoints is not None and not endpoints else []),
        *(f"endpoint:{path}" for path in endpoints or ()),
        *(f"model:{model}" for model in bounds.models or ()),
        *(f"network:{network}" for network in bounds.networks or ()),
        *([] if spend_cents is None else [f"spend:{spend_cents}"]),
    ]


def _checked(kind: str, value: str) -> str:
    match kind:
        case "model":
            return _MODEL.validate_python(value)
        case "endpoint":
            return endpoint_path(value)
        case "network":
            return network_text(value)
        case _:
            if not value.isascii() or not value.isdigit() or len(value) > 12 or int(value) > LARGEST_CENTS:
                raise ValueError("no amount")
            return str(int(value))


def _bound(values: list[str]) -> tuple[str, ...] | None:
    return tuple(dict.fromkeys(values)) or None


def _wrong(text: str) -> InvalidRequest:
    shown = text if len(text) <= 80 and text.isprintable() else text[:40].encode("unicode_escape").decode() + "…"
    return InvalidRequest(
        f"'{shown}' is no scope of a key here. Use model:<id>, endpoint:</v1/...>, network:<CIDR>, "
        f"spend:<cents a month>, {READ_ONLY} for a key that only reads, or no scope for no bound.",
        param="scopes",
    )
