"""Requests of `/v1/moderations`. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Final

from gateway.api import parameters
from gateway.api.conversations import objects_in, picture, text_in
from gateway.api.parameters import Check, end_user, string, wrong
from models.call import CallRequest, Endpoint

MAX_INPUTS: Final = 1_024


def _input(param: str, value: Any) -> Any:
    """Text, a list of at most 1,024 texts, or a list of parts of type text or image_url."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value or len(value) > MAX_INPUTS:
        raise wrong(param, f"must be a string or a list of 1 to {MAX_INPUTS} strings or parts")
    if not all(isinstance(item, str) for item in value):
        objects_in(value, param, MAX_INPUTS)
    return value


MODERATIONS: Final[Mapping[str, Check]] = {
    "model": string(256),
    "input": _input,
    "user": end_user,
    "safety_identifier": end_user,
}


def read(decoded: Mapping[str, Any], size: int, media_hosts: Set[str] = frozenset()) -> CallRequest:
    """The call that a request asks for."""
    kept = parameters.checked(decoded, MODERATIONS)
    value = kept["input"]
    is_of_parts = isinstance(value, list) and not isinstance(value[0], str)
    parts = [_part(part, f"input[{place}]", media_hosts) for place, part in enumerate(value)] if is_of_parts else []
    return CallRequest(
        Endpoint.MODERATIONS,
        kept["model"],
        {"input": parts or value},
        # Parts are judged together, strings each by itself.
        prompts=len(value) if isinstance(value, list) and not is_of_parts else 1,
        input_bound=None if any(part["type"] != "text" for part in parts) else size,
        end_user=decoded.get("user") or decoded.get("safety_identifier"),
    )


def _part(part: dict[str, Any], param: str, media_hosts: Set[str]) -> dict[str, Any]:
    match part.get("type"):
        case "text":
            return {"type": "text", "text": text_in(part.get("text"), f"{param}.text")}
        case "image_url":
            target = part.get("image_url")
            url = target.get("url") if isinstance(target, dict) else target
            return picture(url, f"{param}.image_url", media_hosts)
        case _:
            raise wrong(f"{param}.type", "must be text or image_url")
