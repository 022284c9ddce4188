"""Read by Schemathesis in the environment that has it: what every error must look like, whoever gets it."""

from __future__ import annotations

import schemathesis


@schemathesis.check  # type: ignore[untyped-decorator]
def error_shape(_context: object, response: schemathesis.Response, case: schemathesis.Case) -> None:
    """OpenAI's shape with all its fields; Anthropic's below its routes."""
    if response.status_code < 400:
        return
    body = response.json()
    if case.path.startswith("/v1/messages"):
        assert body.keys() == {"type", "error", "request_id"}, body
        assert body["error"].keys() == {"type", "message"}, body
    else:
        assert body.keys() == {"error"}, body
        assert body["error"].keys() == {"message", "type", "param", "code"}, body
