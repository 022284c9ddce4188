"""Attacks A, B and D on every route of `/v1`: one table of routes, one test for each case."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from gateway.keys import KeyKind, mint
from tests.attacks.conftest import Scene
from tests.attacks.routes import ROUTES, SOUND, Route
from tests.scripted import PLAIN
from tests.stage import ALWAYS, Tenant

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

INJECTIONS = [
    "' OR 1=1--", "x' UNION SELECT 1", "$1", "%", "{{7*7}}", "../../etc/passwd", "..%2f..%2fetc", "....//x", "\0",
    "\r\nx: y", "0" * 4_000, "모델", "http://127.0.0.1/", "(select 1)", "-1", "1e9", "null", "; drop table charge",
]  # fmt: skip
GONE_KEY = {"authorization": f"Bearer {mint(KeyKind.API, b'another pepper').value}"}
TOO_LARGE = b"x" * 1_500_000
MALFORMED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"model":NaN}',
    b"[" * 50_000,
    b'{"model":"m","x":' + b"9" * 9_000 + b"}",
]


def rows(applies: Callable[[Route], bool] = lambda route: True) -> pytest.MarkDecorator:
    """A parameter for each route that the case is about."""
    return pytest.mark.parametrize("route", [pytest.param(route, id=route.name) for route in ROUTES if applies(route)])


@dataclass(frozen=True, slots=True)
class Theirs:
    """What belongs to another tenant, or to nobody whom the caller knows, by the names of `Route.others`."""

    call: str
    response: str
    grant: str
    organization: str
    project: str
    account: str
    key: str
    admin_key: str
    user: str
    invite: str
    alert: str
    project_alert: str
    rate_limit: str = "rl-m"
    model: str = "secret"


@pytest.fixture(scope="package")
async def theirs(scene: Scene) -> Theirs:
    """Bob has made a call, kept a response and was given credit; and there is a model that is sold to nobody here."""
    stage = scene.stage
    # A Bob of these tests alone, since those of batches may have charged the other.
    bob = await stage.tenant()
    scene.backend.script = PLAIN
    answer = await scene.chat(bob)
    call = answer.headers["x-request-id"]
    body = {"model": "m", "input": "hi", "max_output_tokens": 5, "store": True}
    response = (await scene.post("/v1/responses", json=body, headers=bob.headers)).json()["id"]
    await stage.charges(bob, 2)
    grants = await stage.operate("GET", f"/organizations/{bob.organization_id}/credit_grants")
    await stage.operate("POST", "/price_books", json={"id": "private"})
    deployment = {"backend": "openai-m", "backend_model": "x", "weight": 1}
    await stage.operate("POST", "/models", json={"id": "secret", "context_length": 4096, "deployments": [deployment]})
    price = {"book": "private", "model": "secret", "meter": "input", "currency": "USD", "price_per_million": "1"}
    await stage.operate("POST", "/prices", json=price | {"effective_from": ALWAYS})
    made = await belongings(scene, bob)
    return Theirs(call, response, grants["data"][0]["id"], bob.organization_id, bob.project_id, **made)


async def belongings(scene: Scene, tenant: Tenant) -> dict[str, str]:
    """One of everything that an administrator can make."""
    project = f"/projects/{tenant.project_id}"
    month = {"threshold_amount": 900_000_000, "currency": "USD", "interval": "month"}
    alert = {**month, "notification_channel": {"type": "email", "recipients": ["bob@example.com"]}}
    made: dict[str, dict[str, Any]] = {}
    for name, path, body in (
        ("account", f"{project}/service_accounts", {"name": "x"}),
        ("user", f"{project}/users", {"role": "member", "email": "bob@example.com"}),
        ("invite", "/invites", {"email": "bobs-friend@example.com", "role": "reader"}),
        ("admin_key", "/admin_api_keys", {"name": "x"}),
        ("alert", "/spend_alerts", alert),
        ("project_alert", f"{project}/spend_alerts", alert),
    ):
        answer = await scene.post(f"/v1/organization{path}", json=body, headers=tenant.admin_headers)
        assert answer.status_code == 200, answer.text
        made[name] = answer.json()
    return {name: thing["id"] for name, thing in made.items()} | {"key": made["account"]["api_key"]["id"]}


@pytest.fixture(scope="package")
async def carol(scene: Scene) -> Tenant:
    """Who attacks: an organization of its own, since what an administrator may do there changes it."""
    return await scene.stage.tenant()


@pytest.fixture(scope="package")
async def revoked(scene: Scene) -> Tenant:
    """A tenant whose keys are revoked, and were never used: nobody remembers them."""
    tenant, stage = await scene.stage.tenant(), scene.stage
    for owner, kind in (
        (f"/projects/{tenant.project_id}", "api_keys"),
        (f"/organizations/{tenant.organization_id}", "admin_keys"),
    ):
        for key in (await stage.operate("GET", f"{owner}/{kind}"))["data"]:
            await stage.operate("POST", f"{owner}/{kind}/{key['id']}/revoke")
    return tenant


def own(route: Route, tenant: Tenant) -> dict[str, str]:
    """The credentials of a tenant that the route demands."""
    return tenant.admin_headers if route.who == "admin" else tenant.headers


def filled(route: Route, values: Mapping[str, str] | None = None) -> str:
    """The path of a route, with values or with ids of nothing for what stands in it."""
    nothing = "0190a000-0000-7000-8000-000000000000"
    return re.sub(r"{(\w+)}", lambda found: quote((values or {}).get(found[1], nothing), safe=""), route.path)


async def send(
    scene: Scene, route: Route, headers: Mapping[str, str], path: str = "", model: str = "", **options: Any
) -> httpx.Response:
    """A good request, but for what is given."""
    if "content" not in options:
        if route.form is not None:
            fields = {**route.form, **({"model": model} if model else {})}
            options |= {"files": {"file": ("a.wav", SOUND)}, "data": fields}
        elif route.json is not None:
            options["json"] = {**route.json, **({"model": model} if model else {})}
    url = scene.stage.base_url + (path or filled(route))
    if route.needs:
        url += f"{'&' if '?' in url else '?'}{route.needs}"
    return await scene.stage.client.request(route.method, url, headers=dict(headers), **options)


def is_error(answer: httpx.Response, *statuses: int) -> None:
    """An error with one of these statuses, in the shape of the API of its path, under an id."""
    assert answer.status_code in statuses, (answer.status_code, answer.text)
    body = answer.json()
    if answer.request.url.path.startswith("/v1/messages"):
        assert set(body) == {"type", "error", "request_id"}
        assert set(body["error"]) == {"type", "message"}
    else:
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]


@rows()
async def test_a01_to_a04_without_a_key_that_is_known(scene: Scene, route: Route) -> None:
    asked, balance = len(scene.backend.asked), await scene.stage.balance(scene.alice)
    answers = [await send(scene, route, {}), await send(scene, route, GONE_KEY)]
    answers.append(await send(scene, route, {"cookie": f"session={scene.alice.api_key}"}))
    in_query = f"{filled(route)}?api_key={scene.alice.api_key}&key={scene.alice.admin_key}"
    answers.append(await send(scene, route, {}, in_query))
    for answer in answers:
        is_error(answer, 401)
        assert answer.json()["error"] == answers[0].json()["error"]
        assert scene.alice.api_key not in answer.text
    await scene.untouched(asked, balance)


@rows()
async def test_a05_with_a_revoked_key(scene: Scene, route: Route, revoked: Tenant) -> None:
    asked = len(scene.backend.asked)
    for headers in (revoked.headers, revoked.admin_headers):
        is_error(await send(scene, route, headers), 401)
    assert len(scene.backend.asked) == asked


@rows()
async def test_b08_with_a_key_of_another_kind(scene: Scene, route: Route) -> None:
    asked = len(scene.backend.asked)
    wrong = {"key": [scene.alice.admin_headers], "admin": [scene.alice.headers], "reader": []}[route.who]
    for headers in (*wrong, scene.stage.operator_headers):
        is_error(await send(scene, route, headers), 403)
    assert len(scene.backend.asked) == asked


@rows(lambda route: bool(route.others))
async def test_b01_another_tenants_object_is_none(scene: Scene, route: Route, carol: Tenant, theirs: Theirs) -> None:
    named = {name: getattr(theirs, kind) for name, kind in route.others.items()}
    answer = await send(scene, route, own(route, carol), filled(route, named))
    nothing = await send(scene, route, own(route, carol))
    # As if it were not there, to the last word.
    is_error(answer, 404, 405)
    assert (answer.status_code, answer.json()["error"]) == (nothing.status_code, nothing.json()["error"])


@rows(lambda route: route.method == "GET" and "{" not in route.path)
async def test_b05_another_tenants_things_are_in_no_list(
    scene: Scene, route: Route, carol: Tenant, theirs: Theirs
) -> None:
    answer = await send(scene, route, own(route, carol))
    # There may be no spend limit to look at.
    assert answer.status_code == 200 or route.path.endswith("/spend_limit"), answer.text
    for name in Theirs.__slots__:
        # The limit of a model has the same name for all.
        assert name == "rate_limit" or getattr(theirs, name) not in answer.text


@rows(lambda route: "model" in (route.json or route.form or {}))
async def test_a_model_that_is_not_sold_is_not_found(scene: Scene, route: Route, theirs: Theirs) -> None:
    asked, balance = len(scene.backend.asked), await scene.stage.balance(scene.alice)
    for model in (theirs.model, "no-such-model", "../../x", "http://127.0.0.1/", "모델", "' OR 1=1--"):
        is_error(await send(scene, route, scene.alice.headers, model=model), 404)
    is_error(await send(scene, route, scene.alice.headers, model="x" * 10_000), 400)
    await scene.untouched(asked, balance)


@rows(lambda route: "model" in (route.json or route.form or {}))
async def test_a_key_for_other_models_is_refused(scene: Scene, route: Route, theirs: Theirs) -> None:
    narrow = await scene.stage.tenant(models=[theirs.model])
    asked = len(scene.backend.asked)
    is_error(await send(scene, route, narrow.headers), 403, 404)
    assert len(scene.backend.asked) == asked


@rows(lambda route: route.takes_body and not route.streams)
async def test_d01_a_body_that_is_too_large(scene: Scene, route: Route, carol: Tenant) -> None:
    asked, balance = len(scene.backend.asked), await scene.stage.balance(carol)
    kind = "application/json" if route.form is None else "multipart/form-data; boundary=x"
    headers = own(route, carol) | {"content-type": kind}
    is_error(await send(scene, route, headers, content=TOO_LARGE), 413)
    await scene.untouched(asked, balance, carol)


@rows(lambda route: route.takes_body)
async def test_d03_to_d09_a_body_that_is_none(scene: Scene, route: Route, carol: Tenant) -> None:
    asked, balance = len(scene.backend.asked), await scene.stage.balance(carol)
    headers = own(route, carol)
    kind = "application/json" if route.form is None else "multipart/form-data; boundary=x"
    # Where FastAPI reads a body, it takes what it cannot read for a wrong value.
    is_ours = route.who == "key" and route.path != "/v1/batches"
    refused = (415,) if is_ours else (400, 415, 422)
    for content in MALFORMED:
        is_error(await send(scene, route, headers | {"content-type": kind}, content=content), 400, 422)
    for other in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=" + "-" * 20_000):
        is_error(await send(scene, route, headers | {"content-type": other}, content=b"x"), *refused)
    gzip = headers | {"content-type": kind, "content-encoding": "gzip"}
    is_error(await send(scene, route, gzip, content=b"\x1f\x8b" + bytes(50)), *refused)
    await scene.untouched(asked, balance, carol)


@rows(lambda route: "{" in route.path)
async def test_f10_injection_in_the_path(scene: Scene, route: Route, carol: Tenant) -> None:
    asked = len(scene.backend.asked)
    names = re.findall(r"{(\w+)}", route.path)
    for text in INJECTIONS:
        answer = await send(scene, route, own(route, carol), filled(route, dict.fromkeys(names, text)))
        is_error(answer, 400, 404, 405, 422)
    assert len(scene.backend.asked) == asked


@rows()
async def test_b10_injection_in_the_query(scene: Scene, route: Route, carol: Tenant) -> None:
    headers = own(route, carol)
    usual = (await send(scene, route, headers)).status_code
    names = (*route.query, "sort")
    # Each text once, at one parameter after the other, and SQL at each of them.
    tries = [(names[place % len(names)], text) for place, text in enumerate(INJECTIONS)]
    for name, text in (*tries, *((name, INJECTIONS[0]) for name in route.query)):
        answer = await send(scene, route, headers, f"{filled(route)}?{quote(name)}={quote(text, safe='')}")
        assert answer.status_code in (usual, 200, 400, 404, 409, 422), (name, text, answer.text)


BOUNDARIES = [
    pytest.param("-" * 70, b"-" * 900_000, id="a body of dashes"),
    pytest.param("-" * 70, b"\r\n" * 450_000, id="a body of lines"),
    pytest.param("x", b"--x\r\n" * 180_000, id="a body of beginnings"),
    pytest.param(
        "x", b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n' * 9_000, id="fields without end"
    ),
    pytest.param("x", b'--x\r\ncontent-disposition: form-data; name="' + b"m" * 800_000, id="a name without end"),
    pytest.param(
        "x", b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\n' + b"\r\n--" * 200_000, id="a file of ends"
    ),
    pytest.param(
        "x", b'--x\r\ncontent-disposition: form-data; name="\xff"\r\n\r\nm\r\n--x--', id="a name that is no text"
    ),
    pytest.param("x", b"--x\r\ncontent-disposition: attachment\r\n\r\nm\r\n--x--", id="a field without a name"),
]


@pytest.mark.parametrize(("boundary", "content"), BOUNDARIES)
async def test_d09_forms_that_are_none(scene: Scene, boundary: str, content: bytes) -> None:
    asked, balance = len(scene.backend.asked), await scene.stage.balance(scene.alice)
    headers = scene.alice.headers | {"content-type": f"multipart/form-data; boundary={boundary}"}
    for path in ("/v1/audio/transcriptions", "/v1/audio/translations"):
        is_error(await scene.post(path, content=content, headers=headers), 400)
    await scene.untouched(asked, balance)


def asks(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    """A conversation of one message."""
    return [{"role": "user", "content": list(parts)}]


def input_image(url: str) -> dict[str, Any]:
    return {"input": asks({"type": "input_image", "image_url": url})}


def image_url(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/v1/chat/completions", lambda url: {"messages": asks(image_url(url))}, id="chat"),
        pytest.param("/v1/responses", input_image, id="responses"),
        pytest.param("/v1/responses/input_tokens", input_image, id="counting responses"),
        pytest.param(
            "/v1/messages",
            lambda url: {"max_tokens": 5, "messages": asks({"type": "image", "source": {"type": "url", "url": url}})},
            id="messages",
        ),
        pytest.param("/v1/tokenize", lambda url: {"messages": asks(image_url(url))}, id="tokenize"),
        pytest.param("/v1/moderations", lambda url: {"input": [image_url(url)]}, id="moderations"),
    ],
)
async def test_c02_no_backend_fetches_for_a_client(
    scene: Scene, path: str, body: Callable[[str], dict[str, Any]]
) -> None:
    asked, balance = len(scene.backend.asked), await scene.stage.balance(scene.alice)
    for url in ("http://169.254.169.254/latest", "https://img.example/a.png", "file:///etc/passwd", "//x", " data:x"):
        is_error(await scene.post(path, json={"model": "m", **body(url)}, headers=scene.alice.headers), 400)
    await scene.untouched(asked, balance)
