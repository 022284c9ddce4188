"""Requests of `/v1/audio/transcriptions` and `/v1/audio/translations`: forms with a file. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.api import parameters
from gateway.api.forms import Part, parts_in
from gateway.api.parameters import Check, boolean, end_user, number, one_of, refused, string, wrong
from gateway.api.sounds import measure
from models.call import CallRequest, Endpoint, Upload
from models.errors import InvalidRequest

_LISTS: Final = frozenset(
    {"timestamp_granularities", "include", "keywords", "languages", "known_speaker_names", "known_speaker_references"}
)
_TIMED: Final = frozenset({"srt", "vtt", "verbose_json"})
"""Forms of an answer that say when something was said."""
_LONGEST_PROMPT: Final = 8_192


def _granularities(param: str, value: Any) -> Any:
    """`word` and `segment`; with `verbose_json` only."""
    for item in value:
        one_of("word", "segment")(param, item)
    return value


def _include(param: str, value: Any) -> Any:
    """`logprobs`."""
    for item in value:
        one_of("logprobs")(param, item)
    return value


TRANSLATIONS: Final[Mapping[str, Check]] = {
    "model": string(256),
    "prompt": string(_LONGEST_PROMPT),
    "response_format": one_of("json", "text", "srt", "vtt", "verbose_json"),
    "temperature": number(0, 1),
    "user": end_user,
}
TRANSCRIPTIONS: Final[Mapping[str, Check]] = {
    **TRANSLATIONS,
    "language": string(16),
    "stream": boolean,
    "timestamp_granularities": _granularities,
    "include": _include,
    "chunking_strategy": one_of("auto"),
    "keywords": refused("write them into the prompt"),
    "languages": refused("send language"),
    "known_speaker_names": refused("speakers are not told apart here"),
    "known_speaker_references": refused("speakers are not told apart here"),
}
FILE: Final = "file"
"""The field that is no parameter."""


def read(endpoint: Endpoint, content_type: bytes, body: bytes) -> CallRequest:
    """The call that a form asks for. Measures the sound, which may take a second: not for the event loop."""
    sound, fields = _fields(parts_in(content_type, body))
    table = TRANSCRIPTIONS if endpoint is Endpoint.TRANSCRIPTIONS else TRANSLATIONS
    kept = parameters.checked(fields, table)
    if "model" not in kept:
        raise InvalidRequest("You must provide 'model'.", param="model")
    if not sound:
        raise InvalidRequest("You must provide 'file', a sound.", param=FILE)
    form, stream = kept.pop("response_format", "json"), kept.pop("stream", False)
    if stream and form not in ("json", "text"):
        raise wrong("response_format", "must be json when 'stream' is true")
    if kept.get("timestamp_granularities") and form != "verbose_json":
        raise wrong("timestamp_granularities", "is only allowed when 'response_format' is verbose_json")
    kind, seconds = measure(sound)
    return CallRequest(
        endpoint,
        kept.pop("model"),
        # Text and subtitles are made here, of an answer that also tells the usage.
        {**kept, "response_format": "verbose_json" if form in _TIMED else "json"},
        stream=stream,
        input_bound=len(kept.get("prompt", "").encode()),
        end_user=fields.get("user"),
        audio_seconds_bound=seconds,
        upload=Upload(kind, sound),
        audio_format=form,
    )


def _fields(parts: list[Part]) -> tuple[bytes, dict[str, Any]]:
    """The file, and the other fields by their names, as JSON would have them."""
    sound: bytes | None = None
    fields: dict[str, Any] = {}
    for part in parts:
        if part.name == FILE:
            if sound is not None:
                raise wrong(FILE, "must be given once")
            sound = part.content
            continue
        name = part.name.removesuffix("[]")
        if part.is_file:
            raise wrong(name, "must not be a file")
        try:
            text = part.content.decode()
        except UnicodeDecodeError:
            raise wrong(name, "must be text in UTF-8") from None
        if name in _LISTS:
            fields.setdefault(name, []).append(text)
        elif name in fields:
            raise wrong(name, "must be given once")
        else:
            fields[name] = _value(name, text)
    return sound or b"", fields


def _value(name: str, text: str) -> Any:
    if name == "stream":
        return {"true": True, "false": False}.get(text.lower(), text)
    if name == "temperature":
        try:
            return float(text)
        except ValueError:
            return text
    return text
