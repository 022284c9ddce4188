"""One Tollgate of the session for all clients: the demo model, and a backend that does what it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import pytest

from tests.compat.backend import SCENARIOS, running_backend
from tests.compat.clients import CLIENTS, PENDING, Processes, processes, who_has
from tests.scripted import Asked, Scripted
from tests.stage import ALWAYS, PRICES

BOOKED_SECONDS: Final = 15
DEMO: Final = "the demo model"
Test = TypeVar("Test", bound=Callable[..., None])


@dataclass(frozen=True, slots=True)
class Key:
    """An API key of one client in one test: what it was charged is what the test did. Without `id` nobody looks."""

    id: str
    value: str


@dataclass(slots=True)
class Tollgate:
    """A running Tollgate, with what a test asks of it beside the clients."""

    facts: dict[str, Any]
    backend: Scripted
    http: httpx.Client
    _poor_project: str = field(default="")

    @property
    def base_url(self) -> str:
        """Its address, without `/v1`."""
        return str(self.facts["base_url"])

    @property
    def demo(self) -> str:
        """The model that llama.cpp serves."""
        return str(self.facts["model"])

    def operate(self, path: str, body: dict[str, Any]) -> Any:
        """Make something by the operator's API."""
        headers = {"authorization": f"Bearer {self.facts['operator_key']}"}
        answer = self.http.post(f"{self.base_url}/operator/v1{path}", json=body, headers=headers)
        assert answer.is_success, answer.text
        return answer.json()

    def key(self, project: str | None = None, **limits: int) -> Key:
        """A fresh API key of the demo organization, or of another project."""
        path = f"/projects/{project or self.facts['project_id']}/api_keys"
        made = self.operate(path, {"name": "compat", "limits": limits})
        return Key(made["id"], made["value"])

    def poor_key(self) -> Key:
        """A key of an organization without money."""
        if not self._poor_project:
            poor = self.operate("/organizations", {"name": "Poor", "currency": "USD"})
            self._poor_project = self.operate(f"/organizations/{poor['id']}/projects", {"name": "one"})["id"]
        return Key("", self.key(self._poor_project).value)

    def charges(self, key: Key, count: int) -> list[dict[str, Any]]:
        """What this key was charged, oldest first, once there are `count` charges, or no more come."""
        headers = {"authorization": f"Bearer {self.facts['admin_key']}"}
        params = {"api_key_id": key.id, "order": "asc", "limit": "100"}
        deadline = time.monotonic() + BOOKED_SECONDS
        while True:
            answer = self.http.get(f"{self.base_url}/v1/billing/charges", params=params, headers=headers)
            found: list[dict[str, Any]] = answer.json()["data"]
            if len(found) >= count or time.monotonic() > deadline:
                return found
            time.sleep(0.02)

    def receipt(self, key: Key, call_id: str) -> dict[str, Any]:
        """The receipt of a call, as its developer reads it."""
        headers = {"authorization": f"Bearer {key.value}"}
        answer = self.http.get(f"{self.base_url}/v1/calls/{call_id}", headers=headers)
        assert answer.is_success, answer.text
        return dict(answer.json())

    def chat(self, key: Key, model: str) -> httpx.Response:
        """A chat without any client."""
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
        headers = {"authorization": f"Bearer {key.value}"}
        return self.http.post(f"{self.base_url}/v1/chat/completions", json=body, headers=headers)


@dataclass(slots=True)
class Ran:
    """One client's run of a case: what it told, what the backend was asked, what was charged."""

    client: str
    tollgate: Tollgate
    key: Key
    asked: list[Asked]
    charges: list[dict[str, Any]] = field(default_factory=list)
    _told: dict[str, Any] | AssertionError = field(default_factory=dict)

    @property
    def told(self) -> dict[str, Any]:
        """What the client told; raises what went wrong there."""
        if isinstance(self._told, AssertionError):
            raise self._told
        return self._told

    @property
    def charge(self) -> dict[str, Any]:
        """The one charge."""
        (charge,) = self.charges
        return charge


def run_at(processes: Processes, client: str, case: str, base_url: str, key: str, model: str) -> dict[str, Any]:
    """What a client tells of a case at this address; its exceptions are AssertionErrors here."""
    return processes.of(CLIENTS[client]).do(case, base_url=base_url, api_key=key, model=model)


@dataclass(slots=True)
class Rounds:
    """A case is run by all clients one after another, and then what they were charged is waited for, once."""

    tollgate: Tollgate
    processes: Processes
    _done: dict[tuple[str, str], dict[str, Ran]] = field(default_factory=dict)

    def of(self, item: pytest.Function) -> Ran:
        """The run of this test's client; the first test of a case runs it for all that are selected."""
        test, client, model = _of(item)
        if (test, model) not in self._done:
            beside = [one for one in item.session.items if isinstance(one, pytest.Function) and _is_beside(item, one)]
            self._done[test, model] = self._run(item, [_of(one)[1] for one in beside])
        return self._done[test, model][client]

    def _run(self, item: pytest.Function, clients: list[str]) -> dict[str, Ran]:
        marker = item.get_closest_marker("case")
        assert marker is not None
        (case,), calls, key = marker.args, marker.kwargs["calls"], marker.kwargs["key"]
        _, _, model = _of(item)
        done = {}
        for client in clients:
            ran = done[client] = Ran(client, self.tollgate, key(self.tollgate), [])
            heard = len(self.tollgate.backend.asked)
            known_as = self.tollgate.demo if model == DEMO else model
            try:
                ran._told = run_at(self.processes, client, case, self.tollgate.base_url, ran.key.value, known_as)
            except AssertionError as failed:
                ran._told = failed
            # Health checks ask without a body, whenever it is their time.
            ran.asked = [asked for asked in self.tollgate.backend.asked[heard:] if asked.body is not None]
        for ran in done.values():
            if ran.key.id and not isinstance(ran._told, AssertionError):
                ran.charges = self.tollgate.charges(ran.key, len(ran.asked) if calls is None else calls)
        return done


def _of(item: pytest.Function) -> tuple[str, str, str]:
    """Test, client and model."""
    params = item.callspec.params
    return item.originalname, str(params["client"]), str(params["model"])


def _is_beside(item: pytest.Function, other: pytest.Function) -> bool:
    """Whether another test is the same case with the same model, and runs here."""
    if other.originalname != item.originalname or other.get_closest_marker("skip") or other.path != item.path:
        return False
    return _of(other)[2] == _of(item)[2]


@pytest.fixture(scope="session")
def tollgate(tollgate_up: dict[str, Any]) -> Iterator[Tollgate]:
    """`tollgate up` with the demo model, and every scripted model on sale beside it."""
    with running_backend() as backend, httpx.Client(timeout=30, trust_env=False) as http:
        tollgate = Tollgate(tollgate_up, backend, http)
        tollgate.operate("/backends", {"name": "scripted", "kind": "openai", "url": backend.url})
        for model in SCENARIOS:
            deployment = {"backend": "scripted", "backend_model": model, "weight": 1}
            tollgate.operate("/models", {"id": model, "context_length": 4096, "deployments": [deployment]})
            for meter, price in PRICES.items():
                row = {"book": "default", "model": model, "meter": meter, "currency": "USD"}
                tollgate.operate("/prices", row | {"price_per_million": price, "effective_from": ALWAYS})
        wait_for_catalog(tollgate)
        yield tollgate


def wait_for_catalog(tollgate: Tollgate) -> None:
    """Return when the gateway sells what was just set up."""
    headers = {"authorization": f"Bearer {tollgate.facts['api_key']}"}
    deadline = time.monotonic() + 15
    while True:
        listed = tollgate.http.get(f"{tollgate.base_url}/v1/models", headers=headers).json()["data"]
        if {model["id"] for model in listed} >= set(SCENARIOS):
            return
        assert time.monotonic() < deadline, listed
        time.sleep(0.05)


@pytest.fixture(scope="session")
def running_clients(scratch: Path) -> Iterator[Processes]:
    """A process for each client."""
    with processes(scratch / "clients") as running:
        yield running


@pytest.fixture(scope="session")
def rounds(tollgate: Tollgate, running_clients: Processes) -> Rounds:
    """What was run so far."""
    return Rounds(tollgate, running_clients)


@pytest.fixture
def client() -> str:
    """The name of a client, which `case` gives."""
    raise NotImplementedError


@pytest.fixture
def model() -> str:
    """A model of the backend, or `DEMO`, which `case` gives."""
    raise NotImplementedError


@pytest.fixture
def ran(request: pytest.FixtureRequest, rounds: Rounds, client: str, model: str) -> Ran:
    """The client's run of the test's case."""
    return rounds.of(request.node)


def case(
    name: str, *models: str, calls: int | None = 1, key: Callable[[Tollgate], Key] = Tollgate.key
) -> Callable[[Test], Test]:
    """A test of a case that every client has which knows it; `calls` is how many are charged, None for all that the
    backend heard, and `key` makes the key that the client is given."""

    def mark(test: Test) -> Test:
        pytest.mark.case(name, calls=calls, key=key)(test)
        if name in PENDING:
            pytest.mark.xfail(strict=True, reason="Tollgate does not have it yet")(test)
        pytest.mark.parametrize("client", who_has(name))(test)
        pytest.mark.parametrize("model", models)(test)
        return test

    return mark


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", "case(name, calls, key): what clients run for this test")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the clients that are not installed, before any server is started for them."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        name = callspec.params.get("client") if callspec else None
        missing = CLIENTS[name].missing() if name in CLIENTS else None
        if missing:
            item.add_marker(pytest.mark.skip(reason=missing))
