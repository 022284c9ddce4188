"""What each client understands of Tollgate's answers is what the backend said, and its usage is what was charged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.compat.backend import (
    AFTER_TOOLS,
    CACHED_TOKENS,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    REFUSAL,
    TEXT,
    THOUGHT,
    WEATHER,
    WORDS,
)
from tests.compat.conftest import DEMO, Key, Ran, Tollgate, case
from tests.compat.programs.at import PICTURE, QUESTION

pytestmark = pytest.mark.servers


def agrees(told: dict[str, Any], charge: dict[str, Any]) -> None:
    """What the client tells its user of usage is on the receipt."""
    usage = told["usage"]
    assert usage["output"] == charge["output_tokens"]
    assert usage["input"] == charge["input_tokens"]
    assert usage["cached"] in (charge["cached_tokens"], None)


def answered(ran: Ran) -> dict[str, Any]:
    """One call that is answered with text: charged once, as finished, for the usage that the client was told."""
    told, charge = ran.told, ran.charge
    assert (charge["ending"], charge["usage_source"]) == ("finished", "backend")
    assert told["text"]
    agrees(told, charge)
    if charge["model"] == "parrot":
        assert told["text"] == TEXT
        assert (charge["input_tokens"], charge["output_tokens"]) == (INPUT_TOKENS, OUTPUT_TOKENS)
        assert charge["cached_tokens"] == CACHED_TOKENS
    if "request_id" in told:
        assert told["request_id"] == charge["call_id"]
        assert ran.tollgate.receipt(ran.key, told["request_id"])["amount"] == charge["amount"]
    return told


def is_finished(ran: Ran, calls: int) -> None:
    """So many calls were charged, each as finished."""
    assert [charge["ending"] for charge in ran.charges] == ["finished"] * calls


# Chat completions ----------------------------------------------------------------------------------------------------


@case("chat", "parrot", DEMO)
def test_chat(ran: Ran) -> None:
    answered(ran)


@case("chat_stream", "parrot", DEMO)
def test_chat_stream(ran: Ran) -> None:
    answered(ran)


@case("chat_stream_helper", "parrot", DEMO)
def test_chat_stream_helper(ran: Ran) -> None:
    assert answered(ran)["events"]


@case("chat_choices", DEMO)
def test_chat_choices(ran: Ran) -> None:
    assert len(ran.told["texts"]) == 3
    assert all(ran.told["texts"])
    agrees(ran.told, ran.charge)


@case("chat_async", "parrot", calls=2)
def test_chat_async(ran: Ran) -> None:
    assert (ran.told["plain_text"], ran.told["text"]) == (TEXT, TEXT)
    is_finished(ran, 2)


def calls_a_function(ran: Ran) -> dict[str, Any]:
    """A function is offered, called with its arguments, and its result reaches the model."""
    told = ran.told
    assert told["calls"] == [{"name": "get_weather", "arguments": {"city": "Paris"}}]
    offered = ran.asked[0].body["tools"][0]["function"]
    assert offered["name"] == "get_weather"
    assert offered["parameters"]["required"] == ["city"]
    if "text" in told:
        assert told["text"] == AFTER_TOOLS
        call, result = ran.asked[1].body["messages"][-2:]
        assert json.loads(call["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris"}
        assert result["role"] == "tool"
        assert result["tool_call_id"] == call["tool_calls"][0]["id"]
        assert "21 degrees in Paris" in json.dumps(result["content"])
    is_finished(ran, len(ran.asked))
    return told


@case("tools", "tools", calls=None)
def test_tools(ran: Ran) -> None:
    assert calls_a_function(ran)["text"]


@case("tools_stream", "tools", calls=None)
def test_tools_stream(ran: Ran) -> None:
    assert calls_a_function(ran).get("pieces", 2) > 1


def fills_in(ran: Ran) -> None:
    """The schema reaches the model, and what the model fills in comes out as an object of the client's language."""
    assert ran.told["parsed"] == WEATHER
    (asked,) = ran.asked
    assert '"degrees"' in json.dumps(asked.body.get("response_format") or asked.body["tools"])
    is_finished(ran, 1)


@case("structured", "schema")
def test_structured(ran: Ran) -> None:
    fills_in(ran)


@case("refusal", "refuses", calls=2)
def test_refusal(ran: Ran) -> None:
    assert ran.told["refusal"] == REFUSAL
    assert ran.told["streamed_refusal"] == REFUSAL
    is_finished(ran, 2)


@case("reasoning", "thinks")
def test_reasoning(ran: Ran) -> None:
    assert (ran.told["reasoning"], ran.told["text"]) == (THOUGHT, TEXT)
    assert ran.told["usage"]["reasoning"] in (ran.charge["reasoning_tokens"], None)


def is_seen(ran: Ran) -> None:
    """The picture reaches the model, whatever the API has it wrapped in."""
    assert ran.told["text"] == TEXT
    (asked,) = ran.asked
    parts = {part["type"]: part for part in asked.body["messages"][-1]["content"]}
    assert parts["text"]["text"] == QUESTION
    assert parts["image_url"]["image_url"]["url"] == f"data:image/png;base64,{PICTURE}"
    is_finished(ran, 1)


@case("pictures", "parrot")
def test_pictures(ran: Ran) -> None:
    is_seen(ran)


# The rest of the OpenAI API ------------------------------------------------------------------------------------------


@case("completions", DEMO)
def test_completions(ran: Ran) -> None:
    answered(ran)


@case("embeddings", DEMO)
def test_embeddings(ran: Ran) -> None:
    one, other = ran.told["vectors"]
    assert len(one) == len(other) > 10
    assert one != other
    assert ran.told["usage"]["input"] in (ran.charge["input_tokens"], None)


@case("models", DEMO, calls=0)
def test_models(ran: Ran) -> None:
    assert {ran.tollgate.demo, "parrot"} <= set(ran.told["models"])
    assert ran.told["model"] == ran.tollgate.demo
    assert ran.charges == []


# Responses -----------------------------------------------------------------------------------------------------------


@case("responses", "parrot", DEMO)
def test_responses(ran: Ran) -> None:
    answered(ran)


@case("responses_stream", "parrot", DEMO)
def test_responses_stream(ran: Ran) -> None:
    told = answered(ran)
    assert told.get("delta_text", told["text"]) == told["text"]
    if "events" in told:
        assert told["events"][:2] == ["response.created", "response.in_progress"]
        assert told["events"][-1] in ("response.completed", "response.incomplete")
        assert told["numbers"] == list(range(len(told["events"])))


@case("responses_tools", "tools", calls=None)
def test_responses_tools(ran: Ran) -> None:
    assert calls_a_function(ran)["text"]


@case("responses_structured", "schema")
def test_responses_structured(ran: Ran) -> None:
    fills_in(ran)


@case("responses_stored", "parrot", calls=2)
def test_responses_stored(ran: Ran) -> None:
    assert (ran.told["text"], ran.told["again"]) == (TEXT, TEXT)
    assert ran.told["is_gone"]
    said = [message["role"] for message in ran.asked[1].body["messages"]]
    assert said == ["user", "assistant", "user"]
    is_finished(ran, 2)


@case("responses_refusal", "refuses")
def test_responses_refusal(ran: Ran) -> None:
    assert ran.told["refusal"] == REFUSAL


@case("responses_reasoning", "thinks")
def test_responses_reasoning(ran: Ran) -> None:
    assert (ran.told["reasoning"], ran.told["text"]) == (THOUGHT, TEXT)
    assert ran.told["usage"]["reasoning"] in (ran.charge["reasoning_tokens"], None)


@case("responses_pictures", "parrot")
def test_responses_pictures(ran: Ran) -> None:
    is_seen(ran)


@case("responses_counted", DEMO)
def test_responses_counted(ran: Ran) -> None:
    assert ran.told["counted"] == ran.charge["input_tokens"]


@case("responses_broken", "breaks")
def test_responses_broken(ran: Ran) -> None:
    is_broken(ran)


# Messages ------------------------------------------------------------------------------------------------------------


@case("messages", "parrot", DEMO)
def test_messages(ran: Ran) -> None:
    answered(ran)


@case("messages_stream", "parrot", DEMO)
def test_messages_stream(ran: Ran) -> None:
    told = answered(ran)
    assert told.get("delta_text", told["text"]) == told["text"]


@case("messages_async", "parrot", calls=2)
def test_messages_async(ran: Ran) -> None:
    assert (ran.told["plain_text"], ran.told["text"]) == (TEXT, TEXT)
    is_finished(ran, 2)


@case("messages_tools", "tools", calls=None)
def test_messages_tools(ran: Ran) -> None:
    assert calls_a_function(ran)["text"]


@case("messages_structured", "schema")
def test_messages_structured(ran: Ran) -> None:
    fills_in(ran)


@case("messages_reasoning", "thinks")
def test_messages_reasoning(ran: Ran) -> None:
    assert (ran.told["reasoning"], ran.told["text"]) == (THOUGHT, TEXT)


@case("messages_too_long", DEMO, calls=0)
def test_messages_too_long(ran: Ran) -> None:
    is_refused(ran, 400, "context")
    assert ran.told["type"] == "invalid_request_error"
    assert ran.told["request_id"]


@case("count_tokens", DEMO)
def test_count_tokens(ran: Ran) -> None:
    assert ran.told["counted"] == ran.charge["input_tokens"]


@case("messages_pictures", "parrot")
def test_messages_pictures(ran: Ran) -> None:
    is_seen(ran)


@case("messages_broken", "breaks")
def test_messages_broken(ran: Ran) -> None:
    is_broken(ran)


# Failures ------------------------------------------------------------------------------------------------------------


def is_refused(ran: Ran, status: int, words: str) -> None:
    """A call that is not served, told as what it is, and charged to nobody."""
    error = ran.told["error"]
    assert error is not None
    assert error["status"] in (status, None), error
    assert words in error["message"], error
    assert ran.charges == []


@case("refused", "parrot", calls=0, key=lambda tollgate: Key("", "tg_live_wrong"))
def test_unauthorized(ran: Ran) -> None:
    is_refused(ran, 401, "API key")
    assert ran.asked == []


@case("refused", "parrot", calls=0, key=Tollgate.poor_key)
def test_no_money(ran: Ran) -> None:
    is_refused(ran, 402, "Add credit")
    assert ran.asked == []


@case("refused", "no-such-model", calls=0)
def test_unknown_model(ran: Ran) -> None:
    is_refused(ran, 404, "model")
    assert ran.asked == []


@case("refused", "busy", calls=0)
def test_unavailable(ran: Ran) -> None:
    is_refused(ran, 503, "backend")


CALLS_A_MINUTE = 60


def used_up(tollgate: Tollgate) -> Key:
    """A key whose minute is used up."""
    key = tollgate.key(requests_per_minute=CALLS_A_MINUTE)
    while tollgate.chat(key, "parrot").status_code != 429:
        pass
    return key


@case("retried", "parrot", calls=CALLS_A_MINUTE + 1, key=used_up)
def test_rate_limited(ran: Ran) -> None:
    """The client waits for as long as it is told, and is served."""
    assert ran.told["text"] == TEXT
    assert len(ran.charges) > CALLS_A_MINUTE
    (_,) = ran.asked


@case("idempotent", "parrot")
def test_idempotent(ran: Ran) -> None:
    assert ran.told["texts"] == [TEXT, TEXT]
    assert len(set(ran.told["ids"])) == 1
    (_,) = ran.asked
    is_finished(ran, 1)


def is_broken(ran: Ran) -> None:
    """The backend dies in the middle: the client does not take what there is for an answer."""
    error = ran.told["error"]
    assert error is not None
    assert error["message"]
    assert ran.told["text"] in ("", "".join(WORDS[:2]))
    assert ran.charge["ending"] == "backend_failed"


@case("broken", "breaks")
def test_broken(ran: Ran) -> None:
    is_broken(ran)


@case("timeout", "silent")
def test_timeout(ran: Ran) -> None:
    assert ran.told["error"] is not None
    assert ran.charge["ending"] == "client_gone"
    (_,) = ran.asked


@case("cancelled", "slow")
def test_cancelled(ran: Ran) -> None:
    assert ran.told["text"].startswith("word 0 word 1")
    assert ran.charge["ending"] == "client_gone"
    assert 0 < ran.charge["output_tokens"] < 1_000


# Others' tests -------------------------------------------------------------------------------------------------------


@case("standard_usage", "parrot", calls=None)
def test_standard_usage(ran: Ran) -> None:
    """LangChain's own tests of usage metadata pass."""
    assert ran.told["passed"] == ["test_usage_metadata", "test_usage_metadata_streaming"]
    is_finished(ran, 2)
