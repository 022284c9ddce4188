"""Routes and commands of finance: periods, the ledger, shares, costs, and what a grant was spent by."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import typer
from typer.testing import CliRunner

from billing.charges import Measured
from billing.charges import charge as close
from billing.months import bounds_of, month_of
from billing.periods import period_id
from billing.sealing import seal_postings
from billing.settlement import book_shard
from billing.store.shards import epochs
from billing.verify import verify
from gateway.cli import finance
from models.call import CallOrigin, Charge, Endpoint, Hold, HoldRequest
from models.catalog import Rates
from models.ids import uuid7
from models.money import MilliUnits, Units
from models.usage import Ending, TokenUsage, UsageSource
from tests.integration.operator.test_cli_operate import CommandLine, command_line
from tests.integration.operator.world import World, refusal
from tests.rooms import MovableClock

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("open_shards")]

__all__ = ["command_line"]

THIS = period_id(month_of(datetime.now(UTC), "UTC"))
_PRICE = MilliUnits(1_000_000)
USD = "USD"


class Seller:
    """An operator with a customer that calls."""

    def __init__(self, world: World, clock: MovableClock) -> None:
        self.world = world
        self.clock = clock
        self.project: dict[str, Any] = {}

    async def open(self) -> str:
        """A customer with ten dollars, and a model; the path of the customer."""
        await self.world.model()
        await self.world.price()
        self.project = await self.world.project()
        path = f"/organizations/{self.project['organization_id']}"
        await self.world.made(f"{path}/credit_grants", {"amount": {"amount": "10", "currency": USD}})
        return path

    async def call(self) -> Charge:
        """A booked call of a thousand tokens, for a millionth of a dollar each."""
        parts, now = self.world.parts, self.clock.now()
        organization_id = UUID(self.project["organization_id"])
        shard = organization_id.int % 16
        origin = CallOrigin(
            call_id=uuid7(now),
            organization_id=organization_id,
            project_id=UUID(self.project["id"]),
            api_key_id=uuid7(now),
            shard=shard,
            currency=USD,
            endpoint=Endpoint.CHAT_COMPLETIONS,
            model="tiny",
            streamed=False,
            created_at=now,
        )
        rates = Rates(_PRICE, _PRICE, _PRICE, _PRICE, _PRICE)
        async with parts.engine.connect() as connection:
            epoch = (await epochs(connection))[shard]
        hold = await parts.hot.hold(HoldRequest(origin, Units(1_000_000), rates, 1_000, 1_000), epoch)
        assert isinstance(hold, Hold), hold
        measured = Measured(TokenUsage(input=900, output=100), UsageSource.BACKEND)
        charge = close(hold, measured, ending=Ending.FINISHED, deployment="on-tiny", ended_at=now)
        assert await parts.hot.settle(hold, charge)
        booked = await book_shard(parts.engine, parts.hot, shard)
        assert booked.charges == 1
        return charge


@pytest.fixture
def seller(world: World, clock: MovableClock) -> Seller:
    """An operator that sells."""
    return Seller(world, clock)


def _past_the_month(clock: MovableClock) -> None:
    clock.move(bounds_of(month_of(clock.now(), "UTC"), "UTC")[1] - clock.now() + timedelta(minutes=1))


async def test_a_grant_shows_its_draws(seller: Seller) -> None:
    path = await seller.open()
    for _ in range(3):
        await seller.call()
    [grant] = (await seller.world.shown(f"{path}/credit_grants"))["data"]
    first = await seller.world.shown(f"{path}/credit_grants/{grant['id']}/draws", limit=2)
    assert first["has_more"]
    rest = await seller.world.shown(f"{path}/credit_grants/{grant['id']}/draws", after=first["last_id"])
    draws = first["data"] + rest["data"]
    assert [(draw["kind"], draw["amount"]["amount"]) for draw in draws] == [("charge_batch", "0.001000000")] * 3
    postings = await seller.world.shown("/ledger/postings", kind="charge_batch")
    assert [draw["id"] for draw in draws] == [posting["id"] for posting in postings["data"]][::-1]
    other = await seller.world.organization()
    response = await seller.world.get(f"/organizations/{other['id']}/credit_grants/{grant['id']}/draws")
    assert response.status_code == 404


async def test_a_grant_is_given_with_a_rollover(seller: Seller) -> None:
    path = await seller.open()
    asked = {"amount": {"amount": "5", "currency": USD}, "rollover_max": {"amount": "2", "currency": USD}}
    status, param, message = refusal(await seller.world.post(f"{path}/credit_grants", asked))
    assert (status, param) == (400, "rollover_max")
    assert "expires_at" in message
    soon = (seller.clock.now() + timedelta(days=1)).isoformat()
    grant = await seller.world.made(f"{path}/credit_grants", asked | {"expires_at": soon})
    assert (grant["rollover_max"]["amount"], grant["rolled_from"]) == ("2.000000000", None)


async def test_the_ledger_is_read(seller: Seller) -> None:
    path = await seller.open()
    await seller.call()
    await seal_postings(seller.world.parts.engine)
    accounts = (await seller.world.shown("/ledger/accounts", organization_id="seller", limit=100))["data"]
    moved = {each["kind"]: each for each in accounts if each["balance"]["amount"] != "0.000000000"}
    assert {kind: (each["normal"], each["balance"]["amount"]) for kind, each in moved.items()} == {
        "cash_clearing": ("debit", "10.000000000"),
        "revenue": ("credit", "0.001000000"),
    }
    entries = await seller.world.shown(f"/ledger/accounts/{moved['revenue']['id']}/entries")
    assert [(each["kind"], each["credits"]["amount"]) for each in entries["data"]] == [("charge_batch", "0.001000000")]
    [of_customer] = (await seller.world.shown("/ledger/accounts", kind="customer_prepaid", currency=USD))["data"]
    statement = await seller.world.shown(f"/ledger/accounts/{of_customer['id']}/entries", limit=1)
    assert (statement["has_more"], statement["data"][0]["credits"]["amount"]) == (True, "10.000000000")
    rest = await seller.world.shown(f"/ledger/accounts/{of_customer['id']}/entries", after=statement["last_id"])
    assert [each["debits"]["amount"] for each in rest["data"]] == ["0.001000000"]
    assert (await seller.world.get("/ledger/accounts/999999/entries")).status_code == 404

    newest, topup = (await seller.world.shown("/ledger/postings"))["data"]
    assert (newest["kind"], newest["billing_month"], newest["seal"]["seq"]) == ("charge_batch", THIS, 2)
    [transfer] = newest["transfers"]
    assert (transfer["debit"]["kind"], transfer["credit"]["kind"]) == ("customer_prepaid", "revenue")
    assert transfer["debit"]["organization_id"] == path.removeprefix("/organizations/")
    assert topup["seal"]["digest"] != newest["seal"]["digest"]
    until = topup["booked_at"]
    assert (await seller.world.shown("/ledger/postings", starts_at=until, kind="refund"))["data"] == []

    balance = await seller.world.shown("/ledger/trial_balance")
    assert {line["account"]: line["balance"]["amount"] for line in balance["lines"]} == {
        "cash_clearing": "10.000000000",
        "customer_prepaid": "9.999000000",
        "revenue": "0.001000000",
    }
    assert (balance["totals"][USD]["amount"], balance["is_closed"]) == ("10.001000000", False)


async def test_a_period_is_closed(seller: Seller, clock: MovableClock) -> None:
    assert (await seller.world.shown("/periods"))["data"] == []
    await seller.open()
    await seller.call()
    status, _, message = refusal(await seller.world.post(f"/periods/{THIS}/close"))
    assert (status, "has not ended" in message) == (409, True)
    assert refusal(await seller.world.post("/periods/november/close"))[0] == 400
    _past_the_month(clock)
    listed = await seller.world.shown("/periods", limit=1)
    assert (listed["has_more"], [each["status"] for each in listed["data"]]) == (True, ["open"])
    closed = await seller.world.made(f"/periods/{THIS}/close", idempotency_key="a")
    assert (closed["status"], closed["closed_by"].partition(":")[0]) == ("closed", "operator")
    assert await seller.world.made(f"/periods/{THIS}/close", idempotency_key="a") == closed
    assert await seller.world.made(f"/periods/{THIS}/close") == closed
    kept = await seller.world.shown("/ledger/trial_balance", period=THIS)
    assert (kept["is_closed"], kept["digest"]) == (True, closed["digest"])
    both = {"period": THIS, "until": clock.now().isoformat()}
    assert refusal(await seller.world.get("/ledger/trial_balance", **both))[:2] == (400, "until")
    assert [each["status"] for each in (await seller.world.shown("/periods"))["data"]] == ["closed", "open"]
    actions = [each["action"] for each in (await seller.world.shown("/audit_logs"))["data"]]
    assert "period.closed" in actions


async def test_a_share_is_published_posted_and_ended(seller: Seller, clock: MovableClock) -> None:
    path = await seller.open()
    organization_id = path.removeprefix("/organizations/")
    terms = {"role": "reseller", "party": "Friend", "ppm": 250_000, "organization_id": organization_id}
    made = await seller.world.made("/revenue_shares", terms, idempotency_key="a")
    assert await seller.world.made("/revenue_shares", terms, idempotency_key="a") == made
    assert refusal(await seller.world.post("/revenue_shares", terms))[0] == 409
    assert "add up to" in refusal(await seller.world.post("/revenue_shares", terms | {"party": "x", "ppm": 800_000}))[2]
    assert refusal(await seller.world.post("/revenue_shares", terms | {"party": "x", "model": "none"}))[:2] == (
        400,
        "model",
    )
    await seller.call()
    statement = await seller.world.shown("/revenue_shares/statement", party="Friend", period=THIS)
    assert statement["totals"] == {USD: {"amount": "0.000250000", "currency": USD}}
    assert [(line["model"], line["role"]) for line in statement["lines"]] == [("tiny", "reseller")]
    clock.move(timedelta(seconds=1))
    ended = await seller.world.made(f"/revenue_shares/{made['id']}/end")
    assert ended["effective_to"] > ended["effective_from"]
    assert (await seller.world.shown("/revenue_shares"))["data"] == [ended]
    clock.move(timedelta(seconds=1))
    await seller.call()
    assert (await seller.world.shown("/revenue_shares/statement", party="Friend", period=THIS)) == statement


async def test_costs_are_declared_and_posted(seller: Seller) -> None:
    path = await seller.open()
    await seller.call()
    first = f"{THIS}-01"
    cost = {"model": "tiny", "kind": "input_token", "price": "0.10", "effective_from": first}
    made = await seller.world.made("/model_costs", cost)
    assert (made["price"], made["effective_to"]) == ("0.100000", None)
    hour = await seller.world.made("/model_costs", cost | {"kind": "gpu_hour", "price": "2.10"})
    assert hour["price"] == "2.100000000"
    for wrong, param in (
        ({"price": "-1"}, ""),
        ({"kind": "gpu_hour", "price": "-1"}, "price"),
        ({"effective_to": first}, "effective_to"),
        ({"model": "none"}, "model"),
    ):
        assert refusal(await seller.world.post("/model_costs", cost | wrong))[:2] == (400, param)
    use = {"day": first, "model": "tiny", "backend": "on-tiny", "gpu_seconds": 36}
    assert (await seller.world.made("/machine_use", use))["watt_hours"] == 0
    run = await seller.world.made("/costs/run", {"month": THIS}, idempotency_key="a")
    assert [each["amount"]["amount"] for each in run["data"]] == ["0.021090000"]
    assert await seller.world.made("/costs/run", {"month": THIS}, idempotency_key="a") == run
    assert (await seller.world.made("/costs/run", {"month": THIS}))["data"] == []
    margin = await seller.world.shown("/reports/margin", month=THIS)
    [line] = margin["data"]
    assert (line["organization_id"], line["calls"]) == (path.removeprefix("/organizations/"), 1)
    assert {name: line[name]["amount"] for name in ("revenue", "shares", "costs", "margin")} == {
        "revenue": "0.001000000",
        "shares": "0.000000000",
        "costs": "0.021090000",
        "margin": "-0.020090000",
    }
    assert margin["totals"][USD]["margin"] == line["margin"]
    assert [each["kind"] for each in (await seller.world.shown("/model_costs"))["data"]] == ["input_token", "gpu_hour"]


async def _run(command_line: CommandLine, *arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    finance.register(app)
    env = {"TOLLGATE_URL": command_line.url, "TOLLGATE_OPERATOR_KEY": command_line.operator_key}
    result = await asyncio.to_thread(CliRunner().invoke, app, list(arguments), env=env)
    return result.exit_code, result.output


async def test_a_month_by_the_command_line(seller: Seller, command_line: CommandLine, clock: MovableClock) -> None:
    await seller.open()

    async def answer(*arguments: str) -> Any:
        code, output = await _run(command_line, *arguments, "--json")
        assert code == 0, output
        return json.loads(output)

    made = await answer("share", "add", "model_owner", "Maker", "100000", "--model", "tiny")
    await answer("cost", "set", "tiny", "kwh", "0.20", "--from", f"{THIS}-01")
    await answer("cost", "declare", "tiny", "on-tiny", f"{THIS}-01", "--watt-hours", "1")
    await seller.call()
    clock.move(timedelta(seconds=1))
    assert (await answer("share", "end", made["id"]))["effective_to"] is not None
    assert [each["id"] for each in await answer("share", "list")] == [made["id"]]
    assert len(await answer("cost", "list")) == 1
    assert (await answer("cost", "post", THIS))["data"][0]["amount"]["amount"] == "0.000200000"
    _past_the_month(clock)
    assert (await answer("period", "close", THIS, "--yes"))["status"] == "closed"
    assert [each["status"] for each in await answer("period", "list")] == ["closed", "open"]
    assert (await answer("report", "margin", THIS))["totals"][USD]["margin"]["amount"] == "0.000700000"
    code, output = await _run(command_line, "report", "margin", THIS)
    assert (code, "USD: revenue 0.001000000, shares 0.000100000, costs 0.000200000" in output) == (0, True), output
    code, output = await _run(command_line, "period", "close", "2020-01", "--yes")
    assert (code, "Refused (period): The books begin with" in output) == (2, True), output
    report = await verify(seller.world.parts.engine, None)
    # The calls of this test have rates of their own.
    assert {check.name for check in report.checks if not check.ok} == {"prices"}
