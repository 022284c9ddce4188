"""Answers that are no text of a model: rankings, images, and what is said in a sound."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gateway.backends.events import Chunk, read_any, text_of
from gateway.calls.answers.answer import End, encode, with_cost
from gateway.calls.metering import Meter
from gateway.calls.refusals import error_event
from models.call import CallOrigin, CallRequest
from models.catalog import Deployment
from models.errors import TollgateError

_DONE = b"data: [DONE]\n\n"


class _Whole:
    """An answer that comes whole and is told at the end."""

    def __init__(self, request: CallRequest, origin: CallOrigin, deployment: Deployment, meter: Meter) -> None:
        self.request = request
        self.origin = origin
        self.meter = meter
        self.body: dict[str, Any] = {}

    def event(self, raw: bytes, chunk: Chunk, data: bytes) -> bytes:
        """Nobody asked for events."""
        return b""

    def aside(self, raw: bytes) -> bytes:
        """Of no use in an object."""
        return b""

    def whole(self, answer: dict[str, Any], body: bytes) -> bool:
        """As it is, in the shape that all engines' answers have been brought to."""
        self.body = answer
        return True

    def cut(self, choices: Collection[int], last: bytes) -> bytes:
        """There is nothing to end."""
        return b""

    def broke(self, error: TollgateError) -> bytes:
        """Nothing of an object was sent."""
        return b""


class Ranking(_Whole):
    """Documents in the order of their relevance, as many as were asked for."""

    def end(self, end: End) -> bytes:
        """The ranking."""
        asked = self.request.echo or {}
        results = self.body["results"][: asked.get("top_n")]
        if asked.get("return_documents"):
            documents = self.request.body["documents"]
            results = [{**result, "document": {"text": documents[result["index"]]}} for result in results]
        tokens = end.usage().prompt
        return encode(
            {
                "id": f"rerank-{self.origin.call_id.hex}",
                "object": "list",
                "model": self.request.model,
                "results": results,
                "usage": with_cost({"prompt_tokens": tokens, "total_tokens": tokens}, end),
            }
        )


class Images(_Whole):
    """Images, in the answer itself."""

    def end(self, end: End) -> bytes:
        """The images."""
        body = {"created": int(self.origin.created_at.timestamp()), **self.body}
        told = end.usage()
        usage = _by_tokens(told.prompt, told.completion) if told.prompt or told.completion else {}
        if usage or end.cost is not None:
            body["usage"] = with_cost(usage, end)
        return encode(body)


class Transcript(_Whole):
    """What is said in a sound, in the form that the client wants."""

    def whole(self, answer: dict[str, Any], body: bytes) -> bool:
        """Subtitles need times."""
        segments = answer.get("segments")
        is_timed = isinstance(segments, list) and all(_is_segment(segment) for segment in segments)
        if self.request.audio_format in ("srt", "vtt") and not is_timed:
            return False
        return super().whole(answer, body)

    def end(self, end: End) -> bytes:
        """The words."""
        match self.request.audio_format:
            case "text":
                return f"{self.body['text']}\n".encode("utf-8", "replace")
            case "srt" | "vtt":
                return subtitles(self.body["segments"], self.request.audio_format)
            case _:
                return encode({**self.body, "usage": self.usage(end)})

    def usage(self, end: End) -> dict[str, Any]:
        """By tokens where the backend tells these, else by the second."""
        told = end.usage()
        if end.is_usage_known and (told.prompt or told.completion):
            return with_cost({"type": "tokens", **_by_tokens(told.prompt, told.completion)}, end)
        seconds = told.audio_seconds or self.request.audio_seconds_bound
        return with_cost({"type": "duration", "seconds": seconds}, end)


class TranscriptStream(Transcript):
    """The same as it is heard, in the events of the OpenAI API whatever those of the engine are."""

    def __init__(self, request: CallRequest, origin: CallOrigin, deployment: Deployment, meter: Meter) -> None:
        super().__init__(request, origin, deployment, meter)
        self._texts: list[str] = []

    def event(self, raw: bytes, chunk: Chunk, data: bytes) -> bytes:
        """A piece of the words."""
        text = "".join(text_of(choice) for choice in chunk.choices or ())
        if not text:
            # The last event waits until the call is paid for; it may tell the whole text.
            told = read_any(data)
            if isinstance(told, Mapping) and told.get("type") == "transcript.text.done":
                self.body = {"text": told["text"]} if isinstance(told.get("text"), str) else {}
            return b""
        self._texts.append(text)
        told = read_any(data)
        logprobs = told.get("logprobs") if isinstance(told, Mapping) and "type" in told else None
        more = {} if logprobs is None else {"logprobs": logprobs}
        return _event({"type": "transcript.text.delta", "delta": text, **more})

    def aside(self, raw: bytes) -> bytes:
        """A comment keeps the connection alive."""
        return raw if raw.startswith(b":") else b""

    def end(self, end: End) -> bytes:
        """The whole text with its usage. An engine that did not stream has said all at once."""
        text = "".join(self._texts)
        before = b""
        if not text and self.body.get("text"):
            before = _event({"type": "transcript.text.delta", "delta": self.body["text"]})
        done = {"type": "transcript.text.done", "text": self.body.get("text", text), "usage": self.usage(end)}
        return before + _event(done) + (end.done or _DONE)

    def broke(self, error: TollgateError) -> bytes:
        """The error, without [DONE]."""
        return error_event(error)


def subtitles(segments: list[dict[str, Any]], form: str) -> bytes:
    """Segments with their times (seconds) as SubRip (`srt`) or WebVTT (`vtt`)."""
    is_vtt = form == "vtt"
    cues = []
    for number, segment in enumerate(segments, 1):
        times = " --> ".join(_clock(segment[side], "." if is_vtt else ",") for side in ("start", "end"))
        # A blank line would end the cue, and an arrow would begin another.
        text = " ".join(segment["text"].split()).replace("-->", "->")
        cues.append(f"{times}\n{text}\n" if is_vtt else f"{number}\n{times}\n{text}\n")
    return (("WEBVTT\n\n" if is_vtt else "") + "\n".join(cues) + "\n").encode("utf-8", "replace")


def _clock(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1_000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1_000:02}{mark}{rest % 1_000:03}"


def _is_segment(segment: Any) -> bool:
    return (
        isinstance(segment, dict)
        and isinstance(segment.get("text"), str)
        and all(
            isinstance(segment.get(side), int | float) and 0 <= segment[side] < 1_000_000 for side in ("start", "end")
        )
    )


def _by_tokens(prompt: int, completion: int) -> dict[str, Any]:
    return {"input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion}


def _event(event: dict[str, Any]) -> bytes:
    return b"data: " + encode(event) + b"\n\n"
