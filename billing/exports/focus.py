"""`focus` and `focus_1_4`: Cost and Usage of the FinOps Foundation, one row a day, project, model, meter and price.

Usage is listed at its price and charged as it was booked: the amounts of calls, each rounded once, are shared out among
the meters so that no unit is lost. What grants paid for was bought before, so it is billed at nothing; what was given
is billed and credited. The rows of an invoice sum to what is to be paid of it.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from hashlib import sha256
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.exports.cells import line, text_cell
from billing.exports.documents import NUMBER, issued
from billing.exports.focus_columns import COST_AND_USAGE_1_2, COST_AND_USAGE_1_4, FocusColumn, Form
from billing.exports.frame import Export, Kind, Piece, Wanted
from billing.months import bounds_of, month_of
from models.invoice import LineKind
from models.money import amount_text, exact_text, price_text

ISSUER: Final = "The operator of this Tollgate"
"""Who issues invoices where no seller is set up yet."""

_METERS: Final = {
    "input": "Input Tokens",
    "cached_input": "Cached Input Tokens",
    "cache_write": "Cache Write Tokens",
    "output": "Output Tokens",
    "reasoning": "Reasoning Tokens",
    "request": "Requests",
    "image": "Images",
    "audio_second": "Audio Seconds",
}
_COUNTED: Final = {"request": "Requests", "image": "Images", "audio_second": "Seconds"}
"""Units of the meters that are priced by the piece; tokens are priced per million."""
_STANDS_IN: Final = {"cached_input": "input", "cache_write": "input", "reasoning": "output"}
"""Whose price a meter has where it has none of its own."""
_PROVIDERS: Final = ("InvoiceIssuerName", "ProviderName", "PublisherName", "HostProviderName", "ServiceProviderName")
_ORGANIZATIONS_PER_PAGE: Final = 100
_MILLION: Final = 10**6

_USAGE: Final = text(
    """
    select (charge.ended_at at time zone :timezone)::date as day, charge.project_id, charge.model collate "C" as model,
        charge.price_version_ids, charge.corrects is not null as is_correction,
        paid.unbilled = 0 and charge.amount <> 0 as is_prepaid, count(*) as request,
        sum(input_tokens - cached_tokens - cache_write_tokens) as input, sum(cached_tokens) as cached_input,
        sum(cache_write_tokens) as cache_write, sum(output_tokens - reasoning_tokens) as output,
        sum(reasoning_tokens) as reasoning, sum(images) as image, sum(audio_seconds) as audio_second,
        sum(charge.amount) as amount, sum(paid.unbilled) as unbilled,
        sum(paid.given) as given
      from posting
      join charge on charge.posting_id = posting.id and charge.organization_id = posting.organization_id
      cross join lateral (
        select coalesce(sum((source ->> 1)::numeric) filter (where source ->> 0 = 'unbilled'), 0) as unbilled,
            coalesce(sum((source ->> 1)::numeric) filter (where credit_grant.kind = 'promo'), 0) as given
          from jsonb_array_elements(charge.funding) listed (source)
          left join credit_grant
            on credit_grant.id = case source ->> 0 when 'unbilled' then null else source ->> 0 end::uuid
      ) paid
      where posting.organization_id = :organization_id and posting.billing_month = :month and posting.id <= :watermark
      group by 1, 2, 3, 4, 5, 6 order by 1, 2, 3, 4, 5, 6
    """
)
_MONTHS: Final = text(
    """
    select distinct billing_month from posting
      where organization_id = :organization_id and billing_month is not null and id <= :watermark
    """
)
_BOUGHT: Final = text(
    """
    select posting.id, posting.kind, posting.effective_at,
        sum(case when credit.kind = 'customer_prepaid' then transfer.amount else -transfer.amount end) as amount
      from posting
      join transfer on transfer.posting_id = posting.id
      join account credit on credit.id = transfer.credit_account
      join account debit on debit.id = transfer.debit_account
      where posting.organization_id = :organization_id and posting.id <= :watermark
        and posting.kind in ('topup', 'void_grant', 'payment', 'refund', 'credit_note')
        and 'customer_prepaid' in (credit.kind, debit.kind)
      group by 1, 2, 3 order by 1
    """
)
_DOCUMENTS: Final = text(
    f"""
    select issued.*, {NUMBER} as number_text, lines
      from ({issued()}) issued
      cross join lateral (
        select coalesce(jsonb_agg(jsonb_build_array(seq, kind, description, amount::text, rounded::text, project_id,
            project_name) order by seq), '[]') as lines
          from invoice_line where invoice_id = issued.id
      ) listed
      where organization_id = :organization_id and posting_id <= :watermark order by id
    """  # noqa: S608 - made of constants
)
_ORGANIZATIONS: Final = """
    select id, currency, timezone, (select legal_name from seller) as seller
      from organization where {condition} order by id limit :limit
"""


@dataclass(slots=True)
class _Account:
    """What is read once of an organization: its documents, its months, and what it bought."""

    id: UUID
    currency: str
    timezone: str
    issuer: str
    invoices: dict[date, Any] = field(default_factory=dict)
    loose: dict[date, list[Any]] = field(default_factory=lambda: defaultdict(list))
    bought: dict[date, list[Any]] = field(default_factory=lambda: defaultdict(list))
    months: set[date] = field(default_factory=set)
    originals: dict[UUID, Any] = field(default_factory=dict)


Row = dict[str, str | None]
"""Cells by column, not yet quoted; None is null. `_billed` is kept beside them, for sums."""


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """A whole shared out by weights so that the parts sum to it: the largest remainders get what is left over."""
    whole = sum(weights)
    if whole == 0:
        return [total if place == 0 else 0 for place in range(len(weights))]
    parts = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda place: (-(total * weights[place] % whole), place))
    for place in by_remainder[: total - sum(parts)]:
        parts[place] += 1
    return parts


async def rows_of(engine: AsyncEngine, wanted: Wanted) -> AsyncIterator[list[tuple[int, Row]]]:
    """The rows with what they bill in ledger units, a list for each organization and month."""
    prices: dict[UUID, Any] = {}
    async for account in _accounts(engine, wanted):
        for month in sorted(account.months):
            if not _is_wanted(month, wanted):
                continue
            values = {
                "organization_id": account.id,
                "month": month,
                "timezone": account.timezone,
                "watermark": wanted.watermark,
            }
            async with engine.connect() as connection:
                groups = (await connection.execute(_USAGE, values)).all()
                missing = {name for group in groups for name in group.price_version_ids} - prices.keys()
                found = await connection.execute(
                    text("select id, meter, scheme, price from price_version where id = any(:ids)"),
                    {"ids": list(missing)},
                )
                prices |= {row.id: row for row in found}
            yield [*_month_rows(account, month, groups, prices)]


def _month_rows(
    account: _Account, month: date, groups: Sequence[Any], prices: dict[UUID, Any]
) -> Iterator[tuple[int, Row]]:
    invoice = account.invoices.get(month)
    period = _Period(account, month, invoice)
    given: Counter[date] = Counter()
    for group in groups:
        yield from period.usage(group, prices)
        given[group.day] += int(group.given)
    for day, units in sorted(given.items()):
        if units:
            yield period.row(
                -units,
                "Credit",
                f"credit-{day}",
                day=day,
                ChargeDescription="Promotional credit",
                InvoiceId=period.number,
            )
    if invoice is not None:
        yield from period.rebates(invoice, sum(int(group.unbilled) for group in groups))
        yield from period.rounding_and_tax(invoice)
    for document in account.loose[month]:
        yield from period.document(document, account.originals.get(document.corrects))
    for bought in account.bought[month]:
        yield period.purchase(bought)


class _Period:
    """An organization's month: what its rows have in common."""

    def __init__(self, account: _Account, month: date, invoice: Any | None) -> None:
        self.account, self.month = account, month
        self.number = None if invoice is None else invoice.number_text
        # Those of the invoice were computed once, whatever became of the time zone.
        of_invoice = None if invoice is None or invoice.starts_at is None else (invoice.starts_at, invoice.ends_at)
        self.bounds = of_invoice or bounds_of(month, account.timezone)
        issuer = account.issuer if invoice is None else _party(invoice.seller) or account.issuer
        self.common: Row = {
            "BillingAccountId": str(account.id),
            "BillingAccountName": None if invoice is None else _party(invoice.buyer),
            "BillingCurrency": account.currency,
            "BillingPeriodStart": _time(self.bounds[0]),
            "BillingPeriodEnd": _time(self.bounds[1]),
            "ServiceCategory": "AI and Machine Learning",
            "ServiceSubcategory": "Generative AI",
            "ServiceName": "Language models",
            **dict.fromkeys(_PROVIDERS, issuer),
        }

    def row(
        self, units: int, category: str, name: str, *, day: date | None = None, **cells: str | None
    ) -> tuple[int, Row]:
        """A row that bills `units`, and costs as much unless `cells` say otherwise; of the whole month or of a day."""
        cost = amount_text(units, self.account.currency)
        start, end = self.bounds if day is None else _day(day, self.account.timezone)
        is_late = day is not None and not self.bounds[0] <= start < self.bounds[1]
        made: Row = {
            **self.common,
            "BilledCost": cost,
            "EffectiveCost": cost,
            "ListCost": cost,
            "ContractedCost": cost,
            "ChargeCategory": category,
            "ChargeClass": "Correction" if is_late else None,
            "ChargeFrequency": "Usage-Based" if category == "Usage" else "One-Time",
            "ChargePeriodStart": _time(start),
            "ChargePeriodEnd": _time(end),
            "x_RowId": f"{self.account.id}/{self.month}/{name}",
        }
        return units, made | cells

    def usage(self, group: Any, prices: dict[UUID, Any]) -> Iterator[tuple[int, Row]]:
        """A day's calls of one model at one set of prices, by meter; of corrections only what they changed."""
        code, amount = self.account.currency, int(group.amount)
        billed = int(group.unbilled + group.given)
        versions = {prices[name].meter: prices[name] for name in group.price_version_ids if name in prices}
        key = sha256(" ".join(map(str, group.price_version_ids)).encode()).hexdigest()[:12]
        name = f"{group.day}/{group.project_id}/{group.model}/{key}/{'prepaid' if group.is_prepaid else 'billed'}"
        common = {
            "SubAccountId": str(group.project_id),
            "InvoiceId": self.number,
            "PricingCategory": "Committed" if group.is_prepaid else "Standard",
        }
        if group.is_correction:
            effective = amount_text(amount, code)
            common |= {"EffectiveCost": effective, "ChargeDescription": f"Corrected charges of {group.model}"}
            yield self.row(billed, "Adjustment", f"{name}/correction", day=group.day, **common)
            return
        used = {meter: int(getattr(group, meter)) for meter in _METERS}
        priced = {meter: versions.get(meter) or versions.get(_STANDS_IN.get(meter, "")) for meter in _METERS}
        meters = [
            meter for meter in _METERS if (used[meter] and (priced[meter] or meter != "request")) or meter == "input"
        ]
        weights = [used[meter] * (0 if (price := priced[meter]) is None else price.price) for meter in meters]
        split = zip(meters, weights, shares(amount, weights), shares(billed, weights), strict=True)
        for meter, milli, effective_units, billed_units in split:
            if not (used[meter] or effective_units or billed_units):
                continue
            cells = _measured(meter, used[meter], priced[meter], milli, code, effective_units)
            cells |= {"ChargeDescription": f"{_METERS[meter]} of {group.model}", "SkuId": f"{group.model}/{meter}"}
            yield self.row(billed_units, "Usage", f"{name}/{meter}", day=group.day, **common, **cells)

    def rebates(self, invoice: Any, unbilled: int) -> Iterator[tuple[int, Row]]:
        """What the quantity of a month saves. What that or corrections bring below zero is credit."""
        rebate = 0
        for seq, kind, description, amount, *_ in invoice.lines:
            if kind == LineKind.REBATE:
                rebate -= int(amount)
                cells: Row = {"InvoiceId": invoice.number_text, "ChargeDescription": description}
                yield self.row(int(amount), "Adjustment", f"{invoice.id}/rebate-{seq}", day=None, **cells)
        if (returned := rebate - unbilled) > 0:
            cells = {
                "InvoiceId": invoice.number_text,
                "ChargeDescription": "Given back as credit",
                "EffectiveCost": amount_text(0, self.account.currency),
            }
            yield self.row(returned, "Adjustment", f"{invoice.id}/returned", day=None, **cells)

    def rounding_and_tax(self, invoice: Any) -> Iterator[tuple[int, Row]]:
        """What the invoice of a month has besides its usage and rebates."""
        named = {"InvoiceId": invoice.number_text}
        if invoice.rounding:
            cells = named | {"ChargeDescription": "Rounding to the currency's smallest coin"}
            yield self.row(int(invoice.rounding), "Adjustment", f"{invoice.id}/rounding", **cells)
        if invoice.tax and invoice.tax_detail.get("is_inclusive"):
            cells = named | {"ChargeDescription": "Tax that the prices contain"}
            yield self.row(-int(invoice.tax), "Adjustment", f"{invoice.id}/contained-tax", **cells)
        yield from self._tax(invoice, None)

    def document(self, document: Any, original: Any | None) -> Iterator[tuple[int, Row]]:
        """A credit note, or an invoice that is not of a month: line by line."""
        cells: Row = {"InvoiceId": document.number_text, "BillingAccountName": _party(document.buyer)}
        day = document.issued_at.astimezone(ZoneInfo(self.account.timezone)).date()
        if document.kind == "credit_note":
            cells["ChargeClass"] = "Correction"
            if original is not None and original.starts_at is not None:
                cells |= {
                    "ChargePeriodStart": _time(original.starts_at),
                    "ChargePeriodEnd": _time(original.ends_at),
                }
        for seq, _, description, _, rounded, project_id, project_name in document.lines:
            own = cells | {
                "ChargeDescription": description,
                "InvoiceDetailId": f"{document.id}-{seq}",
                "SubAccountId": project_id,
                "SubAccountName": project_name,
            }
            yield self.row(document.sign * int(rounded), "Adjustment", f"{document.id}/{seq}", day=day, **own)
        yield from self._tax(document, day, **cells)

    def _tax(self, document: Any, day: date | None, **cells: str | None) -> Iterator[tuple[int, Row]]:
        if document.tax:
            own = {
                "InvoiceId": document.number_text,
                "InvoiceDetailId": f"{document.id}-tax",
                "ChargeDescription": document.tax_detail.get("name") or "Tax",
                **cells,
            }
            yield self.row(document.sign * int(document.tax), "Tax", f"{document.id}/tax", day=day, **own)

    def purchase(self, bought: Any) -> tuple[int, Row]:
        """Credit that was bought, given back, or set against an invoice: it costs when it is used."""
        units, code = int(bought.amount), self.account.currency
        day = bought.effective_at.astimezone(ZoneInfo(self.account.timezone)).date()
        cells: Row = {
            "EffectiveCost": amount_text(0, code),
            "ChargeDescription": "Prepaid credit" if units > 0 else "Prepaid credit returned",
            "PricingCategory": "Standard",
            "PricingQuantity": "1" if units > 0 else "-1",
            "PricingUnit": "Credits",
            "ListUnitPrice": amount_text(abs(units), code),
            "ContractedUnitPrice": amount_text(abs(units), code),
            "SkuId": "prepaid-credit",
            "SkuMeter": "Prepaid Credit",
            "SkuPriceId": "prepaid-credit",
        }
        if units < 0:
            cells["ChargeClass"] = "Correction"
        return self.row(units, "Purchase", f"posting-{bought.id}", day=day, **cells)


def _measured(meter: str, used: int, price: Any | None, milli: int, code: str, effective_units: int) -> Row:
    """Quantities and prices of a meter. Only a price per unit gives a list price; tiers have no single one."""
    counted = _COUNTED.get(meter)
    cells: Row = {
        "ConsumedQuantity": str(used),
        "ConsumedUnit": counted or "Tokens",
        "PricingQuantity": str(used) if counted else f"{used // _MILLION}.{used % _MILLION:06d}",
        "PricingUnit": counted or "1000000 Tokens",
        "EffectiveCost": amount_text(effective_units, code),
        "SkuMeter": _METERS[meter],
    }
    if price is None or price.scheme != "unit":
        cost = amount_text(effective_units, code)
        return cells | {
            "ListCost": cost,
            "ContractedCost": cost,
            "SkuPriceId": None if price is None else str(price.id),
        }
    unit_price = exact_text(price.price, code) if counted else price_text(price.price, code)
    return cells | {
        "ListUnitPrice": unit_price,
        "ContractedUnitPrice": unit_price,
        "ListCost": exact_text(milli, code),
        "ContractedCost": exact_text(milli, code),
        "SkuPriceId": str(price.id),
        "SkuPriceDetails": json.dumps({"x_Meter": price.meter, "x_Scheme": price.scheme}),
    }


# Reading -------------------------------------------------------------------------------------------------------------


async def _accounts(engine: AsyncEngine, wanted: Wanted) -> AsyncIterator[_Account]:
    own = "" if wanted.organization_id is None else "id = :organization_id"
    values: dict[str, Any] = {"limit": _ORGANIZATIONS_PER_PAGE}
    if wanted.organization_id is not None:
        values["organization_id"] = wanted.organization_id
    after = ""
    while True:
        condition = " and ".join(filter(None, (own, after))) or "true"
        async with engine.connect() as connection:
            rows = (await connection.execute(text(_ORGANIZATIONS.format(condition=condition)), values)).all()
        for row in rows:
            yield await _account(engine, row, wanted)
        if len(rows) < _ORGANIZATIONS_PER_PAGE:
            return
        after, values["after"] = "id > :after", rows[-1].id


async def _account(engine: AsyncEngine, row: Any, wanted: Wanted) -> _Account:
    account = _Account(row.id, row.currency, row.timezone, row.seller or ISSUER)
    values = {"organization_id": row.id, "watermark": wanted.watermark}
    async with engine.connect() as connection:
        account.months.update((await connection.execute(_MONTHS, values)).scalars())
        documents = (await connection.execute(_DOCUMENTS, values)).all()
        bought = (await connection.execute(_BOUGHT, values)).all()
    for document in documents:
        account.originals[document.id] = document
        if document.status == "void":
            continue
        if document.kind == "invoice" and document.month is not None:
            account.invoices[document.month] = document
        else:
            account.loose[month_of(document.issued_at, account.timezone)].append(document)
    for each in bought:
        account.bought[month_of(each.effective_at, account.timezone)].append(each)
    account.months |= account.invoices.keys() | account.loose.keys() | account.bought.keys()
    return account


def _is_wanted(month: date, wanted: Wanted) -> bool:
    """Whether a billing period begins within what is wanted, by the calendar: one is never cut in two."""
    first = datetime.combine(month, time(), UTC)
    return (wanted.start is None or wanted.start <= first) and (wanted.end is None or first < wanted.end)


def _day(day: date, timezone: str) -> tuple[datetime, datetime]:
    zone = ZoneInfo(timezone)
    return datetime.combine(day, time(), zone), datetime.combine(day + timedelta(days=1), time(), zone)


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _party(snapshot: dict[str, Any]) -> str | None:
    name = snapshot.get("legal_name")
    return None if name is None else str(name)


# Files ---------------------------------------------------------------------------------------------------------------


def _kind(name: str, version: str, columns: tuple[FocusColumn, ...]) -> Kind:
    async def pieces(engine: AsyncEngine, export: Export) -> AsyncIterator[Piece]:
        async for rows in rows_of(engine, export.wanted):
            totals: Counter[str] = Counter()
            for units, row in rows:
                totals[row["BillingCurrency"] or ""] += units
            starts = [datetime.fromisoformat(row["ChargePeriodStart"] or "") for _, row in rows]
            body = "".join(line(_cell(column, row.get(column.name)) for column in columns) for _, row in rows)
            yield Piece(body.encode(), len(rows), totals, min(starts, default=None), max(starts, default=None))

    return Kind(
        name=name,
        schema=f"focus.cost_and_usage/{version}",
        pieces=pieces,
        head=",".join(column.name for column in columns).encode() + b"\r\n",
        total="BilledCost",
        moment="charge_period_start",
        takes_since=False,
    )


def _cell(column: FocusColumn, value: str | None) -> str:
    if value is None:
        return ""
    return text_cell(value) if column.form in (Form.TEXT, Form.JSON) else value


FOCUS: Final = _kind("focus", "1.2", COST_AND_USAGE_1_2)
FOCUS_1_4: Final = _kind("focus_1_4", "1.4", COST_AND_USAGE_1_4)
