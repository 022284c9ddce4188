"""The SDKs' streaming helpers as they are: what works through Tollgate fails at the very llama.cpp behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.compat.clients import Processes
from tests.compat.conftest import Tollgate, run_at

pytestmark = pytest.mark.servers

Ask = Callable[[str, str, str], dict[str, Any]]


@pytest.fixture
def ask(tollgate: Tollgate, running_clients: Processes) -> Ask:
    """Run a client's case with the demo model: at `tollgate`, or at `llama.cpp` itself."""

    def ask(client: str, case: str, where: str) -> dict[str, Any]:
        if where == "tollgate":
            return run_at(running_clients, client, case, tollgate.base_url, tollgate.key().value, tollgate.demo)
        return run_at(running_clients, client, case, str(tollgate.facts["backend_url"]), "none", tollgate.demo)

    return ask


@pytest.mark.parametrize(
    ("client", "reason"), [("openai-python", "not NoneType"), ("openai-node", "rsp.output is not iterable")]
)
def test_responses_stream(ask: Ask, client: str, reason: str) -> None:
    """Its events have no places, and an empty output: the helpers crash."""
    assert ask(client, "responses_stream", "tollgate")["text"]
    with pytest.raises(AssertionError, match=reason):
        ask(client, "responses_stream", "llama.cpp")


@pytest.mark.parametrize("client", ["openai-python", "openai-node"])
def test_chat_stream_helper_of_several_choices(ask: Ask, client: str) -> None:
    """It tells the usage of one choice at a time, of which the helpers keep the last; and where it does not begin with
    the first choice, which depends on its slots, the one in Python crashes."""
    ours = ask(client, "chat_choices", "tollgate")
    assert len(ours["texts"]) == 3
    try:
        its_own = ask(client, "chat_choices", "llama.cpp")
    except AssertionError as crash:
        assert client == "openai-python"
        assert "IndexError: list assignment index out of range" in str(crash)  # noqa: PT017 - one of two ways to fail
    else:
        assert ours["usage"]["output"] == 3 * its_own["usage"]["output"]


@pytest.mark.parametrize("client", ["anthropic-python", "anthropic-node"])
def test_messages_stream_that_is_refused(ask: Ask, client: str) -> None:
    """It refuses in a shape that is not Anthropic's: the helpers' users see no kind of error, and no request id."""
    ours, its_own = ask(client, "messages_too_long", "tollgate"), ask(client, "messages_too_long", "llama.cpp")
    assert ours["error"]["status"] == its_own["error"]["status"] == 400
    assert ours["type"] == "invalid_request_error"
    assert its_own["type"] != "invalid_request_error"
    assert ours["request_id"]
    assert its_own["request_id"] is None


@pytest.mark.parametrize(
    ("client", "case"),
    [
        ("openai-python", "chat_stream_helper"),
        ("openai-node", "chat_stream_helper"),
        ("anthropic-python", "messages_stream"),
        ("anthropic-node", "messages_stream"),
    ],
)
def test_what_works_at_both(ask: Ask, client: str, case: str) -> None:
    """Nothing is claimed that a look would not bear out: these say the same either way, one answer and no refusal."""
    assert ask(client, case, "tollgate")["text"] == ask(client, case, "llama.cpp")["text"]
