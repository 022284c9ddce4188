"""What is sold: models, the deployments that serve them, the backends these run on, the prices and their books."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from models.money import MilliUnits
from models.usage import BilledCount

_BEFORE_ALL = datetime.min.replace(tzinfo=UTC)
_AFTER_ALL = datetime.max.replace(tzinfo=UTC)


class BackendKind(StrEnum):
    """The engines whose habits Tollgate knows; `openai` is any other server of that API."""

    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMACPP = "llamacpp"
    OLLAMA = "ollama"
    TGI = "tgi"
    OPENAI = "openai"


class Meter(StrEnum):
    """What a price can be per. Reasoning tokens are part of the output and priced as output unless priced apart.

    `minimum` counts nothing: its price is the least that a call costs which is charged at all.
    """

    INPUT = "input"
    CACHED_INPUT = "cached_input"
    CACHE_WRITE = "cache_write"
    OUTPUT = "output"
    REASONING = "reasoning"
    REQUEST = "request"
    IMAGE = "image"
    AUDIO_SECOND = "audio_second"
    GPU_SECOND = "gpu_second"
    MINIMUM = "minimum"


TOKEN_METERS: Final = (Meter.INPUT, Meter.CACHED_INPUT, Meter.CACHE_WRITE, Meter.OUTPUT, Meter.REASONING)
"""Meters of which a call has many, so that people state their prices per million."""

SOLD_BY: Final = (Meter.INPUT, Meter.IMAGE, Meter.AUDIO_SECOND, Meter.REQUEST)
"""Meters of which a model needs a price to be on sale: one of them at least."""

STANDS_IN: Final = {
    Meter.CACHED_INPUT: Meter.INPUT,
    Meter.CACHE_WRITE: Meter.INPUT,
    Meter.REASONING: Meter.OUTPUT,
}
"""The meter that counts the tokens of another one where that has no price of its own: the one it is a part of."""


class Scheme(StrEnum):
    """How a quantity becomes money.

    `unit`: each unit at one price. `graduated`: each unit at the price of the tier it lies in. `volume`: all units at
    the price of the tier that the quantity reaches. `package`: whole packages, the last one begun counts as whole.
    """

    UNIT = "unit"
    GRADUATED = "graduated"
    VOLUME = "volume"
    PACKAGE = "package"


class TiersOver(StrEnum):
    """The quantity that tiers look at: that of one call, or that of a calendar month.

    Over a month, a call is charged at the dearest tier, and the invoice gives back what the month's quantity saves.
    """

    CALL = "call"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class Tier:
    """A price in milli-units per unit, of the units after the tier before up to `up_to` (inclusive; None: all)."""

    up_to: int | None
    price: MilliUnits


class CostKind(StrEnum):
    """What usage costs the seller: by token and request as counted, by GPU-hour and kilowatt-hour as declared."""

    INPUT_TOKEN = "input_token"  # noqa: S105 - a token of text
    CACHED_TOKEN = "cached_token"  # noqa: S105
    OUTPUT_TOKEN = "output_token"  # noqa: S105
    REQUEST = "request"
    GPU_HOUR = "gpu_hour"
    KWH = "kwh"


@dataclass(frozen=True, slots=True)
class Backend:
    """A model server. `url` is its root without a path; `credential` is what it demands as a Bearer token.

    `region` is where it stands, for organizations whose calls must stay somewhere. `path_prefix` is in the place of
    `/v1`, for providers that have their API elsewhere.
    """

    id: UUID
    name: str
    kind: BackendKind
    url: str
    credential: str | None = field(default=None, repr=False)
    max_in_flight: int | None = None
    region: str | None = None
    path_prefix: str | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """A time of maintenance, from `start` (inclusive) to `end` (exclusive)."""

    start: datetime
    end: datetime

    def contains(self, moment: datetime) -> bool:
        """Whether the maintenance goes on at that moment."""
        return self.start <= moment < self.end


@dataclass(frozen=True, slots=True)
class Deployment:
    """One model on one backend, under the name the backend knows it by: `backend_model`, which names the version, too.

    Of the deployments that are able those of the lowest `priority` are used. One with a `pool` takes the calls of the
    organizations bound to that pool, and no others. In its `windows` it takes no new calls.
    """

    id: UUID
    model: str
    backend: Backend
    backend_model: str
    weight: int = 1
    priority: int = 0
    pool: str | None = None
    windows: tuple[Window, ...] = ()


class PricedAs(StrEnum):
    """At whose price a fallback serves: that of the model that was asked for, or its own."""

    REQUESTED = "requested"
    FALLBACK = "fallback"


@dataclass(frozen=True, slots=True)
class Fallback:
    """The model that serves when none of another one's deployments can; `when_full`: also when all of them are full."""

    model: str
    priced_as: PricedAs = PricedAs.REQUESTED
    when_full: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """A model that an alias stands for, and how large a share of its callers go there."""

    model: str
    weight: int


@dataclass(frozen=True, slots=True)
class Model:
    """A language model as it is sold. `tokenizer` is a path of a tokenizer.json or the name of a tiktoken encoding.

    One with `targets` is an alias: it has prices, but no deployments; each of its callers is served by one of them.
    """

    id: str
    context_length: int
    created_at: datetime
    tokenizer: str | None = None
    billed_count: BilledCount = BilledCount.BACKEND
    deployments: tuple[Deployment, ...] = ()
    fallback: Fallback | None = None
    targets: tuple[Target, ...] = ()
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OrganizationRouting:
    """Where an organization's calls may go: only into `regions` (None: anywhere), and to the deployments of `pool`.

    Without `uses_shared` they go to its pool and nowhere else; with it the pool comes first.
    """

    regions: frozenset[str] | None = None
    pool: str | None = None
    uses_shared: bool = True

    def choose(self, deployments: tuple[Deployment, ...]) -> tuple[Deployment, ...]:
        """Those of the deployments that may take a call of the organization; its own rank before all shared ones."""
        return tuple(
            replace(each, priority=each.priority - _OWN_FIRST) if each.pool is not None else each
            for each in deployments
            if (self.regions is None or each.backend.region in self.regions)
            and (each.pool == self.pool if each.pool is not None else self.uses_shared or self.pool is None)
        )


_OWN_FIRST: Final = 1_000_000
"""More than any priority: what is reserved for an organization is used before what all share."""
_ANYWHERE: Final = OrganizationRouting()


@dataclass(frozen=True, slots=True)
class PriceDraft:
    """A price as it is proposed: of one meter of one model, in one book and currency.

    `price` is in milli-units per unit of the meter (per call for `minimum`), per package where the scheme is that;
    with tiers it is the dearest of theirs. None as `effective_from` is the moment of publishing.
    """

    book: str
    model: str
    meter: Meter
    currency: str
    price: MilliUnits
    effective_from: datetime | None = None
    effective_to: datetime | None = None
    scheme: Scheme = Scheme.UNIT
    tiers: tuple[Tier, ...] = ()
    package_size: int | None = None
    tiers_over: TiersOver = TiersOver.CALL


@dataclass(frozen=True, slots=True)
class PriceVersion:
    """A price that was published, in force from `effective_from` (inclusive) to `effective_to` (exclusive)."""

    id: UUID
    book: str
    model: str
    meter: Meter
    currency: str
    price: MilliUnits
    effective_from: datetime
    effective_to: datetime | None = None
    scheme: Scheme = Scheme.UNIT
    tiers: tuple[Tier, ...] = ()
    package_size: int | None = None
    tiers_over: TiersOver = TiersOver.CALL

    def in_force(self, moment: datetime) -> bool:
        """Whether this version applies at `moment`."""
        return self.effective_from <= moment and (self.effective_to is None or moment < self.effective_to)

    @property
    def is_stepped(self) -> bool:
        """Whether the price of a call is more than its quantity times `price`."""
        return self.scheme is not Scheme.UNIT and self.tiers_over is TiersOver.CALL


@dataclass(frozen=True, slots=True)
class Tariff:
    """A price of a call that goes in steps: `meters` are counted together, and their sum is priced by the scheme."""

    meters: tuple[Meter, ...]
    scheme: Scheme
    price: MilliUnits = MilliUnits(0)
    tiers: tuple[Tier, ...] = ()
    package_size: int | None = None


@dataclass(frozen=True, slots=True)
class Steps:
    """What is special in the price of a call: its stepped prices, and the least that it costs, in milli-units."""

    tariffs: tuple[Tariff, ...] = ()
    minimum: MilliUnits = MilliUnits(0)


@dataclass(frozen=True, slots=True)
class Rates:
    """The prices pinned for one call, in milli-units per token (or per request, image, second of audio).

    A meter without a price of its own falls back to the one it is a part of: cached and cache-write input to input,
    reasoning to output. Where a price is stepped, the rate of its meters is 0 here and the price is in `steps`, which
    is None for most: a hold that was placed before there were steps has none either.
    """

    input: MilliUnits
    output: MilliUnits
    cached_input: MilliUnits
    cache_write: MilliUnits
    reasoning: MilliUnits
    request: MilliUnits = MilliUnits(0)
    version_ids: tuple[UUID, ...] = ()
    steps: Steps | None = None
    image: MilliUnits = MilliUnits(0)
    audio_second: MilliUnits = MilliUnits(0)


def rates_of(versions: Mapping[Meter, PriceVersion]) -> Rates | None:
    """The rates that versions make together, or None without a price that sells: what has no price is not sold.

    Of a model that is sold by the image, the second or the request, what has no price of its own is free.
    """
    if not any(meter in versions for meter in SOLD_BY):
        return None
    payers = {meter: versions.get(meter) or versions.get(STANDS_IN.get(meter, meter)) for meter in TOKEN_METERS}
    payers |= {meter: versions.get(meter) for meter in (Meter.REQUEST, Meter.IMAGE, Meter.AUDIO_SECOND)}
    rates = {
        meter: MilliUnits(0) if version is None or version.is_stepped else version.price
        for meter, version in payers.items()
    }
    tariffs = tuple(
        Tariff(
            tuple(meter for meter, payer in payers.items() if payer is version),
            *(version.scheme, version.price, version.tiers, version.package_size),
        )
        for version in dict.fromkeys(payers.values())
        if version is not None and version.is_stepped
    )
    minimum = versions[Meter.MINIMUM].price if Meter.MINIMUM in versions else MilliUnits(0)
    return Rates(
        input=rates[Meter.INPUT],
        output=rates[Meter.OUTPUT],
        cached_input=rates[Meter.CACHED_INPUT],
        cache_write=rates[Meter.CACHE_WRITE],
        reasoning=rates[Meter.REASONING],
        request=rates[Meter.REQUEST],
        version_ids=tuple(sorted(version.id for version in versions.values())),
        steps=Steps(tariffs, minimum) if tariffs or minimum else None,
        image=rates[Meter.IMAGE],
        audio_second=rates[Meter.AUDIO_SECOND],
    )


def line_of(book: str, parents: Mapping[str, str | None]) -> Iterator[str]:
    """A price book, then those that it inherits from, nearest first."""
    name: str | None = book
    while name is not None:
        yield name
        # A parent is named when a book is made and exists by then, so no line comes back to itself.
        name = parents.get(name)


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything on sale at one moment, read from Postgres as a whole and replaced as a whole."""

    models: dict[str, Model] = field(default_factory=dict)
    prices: dict[tuple[str, str, str], tuple[PriceVersion, ...]] = field(default_factory=dict)
    """Price versions by (book, currency, model)."""
    parents: dict[str, str | None] = field(default_factory=dict)
    """The book that a price book inherits from, by book; a book that is not here inherits from none."""
    batch_books: dict[str, str] = field(default_factory=dict)
    """The book by which calls of a batch are priced, by the book of their organization; a book may name none."""
    routing: dict[UUID, OrganizationRouting] = field(default_factory=dict)
    """Organizations whose calls do not go everywhere, by id."""
    _pinned: dict[tuple[str, str, str], tuple[datetime, datetime, Rates | None]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _open: dict[tuple[str, UUID | None], tuple[Deployment, ...]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def deployments(self, model: Model, organization: UUID) -> tuple[Deployment, ...]:
        """The deployments of a model that are open to an organization; put together once for each."""
        rule = self.routing.get(organization) if self.routing else None
        key = (model.id, None if rule is None else organization)
        known = self._open.get(key)
        if known is None:
            known = self._open[key] = (rule or _ANYWHERE).choose(model.deployments)
        return known

    def rates(self, book: str, currency: str, model: str, moment: datetime) -> Rates | None:
        """The rates in force, or None where the model has no price that sells it (`SOLD_BY`).

        A meter that has no price in the book has that of the nearest book it inherits from. Between two price changes
        the rates are the same for every call, so they are put together once.
        """
        key = (book, currency, model)
        known = self._pinned.get(key)
        if known is not None and known[0] <= moment < known[1]:
            return known[2]
        line = self._line(book, currency, model)
        changes = {change for versions in line for one in versions for change in (one.effective_from, one.effective_to)}
        since = max((change for change in changes if change and change <= moment), default=_BEFORE_ALL)
        until = min((change for change in changes if change and change > moment), default=_AFTER_ALL)
        rates = rates_of(self.versions(book, currency, model, moment))
        self._pinned[key] = since, until, rates
        return rates

    def batch_rates(self, book: str, currency: str, model: str, moment: datetime) -> Rates | None:
        """The rates of a call in a batch: those of the book that `book` names for that, else the usual ones.

        What a book inherits are prices; the book that its parent names for batches may be dearer than itself.
        """
        cheaper = self.batch_books.get(book)
        rates = None if cheaper is None else self.rates(cheaper, currency, model, moment)
        return rates or self.rates(book, currency, model, moment)

    def versions(self, book: str, currency: str, model: str, moment: datetime) -> dict[Meter, PriceVersion]:
        """The prices in force, by meter, each from the nearest book that has one."""
        # The nearest book comes last and has the last word.
        line = reversed(self._line(book, currency, model))
        return {one.meter: one for versions in line for one in versions if one.in_force(moment)}

    def _line(self, book: str, currency: str, model: str) -> list[tuple[PriceVersion, ...]]:
        return [self.prices.get((name, currency, model), ()) for name in line_of(book, self.parents)]
