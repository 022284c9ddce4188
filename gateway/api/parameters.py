"""Parameters of the OpenAI API, each accepted or refused knowingly: one table per endpoint, one check per parameter.

A check returns the value that goes upstream, or `DROP` where the parameter changes nothing here; it raises
`InvalidRequest` naming the parameter. What would cost money unseen is bounded or refused, unknown parameters are
refused, and so is everything by which a client could choose a destination.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Set
from typing import Any, Final

from models.errors import InvalidRequest

Check = Callable[[str, Any], Any]

DROP: Final = object()
MAX_CHOICES: Final = 16
MAX_PROMPTS: Final = 128
MAX_EMBEDDING_INPUTS: Final = 2_048
MAX_TOKENS: Final = 10_000_000
MAX_MESSAGES: Final = 10_000
MAX_TOOLS: Final = 128
MAX_STOPS: Final = 16
ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
MAX_SCHEMA_NODES: Final = 2_000
MAX_PATTERN_LENGTH: Final = 512
"""Grammars and patterns are compiled by the backend; vLLM CVE-2025-48944 and CVE-2025-58446 crashed on large ones."""


def wrong(param: str, what: str) -> InvalidRequest:
    """A 400 that names the parameter and says what it must be."""
    return InvalidRequest(f"'{param}' {what}.", param=param)


def number(low: float, high: float) -> Check:
    """A JSON number within bounds, both included."""

    def check(param: str, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise wrong(param, f"must be a number between {low} and {high}")
        return value

    check.__doc__ = f"A number between {low} and {high}."
    return check


def integer(low: int, high: int) -> Check:
    """A JSON integer within bounds, both included."""

    def check(param: str, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise wrong(param, f"must be an integer between {low} and {high}")
        return value

    check.__doc__ = f"An integer between {low} and {high}."
    return check


def boolean(param: str, value: Any) -> Any:
    """true or false."""
    if not isinstance(value, bool):
        raise wrong(param, "must be true or false")
    return value


def string(limit: int = 512) -> Check:
    """Text of at most `limit` characters."""

    def check(param: str, value: Any) -> Any:
        if not isinstance(value, str) or len(value) > limit:
            raise wrong(param, f"must be a string of at most {limit} characters")
        return value

    check.__doc__ = f"Text of at most {limit} characters."
    return check


def one_of(*values: str) -> Check:
    """One of a few words."""

    def check(param: str, value: Any) -> Any:
        if value not in values or not isinstance(value, str):
            raise wrong(param, f"must be one of {', '.join(values)}")
        return value

    check.__doc__ = f"One of {', '.join(values)}."
    return check


def told_of(check: Check) -> str:
    """What a check says of a parameter, in a sentence: it is what the page of parameters says."""
    return (check.__doc__ or "").partition("\n")[0]


def dropped(check: Check) -> Check:
    """Checked, and then not sent upstream, since it changes nothing here."""

    def check_and_drop(param: str, value: Any) -> Any:
        check(param, value)
        return DROP

    check_and_drop.__doc__ = f"{told_of(check)} Changes nothing here."
    return check_and_drop


def only(*values: Any, why: str) -> Check:
    """Accepted with the values that mean "off", refused otherwise."""

    def check(param: str, value: Any) -> Any:
        if any(value == allowed and type(value) is type(allowed) for allowed in values):
            return DROP
        raise wrong(param, f"is not supported: {why}")

    check.__doc__ = f"Only {' or '.join(json.dumps(value) for value in values)}: {why}."
    return check


def refused(why: str) -> Check:
    """Never accepted."""

    def check(param: str, value: Any) -> Any:
        raise wrong(param, f"is not supported: {why}")

    check.__doc__ = f"Refused: {why}."
    return check


def mapping(param: str, value: Any) -> Any:
    """An object."""
    if not isinstance(value, dict):
        raise wrong(param, "must be an object")
    return value


def stop(param: str, value: Any) -> Any:
    """One string, or a few."""
    texts = [value] if isinstance(value, str) else value
    if (
        not isinstance(texts, list)
        or len(texts) > MAX_STOPS
        or not all(isinstance(text, str) and len(text) <= 1_024 for text in texts)
    ):
        raise wrong(param, f"must be a string or a list of at most {MAX_STOPS} strings")
    return value


def logit_bias(param: str, value: Any) -> Any:
    """Token ids with a bias from -100 to 100."""
    if not isinstance(value, dict) or len(value) > 1_024:
        raise wrong(param, "must be an object of at most 1024 token ids")
    for token, bias in value.items():
        if not token.isdecimal() or isinstance(bias, bool) or not isinstance(bias, int | float) or abs(bias) > 100:
            raise wrong(param, "must map token ids to numbers between -100 and 100")
    return value


def metadata(param: str, value: Any) -> Any:
    """At most 16 pairs of text; kept nowhere."""
    if not isinstance(value, dict) or len(value) > 16:
        raise wrong(param, "must be an object of at most 16 pairs")
    return DROP


def stream_options(param: str, value: Any) -> Any:
    """`include_usage`; `include_obfuscation` changes nothing here."""
    if not isinstance(value, dict):
        raise wrong(param, "must be an object")
    for name, item in value.items():
        if name not in ("include_usage", "include_obfuscation"):
            raise wrong(f"{param}.{name}", "is not supported")
        boolean(f"{param}.{name}", item)
    return value


def response_format(param: str, value: Any) -> Any:
    """Text, a JSON object, or JSON of a schema of bounded size."""
    if not isinstance(value, dict) or value.get("type") not in ("text", "json_object", "json_schema"):
        raise wrong(param, "must be an object whose type is text, json_object or json_schema")
    if value["type"] == "json_schema":
        schema = value.get("json_schema")
        if not isinstance(schema, dict) or not isinstance(schema.get("schema", {}), dict):
            raise wrong(f"{param}.json_schema", "must be an object with a schema")
    bounded(param, value)
    return value


def tools(param: str, value: Any) -> Any:
    """Functions that the model may call, with parameter schemas of bounded size."""
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise wrong(param, f"must be a list of at most {MAX_TOOLS} tools")
    for index, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type") != "function":
            raise wrong(f"{param}[{index}]", "must be an object of type function")
        string(128)(f"{param}[{index}].function.name", function.get("name"))
    bounded(param, value)
    return value


def tool_choice(param: str, value: Any) -> Any:
    """none, auto, required, or one function by name."""
    if isinstance(value, str):
        return one_of("none", "auto", "required")(param, value)
    if not isinstance(value, dict) or value.get("type") != "function" or not isinstance(value.get("function"), dict):
        raise wrong(param, "must be none, auto, required or a function")
    return value


def bounded(param: str, value: Any) -> None:
    """Raise unless a schema is small: what a backend compiles from a large one has crashed it."""
    nodes, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        nodes += 1
        if nodes > MAX_SCHEMA_NODES:
            raise wrong(param, f"has more than {MAX_SCHEMA_NODES} elements")
        if isinstance(item, dict):
            pattern = item.get("pattern")
            if isinstance(pattern, str) and len(pattern) > MAX_PATTERN_LENGTH:
                raise wrong(param, f"has a pattern of more than {MAX_PATTERN_LENGTH} characters")
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


_REMOTE: Final = re.compile(r"https://([a-z0-9](?:[a-z0-9.-]{0,252}[a-z0-9])?)(?::443)?(?:/[!-\[\]-~]*)?", re.ASCII)
"""An address that every parser reads alike: no user, no other port, no backslash, nothing that is not printed."""
_LONGEST_ADDRESS: Final = 2_048


def media_url(param: str, url: Any, media_hosts: Set[str] = frozenset()) -> str:
    """The address of a picture or a sound: `data:`, or https at a host that the operator lets backends fetch from."""
    if isinstance(url, str):
        if url.startswith("data:"):
            return url
        if media_hosts and len(url) <= _LONGEST_ADDRESS:
            found = _REMOTE.fullmatch(url)
            if found is not None and found[1] in media_hosts:
                return url
    if media_hosts:
        raise wrong(param, f"must be a data: URL, or an https address at {', '.join(sorted(media_hosts)[:8])}")
    raise wrong(param, "must be a data: URL; Tollgate lets no backend fetch addresses")


def messages(param: str, value: Any, media_hosts: Set[str] = frozenset()) -> Any:
    """The conversation. Pictures and sound as `data:`, or from hosts that the operator names.

    The backend would fetch anything else.
    """
    if not isinstance(value, list) or not value or len(value) > MAX_MESSAGES:
        raise wrong(param, f"must be a list of 1 to {MAX_MESSAGES} messages")
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            raise wrong(f"{param}[{index}]", "must be an object")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise wrong(f"{param}[{index}].role", f"must be one of {', '.join(ROLES)}")
        if isinstance(content, list):
            for place, part in enumerate(content):
                _part(f"{param}[{index}].content[{place}]", part, media_hosts)
        elif content is None:
            if role not in ("assistant", "function"):
                raise wrong(f"{param}[{index}].content", "is required")
        elif not isinstance(content, str):
            raise wrong(f"{param}[{index}].content", "must be a string or a list of parts")
        calls = message.get("tool_calls")
        if calls is not None and (not isinstance(calls, list) or len(calls) > MAX_TOOLS):
            raise wrong(f"{param}[{index}].tool_calls", f"must be a list of at most {MAX_TOOLS} calls")
    return value


def _part(param: str, part: Any, media_hosts: Set[str]) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    match kind:
        case "text" | "refusal":
            if not isinstance(part.get(kind), str):
                raise wrong(f"{param}.{kind}", "must be a string")
        case "image_url" | "video_url" | "audio_url":
            target = part.get(kind)
            url = target.get("url") if isinstance(target, dict) else target
            media_url(f"{param}.{kind}", url, media_hosts)
        case "input_audio":
            sound = part.get(kind)
            if not isinstance(sound, dict) or not isinstance(sound.get("data"), str):
                raise wrong(f"{param}.{kind}", "must be an object with base64 data")
        case _:
            raise wrong(param, "must be a part of type text, image_url, video_url, audio_url or input_audio")
    if len(part) > 2 and any(name not in ("type", kind, "cache_control") for name in part):
        raise wrong(param, f"may hold only type and {kind}")


def texts(limit: int) -> Check:
    """A string, a list of strings, a list of token ids, or a list of such lists; at most `limit` of them."""

    def check(param: str, value: Any) -> Any:
        if isinstance(value, str):
            return value
        if not isinstance(value, list) or not value:
            raise wrong(param, "must be a string, a list of strings, or a list of token ids")
        if _tokens(value):
            return value
        if len(value) > limit:
            raise wrong(param, f"may hold at most {limit} entries")
        if all(isinstance(item, str) for item in value) or all(
            isinstance(item, list) and item and _tokens(item) for item in value
        ):
            return value
        raise wrong(param, "must be a string, a list of strings, or a list of token ids")

    check.__doc__ = f"A string, or a list of at most {limit} strings or lists of token ids; or one list of token ids."
    return check


def _tokens(items: list[Any]) -> bool:
    return all(type(item) is int and 0 <= item < 2**31 for item in items)


def text_count(value: Any) -> int:
    """How many prompts a checked value of `texts` holds."""
    return 1 if isinstance(value, str) or isinstance(value[0], int) else len(value)


def end_user(param: str, value: Any) -> Any:
    """Text of at most 512 characters, none of them NUL: the caller's own user. Kept with the receipt, not sent on."""
    string()(param, value)
    if "\0" in value:
        # Postgres keeps none in a text, so the charge could never be booked.
        raise wrong(param, "must be text without NUL characters")
    return DROP


_FETCHED = "it would cost money unseen"
_MODEL: Final[Mapping[str, Check]] = {
    "model": string(256),
    "user": end_user,
    "safety_identifier": end_user,
}
_SAMPLING: Final[Mapping[str, Check]] = {
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "seed": integer(-(2**63), 2**63 - 1),
    "stop": stop,
    "logit_bias": logit_bias,
    "n": integer(1, MAX_CHOICES),
    "max_tokens": integer(1, MAX_TOKENS),
    "stream": boolean,
    "stream_options": stream_options,
    # What engines of open models add to the OpenAI API; bounded by max_tokens, so they cost nothing unseen.
    "top_k": integer(-1, 1_000_000),
    "min_p": number(0, 1),
    "typical_p": number(0, 1),
    "repetition_penalty": number(0, 10),
    "repeat_penalty": number(0, 10),
    "ignore_eos": boolean,
    "best_of": only(1, why=_FETCHED + "; send n instead"),
    "use_beam_search": only(False, why=_FETCHED),
    "prompt_logprobs": refused("it is not part of the OpenAI API"),
    "truncate_prompt_tokens": refused("send a shorter prompt"),
    "priority": refused("the operator decides it"),
}
CHAT: Final[Mapping[str, Check]] = {
    **_MODEL,
    **_SAMPLING,
    "messages": messages,
    "max_completion_tokens": integer(1, MAX_TOKENS),
    "logprobs": boolean,
    "top_logprobs": integer(0, 20),
    "tools": tools,
    "tool_choice": tool_choice,
    "parallel_tool_calls": boolean,
    "response_format": response_format,
    "reasoning_effort": one_of("none", "minimal", "low", "medium", "high", "xhigh", "max"),
    "verbosity": dropped(one_of("low", "medium", "high")),
    "metadata": metadata,
    "store": only(False, why="answers are not kept here"),
    "service_tier": only("auto", "default", why="there is one tier"),
    "prompt_cache_key": dropped(string()),
    "prompt_cache_retention": dropped(string(32)),
    "prompt_cache_options": dropped(mapping),
    "moderation": refused("send the text to /v1/moderations"),
    "modalities": only(["text"], why="only text is generated"),
    "audio": refused("only text is generated"),
    "prediction": refused(_FETCHED),
    "web_search_options": refused(_FETCHED),
    "functions": refused("it is deprecated; send tools"),
    "function_call": refused("it is deprecated; send tool_choice"),
}
COMPLETIONS: Final[Mapping[str, Check]] = {
    **_MODEL,
    **_SAMPLING,
    "prompt": texts(MAX_PROMPTS),
    "logprobs": integer(0, 5),
    "echo": only(False, why="backends ignore it"),
    "suffix": only("", why="backends ignore it"),
}
EMBEDDINGS: Final[Mapping[str, Check]] = {
    **_MODEL,
    "input": texts(MAX_EMBEDDING_INPUTS),
    "encoding_format": one_of("float", "base64"),
    "dimensions": integer(1, 65_536),
}


def checked(body: Mapping[str, Any], table: Mapping[str, Check]) -> dict[str, Any]:
    """The parameters that go upstream. A null is a parameter left out, as in the OpenAI API."""
    result = {}
    for name, value in body.items():
        check = table.get(name)
        if check is None:
            shown = name if len(name) <= 64 else name[:64] + "…"
            raise InvalidRequest(f"Unknown parameter: '{shown}'.", param=shown, code="unknown_parameter")
        if value is None:
            continue
        value = check(name, value)
        if value is not DROP:
            result[name] = value
    return result
