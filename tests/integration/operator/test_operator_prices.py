"""Prices in steps, price books that inherit and price lists as CSV, through the operator's API."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest

from models.catalog import Scheme, Steps, Tariff, Tier
from models.money import MilliUnits
from tests.conftest import Database
from tests.integration.operator.test_operator_catalog import add_charge
from tests.integration.operator.world import World, refusal
from tests.rooms import MovableClock

pytestmark = pytest.mark.anyio

HEADER = "book,model,meter,currency,scheme,price,package_size,tiers,tiers_over,effective_from,effective_to\r\n"
TIERS = [
    {"up_to": 1_000, "price_per_million": "0.30"},
    {"up_to": 5_000, "price_per_million": "0.20"},
    {"price_per_million": "0.10"},
]


async def sent(world: World, content: str | bytes, *, dry_run: bool = False, **headers: str) -> httpx.Response:
    """Import a price list."""
    query = {"dry_run": "true"} if dry_run else {}
    body = content if isinstance(content, bytes) else content.encode()
    named = world.headers({"content_type": "text/csv"} | headers)
    return await world.client.post("/operator/v1/prices/import", content=body, params=query, headers=named)


async def exported(world: World, **query: str) -> str:
    """The CSV of a book."""
    response = await world.get("/prices/export", **query)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    return response.text


# Steps ---------------------------------------------------------------------------------------------------------------


async def test_tiers_are_published_shown_and_in_the_catalog(world: World, clock: MovableClock) -> None:
    await world.model()
    price = (await world.price(scheme="graduated", tiers=TIERS, price_per_million=None)).json()
    shown = [("1000", "0.300000"), ("5000", "0.200000"), ("None", "0.100000")]
    assert [(str(tier["up_to"]), tier["price_per_million"]) for tier in price["tiers"]] == shown
    assert (price["price_per_million"], price["tiers_over"], price["package_size"]) == (None, "call", None)
    assert (await world.shown("/prices"))["data"] == [price]
    rates = world.parts.catalog.current.rates("default", "USD", "tiny", clock.now())
    assert rates is not None
    tiers = tuple(Tier(end, MilliUnits(price)) for end, price in ((1_000, 300_000), (5_000, 200_000), (None, 100_000)))
    assert rates.steps is not None
    [tariff] = rates.steps.tariffs
    assert (tariff.scheme, tariff.tiers, rates.input) == (Scheme.GRADUATED, tiers, 0)


async def test_packages_and_a_least_price_are_stated_for_one(world: World, clock: MovableClock) -> None:
    await world.model()
    price = {"price_per_million": None, "price_each": "0.0005"}
    package = (await world.price(**price, scheme="package", package_size=1_000)).json()
    assert (package["price_each"], package["price_per_million"]) == ("0.000500000000", None)
    least = (await world.price(meter="minimum", **price)).json()
    assert (least["price_each"], least["price_per_million"]) == ("0.000500000000", None)
    request = (await world.price(meter="request", price_per_million="100")).json()
    assert (request["price_per_million"], request["price_each"]) == ("100.000000", "0.000100000000")
    rates = world.parts.catalog.current.rates("default", "USD", "tiny", clock.now())
    assert rates is not None
    assert rates.request == 100_000_000
    parts = rates.steps.tariffs[0].meters if rates.steps else ()
    expected = Tariff(parts, Scheme.PACKAGE, MilliUnits(500_000_000), package_size=1_000)
    assert rates.steps == Steps((expected,), MilliUnits(500_000_000))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing stated": ({"price_per_million": None}, "State the price once"),
    "stated twice": ({"price_each": "1"}, "State the price once"),
    "a package per million": ({"scheme": "package", "package_size": 2}, "price_each"),
    "a package without size": ({"scheme": "package", "price_per_million": None, "price_each": "1"}, "package_size"),
    "a size without package": ({"package_size": 2}, "nothing else has one"),
    "a minimum per million": ({"meter": "minimum"}, "price_each"),
    "tiers and a price": ({"scheme": "volume", "tiers": TIERS}, "stated in its tiers"),
    "the last tier bounded": ({"scheme": "volume", "tiers": TIERS[:2], "price_per_million": None}, "no end"),
    "not ascending": (
        {"scheme": "volume", "tiers": [TIERS[1], TIERS[0], TIERS[2]], "price_per_million": None},
        "sort the tiers",
    ),
    "a tier below zero": (
        {"scheme": "volume", "tiers": [{"price_per_million": "-1"}], "price_per_million": None},
        "cannot be negative",
    ),
    "a month of units": ({"tiers_over": "month"}, "Leave tiers_over out"),
    "beyond int64": ({"price_per_million": "9223372036854.775808"}, "larger than any balance"),
    "over before it begins": ({"effective_to": "2020-01-01T00:00:00Z"}, "later than effective_from"),
}


async def test_what_no_stepped_price_can_be(world: World, subtests: pytest.Subtests) -> None:
    await world.model()
    for name, (fields, says) in REFUSED.items():
        with subtests.test(name):
            status, _, message = refusal(await world.price(**fields))
            assert status == 400
            assert says in message
            assert await world.count("price_version") == await world.count("audit_log") - 2 == 0


# Books ---------------------------------------------------------------------------------------------------------------


async def test_a_book_inherits_from_its_parent(world: World, clock: MovableClock) -> None:
    await world.model()
    await world.price()
    await world.price(meter="output", price_per_million="0.60")
    book = await world.made("/price_books", {"id": "partners", "parent": "default"})
    assert book["parent"] == "default"
    own = (await world.price(book="partners", price_per_million="0.10")).json()
    rates = world.parts.catalog.current.rates("partners", "USD", "tiny", clock.now())
    assert rates is not None
    assert (rates.input, rates.output) == (100_000, 600_000)
    assert UUID(own["id"]) in rates.version_ids
    assert len(rates.version_ids) == 2
    assert [one["id"] for one in (await world.shown("/price_books"))["data"]] == ["default", "partners"]


async def test_a_price_makes_its_book(world: World, clock: MovableClock) -> None:
    await world.model()
    await world.price()
    assert (await world.price(book="walk-in", meter="output")).status_code == 200
    listed = (await world.shown("/price_books", after="default"))["data"]
    assert [(one["id"], one["parent"]) for one in listed] == [("walk-in", None)]
    assert world.parts.catalog.current.rates("walk-in", "USD", "tiny", clock.now()) is None, "it inherits nothing"


async def test_what_no_book_can_be(world: World) -> None:
    assert refusal(await world.post("/price_books", {"id": "a", "parent": "none"}))[:2] == (400, "parent")
    assert refusal(await world.post("/price_books", {"id": "a", "parent": "a"}))[:2] == (400, "parent")
    assert refusal(await world.post("/price_books", {"id": "default"}))[0] == 409
    assert (await world.post("/price_books", {"id": "no spaces"})).status_code == 422
    assert await world.count("price_book") == 1


async def test_making_a_book_again_with_one_key_makes_one(world: World) -> None:
    first = await world.made("/price_books", {"id": "gold", "parent": "default"}, idempotency_key="once")
    assert await world.made("/price_books", {"id": "gold", "parent": "default"}, idempotency_key="once") == first
    assert await world.count("price_book") == 2


# Lists ---------------------------------------------------------------------------------------------------------------

LIST = (
    HEADER
    + '"default","tiny",input,USD,graduated,,,1000=0.300000 5000=0.200000 more=0.100000,call,2026-01-01T00:00:00Z,\r\n'
    + '"default","tiny",cached_input,USD,unit,0.050000,,,,2026-01-01T00:00:00Z,2026-02-01T00:00:00Z\r\n'
    + '"default","tiny",cached_input,USD,unit,0.060000,,,,2026-02-01T00:00:00Z,\r\n'
    + '"default","tiny",output,USD,package,0.000500000000,1000,,,2026-01-01T00:00:00Z,\r\n'
    + '"default","tiny",request,USD,volume,,,1000000=0.000100000000 more=0.000050000000,month,2026-01-01T00:00:00Z,\r\n'
    + '"default","tiny",minimum,USD,unit,0.000020000000,,,,2026-01-01T00:00:00Z,\r\n'
    + '"default","tiny",input,KRW,unit,150.000,,,,2026-01-01T00:00:00Z,\r\n'
)


async def test_an_export_of_an_import_is_the_same_bytes(world: World) -> None:
    await world.model()
    done = (await sent(world, LIST)).json()
    assert (len(done["published"]), done["unchanged"], done["dry_run"]) == (7, 0, False)
    # Sorted by book, model, currency, meter, beginning.
    lines = LIST.splitlines(keepends=True)
    once = await exported(world)
    assert once == "".join([lines[0], lines[7], *lines[1:7]])
    again = (await sent(world, once)).json()
    assert (again["published"], again["ended"], again["unchanged"]) == ([], [], 7)
    assert await exported(world, book="default") == once
    assert await exported(world, book="none") == HEADER


async def test_an_import_needs_no_dates_and_may_come_again(world: World, clock: MovableClock) -> None:
    await world.model()
    text = "model,meter,currency,price\ntiny,input,USD,0.15\ntiny,output,USD,0.60\n"
    assert len((await sent(world, b"\xef\xbb\xbf" + text.encode())).json()["published"]) == 2
    clock.move(timedelta(days=3))
    assert (await sent(world, text)).json()["unchanged"] == 2
    dearer = (await sent(world, text.replace("0.60", "0.70"))).json()
    assert (len(dearer["published"]), dearer["unchanged"]) == (1, 1)
    assert await world.count("price_version") == 3


async def test_a_dry_run_tells_and_changes_nothing(world: World) -> None:
    await world.model()
    before = await world.count("audit_log")
    told = (await sent(world, LIST.replace('"default"', '"new"'), dry_run=True)).json()
    assert (told["dry_run"], len(told["published"])) == (True, 7)
    assert await world.count("price_version") == 0
    assert await world.count("price_book") == 1
    assert await world.count("audit_log") == before


async def test_a_list_ends_and_succeeds_what_is_open(world: World, clock: MovableClock) -> None:
    await world.model()
    await sent(world, HEADER + "default,tiny,input,USD,unit,0.15,,,,2026-01-01,\n")
    later = clock.now() + timedelta(days=30)
    day = f"{later:%Y-%m-%d}"
    ended = HEADER + f"default,tiny,input,USD,unit,0.15,,,,2026-01-01,{day}\n"
    done = (await sent(world, ended + f"default,tiny,input,USD,unit,0.12,,,,{day},\n")).json()
    assert [one["effective_to"] for one in done["ended"]] == [f"{day}T00:00:00Z"]
    assert [one["price_per_million"] for one in done["published"]] == ["0.120000"]
    listed = (await world.shown("/prices"))["data"]
    assert [one["effective_to"] for one in listed] == [f"{day}T00:00:00Z", None]


async def test_an_import_is_audited_price_by_price_and_repeated_once(world: World) -> None:
    await world.model()
    first = (await sent(world, LIST, idempotency_key="list-1")).json()
    assert (await sent(world, LIST, idempotency_key="list-1")).json() == first
    entries = (await world.shown("/audit_logs", action="price.created"))["data"]
    assert {entry["subject"] for entry in entries} == {f"price:{one['id']}" for one in first["published"]}
    assert await world.count("price_version") == 7


async def test_a_price_that_calls_were_charged_by_is_not_ended_before_them(
    world: World, clock: MovableClock, postgres: Database
) -> None:
    await world.model()
    line = "default,tiny,input,USD,unit,0.15,,,,2026-01-01,"
    [price] = (await sent(world, f"{HEADER}{line}\n")).json()["published"]
    await add_charge(postgres, UUID(price["id"]), clock.now())
    day_before = f"{clock.now() - timedelta(days=1):%Y-%m-%d}"
    status, _, message = refusal(await sent(world, f"{HEADER}{line}{day_before}\n"))
    assert status == 400
    assert "Line 2: " in message
    assert "already charged" in message


LINES: dict[str, tuple[str, str]] = {
    "a negative price": ("default,tiny,output,USD,unit,-1,,,,,", "Line 3: a price cannot be negative"),
    "an unknown currency": ("default,tiny,output,GBP,unit,1,,,,,", "Line 3: currency must be one of"),
    "an unknown meter": ("default,tiny,smiles,USD,unit,1,,,,,", "Line 3: meter must be one of input"),
    "an unknown scheme": ("default,tiny,output,USD,auction,1,,,,,", "Line 3: scheme must be one of unit"),
    "an unknown model": ("default,none,output,USD,unit,1,,,,,", "Line 3: There is no such model. Create it"),
    "a price beyond int64": (f"default,tiny,output,USD,unit,{'9' * 18},,,,,", "Line 3: This price is larger"),
    "a price of 30 digits": (f"default,tiny,output,USD,unit,{'9' * 30},,,,,", "Line 3: an amount is a decimal"),
    "no price": ("default,tiny,output,USD,unit,,,,,,", "Line 3: State a price or tiers"),
    "tiers not ascending": ("default,tiny,output,USD,volume,,,9=1 5=2 more=3,,,", "Line 3: Each tier ends above"),
    "the last tier bounded": ("default,tiny,output,USD,volume,,,5=2 9=1,,,", "Line 3: The last tier has no end"),
    "tiers of another form": ("default,tiny,output,USD,volume,,,5:2,,,", "Line 3: tiers are written as"),
    "a package without size": ("default,tiny,output,USD,package,1,,,,,", "Line 3: A package has a package_size"),
    "a size of letters": ("default,tiny,output,USD,package,1,many,,,,", "Line 3: package_size is a whole number"),
    "a book of blanks": ("my book,tiny,output,USD,unit,1,,,,,", "Line 3: A book is named by"),
    "a time without a zone": (
        "default,tiny,output,USD,unit,1,,,,2026-01-01T10:00:00,",
        "Line 3: effective_from is a date or an instant with its zone",
    ),
    "a time before the year 1": (
        "default,tiny,output,USD,unit,1,,,,0001-01-01T00:00:00+14:00,",
        "Line 3: effective_from is a date or an instant with its zone",
    ),
    "over before it begins": (
        "default,tiny,output,USD,unit,1,,,,2026-03-01,2026-02-01",
        "Line 3: effective_to must be later than effective_from.",
    ),
    "a cell too few": ("default,tiny,output,USD,unit,1", "Line 3: It has 6 cells where the header has 11"),
    "an open quote": ('"default,tiny,output,USD,unit,1,,,,,', "Line 3: It is no CSV"),
    "an overlap in the file": (
        "default,tiny,input,USD,unit,2,,,,2025-01-01,2026-06-01",
        "already has a price of this book, model, meter and currency. Choose a time that has none.",
    ),
    "the same moment twice": ("default,tiny,input,USD,unit,2,,,,2026-01-01,", "Line 3: Another price begins at this"),
    "another end": (
        "default,tiny,request,USD,unit,2,,,,2026-01-01,2026-04-01",
        "Line 3: This price was published to end at 2026-03-01",
    ),
}


async def test_a_list_with_a_wrong_line_publishes_nothing(world: World, subtests: pytest.Subtests) -> None:
    await world.model()
    await world.price(
        meter="request",
        price_per_million=None,
        price_each="2",
        effective_from="2026-01-01T00:00:00Z",
        effective_to="2026-03-01T00:00:00Z",
    )
    good = HEADER + "default,tiny,input,USD,unit,1,,,,2026-01-01,\r\n"
    for name, (line, says) in LINES.items():
        with subtests.test(name):
            status, _, message = refusal(await sent(world, f"{good}{line}\r\n"))
            assert status == 400
            assert says in message
            assert message.endswith("Nothing was published.")
            assert await world.count("price_version") == 1


async def test_all_wrong_lines_are_named(world: World) -> None:
    await world.model()
    wrong = "".join(f"default,tiny,smiles,USD,unit,{number},,,,,\n" for number in range(13))
    message = refusal(await sent(world, HEADER + wrong))[2]
    assert "Line 2: " in message
    assert "Line 6: " in message
    assert "Line 7: " not in message
    assert "8 more lines are wrong. Nothing was published." in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"\xff\xfe", "not UTF-8", id="another encoding"),
        pytest.param(b"", "The first line names the columns", id="nothing"),
        pytest.param(b"model,meter,currency,cost\n", "names the columns", id="an unknown column"),
        pytest.param(b"meter,currency,price\n", "names the columns", id="no model"),
        pytest.param(b"model,meter,currency,price\n\n", "no prices below its header", id="no lines"),
    ],
)
async def test_what_is_no_price_list(world: World, content: bytes, says: str) -> None:
    status, _, message = refusal(await sent(world, content))
    assert status == 400
    assert says in message


async def test_a_spreadsheet_runs_no_cell_of_it(world: World) -> None:
    await world.made("/models", {"id": "@sum", "context_length": 10, "deployments": []})
    await sent(world, "model,meter,currency,price\n@sum,input,USD,1\n")
    once = await exported(world)
    assert '"\'@sum"' in once
    assert (await sent(world, once)).json()["unchanged"] == 1


# Allowances ----------------------------------------------------------------------------------------------------------


async def test_an_allowance_is_made_shown_and_ended(world: World) -> None:
    await world.model()
    body = {"book": "default", "amount": {"amount": "5.00", "currency": "USD"}, "models": ["tiny"]}
    made = await world.made("/allowances", body, idempotency_key="a")
    assert await world.made("/allowances", body, idempotency_key="a") == made
    assert (made["amount"]["amount"], made["models"], made["ended_at"]) == ("5.000000000", ["tiny"], None)
    ended = await world.made(f"/allowances/{made['id']}/end")
    assert ended["ended_at"] is not None
    assert await world.made(f"/allowances/{made['id']}/end") == ended
    assert (await world.shown("/allowances", book="default"))["data"] == [ended]
    assert (await world.shown("/allowances", book="other"))["data"] == []
    actions = [entry["action"] for entry in (await world.shown("/audit_logs"))["data"]]
    assert actions.count("allowance.created") == 1


NO_ALLOWANCES: dict[str, tuple[dict[str, Any], int]] = {
    "nothing": ({"amount": {"amount": "0", "currency": "USD"}}, 400),
    "less than nothing": ({"amount": {"amount": "-1", "currency": "USD"}}, 400),
    "an unknown currency": ({"amount": {"amount": "1", "currency": "GBP"}}, 422),
    "an unknown book": ({"book": "none"}, 400),
    "an unknown model": ({"models": ["none"]}, 400),
    "no model": ({"models": []}, 422),
}


async def test_what_no_allowance_can_be(world: World, subtests: pytest.Subtests) -> None:
    for name, (fields, status) in NO_ALLOWANCES.items():
        with subtests.test(name):
            body = {"book": "default", "amount": {"amount": "5.00", "currency": "USD"}} | fields
            assert (await world.post("/allowances", body)).status_code == status
            assert await world.count("allowance") == 0
    assert refusal(await world.post("/allowances/00000000-0000-0000-0000-000000000000/end"))[0] == 404


# Dry runs ------------------------------------------------------------------------------------------------------------

DRAFT = {"model": "tiny", "meter": "input", "price_per_million": "1"}
DRY_RUNS: dict[str, tuple[dict[str, Any], int, str]] = {
    "no drafts": ({"prices": []}, 400, "Give the drafts once"),
    "drafts twice": ({"csv": "x"}, 400, "Give the drafts once"),
    "no draft at all": ({"prices": None}, 400, "Give the drafts once"),
    "a wrong list": ({"prices": None, "csv": "model,meter,currency,price\ntiny,smiles,USD,1"}, 400, "Line 2: meter"),
    "an unknown model": ({"prices": [DRAFT | {"model": "none"}]}, 400, "no model 'none'"),
    "a draft below zero": ({"prices": [DRAFT | {"price_per_million": "-1"}]}, 400, "cannot be negative"),
    "backwards": ({"to": "2025-01-01T00:00:00Z"}, 400, "ends after it begins"),
    "two years": ({"to": "2028-01-01T00:00:00Z"}, 400, "400 days at most"),
    "no beginning": ({"from": None}, 422, ""),
    "the first days of all": (
        {"from": "0001-01-01T00:00:00Z", "to": "0001-01-05T00:00:00Z"},
        400,
        "years 2000 to 2199",
    ),
    "before the first day": ({"from": "0001-01-01T00:00:00+09:00"}, 422, "between the years"),
    "the last days of all": ({"from": "9999-12-01T00:00:00Z", "to": "9999-12-31T23:00:00Z"}, 400, "years 2000 to 2199"),
    "after the last day": ({"to": "9999-12-31T23:00:00-09:00"}, 422, "between the years"),
    "nothing to try": ({"prices": None, "batch_books": {}}, 400, "Give the drafts once"),
    "a batch book that is not there": ({"batch_books": {"default": "night"}}, 400, "no price book 'night'"),
    "no name of a book": ({"batch_books": {"default": "../night"}}, 422, ""),
    "too many batch books": ({"batch_books": {f"b{n}": None for n in range(101)}}, 422, ""),
}


async def test_what_no_dry_run_can_be(world: World, subtests: pytest.Subtests) -> None:
    await world.model()
    for name, (fields, status, says) in DRY_RUNS.items():
        with subtests.test(name):
            body = {"from": "2026-01-01T00:00:00Z", "to": "2026-02-01T00:00:00Z", "prices": [DRAFT]} | fields
            found = refusal(await world.post("/prices/dry_run", body))
            assert found[0] == status
            assert says in found[2]


async def test_a_span_without_calls_is_an_empty_dry_run(world: World, clock: MovableClock) -> None:
    await world.model()
    start = (clock.now() - timedelta(days=1)).isoformat()
    result = await world.made("/prices/dry_run", {"from": start, "prices": [DRAFT]})
    assert (result["object"], result["organizations"], result["totals"]) == ("price_dry_run", [], [])
    assert await world.count("price_version") == 0
