"""More calls than the backends take: who waits, who is served, who is turned away and how that is told."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.integration.overload.conftest import WAIT_SECONDS, Gate, House, asked, metric
from tests.scripted import scripted_backend
from tests.stage import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


async def test_no_backend_gets_more_than_it_takes_and_each_answer_is_charged_once(house: House) -> None:
    gate = Gate(is_open=True)
    tenants = [await house.tenant() for _ in range(4)]
    async with scripted_backend(gate) as backend:
        sale = await house.sell(backend, max_in_flight=8)
        calls = [house.begin(tenants[number % 4], sale, f"call {number}") for number in range(200)]
        answers = await asyncio.gather(*calls)
        assert 1 <= gate.most <= 8
        served = [answer for answer in answers if answer.status_code == 200]
        assert len(served) == len(backend.asked) >= 16
    for answer in answers:
        assert answer.status_code in (200, 429, 503)
        if answer.status_code != 200:
            assert int(answer.headers["retry-after"]) >= 1
    for number, tenant in enumerate(tenants):
        own = [answer for answer in answers[number::4] if answer.status_code == 200]
        charges = await house.stage.charges(tenant, len(own))
        assert {charge["call_id"] for charge in charges} == {answer.headers["x-request-id"] for answer in own}
        assert {charge["ending"] for charge in charges} == {"finished"}


async def test_a_call_that_waits_is_served_when_a_slot_is_free(house: House) -> None:
    gate, tenant = Gate(), await house.tenant()
    async with scripted_backend(gate) as backend:
        sale = await house.sell(backend, max_in_flight=1)
        first = house.begin(tenant, sale)
        await asked(backend, 1)
        second = house.begin(tenant, sale)
        await house.wait_for(waiting=1)
        assert len(backend.asked) == 1
        gate.let(2)
        assert [(await call).status_code for call in (first, second)] == [200, 200]
        assert gate.most == 1
    await house.stage.charges(tenant, 2)


async def test_a_call_that_waits_too_long_is_told_whose_doing_it_is(house: House) -> None:
    gate, busy, other = Gate(), await house.tenant(), await house.tenant()
    shed = {status: metric("tollgate_calls_shed_total", reason="timed_out", status=status) for status in ("429", "503")}
    async with scripted_backend(gate) as backend:
        sale = await house.sell(backend, max_in_flight=2)
        running = [house.begin(busy, sale) for _ in range(2)]
        await asked(backend, 2)
        begun = time.monotonic()
        waiting = [house.begin(busy, sale), house.begin(other, sale)]
        await house.wait_for(waiting=2)
        assert await house.held(other) == 0, "who waits holds nothing"
        assert metric("tollgate_backend_calls_in_flight", backend=sale.backends[0]) == 2
        assert metric("tollgate_backend_calls_waiting", backend=sale.backends[0]) == 2
        own, others = await asyncio.gather(*waiting)
        assert WAIT_SECONDS <= time.monotonic() - begun <= WAIT_SECONDS + 0.5
        assert (own.status_code, others.status_code) == (429, 503)
        assert own.json()["error"]["type"] == "rate_limit_error"
        for answer in (own, others):
            assert 1 <= int(answer.headers["retry-after"]) <= 38
            assert "Nothing was charged" in answer.json()["error"]["message"]
            assert answer.headers["x-request-id"]
        assert len(backend.asked) == 2
        gate.let(2)
        await asyncio.gather(*running)
    for status, before in shed.items():
        assert metric("tollgate_calls_shed_total", reason="timed_out", status=status) == before + 1
    await house.stage.charges(busy, 2)
    assert await house.paid(other) == 0


async def test_a_full_room_turns_away_at_once(house: House) -> None:
    gate, busy, other = Gate(), await house.tenant(), await house.tenant()
    async with scripted_backend(gate) as backend:
        sale = await house.sell(backend, max_in_flight=1)
        running = house.begin(busy, sale)
        await asked(backend, 1)
        waiting = house.begin(busy, sale)
        await house.wait_for(waiting=1)
        own, others = await house.chat(busy, sale), await house.chat(other, sale)
        assert not waiting.done(), "they did not wait for it"
        assert (own.status_code, others.status_code) == (429, 503)
        assert int(own.headers["retry-after"]) >= 1
        assert int(others.headers["retry-after"]) >= 1
        assert await house.held(other) == 0
        gate.let(2)
        assert [(await call).status_code for call in (running, waiting)] == [200, 200]
        assert len(backend.asked) == 2


async def test_a_flood_of_one_does_not_delay_the_first_call_of_another(house: House) -> None:
    gate, flood, other = Gate(), await house.tenant(), await house.tenant()
    # A hold of 4,000 tokens: a turn of 8,192 is two or three of these calls.
    large = {"max_tokens": 4_000}
    async with scripted_backend(gate) as backend:
        sale = await house.sell(backend, max_in_flight=8)
        floods = [house.begin(flood, sale, "flood", **large) for _ in range(60)]
        await asked(backend, 8)
        await house.wait_for(waiting=8)

        async def all_others_are_turned_away() -> bool:
            return sum(call.done() for call in floods) == 60 - 16

        await eventually(all_others_are_turned_away)
        first = house.begin(other, sale, "other", **large)

        async def one_makes_place() -> bool:
            return sum(call.done() for call in floods) == 60 - 15

        await eventually(one_makes_place)
        assert house.waiting == 8
        for served in range(1, 5):
            gate.let()
            await asked(backend, 8 + served)
        words = [each.body["messages"][0]["content"] for each in backend.asked[8:]]
        assert "other" in words, "within one turn of the flood"
        gate.let(100)
        assert (await first).status_code == 200
        answers = await asyncio.gather(*floods)
        assert [answer.status_code for answer in answers].count(200) == 15
        assert {answer.status_code for answer in answers} == {200, 429}
        assert gate.most == 8
    await house.stage.charges(flood, 15)
    await house.stage.charges(other, 1)


async def test_a_client_that_hangs_up_while_it_waits_leaves_its_place(house: House) -> None:
    gate, busy, leaver, other = Gate(), await house.tenant(), await house.tenant(), await house.tenant()
    async with scripted_backend(gate) as backend:
        sale = await house.sell(backend, max_in_flight=1)
        running = house.begin(busy, sale)
        await asked(backend, 1)
        leaving = house.begin(leaver, sale, "leaving")
        await house.wait_for(waiting=1)
        leaving.cancel()
        await house.wait_for(waiting=0)
        waiting = house.begin(other, sale)
        await house.wait_for(waiting=1)
        gate.let(2)
        assert [(await call).status_code for call in (running, waiting)] == [200, 200]
        assert len(backend.asked) == 2
        assert all(each.body["messages"][0]["content"] != "leaving" for each in backend.asked)
    assert await house.paid(leaver) == 0


async def test_a_raised_limit_lets_those_in_who_wait(house: House) -> None:
    gate, tenant = Gate(), await house.tenant()
    async with scripted_backend(gate) as backend:
        sale = await house.sell(backend, max_in_flight=1)
        first = house.begin(tenant, sale)
        await asked(backend, 1)
        second = house.begin(tenant, sale)
        await house.wait_for(waiting=1)
        await house.stage.operate("POST", f"/backends/{sale.backends[0]}", json={"max_in_flight": 2})
        await asked(backend, 2)
        assert gate.running == 2
        gate.let(2)
        assert [(await call).status_code for call in (first, second)] == [200, 200]


async def test_a_lowered_limit_cuts_nobody(house: House) -> None:
    gate, tenant = Gate(), await house.tenant()
    async with scripted_backend(gate) as backend:
        sale = await house.sell(backend, max_in_flight=2)
        running = [house.begin(tenant, sale) for _ in range(2)]
        await asked(backend, 2)
        await house.stage.operate("POST", f"/backends/{sale.backends[0]}", json={"max_in_flight": 1})

        async def is_lowered() -> bool:
            known = house.stage.app.parts.catalog.current.models[sale.model].deployments[0].backend
            return known.max_in_flight == 1

        await eventually(is_lowered)
        waiting = house.begin(tenant, sale)
        await house.wait_for(waiting=1)
        gate.let(1)

        async def one_is_done() -> bool:
            return sum(call.done() for call in running) == 1

        await eventually(one_is_done)
        assert len(backend.asked) == 2, "two ran where one may: its end makes room for nobody"
        gate.let(2)
        assert [(await call).status_code for call in (*running, waiting)] == [200, 200, 200]


async def test_a_call_goes_where_there_is_room(house: House) -> None:
    gates, tenant = (Gate(), Gate()), await house.tenant()
    async with scripted_backend(gates[0]) as one, scripted_backend(gates[1]) as two:
        sale = await house.sell(one, two, max_in_flight=1, weights=(10, 1))
        calls = [house.begin(tenant, sale)]
        await asked(one, 1)
        calls.append(house.begin(tenant, sale))
        await asked(two, 1)
        calls.append(house.begin(tenant, sale))
        await house.wait_for(waiting=1)
        gates[1].let(2)
        await asked(two, 2)
        gates[0].let()
        assert [(await call).status_code for call in calls] == [200, 200, 200]
        assert (gates[0].most, gates[1].most, len(one.asked)) == (1, 1, 1)


async def test_a_call_that_is_refused_its_hold_gives_its_slot_to_the_next(house: House) -> None:
    gate, poor, rich = Gate(), await house.stage.tenant(credit=None), await house.tenant()
    async with scripted_backend(gate) as backend:
        sale = await house.sell(backend, max_in_flight=1)
        running = house.begin(rich, sale)
        await asked(backend, 1)
        refused = house.begin(poor, sale)
        await house.wait_for(waiting=1)
        gate.let(2)
        assert (await running).status_code == 200
        assert (await refused).status_code == 402
        assert (await house.chat(rich, sale)).status_code == 200
        assert len(backend.asked) == 2


async def test_a_process_that_is_late_takes_no_new_calls_and_goes_on_with_others(house: House) -> None:
    gate, tenant = Gate(), await house.tenant()
    lag = house.stage.app.running.capacity.lag
    async with scripted_backend(gate) as backend:
        sale = await house.sell(backend)
        running = house.begin(tenant, sale)
        await asked(backend, 1)
        lag.is_shedding = True
        try:
            refused = await house.chat(tenant, sale)
        finally:
            lag.is_shedding = False
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        gate.let(2)
        assert (await running).status_code == 200
        assert (await house.chat(tenant, sale)).status_code == 200


async def test_a_backend_that_is_disabled_turns_away_who_waits_for_it(house: House) -> None:
    gate, tenant = Gate(), await house.tenant()
    async with scripted_backend(gate) as backend:
        sale = await house.sell(backend, max_in_flight=1)
        running = house.begin(tenant, sale)
        await asked(backend, 1)
        waiting = house.begin(tenant, sale)
        await house.wait_for(waiting=1)
        await house.stage.operate("POST", f"/backends/{sale.backends[0]}", json={"disabled": True})
        assert (await waiting).status_code == 503
        gate.let(2)
        assert (await running).status_code == 200, "what runs there may end"
        assert len(backend.asked) == 1
