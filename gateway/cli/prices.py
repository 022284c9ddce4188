"""The commands `price`: single prices, price lists as files, dry runs, price books and free allowances."""

from __future__ import annotations

from collections.abc import Iterable
from csv import writer as csv_writer
from io import StringIO
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import quote

import httpx
import typer

from gateway.cli.addresses import DATA_DIRECTORY, FAILED, USAGE, end
from gateway.cli.operator_client import Answer, AsJson, DataDirectory, Key, OperatorClient, Url, operator_client
from gateway.cli.sales import ModelName
from gateway.cli.tenants import CurrencyCode, instant
from models.catalog import Meter
from models.errors import InvalidAmount
from models.money import parse_price, parse_price_each, price_each_text, price_text

price = typer.Typer(help="Prices: published and succeeded, never edited.", no_args_is_help=True)

_PRICE = (
    *("model", "meter", "scheme", "price_per_million", "price_each", "package_size", "tiers", "tiers_over"),
    *("currency", "book", "effective_from", "effective_to"),
)
_FIGURES: Final = ("name", "calls", "charged", "would_be", "rebate", "difference")
_BOOK: Final = ("id", "parent", "batch_book", "created_at")
_ALLOWANCE: Final = ("id", "book", "amount", "models", "created_at", "ended_at")
_PATIENCE: Final = httpx.Timeout(30, read=900)
"""A dry run reads all calls of its span."""

PerMillion = Annotated[str | None, typer.Option(help="Decimal price per million.")]
Each = Annotated[str | None, typer.Option(help="Decimal price of one.")]
ListFile = Annotated[Path, typer.Argument(help="Price list in CSV, as `tollgate price export` writes it.")]


@price.command("set")
def set_price(
    model: ModelName,
    input: PerMillion = None,
    output: PerMillion = None,
    cached_input: PerMillion = None,
    cache_write: PerMillion = None,
    reasoning: PerMillion = None,
    request: PerMillion = None,
    image: Each = None,
    audio_second: Each = None,
    minimum: Annotated[str | None, typer.Option(help="Decimal price that a charged call costs at least.")] = None,
    currency: Annotated[CurrencyCode, typer.Option(help="Currency of the prices.")] = CurrencyCode.USD,
    book: Annotated[str, typer.Option(help="Price book.")] = "default",
    start: Annotated[str | None, typer.Option("--from", help="Instant from which they are in force; else now.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Publish prices of a model, per million tokens (or requests), per image or second of audio.

    All of them begin at one moment, or none is published. What was in force ends there; a price that says what is in
    force is left alone. Tiers, packages and whole price lists are published with `tollgate price import`.

    Example: `tollgate price set llama-3 --input 0.15 --cached-input 0.075 --output 0.60`
    """
    given = {
        Meter.INPUT: input,
        Meter.OUTPUT: output,
        Meter.CACHED_INPUT: cached_input,
        Meter.CACHE_WRITE: cache_write,
        Meter.REASONING: reasoning,
        Meter.REQUEST: request,
        Meter.IMAGE: image,
        Meter.AUDIO_SECOND: audio_second,
        Meter.MINIMUM: minimum,
    }
    stated = {meter: _each_or_per_million(meter, text, currency) for meter, text in given.items() if text is not None}
    if not stated:
        end("Give at least one price, such as --input 0.15 --output 0.60.", USAGE)
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.get(f"/models/{quote(model)}")
        # As a list: all of them at one moment or none, so that no call is priced by the half of them.
        lines = [("book", "model", "currency", "effective_from", "meter", "price")]
        lines += [
            (book, model, currency.value, instant(start) or "", meter.value, text) for meter, text in stated.items()
        ]
        file = StringIO()
        csv_writer(file).writerows(lines)
        done = client.send("/prices/import", file.getvalue().encode(), "text/csv")
        if done["published"] or as_json:
            _show(client, done["published"])
        if done["unchanged"] and not as_json:
            typer.echo(f"In force already: {done['unchanged']}.")


def _each_or_per_million(meter: Meter, text: str, currency: CurrencyCode) -> str:
    """The text of a price as price lists have it, where requests are priced one by one; ends for what is no price."""
    try:
        if meter in (Meter.IMAGE, Meter.AUDIO_SECOND, Meter.MINIMUM):
            return price_each_text(parse_price_each(text, currency), currency)
        price = parse_price(text, currency)
    except InvalidAmount as error:
        end(f"--{meter.replace('_', '-')}: {error.message}.", USAGE)
    return price_each_text(price, currency) if meter is Meter.REQUEST else price_text(price, currency)


@price.command("list")
def list_prices(
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    book: Annotated[str | None, typer.Option(help="Only of this price book.")] = None,
    at: Annotated[str | None, typer.Option(help="Only those in force at this instant.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """List prices, past and future ones included.

    Example: `tollgate price list --model llama-3 --at 2027-01-01`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        _show(client, client.all_of("/prices", model=model, book=book, at=instant(at)))


def _show(client: OperatorClient, prices: list[Answer]) -> None:
    """A table without the columns that none of the prices has, which are the most."""
    client.show(prices, [column for column in _PRICE if not prices or any(price.get(column) for price in prices)])


# Lists ---------------------------------------------------------------------------------------------------------------


@price.command("export")
def export_prices(
    book: Annotated[str | None, typer.Option(help="Only this price book.")] = None,
    at: Annotated[str | None, typer.Option(help="Only those in force at this instant; else all ever.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; else it is printed.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
) -> None:
    """Write prices as CSV, to be kept, changed and imported again.

    Example: `tollgate price export --book default --out prices.csv`
    """
    with operator_client(data_dir, url, operator_key) as client:
        content = client.file("/prices/export", book=book, at=instant(at)).content
    if out is None:
        typer.echo(content, nl=False)
        return
    try:
        out.write_bytes(content)
    except OSError as error:
        end(f"{out} cannot be written: {error.strerror}.", FAILED)
    prices = max(0, content.count(b"\r\n") - 1)
    typer.echo(f"{out}: {prices} price{'s'[: prices != 1]}.")


@price.command("import")
def import_prices(
    file: ListFile,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would happen, publish nothing.")] = False,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Publish a price list, all of it or nothing. Lines that say what is in force are left alone.

    Example: `tollgate price import prices.csv --dry-run`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        done = client.send("/prices/import", _content(file), "text/csv", dry_run="true" if dry_run else None)
        if as_json:
            client.show(done, ())
            return
        published, ended = len(done["published"]), len(done["ended"])
        would = "Would be published" if dry_run else "Published"
        typer.echo(f"{would}: {published}. Given an end: {ended}. Unchanged: {done['unchanged']}.")
        if changed := done["published"] + done["ended"]:
            _show(client, changed)


@price.command("dry-run")
def try_prices(
    start: Annotated[str, typer.Option("--from", help="First instant, such as 2027-01-01 (UTC).")],
    csv: Annotated[Path | None, typer.Option(help="Price list in CSV: the drafts to try.")] = None,
    batch_book: Annotated[
        list[str] | None, typer.Option(help="BOOK=ITS-BATCH-BOOK to try, or BOOK= for none; can be repeated.")
    ] = None,
    stop: Annotated[str | None, typer.Option("--to", help="Instant after the last; else now.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Price past calls again as if a price list had been in force, and show the difference. Publishes nothing.

    Example: `tollgate price dry-run --csv prices.csv --from 2027-01-01 --to 2027-02-01`

    Example: `tollgate price dry-run --batch-book default=night --from 2027-01-01`
    """
    if csv is None and not batch_book:
        end("Give what to try: --csv prices.csv, --batch-book default=night, or both.", USAGE)
    drafts = None if csv is None else _text(csv)
    body = {"from": instant(start), "to": instant(stop), "csv": drafts, "batch_books": _batch_books(batch_book or ())}
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.http.timeout = _PATIENCE
        result = client.post("/prices/dry_run", body)
        if as_json:
            client.show(result, ())
            return
        totals = [{"name": f"All in {total['currency']}"} | total for total in result["totals"]]
        has_rebates = any(any(each["rebate"]["amount"].strip("-0.")) for each in result["organizations"])
        rows = [row for each in result["organizations"] + totals for row in _with_batches(each)]
        client.show(rows, [name for name in _FIGURES if name != "rebate" or has_rebates])


def _with_batches(figures: Answer) -> list[Answer]:
    """The line of an organization or of all, and below it the part that is of batches, where there is one."""
    batches = figures["batches"]
    return [figures, *([{"name": "  of which in batches"} | batches] if batches["calls"] else [])]


def _batch_books(texts: Iterable[str]) -> dict[str, str | None] | None:
    """Batch books by price book, from `BOOK=ITS-BATCH-BOOK`."""
    named: dict[str, str | None] = {}
    for text in texts:
        book, equals, batch_book = text.partition("=")
        if not book or not equals:
            end(f"'{text}' names no batch book. Write BOOK=ITS-BATCH-BOOK, or BOOK= for none.", USAGE)
        named[book] = batch_book or None
    return named or None


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        end(f"{file} cannot be read: {error.strerror}.", USAGE)


def _text(file: Path) -> str:
    try:
        return _content(file).decode("utf-8-sig")
    except UnicodeDecodeError:
        end(f"{file} is not UTF-8. Save it as CSV in UTF-8.", USAGE)


# Books and allowances ------------------------------------------------------------------------------------------------


@price.command("add-book")
def add_book(
    book: Annotated[str, typer.Argument(help="Name of the price book.")],
    parent: Annotated[str | None, typer.Option(help="Book whose prices hold where this one has none.")] = None,
    batch_book: Annotated[str | None, typer.Option(help="Book that calls of batches are priced by.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Make a price book. Its parent can never change, its batch book can.

    Example: `tollgate price add-book partners --parent default`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post("/price_books", {"id": book, "parent": parent, "batch_book": batch_book}), _BOOK)


@price.command("batch-book")
def set_batch_book(
    book: Annotated[str, typer.Argument(help="Name of the price book.")],
    batch_book: Annotated[str | None, typer.Argument(help="The book that calls of batches are priced by.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Say by which book calls of batches are priced from now on; without a second name, by the usual one.

    Example: `tollgate price batch-book default night`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        path = f"/price_books/{quote(book, safe='')}"
        client.show(client.post(path, {"batch_book": batch_book}, nulls=True), _BOOK)


@price.command("books")
def list_books(
    url: Url = None, operator_key: Key = None, data_dir: DataDirectory = DATA_DIRECTORY, as_json: AsJson = False
) -> None:
    """List all price books.

    Example: `tollgate price books`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.all_of("/price_books"), _BOOK)


@price.command("add-allowance")
def add_allowance(
    book: Annotated[str, typer.Argument(help="Price book whose organizations get it.")],
    amount: Annotated[str, typer.Argument(help="Decimal amount a month, such as 5.00.")],
    currency: Annotated[CurrencyCode, typer.Option(help="That of the organizations.")] = CurrencyCode.USD,
    model: Annotated[list[str] | None, typer.Option(help="Only for this model; can be repeated.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Give the organizations of a price book free credit each calendar month; what is left of it ends with the month.

    Example: `tollgate price add-allowance default 5.00 --model llama-3`
    """
    money = {"amount": amount, "currency": currency.value}
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post("/allowances", {"book": book, "amount": money, "models": model or None}), _ALLOWANCE)


@price.command("allowances")
def list_allowances(
    book: Annotated[str | None, typer.Option(help="Only of this price book.")] = None,
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """List free allowances, with those that were ended.

    Example: `tollgate price allowances`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.all_of("/allowances", book=book), _ALLOWANCE)


@price.command("end-allowance")
def end_allowance(
    allowance: Annotated[str, typer.Argument(help="Id of the allowance.")],
    url: Url = None,
    operator_key: Key = None,
    data_dir: DataDirectory = DATA_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Grant an allowance no more; what was granted for this month stays.

    Example: `tollgate price end-allowance 01a20916-…`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        client.show(client.post(f"/allowances/{quote(allowance, safe='')}/end"), _ALLOWANCE)
