"""Alerts: what is noticed, each once, and that it reaches those who asked for it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from billing.months import month_of
from billing.notices import notice
from billing.settlement import grant_credit, void_grant
from billing.store.spend_alerts import create_spend_alert, update_spend_alert
from gateway import destinations, worker
from gateway.deliveries import Post, deliver
from gateway.destinations import public_address
from gateway.signatures import check_signature
from models.errors import InvalidRequest
from models.ids import uuid7
from models.ledger import GrantKind
from models.money import Units
from tests.integration.webhooks.receiver import HOST, Receiver, trusted
from tests.integration.webhooks.world import Customer, Payments
from tests.rooms import PEPPER, MovableClock
from tests.stage import eventually
from tests.unit.stripe_samples import event, intent

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

DOLLAR = 10**9


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What names resolve to; the receiver's is taken for public where an endpoint is made."""
    known = {HOST: ["93.184.215.14"]}

    async def resolve(host: str, port: int) -> list[str]:
        return known[host]

    monkeypatch.setattr(destinations, "resolve", resolve)
    return known


def usd(dollars: int) -> dict[str, str]:
    return {"amount": f"{dollars}.000000000", "currency": "USD"}


async def notices(payments: Payments) -> int:
    return await notice(payments.parts.engine, payments.parts.clock.now())


async def alerts(payments: Payments, **query: Any) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = (await payments.shown("/alerts", **query))["data"]
    return data


async def grant(payments: Payments, customer: Customer, dollars: int, expires_at: datetime | None = None) -> UUID:
    now = payments.parts.clock.now()
    async with payments.parts.engine.begin() as connection:
        return await grant_credit(
            connection,
            organization_id=UUID(customer.id),
            currency="USD",
            kind=GrantKind.PAID,
            amount=Units(dollars * DOLLAR),
            priority=50,
            effective_at=now,
            expires_at=expires_at,
            scope=None,
            idempotency_key=str(uuid7(now)),
            now=now,
        )


async def spend(payments: Payments, customer: Customer, dollars: int, at: datetime | None = None) -> None:
    """Book that much use of a day, as the booking of charges sums it."""
    async with payments.parts.engine.begin() as connection:
        await connection.execute(
            text(
                "insert into usage_day"
                " (organization_id, billing_month, day, project_id, model, price_version_ids, amount)"
                " values (:id, date_trunc('month', cast(:day as date)), :day, :project, 'm', '{}', :amount)"
            ),
            {
                "id": UUID(customer.id),
                "day": (at or payments.parts.clock.now()).date(),
                "project": uuid7(payments.parts.clock.now()),
                "amount": dollars * DOLLAR,
            },
        )


async def endpoint(payments: Payments, receiver: Receiver, **fields: Any) -> dict[str, Any]:
    return await payments.made("/alert_endpoints", {"url": receiver.url} | fields)


# What is noticed -----------------------------------------------------------------------------------------------------


async def test_a_spend_alert_is_told_once_a_month_and_again_when_it_is_raised(
    payments: Payments, customer: Customer, clock: MovableClock
) -> None:
    values = {"organization_id": UUID(customer.id), "recipients": ["a@example.com"], "subject_prefix": None}
    async with payments.parts.engine.begin() as connection:
        row = await create_spend_alert(connection, clock.now(), values | {"amount": Units(5 * DOLLAR)})
    await spend(payments, customer, 4)
    assert await notices(payments) == 0
    await spend(payments, customer, 4)
    assert sorted(await asyncio.gather(notices(payments), notices(payments))) == [0, 1]
    assert await notices(payments) == 0
    [told] = await alerts(payments, event="spend_alert.reached")
    assert told["organization_id"] == customer.id
    assert told["data"] == {
        "spend_alert_id": str(row.id),
        "project_id": None,
        "month": f"{month_of(clock.now(), 'UTC'):%Y-%m}",
        "amount": usd(5),
        "spent": usd(8),
        "recipients": ["a@example.com"],
        "subject_prefix": None,
    }
    async with payments.parts.engine.begin() as connection:
        await update_spend_alert(connection, row.id, {"amount": Units(8 * DOLLAR)})
    assert await notices(payments) == 1
    clock.move(timedelta(days=32))
    assert await notices(payments) == 0
    await spend(payments, customer, 9)
    async with payments.parts.engine.begin() as connection:
        await update_spend_alert(connection, row.id, {"removed_at": clock.now()})
    assert await notices(payments) == 0


async def test_each_threshold_of_a_limit_is_told_once_a_month(
    payments: Payments, customer: Customer, clock: MovableClock
) -> None:
    limit = await payments.made(
        f"/organizations/{customer.id}/spend_limits",
        {"amount": usd(10), "is_hard": False, "alert_percents": [50, 80, 100]},
    )
    await spend(payments, customer, 4)
    assert await notices(payments) == 0
    await spend(payments, customer, 4)
    assert sorted(await asyncio.gather(notices(payments), notices(payments))) in ([0, 2], [1, 1])
    assert await notices(payments) == 0
    told = await alerts(payments, event="spend_limit.reached")
    assert [alert["data"]["percent"] for alert in told] in ([80, 50], [50, 80])
    month = f"{month_of(clock.now(), 'UTC'):%Y-%m}"
    assert (
        told[0]["data"].items()
        >= {
            "spend_limit_id": limit["id"],
            "month": month,
            "amount": usd(10),
            "spent": usd(8),
            "is_hard": False,
            "project_id": None,
        }.items()
    )
    clock.move(timedelta(days=32))
    assert await notices(payments) == 0
    await spend(payments, customer, 9)
    assert await notices(payments) == 2


async def test_what_is_booked_after_midnight_is_told_of_the_month_it_was_spent_in(
    payments: Payments, customer: Customer, clock: MovableClock
) -> None:
    await payments.made(f"/organizations/{customer.id}/spend_limits", {"amount": usd(10), "alert_percents": [80]})
    last_hour = clock.now()
    first = (month_of(last_hour, "UTC") + timedelta(days=32)).replace(day=1)
    clock.move(datetime(first.year, first.month, 1, 0, 30, tzinfo=last_hour.tzinfo) - last_hour)
    await spend(payments, customer, 9, at=last_hour)
    assert await notices(payments) == 1


async def test_a_low_balance_is_told_once_until_it_has_risen(payments: Payments, customer: Customer) -> None:
    path = f"/organizations/{customer.id}"
    assert (await payments.made(path, {"low_balance": usd(10)}))["low_balance"] == usd(10)
    grant_id = await grant(payments, customer, 20)
    assert await notices(payments) == 0
    async with payments.parts.engine.begin() as connection:
        await void_grant(connection, grant_id, payments.parts.clock.now())
    assert await notices(payments) == 1
    assert await notices(payments) == 0
    (low,) = await alerts(payments)
    assert low["event"] == "balance.low"
    assert low["data"] == {"balance": usd(0), "threshold": usd(10), "suggested_top_up": usd(20)}
    assert low["ended_at"] is None

    await grant(payments, customer, 10)
    assert await notices(payments) == 0
    (ended,) = await alerts(payments)
    assert ended["ended_at"] is not None
    await payments.made(path, {"low_balance": usd(11)})
    assert await notices(payments) == 1
    await payments.made(path, {"low_balance": None})
    assert await notices(payments) == 0
    assert all(alert["ended_at"] for alert in await alerts(payments))


async def test_the_top_up_that_an_alert_suggests_ends_it(payments: Payments, customer: Customer) -> None:
    await payments.made(f"/organizations/{customer.id}", {"low_balance": usd(5)})
    assert await notices(payments) == 1
    (low,) = await alerts(payments)
    assert low["data"]["suggested_top_up"] == usd(10)
    told = intent(metadata={"organization_id": customer.id}, amount_received=1_000)
    assert await payments.tell(event("payment_intent.succeeded", told)) == "booked"
    assert await notices(payments) == 0
    assert (await alerts(payments))[0]["ended_at"] is not None


async def test_a_grant_is_told_of_before_it_expires_and_not_after(
    payments: Payments, customer: Customer, clock: MovableClock
) -> None:
    expires_at = clock.now() + timedelta(days=8)
    grant_id = await grant(payments, customer, 3, expires_at)
    await grant(payments, customer, 4)
    assert await notices(payments) == 0
    clock.move(timedelta(days=1, minutes=1))
    assert await notices(payments) == 1
    (expiring,) = await alerts(payments)
    assert expiring["event"] == "credit_grant.expiring"
    assert expiring["data"].items() >= {"credit_grant_id": str(grant_id), "remaining": usd(3)}.items()
    assert datetime.fromisoformat(expiring["data"]["expires_at"]) == expires_at
    clock.move(timedelta(days=8))
    assert await notices(payments) == 0


async def test_a_grant_that_is_used_up_is_told_of_and_one_that_was_taken_is_not(
    payments: Payments, customer: Customer
) -> None:
    used, voided = await grant(payments, customer, 3), await grant(payments, customer, 4)
    async with payments.parts.engine.begin() as connection:
        await void_grant(connection, voided, payments.parts.clock.now())
        await connection.execute(text("update credit_grant set remaining = 0 where id = :id"), {"id": used})
    assert await notices(payments) == 1
    assert await notices(payments) == 0
    (alert,) = await alerts(payments)
    assert alert["event"] == "credit_grant.used_up"
    assert alert["data"] == {
        "credit_grant_id": str(used),
        "kind": "paid",
        "amount": usd(3),
        "remaining": usd(0),
    }


# Who reads them ------------------------------------------------------------------------------------------------------


async def test_an_organization_reads_its_own_and_nobody_elses(payments: Payments, customer: Customer) -> None:
    other = await payments.customer()
    for one in (customer, other):
        await payments.made(f"/organizations/{one.id}", {"low_balance": usd(5)})
    await payments.tell(event("payment_intent.succeeded", intent(metadata={})))
    assert await notices(payments) == 2
    for one in (customer, other):
        answer = await payments.client.get("/v1/billing/alerts", headers=one.headers)
        assert answer.status_code == 200, answer.text
        assert [alert["organization_id"] for alert in answer.json()["data"]] == [one.id]
        assert "deliveries" not in answer.json()["data"][0]
    assert len(await alerts(payments)) == 3
    assert len(await alerts(payments, organization_id=other.id)) == 1
    for headers in ({}, payments.headers({})):
        assert (await payments.client.get("/v1/billing/alerts", headers=headers)).status_code in (401, 403)
    page = await payments.client.get(
        "/v1/billing/alerts", headers=other.headers, params={"organization_id": customer.id}
    )
    assert page.status_code == 422


# Delivery ------------------------------------------------------------------------------------------------------------


async def test_an_alert_arrives_signed_and_once(
    payments: Payments, customer: Customer, receiver: Receiver, post: Post, clock: MovableClock
) -> None:
    made = await endpoint(payments, receiver)
    await payments.made(f"/organizations/{customer.id}", {"low_balance": usd(5)})
    await notices(payments)
    engine = payments.parts.engine
    assert await deliver(engine, post, clock.now()) == 1
    clock.move(timedelta(hours=2))
    assert await deliver(engine, post, clock.now()) == 0
    (received,) = receiver.received
    (alert,) = await alerts(payments)
    assert received.path == "/alerts?of=tollgate"
    assert received.headers["host"] == f"{HOST}:{receiver.port}"
    assert received.headers["tollgate-event-id"] == received.told["id"] == alert["id"]
    assert {name: received.told[name] for name in ("event", "organization_id", "data")} == {
        name: alert[name] for name in ("event", "organization_id", "data")
    }
    signed = received.headers["tollgate-signature"].encode()
    at = int(signed.split(b",")[0].removeprefix(b"t="))
    check_signature(signed, received.body, made["value"].encode(), at, 300)
    (delivery,) = alert["deliveries"]
    assert (delivery["attempts"], delivery["last_status"], delivery["next_at"]) == (1, 200, None)
    assert delivery["delivered_at"] is not None


async def test_a_worker_notices_and_delivers(
    payments: Payments,
    customer: Customer,
    receiver: Receiver,
    post: Post,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await endpoint(payments, receiver)
    await payments.made(f"/organizations/{customer.id}", {"low_balance": usd(5)})
    monkeypatch.setattr(worker, "Post", lambda pepper: post)
    stop = asyncio.Event()
    working = asyncio.create_task(worker.run_worker(payments.parts.settings, stop))

    async def arrived() -> bool:
        return bool(receiver.received)

    await eventually(arrived)
    stop.set()
    await working
    assert [received.told["event"] for received in receiver.received] == ["balance.low"]


async def test_endpoints_get_what_they_asked_for(
    payments: Payments, customer: Customer, receiver: Receiver, post: Post, clock: MovableClock
) -> None:
    other = await payments.customer()
    await endpoint(payments, receiver, organization_id=other.id)
    await endpoint(payments, receiver, events=["credit_grant.used_up"])
    own = await endpoint(payments, receiver, organization_id=customer.id, events=["balance.low"])
    removed = await endpoint(payments, receiver)
    assert (await payments.made(f"/alert_endpoints/{removed['id']}/remove"))["removed_at"] is not None
    await payments.made(f"/organizations/{customer.id}", {"low_balance": usd(5)})
    await payments.tell(event("payment_intent.succeeded", intent(metadata={})))
    await notices(payments)
    assert await deliver(payments.parts.engine, post, clock.now()) == 1
    (low,) = await alerts(payments, event="balance.low")
    assert [delivery["endpoint_id"] for delivery in low["deliveries"]] == [own["id"]]
    (unbooked,) = await alerts(payments, event="payment.unbooked")
    assert unbooked["deliveries"] == []


async def test_a_receiver_that_fails_is_tried_again_until_it_has_taken_it(
    payments: Payments, customer: Customer, receiver: Receiver, post: Post, clock: MovableClock
) -> None:
    await endpoint(payments, receiver)
    await payments.made(f"/organizations/{customer.id}", {"low_balance": usd(5)})
    await notices(payments)
    receiver.status = 500
    for attempt in range(1, 4):
        assert await deliver(payments.parts.engine, post, clock.now()) == 1
        assert await deliver(payments.parts.engine, post, clock.now()) == 0
        assert len(receiver.received) == attempt
        clock.move(timedelta(hours=1.5))
    receiver.status = 204
    await deliver(payments.parts.engine, post, clock.now())
    assert len({received.body for received in receiver.received}) == 1
    assert len({received.headers["tollgate-event-id"] for received in receiver.received}) == 1
    (alert,) = await alerts(payments)
    assert (alert["deliveries"][0]["attempts"], alert["deliveries"][0]["last_status"]) == (4, 204)


async def test_after_a_day_an_alert_is_given_up(
    payments: Payments, customer: Customer, receiver: Receiver, post: Post, clock: MovableClock
) -> None:
    await endpoint(payments, receiver)
    await payments.made(f"/organizations/{customer.id}", {"low_balance": usd(5)})
    await notices(payments)
    receiver.status = 503
    for _ in range(20):
        await deliver(payments.parts.engine, post, clock.now())
        clock.move(timedelta(hours=1.6))
    (alert,) = await alerts(payments)
    (delivery,) = alert["deliveries"]
    assert (delivery["next_at"], delivery["delivered_at"], delivery["last_status"]) == (None, None, 503)
    assert 10 <= delivery["attempts"] == len(receiver.received) <= 20


async def test_what_a_dead_worker_had_taken_is_delivered_by_another(
    payments: Payments, customer: Customer, receiver: Receiver, post: Post, clock: MovableClock
) -> None:
    await endpoint(payments, receiver)
    await payments.made(f"/organizations/{customer.id}", {"low_balance": usd(5)})
    await notices(payments)

    class Killed(BaseException):
        pass

    class Dies(Post):
        async def send(self, delivery: Any) -> Any:
            raise Killed

    with pytest.raises(Killed):
        await deliver(payments.parts.engine, Dies(PEPPER), clock.now())
    assert await deliver(payments.parts.engine, post, clock.now()) == 0
    clock.move(timedelta(minutes=2))
    assert await deliver(payments.parts.engine, post, clock.now()) == 1
    assert len(receiver.received) == 1


async def test_of_two_workers_one_delivers(
    payments: Payments, customer: Customer, receiver: Receiver, post: Post, clock: MovableClock
) -> None:
    await endpoint(payments, receiver)
    await payments.made(f"/organizations/{customer.id}", {"low_balance": usd(5)})
    await notices(payments)
    made = await asyncio.gather(*(deliver(payments.parts.engine, post, clock.now()) for _ in range(4)))
    assert sum(made) == 1
    assert len(receiver.received) == 1


async def test_an_endpoint_that_is_removed_gets_nothing_more(
    payments: Payments, customer: Customer, receiver: Receiver, post: Post, clock: MovableClock
) -> None:
    made = await endpoint(payments, receiver)
    await payments.made(f"/organizations/{customer.id}", {"low_balance": usd(5)})
    await notices(payments)
    await payments.made(f"/alert_endpoints/{made['id']}/remove")
    assert await deliver(payments.parts.engine, post, clock.now()) == 0
    assert receiver.received == []


async def test_a_secret_is_shown_once_and_stored_sealed(payments: Payments, receiver: Receiver) -> None:
    made = await payments.made("/alert_endpoints", {"url": receiver.url}, idempotency_key="one")
    assert made["value"].startswith("tg_hook_")
    assert await payments.made("/alert_endpoints", {"url": receiver.url}, idempotency_key="one") == made
    (listed,) = (await payments.shown("/alert_endpoints"))["data"]
    assert "value" not in listed
    async with payments.parts.engine.connect() as connection:
        stored = (await connection.execute(text("select alert_endpoint::text from alert_endpoint"))).scalar_one()
        kept = (await connection.execute(text("select idempotency::text from idempotency"))).scalar_one()
    assert made["value"] not in stored + kept
    (entry,) = (await payments.shown("/audit_logs", action="alert_endpoint.created"))["data"]
    assert made["value"] not in str(entry)


# Destinations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["http://receiver.test/", "https://127.0.0.1/", "https://inside.test/", "https://nowhere.test/", "file:///etc/x"],
)
async def test_an_endpoint_inside_is_refused(payments: Payments, names: dict[str, list[str]], url: str) -> None:
    names |= {"inside.test": ["93.184.215.14", "10.0.0.7"], "nowhere.test": [], "127.0.0.1": ["127.0.0.1"]}
    answer = await payments.post("/alert_endpoints", {"url": url})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "url"
    assert await payments.count("alert_endpoint") == 0


async def test_a_name_that_leads_inside_later_gets_nothing(
    payments: Payments, customer: Customer, receiver: Receiver, clock: MovableClock
) -> None:
    """DNS rebinding: public when the endpoint was made, this machine when the alert is sent."""
    await endpoint(payments, receiver)
    await payments.made(f"/organizations/{customer.id}", {"low_balance": usd(5)})
    await notices(payments)
    looked_up = []

    async def resolve(host: str, port: int) -> list[str]:
        looked_up.append((host, port))
        return ["127.0.0.1"]

    async def find(url: Any) -> str:
        return await public_address(url, resolve)

    post = Post(PEPPER, find_address=find, trusted=trusted())
    assert await deliver(payments.parts.engine, post, clock.now()) == 1
    await post.close()
    assert looked_up == [(HOST, receiver.port)]
    assert receiver.connections == 0
    (alert,) = await alerts(payments)
    assert "public addresses only" in alert["deliveries"][0]["last_error"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(
    payments: Payments, customer: Customer, receiver: Receiver, post: Post, clock: MovableClock, status: int
) -> None:
    await endpoint(payments, receiver)
    await payments.made(f"/organizations/{customer.id}", {"low_balance": usd(5)})
    await notices(payments)
    receiver.status, receiver.headers = status, (f"location: https://{HOST}:{receiver.port}/inside",)
    await deliver(payments.parts.engine, post, clock.now())
    assert [received.path for received in receiver.received] == ["/alerts?of=tollgate"]
    (alert,) = await alerts(payments)
    assert (alert["deliveries"][0]["last_status"], alert["deliveries"][0]["delivered_at"]) == (status, None)


async def test_an_answer_without_end_is_not_read(
    payments: Payments, customer: Customer, receiver: Receiver, post: Post, clock: MovableClock
) -> None:
    await endpoint(payments, receiver)
    await payments.made(f"/organizations/{customer.id}", {"low_balance": usd(5)})
    await notices(payments)
    receiver.is_endless = True
    assert await deliver(payments.parts.engine, post, clock.now()) == 1
    (alert,) = await alerts(payments)
    assert alert["deliveries"][0]["delivered_at"] is not None


async def test_a_certificate_of_another_name_gets_nothing(
    payments: Payments, customer: Customer, receiver: Receiver, names: dict[str, list[str]], clock: MovableClock
) -> None:
    names["other.test"] = ["93.184.215.14"]
    await payments.made("/alert_endpoints", {"url": f"https://other.test:{receiver.port}/"})
    await payments.made(f"/organizations/{customer.id}", {"low_balance": usd(5)})
    await notices(payments)

    async def find(url: Any) -> str:
        return "127.0.0.1"

    post = Post(PEPPER, find_address=find, trusted=trusted())
    await deliver(payments.parts.engine, post, clock.now())
    await post.close()
    assert receiver.received == []
    (alert,) = await alerts(payments)
    assert "cannot be reached" in alert["deliveries"][0]["last_error"]


async def test_an_alert_that_was_changed_on_its_way_is_known(
    payments: Payments, customer: Customer, receiver: Receiver, post: Post, clock: MovableClock
) -> None:
    made = await endpoint(payments, receiver)
    await payments.made(f"/organizations/{customer.id}", {"low_balance": usd(5)})
    await notices(payments)
    await deliver(payments.parts.engine, post, clock.now())
    (received,) = receiver.received
    signed = received.headers["tollgate-signature"].encode()
    at = int(signed.split(b",")[0].removeprefix(b"t="))
    changed = replace(received, body=received.body.replace(b"balance.low", b"balance.LOW"))
    assert changed.body != received.body
    with pytest.raises(InvalidRequest, match="missing or wrong"):
        check_signature(signed, changed.body, made["value"].encode(), at, 300)
