"""What operators see of a running gateway or worker: log lines in JSON from an allow-list of fields, and metrics."""

from __future__ import annotations

import asyncio
import atexit
import logging
import re
import sys
import traceback
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple
from uuid import UUID

import msgspec
import structlog
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from models.call import CallOrigin, Charge, Endpoint, HoldRefusal
from models.catalog import Catalog, Meter
from models.errors import TollgateError
from models.money import CURRENCIES
from models.usage import Ending

if TYPE_CHECKING:
    from billing.store.batches import Standing

# Log lines -----------------------------------------------------------------------------------------------------------

ALLOWED_FIELDS: Final = frozenset(
    {"time", "level", "event", "logger", "message", "error", "frames", "reason"}
    | {"request_id", "call_id", "organization_id", "project_id", "api_key_id", "admin_key_id", "operator_key_id"}
    | {"endpoint", "model", "deployment", "backend", "backend_id", "method", "route", "streamed", "status", "ending"}
    | {"input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens", "usage_source"}
    | {"amount", "hold", "currency", "flags", "grant_id", "invoice_id", "duration_ms", "first_byte_ms", "attempts"}
    | {"shard", "shards", "epoch", "position", "entry_id", "entries", "charges", "booked", "dead", "lag", "partition"}
    | {"part", "kind", "name", "action", "check", "count", "attempt", "seconds", "retry_seconds", "revision", "version"}
    | {"host", "port", "pid", "signal", "exit_code", "failpoint"}
)
"""The only fields a log line can have. Prompts, answers, headers, credentials and URLs have no field, on purpose."""

_LONGEST_TEXT: Final = 300
_LONGEST_LIST: Final = 20
_FLUSH_SECONDS: Final = 0.05
_FLUSH_LINES: Final = 256
_SECRETS: Final = re.compile(r"\btg_[a-z]+_\w+|(?<=://)[^/\s@]*@|(?i:bearer)\s+\S+", re.ASCII)
_KEEP: Final = "\n\r\t"
_encode: Final = msgspec.json.Encoder(enc_hook=str).encode


class _Sink:
    """Where lines go. Inside an event loop they are written together, so that a call does not pay for a system call."""

    def __init__(self) -> None:
        self.stream: BinaryIO | None = None
        self._waiting: list[bytes | msgspec.Struct] = []
        self._timer: asyncio.TimerHandle | None = None

    def write(self, line: bytes | msgspec.Struct, *, urgent: bool) -> None:
        """Take a line without its end, or what makes one; urgent ones are written at once, after those that wait."""
        self._waiting.append(line)
        if urgent or len(self._waiting) >= _FLUSH_LINES:
            self.flush()
        elif self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self.flush)
            except RuntimeError:
                self.flush()

    def flush(self) -> None:
        """Write what waits. A log that cannot be written is dropped: it is no reason to stop serving."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        lines = b"".join((line if type(line) is bytes else _encode(line)) + b"\n" for line in waiting)
        try:
            stream = self.stream or sys.stderr.buffer
            stream.write(lines)
            stream.flush()
        except (OSError, ValueError):
            return


_sink: Final = _Sink()
_call_lines: bool = True


def configure_logging(level: str, stream: BinaryIO | None = None) -> None:
    """Send the lines of structlog, of the standard library and of uvicorn as JSON to `stream` (default: stderr).

    `level` is debug, info, warning or error; raises `ValueError` for another. Can be called again.
    """
    names = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
    if level not in names:
        raise ValueError(f"the log level must be one of {', '.join(names)}, not {level!r}")
    global _call_lines
    _call_lines = names[level] <= logging.INFO
    _sink.flush()
    _sink.stream = stream
    structlog.configure(
        processors=[structlog.stdlib.add_log_level, _render_event],
        wrapper_class=structlog.make_filtering_bound_logger(names[level]),
        logger_factory=_SinkLogger,
        cache_logger_on_first_use=False,
    )
    _route_standard_library(names[level])


def _route_standard_library(level: int) -> None:
    root = logging.getLogger()
    root.handlers[:] = [_StandardLibrary()]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    # Access lines quote the query string, where some clients put keys; `call_ended` says more and quotes nothing.
    access = logging.getLogger("uvicorn.access")
    access.handlers.clear()
    access.propagate = False
    for name in ("httpx", "httpcore", "sqlalchemy.engine", "asyncio"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


class _SinkLogger:
    """The innermost logger of structlog: takes rendered lines."""

    def __init__(self, *names: str) -> None:
        self._urgent = frozenset({"warning", "error", "critical"})

    def __getattr__(self, level: str) -> Any:
        urgent = level in self._urgent
        return lambda line: _sink.write(line, urgent=urgent)


class _StandardLibrary(logging.Handler):
    """Carries records of the `logging` module into the same lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; its arguments appear only inside the bounded, redacted message."""
        error = record.exc_info[1] if record.exc_info else None
        fields = {"logger": record.name, "message": record.getMessage()}
        line = _line("log", record.levelname.lower(), fields, error)
        _sink.write(line, urgent=record.levelno >= logging.WARNING)


def _render_event(_logger: Any, level: str, event: MutableMapping[str, Any]) -> bytes:
    name = str(event.pop("event", ""))
    raised = event.pop("exc_info", None)
    if raised is True:
        raised = sys.exc_info()[1]
    elif isinstance(raised, tuple):
        raised = raised[1]
    event.pop("level", None)
    return _line(name, level, event, raised if isinstance(raised, BaseException) else None)


def _line(event: str, level: str, fields: Mapping[str, Any], error: BaseException | None) -> bytes:
    line: dict[str, Any] = {"time": datetime.now(UTC), "level": level, "event": _clean(event)}
    line.update((name, _value(value)) for name, value in fields.items() if name in ALLOWED_FIELDS)
    if error is not None:
        line["error"] = type(error).__name__
        line["frames"] = list(_frames(error.__traceback__))
        reason = _reason(error)
        if reason:
            line.setdefault("reason", _clean(reason))
    return _encode(line)


def _value(value: Any) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case Enum():
            return _value(value.value)
        case str():
            return _clean(value)
        case UUID() | datetime():
            return str(value)
        case BaseException():
            return _clean(_reason(value) or type(value).__name__)
        case list() | tuple() | set() | frozenset():
            return [_value(item) for item in list(value)[:_LONGEST_LIST]]
    # An object's repr may hold anything, a key among it.
    return f"<{type(value).__name__}>"


@lru_cache(maxsize=1_024)
def _clean_name(name: str) -> str:
    return _clean(name)


def _clean(text: str) -> str:
    """Text without credentials, of bounded length, that stays on one line for every reader of lines."""
    text = _SECRETS.sub("[redacted]", text[: 4 * _LONGEST_TEXT])[:_LONGEST_TEXT]
    if text.isprintable():
        return text
    # JSON escapes newlines; other separators (U+2028), direction marks and lone surrogates are spelled out here.
    return "".join(letter if letter.isprintable() or letter in _KEEP else f"\\u{ord(letter):04x}" for letter in text)


def _reason(error: BaseException) -> str:
    """The message of an error where we wrote it ourselves; others may quote SQL parameters or bodies."""
    if isinstance(error, TollgateError):
        return error.message
    return error.strerror or "" if isinstance(error, OSError) else ""


def _frames(trace: TracebackType | None) -> Iterator[str]:
    """Where an error came from, innermost last: places in the code, never values."""
    for frame in traceback.extract_tb(trace)[-_LONGEST_LIST:]:
        yield f"{'/'.join(frame.filename.rsplit('/', 3)[1:])}:{frame.lineno} {frame.name}"


class _CallLine(msgspec.Struct, omit_defaults=True):
    time: datetime
    level: str
    event: str
    call_id: UUID
    organization_id: UUID
    project_id: UUID
    api_key_id: UUID
    endpoint: str
    model: str
    status: int
    ending: str
    duration_ms: int
    streamed: bool = False
    deployment: str = ""
    usage_source: str = ""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    amount: int = 0
    currency: str = ""
    first_byte_ms: int | None = None
    attempts: int = 1
    reason: str = ""


def log_call(
    origin: CallOrigin,
    *,
    status: int,
    ending: str,
    duration_ms: int,
    first_byte_ms: int | None = None,
    attempts: int = 1,
    reason: str = "",
    charge: Charge | None = None,
) -> None:
    """Write the one line of a call: `call_ended`. `status` is the HTTP status sent; `reason` why it went wrong.

    `ending` is an `Ending`, or a word for a call that was not charged, such as `refused` or `void`.
    """
    if not _call_lines:
        return
    line = _CallLine(
        datetime.now(UTC),
        "info",
        "call_ended",
        origin.call_id,
        origin.organization_id,
        origin.project_id,
        origin.api_key_id,
        origin.endpoint,
        _clean_name(origin.model),
        status,
        ending,
        duration_ms,
        origin.streamed,
        first_byte_ms=first_byte_ms,
        attempts=attempts,
        reason=_clean(reason) if reason else "",
    )
    if charge is not None:
        line.deployment = charge.deployment
        line.usage_source = charge.usage_source
        line.input_tokens = charge.input_tokens
        line.cached_tokens = charge.cached_tokens
        line.output_tokens = charge.output_tokens
        line.amount = charge.amount
        line.currency = charge.currency
    _sink.write(line, urgent=False)


atexit.register(_sink.flush)

# Metrics -------------------------------------------------------------------------------------------------------------

FIRST_BYTE_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CALL_SECONDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0)
WAIT_SECONDS: Final = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
BACKEND_ERRORS: Final = frozenset(
    {"connect", "tls", "timeout", "first_byte_timeout", "idle_timeout", "total_timeout", "status_4xx", "status_5xx"}
    | {"refused", "protocol", "mid_stream", "closed", "too_large"}
)
"""Reasons of `backend_error`; another one is counted as `other`."""

_OTHER: Final = "other"
_TOKEN_METERS: Final = ("input", "cached_input", "cache_write", "output", "reasoning")
_ENDPOINTS: Final = frozenset(str(endpoint) for endpoint in Endpoint)
_ENDINGS: Final = frozenset(str(ending) for ending in Ending) | {"refused", "void"}
_REFUSALS: Final = frozenset(str(refusal) for refusal in HoldRefusal)
_MOST_FLAGS: Final = 64
_FLAG: Final = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)
_UNTIL_START: Final[dict[str, int]] = dict.fromkeys(sorted(_ENDPOINTS), 0)


class _Histogram:
    """Counts per bucket of one labelled series; `bounds` in seconds, ascending."""

    __slots__ = ("bounds", "buckets", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.buckets[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus buckets: (upper bound, number of values up to it)."""
        pairs: list[tuple[str, float]] = []
        running = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.buckets, strict=True):
            running += count
            pairs.append((bound, running))
        return pairs


class CallMetrics(Collector):
    """What the calls of one process did. Plain integers that Prometheus reads when it asks: a call pays 2 to 3 µs.

    All methods are called from the event loop, as is the scrape, so there is no lock. Labels come only from known
    sets: a model or backend that is not in the catalog is counted as `other`, never under the text a client sent.
    """

    def __init__(self) -> None:
        self._catalog: Catalog | None = None
        self._models: frozenset[str] = frozenset()
        self._backends: frozenset[str] = frozenset()
        self._calls: dict[tuple[str, str, str, int], int] = {}
        self._tokens: dict[str, list[int]] = {}
        self._charged: dict[str, int] = {}
        self._refusals: dict[str, int] = {}
        self._backend_errors: dict[tuple[str, str], int] = {}
        self._flags: dict[str, int] = {}
        self._audited: dict[tuple[str, str], int] = {}
        self._waits = _Histogram(WAIT_SECONDS)
        self._shed: dict[tuple[str, str], int] = {}
        self._retries: dict[str, int] = {}
        self._in_flight = dict(_UNTIL_START)
        self._first_byte = {endpoint: _Histogram(FIRST_BYTE_SECONDS) for endpoint in (*_UNTIL_START, _OTHER)}
        self._duration = {endpoint: _Histogram(CALL_SECONDS) for endpoint in (*_UNTIL_START, _OTHER)}

    def know(self, catalog: Catalog) -> None:
        """Take the models and backends of a catalog as label values; costs nothing for the one that is known."""
        if catalog is self._catalog:
            return
        self._catalog = catalog
        self._models = frozenset(catalog.models)
        deployments = (deployment for model in catalog.models.values() for deployment in model.deployments)
        self._backends = frozenset(deployment.backend.name for deployment in deployments)

    def started(self, endpoint: str) -> None:
        """A call begins; `ended` must follow."""
        if endpoint in self._in_flight:
            self._in_flight[endpoint] += 1

    def first_byte(self, endpoint: str, seconds: float) -> None:
        """The first byte of an answer went to the client, `seconds` after its request was there."""
        self._first_byte[endpoint if endpoint in _ENDPOINTS else _OTHER].observe(seconds)

    def ended(self, endpoint: str, model: str, ending: str, status: int, seconds: float) -> None:
        """A call that `started` is over. `ending` is an `Ending`, `refused` or `void`; `status` the HTTP status."""
        if endpoint in self._in_flight:
            self._in_flight[endpoint] -= 1
        else:
            endpoint = _OTHER
        if model not in self._models:
            model = _OTHER
        if ending not in _ENDINGS:
            ending = _OTHER
        key = (endpoint, model, ending, status // 100)
        self._calls[key] = self._calls.get(key, 0) + 1
        self._duration[endpoint].observe(seconds)

    def charged(self, charge: Charge) -> None:
        """A charge was settled: its tokens, its amount and what was wrong with the backend's numbers."""
        model = charge.model if charge.model in self._models else _OTHER
        row = self._tokens.get(model)
        if row is None:
            row = self._tokens[model] = [0] * len(_TOKEN_METERS)
        row[0] += charge.input_tokens
        row[1] += charge.cached_tokens
        row[2] += charge.cache_write_tokens
        row[3] += charge.output_tokens
        row[4] += charge.reasoning_tokens
        currency = charge.currency if charge.currency in CURRENCIES else _OTHER
        self._charged[currency] = self._charged.get(currency, 0) + charge.amount
        for flag in charge.flags:
            known = flag in self._flags or (len(self._flags) < _MOST_FLAGS and _FLAG.fullmatch(flag))
            label = flag if known else _OTHER
            self._flags[label] = self._flags.get(label, 0) + 1

    def audited(self, model: str, reported: int, counted: int) -> None:
        """We counted a call's output as well: the backend's number and ours, whose difference is the drift."""
        label = model if model in self._models else _OTHER
        for whose, tokens in (("backend", reported), ("own", counted)):
            self._audited[label, whose] = self._audited.get((label, whose), 0) + tokens

    def refused(self, reason: str) -> None:
        """The hot store refused a hold; `reason` is a `HoldRefusal`."""
        label = reason if reason in _REFUSALS else _OTHER
        self._refusals[label] = self._refusals.get(label, 0) + 1

    def waited(self, seconds: float) -> None:
        """A call got a slot of a backend, after `seconds`."""
        self._waits.observe(seconds)

    def shed(self, reason: str, status: int) -> None:
        """A call was turned away before anything was held; `reason` is from a fixed set of ours."""
        self._shed[reason, str(status)] = self._shed.get((reason, str(status)), 0) + 1

    def retried(self, *, within_budget: bool) -> None:
        """A call was tried again elsewhere, or was not because too many were."""
        label = "taken" if within_budget else "over_budget"
        self._retries[label] = self._retries.get(label, 0) + 1

    def backend_error(self, backend: str, reason: str) -> None:
        """An attempt at a backend (by name) failed; `reason` is one of `BACKEND_ERRORS`."""
        key = (backend if backend in self._backends else _OTHER, reason if reason in BACKEND_ERRORS else _OTHER)
        self._backend_errors[key] = self._backend_errors.get(key, 0) + 1

    def collect(self) -> Iterator[Metric]:
        """All series, for a scrape."""
        calls = CounterMetricFamily(
            "tollgate_calls", "Calls that ended.", labels=("endpoint", "model", "ending", "status")
        )
        for (endpoint, model, ending, status), count in self._calls.items():
            calls.add_metric((endpoint, model, ending, f"{status}xx"), count)
        yield calls
        meters = f"Tokens charged, by meter ({Meter.CACHED_INPUT} and {Meter.CACHE_WRITE} are parts of input)."
        tokens = {
            (model, meter): count
            for model, row in self._tokens.items()
            for meter, count in zip(_TOKEN_METERS, row, strict=True)
            if count
        }
        yield _counter("tollgate_tokens", meters, ("model", "meter"), tokens)
        yield _counter(
            "tollgate_charged_units", "Money charged, in ledger units of the currency.", ("currency",), self._charged
        )
        yield _counter("tollgate_hold_refusals", "Holds that were refused.", ("reason",), self._refusals)
        yield _counter(
            "tollgate_backend_errors", "Attempts at a backend that failed.", ("backend", "reason"), self._backend_errors
        )
        yield _counter("tollgate_usage_flags", "What was wrong with reported usage.", ("flag",), self._flags)
        audits = "Output tokens of audited calls, by the backend's count and by our own."
        yield _counter("tollgate_audited_tokens", audits, ("model", "whose"), self._audited)
        shed = "Calls turned away before anything was held."
        yield _counter("tollgate_calls_shed", shed, ("reason", "status"), self._shed)
        retries = "Calls tried again at another deployment, or not because the budget was used up."
        yield _counter("tollgate_retries", retries, ("outcome",), self._retries)
        waits = HistogramMetricFamily("tollgate_wait_seconds", "Time that a call waited for a slot of a backend.")
        waits.add_metric((), self._waits.cumulative(), self._waits.total)
        yield waits
        in_flight = GaugeMetricFamily("tollgate_calls_in_flight", "Calls that run now.", labels=("endpoint",))
        for endpoint, count in self._in_flight.items():
            in_flight.add_metric((endpoint,), count)
        yield in_flight
        yield _histogram("tollgate_first_byte_seconds", "Time to the first byte of an answer.", self._first_byte)
        yield _histogram("tollgate_call_seconds", "Time from a request to the end of its answer.", self._duration)


class WorkerMetrics(Collector):
    """What a worker moved from the stream to the book, and what still waits."""

    def __init__(self) -> None:
        self._booked = 0
        self._dead = 0
        self._recovered = 0
        self._voided = 0
        self._lag: dict[int, int] = {}

    def booked(self, entries: int) -> None:
        """So many entries of the stream are in Postgres now."""
        self._booked += entries

    def dead(self, entries: int) -> None:
        """So many entries could not be booked and wait for a person."""
        self._dead += entries

    def swept(self, recovered: int, voided: int) -> None:
        """So many calls of dead gateways were charged their checkpoint, and so many cost nothing."""
        self._recovered += recovered
        self._voided += voided

    def lag(self, shard: int, entries: int) -> None:
        """So many entries of a shard's stream are not booked yet."""
        self._lag[shard] = entries

    def collect(self) -> Iterator[Metric]:
        """All series, for a scrape."""
        yield CounterMetricFamily("tollgate_booked_entries", "Stream entries booked.", value=self._booked)
        yield CounterMetricFamily("tollgate_dead_entries", "Stream entries that cannot be booked.", value=self._dead)
        yield _counter(
            "tollgate_swept_calls",
            "Calls of dead gateways that were ended.",
            ("ending",),
            {str(Ending.RECOVERED): self._recovered, "void": self._voided},
        )
        lag = GaugeMetricFamily("tollgate_stream_lag_entries", "Stream entries not booked yet.", labels=("shard",))
        for shard, entries in sorted(self._lag.items()):
            lag.add_metric((str(shard),), entries)
        yield lag


class BatchMetrics(Collector):
    """What a gateway did for batches, and how all batches stand, which workers look up now and then."""

    def __init__(self) -> None:
        self._run: dict[str, int] = {}
        self._ended: dict[str, int] = {}
        self._lost = 0
        self._returned = 0
        self._returned_units: dict[str, int] = {}
        self._standing: Standing | None = None
        self._oldest_seconds = 0.0

    def run(self, outcome: str) -> None:
        """An attempt at a line is over; `outcome` is from a fixed set of ours."""
        self._run[outcome] = self._run.get(outcome, 0) + 1

    def ended(self, status: str) -> None:
        """A batch has ended with this status."""
        self._ended[status] = self._ended.get(status, 0) + 1

    def lost(self, attempts: int) -> None:
        """So many attempts at lines have no answer, and may have been charged."""
        self._lost += attempts

    def returned(self, currency: str, amount: int) -> None:
        """What a lost attempt was charged was given back, in ledger units."""
        self._returned += 1
        self._returned_units[currency] = self._returned_units.get(currency, 0) + amount

    def stand(self, standing: Standing, now: datetime) -> None:
        """How all batches stand."""
        self._standing = standing
        age = 0.0 if standing.oldest is None else (now - standing.oldest).total_seconds()
        self._oldest_seconds = max(0.0, age)

    def collect(self) -> Iterator[Metric]:
        """All series, for a scrape."""
        run = "Attempts at lines of batches that ended: completed and failed lines have their answer, put_off and"
        run += " retried ones are tried again, and those taken were another gateway's by then."
        yield _counter("tollgate_batch_lines_run", run, ("outcome",), self._run)
        yield _counter("tollgate_batches_ended", "Batches that ended.", ("status",), self._ended)
        lost = "Attempts at lines whose answers were lost."
        yield CounterMetricFamily("tollgate_batch_attempts_lost", lost, value=self._lost)
        returned = "Lost attempts whose charge was given back."
        yield CounterMetricFamily("tollgate_batch_attempts_returned", returned, value=self._returned)
        units = "Money given back for lost attempts, in ledger units of the currency."
        yield _counter("tollgate_batch_returned_units", units, ("currency",), self._returned_units)
        yield from self._gauges()

    def _gauges(self) -> Iterator[Metric]:
        batches = GaugeMetricFamily("tollgate_batches_open", "Batches that have not ended.", labels=("status",))
        meaning = "Lines of open batches that are yet to be run, and that run now."
        lines = GaugeMetricFamily("tollgate_batch_lines", meaning, labels=("state",))
        oldest = "Age of the oldest batch that has lines waiting, 0 where none has. A batch is given 24 hours."
        age = GaugeMetricFamily("tollgate_batch_oldest_waiting_seconds", oldest, labels=())
        if self._standing is not None:
            for status, count in self._standing.batches.items():
                batches.add_metric((status,), count)
            lines.add_metric(("waiting",), self._standing.waiting)
            lines.add_metric(("running",), self._standing.running)
            age.add_metric((), self._oldest_seconds)
        yield from (batches, lines, age)


class BreakerGauge(NamedTuple):
    """The state of the breaker of one deployment, by its model: closed, open or half_open."""

    model: str
    state: str


class BackendGauge(NamedTuple):
    """What runs and waits at one backend, in calls and in tokens reserved by those that run."""

    backend: str
    in_flight: int
    tokens: int
    waiting: int
    breakers: tuple[BreakerGauge, ...]
    is_healthy: bool = True


class BackendGauges(Collector):
    """How things stand at the backends, read when Prometheus asks."""

    def __init__(self) -> None:
        self.read: Callable[[], Iterable[BackendGauge]] = tuple

    def collect(self) -> Iterator[Metric]:
        """All series, for a scrape."""
        labels = ("backend",)
        in_flight = GaugeMetricFamily("tollgate_backend_calls_in_flight", "Calls that a backend runs.", labels=labels)
        tokens = GaugeMetricFamily("tollgate_backend_reserved_tokens", "Tokens these may take.", labels=labels)
        waiting = GaugeMetricFamily("tollgate_backend_calls_waiting", "Calls that wait for it.", labels=labels)
        healthy = GaugeMetricFamily("tollgate_backend_healthy", "0 where health checks fail.", labels=labels)
        meaning = "0 where calls pass, 1 where none does, 0.5 while one is tried."
        state = GaugeMetricFamily("tollgate_breaker_open", meaning, labels=("backend", "model"))
        for gauge in self.read():
            in_flight.add_metric((gauge.backend,), gauge.in_flight)
            tokens.add_metric((gauge.backend,), gauge.tokens)
            waiting.add_metric((gauge.backend,), gauge.waiting)
            healthy.add_metric((gauge.backend,), int(gauge.is_healthy))
            for breaker in gauge.breakers:
                state.add_metric((gauge.backend, breaker.model), _BREAKER_VALUES[breaker.state])
        yield from (in_flight, tokens, waiting, healthy, state)


_BREAKER_VALUES: Final = {"closed": 0.0, "half_open": 0.5, "open": 1.0}


class PartsUp(Collector):
    """Whether the parts that a process needs answered when they were last asked."""

    def __init__(self) -> None:
        self._up: dict[str, bool] = {}

    def set(self, part: str, up: bool) -> None:
        """Note the answer of `redis` or `postgres`."""
        self._up[part] = up

    def collect(self) -> Iterator[Metric]:
        """All series, for a scrape."""
        up = GaugeMetricFamily("tollgate_part_up", "1 where the part answered when last asked.", labels=("part",))
        for part, state in sorted(self._up.items()):
            up.add_metric((part,), int(state))
        yield up


def _counter(name: str, text: str, labels: tuple[str, ...], counts: Mapping[Any, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, count in counts.items():
        family.add_metric(key if isinstance(key, tuple) else (key,), count)
    return family


def _histogram(name: str, text: str, series: Mapping[str, _Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=("endpoint",))
    for endpoint, histogram in series.items():
        family.add_metric((endpoint,), histogram.cumulative(), histogram.total)
    return family


def make_registry(collectors: Iterable[Collector]) -> CollectorRegistry:
    """A registry of our own, with the process's memory and CPU beside the given collectors."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    for collector in collectors:
        registry.register(collector)
    return registry


CALLS: Final = CallMetrics()
WORKER: Final = WorkerMetrics()
BATCHES: Final = BatchMetrics()
PARTS_UP: Final = PartsUp()
BACKENDS: Final = BackendGauges()
REGISTRY: Final = make_registry((CALLS, WORKER, BATCHES, PARTS_UP, BACKENDS))
"""The metrics of this process, as `/metrics` shows them."""
