"""Health checks, maintenance, and who stands by: with backends that answer what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from pydantic import SecretStr

from gateway.breaker import State
from gateway.calls.capacity import Capacity
from gateway.calls.standing import LONGEST_SLEEP_SECONDS, Standing, seconds_out, seconds_to_change
from gateway.health import UNHEALTHY_AFTER, Health, HealthChecks, verdict
from gateway.settings import Settings
from models.catalog import BackendKind, Catalog, Deployment, Model, Window
from tests.unit.samples import NOW, deployment

pytestmark = pytest.mark.anyio


class Hospital:
    """Backends that answer by their host, and a gateway's view of them."""

    def __init__(self, *deployments: Deployment) -> None:
        self.answers: dict[str, Callable[[httpx.Request], httpx.Response]] = {}
        self.asked: list[httpx.Request] = []
        self.now = NOW
        names: dict[str, Any] = dict.fromkeys(("database_url", "redis_url"), SecretStr("none"))
        self.health = HealthChecks(lambda: self.now, httpx.MockTransport(self._answer))
        self.capacity = Capacity(Settings(key_pepper=SecretStr("none" * 8), **names), self.health)
        self.catalog = Catalog({"m": Model("m", 4_096, NOW, deployments=deployments)})
        self.standing = Standing(self.capacity, lambda: self.catalog, self.health, 5, lambda: self.now)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.answers.get(request.url.host)
        return httpx.Response(200) if answer is None else answer(request)

    async def rounds(self, count: int) -> None:
        for _ in range(count):
            await self.health.check(each.backend for each in self.catalog.models["m"].deployments)
        self.standing.look()

    def state(self, each: Deployment) -> State:
        return self.capacity.breakers.of(each.id).state(asyncio.get_running_loop().time())


ONE, TWO = deployment(BackendKind.VLLM, 1), deployment(BackendKind.OPENAI, 2)


def broken(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


@pytest.mark.parametrize("answer", [lambda _: httpx.Response(503), broken], ids=["503", "no connection"])
async def test_an_unhealthy_backend_is_left_alone_until_it_is_well(
    answer: Callable[[httpx.Request], httpx.Response],
) -> None:
    ward = Hospital(ONE, TWO)
    ward.answers["backend-1"] = answer
    await ward.rounds(UNHEALTHY_AFTER - 1)
    assert ward.state(ONE) is State.CLOSED, "one check alone may have met a pause"
    await ward.rounds(1)
    assert (ward.state(ONE), ward.state(TWO)) == (State.OPEN, State.CLOSED)
    assert ward.health.of(ONE.backend.id).reason
    assert [gauge.is_healthy for gauge in ward.capacity.gauges()] == [False, True]
    del ward.answers["backend-1"]
    await ward.rounds(1)
    assert ward.state(ONE) is State.CLOSED
    breaker = ward.capacity.breakers.of(ONE.id)
    assert breaker.share(asyncio.get_running_loop().time()) < 0.2, "it starts slowly"
    assert ward.health.of(ONE.backend.id) == Health(0, None, NOW)


async def test_each_engine_is_asked_where_it_answers() -> None:
    ward = Hospital(ONE, TWO, replace(TWO, backend=replace(TWO.backend, id=UUID(int=99), path_prefix="/api/v1")))
    await ward.rounds(1)
    assert [request.url.path for request in ward.asked] == ["/health", "/v1/models", "/api/v1/models"]
    assert {request.headers["authorization"] for request in ward.asked} == {"Bearer s3cr3t"}


@pytest.mark.parametrize(
    ("kind", "status", "is_well"),
    [
        (BackendKind.VLLM, 200, True),
        (BackendKind.VLLM, 404, True),
        (BackendKind.VLLM, 401, True),
        (BackendKind.VLLM, 500, False),
        (BackendKind.OPENAI, 401, False),
        (BackendKind.OPENAI, 403, False),
        (BackendKind.OPENAI, 404, True),
    ],
)
def test_what_an_answer_shows(kind: BackendKind, status: int, is_well: bool) -> None:
    assert (verdict(deployment(kind).backend, status) is None) is is_well


async def test_maintenance_begins_and_ends_by_itself() -> None:
    window = Window(NOW + timedelta(seconds=10), NOW + timedelta(seconds=70))
    planned = replace(ONE, windows=(window,))
    ward = Hospital(planned, TWO)
    assert ward.standing.look() == LONGEST_SLEEP_SECONDS
    assert ward.state(ONE) is State.CLOSED
    ward.now = window.start
    ward.standing.look()
    assert (ward.state(ONE), ward.state(TWO)) == (State.OPEN, State.CLOSED)
    pause = ward.capacity.breakers.of(ONE.id).pause_seconds(asyncio.get_running_loop().time())
    assert pause == pytest.approx(60, abs=1), "for Retry-After"
    ward.now = window.end
    ward.standing.look()
    assert ward.state(ONE) is State.CLOSED


async def test_cancelled_maintenance_ends_at_once() -> None:
    ward = Hospital(replace(ONE, windows=(Window(NOW, NOW + timedelta(hours=1)),)), TWO)
    ward.standing.look()
    assert ward.state(ONE) is State.OPEN
    ward.catalog = Catalog({"m": Model("m", 4_096, NOW, deployments=(ONE, TWO))})
    ward.standing.look()
    assert ward.state(ONE) is State.CLOSED


def test_the_next_look_is_when_a_window_begins_or_ends() -> None:
    first, second = (Window(NOW + timedelta(seconds=s), NOW + timedelta(seconds=s + 4)) for s in (2, 5))
    both = replace(ONE, windows=(first, second))
    assert seconds_to_change([both], NOW) == 2
    assert seconds_to_change([both], NOW + timedelta(seconds=2)) == 3
    assert seconds_to_change([TWO], NOW) == LONGEST_SLEEP_SECONDS
    assert seconds_out(both, NOW) == 0
    assert seconds_out(both, NOW + timedelta(seconds=5.5)) == 3.5, "the later end of two that overlap"
