"""Requests of `/v1/images/generations`. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from gateway.api import parameters
from gateway.api.parameters import Check, end_user, integer, one_of, only, refused, string, wrong
from models.call import CallRequest, Endpoint

MAX_IMAGES: Final = 10
LONGEST_PROMPT: Final = 32_000
LONGEST_SIDE: Final = 4_096
_SIZE: Final = re.compile(r"([1-9]\d{1,4})x([1-9]\d{1,4})", re.ASCII)


def _prompt(param: str, value: Any) -> Any:
    """Text of 1 to 32,000 characters."""
    if not isinstance(value, str) or not 1 <= len(value) <= LONGEST_PROMPT:
        raise wrong(param, f"must be a string of 1 to {LONGEST_PROMPT} characters")
    return value


def _size(param: str, value: Any) -> Any:
    """`auto`, or width x height as in 1024x1024, each at most 4,096."""
    found = _SIZE.fullmatch(value) if isinstance(value, str) and len(value) <= 16 else None
    if value != "auto" and (found is None or max(int(found[1]), int(found[2])) > LONGEST_SIDE):
        raise wrong(param, f"must be auto, or width x height as in 1024x1024, each at most {LONGEST_SIDE}")
    return value


IMAGES: Final[Mapping[str, Check]] = {
    "model": string(256),
    "prompt": _prompt,
    "n": integer(1, MAX_IMAGES),
    "size": _size,
    "quality": one_of("auto", "low", "medium", "high", "standard", "hd"),
    "style": one_of("vivid", "natural"),
    "background": one_of("auto", "transparent", "opaque"),
    "output_format": one_of("png", "jpeg", "webp"),
    "output_compression": integer(0, 100),
    "moderation": one_of("auto", "low"),
    "response_format": only("b64_json", why="images are sent in the answer as b64_json; none is kept at an address"),
    "stream": only(False, why="images come whole"),
    "partial_images": only(0, why="images come whole"),
    "complexity": refused("no engine that is known here has it"),
    "frame_count": refused("images do not move here"),
    "frame_duration_ms": refused("images do not move here"),
    "svg": refused("no engine that is known here has it"),
    "user": end_user,
    "safety_identifier": end_user,
}


def read(decoded: Mapping[str, Any]) -> CallRequest:
    """The call that a request asks for."""
    kept = parameters.checked(decoded, IMAGES)
    number = kept.pop("n", 1)
    body = {name: value for name, value in kept.items() if name != "model"}
    return CallRequest(
        Endpoint.IMAGES,
        kept["model"],
        # An address would be one of the backend's, which no client should know and most cannot reach.
        {**body, "n": number, "response_format": "b64_json"},
        input_bound=len(kept["prompt"].encode()),
        end_user=decoded.get("user") or decoded.get("safety_identifier"),
        images_bound=number,
    )
