"""Answers that do not stream, each engine's in one shape: what the endpoint of the standard answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.backends.events import Choice, Chunk, Delta, read, read_any
from models.call import CallRequest, Endpoint

_encode = msgspec.json.Encoder().encode


def answer_in(request: CallRequest, body: bytes) -> dict[str, Any] | None:
    """The answer in a body, None where it is none that the endpoint has."""
    answer = read_any(body)
    if request.endpoint is Endpoint.RERANK:
        return _ranking(answer, request.prompts)
    if not isinstance(answer, dict) or "error" in answer:
        return None
    if request.endpoint.hears:
        return _transcript(answer)
    if request.endpoint is Endpoint.IMAGES:
        return _images(answer)
    return answer


# Rankings ------------------------------------------------------------------------------------------------------------


def _ranking(answer: Any, documents: int) -> dict[str, Any] | None:
    """SGLang answers a bare list of `score`s, and tells the tokens of each beside it; others have `results`."""
    results = answer if isinstance(answer, list) else answer.get("results") if isinstance(answer, dict) else None
    if not isinstance(results, list):
        return None
    scores: dict[int, Any] = {}
    tokens = 0
    for result in results:
        if not isinstance(result, dict):
            return None
        index, score = result.get("index"), result.get("relevance_score", result.get("score"))
        if type(index) is not int or not 0 <= index < documents or index in scores or not _is_number(score):
            return None
        scores[index] = score
        told = result.get("meta_info")
        one = told.get("prompt_tokens") if isinstance(told, dict) else None
        tokens += one if type(one) is int and one > 0 else 0
    if len(scores) != documents:
        # Every document was asked for.
        return None
    ranked = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
    ranking: dict[str, Any] = {"results": [{"index": index, "relevance_score": score} for index, score in ranked]}
    usage = _tokens(answer.get("usage")) if isinstance(answer, dict) else None
    if usage is None and tokens:
        usage = {"prompt_tokens": tokens}
    return ranking if usage is None else {**ranking, "usage": usage}


def _tokens(usage: Any) -> dict[str, Any] | None:
    """Some tell the total alone: nothing is generated, so that is the prompt."""
    if not isinstance(usage, dict):
        return None
    prompt = usage.get("prompt_tokens") or usage.get("total_tokens")
    return None if prompt is None else {"prompt_tokens": prompt}


def _is_number(value: Any) -> bool:
    # A number of a thousand digits is one that cannot be asked whether it is finite.
    return isinstance(value, int | float) and not isinstance(value, bool) and -(2.0**63) < value < 2.0**63


# Sounds --------------------------------------------------------------------------------------------------------------


def _transcript(answer: dict[str, Any]) -> dict[str, Any] | None:
    if not isinstance(answer.get("text"), str):
        return None
    usage = plain_usage(answer.get("usage"))
    if usage is None and (seconds := _seconds(answer.get("duration"))):
        # The verbose form tells the length of the sound, vLLM as text, and no usage.
        usage = {"audio_seconds": seconds}
    rest = {name: value for name, value in answer.items() if name != "usage"}
    return rest if usage is None else {**rest, "usage": usage}


def plain_usage(usage: Any) -> dict[str, Any] | None:
    """The usage of the newer endpoints in the names of chats: by tokens, or by `audio_seconds`."""
    if not isinstance(usage, dict):
        return None
    if usage.get("type") == "duration" or ("seconds" in usage and "input_tokens" not in usage):
        seconds = _seconds(usage.get("seconds"))
        return None if seconds is None else {"audio_seconds": seconds}
    if "input_tokens" not in usage:
        return usage
    details = usage.get("input_token_details") or usage.get("input_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    plain = {"prompt_tokens": usage["input_tokens"], "completion_tokens": usage.get("output_tokens", 0)}
    return plain if cached is None else {**plain, "prompt_tokens_details": {"cached_tokens": cached}}


def _seconds(value: Any) -> int | None:
    """Whole seconds, begun ones as whole."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return math.ceil(value) if _is_number(value) and 0 <= value < 2**31 else None


def read_transcript(data: bytes) -> Chunk | None:
    """An event of a transcript: like that of a chat (vLLM, SGLang), or named by `type` (OpenAI)."""
    event = read_any(data)
    if not isinstance(event, Mapping) or "type" not in event or "error" in event or event.get("object") == "error":
        return read(data)
    match event["type"]:
        case "transcript.text.delta":
            return Chunk([Choice(delta=Delta(content=_text(event.get("delta"))))])
        case "transcript.text.done":
            usage = plain_usage(event.get("usage"))
            done = Chunk([Choice(finish_reason="stop")])
            if usage is not None:
                done.usage = msgspec.Raw(_encode(usage))
            return done
        case _:
            return Chunk([])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


# Images --------------------------------------------------------------------------------------------------------------


def _images(answer: dict[str, Any]) -> dict[str, Any] | None:
    """Only images that are in the answer: an address is one of the backend's."""
    images = answer.get("data")
    if not isinstance(images, list) or not images:
        return None
    kept = []
    for image in images:
        if not isinstance(image, dict) or not isinstance(image.get("b64_json"), str):
            return None
        kept.append({name: image[name] for name in ("b64_json", "revised_prompt") if image.get(name) is not None})
    names = ("created", "background", "output_format", "quality", "size")
    head = {name: answer[name] for name in names if answer.get(name) is not None}
    usage = plain_usage(answer.get("usage"))
    return {**head, "data": kept} if usage is None else {**head, "data": kept, "usage": usage}
