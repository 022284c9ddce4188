"""A payment provider without a proper secret keeps a gateway from starting; without any there is no route."""

from __future__ import annotations

import pytest
from fastapi.routing import iter_route_contexts
from typer.testing import CliRunner

from gateway.app import make_api
from gateway.cli import make_app
from gateway.settings import Settings

NEEDED = {
    "TOLLGATE_DATABASE_URL": "postgresql://nowhere/x",
    "TOLLGATE_REDIS_URL": "redis://nowhere",
    "TOLLGATE_KEY_PEPPER": "a pepper of tests that is long enough to be one",
}
FAULTS = {
    "empty": ('{"stripe": ""}', "the secret of stripe is empty or shorter than 16 characters"),
    "blanks": ('{"stripe": "                    "}', "is empty or shorter"),
    "short": ('{"stripe": "whsec_s3cr3t"}', "is empty or shorter"),
    "null": ('{"stripe": null}', "TOLLGATE_PAYMENT_WEBHOOK_SECRETS"),
    "a provider that is not known": ('{"strape": "whsec_s3cr3t_0123456789"}', "a provider is one of stripe"),
    "the secret alone": ("whsec_s3cr3t_0123456789", "it is not a JSON object"),
    "a list": ('["whsec_s3cr3t_0123456789"]', "TOLLGATE_PAYMENT_WEBHOOK_SECRETS"),
}


@pytest.mark.parametrize("command", ["serve", "worker"])
@pytest.mark.parametrize(("value", "sentence"), FAULTS.values(), ids=FAULTS)
def test_nothing_starts(command: str, value: str, sentence: str) -> None:
    environment = NEEDED | {"TOLLGATE_PAYMENT_WEBHOOK_SECRETS": value}
    result = CliRunner().invoke(make_app(), [command], env=environment)
    assert result.exit_code == 2
    assert sentence in result.output
    assert "s3cr3t" not in result.output


def test_a_secret_is_read_and_shown_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TOLLGATE_PAYMENT_WEBHOOK_SECRETS", '{"stripe": " whsec_s3cr3t_0123456789\\n"}')
    settings = Settings()  # type: ignore[call-arg]  # pydantic reads the environment
    assert settings.payment_webhook_secrets["stripe"].get_secret_value() == "whsec_s3cr3t_0123456789"
    assert "s3cr3t" not in repr(settings)


@pytest.mark.parametrize("takes_webhooks", [True, False])
def test_without_a_secret_there_is_no_route(takes_webhooks: bool) -> None:
    routes = iter_route_contexts(make_api(docs_enabled=False, takes_webhooks=takes_webhooks).routes)
    paths = {context.path for context in routes}
    assert ("/webhooks/payments/{provider}" in paths) is takes_webhooks
