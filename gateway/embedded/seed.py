"""Fills Tollgate with what a first call needs: backends, models, prices, and an organization with keys and money.

All of it goes through the operator's own API, but for the first operator key. What is already there stays as it is, so
that a later start changes nothing, and what an operator has changed since is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from gateway.discovery import FoundBackend, ServedModel
from gateway.embedded.errors import CannotStart
from gateway.keys import issue_operator_key_at

ORGANIZATION = "Demo"
GRANT = {"amount": "5", "currency": "USD"}
PRICES = {"input": "0.15", "cached_input": "0.075", "output": "0.60"}
"""Dollars per million tokens by meter."""

# Before any clock that is rehearsed: what is set up under one clock must be in force under all.
_ALWAYS = "2020-01-01T00:00:00Z"
_TIMEOUT_SECONDS = 15.0


def fill(
    base_url: str,
    database_url: str,
    pepper: str,
    backends: Sequence[FoundBackend],
    tokenizer: Path | None,
    earlier: Mapping[str, Any],
) -> dict[str, Any]:
    """Set up what is missing; the part of `up.json` about keys and models. `earlier` is the last `up.json`, if any."""
    operator_key = earlier.get("operator_key")
    if not operator_key or not _works(base_url, "/operator/v1/backends", operator_key):
        _, operator_key = asyncio.run(issue_operator_key_at(database_url, "up", pepper))
    with _Operator(base_url, operator_key) as operator:
        _add_catalog(operator, backends, tokenizer)
        organization = _add_organization(operator)
        project = operator.found_or_made(
            f"/organizations/{organization}/projects", {"name": ORGANIZATION}, partial(_is_named, ORGANIZATION)
        )["id"]
        same = earlier.get("org_id") == organization and earlier.get("project_id") == project
        admin_key = earlier.get("admin_key") if same else None
        api_key = earlier.get("api_key") if same else None
        if not admin_key:
            admin_key = operator.post(f"/organizations/{organization}/admin_keys", {"name": ORGANIZATION})["value"]
        if not api_key or not _works(base_url, "/v1/models", api_key):
            api_key = operator.post(f"/projects/{project}/api_keys", {"name": ORGANIZATION})["value"]
    first = backends[0]
    return {
        "api_key": api_key,
        "admin_key": admin_key,
        "operator_key": operator_key,
        "org_id": organization,
        "project_id": project,
        "model": _chat_model(first).id,
        "backend_url": first.url,
    }


def _add_catalog(operator: _Operator, backends: Sequence[FoundBackend], tokenizer: Path | None) -> None:
    known_models = {one["id"]: one for one in operator.list("/models")}
    for backend in backends:
        body = {"name": backend.name, "kind": backend.kind.value, "url": backend.url}
        known = operator.found_or_made("/backends", body, partial(_is_named, backend.name))
        if known["url"] != backend.url:  # our own server on another port
            operator.patch(f"/backends/{known['id']}", {"url": backend.url})
        for served in backend.models:
            deployment = {"backend": backend.name, "backend_model": served.id, "weight": 1}
            if served.id not in known_models:
                known_models[served.id] = operator.post("/models", _model(served, deployment, tokenizer))
            elif all(one["backend"] != backend.name for one in known_models[served.id]["deployments"]):
                deployments = [*known_models[served.id]["deployments"], deployment]
                known_models[served.id] = operator.patch(f"/models/{served.id}", {"deployments": deployments})
            _add_prices(operator, served.id)


def _model(served: ServedModel, deployment: dict[str, Any], tokenizer: Path | None) -> dict[str, Any]:
    body: dict[str, Any] = {"id": served.id, "context_length": served.context_length, "deployments": [deployment]}
    body |= {"capabilities": list(served.capabilities)}
    return body if tokenizer is None else body | {"tokenizer": str(tokenizer)}


def _add_prices(operator: _Operator, model: str) -> None:
    priced = {one["meter"] for one in operator.list("/prices", model=model, book="default", currency="USD")}
    for meter, price in PRICES.items():
        if meter not in priced:
            body = {"book": "default", "model": model, "meter": meter, "currency": "USD", "effective_from": _ALWAYS}
            operator.post("/prices", body | {"price_per_million": price})


def _add_organization(operator: _Operator) -> str:
    body = {"name": ORGANIZATION, "currency": "USD", "billing_mode": "prepaid"}
    organization: str = operator.found_or_made("/organizations", body, partial(_is_named, ORGANIZATION))["id"]
    grant = {"kind": "paid", "amount": GRANT, "effective_at": _ALWAYS}
    operator.found_or_made(f"/organizations/{organization}/credit_grants", grant, lambda one: True)
    return organization


def _chat_model(backend: FoundBackend) -> ServedModel:
    """The model to show in the examples: the first that is not for embeddings, by its name."""
    return next((model for model in backend.models if "embed" not in model.id.lower()), backend.models[0])


def _is_named(name: str, one: Mapping[str, Any]) -> bool:
    return bool(one["name"] == name)


def _works(base_url: str, path: str, key: str) -> bool:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.get(base_url + path, headers=headers, timeout=_TIMEOUT_SECONDS, trust_env=False).is_success


class _Operator:
    """The operator's API, with every refusal as a sentence."""

    def __init__(self, base_url: str, key: str) -> None:
        self._client = httpx.Client(
            base_url=f"{base_url}/operator/v1",
            headers={"authorization": f"Bearer {key}"},
            timeout=_TIMEOUT_SECONDS,
            trust_env=False,
        )

    def __enter__(self) -> _Operator:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Make something."""
        return self._ask("POST", path, json=body)

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Change something."""
        return self._ask("PATCH", path, json=body)

    def list(self, path: str, **parameters: str) -> Iterator[dict[str, Any]]:
        """Everything of a list, page after page."""
        after: dict[str, str] = {}
        while True:
            page = self._ask("GET", path, params={"limit": 100, **parameters, **after})
            yield from page["data"]
            if not page["has_more"]:
                return
            after = {"after": page["last_id"]}

    def found_or_made(
        self, path: str, body: dict[str, Any], wanted: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        """The first of a list that is `wanted`, else a new one."""
        return next((one for one in self.list(path) if wanted(one)), None) or self.post(path, body)

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, **request)
        except httpx.HTTPError as error:
            raise CannotStart(
                f"The demo could not be set up: {method} {path} failed ({type(error).__name__})."
            ) from None
        if not response.is_success:
            told = response.text[:500]
            raise CannotStart(f"The demo could not be set up: {method} {path} answered {response.status_code}: {told}")
        answer: dict[str, Any] = response.json()
        return answer
