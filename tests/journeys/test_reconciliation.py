"""An operator reconciles the ledger with the counters of a real llama.cpp."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from typer.testing import CliRunner

from billing.store.reconciliations import keep, last_base
from gateway.cli import make_app
from gateway.embedded.llamacpp import LlamaCpp
from gateway.embedded.redis import Redis
from models.reconciliation import Comparison, Counters, LedgerSums, Measure, Reconciliation, Verdict
from tests.conftest import Database
from tests.journeys.test_first_calls import mixed_call
from tests.scripted import DONE, Asked, end, open_stream, said, scripted_backend, send, usage
from tests.stage import Stage, Tenant, raise_curtain

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

_BACKEND = "llamacpp-tiny"
_BASELINE = Verdict.BASELINE


@pytest.fixture
async def stage(postgres: Database, redis: Redis, llamacpp: LlamaCpp) -> AsyncIterator[Stage]:
    async with raise_curtain(postgres.app_url, redis.url) as stage:
        await stage.backend(llamacpp.url)
        yield stage


async def call(stage: Stage, tenant: Tenant, numbers: range) -> None:
    for number in numbers:
        path, body = mixed_call(number)
        answer = await stage.client.post(stage.base_url + path, json={"model": "tiny", **body}, headers=tenant.headers)
        assert answer.status_code == 200, answer.text
    await stage.quiet()


async def reconcile(stage: Stage, *options: str) -> tuple[int, str]:
    """Exit code and output of `tollgate reconcile`."""
    key = stage.operator_headers["authorization"].removeprefix("Bearer ")
    environment = {"TOLLGATE_URL": stage.base_url, "TOLLGATE_OPERATOR_KEY": key}
    result = await asyncio.to_thread(CliRunner().invoke, make_app(), ["reconcile", *options], env=environment)
    return result.exit_code, result.output


async def reconciled(stage: Stage, *, ok: bool = True) -> dict[str, Any]:
    """The result for the only backend."""
    code, output = await reconcile(stage, "--json")
    run = json.loads(output)
    assert (code, run["ok"]) == ((0, True) if ok else (1, False)), output
    (result,) = run["data"]
    return dict(result)


async def test_calls_are_equal_and_a_call_past_the_gateway_is_not(stage: Stage, llamacpp: LlamaCpp) -> None:
    tenant = await stage.tenant()
    await call(stage, tenant, range(3))
    first = await reconciled(stage)
    assert (first["verdict"], first["since"], first["metered"]) == ("baseline", None, None)

    await call(stage, tenant, range(12))
    charges = await stage.charges(tenant, 15)
    equal = await reconciled(stage)
    assert (equal["verdict"], equal["since"]) == ("equal", first["at"])
    assert equal["difference"] == {"input_tokens": 0, "output_tokens": 0}
    assert equal["charged"]["output_tokens"] == sum(charge["output_tokens"] for charge in charges[:12])
    assert (equal["calls_in_flight"], equal["estimated_calls"]) == (0, 0)

    body = {"prompt": "past the gateway", "max_tokens": 7}
    usage = (await stage.client.post(f"{llamacpp.url}/v1/completions", json=body)).json()["usage"]
    await call(stage, tenant, range(12, 14))
    differs = await reconciled(stage, ok=False)
    assert differs["verdict"] == "differs"
    assert differs["difference"] == {
        "input_tokens": usage["prompt_tokens"],
        "output_tokens": usage["completion_tokens"],
    }

    # A difference is told once; it is all kept, newest first.
    assert (await reconciled(stage))["verdict"] == "equal"
    page = await stage.operate("GET", f"/reconciliation?backend={_BACKEND}&limit=3")
    assert [each["verdict"] for each in page["data"]] == ["equal", "differs", "equal"]
    assert page["has_more"]
    rest = await stage.operate("GET", f"/reconciliation?after={page['last_id']}")
    assert [each["verdict"] for each in rest["data"]] == ["baseline"]


async def test_charges_that_wait_for_a_worker_are_counted(stage: Stage) -> None:
    tenant = await stage.tenant()
    await reconciled(stage)
    await stage.stop_worker()
    await call(stage, tenant, range(6))
    waiting = await reconciled(stage)
    assert (waiting["verdict"], waiting["charged"]) == ("equal", waiting["metered"])
    assert waiting["charged"]["output_tokens"] > 0
    await stage.start_worker()
    await stage.charges(tenant, 6)
    booked = await reconciled(stage)
    assert (booked["verdict"], booked["charged"]) == ("equal", {"input_tokens": 0, "output_tokens": 0})


async def test_calls_in_flight_are_told(stage: Stage) -> None:
    tenant = await stage.tenant()
    await reconciled(stage)
    more = asyncio.Event()

    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await open_stream(writer)
        await send(writer, said("first"))
        await more.wait()
        await send(writer, said("last", finish="stop"), usage(5, 2), DONE)
        await end(writer)

    async with scripted_backend(script) as slow:
        await stage.backend(slow.url, kind="openai", model="slow")
        body = {"model": "slow", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        url = f"{stage.base_url}/v1/chat/completions"
        async with stage.client.stream("POST", url, json=body, headers=tenant.headers) as answer:
            pieces = answer.aiter_bytes()
            assert b"first" in await anext(pieces)
            during = await reconciled(stage)
            more.set()
            assert b"[DONE]" in b"".join([piece async for piece in pieces])
        await stage.quiet()
    assert (during["verdict"], during["calls_in_flight"]) == ("equal", 1)
    after = await reconciled(stage)
    # The other backend's call is none of this one's.
    assert (after["calls_in_flight"], after["charged"]) == (0, {"input_tokens": 0, "output_tokens": 0})


@pytest.mark.parametrize(
    ("kind", "metrics"),
    [
        pytest.param(
            "vllm",
            'vllm:prompt_tokens_total{{engine="0",model_name="served"}} {}.0\n'
            'vllm:generation_tokens_total{{engine="0",model_name="served"}} {}.0\n',
            id="vLLM",
        ),
        pytest.param(
            "sglang",
            'sglang:prompt_tokens_total{{model_name="served"}} {}.0\n'
            'sglang:generation_tokens_total{{model_name="served"}} {}.0\n',
            id="SGLang",
        ),
    ],
)
async def test_engines_in_python_are_compared_by_their_own_names(stage: Stage, kind: str, metrics: str) -> None:
    counted = {"prompt": 1_000, "generation": 50}

    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.path == "/metrics":
            text = metrics.format(counted["prompt"], counted["generation"]).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(text) + text)
            return
        counted["prompt"] += 7
        counted["generation"] += 2
        await open_stream(writer)
        await send(writer, said("two words", finish="stop"), usage(7, 2), DONE)
        await end(writer)

    tenant = await stage.tenant()
    async with scripted_backend(script) as engine:
        await stage.backend(engine.url, kind=kind, model="served")

        async def result(code: int) -> dict[str, Any]:
            ended, output = await reconcile(stage, "--json")
            assert ended == code, output
            return next(dict(one) for one in json.loads(output)["data"] if one["backend"] == f"{kind}-served")

        assert (await result(0))["verdict"] == "baseline"
        for _ in range(2):
            body = {"model": "served", "messages": [{"role": "user", "content": "hi"}]}
            answer = await stage.client.post(f"{stage.base_url}/v1/chat/completions", json=body, headers=tenant.headers)
            assert answer.status_code == 200, answer.text
        await stage.quiet()
        equal = await result(0)
        assert (equal["verdict"], equal["charged"]) == ("equal", {"input_tokens": 14, "output_tokens": 4})
        counted["generation"] += 1
        differs = await result(1)
        assert (differs["verdict"], differs["difference"]) == ("differs", {"input_tokens": 0, "output_tokens": 1})


async def test_a_base_of_a_busy_moment_is_no_ground_for_a_difference(stage: Stage) -> None:
    """Calls that ran when it was taken had tokens in the counters that came to the ledger later."""
    tenant = await stage.tenant()
    first = await reconciled(stage)
    engine = stage.app.parts.engine
    async with engine.begin() as connection:
        base = await last_base(connection, _BACKEND)
        assert base is not None
        less = Counters(base.counters.input - 3, base.counters.output)
        busy = Measure(less, base.ledger, base.ledger, calls_in_flight=1, is_steady=False)
        await keep(connection, Reconciliation(_BACKEND, base.at, None, base.counted_from, Comparison(_BASELINE), busy))
    begun = await reconciled(stage)
    assert (begun["verdict"], begun["metered"]) == ("baseline", None)
    assert begun["reason"].startswith("Calls ran when it was first looked at")
    await call(stage, tenant, range(2))
    assert (await reconciled(stage))["verdict"] == "equal"
    assert first["verdict"] == "baseline"


async def test_a_restart_begins_anew_and_a_busy_difference_is_no_base(stage: Stage) -> None:
    first = await reconciled(stage)
    engine = stage.app.parts.engine
    async with engine.begin() as connection:
        base = await last_base(connection, _BACKEND)
        assert base is not None
        measure = Measure(Counters(2**40, 2**40), LedgerSums(), LedgerSums(), calls_in_flight=2, is_steady=False)
        comparison = Comparison(Verdict.DIFFERS, LedgerSums(1, 1), LedgerSums())
        at = base.at + timedelta(microseconds=1)
        result = Reconciliation(_BACKEND, at, base.at, base.counted_from, comparison, measure)
        await keep(connection, result)
        assert await last_base(connection, _BACKEND) == base
    again = await reconciled(stage)
    assert (again["verdict"], again["since"]) == ("equal", first["at"])

    higher = Reconciliation(_BACKEND, at, None, base.counted_from, Comparison(Verdict.BASELINE), measure)
    async with engine.begin() as connection:
        await keep(connection, higher)
    restarted = await reconciled(stage)
    assert (restarted["verdict"], restarted["metered"]) == ("restarted", None)
    assert (await reconciled(stage))["verdict"] == "equal"


async def test_backends_that_cannot_be_asked_are_named(stage: Stage, llamacpp: LlamaCpp) -> None:
    await stage.backend("http://127.0.0.1:9", kind="vllm", model="gone")
    await stage.backend(llamacpp.url, kind="sglang", model="other")
    await stage.backend("http://127.0.0.1:9", kind="ollama", model="uncounted")
    code, output = await reconcile(stage, "--json")
    run = json.loads(output)
    assert (code, run["ok"], run["without_counters"]) == (1, False, ["ollama-uncounted"])
    verdicts = {each["backend"]: (each["verdict"], each["reason"]) for each in run["data"]}
    assert verdicts[_BACKEND] == ("baseline", None)
    assert verdicts["vllm-gone"] == ("unreachable", "It does not answer /metrics (ConnectError).")
    assert verdicts["sglang-other"][0] == "unreachable"
    assert "sglang:prompt_tokens_total" in verdicts["sglang-other"][1]
    code, output = await reconcile(stage)
    assert code == 1
    assert "Without counters of their own: ollama-uncounted." in output
