"""Streams recorded from llama.cpp's server are charged as its own counters counted them, however they are split."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.requests import parse
from gateway.calls.commands import SendBody, Settle
from gateway.embedded.llamacpp import LlamaCpp
from models.call import Charge, Endpoint, Hold
from tests.unit.samples import make_call

STREAMS = Path(__file__).parent / "streams"
NAMES = sorted(path.stem for path in STREAMS.glob("llamacpp_*.sse"))


def recorded(name: str) -> tuple[dict[str, Any], bytes]:
    return json.loads((STREAMS / f"{name}.json").read_text()), (STREAMS / f"{name}.sse").read_bytes()


def played(name: str, cuts: list[int], **more: Any) -> tuple[Charge, bytes]:
    """The charge, and what the client got, of a recorded stream cut at these places."""
    record, stream = recorded(name)
    body = json.dumps({"model": "m", **record["request"], **more}).encode()
    call = make_call(parse(Endpoint(record["endpoint"]), body))
    call.begin()
    call.hold_answered(Hold(call.hold_request))
    call.upstream_sent()
    call.upstream_head(200, b"text/event-stream")
    places = [0, *sorted(cut % len(stream) for cut in cuts), len(stream)]
    for start, end in itertools.pairwise(places):
        call.upstream_bytes(stream[start:end])
    call.upstream_end()
    call.settled()
    said = call.take()
    (charge,) = [command.charge for command in said if isinstance(command, Settle)]
    return charge, b"".join(command.data for command in said if isinstance(command, SendBody))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, 100_000), max_size=20), stream=st.booleans())
def test_charged_as_the_server_counted(name: str, cuts: list[int], stream: bool) -> None:
    metered = recorded(name)[0]["metered"]
    charge, _ = played(name, cuts, stream=stream)
    assert charge.input_tokens == metered["prompt"] + metered["cached"]
    assert charge.cached_tokens == metered["cached"]
    assert charge.output_tokens == metered["predicted"]
    assert charge.flags == ()


@pytest.mark.parametrize("name", NAMES)
@given(cuts=st.lists(st.integers(0, 100_000), max_size=20))
def test_the_client_gets_every_byte_but_what_it_did_not_ask_for(name: str, cuts: list[int]) -> None:
    record, stream = recorded(name)
    _, body = played(name, cuts, stream=True)
    passed = json_lines(body)
    if record["endpoint"].endswith("/chat/completions") and (choices := record["request"].get("n", 1)) > 1:
        # The server begins its choices in any order; clients are told of all in order first.
        begin = passed.pop(0)["choices"]
        assert begin == [{"index": index, "delta": {}, "finish_reason": None} for index in range(choices)]
    for sent, got in zip((event for event in json_lines(stream) if event["choices"]), passed, strict=True):
        sent.pop("timings", None)
        sent.pop("usage", None)
        # The recorded server names its own model; ours is sold as m.
        assert got == {**sent, "model": got["model"]}
    assert body.endswith(b"data: [DONE]\n\n")


def json_lines(stream: bytes) -> list[dict[str, Any]]:
    events = [event.removeprefix(b"data: ") for event in stream.split(b"\n\n")]
    return [json.loads(event) for event in events if event.startswith(b"{")]


@pytest.mark.parametrize("name", NAMES)
def test_the_server_of_today_speaks_as_it_was_recorded(name: str, llamacpp: LlamaCpp) -> None:
    record, stream = recorded(name)
    options = {"stream": True, "stream_options": {"include_usage": True}, "timings_per_token": True}
    body = {"model": "tiny", **record["request"], **options}
    answer = httpx.post(llamacpp.url + record["endpoint"], json=body, trust_env=False)
    assert shapes(answer.content) == shapes(stream)


def shapes(stream: bytes) -> set[tuple[str, ...]]:
    """The sets of members that events have."""
    return {tuple(sorted(event)) for event in json_lines(stream)}
