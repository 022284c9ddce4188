"""Every route has exactly one guard: a credential it demands, or the mark that it is public on purpose."""

from __future__ import annotations

from fastapi.routing import APIRoute
from pydantic import SecretStr
from starlette.routing import BaseRoute, Mount, Route

from gateway.app import create_app
from gateway.auth import guards_of
from gateway.settings import Settings

DOCUMENTATION = {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"}


def routes() -> list[BaseRoute]:
    settings = Settings(
        database_url=SecretStr("postgresql://app@127.0.0.1:1/none"),
        redis_url=SecretStr("redis://127.0.0.1:1"),
        key_pepper=SecretStr("p" * 32),
        docs_enabled=True,
    )  # type: ignore[call-arg]  # the rest has defaults
    return list(create_app(settings).routes)


def test_every_route_has_one_guard() -> None:
    found = routes()
    assert any(isinstance(route, APIRoute) for route in found)
    for route in found:
        if isinstance(route, APIRoute):
            assert len(guards_of(route.dependant)) == 1, f"{route.path} has guards {guards_of(route.dependant)}"
        else:
            assert isinstance(route, Route | Mount)
            assert route.path in DOCUMENTATION, f"{route.path} is outside FastAPI and so without a guard"
