"""Every route has exactly one guard: a credential it demands, or the mark that it is public on purpose."""

from __future__ import annotations

from fastapi.routing import APIRoute, iter_route_contexts

from gateway.app import make_api
from gateway.auth import guards_of

DOCUMENTATION = {"/openapi.json", "/docs", "/docs/oauth2-redirect"}


def test_every_route_has_one_guard() -> None:
    contexts = list(iter_route_contexts(make_api(docs_enabled=True).routes))
    guarded = [context for context in contexts if isinstance(context.original_route, APIRoute)]
    assert len(guarded) > 10
    for context in guarded:
        guards = guards_of(context.dependant)
        assert len(guards) == 1, f"{context.path} has the guards {sorted(guards)}"


def test_nothing_is_outside_fastapi() -> None:
    contexts = iter_route_contexts(make_api(docs_enabled=True).routes)
    others = {context.path for context in contexts if not isinstance(context.original_route, APIRoute)}
    assert others <= DOCUMENTATION, "such a route has no guard"


def test_documentation_is_off_unless_asked_for() -> None:
    contexts = iter_route_contexts(make_api(docs_enabled=False).routes)
    assert all(isinstance(context.original_route, APIRoute) for context in contexts)
