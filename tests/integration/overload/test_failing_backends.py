"""Backends that fail: breakers open and close, and calls are tried again elsewhere before their first byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway import breaker
from gateway.embedded.ports import free_port
from gateway.retries import RetryBudget
from tests.integration.overload.conftest import Gate, House, Sale, asked, metric
from tests.scripted import DONE, PLAIN, Asked, Script, Scripted, answer, open_stream, said, scripted_backend, send

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

FIVE_HUNDRED = answer(500, b"{}")
BUSY = answer(503, b'{"error":{"message":"Loading model"}}')
BAD_REQUEST = answer(400, b'{"error":{"message":"n is too large","code":400}}')


async def silent(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """A backend that takes a request and never answers."""
    await asyncio.Event().wait()


async def breaks_off(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """A backend that closes the connection instead of answering."""
    writer.close()


async def begins_and_breaks_off(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """A backend that answers 200 and breaks off before it has said anything."""
    await open_stream(writer)
    writer.close()


async def says_and_breaks_off(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """A backend that breaks off in the middle of its answer."""
    await open_stream(writer)
    await send(writer, said("hello"))
    writer.close()


@asynccontextmanager
async def listening_at(port: int, backend: Scripted) -> AsyncIterator[None]:
    server = await asyncio.start_server(backend.serve, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()


def is_open(sale: Sale, number: int = 0) -> float:
    return metric("tollgate_breaker_open", backend=sale.backends[number], model=sale.model)


def end_pause(house: House, sale: Sale) -> None:
    """The breakers of this model have been open for as long as they must."""
    running = house.stage.app.running
    for each in house.stage.app.parts.catalog.current.models[sale.model].deployments:
        found = running.capacity.breakers.of(each.id)
        assert found.pause_seconds(asyncio.get_running_loop().time()) > 0
        found._until = asyncio.get_running_loop().time()


@pytest.mark.parametrize(
    ("failing", "status"),
    [
        pytest.param(FIVE_HUNDRED, 502, id="500"),
        pytest.param(BUSY, 503, id="503"),
        pytest.param(breaks_off, 502, id="it breaks off"),
        pytest.param(silent, 504, id="no first byte in time"),
        pytest.param(None, 502, id="it cannot be reached"),
    ],
)
async def test_five_failures_open_a_breaker_and_a_probe_closes_it(
    house: House, failing: Script | None, status: int
) -> None:
    running = house.stage.app.running
    running.settings = running.settings.model_copy(update={"first_byte_timeout_seconds": 0.1})
    tenant, backend, port = await house.tenant(), Scripted(failing or PLAIN), free_port()
    sale = await house.sell(f"http://127.0.0.1:{port}")
    async with listening_at(port if failing else free_port(), backend):
        failed = await asyncio.gather(*(house.chat(tenant, sale) for _ in range(5)))
        assert [each.status_code for each in failed] == [status] * 5
        assert is_open(sale) == 1.0
        before = len(backend.asked)
        shed = metric("tollgate_calls_shed_total", reason="breakers_open", status="503")
        refused = await house.chat(tenant, sale)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert len(backend.asked) == before, "it is left alone"
        assert metric("tollgate_calls_shed_total", reason="breakers_open", status="503") == shed + 1
    assert await house.paid(tenant) == 0
    backend.script = PLAIN
    async with listening_at(port, backend):
        end_pause(house, sale)
        assert is_open(sale) == 0.5
        assert (await house.chat(tenant, sale)).status_code == 200
        assert is_open(sale) == 0.0
        assert len(backend.asked) == before + 1
        assert (await house.chat(tenant, sale)).status_code == 200
    await house.stage.charges(tenant, 2)


async def test_one_probe_at_a_time(house: House) -> None:
    tenant, gate = await house.tenant(), Gate(says_hello=False)
    async with scripted_backend(FIVE_HUNDRED) as backend:
        sale = await house.sell(backend)
        await asyncio.gather(*(house.chat(tenant, sale) for _ in range(5)))
        backend.script = gate
        end_pause(house, sale)
        probe = house.begin(tenant, sale)
        await asked(backend, 6)
        assert {(await house.chat(tenant, sale)).status_code for _ in range(3)} == {503}
        assert is_open(sale) == 0.5
        gate.let(2)
        assert (await probe).status_code == 200
        assert is_open(sale) == 0.0
        assert (await house.chat(tenant, sale)).status_code == 200
        assert len(backend.asked) == 7


async def test_a_probe_whose_client_leaves_lets_the_next_one_through(house: House) -> None:
    tenant, gate = await house.tenant(), Gate(says_hello=False)
    async with scripted_backend(FIVE_HUNDRED) as backend:
        sale = await house.sell(backend)
        await asyncio.gather(*(house.chat(tenant, sale) for _ in range(5)))
        backend.script = gate
        end_pause(house, sale)
        probe = house.begin(tenant, sale)
        await asked(backend, 6)
        probe.cancel()
        backend.script = PLAIN
        await house.stage.quiet()
        assert (await house.chat(tenant, sale)).status_code == 200
        assert is_open(sale) == 0.0


async def test_a_failed_probe_opens_it_again(house: House) -> None:
    tenant = await house.tenant()
    async with scripted_backend(FIVE_HUNDRED) as backend:
        sale = await house.sell(backend)
        await asyncio.gather(*(house.chat(tenant, sale) for _ in range(5)))
        end_pause(house, sale)
        assert (await house.chat(tenant, sale)).status_code == 502
        assert len(backend.asked) == 6
        assert is_open(sale) == 1.0


async def test_another_deployment_takes_over(house: House) -> None:
    tenant = await house.tenant()
    async with scripted_backend() as good:
        sale = await house.sell(f"http://127.0.0.1:{free_port()}", good, weights=(10, 1))
        answers = [await house.chat(tenant, sale) for _ in range(8)]
        assert {each.status_code for each in answers} == {200}
        assert (is_open(sale, 0), is_open(sale, 1)) == (1.0, 0.0)
        assert len(good.asked) == 8
    charges = await house.stage.charges(tenant, 8)
    assert {charge["deployment"] for charge in charges} == {sale.backends[1]}


async def test_what_a_client_does_wrong_opens_no_breaker(house: House) -> None:
    tenant, gate = await house.tenant(), Gate(says_hello=False)
    async with scripted_backend(BAD_REQUEST) as backend:
        sale = await house.sell(backend)
        wrong = await asyncio.gather(*(house.chat(tenant, sale) for _ in range(25)))
        assert {each.status_code for each in wrong} == {400}
        backend.script = gate
        leaving = [house.begin(tenant, sale) for _ in range(25)]
        await asked(backend, 50)
        for call in leaving:
            call.cancel()
        await house.stage.quiet()
        assert is_open(sale) == 0.0
        backend.script = PLAIN
        assert (await house.chat(tenant, sale)).status_code == 200


@pytest.mark.parametrize(
    ("failing", "is_stream"),
    [
        pytest.param(None, True, id="it cannot be reached"),
        pytest.param(BUSY, False, id="503"),
        pytest.param(breaks_off, True, id="it breaks off"),
        pytest.param(begins_and_breaks_off, False, id="it breaks off after its head"),
        pytest.param(begins_and_breaks_off, True, id="it breaks off after its head, in a stream"),
    ],
)
async def test_a_call_is_tried_again_elsewhere_before_its_first_byte(
    house: House, failing: Script | None, is_stream: bool
) -> None:
    tenant, taken = await house.tenant(), metric("tollgate_retries_total", outcome="taken")
    async with scripted_backend(failing or PLAIN) as bad, scripted_backend() as good:
        first = bad.url if failing else f"http://127.0.0.1:{free_port()}"
        sale = await house.sell(first, good, weights=(10, 1))
        answer = await house.chat(tenant, sale, stream=is_stream)
        assert answer.status_code == 200
        assert (len(bad.asked), len(good.asked)) == (0 if failing is None else 1, 1)
        if is_stream:
            assert answer.text.count("hello") == 1
            assert answer.text.endswith(DONE.decode())
    [charge] = await house.stage.charges(tenant, 1)
    assert (charge["deployment"], charge["ending"]) == (sale.backends[1], "finished")
    assert metric("tollgate_retries_total", outcome="taken") == taken + 1


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_call_is_not_tried_again_after_its_first_byte(house: House, is_stream: bool) -> None:
    tenant = await house.tenant()
    async with scripted_backend(says_and_breaks_off) as bad, scripted_backend() as good:
        sale = await house.sell(bad, good, weights=(10, 1))
        answer = await house.chat(tenant, sale, stream=is_stream)
        assert (len(bad.asked), len(good.asked)) == (1, 0)
        if is_stream:
            assert "hello" in answer.text
            assert "event: error" in answer.text
            assert "[DONE]" not in answer.text
        else:
            assert answer.status_code == 502
    [charge] = await house.stage.charges(tenant, 1)
    assert charge["ending"] == "backend_failed"


async def test_a_500_is_not_tried_again(house: House) -> None:
    # The backend may have spent tokens on it, and the next one may fall over the same request.
    tenant = await house.tenant()
    async with scripted_backend(FIVE_HUNDRED) as bad, scripted_backend() as good:
        sale = await house.sell(bad, good, weights=(10, 1))
        assert (await house.chat(tenant, sale)).status_code == 502
        assert (len(bad.asked), len(good.asked)) == (1, 0)
    assert await house.paid(tenant) == 0


async def test_a_retry_does_not_wait_and_overtakes_nobody(house: House) -> None:
    tenant, gate = await house.tenant(), Gate()
    async with scripted_backend(PLAIN) as bad, scripted_backend(gate) as good:
        sale = await house.sell(bad, good, max_in_flight=1, weights=(1, 10))
        running = house.begin(tenant, sale)
        await asked(good, 1)
        bad.script = BUSY
        assert (await house.chat(tenant, sale)).status_code == 503
        assert (len(bad.asked), len(good.asked)) == (1, 1)
        gate.let()
        assert (await running).status_code == 200


async def test_the_retry_budget_stops_a_storm(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is measured here is the budget, so the breakers stay out of it.
    monkeypatch.setattr(breaker, "FAILURES_IN_A_ROW", 10_000)
    monkeypatch.setattr(breaker, "FEWEST_CALLS", 10_000)
    capacity, tenant = house.stage.app.running.capacity, await house.tenant()
    capacity.budget = RetryBudget(0.1, floor=3)
    over = metric("tollgate_retries_total", outcome="over_budget")
    async with scripted_backend(BUSY) as one, scripted_backend(BUSY) as two:
        sale = await house.sell(one, two)
        answers = await asyncio.gather(*(house.chat(tenant, sale) for _ in range(60)))
        assert {each.status_code for each in answers} == {503}
        assert 60 + 3 <= len(one.asked) + len(two.asked) <= 60 + 6
    assert metric("tollgate_retries_total", outcome="over_budget") >= over + 54
    assert await house.paid(tenant) == 0
