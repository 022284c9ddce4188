"""The table of what works with which client, made from the cases that the clients have; run it to print the table."""

from __future__ import annotations

import sys
from typing import Final

from tests.compat.clients import CLIENTS, PENDING

TITLES: Final = {
    "chat": "chat: plain",
    "chat_stream": "chat: stream with usage",
    "chat_stream_helper": "chat: the client's own `stream()`",
    "chat_choices": "chat: several choices (`n`) in a `stream()`",
    "chat_async": "chat: asynchronous client",
    "tools": "chat: tools",
    "tools_stream": "chat: tools in a stream",
    "structured": "chat: objects by a schema",
    "refusal": "chat: refusals",
    "reasoning": "chat: thoughts of a model",
    "pictures": "chat: pictures",
    "responses": "responses: plain",
    "responses_stream": "responses: stream",
    "responses_tools": "responses: tools",
    "responses_structured": "responses: objects by a schema",
    "responses_stored": "responses: kept, gone on from, deleted",
    "responses_refusal": "responses: refusals",
    "responses_reasoning": "responses: thoughts of a model",
    "responses_pictures": "responses: pictures",
    "responses_counted": "responses: tokens counted before = tokens charged",
    "responses_broken": "responses: a stream that breaks raises",
    "messages": "messages: plain",
    "messages_stream": "messages: stream",
    "messages_async": "messages: asynchronous client",
    "messages_tools": "messages: tools",
    "messages_structured": "messages: objects by a schema",
    "messages_reasoning": "messages: thoughts of a model",
    "messages_pictures": "messages: pictures",
    "messages_too_long": "messages: the kind of an error",
    "messages_broken": "messages: a stream that breaks raises",
    "count_tokens": "messages: tokens counted before = tokens charged",
    "completions": "text completions",
    "embeddings": "embeddings",
    "models": "list of models",
    "refused": "errors 401, 402, 404, 503",
    "retried": "429 is waited out and tried again",
    "idempotent": "sent twice with one `Idempotency-Key`: charged once",
    "broken": "a chat stream that breaks raises",
    "timeout": "the client's timeout ends the call",
    "cancelled": "a stream that is left ends the call",
    "standard_usage": "LangChain's own tests of usage metadata",
}
"""What a person reads, by the name of a case."""


def table() -> str:
    """The table in Markdown: a row for each case, a column for each client."""
    guides = [f"[{name}](clients/{name}.md)" for name in CLIENTS]
    lines = [["", *guides], ["---", *[":-:"] * len(guides)]]
    for case, title in TITLES.items():
        yes = "not yet" if case in PENDING else "yes"
        lines.append([title, *(yes if case in client.cases else "" for client in CLIENTS.values())])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
