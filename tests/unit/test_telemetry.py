"""Log lines and metrics: what may appear in them, and what never does, whatever a client sends."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import structlog
from prometheus_client import generate_latest
from prometheus_client.registry import Collector

from billing.store.batches import Standing
from gateway.telemetry import (
    BatchMetrics,
    CallMetrics,
    PartsUp,
    WorkerMetrics,
    configure_logging,
    log_call,
    make_registry,
)
from models.call import CallOrigin, Charge, Endpoint
from models.catalog import Backend, BackendKind, Catalog, Deployment, Model
from models.errors import Unavailable
from models.usage import Ending, UsageSource

KEY = "tg_live_" + "Zz9" * 12
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def origin(model: str) -> CallOrigin:
    nobody = UUID(int=0)
    return CallOrigin(
        call_id=nobody,
        organization_id=nobody,
        project_id=nobody,
        api_key_id=nobody,
        shard=1,
        currency="USD",
        endpoint=Endpoint.COMPLETIONS,
        model=model,
        streamed=False,
        created_at=datetime.now(UTC),
    )


@pytest.fixture
def stream() -> Iterator[io.BytesIO]:
    """Where the lines of one test go; the logging of the test run itself is put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    lines = io.BytesIO()
    configure_logging("info", lines)
    yield lines
    configure_logging("info", io.BytesIO())
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def _lines(stream: io.BytesIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().decode().splitlines()]


def test_fields_outside_the_list_are_dropped(stream: io.BytesIO) -> None:
    structlog.get_logger("x").info("booked", shard=3, headers={"authorization": KEY}, prompt="my diagnosis", body=KEY)
    (line,) = _lines(stream)
    assert set(line) == {"time", "level", "event", "shard"}
    assert (line["level"], line["event"], line["shard"]) == ("info", "booked", 3)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('x\r\n{"level":"info","event":"forged"}', id="a forged line"),
        pytest.param("x\u2028y\x85z\x0b\x0c", id="separators that some readers split at"),
        pytest.param("\ud800\x00\x1b[2J", id="lone surrogate, NUL, terminal escape"),
        pytest.param("y" * 1_000_000, id="a megabyte"),
    ],
)
def test_one_event_is_one_short_line(stream: io.BytesIO, text: str) -> None:
    structlog.get_logger().info("look", model=text)
    log_call(origin(text), status=404, ending="refused", duration_ms=1, reason=text)
    logging.getLogger("uvicorn.error").info("%s", text)
    lines = _lines(stream)
    assert [line["event"] for line in lines] == ["look", "call_ended", "log"]
    assert all(len(json.dumps(line)) < 3_000 for line in lines)


def test_secrets_never_appear(stream: io.BytesIO) -> None:
    log = structlog.get_logger()
    log.warning(
        "looked", reason=f"no key {KEY} at redis://user:hunter2@host:1/0", message=f"Authorization: Bearer {KEY}"
    )
    logging.getLogger("anything").error("refused Bearer %s for postgresql://app:hunter2@db/x", KEY)
    logging.getLogger("uvicorn.access").info('GET /v1/models?api_key=%s HTTP/1.1" 401', KEY)
    try:
        raise ValueError(f"parameters: {KEY}, hunter2")
    except ValueError as error:
        log.error("unexpected", exc_info=error)
        logging.getLogger("asyncio").exception("Task failed")
    log.info("odd", model={"authorization": KEY})
    text = stream.getvalue().decode()
    assert KEY not in text
    assert "hunter2" not in text
    assert [line["event"] for line in _lines(stream)] == ["looked", "log", "unexpected", "log", "odd"]


def test_an_error_is_told_by_its_type_its_place_and_our_own_sentence(stream: io.BytesIO) -> None:
    log = structlog.get_logger()
    for error in (Unavailable("Redis is away."), OSError(28, "No space left on device")):
        try:
            raise error
        except Exception:
            log.exception("failed")
    first, second = _lines(stream)
    assert (first["error"], first["reason"], first["level"]) == ("Unavailable", "Redis is away.", "error")
    assert "test_telemetry.py" in first["frames"][-1]
    assert second["reason"] == "No space left on device"


def test_levels(stream: io.BytesIO) -> None:
    configure_logging("error", stream)
    structlog.get_logger().info("quiet")
    log_call(origin("m"), status=200, ending="finished", duration_ms=1)
    logging.getLogger("x").warning("quiet")
    structlog.get_logger().error("loud")
    assert [line["event"] for line in _lines(stream)] == ["loud"]
    with pytest.raises(ValueError, match="debug, info"):
        configure_logging("verbose")


def test_a_call_has_one_line_with_its_charge(stream: io.BytesIO) -> None:
    log_call(origin("m"), status=200, ending="finished", duration_ms=12, first_byte_ms=3, charge=_charge("m"))
    (line,) = _lines(stream)
    assert (line["amount"], line["currency"], line["input_tokens"], line["output_tokens"]) == (700, "USD", 10, 5)
    assert (line["first_byte_ms"], line["duration_ms"], line["usage_source"]) == (3, 12, "backend")


def _charge(model: str, flags: tuple[str, ...] = ()) -> Charge:
    nobody = UUID(int=0)
    return Charge(
        call_id=nobody,
        organization_id=nobody,
        project_id=nobody,
        api_key_id=nobody,
        currency="USD",
        endpoint="/v1/completions",
        model=model,
        deployment="one",
        streamed=False,
        ending=Ending.FINISHED,
        usage_source=UsageSource.BACKEND,
        input_tokens=10,
        cached_tokens=4,
        cache_write_tokens=0,
        output_tokens=5,
        reasoning_tokens=0,
        amount=700,
        hold=900,
        price_version_ids=(),
        created_at=NOW,
        ended_at=NOW,
        flags=flags,
    )


def _catalog() -> Catalog:
    backend = Backend(nobody := UUID(int=0), "gpu-1", BackendKind.VLLM, "http://gpu-1")
    deployment = Deployment(nobody, "tiny", backend, "tiny")
    return Catalog({"tiny": Model("tiny", 4_096, NOW, deployments=(deployment,))})


def _samples(*collectors: Collector) -> dict[str, float]:
    samples: dict[str, float] = {}
    for collector in collectors:
        for metric in collector.collect():
            for sample in metric.samples:
                labels = ",".join(f'{label}="{value}"' for label, value in sorted(sample.labels.items()))
                samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def test_call_metrics() -> None:
    metrics = CallMetrics()
    metrics.know(_catalog())
    metrics.started("/v1/completions")
    metrics.started("/v1/completions")
    metrics.first_byte("/v1/completions", 0.02)
    metrics.charged(_charge("tiny", flags=("usage_missing",)))
    metrics.ended("/v1/completions", "tiny", "finished", 200, 0.7)
    metrics.refused("balance")
    metrics.backend_error("gpu-1", "connect")
    samples = _samples(metrics)
    call = 'endpoint="/v1/completions"'
    assert samples[f'tollgate_calls_total{{ending="finished",{call},model="tiny",status="2xx"}}'] == 1
    assert samples['tollgate_tokens_total{meter="input",model="tiny"}'] == 10
    assert samples['tollgate_tokens_total{meter="cached_input",model="tiny"}'] == 4
    assert samples['tollgate_charged_units_total{currency="USD"}'] == 700
    assert samples['tollgate_hold_refusals_total{reason="balance"}'] == 1
    assert samples['tollgate_backend_errors_total{backend="gpu-1",reason="connect"}'] == 1
    assert samples['tollgate_usage_flags_total{flag="usage_missing"}'] == 1
    assert samples[f"tollgate_calls_in_flight{{{call}}}"] == 1
    assert samples[f'tollgate_first_byte_seconds_bucket{{{call},le="0.01"}}'] == 0
    assert samples[f'tollgate_first_byte_seconds_bucket{{{call},le="0.025"}}'] == 1
    assert samples[f"tollgate_call_seconds_sum{{{call}}}"] == pytest.approx(0.7)
    assert samples[f"tollgate_call_seconds_count{{{call}}}"] == 1


def test_clients_cannot_make_labels() -> None:
    metrics = CallMetrics()
    metrics.know(_catalog())
    for number in range(200):
        text = f"{KEY}{number}"
        metrics.started(text)
        metrics.first_byte(text, 1)
        metrics.ended(text, text, text, 400, 1)
        metrics.charged(_charge(text, flags=(text, f"flag_{number}")))
        metrics.refused(text)
        metrics.backend_error(text, text)
    samples = _samples(metrics)
    assert KEY not in "".join(samples)
    assert len(samples) < 600
    assert samples['tollgate_calls_total{ending="other",endpoint="other",model="other",status="4xx"}'] == 200


def test_worker_metrics_and_parts() -> None:
    worker, parts = WorkerMetrics(), PartsUp()
    worker.booked(500)
    worker.dead(1)
    worker.lag(7, 12)
    parts.set("redis", True)
    parts.set("postgres", False)
    samples = _samples(worker, parts)
    assert samples["tollgate_booked_entries_total"] == 500
    assert samples["tollgate_dead_entries_total"] == 1
    assert samples['tollgate_stream_lag_entries{shard="7"}'] == 12
    assert (samples['tollgate_part_up{part="redis"}'], samples['tollgate_part_up{part="postgres"}']) == (1, 0)


def test_batch_metrics() -> None:
    metrics = BatchMetrics()
    assert "tollgate_batch_lines" not in {name.partition("{")[0] for name in _samples(metrics)}, "nobody has looked"
    metrics.run("completed")
    metrics.run("completed")
    metrics.ended("expired")
    metrics.lost(3)
    metrics.returned("KRW", 70)
    metrics.returned("KRW", 5)
    metrics.stand(Standing({"in_progress": 2}, waiting=40, running=16, oldest=NOW), NOW + timedelta(minutes=2))
    assert _samples(metrics) == {
        'tollgate_batch_lines_run_total{outcome="completed"}': 2,
        'tollgate_batches_ended_total{status="expired"}': 1,
        "tollgate_batch_attempts_lost_total": 3,
        "tollgate_batch_attempts_returned_total": 2,
        'tollgate_batch_returned_units_total{currency="KRW"}': 75,
        'tollgate_batches_open{status="in_progress"}': 2,
        'tollgate_batch_lines{state="waiting"}': 40,
        'tollgate_batch_lines{state="running"}': 16,
        "tollgate_batch_oldest_waiting_seconds": 120,
    }
    metrics.stand(Standing({}, waiting=0, running=0, oldest=None), NOW)
    assert _samples(metrics)["tollgate_batch_oldest_waiting_seconds"] == 0


def test_the_process_itself_is_measured() -> None:
    assert b"process_resident_memory_bytes" in generate_latest(make_registry([]))


def test_observing_a_call_is_cheap() -> None:
    """Not a benchmark: it only notices when someone puts a lock or a label look-up of microseconds back in."""
    metrics = CallMetrics()
    metrics.know(_catalog())
    charge = _charge("tiny")

    def hundred_calls() -> float:
        start = time.thread_time()
        for _ in range(100):
            metrics.started("/v1/completions")
            metrics.first_byte("/v1/completions", 0.01)
            metrics.charged(charge)
            metrics.ended("/v1/completions", "tiny", "finished", 200, 0.1)
        return time.thread_time() - start

    assert min(hundred_calls() for _ in range(20)) < 100 * 20e-6
