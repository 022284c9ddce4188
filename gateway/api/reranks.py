"""Requests of `/v1/rerank`, in the shape that Jina, Cohere and the engines share. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.api import parameters
from gateway.api.parameters import Check, boolean, end_user, integer, only, refused, string, wrong
from models.call import CallRequest, Endpoint

MAX_DOCUMENTS: Final = 1_000
_LONGEST_TEXT: Final = 20_000_000
"""Longer than any body may be: the limit of the body is the limit of its texts."""


def _query(param: str, value: Any) -> Any:
    """Text that is not empty."""
    if not isinstance(value, str) or not value:
        raise wrong(param, "must be a string that is not empty")
    return value


def _documents(param: str, value: Any) -> Any:
    """A list of 1 to 1,000 texts, or objects with nothing but `text`."""
    if not isinstance(value, list) or not value or len(value) > MAX_DOCUMENTS:
        raise wrong(param, f"must be a list of 1 to {MAX_DOCUMENTS} documents")
    texts = []
    for index, document in enumerate(value):
        text = document.get("text") if isinstance(document, dict) and len(document) == 1 else document
        texts.append(string(_LONGEST_TEXT)(f"{param}[{index}]", text))
    return texts


RERANK: Final[Mapping[str, Check]] = {
    "model": string(256),
    "query": _query,
    "documents": _documents,
    "top_n": integer(1, 1_000_000),
    "return_documents": boolean,
    "user": end_user,
    "truncate": only(False, why="documents are never shortened unseen; send shorter ones"),
    "max_tokens_per_doc": refused("documents are never shortened unseen; send shorter ones"),
    "max_chunks_per_doc": refused("documents are never cut unseen; send shorter ones"),
    "rank_fields": refused("documents are texts here"),
    "instruction": refused("write it into the query"),
}


def read(decoded: Mapping[str, Any]) -> CallRequest:
    """The call that a request asks for. Every document is ranked, whatever `top_n` says: that is what it costs."""
    kept = parameters.checked(decoded, RERANK)
    query, documents = kept["query"], kept["documents"]
    return CallRequest(
        Endpoint.RERANK,
        kept["model"],
        # The backend is asked for the whole ranking; the answer is cut and given its documents by us.
        {"query": query, "documents": documents},
        prompts=len(documents),
        # The query is read once with each document.
        input_bound=len(query.encode()) * len(documents) + sum(len(document.encode()) for document in documents),
        end_user=decoded.get("user"),
        echo={"top_n": kept.get("top_n"), "return_documents": kept.get("return_documents", False)},
    )
