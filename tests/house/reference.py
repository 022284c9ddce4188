"""`python -m tests.house.reference`: writes the pages of `docs/reference/` from the code; a test compares them.

What the code says of itself (routes, settings, metrics, kinds of errors) is taken from it. What error codes mean to who
gets one is said here, and a code without a meaning fails the test.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from fastapi.routing import APIRoute, iter_route_contexts
from prometheus_client.core import Metric

from gateway.api.errors import TABLE
from gateway.app import make_api
from gateway.auth import guards_of
from gateway.settings import Settings
from gateway.telemetry import REGISTRY

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = ROOT / "docs" / "reference"
_WRITTEN: Final = "<!-- Written by `make docs` from the code. -->\n\n"

MEANINGS: Final = {
    "backend_failed": "The model's server could not be reached or failed. Before the first byte nothing was charged.",
    "backend_timed_out": "The model's server did not answer in time. Nothing was charged.",
    "conflict": "The state of things forbids it, or the Idempotency-Key was used already; the message says which.",
    "context_length_exceeded": "The prompt does not fit into the model's context. Send a shorter one.",
    "insufficient_balance": "The highest price that the call can have is more than is available. Add credit, or lower"
    " max_tokens. SDKs do not repeat it.",
    "internal_error": "A fault of ours. Report the request id.",
    "invalid_api_key": "No key, or one that is not known, expired or revoked: one answer for all.",
    "invalid_value": "A parameter of a control route has a wrong value; `param` names it.",
    "method_not_allowed": "The route exists, but not for this method.",
    "model_not_found": "The model does not exist, or is not sold to this organization.",
    "not_found": "There is no such object or route, as far as this key may know.",
    "permission_denied": "The key is of another kind, or may not do this.",
    "rate_limit_exceeded": "A limit of key, project or organization is used up; `retry-after` says for how long.",
    "request_too_large": "The body is larger than may be.",
    "spend_limit_reached": "What key, project or organization may spend this month does not cover the call.",
    "too_many_batches": "More batches of the organization are open than may be. Wait for one to end.",
    "unavailable": "A part of Tollgate or the model's server cannot take the call now. Nothing was charged; repeat it"
    " after `retry-after`.",
    "unknown_parameter": "There is no such parameter here; `param` names it.",
    "unsupported_content": "The model cannot see pictures or hear sounds; send text.",
    "unsupported_endpoint": "The model does not serve this endpoint.",
    "unsupported_media_type": "The body is of a type that is not taken.",
}
"""What each error code means, and what to do."""

KEYS: Final = {
    "require_api_key": "API key",
    "require_admin": "admin key",
    "require_operator": "operator key",
    "require_reader": "API key or admin key",
    "require_signature": "signature of the provider",
    "public_route": "none",
}


def error_codes() -> set[str]:
    """Every code that an answer can have: those of the table, and those that are named where an error is raised."""
    found = {shape.code for shape in TABLE.values() if shape.code is not None}
    for path in sorted((ROOT / "gateway").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in _RAISED:
                named = [each.value for each in node.keywords if each.arg == "code"]
                found |= {
                    each.value for each in named if isinstance(each, ast.Constant) and isinstance(each.value, str)
                }
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "_told" and len(node.args) == 4:
                found |= {code for code in [getattr(node.args[3], "value", None)] if isinstance(code, str)}
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "_CODES" and node.value is not None:
                found |= set(ast.literal_eval(node.value).values())
    return found


def _texts(nodes: Iterable[ast.expr]) -> set[str]:
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


_RAISED: Final = frozenset({"InvalidRequest", "ModelNotFound", "InvalidAmount"})


def errors_page() -> str:
    """Every error code, and every kind of error with its status."""
    rows = [f"| `{code}` | {MEANINGS.get(code, '')} |" for code in sorted(error_codes())]
    kinds = {(shape.status, shape.type, shape.code) for shape in TABLE.values()}
    shapes = [
        f"| {status} | `{kind}` | {f'`{code}`' if code else ''} |" for status, kind, code in sorted(kinds, key=str)
    ]
    return (
        _WRITTEN + "# Errors\n\n"
        "Every error of every route has one shape, with all four fields: "
        '`{"error": {"message", "type", "param", "code"}}`. Below `/v1/messages` it is that of Anthropic: '
        '`{"type": "error", "error": {"type", "message"}, "request_id"}`. The message is a sentence that says what to'
        " do; programs go by `code` and status.\n\n"
        "| code | meaning |\n|---|---|\n" + "\n".join(rows) + "\n\n## By status\n\n"
        "| status | type | code, unless a narrower one is told |\n|---|---|---|\n" + "\n".join(shapes) + "\n"
    )


def routes_page() -> str:
    """Every route: method, path, the key that it demands, what it does."""
    api = make_api(docs_enabled=True)
    page = api.openapi()
    guards: dict[str, str] = {}
    for context in iter_route_contexts(api.routes):
        if isinstance(context.original_route, APIRoute):
            (guard,) = guards_of(context.dependant)
            path = (context.path or "").replace(":path}", "}")
            guards |= {f"{method} {path}": KEYS[guard] for method in context.original_route.methods or ()}
    rows = []
    for path, operations in sorted(page["paths"].items()):
        for method, operation in operations.items():
            # A metered endpoint has no route of FastAPI: the call path demands the key itself.
            guard = guards.get(f"{method.upper()} {path}", KEYS["require_api_key"])
            told = operation["summary"] if "Calls" in operation.get("tags", ()) else operation["description"]
            rows.append(f"| `{method.upper()} {path}` | {guard} | {told.partition(chr(10))[0]} |")
    return (
        _WRITTEN
        + "# Routes\n\nWhat is not here is refused with 404, never passed on. `tollgate up` serves the same with"
        " all parameters at `/docs`.\n\n| route | demands | |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def settings_page() -> str:
    """Every setting with its default."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "demanded" if field.is_required() else _default(field.get_default(call_default_factory=True))
        rows.append(f"| `TOLLGATE_{name.upper()}` | {default} | {field.description} |")
    return (
        _WRITTEN + "# Settings\n\nRead once from the environment when a program starts. No secret has a default.\n\n"
        "| variable | default | |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def _default(value: Any) -> str:
    if value is None or value == () or value == {} or value == frozenset():
        return "none"
    return f"`{json.dumps(value) if isinstance(value, bool) else value}`"


def metrics() -> Iterator[Metric]:
    """Every family of our own that a process shows."""
    return (metric for metric in REGISTRY.collect() if metric.name.startswith("tollgate_"))


def metrics_page() -> str:
    """Every metric with its labels."""
    rows = []
    for metric in sorted(metrics(), key=lambda metric: metric.name):
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        labels = ", ".join(f"`{label}`" for label in getattr(metric, "_labelnames", ()))
        rows.append(f"| `{name}` | {metric.type} | {labels} | {metric.documentation} |")
    return (
        _WRITTEN
        + "# Metrics\n\nAt `/metrics` of the internal port of every gateway and every worker. No label ever holds a"
        " client's text: a model or backend that is not in the catalog is counted as `other`.\n\n"
        "| metric | type | labels | |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def pages() -> dict[str, str]:
    """All pages by their file name."""
    return {
        "errors.md": errors_page(),
        "metrics.md": metrics_page(),
        "routes.md": routes_page(),
        "settings.md": settings_page(),
    }


if __name__ == "__main__":
    for name, text in pages().items():
        (PAGES / name).write_text(text, encoding="utf-8")
