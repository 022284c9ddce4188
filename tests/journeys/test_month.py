"""A month from the price list to the closed period, by command and by API, as in `docs/guides/month.md`.

Every total is derived twice, by ways that share no code: from the receipts and from the invoices, from the invoices and
from the journal, from the exports and from the ledger.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from gateway.cli import make_app
from gateway.embedded.redis import Redis
from tests.conftest import Database
from tests.scripted import DONE, Asked, end, open_stream, said, scripted_backend, send, usage
from tests.stage import Stage, eventually, raise_curtain

pytestmark = pytest.mark.anyio

OTHERS = 16
"""Small customers beside the four that have a story; with them twenty invoices are issued at once."""


@dataclass
class Customer:
    """An organization with a project and a key."""

    id: str
    currency: str
    api_key: str
    admin_key: str

    @property
    def headers(self) -> dict[str, str]:
        """Credentials of a developer."""
        return {"authorization": f"Bearer {self.api_key}"}


@dataclass
class Desk:
    """The operator's terminal, beside a running Tollgate. `transcript` is what a reader of the guide sees."""

    stage: Stage
    transcript: list[str] = field(default_factory=list)

    async def run(self, *arguments: str, is_refused: bool = False) -> str:
        """What a command says; the exit code is 1 for what contradicts the books, 2 for what makes no sense."""
        operator_key = self.stage.operator_headers["authorization"].removeprefix("Bearer ")
        environment = {"TOLLGATE_URL": self.stage.base_url, "TOLLGATE_OPERATOR_KEY": operator_key, "COLUMNS": "118"}
        environment |= {
            "TOLLGATE_DATABASE_URL": self.stage.settings.database_url.get_secret_value(),
            "TOLLGATE_REDIS_URL": self.stage.settings.redis_url.get_secret_value(),
        }
        result = await asyncio.to_thread(CliRunner().invoke, make_app(), list(arguments), env=environment)
        text = result.output
        assert result.exit_code in ((1, 2) if is_refused else (0,)), text
        quoted = " ".join(part if re.fullmatch(r"[\w./:+-]+", part) else f'"{part}"' for part in arguments)
        self.transcript.append(f"$ tollgate {quoted}\n{text.rstrip()}")
        return text

    async def json(self, *arguments: str) -> Any:
        """What a command answers, for machines; not in the transcript."""
        text = await self.run(*arguments, "--json")
        self.transcript.pop()
        return json.loads(text)

    async def customer(self, name: str, *options: str, currency: str = "USD") -> Customer:
        """A new organization, as an operator makes one."""
        made = await self.json("org", "create", name, "--currency", currency, *options)
        project = await self.json("project", "create", made["id"], "main")
        key = await self.json("key", "create", project["id"], "developer")
        admin = await self.stage.operate("POST", f"/organizations/{made['id']}/admin_keys", json={"name": "finance"})
        return Customer(made["id"], currency, key["value"], admin["value"])

    async def call(self, customer: Customer, times: int = 1) -> None:
        """Answered calls: five tokens in, two out."""
        for _ in range(times):
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
            url = f"{self.stage.base_url}/v1/chat/completions"
            answer = await self.stage.client.post(url, json=body, headers=customer.headers)
            assert answer.status_code == 200, answer.text

    async def charges(self, customer: Customer, count: int) -> list[dict[str, Any]]:
        """The receipts of a customer, once there are so many."""

        async def booked() -> list[dict[str, Any]] | None:
            url = f"{self.stage.base_url}/v1/billing/charges"
            answer = await self.stage.client.get(
                url, params={"limit": 100}, headers={"authorization": f"Bearer {customer.admin_key}"}
            )
            found: list[dict[str, Any]] = answer.json()["data"]
            return found if len(found) >= count else None

        found: list[dict[str, Any]] = await eventually(booked)
        assert len(found) == count
        return found


def money(shape: dict[str, str]) -> Decimal:
    """An amount of the API."""
    return Decimal(shape["amount"])


@pytest.fixture
async def books(postgres: Database, redis: Redis) -> AsyncIterator[Any]:
    """Raises the curtain at a moment of the month."""
    turn = asyncio.Event()

    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await open_stream(writer)
        await send(writer, said("hello"))
        if "over midnight" in json.dumps(asked.body):
            await turn.wait()
        await send(writer, said(" there", finish="stop"), usage(5, 2), DONE)
        await end(writer)

    async with scripted_backend(script) as backend:

        @asynccontextmanager
        async def at(moment: str) -> AsyncIterator[Desk]:
            clock = datetime.fromisoformat(moment).replace(tzinfo=UTC)
            async with raise_curtain(postgres.app_url, redis.url, clock=clock) as stage:
                yield Desk(stage)

        at.backend, at.turn = backend, turn  # type: ignore[attr-defined]
        yield at


async def test_a_month_from_price_list_to_closed_period(books: Any, tmp_path: Path) -> None:
    told: list[str] = []

    # The operator opens a shop ---------------------------------------------------------------------------------------

    async with books("2026-11-05T09:00:00") as desk:
        await desk.stage.operate("POST", "/backends", json={"name": "gpu", "kind": "openai", "url": books.backend.url})
        deployment = {"backend": "gpu", "backend_model": "x", "weight": 1}
        await desk.stage.operate(
            "POST", "/models", json={"id": "m", "context_length": 4096, "deployments": [deployment]}
        )
        prices = ("--from", "2026-11-01T00:00:00Z")
        await desk.run("price", "set", "m", "--input", "15000", "--output", "60000", *prices)
        await desk.run(
            *("price", "set", "m", "--input", "15000000", "--output", "60000000", "--currency", "KRW"), *prices
        )
        # In the middle of the month input becomes dearer.
        await desk.run("price", "set", "m", "--input", "20000", "--from", "2026-11-15T00:00:00Z")
        await desk.run(
            *("seller", "set", "Open Models Co., Ltd.", "--country", "KR", "--tax-id", "120-81-47521"),
            *("--address", "1 Teheran-ro, Seoul", "--payment-details", "Bank of Seoul 123-456-789"),
        )
        await desk.run(
            "tax", "set", "VAT", "--rate", "10", "--country", "KR", "--effective-from", "2026-01-01T00:00:00Z"
        )

        line = ("--billing-mode", "postpaid", "--credit-limit")
        acme = await desk.customer("Acme Inc.", *line, "1000", "--country", "US", "--email", "ap@acme.example")
        nova = await desk.customer("Nova LLC", "--billing-mode", "hybrid", "--credit-limit", "100", "--country", "US")
        solo = await desk.customer("Solo Dev", "--country", "US")
        hanbit = await desk.customer(
            *("한빛 주식회사", *line, "1000000", "--country", "KR", "--tax-id", "220-81-62517", "--language", "ko"),
            *("--timezone", "Asia/Seoul"),
            currency="KRW",
        )
        others = [await desk.customer(f"Customer {number}", *line, "50") for number in range(OTHERS)]
        await desk.run("share", "add", "reseller", "Friend Ltd", "100000", "--org", acme.id)
        await desk.run("org", "grant", nova.id, "0.30")
        await desk.run("org", "grant", solo.id, "20", "--kind", "promo", "--expires-at", "2026-11-10T00:00:00Z")
        await desk.run("org", "grant", solo.id, "20")

        await desk.call(acme, 3)
        await desk.call(nova, 2)
        await desk.call(solo)
        await desk.call(hanbit, 3)
        await desk.charges(hanbit, 3)
        told += desk.transcript

    # The middle of the month: a new price, and a grant that has expired with money left ------------------------------

    async with books("2026-11-16T09:00:00") as desk:

        async def expired() -> bool:
            url = f"/organizations/{solo.id}/balance"
            return bool(money((await desk.stage.operate("GET", url))["balance"]) == Decimal("20"))

        await eventually(expired)
        await desk.call(acme, 2)
        await desk.call(nova)
        await desk.call(solo)
        await desk.call(hanbit)
        await asyncio.gather(*(desk.call(each) for each in others))
        for each in others:
            await desk.charges(each, 1)
        nova_charges = await desk.charges(nova, 3)

    # The second call of Nova crosses from its credit to what it owes.
    [crossing] = [charge for charge in nova_charges if len(charge["funding"]) == 2]
    assert {money(part["amount"]) for part in crossing["funding"]} == {Decimal("0.105"), Decimal("0.09")}

    # The end of the month: a call that ends in the next one ----------------------------------------------------------

    async with books("2026-11-30T23:59:57") as desk:
        body = {"model": "m", "messages": [{"role": "user", "content": "over midnight"}], "max_tokens": 5}
        url = f"{desk.stage.base_url}/v1/chat/completions"
        call = asyncio.create_task(desk.stage.client.post(url, json=body, headers=acme.headers))
        clock = desk.stage.app.parts.clock

        async def is_december() -> bool:
            return bool(clock.now() > datetime(2026, 12, 1, 0, 0, 1, tzinfo=UTC))

        await eventually(is_december)
        books.turn.set()
        assert (await call).status_code == 200
        acme_charges = await desk.charges(acme, 6)

    # The accountant closes the month ---------------------------------------------------------------------------------

    async with books("2026-12-02T10:00:00") as desk:
        await desk.run("invoice", "run", "--month", "2026-11")
        drafts = (await desk.stage.operate("GET", "/invoices?status=draft&limit=100"))["data"]
        assert len(drafts) == OTHERS + 4
        issued = await asyncio.gather(
            *(desk.stage.operate("POST", f"/invoices/{draft['id']}/finalize") for draft in drafts)
        )
        assert sorted(each["number"] for each in issued) == [f"INV-{n:06d}" for n in range(1, OTHERS + 5)], "no gap"
        by_owner = {each["organization_id"]: each for each in issued}
        again = await desk.json("invoice", "run", "--month", "2026-11", "--finalize")
        assert {each["number"] for each in again} == {each["number"] for each in issued}, "harmless"

        # Receipts and invoices: the same, to the last unit.
        november = [charge for charge in acme_charges if charge["ended_at"] < "2026-12"]
        assert len(november) == 5
        assert exact(by_owner[acme.id]) == sum(money(charge["amount"]) for charge in november) == Decimal("1.025")
        unit_prices = {line["unit_price"] for line in by_owner[acme.id]["lines"] if line["meter"] == "input"}
        assert {Decimal(price) for price in unit_prices} == {Decimal(15000), Decimal(20000)}
        assert figures(by_owner[acme.id]) == ("1.02", "0.00", "1.02"), "half a cent, to the even one"
        assert figures(by_owner[nova.id]) == ("0.31", "0.00", "0.31")
        assert exact(by_owner[nova.id]) == Decimal("0.09") + Decimal("0.22")
        assert (by_owner[solo.id]["status"], figures(by_owner[solo.id])[2]) == ("paid", "0.00")
        assert figures(by_owner[hanbit.id]) == ("780", "78", "858")
        assert by_owner[hanbit.id]["korea"]["buyer_registration"] == "2208162517"
        await desk.run("invoice", "list", "--month", "2026-11", "--organization", hanbit.id)

        # Void and reissue: the address was wrong.
        await desk.run("org", "update", acme.id, "--address", "1 Main Street, Springfield")
        await desk.run("invoice", "reissue", by_owner[acme.id]["id"], "--reason", "the address was missing")
        [draft] = (await desk.stage.operate("GET", f"/invoices?status=draft&organization_id={acme.id}"))["data"]
        await desk.run("invoice", "finalize", draft["id"])
        reissued = await desk.stage.operate("GET", f"/invoices/{draft['id']}")
        assert (reissued["number"], reissued["buyer"]["address"]) == ("INV-000021", "1 Main Street, Springfield")
        assert figures(reissued) == figures(by_owner[acme.id])

        # A partial payment, one in full, one twice.
        await desk.run("payment", "record", acme.id, "0.50", "--reference", "wire 1", "--invoice", draft["id"])
        refused = await desk.run("payment", "record", acme.id, "0.60", "--reference", "wire 1", is_refused=True)
        assert "recorded before, of another amount" in refused
        await desk.run("payment", "record", others[0].id, "0.22", "--reference", "wire 2")
        # A credit note for a part of the Korean invoice.
        korean = by_owner[hanbit.id]["id"]
        await desk.run(
            *("invoice", "credit", korean, "--amount", "110", "--reason", "a discount", "--amendment", "value_changed")
        )
        await desk.run("invoice", "ageing")
        await desk.run("invoice", "statement", acme.id)

        await wrong_input(desk, acme, draft["id"])

        # The period closes, and stays closed.
        await desk.run("period", "close", "2026-11", "--yes")
        await desk.run("report", "margin", "2026-11")
        assert "no period" not in await desk.run("period", "list")
        assert (await desk.stage.operate("POST", "/periods/2026-11/close"))["closed_at"] is not None
        files = {}
        for kind in ("charges", "invoices", "journal", "trial_balance", "hledger", "focus"):
            out = tmp_path / (f"{kind}.journal" if kind == "hledger" else f"{kind}.csv")
            await desk.run("export", kind, "--out", str(out))
            files[kind] = out
        check_twice(files, issued, reissued, desk)
        statement = await desk.stage.operate("GET", "/revenue_shares/statement?party=Friend%20Ltd&period=2026-11")
        assert money(statement["totals"]["USD"]) == Decimal("0.1025"), "a tenth of November"
        assert await pdf(desk.stage, korean, hanbit)
        await desk.run("verify")
        told += desk.transcript

    keep("\n\n".join(told).replace(str(tmp_path), "."))


def keep(transcript: str) -> None:
    """Write what the terminal showed to where the guide's author wants it."""
    if path := os.environ.get("TOLLGATE_TRANSCRIPT"):
        Path(path).write_text(transcript + "\n", encoding="utf-8")


def exact(invoice: dict[str, Any]) -> Decimal:
    """What the lines add up to before they are rounded."""
    return sum((money(line["exact_amount"]) for line in invoice["lines"]), Decimal(0))


def figures(invoice: dict[str, Any]) -> tuple[str, ...]:
    """Subtotal, tax and total, with the digits of cash."""
    digits = 0 if invoice["currency"] == "KRW" else 2
    return tuple(f"{money(invoice[name]):.{digits}f}" for name in ("subtotal", "tax", "total"))


async def wrong_input(desk: Desk, acme: Customer, invoice_id: str) -> None:
    """What makes no sense is refused with a sentence, and nothing changes."""
    missed = []
    before = await books_of(desk)
    for arguments, told in (
        (("payment", "record", "--reference", "wire 9", "--", acme.id, "-1"), "must not be negative"),
        (("org", "create", "X", "--currency", "XYZ"), "XYZ"),
        (("price", "set", "m", "--input", "1", "--from", "2026-11-10T00:00:00Z"), "already"),
        (("period", "close", "2026-12", "--yes"), "ended"),
        (("org", "create", "X", "--currency", "KRW", "--country", "KR", "--tax-id", "123-45-67890"), "digit"),
        (("invoice", "credit", invoice_id, "--amount", "5", "--reason", "too much"), "1.02"),
        (("invoice", "void", invoice_id, "--reason", "it was paid in part"), "paid"),
    ):
        result = await desk.run(*arguments, is_refused=True)
        desk.transcript.pop()
        if told not in result:
            missed.append((told, result))
    assert not missed
    assert before == await books_of(desk)


async def books_of(desk: Desk) -> list[Any]:
    """All that is posted and issued."""
    paths = ("/ledger/trial_balance", "/invoices?limit=100", "/organizations?limit=100", "/prices?limit=100")
    answers = [await desk.stage.operate("GET", path) for path in paths]
    return [answers[0]["lines"], *(answer["data"] for answer in answers[1:])]


def check_twice(files: dict[str, Path], issued: list[dict[str, Any]], reissued: dict[str, Any], desk: Desk) -> None:
    """The files tie to each other and to the invoices; hledger, which nobody here wrote, accepts the books."""
    assert desk.stage.base_url
    charges = table(files["charges"])
    journal = table(files["journal"])
    invoices = table(files["invoices"])

    # Revenue of the journal is that of the charges, less the reseller's tenth, the credit note's, and the VAT is none.
    sums: dict[tuple[str, str], Decimal] = {}
    for row in journal:
        key = (row["account"], row["currency"])
        sums[key] = sums.get(key, Decimal(0)) + Decimal(row["credit"] or 0) - Decimal(row["debit"] or 0)
    charged = {
        code: sum(Decimal(row["amount"]) for row in charges if row["currency"] == code) for code in ("USD", "KRW")
    }
    shared = next(amount for (account, code), amount in sums.items() if "reseller" in account and code == "USD")
    revenue = {
        code: sum(v for (account, c), v in sums.items() if "revenue" in account and c == code) for code in charged
    }
    assert revenue["USD"] + shared == charged["USD"]
    assert revenue["KRW"] + 100 == charged["KRW"], "the credit note takes a hundred won back"
    for code in ("USD", "KRW"):
        assert sum(amount for (_, c), amount in sums.items() if c == code) == 0, "debits and credits"

    # What is owed by the journal is what is open of the invoices.
    owed = {
        code: -sum(v for (account, c), v in sums.items() if "receivable" in account and c == code) for code in charged
    }
    alive = [each for each in [*issued, reissued] if each["id"] != next_voided(issued, reissued)]
    total = {code: sum(money(each["total"]) for each in alive if each["currency"] == code) for code in charged}
    assert owed["USD"] == total["USD"] - Decimal("0.50") - Decimal("0.22")
    assert owed["KRW"] == total["KRW"] - 110
    assert len(invoices) == len(issued) + 2, "the voided one, the one in its place, and the credit note are there"

    balances = table(files["trial_balance"])
    for code in ("USD", "KRW"):
        rows = [row for row in balances if row["currency"] == code]
        assert sum(Decimal(row["debits"]) for row in rows) == sum(Decimal(row["credits"]) for row in rows)
    if hledger := shutil.which("hledger"):
        for check in (["check"], ["check", "ordereddates", "balancedwithautoconversion"]):
            done = subprocess.run(
                [hledger, "-f", str(files["hledger"]), *check], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr


def next_voided(issued: list[dict[str, Any]], reissued: dict[str, Any]) -> str:
    """The invoice in whose place another was issued."""
    return next(str(each["id"]) for each in issued if each["organization_id"] == reissued["organization_id"])


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))


async def pdf(stage: Stage, invoice_id: str, customer: Customer) -> bytes:
    """The document as the customer gets it."""
    answer: httpx.Response = await stage.client.get(
        f"{stage.base_url}/v1/billing/invoices/{invoice_id}.pdf",
        headers={"authorization": f"Bearer {customer.admin_key}"},
    )
    assert answer.status_code == 200, answer.text
    assert answer.content.startswith(b"%PDF-")
    return answer.content
