"""What the tests of the operator's API ask with, and the usual objects they need first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
from sqlalchemy import text

from gateway.parts import Parts


@dataclass(frozen=True, slots=True)
class World:
    """A client that holds an operator key, and the parts of the gateway it talks to."""

    client: httpx.AsyncClient
    parts: Parts
    operator_key: str

    async def post(self, path: str, body: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
        """POST to a path below /operator/v1."""
        return await self.client.post(f"/operator/v1{path}", json=body, headers=self.headers(headers))

    async def get(self, path: str, **query: Any) -> httpx.Response:
        """GET a path below /operator/v1."""
        return await self.client.get(f"/operator/v1{path}", params=query, headers=self.headers({}))

    async def made(self, path: str, body: dict[str, Any] | None = None, **headers: str) -> dict[str, Any]:
        """POST what must succeed; the answer."""
        response = await self.post(path, body, **headers)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def shown(self, path: str, **query: Any) -> dict[str, Any]:
        """GET what must succeed; the answer."""
        response = await self.get(path, **query)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def organization(self, **fields: Any) -> dict[str, Any]:
        """A new organization."""
        return await self.made("/organizations", {"name": "Acme", "currency": "USD"} | fields)

    async def project(self) -> dict[str, Any]:
        """A new project of a new organization."""
        organization = await self.organization()
        return await self.made(f"/organizations/{organization['id']}/projects", {"name": "Site"})

    async def api_key(self, **fields: Any) -> dict[str, Any]:
        """A new API key of a new project."""
        project = await self.project()
        return await self.made(f"/projects/{project['id']}/api_keys", {"name": "Key"} | fields)

    async def model(self, model_id: str = "tiny") -> dict[str, Any]:
        """A new model on a new backend, without a price."""
        backend = f"on-{model_id.replace('/', '-')}"
        await self.made("/backends", {"name": backend, "kind": "vllm", "url": "http://127.0.0.1:9"})
        deployments = [{"backend": backend, "backend_model": "served"}]
        return await self.made("/models", {"id": model_id, "context_length": 4096, "deployments": deployments})

    async def price(self, **fields: Any) -> httpx.Response:
        """Try to publish a price of the model `tiny`."""
        return await self.post("/prices", {"model": "tiny", "meter": "input", "price_per_million": "0.15"} | fields)

    async def count(self, table: str) -> int:
        """Rows of a table."""
        async with self.parts.engine.connect() as connection:
            return int((await connection.execute(text(f"select count(*) from {table}"))).scalar_one())

    def headers(self, headers: dict[str, str]) -> dict[str, str]:
        """These headers and the operator key."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return {"authorization": f"Bearer {self.operator_key}"} | named


def refusal(response: httpx.Response) -> tuple[int, str, str]:
    """Status, param and message of a refused request."""
    error = response.json()["error"]
    return response.status_code, error["param"] or "", error["message"]
