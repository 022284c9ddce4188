"""What a case is given, and the words in which every client's program says what its client understood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

Told = dict[str, Any]

QUESTION: Final = "How warm is it in Paris?"
PICTURE: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
"""A PNG of one pixel, in base64."""
WEATHER_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class At:
    """Where to call, by which key, and which model; `base_url` is without `/v1`."""

    base_url: str
    api_key: str
    model: str

    @property
    def v1(self) -> str:
        """The base URL as clients of OpenAI take it."""
        return f"{self.base_url}/v1"


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"It is 21 degrees in {city}."


def usage(input_tokens: int | None, output_tokens: int | None, cached_tokens: int | None = None) -> Told:
    """Tokens as the client tells them to its user; None where it does not tell."""
    return {"input": input_tokens, "output": output_tokens, "cached": cached_tokens}


def error(raised: BaseException, *, status: Any = None, code: Any = None) -> Told:
    """An exception of the client, with what it knows of the answer."""
    return {
        "class": type(raised).__name__,
        "status": status if status is not None else getattr(raised, "status_code", None),
        "code": code if code is not None else getattr(raised, "code", None),
        "message": str(raised),
    }
