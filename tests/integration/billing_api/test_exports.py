"""Charges as CSV: read back with a plain CSV reader, repeated to the byte, bounded in memory, safe in a spreadsheet."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from billing.exports import KINDS, Export, Manifest, Wanted, begin_export, count_rows, lines, make_manifest, stream
from billing.exports.cells import TEXT_RULE
from billing.exports.charges import COLUMNS
from models.call import Charge
from models.errors import InvalidRequest
from models.money import parse_amount
from tests.integration.billing_api.world import MONDAY, Tenant, World, add_tenant, make_charge

pytestmark = pytest.mark.anyio

EXPORTS = "/operator/v1/exports"


def _read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def _charges(tenant: Tenant, count: int) -> Iterator[Charge]:
    for number in range(count):
        yield make_charge(tenant, MONDAY + timedelta(milliseconds=number), amount=number, hold=count)


async def _begin(world: World, excel: bool = False, **wanted: Any) -> Export:
    return await begin_export(world.engine, KINDS["charges"], Wanted(**wanted), excel=excel)


async def _file(world: World, export: Export, manifest: Manifest | None = None) -> bytes:
    return b"".join([piece async for piece in stream(world.engine, export, manifest)])


async def test_a_file_reads_back_as_the_charges(world: World) -> None:
    yen = await add_tenant(world.engine, "Yen", world.clock.now(), "JPY")
    first, second = (
        make_charge(world.ours),
        make_charge(yen, MONDAY + timedelta(days=40), amount=1_500_000, hold=2_000_000),
    )
    correction = make_charge(world.ours, MONDAY + timedelta(days=41), amount=-700, corrects=first.call_id)
    await world.book(first, second, correction, posting_id=7)
    answer = await world.get(f"{EXPORTS}/charges", world.operator_key)
    assert answer.headers["content-type"].startswith("text/csv")
    assert (answer.headers["x-tollgate-watermark"], answer.headers["x-tollgate-rows"]) == ("7", "3")
    assert answer.content.startswith(",".join(COLUMNS).encode() + b"\r\n")
    assert answer.content.count(b"\n") == answer.content.count(b"\r\n") == 4
    one, two, three = _read(answer.text)
    assert (one["row_id"], one["amount"], one["currency"]) == (str(first.call_id), "0.000000700", "USD")
    assert (one["created_at"], one["period"]) == ("2026-03-02T12:00:00.000000Z", "2026-03")
    assert (two["amount"], two["currency"], two["period"]) == ("1.500000", "JPY", "2026-04")
    assert (three["amount"], three["corrects"]) == ("-0.000000700", str(first.call_id))
    assert one["funding"] == "unbilled=0.000000700"
    assert one["organization_id"] == str(world.ours.organization_id)


async def test_period_and_organization(world: World) -> None:
    ours, theirs = make_charge(world.ours), make_charge(world.theirs, MONDAY + timedelta(days=1))
    await world.book(ours, theirs)

    async def rows(**params: str) -> list[str]:
        return [
            row["row_id"] for row in _read((await world.get(f"{EXPORTS}/charges", world.operator_key, **params)).text)
        ]

    assert await rows() == [str(ours.call_id), str(theirs.call_id)]
    assert await rows(to="2026-03-03") == [str(ours.call_id)]
    assert await rows(**{"from": "2026-03-03", "to": "2026-04-01"}) == [str(theirs.call_id)]
    assert await rows(organization=str(world.theirs.organization_id)) == [str(theirs.call_id)]


async def test_the_same_watermark_gives_the_same_bytes(world: World) -> None:
    await world.book(*_charges(world.ours, 5), posting_id=3)
    first = await _begin(world)
    before = await _file(world, first)
    # Later postings hold charges of earlier calls, too: a call may end long after it began.
    await world.book(make_charge(world.ours, MONDAY - timedelta(days=1)), posting_id=4)
    again = await _begin(world, watermark=first.watermark)
    assert await _file(world, again) == before
    assert await _file(world, await _begin(world)) != before
    with pytest.raises(InvalidRequest, match="ends at watermark 4"):
        await _begin(world, watermark=5)


async def test_manifest(world: World) -> None:
    await world.book(*_charges(world.ours, 1_201), posting_id=9)
    export = await _begin(world, excel=True, organization_id=world.ours.organization_id)
    streamed = Manifest(export)
    file = await _file(world, export, streamed)
    manifest = await make_manifest(world.engine, export)
    assert manifest == streamed
    assert manifest.sha256 == hashlib.sha256(file).hexdigest()
    assert file.startswith(b"\xef\xbb\xbf")
    rows = _read(file.decode("utf-8-sig"))
    assert manifest.rows == len(rows) == await count_rows(world.engine, export) == 1_201
    assert manifest.totals == {"USD": sum(parse_amount(row["amount"], "USD") for row in rows)}
    served = (
        await world.get(f"{EXPORTS}/charges", world.operator_key, manifest="true", excel="true", watermark="9")
    ).json()
    assert served["sha256"] == manifest.sha256
    assert served["totals"] == {"USD": "0.000720600"}
    assert (served["first_created_at"], served["watermark"]) == ("2026-03-02T12:00:00.000000Z", 9)
    assert (served["schema"], served["text_rule"]) == ("tollgate.charges/2", TEXT_RULE)
    assert served["generator"].startswith("tollgate ")


async def test_an_empty_book_has_a_header_and_a_manifest(world: World) -> None:
    answer = await world.get(f"{EXPORTS}/charges", world.operator_key)
    assert answer.content == ",".join(COLUMNS).encode() + b"\r\n"
    manifest = (await world.get(f"{EXPORTS}/charges", world.operator_key, manifest="true")).json()
    assert (manifest["rows"], manifest["totals"], manifest["watermark"]) == (0, {}, 0)


async def test_the_file_comes_in_pieces_of_bounded_size(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """F09: memory is that of a page, whatever the length of the file."""
    monkeypatch.setattr(lines, "ROWS_PER_PAGE", 200)
    await world.book(*_charges(world.ours, 1_600))
    export = await _begin(world)
    pieces = [len(piece) async for piece in stream(world.engine, export)]
    assert len(pieces) == 1 + 8
    assert max(pieces) < 200 * 700


async def test_formulas_are_disarmed_and_texts_survive(world: World) -> None:
    """F02, on its way through the database and HTTP."""
    hostile = ("=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "'quoted", 'a"b', "a\r\nb", "a;b,c", "한국어", "")
    charges = [make_charge(world.ours, end_user=text, model=text or "tiny") for text in hostile]
    await world.book(*charges)
    texts = {str(charge.call_id): charge.end_user for charge in charges}
    rows = _read((await world.get("/v1/billing/charges.csv", world.ours.admin_key)).text)
    assert len(rows) == len(hostile)
    for row in rows:
        text = texts[row["row_id"]] or ""
        assert row["end_user"] in (text, f"'{text}")
        assert not row["end_user"].startswith(("=", "+", "-", "@", "\t", "\r"))
        assert row["end_user"].removeprefix("'") == text.removeprefix("'") or row["end_user"] == f"'{text}"
        assert row["amount"] == "0.000000700"


@pytest.mark.parametrize(
    "kind",
    ["usage", "charges.csv", "..%2f..%2fetc%2fpasswd", "....//charges", "%00", "charges%00", "charges/../charges2"],
)
async def test_other_kinds_and_path_tricks_are_404(world: World, kind: str) -> None:
    """F10: a kind is compared with a list, and never becomes a path."""
    answer = await world.get(f"{EXPORTS}/{kind}", world.operator_key)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"]


async def test_exports_are_the_operators(world: World) -> None:
    for key in (world.ours.admin_key, world.ours.api_key):
        assert (await world.get(f"{EXPORTS}/charges", key)).status_code == 403
    assert (await world.client.get(f"{EXPORTS}/charges")).status_code == 401
    unknown = await world.get(f"{EXPORTS}/charges", world.operator_key, organization=str(world.ours.project_id))
    assert unknown.status_code == 404
