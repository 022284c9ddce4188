"""Every route of `/v1` has its row in the table of attacks, and every row a route."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from fastapi.routing import APIRoute, iter_route_contexts

from gateway.app import make_api
from gateway.auth import guards_of
from models.call import Endpoint
from tests.attacks.routes import CALLS, ROUTES, Route

ROOT = Path(__file__).parents[2]
GUARDS = {"require_api_key": "key", "require_admin": "admin", "require_reader": "reader"}


def served() -> dict[str, str]:
    """Who may call each route of `/v1`, by method and path."""
    found = {f"POST {endpoint}": "key" for endpoint in Endpoint}
    for context in iter_route_contexts(make_api(docs_enabled=False).routes):
        route, path = context.original_route, context.path or ""
        if isinstance(route, APIRoute) and path.startswith("/v1/"):
            (guard,) = guards_of(context.dependant)
            shown = path.replace(":path}", "}")
            found |= {f"{method} {shown}": GUARDS[guard] for method in route.methods or ()}
    return found


def test_a_route_without_an_attack_fails() -> None:
    assert {route.name: route.who for route in ROUTES} == served(), "add a row to tests/attacks/routes.py"
    assert len({route.name for route in ROUTES}) == len(ROUTES)
    assert {route.path for route in CALLS} == set(Endpoint)


@pytest.mark.parametrize("route", [pytest.param(route, id=route.name) for route in ROUTES])
def test_a_row_says_what_it_takes_to_attack_it(route: Route) -> None:
    if route.method == "POST" and "{" not in route.path:
        assert route.takes_body
    if "{" in route.path and "{kind}" not in route.path:
        assert route.others or route.elsewhere, "an object is somebody's: name one of another tenant"
    if route.elsewhere:
        path, _, name = route.elsewhere.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
