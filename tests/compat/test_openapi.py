"""Requests made from our own OpenAPI page, right and wrong ones: no 5xx, no error of another shape, no other answer."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from typing import Final

import pytest

from gateway.embedded.redis import Redis
from tests.compat.clients import INSTALL, INSTALLED, ROOT
from tests.conftest import Database
from tests.scripted import PLAIN, Asked, answer, scripted_backend
from tests.stage import Stage, raise_curtain

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.servers,
    pytest.mark.skipif(
        not (INSTALLED / "openapi" / ".installed").exists(), reason=f"Schemathesis is not installed: {INSTALL}"
    ),
]

EXAMPLES: Final = int(os.environ.get("TOLLGATE_OPENAPI_EXAMPLES", "4"))
PHASES: Final = "examples,coverage,fuzzing"
CHECKS: Final = "not_a_server_error,error_shape,content_type_conformance,response_schema_conformance"


EMBEDDINGS: Final = {"object": "list", "data": [], "usage": {"prompt_tokens": 3, "total_tokens": 3}}


async def both(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """A backend of chats and of embeddings."""
    script = answer(200, json.dumps(EMBEDDINGS).encode()) if asked.path.endswith("/embeddings") else PLAIN
    await script(asked, writer)


@pytest.fixture
async def stage(postgres: Database, redis: Redis) -> AsyncIterator[Stage]:
    async with (
        scripted_backend(both) as backend,
        raise_curtain(postgres.app_url, redis.url, docs_enabled=True) as stage,
    ):
        await stage.backend(backend.url, kind="openai", model="tiny", known_as="x")
        yield stage


@pytest.mark.parametrize(
    ("who", "paths"),
    [
        pytest.param("developer", r"^/(v1/(?!organization|billing)|healthz|readyz)", id="developer"),
        pytest.param("admin", r"^/v1/(organization|billing)", id="admin"),
        pytest.param("operator", r"^/operator", id="operator"),
    ],
)
async def test_what_the_page_allows_is_answered_in_its_shapes(stage: Stage, who: str, paths: str) -> None:
    tenant = await stage.tenant("1000")
    headers = {"developer": tenant.headers, "admin": tenant.admin_headers, "operator": stage.operator_headers}[who]
    command = [
        *(str(INSTALLED / "openapi" / "bin" / "python"), "-m", "schemathesis.cli", "run"),
        *(f"{stage.base_url}/openapi.json", "--header", f"Authorization: {headers['authorization']}"),
        *("--include-path-regex", paths, "--checks", CHECKS, "--phases", PHASES, "--no-color"),
        *("--max-examples", str(EXAMPLES), "--seed", "1", "--continue-on-failure"),
    ]
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.compat.openapi.shapes"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed = (await process.communicate())[0].decode()
    assert process.returncode == 0, printed[-12_000:]
    made = re.search(r"([\d,]+) generated", printed)
    assert made is not None, printed
    assert int(made[1].replace(",", "")) > 20 * EXAMPLES
