"""Sounds: charged by the second, or by tokens where the backend tells these, in every form of an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import BadRequestError

from tests import sounds
from tests.integration.endpoints.conftest import Shop
from tests.scripted import DONE, answer, chunk, stream

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

SPEECH = sounds.wav(2.5)
SEGMENTS = [
    {"id": 0, "start": 0.0, "end": 1.25, "text": " Hello there."},
    {"id": 1, "start": 1.25, "end": 3_661.5, "text": " Bye --> \n\n now"},
]


def says(body: dict[str, Any]) -> Any:
    return answer(200, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("usage", "seconds", "tokens", "source"),
    [
        pytest.param({"type": "duration", "seconds": 2}, 2, (0, 0), "backend", id="seconds"),
        pytest.param({"type": "duration", "seconds": 1.2}, 2, (0, 0), "backend", id="a second begun"),
        pytest.param({"type": "duration", "seconds": 900}, 3, (0, 0), "backend", id="more than there are"),
        pytest.param({"type": "duration", "seconds": -1}, 3, None, "estimate", id="negative"),
        pytest.param({"type": "duration", "seconds": "x"}, 3, None, "estimate", id="no number"),
        pytest.param(None, 3, None, "estimate", id="nothing"),
        pytest.param(
            {"type": "tokens", "input_tokens": 25, "output_tokens": 4, "total_tokens": 29,
             "input_token_details": {"audio_tokens": 25, "text_tokens": 0}},
            3, (25, 4), "backend", id="tokens",
        ),
    ],
)  # fmt: skip
async def test_a_sound_is_charged(
    shop: Shop, usage: Any, seconds: int, tokens: tuple[int, int] | None, source: str
) -> None:
    shop.backend.script = says({"text": "hello"} | ({"usage": usage} if usage else {}))
    heard = await shop.client.audio.transcriptions.create(model="vllm", file=("a.wav", SPEECH), language="en")
    assert heard.text == "hello"
    charge = await shop.charge()
    assert (charge["endpoint"], charge["audio_seconds"], charge["usage_source"]) == (
        "/v1/audio/transcriptions", seconds, source,
    )  # fmt: skip
    if tokens is not None:
        assert (charge["input_tokens"], charge["output_tokens"]) == tokens
    assert charge["counted"]["audio_seconds"] == 3
    told = heard.usage
    assert told is not None
    assert told.type == ("tokens" if tokens and any(tokens) else "duration")


async def test_the_form_that_goes_upstream_is_ours(shop: Shop) -> None:
    shop.backend.script = says({"text": "hello", "usage": {"type": "duration", "seconds": 3}})
    await shop.client.audio.transcriptions.create(
        model="vllm",
        file=('../"\r\nx: y".exe', SPEECH, "text/html"),
        prompt="names: Ann",
        temperature=0.5,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        extra_headers={"x-conversation-id": "steal"},
    )
    (asked,) = shop.backend.asked
    assert asked.path == "/v1/audio/transcriptions"
    kind, _, boundary = asked.headers["content-type"].partition("; boundary=")
    assert kind == "multipart/form-data"
    assert set(asked.headers) == {"host", "content-type", "accept", "connection", "content-length"}
    parts = asked.body.split(f"--{boundary}".encode())
    assert parts[-1] == b"--\r\n"
    heads = [part.partition(b"\r\n\r\n")[0].decode() for part in parts[1:-1]]
    assert [head.split('name="')[1].split('"')[0] for head in heads] == [
        "prompt", "temperature", "timestamp_granularities[]", "timestamp_granularities[]", "response_format", "model",
        "file",
    ]  # fmt: skip
    assert heads[-1].endswith('filename="audio.wav"\r\ncontent-type: audio/wav')
    assert SPEECH in parts[-2]
    assert b"\r\n\r\nx\r\n" in parts[-3]


FORMS = {
    "text": "Hello there.\n",
    "srt": ("1\n00:00:00,000 --> 00:00:01,250\nHello there.\n\n2\n00:00:01,250 --> 01:01:01,500\nBye -> now\n\n"),
    "vtt": "WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nHello there.\n\n00:00:01.250 --> 01:01:01.500\nBye -> now\n\n",
}


@pytest.mark.parametrize("path", ["transcriptions", "translations"])
@pytest.mark.parametrize("form", FORMS)
async def test_text_and_subtitles_are_made_here(shop: Shop, form: str, path: str) -> None:
    shop.backend.script = says({"text": "Hello there.", "duration": "2.4", "segments": SEGMENTS})
    reply = await shop.post(
        f"/v1/audio/{path}", files={"file": ("a.wav", SPEECH)}, data={"model": "vllm", "response_format": form}
    )
    assert (reply.status_code, reply.text) == (200, FORMS[form])
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    charge = await shop.charge()
    # The verbose form tells the length of the sound where there is no usage.
    assert (charge["audio_seconds"], charge["usage_source"]) == (3, "backend")
    asked = b"verbose_json" if form != "text" else b"\r\n\r\njson\r\n"
    assert asked in shop.backend.asked[0].body


async def test_a_verbose_answer_is_passed_on(shop: Shop) -> None:
    verbose = {"text": "Hello there.", "language": "en", "duration": 2.4, "segments": SEGMENTS}
    shop.backend.script = says(verbose)
    data = {"model": "openai", "response_format": "verbose_json"}
    reply = await shop.post("/v1/audio/translations", files={"file": ("a.wav", SPEECH)}, data=data)
    assert reply.json() == {**verbose, "usage": {"type": "duration", "seconds": 3}}


@pytest.mark.parametrize("kind", ["llamacpp", "ollama"])
async def test_engines_without_times_make_no_subtitles(shop: Shop, kind: str) -> None:
    for form in ("srt", "verbose_json"):
        with pytest.raises(BadRequestError) as caught:
            await shop.client.audio.transcriptions.create(
                model=kind,
                file=("a.wav", SPEECH),
                response_format=form,
            )
        assert caught.value.param == "response_format"
    assert not shop.backend.asked


def piece(text: str, finish: str | None = None) -> bytes:
    return chunk(
        id="trsc-1", object="transcription.chunk", choices=[{"delta": {"content": text}, "finish_reason": finish}]
    )


LIKE_CHATS = stream(
    piece("Hello "),
    piece("there.", "stop"),
    chunk(choices=[], usage={"prompt_tokens": 125, "completion_tokens": 4}),
    DONE,
)
BY_TYPE = stream(
    chunk(type="transcript.text.delta", delta="Hello ", logprobs=[{"token": "Hello", "logprob": -0.5, "bytes": [1]}]),
    chunk(type="transcript.text.delta", delta="there."),
    chunk(
        type="transcript.text.done",
        text="Hello there.",
        usage={"type": "tokens", "input_tokens": 125, "output_tokens": 4, "total_tokens": 129},
    ),
)
NOT_STREAMED = says({"text": "Hello there.", "usage": {"type": "tokens", "input_tokens": 125, "output_tokens": 4}})


@pytest.mark.parametrize(
    ("kind", "script", "deltas"),
    [
        pytest.param("vllm", LIKE_CHATS, ["Hello ", "there."], id="vLLM, in the events of chats"),
        pytest.param("openai", BY_TYPE, ["Hello ", "there."], id="events of the standard"),
        pytest.param("llamacpp", NOT_STREAMED, ["Hello there."], id="an engine that does not stream"),
    ],
)
async def test_a_stream_has_the_events_of_the_standard(shop: Shop, kind: str, script: Any, deltas: list[str]) -> None:
    shop.backend.script = script
    events = await shop.client.audio.transcriptions.create(model=kind, file=("a.wav", SPEECH), stream=True)
    heard = [event async for event in events]
    assert [event.delta for event in heard if event.type == "transcript.text.delta"] == deltas
    done = heard[-1]
    assert done.type == "transcript.text.done"
    assert done.text == "Hello there."
    assert done.usage is not None
    assert (done.usage.input_tokens, done.usage.output_tokens) == (125, 4)
    charge = await shop.charge()
    assert (charge["input_tokens"], charge["output_tokens"], charge["audio_seconds"]) == (125, 4, 3)
    assert (charge["streamed"], charge["ending"], charge["usage_source"]) == (True, "finished", "backend")
    has_asked = b'name="stream"\r\n\r\ntrue' in shop.backend.asked[0].body
    assert has_asked == (kind != "llamacpp")


async def test_a_stream_that_breaks_off_is_charged_for_the_sound(shop: Shop) -> None:
    shop.backend.script = stream(piece("Hello "))
    reply = await shop.post(
        "/v1/audio/transcriptions", files={"file": ("a.wav", SPEECH)}, data={"model": "vllm", "stream": "true"}
    )
    assert "transcript.text.delta" in reply.text
    assert "event: error" in reply.text
    assert "transcript.text.done" not in reply.text
    assert "[DONE]" not in reply.text
    charge = await shop.charge()
    assert (charge["ending"], charge["audio_seconds"]) == ("backend_failed", 3)


@pytest.mark.parametrize(
    ("data", "param"),
    [
        pytest.param({}, "model", id="no model"),
        pytest.param({"model": "vllm", "response_format": "docx"}, "response_format", id="an unknown form"),
        pytest.param({"model": "vllm", "temperature": "nan"}, "temperature", id="not a number"),
        pytest.param({"model": "vllm", "temperature": "9"}, "temperature", id="too hot"),
        pytest.param({"model": "vllm", "stream": "maybe"}, "stream", id="no truth"),
        pytest.param(
            {"model": "vllm", "stream": "true", "response_format": "srt"}, "response_format", id="streamed subtitles"
        ),
        pytest.param({"model": "vllm", "prompt": "x" * 9_000}, "prompt", id="a long prompt"),
        pytest.param({"model": "vllm", "url": "http://169.254.169.254/"}, "url", id="a destination"),
        pytest.param({"model": ["vllm", "openai"]}, "model", id="two models"),
        pytest.param(
            {"model": "vllm", "timestamp_granularities[]": "word"}, "timestamp_granularities", id="times of text"
        ),
    ],
)
async def test_wrong_fields(shop: Shop, data: dict[str, Any], param: str) -> None:
    reply = await shop.post("/v1/audio/transcriptions", files={"file": ("a.wav", SPEECH)}, data=data)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert not shop.backend.asked
    await shop.nothing_charged()


async def test_a_file_that_is_no_sound(shop: Shop) -> None:
    for content in (b"", b"hello", b"RIFF"):
        reply = await shop.post("/v1/audio/transcriptions", files={"file": ("a.wav", content)}, data={"model": "vllm"})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "file")
    assert not shop.backend.asked
