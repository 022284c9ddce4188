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
    the route reads, `needs` those that it demands. `streams` says that a body may be larger than that of other routes.
    """

    method: str
    path: str
    who: Who = "key"
    json: Any = None
    form: Mapping[str, str] | None = None
    others: Mapping[str, str] = field(default_factory=dict)
    elsewhere: str = ""
    query: tuple[str, ...] = ()
    needs: str = ""
    streams: bool = False

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

_O: Final = "/v1/organization"
_MONTH: Final = {"threshold_amount": 900_000_000, "currency": "USD", "interval": "month"}
_ALERT: Final = {**_MONTH, "notification_channel": {"type": "email", "recipients": ["a@example.com"]}}
_P: Final = {"project_id": "project"}
_ACCOUNT: Final = {**_P, "account_id": "account"}
_KEY: Final = {**_P, "key_id": "key"}
_USER: Final = {**_P, "user_id": "user"}
_ALERT_OF_PROJECT: Final = {**_P, "alert_id": "project_alert"}
_LIST: Final = (*_PAGE, "order", "before")
_REPORT: Final = (
    "end_time",
    "bucket_width",
    "group_by[]",
    "project_ids[]",
    "api_key_ids[]",
    "models[]",
    "limit",
    "page",
)
_START: Final = "start_time=1700000000"


def _admin(method: str, path: str, json: Any = None, others: Mapping[str, str] | None = None, **more: Any) -> Route:
    return Route(method, _O + path, "admin", json=json, others=others or {}, **more)


ORGANIZATION: Final = (
    _admin("POST", "/projects", {"name": "x"}),
    _admin("GET", "/projects", query=(*_PAGE, "include_archived")),
    _admin("GET", "/projects/{project_id}", others=_P),
    _admin("POST", "/projects/{project_id}", {"name": "x"}, _P),
    _admin("POST", "/projects/{project_id}/archive", others=_P),
    _admin("POST", "/projects/{project_id}/service_accounts", {"name": "x"}, _P),
    _admin("GET", "/projects/{project_id}/service_accounts", others=_P, query=_PAGE),
    _admin("GET", "/projects/{project_id}/service_accounts/{account_id}", others=_ACCOUNT),
    _admin("POST", "/projects/{project_id}/service_accounts/{account_id}", {"name": "x"}, _ACCOUNT),
    _admin("DELETE", "/projects/{project_id}/service_accounts/{account_id}", others=_ACCOUNT),
    _admin("POST", "/projects/{project_id}/service_accounts/{account_id}/api_keys", {"name": "x"}, _ACCOUNT),
    _admin("GET", "/projects/{project_id}/api_keys", others=_P, query=(*_PAGE, "owner_project_access")),
    _admin("GET", "/projects/{project_id}/api_keys/{key_id}", others=_KEY),
    _admin("POST", "/projects/{project_id}/api_keys/{key_id}", {"scopes": []}, _KEY),
    _admin("POST", "/projects/{project_id}/api_keys/{key_id}/rotate", {"overlap_seconds": 0}, _KEY),
    _admin("DELETE", "/projects/{project_id}/api_keys/{key_id}", others=_KEY),
    _admin("GET", "/projects/{project_id}/rate_limits", others=_P, query=_LIST),
    _admin(
        "POST",
        "/projects/{project_id}/rate_limits/{rate_limit_id}",
        {"max_requests_per_1_minute": 1},
        {**_P, "rate_limit_id": "rate_limit"},
    ),
    _admin("GET", "/projects/{project_id}/model_permissions", others=_P),
    _admin("POST", "/projects/{project_id}/model_permissions", {"mode": "allow_list", "model_ids": []}, _P),
    _admin("DELETE", "/projects/{project_id}/model_permissions", others=_P),
    _admin("GET", "/spend_limit"),
    _admin("POST", "/spend_limit", _MONTH),
    _admin("DELETE", "/spend_limit"),
    _admin("GET", "/projects/{project_id}/spend_limit", others=_P),
    _admin("POST", "/projects/{project_id}/spend_limit", _MONTH, _P),
    _admin("DELETE", "/projects/{project_id}/spend_limit", others=_P),
    _admin("POST", "/spend_alerts", _ALERT),
    _admin("GET", "/spend_alerts", query=_LIST),
    _admin("GET", "/spend_alerts/{alert_id}", others={"alert_id": "alert"}),
    _admin("POST", "/spend_alerts/{alert_id}", _ALERT, {"alert_id": "alert"}),
    _admin("DELETE", "/spend_alerts/{alert_id}", others={"alert_id": "alert"}),
    _admin("POST", "/projects/{project_id}/spend_alerts", _ALERT, _P),
    _admin("GET", "/projects/{project_id}/spend_alerts", others=_P, query=_LIST),
    _admin("GET", "/projects/{project_id}/spend_alerts/{alert_id}", others=_ALERT_OF_PROJECT),
    _admin("POST", "/projects/{project_id}/spend_alerts/{alert_id}", _ALERT, _ALERT_OF_PROJECT),
    _admin("DELETE", "/projects/{project_id}/spend_alerts/{alert_id}", others=_ALERT_OF_PROJECT),
    _admin("POST", "/projects/{project_id}/users", {"role": "member", "email": "a@example.com"}, _P),
    _admin("GET", "/projects/{project_id}/users", others=_P, query=_PAGE),
    _admin("GET", "/projects/{project_id}/users/{user_id}", others=_USER),
    _admin("POST", "/projects/{project_id}/users/{user_id}", {"role": "owner"}, _USER),
    _admin("DELETE", "/projects/{project_id}/users/{user_id}", others=_USER),
    _admin("GET", "/users", query=(*_PAGE, "emails[]")),
    _admin("GET", "/users/{user_id}", others={"user_id": "user"}),
    _admin("POST", "/users/{user_id}", {"role": "owner"}, {"user_id": "user"}),
    _admin("DELETE", "/users/{user_id}", others={"user_id": "user"}),
    _admin("POST", "/invites", {"email": "b@example.com", "role": "reader"}),
    _admin("GET", "/invites", query=_PAGE),
    _admin("GET", "/invites/{invite_id}", others={"invite_id": "invite"}),
    _admin("DELETE", "/invites/{invite_id}", others={"invite_id": "invite"}),
    _admin("POST", "/admin_api_keys", {"name": "x"}),
    _admin("GET", "/admin_api_keys", query=(*_PAGE, "order")),
    _admin("GET", "/admin_api_keys/{key_id}", others={"key_id": "admin_key"}),
    _admin("POST", "/admin_api_keys/{key_id}/rotate", {"overlap_seconds": 0}, {"key_id": "admin_key"}),
    _admin("DELETE", "/admin_api_keys/{key_id}", others={"key_id": "admin_key"}),
    _admin(
        "GET",
        "/audit_logs",
        query=(*_LIST, "effective_at[gte]", "event_types[]", "actor_ids[]", "project_ids[]", "resource_ids[]"),
    ),
    _admin("GET", "/usage/completions", query=(*_REPORT, "batch", "user_ids[]"), needs=_START),
    _admin("GET", "/usage/embeddings", query=_REPORT, needs=_START),
    _admin("GET", "/usage/moderations", query=_REPORT, needs=_START),
    _admin("GET", "/usage/images", query=(*_REPORT, "sizes[]", "sources[]"), needs=_START),
    _admin("GET", "/usage/audio_transcriptions", query=_REPORT, needs=_START),
    _admin("GET", "/usage/audio_speeches", query=_REPORT, needs=_START),
    _admin("GET", "/usage/decisions", query=_REPORT, needs=_START),
    _admin("GET", "/usage/vector_stores", query=_REPORT, needs=_START),
    _admin("GET", "/usage/file_search_calls", query=_REPORT, needs=_START),
    _admin("GET", "/usage/web_search_calls", query=_REPORT, needs=_START),
    _admin("GET", "/usage/code_interpreter_sessions", query=_REPORT, needs=_START),
    _admin("GET", "/costs", query=(*_REPORT, "line_items[]"), needs=_START),
)
"""The control plane of an organization; `test_organization.py` has more of it."""

_THEIRS: Final = "tests/attacks/test_files_and_batches.py::test_b01_another_tenants_object_is_not_there"
_NO_FILE: Final = "file-" + "0" * 32
_BATCH: Final = {"input_file_id": _NO_FILE, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
FILES: Final = (
    Route("POST", "/v1/files", form={"purpose": "batch"}, streams=True),
    Route("GET", "/v1/files", query=(*_PAGE, "order", "purpose")),
    Route("GET", "/v1/files/{file_id}", elsewhere=_THEIRS),
    Route("GET", "/v1/files/{file_id}/content", elsewhere=_THEIRS),
    Route("DELETE", "/v1/files/{file_id}", elsewhere=_THEIRS),
    Route("POST", "/v1/batches", json=_BATCH),
    Route("GET", "/v1/batches", query=_PAGE),
    Route("GET", "/v1/batches/{batch_id}", elsewhere=_THEIRS),
    Route("POST", "/v1/batches/{batch_id}/cancel", elsewhere=_THEIRS),
)
"""Files and batches; `test_files_and_batches.py` has more of them."""

ROUTES: Final = (
    *CALLS,
    *ORGANIZATION,
    *FILES,
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
