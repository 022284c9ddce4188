"""Every route of `/v1` as an attacker sees it: one row each, and `test_routes.py` tries all cases on all of them.

Who adds a route adds a row, or `tests/house/test_attacked.py` fails. A row says who may call, what a good request is,
and how to name something that belongs to another tenant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from tests import sounds

Who = Literal["key", "admin", "reader"]


@dataclass(frozen=True, slots=True)
class Route:
    """`who` may call: a developer's key, an administrator's, or both.

    `json` is a good body, `form` the fields of a good form. A `model` in a body is tried with one that is not sold to
    the caller. `others` are the parameters in the path as they name an object of another tenant, by the names of
    `Theirs`; `elsewhere` names the test that tries this where it takes more than is here. `query` are parameters that
    the route reads.
    """

    method: str
    path: str
    who: Who = "key"
    json: Any = None
    form: Mapping[str, str] | None = None
    others: Mapping[str, str] = field(default_factory=dict)
    elsewhere: str = ""
    query: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As a test is called."""
        return f"{self.method} {self.path}"

    @property
    def takes_body(self) -> bool:
        """Whether a body is read."""
        return self.json is not None or self.form is not None


_HI: Final = [{"role": "user", "content": "hi"}]
_PAGE: Final = ("after", "limit")
_FORM: Final = {"model": "m"}
SOUND: Final = sounds.wav(1)

CALLS: Final = (
    Route("POST", "/v1/chat/completions", json={"model": "m", "messages": _HI, "max_tokens": 5}),
    Route("POST", "/v1/completions", json={"model": "m", "prompt": "hi", "max_tokens": 5}),
    Route("POST", "/v1/embeddings", json={"model": "m", "input": "hi"}),
    Route("POST", "/v1/responses", json={"model": "m", "input": "hi", "max_output_tokens": 5}),
    Route("POST", "/v1/messages", json={"model": "m", "messages": _HI, "max_tokens": 5}),
    Route("POST", "/v1/rerank", json={"model": "m", "query": "hi", "documents": ["hi"]}),
    Route("POST", "/v1/moderations", json={"model": "m", "input": "hi"}),
    Route("POST", "/v1/images/generations", json={"model": "m", "prompt": "hi"}),
    Route("POST", "/v1/audio/transcriptions", form=_FORM),
    Route("POST", "/v1/audio/translations", form=_FORM),
)
"""The metered endpoints."""

_INVOICE: Final = (
    "tests/integration/operator/test_operator_invoices.py::test_b02_nobody_sees_anothers_invoice_nor_a_draft"
)
_PDF: Final = "tests/integration/billing_api/test_documents.py::test_nobody_else_gets_it"

ROUTES: Final = (
    *CALLS,
    Route("GET", "/v1/models"),
    Route("GET", "/v1/models/{model_id}", others={"model_id": "model"}),
    Route("POST", "/v1/responses/input_tokens", json={"model": "m", "input": "hi"}),
    Route("POST", "/v1/messages/count_tokens", json={"model": "m", "messages": _HI}),
    Route("POST", "/v1/tokenize", json={"model": "m", "prompt": "hi"}),
    Route("POST", "/v1/detokenize", json={"model": "m", "tokens": [1]}),
    Route("GET", "/v1/responses/{response_id}", others={"response_id": "response"}, query=("stream",)),
    Route("DELETE", "/v1/responses/{response_id}", others={"response_id": "response"}),
    Route("POST", "/v1/responses/{response_id}/cancel", others={"response_id": "response"}),
    Route(
        "GET",
        "/v1/responses/{response_id}/input_items",
        others={"response_id": "response"},
        query=(*_PAGE, "order", "include[]"),
    ),
    Route("GET", "/v1/calls/{call_id}", "reader", others={"call_id": "call"}),
    Route("PUT", "/v1/calls/{call_id}", "reader", others={"call_id": "call"}),
    Route("PATCH", "/v1/calls/{call_id}", "reader", others={"call_id": "call"}),
    Route("DELETE", "/v1/calls/{call_id}", "reader", others={"call_id": "call"}),
    Route("GET", "/v1/billing/balance", "reader"),
    Route("GET", "/v1/billing/credit_grants", "reader", query=_PAGE),
    Route("GET", "/v1/billing/credit_grants/{grant_id}/draws", "reader", others={"grant_id": "grant"}, query=_PAGE),
    Route("GET", "/v1/billing/charges", "reader", query=(*_PAGE, "from", "to", "model", "project_id", "api_key_id")),
    Route("GET", "/v1/billing/charges.csv", "reader", query=("from", "to")),
    Route("GET", "/v1/billing/alerts", "admin", query=_PAGE),
    Route("GET", "/v1/billing/exports/{kind}", "admin", query=("from", "to", "organization")),
    Route("GET", "/v1/billing/invoices", "admin", query=(*_PAGE, "kind", "month")),
    Route("GET", "/v1/billing/invoices/{invoice_id}", "admin", elsewhere=_INVOICE),
    Route("GET", "/v1/billing/invoices/{invoice_id}.pdf", "admin", elsewhere=_PDF),
)
"""All of them. A branch that brings routes brings rows."""
