"""What a test of batches does again and again: write input, upload it, run it, read what came of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import httpx

from models.money import parse_amount
from tests.stage import Stage, Tenant, eventually, listed

CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


def task(custom_id: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    """A line of an input file; a chat unless its body says otherwise."""
    usual: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": (usual if url == CHAT else {}) | body}


def jsonl(*lines: dict[str, Any]) -> bytes:
    """An input file."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def parsed(content: bytes) -> list[dict[str, Any]]:
    """The lines of an output file."""
    return [json.loads(line) for line in content.splitlines()]


@dataclass(slots=True)
class Desk:
    """A tenant's files and batches."""

    stage: Stage
    tenant: Tenant

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Ask the API with the tenant's key."""
        headers = {**self.tenant.headers, **options.pop("headers", {})}
        return await self.stage.client.request(method, self.stage.base_url + path, headers=headers, **options)

    async def upload(self, content: bytes, **fields: str) -> httpx.Response:
        """Upload a file."""
        data = {"purpose": "batch", **fields}
        return await self.ask("POST", "/v1/files", data=data, files={"file": ("in.jsonl", content)})

    async def create(self, content: bytes, endpoint: str = CHAT, **more: Any) -> dict[str, Any]:
        """Upload a file and make a batch of it."""
        answer = await self.upload(content)
        assert answer.status_code == 200, answer.text
        body = {"input_file_id": answer.json()["id"], "endpoint": endpoint, "completion_window": "24h", **more}
        answer = await self.ask("POST", "/v1/batches", json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def look(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch as it is now."""
        answer = await self.ask("GET", f"/v1/batches/{batch['id']}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def ended(self, batch: dict[str, Any], seconds: float = 30) -> dict[str, Any]:
        """A batch once it has ended."""

        async def is_over() -> dict[str, Any] | None:
            now = await self.look(batch)
            return now if now["status"] in ENDED else None

        return dict(await eventually(is_over, seconds))

    async def read(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of a file; none where there is no file."""
        if file_id is None:
            return []
        answer = await self.ask("GET", f"/v1/files/{file_id}/content")
        assert answer.status_code == 200, answer.text
        return parsed(answer.content)

    async def listed(self) -> list[dict[str, Any]]:
        """The charges of the tenant that are booked now."""
        return await listed(self.stage.client, self.stage.base_url, self.tenant.admin_headers)

    async def results(self, batch: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The lines of the output file and of the error file."""
        return await self.read(batch["output_file_id"]), await self.read(batch["error_file_id"])

    async def spent(self) -> int:
        """What is gone of the $5 that a tenant begins with, in ledger units, once nothing is held."""
        await self.stage.verified(self.tenant)
        return parse_amount("5", "USD") - parse_amount(
            (await self.stage.balance(self.tenant))["balance"]["amount"], "USD"
        )
