"""`python -m tests.house.parameters`: writes docs/parameters.md from the tables of parameters; a test compares them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gateway.api import counting, images, messages, moderations, parameters, reranks, responses, transcripts
from gateway.api.parameters import Check, told_of
from gateway.backends import DIALECTS

PAGE: Final = Path(__file__).parents[2] / "docs" / "parameters.md"
TABLES: Final[Mapping[str, Mapping[str, Check]]] = {
    "/v1/chat/completions": parameters.CHAT,
    "/v1/completions": parameters.COMPLETIONS,
    "/v1/embeddings": parameters.EMBEDDINGS,
    "/v1/responses": responses.RESPONSES,
    "/v1/messages": messages.MESSAGES,
    "/v1/rerank": reranks.RERANK,
    "/v1/moderations": moderations.MODERATIONS,
    "/v1/images/generations": images.IMAGES,
    "/v1/audio/transcriptions": transcripts.TRANSCRIPTIONS,
    "/v1/audio/translations": transcripts.TRANSLATIONS,
    "/v1/tokenize": counting.TOKENIZE,
    "/v1/detokenize": counting.DETOKENIZE,
}
_HEAD: Final = """<!-- Written by `python -m tests.house.parameters` from the code. -->

# Parameters

Every documented parameter is taken or refused on purpose. What is refused is an error 400 with the parameter's name
in `param`, before anything is held; a `null` is a parameter left out.

**A field that is not here** is refused with 400 and the code `unknown_parameter`, on every endpoint: an engine might
take it for one that costs money, or that sends it somewhere. That goes for fields that an API gets in the future, too,
until they are added here. Fields *inside* messages, tools and schemas that Tollgate does not know go to the engine in a
chat; those inside a part of a message are refused. Where a conversation of another API is translated into a chat, what
is not known is left out.

**Pictures** in a conversation are `data:` addresses. The operator may name hosts in `TOLLGATE_MEDIA_HOSTS`, from which
backends may fetch by https, on port 443 alone; all other addresses are refused. Name only hosts whose redirects you
trust: it is the engine that follows them.

**What passes unchanged in a chat**: tool calls, `reasoning_content`, `logprobs`, structured output. Reasoning is
counted as output.

`/v1/responses/input_tokens` takes what `/v1/responses` takes, but for `previous_response_id`, and
`/v1/messages/count_tokens` what `/v1/messages` takes, without `max_tokens`.
"""


def page() -> str:
    """The whole page."""
    pieces = [_HEAD]
    for path, table in TABLES.items():
        rows = [f"| `{name}` | {told_of(check).replace('|', '/')} |" for name, check in sorted(table.items())]
        pieces.append(f"## `{path}`\n\n| parameter | |\n|---|---|\n" + "\n".join(rows) + "\n")
    pieces.append(
        "## What some engines do not do\n\n"
        "Refused where the model runs on such an engine only, since it would ignore it:\n\n"
        "| engine | parameter | |\n|---|---|---|\n"
        + "\n".join(
            f"| {dialect.name} | `{name}` | {why} |"
            for dialect in sorted(DIALECTS.values(), key=lambda dialect: dialect.name)
            for name, why in (
                *dialect.refuses.items(),
                *([("n", f"at most {dialect.max_choices}")] if dialect.max_choices < parameters.MAX_CHOICES else []),
                *([] if dialect.times_audio else [("response_format", "of sounds: json and text only")]),
            )
        )
        + "\n"
    )
    return "\n".join(pieces)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
