"""What usage costs the seller: tokens at their prices, and declared machines divided among their users. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final, NamedTuple
from uuid import UUID

from billing.rounding import divide_half_even
from billing.shares import apportion
from models.catalog import CostKind, Meter
from models.money import MilliUnits, Units

_MILLI: Final = 1_000
_SECONDS_AN_HOUR: Final = 3_600
_WATTS_A_KILOWATT: Final = 1_000
_MILLION: Final = 1_000_000

METERS: Final = {
    CostKind.INPUT_TOKEN: Meter.INPUT,
    CostKind.CACHED_TOKEN: Meter.CACHED_INPUT,
    CostKind.OUTPUT_TOKEN: Meter.OUTPUT,
    CostKind.REQUEST: Meter.REQUEST,
}
"""The meter that counts what a kind of cost is per; machines have none."""


def marked_up(cost: MilliUnits, ppm: int) -> MilliUnits:
    """What is asked for something of this cost, with `ppm` millionths of the cost on top; rounded half-even, once."""
    return MilliUnits(divide_half_even(cost * (_MILLION + ppm), _MILLION))


@dataclass(frozen=True, slots=True)
class CostPrice:
    """What a unit of a kind costs, in milli-units of `currency`, from a day on and until another (exclusive)."""

    model: str
    kind: CostKind
    currency: str
    price: MilliUnits
    first_day: date
    end_day: date | None = None

    def in_force(self, day: date) -> bool:
        """Whether it is the price of that day."""
        return self.first_day <= day and (self.end_day is None or day < self.end_day)


@dataclass(frozen=True, slots=True)
class Used:
    """What an organization used of a model on a day; `cached` is a part of `input`."""

    model: str
    organization_id: UUID
    day: date
    calls: int
    input: int
    cached: int
    output: int


@dataclass(frozen=True, slots=True)
class Machines:
    """What ran for a model on a day, whoever used it."""

    model: str
    day: date
    gpu_seconds: int
    watt_hours: int


class CostKey(NamedTuple):
    """What a sum of costs is about; no organization where machines ran for nobody."""

    model: str
    kind: CostKind
    organization_id: UUID | None
    currency: str


def costs_of(prices: Sequence[CostPrice], used: Sequence[Used], machines: Sequence[Machines]) -> dict[CostKey, Units]:
    """The costs of a month, each rounded once; those of machines by largest remainder of the tokens of the month."""
    by_model: dict[tuple[str, CostKind], list[CostPrice]] = {}
    for price in prices:
        by_model.setdefault((price.model, price.kind), []).append(price)

    def at(model: str, kind: CostKind, day: date) -> CostPrice | None:
        return next((price for price in by_model.get((model, kind), ()) if price.in_force(day)), None)

    exact: dict[CostKey, int] = {}

    def add(price: CostPrice | None, organization_id: UUID | None, quantity: int) -> None:
        if price is not None and quantity:
            key = CostKey(price.model, price.kind, organization_id, price.currency)
            exact[key] = exact.get(key, 0) + quantity * price.price

    for use in used:
        cached = at(use.model, CostKind.CACHED_TOKEN, use.day)
        # Without a price of its own a cached token costs what any other does.
        fresh = use.input - use.cached if cached else use.input
        add(at(use.model, CostKind.INPUT_TOKEN, use.day), use.organization_id, fresh)
        add(cached, use.organization_id, use.cached)
        add(at(use.model, CostKind.OUTPUT_TOKEN, use.day), use.organization_id, use.output)
        add(at(use.model, CostKind.REQUEST, use.day), use.organization_id, use.calls)
    costs = {key: divide_half_even(milli, _MILLI) for key, milli in exact.items()}

    exact.clear()
    for run in machines:
        add(at(run.model, CostKind.GPU_HOUR, run.day), None, run.gpu_seconds)
        add(at(run.model, CostKind.KWH, run.day), None, run.watt_hours)
    for key, milli in exact.items():
        per = _SECONDS_AN_HOUR if key.kind is CostKind.GPU_HOUR else _WATTS_A_KILOWATT
        costs |= _divided(key, divide_half_even(milli, _MILLI * per), used)
    return {key: Units(amount) for key, amount in costs.items() if amount}


def _divided(key: CostKey, amount: int, used: Iterable[Used]) -> dict[CostKey, int]:
    """An amount among the organizations that used the model, by their tokens."""
    tokens: dict[UUID, int] = {}
    for use in used:
        if use.model == key.model:
            tokens[use.organization_id] = tokens.get(use.organization_id, 0) + use.input + use.output
    owners = sorted(owner for owner, count in tokens.items() if count)
    if not owners:
        return {key: amount}
    parts = apportion(amount, [tokens[owner] for owner in owners])
    return {key._replace(organization_id=owner): part for owner, part in zip(owners, parts, strict=True)}


def changes(due: Mapping[CostKey, int], posted: Mapping[CostKey, int]) -> dict[CostKey, Units]:
    """What must be posted so that what was posted becomes what is due; below zero where it was too much."""
    differences = {key: due.get(key, 0) - posted.get(key, 0) for key in due.keys() | posted.keys()}
    return {key: Units(differences[key]) for key in sorted(differences, key=_order) if differences[key]}


def _order(key: CostKey) -> tuple[str, ...]:
    return key.currency, key.model, key.kind.value, str(key.organization_id or "")
