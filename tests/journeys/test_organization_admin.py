"""An administrator with the official OpenAI SDK: what is set by its admin client is enforced before any hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.resources.admin.organization import AsyncOrganization
from sqlalchemy import event

from billing.store.keys import revoke
from gateway.embedded.redis import Redis
from models.money import parse_amount
from models.tables import admin_key
from tests.conftest import Database
from tests.scripted import Scripted, scripted_backend
from tests.stage import ALWAYS, Stage, Tenant, eventually, raise_curtain

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

CHANNEL: Any = {"type": "email", "recipients": ["Finance@Example.com"], "subject_prefix": "[acme]"}


@dataclass(slots=True)
class Office:
    """A stage with a tenant, whose administrator holds the SDK's admin client."""

    stage: Stage
    backend: Scripted
    tenant: Tenant
    sdk: AsyncOpenAI

    @property
    def admin(self) -> AsyncOrganization:
        """The client of the organization."""
        return self.sdk.admin.organization

    async def worker_key(self, **scopes: Any) -> tuple[str, str]:
        """A new key of a new service account in the tenant's project: its id and its value."""
        projects = self.admin.projects
        account = await projects.service_accounts.create(
            self.tenant.project_id, name="worker", create_service_account_only=True
        )
        await projects.service_accounts.update(account.id, project_id=self.tenant.project_id, role="member")
        key = await projects.service_accounts.api_keys.create(account.id, project_id=self.tenant.project_id, **scopes)
        return key.id, key.value

    async def call(self, key: str, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
        """A call with this key."""
        message = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        body = {"model": "m", **(message if "chat" in path else {"input": "hi"}), **more.pop("body", {})}
        headers = {"authorization": f"Bearer {key}", **more}
        return await self.stage.client.post(self.stage.base_url + path, json=body, headers=headers)

    async def passes(self, key: str, **more: Any) -> None:
        """Calls pass, at the latest when what was believed of the key is old."""

        async def passed() -> bool:
            return (await self.call(key, **more)).status_code == 200

        await eventually(passed, seconds=5)

    async def is_refused(self, key: str, status: int, code: str, within_seconds: float = 5, **more: Any) -> str:
        """Calls are refused within these seconds; such a call holds nothing and reaches no backend. Answers why."""

        async def refused() -> bool:
            return (await self.call(key, **more)).status_code == status

        await eventually(refused, within_seconds)
        await self.stage.quiet()
        asked, before = len(self.backend.asked), await self.balance()
        answer = await self.call(key, **more)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, code), answer.text
        assert set(error) == {"message", "type", "param", "code"}
        assert len(self.backend.asked) == asked, "no backend was asked"
        after = await self.balance()
        assert (after["balance"], after["held"]) == (before["balance"], before["held"]), "nothing was held"
        assert parse_amount(after["held"]["amount"], "USD") == 0
        return str(error["message"])

    async def balance(self) -> dict[str, Any]:
        """The balance as the administrator sees it."""
        url = f"{self.stage.base_url}/v1/billing/balance"
        answer = await self.stage.client.get(url, headers=self.tenant.admin_headers)
        return dict(answer.json())


@pytest.fixture
async def office(postgres: Database, redis: Redis) -> AsyncIterator[Office]:
    # Longer than a bucket of a test needs, and shorter than the five seconds that are promised.
    async with scripted_backend() as backend, raise_curtain(postgres.app_url, redis.url, key_cache_seconds=1) as stage:
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        await sell(stage, "other", "0.15")
        tenant = await stage.tenant()
        sdk = AsyncOpenAI(admin_api_key=tenant.admin_key, base_url=f"{stage.base_url}/v1", max_retries=0)
        async with sdk:
            yield Office(stage, backend, tenant, sdk)


async def sell(stage: Stage, model: str, price: str) -> None:
    """Sell another model of the same backend, at so many dollars a million."""
    deployments = [{"backend": "openai-m", "backend_model": "x", "weight": 1}]
    await stage.operate("POST", "/models", json={"id": model, "context_length": 4096, "deployments": deployments})
    for meter in ("input", "output"):
        row = {"book": "default", "model": model, "meter": meter, "currency": "USD", "price_per_million": price}
        await stage.operate("POST", "/prices", json=row | {"effective_from": ALWAYS})


async def test_projects(office: Office) -> None:
    projects = office.admin.projects
    made = await projects.create(name="Two", external_key_id="ext-2")
    assert made.to_dict() == {
        "id": made.id,
        "object": "organization.project",
        "name": "Two",
        "created_at": made.created_at,
        "archived_at": None,
        "status": "active",
        "external_key_id": "ext-2",
        "residency": None,
    }
    assert abs(made.created_at - datetime.now(UTC).timestamp()) < 60
    changed = await projects.update(made.id, name="Second")
    assert await projects.retrieve(made.id) == changed
    assert (changed.name, changed.external_key_id) == ("Second", "ext-2")
    archived = await projects.archive(made.id)
    assert (archived.status, archived.archived_at is not None) == ("archived", True)
    assert [each.id async for each in projects.list()] == [office.tenant.project_id]
    assert [each.id async for each in projects.list(limit=1, include_archived=True)] == [
        office.tenant.project_id,
        made.id,
    ]
    with pytest.raises(openai.BadRequestError, match="agreed with the operator"):
        await projects.create(name="Far", residency="EU_STORAGE_PROCESSING")
    with pytest.raises(openai.ConflictError, match="archived"):
        await projects.update(made.id, name="again")


async def test_service_accounts_and_keys(office: Office) -> None:
    project, accounts = office.tenant.project_id, office.admin.projects.service_accounts
    first = await accounts.create(project, name="cron", expires_in_seconds=3_600)
    assert first.role == "member"
    assert first.api_key is not None
    assert first.api_key.expires_at == first.api_key.created_at + 3_600
    await office.passes(first.api_key.value)

    bare = await accounts.create(project, name="bare", create_service_account_only=True)
    assert (bare.role, bare.api_key) == ("none", None)
    with pytest.raises(openai.ConflictError, match="role member"):
        await accounts.api_keys.create(bare.id, project_id=project)
    assert (await accounts.update(bare.id, project_id=project, name="Bare", role="owner")).role == "owner"
    assert [each.name async for each in accounts.list(project, limit=1)] == ["cron", "Bare"]
    assert (await accounts.retrieve(bare.id, project_id=project)).name == "Bare"

    keys = office.admin.projects.api_keys
    scopes = ["model:m", "endpoint:/v1/embeddings", "network:10.1.2.3"]
    made = await accounts.api_keys.create(bare.id, project_id=project, name="embed", scopes=scopes)
    assert made.object == "organization.project.service_account.api_key"
    shown = await keys.retrieve(made.id, project_id=project)
    assert shown.owner.type == "service_account"
    assert shown.owner.service_account is not None
    assert shown.owner.service_account.id == bare.id
    assert shown.to_dict()["scopes"] == ["endpoint:/v1/embeddings", "model:m", "network:10.1.2.3/32"]
    assert made.value not in shown.to_json()
    assert made.value.endswith(shown.redacted_value[-4:])
    names = [each.name async for each in keys.list(project, limit=1)]
    assert names == ["dev", "cron", "embed"]
    assert [each async for each in keys.list(project, owner_project_access="inactive")] == []
    with pytest.raises(openai.BadRequestError, match="neither as null"):
        await keys.update(made.id, project_id=project)
    longer = await keys.update(made.id, project_id=project, expires_in_seconds=60, scopes=[])
    assert longer.expires_at is not None
    assert longer.to_dict()["scopes"] == []

    gone = await keys.delete(made.id, project_id=project)
    assert gone.to_dict() == {"id": made.id, "deleted": True, "object": "organization.project.api_key.deleted"}
    with pytest.raises(openai.NotFoundError):
        await keys.retrieve(made.id, project_id=project)
    deleted = await accounts.delete(first.id, project_id=project)
    assert deleted.object == "organization.project.service_account.deleted"
    await office.is_refused(first.api_key.value, 401, "invalid_api_key")
    with pytest.raises(openai.NotFoundError):
        await accounts.retrieve(first.id, project_id=project)


async def test_rate_limits_are_enforced(office: Office) -> None:
    project, limits = office.tenant.project_id, office.admin.projects.rate_limits
    _, key = await office.worker_key()
    listed = [each async for each in limits.list_rate_limits(project, limit=1)]
    assert [(each.id, each.model, each.max_requests_per_1_minute) for each in listed] == [
        ("rl-m", "m", 2_000_000_000),
        ("rl-other", "other", 2_000_000_000),
    ]
    before = await limits.list_rate_limits(project, before="rl-other")
    assert [each.model for each in before.data] == ["m"]
    assert [each.model async for each in limits.list_rate_limits(project, before="rl-z", limit=1)] == ["other"]

    changed = await limits.update_rate_limit("rl-m", project_id=project, max_requests_per_1_minute=1)
    assert (changed.max_requests_per_1_minute, changed.max_tokens_per_1_minute) == (1, 2_000_000_000)
    why = await office.is_refused(key, 429, "rate_limit_exceeded")
    assert "requests per minute of the project for this model" in why
    answer = await office.call(key)
    assert answer.headers["x-ratelimit-limit-requests"] == "1"
    assert int(answer.headers["retry-after"]) <= 60
    await office.passes(key, body={"model": "other"})
    await office.is_refused(office.tenant.api_key, 429, "rate_limit_exceeded")

    await limits.update_rate_limit(
        "rl-m", project_id=project, max_requests_per_1_minute=2_000_000_000, max_tokens_per_1_minute=10
    )
    why = await office.is_refused(key, 400, "rate_limit_exceeded")
    assert "tokens per minute of the project for this model" in why
    # Two million is no limit; of a day there is one, which a call has used up by now.
    await limits.update_rate_limit(
        "rl-m", project_id=project, max_tokens_per_1_minute=2_000_000_000, max_requests_per_1_day=1
    )
    why = await office.is_refused(key, 429, "rate_limit_exceeded")
    assert "requests per day" in why
    assert int((await office.call(key)).headers["retry-after"]) > 3_600
    with pytest.raises(openai.BadRequestError, match="is not limited here"):
        await limits.update_rate_limit("rl-m", project_id=project, max_images_per_1_minute=1)
    with pytest.raises(openai.NotFoundError):
        await limits.update_rate_limit("rl-nothing", project_id=project, max_requests_per_1_minute=1)


async def test_model_permissions_are_enforced(office: Office) -> None:
    project, permissions = office.tenant.project_id, office.admin.projects.model_permissions
    _, key = await office.worker_key()
    assert (await permissions.retrieve(project)).to_dict() == {
        "object": "project.model_permissions",
        "mode": "deny_list",
        "model_ids": [],
    }
    allowed = await permissions.update(project, mode="allow_list", model_ids=["other"])
    assert await permissions.retrieve(project) == allowed
    assert "may not call the model 'm'" in await office.is_refused(key, 403, "permission_denied")
    await office.passes(key, body={"model": "other"})
    async with AsyncOpenAI(api_key=key, base_url=f"{office.stage.base_url}/v1") as developer:
        assert [model.id async for model in developer.models.list()] == ["other"]
    with pytest.raises(openai.PermissionDeniedError, match="none of its keys"):
        await office.worker_key(scopes=["model:m"])

    await permissions.update(project, mode="deny_list", model_ids=["other"])
    await office.is_refused(key, 403, "permission_denied", body={"model": "other"})
    await office.passes(key)
    deleted = await permissions.delete(project)
    assert deleted.to_dict() == {"deleted": True, "object": "project.model_permissions.deleted"}
    await office.passes(key, body={"model": "other"})
    with pytest.raises(openai.BadRequestError, match="not sold to you"):
        await permissions.update(project, mode="deny_list", model_ids=["nothing"])


@pytest.mark.parametrize("of_project", [False, True], ids=["organization", "project"])
async def test_spend_limits_are_enforced(office: Office, of_project: bool) -> None:
    await sell(office.stage, "dear", "1000")
    project, dear = office.tenant.project_id, {"model": "dear"}
    _, key = await office.worker_key()
    await office.passes(key, body=dear)
    name = "project" if of_project else "organization"
    limits: Any = office.admin.projects.spend_limit if of_project else office.admin.spend_limit
    scope = (project,) if of_project else ()
    with pytest.raises(openai.NotFoundError):
        await limits.retrieve(*scope)
    made = await limits.update(*scope, threshold_amount=1, currency="USD", interval="month")
    assert made.to_dict() == {
        "object": f"{name}.spend_limit",
        "threshold_amount": 1,
        "currency": "USD",
        "interval": "month",
        "enforcement": {"status": "enforcing"},
    }
    assert await limits.retrieve(*scope) == made
    assert f"what the {name} may spend" in await office.is_refused(key, 402, "spend_limit_reached", body=dear)

    # The operator's limit is another: the organization can neither raise nor end it.
    body = {"amount": {"amount": "0.01", "currency": "USD"}} | ({"project_id": project} if of_project else {})
    await office.stage.operate("POST", f"/organizations/{office.tenant.organization_id}/spend_limits", json=body)
    await limits.update(*scope, threshold_amount=900_000_000, currency="USD", interval="month")
    await asyncio.sleep(1.2)
    await office.is_refused(key, 402, "spend_limit_reached", body=dear)
    listed = await office.stage.operate("GET", f"/organizations/{office.tenant.organization_id}/spend_limits")
    assert [each["set_by"] for each in listed["data"]] == ["operator", "organization"]
    [operators] = [each["id"] for each in listed["data"] if each["set_by"] == "operator"]
    path = f"/organizations/{office.tenant.organization_id}/spend_limits/{operators}/remove"
    await office.stage.operate("POST", path)
    await office.passes(key, body=dear)
    deleted = await limits.delete(*scope)
    assert deleted.to_dict() == {"deleted": True, "object": f"{name}.spend_limit.deleted"}
    await office.stage.verified(office.tenant)


async def test_an_organization_in_another_currency_is_told_so(office: Office) -> None:
    made = await office.stage.operate("POST", "/organizations", json={"name": "Seoul", "currency": "KRW"})
    key = await office.stage.operate("POST", f"/organizations/{made['id']}/admin_keys", json={"name": "a"})
    async with AsyncOpenAI(admin_api_key=key["value"], base_url=f"{office.stage.base_url}/v1") as sdk:
        month: Any = {"currency": "USD", "interval": "month"}
        with pytest.raises(openai.BadRequestError, match="billed in KRW"):
            await sdk.admin.organization.spend_limit.update(threshold_amount=100, **month)
        with pytest.raises(openai.BadRequestError, match="billed in KRW"):
            await sdk.admin.organization.spend_alerts.create(
                threshold_amount=100, notification_channel=CHANNEL, **month
            )


@pytest.mark.parametrize("of_project", [False, True], ids=["organization", "project"])
async def test_spend_alerts(office: Office, of_project: bool) -> None:
    alerts: Any = office.admin.projects.spend_alerts if of_project else office.admin.spend_alerts
    scope = (office.tenant.project_id,) if of_project else ()
    named = {"project_id": office.tenant.project_id} if of_project else {}
    month: Any = {"currency": "USD", "interval": "month", "notification_channel": CHANNEL}
    made = [await alerts.create(*scope, threshold_amount=amount, **month) for amount in (100, 200, 300)]
    ids = [each.id for each in made]
    name = "project" if of_project else "organization"
    assert made[0].to_dict() == {
        "id": ids[0],
        "object": f"{name}.spend_alert",
        "threshold_amount": 100,
        "currency": "USD",
        "interval": "month",
        "notification_channel": {
            "type": "email",
            "recipients": ["finance@example.com"],
            "subject_prefix": "[acme]",
        },
    }
    assert [each.id async for each in alerts.list(*scope, limit=2)] == ids
    assert [each.id async for each in alerts.list(*scope, order="desc", limit=2)] == ids[::-1]
    assert [each.id for each in (await alerts.list(*scope, before=ids[2], limit=1)).data] == [ids[1]]
    # The SDK goes on with after and keeps before: between the two is nothing more.
    assert [each.id async for each in alerts.list(*scope, before=ids[2], limit=1)] == [ids[1]]
    changed = await alerts.update(ids[0], threshold_amount=150, **named, **month)
    assert changed.threshold_amount == 150
    assert await alerts.retrieve(ids[0], **named) == changed
    deleted = await alerts.delete(ids[0], **named)
    assert deleted.to_dict() == {"id": ids[0], "deleted": True, "object": f"{name}.spend_alert.deleted"}
    with pytest.raises(openai.NotFoundError):
        await alerts.retrieve(ids[0], **named)
    with pytest.raises(openai.BadRequestError, match="above zero"):
        await alerts.create(*scope, threshold_amount=0, **month)


async def test_a_deleted_key_and_an_archived_project_stop(office: Office) -> None:
    key_id, key = await office.worker_key()
    await office.passes(key)
    await office.admin.projects.api_keys.delete(key_id, project_id=office.tenant.project_id)
    await office.is_refused(key, 401, "invalid_api_key")
    await office.passes(office.tenant.api_key)
    await office.admin.projects.archive(office.tenant.project_id)
    await office.is_refused(office.tenant.api_key, 401, "invalid_api_key")
    with pytest.raises(openai.ConflictError):
        await office.worker_key()


@pytest.mark.parametrize(
    ("scopes", "refused", "passing"),
    [
        pytest.param(["endpoint:/v1/completions"], {}, None, id="another endpoint"),
        pytest.param(["endpoint:/v1/chat/completions"], {"path": "/v1/embeddings"}, {}, id="this endpoint alone"),
        pytest.param(["model:other"], {}, {"body": {"model": "other"}}, id="another model"),
        pytest.param(["network:10.0.0.0/8"], {}, None, id="another network"),
        pytest.param(["network:10.0.0.0/8"], {"x-forwarded-for": "10.1.2.3"}, None, id="A12 a forged address"),
        pytest.param(["api.all.read"], {}, None, id="only reading"),
    ],
)
async def test_scopes_are_enforced(
    office: Office, scopes: list[str], refused: dict[str, Any], passing: dict[str, Any] | None
) -> None:
    _, key = await office.worker_key(scopes=scopes)
    await office.is_refused(key, 403, "permission_denied", **refused)
    if passing is not None:
        await office.passes(key, **passing)


async def test_scopes_of_networks_and_money(office: Office) -> None:
    await sell(office.stage, "dear", "1000")
    _, here = await office.worker_key(scopes=["network:127.0.0.0/8", "network:::1"])
    await office.passes(here)
    models = f"{office.stage.base_url}/v1/models"
    _, away = await office.worker_key(scopes=["network:10.0.0.0/8"])
    answer = await office.stage.client.get(models, headers={"authorization": f"Bearer {away}"})
    assert answer.status_code == 403, "also where nothing is metered"

    key_id, key = await office.worker_key(scopes=["spend:1"])
    await office.is_refused(key, 402, "spend_limit_reached", body={"model": "dear"})
    keys, project = office.admin.projects.api_keys, office.tenant.project_id
    assert (await keys.retrieve(key_id, project_id=project)).to_dict()["scopes"] == ["spend:1"]
    await keys.update(key_id, project_id=project, scopes=[])
    await office.passes(key, body={"model": "dear"})
    for scope in ("spend:-1", "spend:x", "model:../x", "network:10.0.0.0/99", "endpoint:/v1/nothing", "api.other"):
        with pytest.raises(openai.BadRequestError, match="no scope of a key"):
            await keys.update(key_id, project_id=project, scopes=[scope])


async def test_a_trusted_proxy_is_believed(postgres: Database, redis: Redis) -> None:
    async with (
        scripted_backend() as backend,
        raise_curtain(postgres.app_url, redis.url, trusted_proxies="127.0.0.0/8, 10.9.0.0/16") as stage,
    ):
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        tenant = await stage.tenant(networks=["10.0.0.0/24"])
        url, options = f"{stage.base_url}/v1/chat/completions", stage.chat_options(tenant, "hi", stream=False)

        async def status(*forwarded: str) -> int:
            headers = [*options["headers"].items(), *(("x-forwarded-for", value) for value in forwarded)]
            return (await stage.client.post(url, json=options["json"], headers=headers)).status_code

        assert await status("10.0.0.7") == 200
        assert await status("8.8.8.8, 10.0.0.7, 10.9.1.1") == 200
        assert await status("8.8.8.8", "10.0.0.7") == 200
        asked = len(backend.asked)
        assert await status() == 403, "the proxy itself is not in the network"
        assert await status("10.0.0.7, 8.8.8.8") == 403, "what stands before the client's address is its own claim"
        assert await status("10.0.0.7, garbage") == 403
        assert len(backend.asked) == asked


async def test_a_rotated_key_overlaps_and_shares_its_limits(office: Office) -> None:
    project = office.tenant.project_id
    key_id, old = await office.worker_key(scopes=["model:m", "spend:500"])
    await office.passes(old)
    path = f"/organization/projects/{project}/api_keys/{key_id}/rotate"
    successor = await office.sdk.post(
        path, cast_to=dict[str, Any], body={"overlap_seconds": 8}, options={"security": {"admin_api_key_auth": True}}
    )
    assert successor["scopes"] == ["model:m", "spend:500"]
    assert successor["owner"]["type"] == "service_account"
    new = successor["value"]
    assert (await office.call(old)).status_code == (await office.call(new)).status_code == 200
    await office.is_refused(new, 403, "permission_denied", body={"model": "other"})
    await office.is_refused(old, 401, "invalid_api_key", within_seconds=8 + 5)
    await office.passes(new)
    # What the old key spent counts for the new one.
    charges = await office.stage.charges(office.tenant, len(office.backend.asked))
    spent = sum(parse_amount(each["amount"]["amount"], "USD") for each in charges)
    path = f"/organizations/{office.tenant.organization_id}/spend_limits"
    [limit] = (await office.stage.operate("GET", path))["data"]
    assert limit["api_key_id"] == key_id
    assert parse_amount(limit["spent"]["amount"], "USD") == spent


async def test_people(office: Office) -> None:
    admin, project = office.admin, office.tenant.project_id
    places: Any = [{"id": project, "role": "owner"}]
    invite = await admin.invites.create(email="Ada@Example.com", role="owner", projects=places)
    assert invite.to_dict() == {
        "id": invite.id,
        "object": "organization.invite",
        "email": "ada@example.com",
        "role": "owner",
        "status": "pending",
        "created_at": invite.created_at,
        "expires_at": invite.created_at + 7 * 86_400,
        "accepted_at": None,
        "projects": places,
    }
    with pytest.raises(openai.ConflictError, match="pending"):
        await admin.invites.create(email="ada@example.com", role="reader")
    second = await admin.invites.create(email="bob@example.com", role="reader")
    assert [each.id async for each in admin.invites.list(limit=1)] == [invite.id, second.id]
    gone = await admin.invites.delete(second.id)
    assert gone.to_dict() == {"id": second.id, "deleted": True, "object": "organization.invite.deleted"}
    with pytest.raises(openai.NotFoundError):
        await admin.invites.retrieve(second.id)

    # There is no login yet: an administrator who gives an invited person a place takes the invite up.
    ada = await admin.projects.users.create(project, role="member", email="ADA@example.com")
    assert (ada.object, ada.role, ada.email) == ("organization.project.user", "member", "ada@example.com")
    assert (await admin.invites.retrieve(invite.id)).status == "accepted"
    assert len([each async for each in admin.audit_logs.list(event_types=["invite.accepted"])]) == 1
    with pytest.raises(openai.ConflictError, match="accepted"):
        await admin.invites.delete(invite.id)
    user = await admin.users.retrieve(ada.id)
    assert (user.role, user.object, user.email) == ("owner", "organization.user", "ada@example.com")
    assert user.projects is not None
    assert [(each.id, each.role) for each in user.projects.data] == [(project, "member")]
    with pytest.raises(openai.ConflictError, match="already"):
        await admin.projects.users.create(project, role="member", user_id=ada.id)

    bob = await admin.projects.users.create(project, role="member", email="bob@example.com")
    assert [each.id async for each in admin.projects.users.list(project, limit=1)] == [ada.id, bob.id]
    assert [each.id async for each in admin.users.list(limit=1)] == [ada.id, bob.id]
    assert [each.id async for each in admin.users.list(emails=["bob@example.com", "x@example.com"])] == [bob.id]
    assert (await admin.users.update(bob.id, role="owner")).role == "owner"
    assert (await admin.projects.users.update(bob.id, project_id=project, role="owner")).role == "owner"
    taken = await admin.projects.users.delete(bob.id, project_id=project)
    assert taken.object == "organization.project.user.deleted"
    with pytest.raises(openai.NotFoundError):
        await admin.projects.users.retrieve(bob.id, project_id=project)
    removed = await admin.users.delete(ada.id)
    assert removed.to_dict() == {"id": ada.id, "deleted": True, "object": "organization.user.deleted"}
    assert [each.id async for each in admin.projects.users.list(project)] == []
    assert [each.id async for each in admin.users.list()] == [bob.id]


async def test_admin_keys(office: Office) -> None:
    keys = office.admin.admin_api_keys
    made = await keys.create(name="deploy", expires_in_seconds=600)
    assert (made.object, made.owner.role) == ("organization.admin_api_key", "owner")
    assert made.expires_at == made.created_at + 600
    names = [each.name async for each in keys.list(limit=1)]
    assert names == ["admin", "deploy"]
    assert [each.name async for each in keys.list(order="desc", limit=1)] == names[::-1]
    assert made.value not in (await keys.retrieve(made.id)).to_json()

    async with AsyncOpenAI(admin_api_key=made.value, base_url=f"{office.stage.base_url}/v1") as deploy:
        own = deploy.admin.organization.admin_api_keys
        with pytest.raises(openai.PermissionDeniedError, match="none that it makes may live longer"):
            await own.create(name="longer")
        assert (await own.create(name="shorter", expires_in_seconds=60)).expires_at is not None
        with pytest.raises(openai.ConflictError, match="cannot delete itself"):
            await own.delete(made.id)
        gone = await keys.delete(made.id)
        assert gone.to_dict() == {"id": made.id, "deleted": True, "object": "organization.admin_api_key.deleted"}
        with pytest.raises(openai.AuthenticationError):
            await own.list()


async def test_an_admin_key_that_was_deleted_elsewhere_makes_and_deletes_none(office: Office) -> None:
    """For seconds a gateway may not know that it was: what it made would live on, and two could delete each other."""
    keys = office.admin.admin_api_keys
    made = await keys.create(name="leaked")
    [own, _] = [each.id async for each in keys.list()]
    async with AsyncOpenAI(admin_api_key=made.value, base_url=f"{office.stage.base_url}/v1", max_retries=0) as leaked:
        theirs = leaked.admin.organization.admin_api_keys
        assert len([each async for each in theirs.list()]) == 2
        async with office.stage.app.parts.engine.begin() as connection:
            await revoke(connection, admin_key, UUID(made.id), datetime.now(UTC))
        with pytest.raises(openai.AuthenticationError):
            await theirs.create(name="heir")
        with pytest.raises(openai.AuthenticationError):
            await theirs.delete(own)
        url = f"{office.stage.base_url}/v1/organization/admin_api_keys/{own}/rotate"
        headers = {"authorization": f"Bearer {made.value}"}
        assert (await office.stage.client.post(url, json={"overlap_seconds": 0}, headers=headers)).status_code == 401
    assert [each.id async for each in keys.list()] == [own]


async def test_audit_logs(office: Office) -> None:
    logs, project = office.admin.audit_logs, office.tenant.project_id
    made = await office.admin.projects.create(name="Audited")
    await office.admin.projects.rate_limits.update_rate_limit("rl-m", project_id=made.id, max_requests_per_1_minute=5)
    await office.admin.projects.archive(made.id)
    mine = [each async for each in logs.list(project_ids=[made.id], limit=1)]
    assert [each.type for each in mine] == ["project.archived", "rate_limit.updated", "project.created"]
    archived, limited, created = mine
    assert created.project is not None
    assert (created.project.id, created.project.name) == (made.id, "Audited")
    assert created.project_created is not None
    assert created.project_created.id == made.id
    assert created.project_created.data is not None
    assert created.project_created.data.title == "Audited"
    assert limited.rate_limit_updated is not None
    assert limited.rate_limit_updated.changes_requested is not None
    assert limited.rate_limit_updated.changes_requested.max_requests_per_1_minute == 5
    assert created.actor is not None
    assert created.actor.api_key is not None
    actor = str(created.actor.api_key.id)
    by_me = [each.id async for each in logs.list(actor_ids=[actor])]
    assert by_me == [each.id for each in mine]
    assert [each.id async for each in logs.list(resource_ids=["rl-m"])] == [limited.id]
    assert [each.id async for each in logs.list(event_types=["project.created"], project_ids=[made.id])] == [created.id]
    assert [each.id for each in (await logs.list(before=created.id, limit=1)).data] == [limited.id]
    assert [each.id async for each in logs.list(before=created.id, limit=1)] == [limited.id]
    assert [each.id async for each in logs.list(actor_emails=["ada@example.com"])] == []
    assert [each.type async for each in logs.list(tenant_only=True)] == ["tenant.admin_api_key.created"]
    since = {"gte": created.effective_at, "lte": archived.effective_at}
    assert set(by_me) <= {each.id async for each in logs.list(effective_at=since)}  # type: ignore[arg-type]
    assert [each async for each in logs.list(effective_at={"gt": archived.effective_at + 60})] == []

    everything = [each async for each in logs.list()]
    operators = [
        each for each in everything if each.actor and each.actor.api_key and each.actor.api_key.id == "operator"
    ]
    assert {"project.created", "api_key.created", "credit_grant.created"} <= {each.type for each in operators}
    [grant] = [each.to_dict() for each in operators if each.to_dict()["type"] == "credit_grant.created"]
    assert list(dict(grant)["credit_grant.created"]) == ["id"], "what operators note is theirs"  # type: ignore[call-overload]
    assert project in str(everything)


async def test_a_repeated_request_is_one(office: Office) -> None:
    project, accounts = office.tenant.project_id, office.admin.projects.service_accounts
    once = {"Idempotency-Key": "one"}
    first = await accounts.create(project, name="cron", extra_headers=once)
    again = await accounts.create(project, name="cron", extra_headers=once)
    assert first == again
    assert first.api_key is not None
    assert len([each async for each in accounts.list(project)]) == 1
    async with office.stage.app.parts.engine.connect() as connection:
        kept = (await connection.exec_driver_sql("select response::text from idempotency")).scalars().all()
    assert first.api_key.value not in "".join(kept)
    with pytest.raises(openai.ConflictError, match="another request"):
        await accounts.create(project, name="other", extra_headers=once)


async def test_keys_of_a_project_are_read_by_the_index_of_their_organization(office: Office) -> None:
    """There is none of projects: a list of a few keys would be looked for among everybody's."""
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    engine = office.stage.app.parts.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    project = office.tenant.project_id
    assert [each.name async for each in office.admin.projects.api_keys.list(project)] == ["dev"]
    listed = await office.stage.operate("GET", f"/projects/{project}/api_keys")
    assert [each["name"] for each in listed["data"]] == ["dev"]
    event.remove(engine, "before_cursor_execute", note)
    lists = [statement for statement in asked if "ORDER BY api_key.id" in statement]
    assert ["api_key.organization_id =" in statement for statement in lists] == [True, True]
