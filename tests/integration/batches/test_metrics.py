"""What operators see of batches in `/metrics`: what lines came to, what was lost and given back, what waits."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from sqlalchemy import text

from billing.store.batches import Line, Standing, add_lines, add_lost, standing
from gateway.telemetry import BATCHES
from models.money import parse_amount
from tests.integration.batches.desk import Desk, jsonl, task
from tests.integration.batches.test_batches import patient
from tests.scripted import Scripted, answer
from tests.stage import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


def seen() -> dict[str, float]:
    """Each series of batches in this process, by its name and label."""
    samples = (sample for metric in BATCHES.collect() for sample in metric.samples)
    return {" ".join((one.name.removeprefix("tollgate_"), *one.labels.values())): one.value for one in samples}


class Growth:
    """How much the counters have grown since the test began: they are those of the process."""

    def __init__(self) -> None:
        self._before = seen()

    def of(self, *names: str) -> list[float]:
        now = seen()
        return [now.get(name, 0) - self._before.get(name, 0) for name in names]


async def stands(desk: Desk) -> Standing:
    async with desk.stage.app.parts.engine.connect() as connection:
        return await standing(connection)


async def test_what_lines_and_batches_came_to(desk: Desk) -> None:
    growth = Growth()
    await desk.ended(await desk.create(jsonl(task("a"), task("b"), task("c", model="no-such-model"))))
    await desk.ended(await desk.create(jsonl(task("a"), task("a"))))
    assert growth.of("batch_lines_run_total completed", "batch_lines_run_total failed") == [2, 1]
    assert growth.of("batches_ended_total completed", "batches_ended_total failed") == [1, 1]
    assert growth.of("batch_attempts_lost_total", "batch_lines_run_total put_off") == [0, 0]


async def test_an_attempt_of_a_gateway_that_fell_silent_is_lost(desk: Desk, backend: Scripted) -> None:
    growth, usual = Growth(), backend.script
    backend.script = answer(503, b"{}")
    batch = await desk.create(jsonl(task("a")))

    async def is_another_s() -> bool:
        """The line as a gateway leaves it that died a lease ago."""
        async with desk.stage.app.parts.engine.begin() as connection:
            values = "state = 'running', call_id = gen_random_uuid(), due_at = now() - interval '1 second'"
            where = "state = 'waiting' and delays > 0"
            return bool((await connection.execute(text(f"update batch_line set {values} where {where}"))).rowcount)

    await eventually(is_another_s)
    backend.script = usual
    assert (await desk.ended(batch))["request_counts"]["completed"] == 1
    assert growth.of("batch_attempts_lost_total", "batch_lines_run_total completed") == [1, 1]
    assert growth.of("batch_lines_run_total put_off")[0] >= 1


async def test_what_is_given_back_is_counted(desk: Desk) -> None:
    growth = Growth()
    batch = await desk.ended(await desk.create(jsonl(task("a"))))
    [charge] = await desk.stage.charges(desk.tenant, 1)
    lost = (UUID(charge["call_id"]), UUID(batch["id"].removeprefix("batch_")), 1)
    async with desk.stage.app.parts.engine.begin() as connection:
        organization_id = UUID(desk.tenant.organization_id)
        assert await add_lost(connection, organization_id, [lost]) == {lost[0]}
        assert await add_lost(connection, organization_id, [lost]) == set(), "counted once"

    async def is_returned() -> bool:
        return growth.of("batch_attempts_returned_total") == [1]

    await eventually(is_returned)
    assert growth.of("batch_returned_units_total USD") == [parse_amount(charge["amount"]["amount"], "USD")]


async def test_how_batches_stand(desk: Desk, backend: Scripted) -> None:
    nothing = dict.fromkeys(("validating", "in_progress", "finalizing", "cancelling"), 0)
    assert await stands(desk) == Standing(nothing, 0, 0, None)
    go_on = asyncio.Event()
    backend.script = patient(go_on)
    batch = await desk.create(jsonl(*(task(str(number)) for number in range(20))))
    most = desk.stage.settings.batch_calls

    async def runs() -> bool:
        return (await stands(desk)).running == most

    await eventually(runs)
    now = await stands(desk)
    assert (now.batches, now.waiting) == (nothing | {"in_progress": 1}, 20 - most)
    assert now.oldest is not None
    assert int(now.oldest.timestamp()) == batch["created_at"]

    # A worker looks, and shows it.
    async def is_shown() -> bool:
        return seen().get("batch_lines waiting") == 20 - most

    await eventually(is_shown)
    assert (seen()["batches_open in_progress"], seen()["batch_lines running"]) == (1, most)
    assert 0 <= seen()["batch_oldest_waiting_seconds"] < 3600

    # What is cancelled waits no more.
    await desk.ask("POST", f"/v1/batches/{batch['id']}/cancel")
    now = await stands(desk)
    assert (now.batches["cancelling"], now.waiting, now.running, now.oldest) == (1, 0, most, None)
    go_on.set()
    await desk.ended(batch)
    assert await stands(desk) == Standing(nothing, 0, 0, None)


async def test_lines_of_a_silent_gateway_wait(desk: Desk) -> None:
    batch = await desk.ended(await desk.create(jsonl(task("a"))))
    batch_id = UUID(batch["id"].removeprefix("batch_"))
    async with desk.stage.app.parts.engine.connect() as connection:
        await add_lines(connection, batch_id, [Line(number, str(number), None, b"{}") for number in range(1, 4)])
        await connection.execute(text("update batch set status = 'in_progress', total = 3, completed = 0"))
        values = "update batch_line set state = 'running', call_id = batch_id, due_at = now() + interval '1 minute'"
        await connection.execute(text(f"{values} * (line - 2)"))
        now = await standing(connection)
        await connection.rollback()
    assert (now.running, now.waiting) == (1, 2)
