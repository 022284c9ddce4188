"""What is sold: models, the deployments that serve them, the backends these run on, and the prices."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
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
    """What a price can be per. Reasoning tokens are part of the output and priced as output unless priced apart."""

    INPUT = "input"
    CACHED_INPUT = "cached_input"
    CACHE_WRITE = "cache_write"
    OUTPUT = "output"
    REASONING = "reasoning"
    REQUEST = "request"
    IMAGE = "image"
    AUDIO_SECOND = "audio_second"
    GPU_SECOND = "gpu_second"


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
    """A model server. `url` is its root without a path; `credential` is what it demands as a Bearer token."""

    id: UUID
    name: str
    kind: BackendKind
    url: str
    credential: str | None = field(default=None, repr=False)
    max_in_flight: int | None = None


@dataclass(frozen=True, slots=True)
class Deployment:
    """One model on one backend, under the name the backend knows it by."""

    id: UUID
    model: str
    backend: Backend
    backend_model: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Model:
    """A language model as it is sold. `tokenizer` is a path of a tokenizer.json or the name of a tiktoken encoding."""

    id: str
    context_length: int
    created_at: datetime
    tokenizer: str | None = None
    billed_count: BilledCount = BilledCount.BACKEND
    deployments: tuple[Deployment, ...] = ()


@dataclass(frozen=True, slots=True)
class PriceVersion:
    """A price of one meter of one model in one book and currency, in force from `effective_from` (inclusive) to
    `effective_to` (exclusive)."""

    id: UUID
    book: str
    model: str
    meter: Meter
    currency: str
    price: MilliUnits
    effective_from: datetime
    effective_to: datetime | None = None

    def in_force(self, moment: datetime) -> bool:
        """Whether this version applies at `moment`."""
        return self.effective_from <= moment and (self.effective_to is None or moment < self.effective_to)


@dataclass(frozen=True, slots=True)
class Rates:
    """The prices pinned for one call, in milli-units per token (or per request).

    A meter without a price of its own falls back to the one it is a part of: cached and cache-write input to input,
    reasoning to output.
    """

    input: MilliUnits
    output: MilliUnits
    cached_input: MilliUnits
    cache_write: MilliUnits
    reasoning: MilliUnits
    request: MilliUnits = MilliUnits(0)
    version_ids: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything on sale at one moment, read from Postgres as a whole and replaced as a whole."""

    models: dict[str, Model] = field(default_factory=dict)
    prices: dict[tuple[str, str, str], tuple[PriceVersion, ...]] = field(default_factory=dict)
    """Price versions by (book, currency, model)."""
    _pinned: dict[tuple[str, str, str], tuple[datetime, datetime, Rates | None]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def rates(self, book: str, currency: str, model: str, moment: datetime) -> Rates | None:
        """The rates in force, or None where the model has no input price: what has no price is not sold.

        Between two price changes they are the same for every call, so they are put together once.
        """
        key = (book, currency, model)
        known = self._pinned.get(key)
        if known is not None and known[0] <= moment < known[1]:
            return known[2]
        versions = self.prices.get(key, ())
        changes = {version.effective_from for version in versions} | {version.effective_to for version in versions}
        since = max((change for change in changes if change and change <= moment), default=_BEFORE_ALL)
        until = min((change for change in changes if change and change > moment), default=_AFTER_ALL)
        rates = self._rates_at(key, moment)
        self._pinned[key] = since, until, rates
        return rates

    def _rates_at(self, key: tuple[str, str, str], moment: datetime) -> Rates | None:
        versions = {version.meter: version for version in self.prices.get(key, ()) if version.in_force(moment)}
        if Meter.INPUT not in versions:
            return None
        price = {meter: version.price for meter, version in versions.items()}
        fresh = price[Meter.INPUT]
        output = price.get(Meter.OUTPUT, MilliUnits(0))
        return Rates(
            input=fresh,
            output=output,
            cached_input=price.get(Meter.CACHED_INPUT, fresh),
            cache_write=price.get(Meter.CACHE_WRITE, fresh),
            reasoning=price.get(Meter.REASONING, output),
            request=price.get(Meter.REQUEST, MilliUnits(0)),
            version_ids=tuple(sorted(version.id for version in versions.values())),
        )
