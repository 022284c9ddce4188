"""Rankings: one shape whatever the engine's, charged by the tokens that were read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.endpoints.conftest import Shop
from tests.scripted import answer

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

DOCUMENTS = ["a dog", "a kitten", "a house"]
JINA: list[dict[str, Any]] = [
    {"index": 1, "relevance_score": 0.9},
    {"index": 2, "relevance_score": -3},
    {"index": 0, "relevance_score": 0.2},
]
VLLM: dict[str, Any] = {
    "id": "rerank-1", "model": "x", "usage": {"prompt_tokens": 17, "total_tokens": 17},
    "results": [{**one, "document": {"text": "leaked", "multi_modal": None}} for one in JINA],
}  # fmt: skip
OLD_VLLM = {"results": JINA, "usage": {"total_tokens": 17}}
LLAMACPP = {"model": "x", "object": "list", "usage": {"prompt_tokens": 17, "total_tokens": 17}, "results": JINA}
SGLANG = [
    {"score": one["relevance_score"], "index": one["index"], "document": "x", "meta_info": {"prompt_tokens": tokens}}
    for one, tokens in zip(JINA, (5, 6, 6), strict=True)
]


async def ranked(shop: Shop, kind: str, **more: Any) -> dict[str, Any]:
    body = {"model": kind, "query": "a cat", "documents": DOCUMENTS, **more}
    reply = await shop.post("/v1/rerank", json=body)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param("vllm", VLLM, id="vLLM"),
        pytest.param("vllm", OLD_VLLM, id="vLLM before it told the prompt"),
        pytest.param("llamacpp", LLAMACPP, id="llama.cpp"),
        pytest.param("sglang", SGLANG, id="SGLang"),
        pytest.param("openai", LLAMACPP, id="another server"),
    ],
)
async def test_one_shape_for_every_engine(shop: Shop, kind: str, body: Any) -> None:
    shop.backend.script = answer(200, json.dumps(body).encode())
    reply = await ranked(shop, kind, top_n=2, return_documents=True)
    charge = await shop.charge()
    assert reply == {
        "id": f"rerank-{charge['call_id'].replace('-', '')}",
        "object": "list",
        "model": kind,
        "results": [
            {"index": 1, "relevance_score": 0.9, "document": {"text": "a kitten"}},
            {"index": 0, "relevance_score": 0.2, "document": {"text": "a dog"}},
        ],
        "usage": {"prompt_tokens": 17, "total_tokens": 17},
    }
    (asked,) = shop.backend.asked
    assert (asked.path, asked.body) == ("/v1/rerank", {"query": "a cat", "documents": DOCUMENTS, "model": "x"})
    assert (charge["endpoint"], charge["input_tokens"], charge["output_tokens"]) == ("/v1/rerank", 17, 0)
    assert (charge["usage_source"], charge["flags"]) == ("backend", [])
    assert charge["amount"]["amount"] == "0.000002550"


async def test_without_usage_our_own_count_is_charged(shop: Shop) -> None:
    shop.backend.script = answer(200, json.dumps({"results": JINA}).encode())
    reply = await ranked(shop, "openai", documents=[{"text": text} for text in DOCUMENTS])
    charge = await shop.charge()
    assert charge["usage_source"] == "estimate"
    # A token per four bytes: the query with each of three, and the documents.
    assert reply["usage"]["prompt_tokens"] == charge["input_tokens"] == 2 * 3 + 2 + 2 + 2
    assert [result["index"] for result in reply["results"]] == [1, 0, 2]
    assert "document" not in reply["results"][0]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"results": JINA[:2]}, id="a document is missing"),
        pytest.param({"results": [*JINA[:2], JINA[0]]}, id="one is there twice"),
        pytest.param({"results": [*JINA[:2], {"index": 7, "relevance_score": 1}]}, id="one that was not asked for"),
        pytest.param({"results": [*JINA[:2], {"index": 0, "relevance_score": "high"}]}, id="a score that is none"),
        pytest.param({"results": "none"}, id="no results"),
        pytest.param("hello", id="no object"),
        pytest.param({"object": "error", "message": "out of memory", "code": 500}, id="an error with status 200"),
    ],
)
async def test_what_is_no_ranking_costs_nothing(shop: Shop, body: Any) -> None:
    shop.backend.script = answer(200, json.dumps(body).encode())
    reply = await shop.post("/v1/rerank", json={"model": "vllm", "query": "a", "documents": DOCUMENTS})
    assert reply.status_code == 502
    await shop.nothing_charged()


@pytest.mark.parametrize(
    ("more", "param"),
    [
        pytest.param({"query": ""}, "query", id="no query"),
        pytest.param({"query": None}, "query", id="null"),
        pytest.param({"documents": []}, "documents", id="no documents"),
        pytest.param({"documents": ["x"] * 1_001}, "documents", id="too many"),
        pytest.param({"documents": [1]}, "documents[0]", id="no text"),
        pytest.param({"documents": [{"text": "a", "image": "http://x"}]}, "documents[0]", id="more than a text"),
        pytest.param({"top_n": 0}, "top_n", id="none of them"),
        pytest.param({"return_documents": "yes"}, "return_documents", id="no truth"),
        pytest.param({"max_tokens_per_doc": 9}, "max_tokens_per_doc", id="cut unseen"),
        pytest.param({"api_base": "http://x"}, "api_base", id="a destination"),
    ],
)
async def test_wrong_parameters(shop: Shop, more: dict[str, Any], param: str) -> None:
    reply = await shop.post("/v1/rerank", json={"model": "vllm", "query": "a", "documents": DOCUMENTS, **more})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert not shop.backend.asked


@pytest.mark.parametrize("kind", ["ollama", "tgi"])
async def test_engines_that_have_none_are_not_asked(shop: Shop, kind: str) -> None:
    reply = await shop.post("/v1/rerank", json={"model": kind, "query": "a", "documents": DOCUMENTS})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported_endpoint")
    assert not shop.backend.asked
    await shop.nothing_charged()
