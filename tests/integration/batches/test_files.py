"""Files: in and out byte for byte, bounded, and gone when they are deleted or expired."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.files import ABANDONED, CHUNK_BYTES, begin_file, delete_file, drop_files, read_chunk
from gateway.batches import validation
from tests.integration.batches.desk import Desk, jsonl, task
from tests.stage import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


@pytest.mark.parametrize("size", [1, CHUNK_BYTES, 3 * CHUNK_BYTES + 17])
async def test_a_file_comes_back_as_it_was(desk: Desk, size: int) -> None:
    content = os.urandom(size)
    answer = await desk.upload(content)
    assert answer.status_code == 200, answer.text
    file = answer.json()
    assert (file["object"], file["bytes"], file["filename"], file["purpose"]) == ("file", size, "in.jsonl", "batch")
    assert file["expires_at"] - file["created_at"] == 30 * 86_400
    assert (await desk.ask("GET", f"/v1/files/{file['id']}")).json() == file
    read = await desk.ask("GET", f"/v1/files/{file['id']}/content")
    assert read.content == content
    assert read.headers["content-type"] == "application/octet-stream"
    assert read.headers["content-disposition"].startswith("attachment;")


async def test_files_are_listed_by_pages(desk: Desk) -> None:
    ids = [(await desk.upload(b"{}")).json()["id"] for _ in range(3)]
    page = (await desk.ask("GET", "/v1/files", params={"limit": "2"})).json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (ids[:0:-1], True)
    page = (await desk.ask("GET", "/v1/files", params={"limit": "2", "after": page["last_id"]})).json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (ids[:1], False)
    page = (await desk.ask("GET", "/v1/files", params={"order": "asc", "purpose": "batch"})).json()
    assert [one["id"] for one in page["data"]] == ids
    assert not (await desk.ask("GET", "/v1/files", params={"purpose": "batch_output"})).json()["data"]


async def test_a_deleted_file_is_gone(desk: Desk) -> None:
    file_id = (await desk.upload(b"{}")).json()["id"]
    answer = await desk.ask("DELETE", f"/v1/files/{file_id}")
    assert answer.json() == {"id": file_id, "object": "file", "deleted": True}
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert (await desk.ask(method, f"/v1/files/{file_id}{path}")).status_code == 404
    async with desk.stage.app.parts.engine.connect() as connection:
        assert not (await connection.execute(text("select 1 from file_chunk"))).all()
    body = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    assert (await desk.ask("POST", "/v1/batches", json=body)).status_code == 404


async def test_an_input_file_may_be_deleted_while_its_batch_runs(desk: Desk) -> None:
    batch = await desk.create(jsonl(*(task(str(number)) for number in range(20))))

    async def is_validated() -> bool:
        return bool((await desk.look(batch))["status"] != "validating")

    await eventually(is_validated)
    await desk.ask("DELETE", f"/v1/files/{batch['input_file_id']}")
    assert (await desk.ended(batch))["request_counts"]["completed"] == 20


async def test_expired_and_abandoned_files_are_dropped(desk: Desk) -> None:
    file = (
        await desk.upload(b"{}", **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"})
    ).json()
    assert file["expires_at"] - file["created_at"] == 3_600
    await desk.upload(b"{}")
    parts = desk.stage.app.parts
    async with parts.engine.begin() as connection:
        await connection.execute(text("update file set expires_at = now() where expires_at < now() + interval '1 day'"))
    assert (await desk.ask("GET", f"/v1/files/{file['id']}")).status_code == 404
    assert len((await desk.ask("GET", "/v1/files")).json()["data"]) == 1
    async with parts.engine.begin() as connection:
        now = parts.clock.now()
        ids = {name: UUID(getattr(desk.tenant, name)) for name in ("organization_id", "project_id")}
        await begin_file(connection, UUID(int=1), purpose="batch", filename="begun", now=now, **ids)
        await drop_files(connection, now, 10)
        assert len((await connection.execute(text("select id from file"))).all()) == 2
        assert await drop_files(connection, now + ABANDONED + timedelta(seconds=1), 10) == 1
        assert [row.filename for row in await connection.execute(text("select filename from file"))] == ["in.jsonl"]


async def test_files_to_be_dropped_are_found_by_their_index(desk: Desk) -> None:
    """Every gateway looks for them every few seconds, and there may be millions."""
    seen: list[tuple[str, tuple[object, ...]]] = []
    async with desk.stage.app.parts.engine.begin() as connection:
        await connection.execute(text("set local enable_seqscan = off"))
        event.listen(connection.sync_connection, "before_cursor_execute", lambda *told: seen.append(told[2:4]))
        await drop_files(connection, desk.stage.app.parts.clock.now(), 20)
        statement, values = seen[0]
        plan = await connection.exec_driver_sql(f"explain {statement}", values)
        assert any("Index Cond: (expires_at <= " in row[0] for row in plan)


async def test_an_organization_has_its_bound(desk: Desk) -> None:
    assert (await desk.upload(b"x" * 1_900_000)).status_code == 200
    full = await desk.upload(b"x" * 1_900_000)
    assert (full.status_code, full.json()["error"]["code"]) == (400, "storage_full")
    files = (await desk.ask("GET", "/v1/files")).json()["data"]
    assert len(files) == 1
    async with desk.stage.app.parts.engine.connect() as connection:
        assert len((await connection.execute(text("select id from file"))).all()) == 1
    await desk.ask("DELETE", f"/v1/files/{files[0]['id']}")
    assert (await desk.upload(b"x" * 1_900_000)).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        pytest.param({"purpose": "fine-tune"}, "purpose", id="another purpose"),
        pytest.param({"colour": "red"}, "colour", id="unknown"),
        pytest.param({"expires_after[seconds]": "3600"}, "expires_after[anchor]", id="no anchor"),
        pytest.param(
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "5"}, "expires_after[seconds]", id="short"
        ),
        pytest.param(
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "9" * 90},
            "expires_after[seconds]",
            id="a number of 90 digits",
        ),
        pytest.param({"note": "x" * 5_000}, "note", id="a long field"),
    ],
)
async def test_wrong_fields_are_refused_and_nothing_stays(desk: Desk, fields: dict[str, str], param: str) -> None:
    answer = await desk.upload(b"{}", **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    async with desk.stage.app.parts.engine.connect() as connection:
        assert not (await connection.execute(text("select 1 from file"))).all()


async def test_d01_d02_a_file_above_the_limit_is_not_read_on(desk: Desk) -> None:
    announced = await desk.upload(b"x" * 2_200_000)
    assert announced.status_code == 413
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        while sent < 50_000_000:
            sent += 65_536
            yield b"x" * 65_536

    headers = {"content-type": "multipart/form-data; boundary=b"}
    endless_one = await desk.ask("POST", "/v1/files", content=endless(), headers=headers)
    assert endless_one.status_code == 413
    async with desk.stage.app.parts.engine.connect() as connection:
        assert not (await connection.execute(text("select 1 from file"))).all()


async def test_changes_are_in_the_audit_log(desk: Desk) -> None:
    batch = await desk.create(jsonl(task("a")))
    await desk.ended(batch)
    await desk.ask("DELETE", f"/v1/files/{batch['input_file_id']}")
    log = await desk.stage.operate(
        "GET", "/audit_logs", params={"organization_id": desk.tenant.organization_id, "limit": 100}
    )
    actions = {entry["action"] for entry in log["data"] if entry["actor"].startswith("api_key:")}
    assert actions == {"file.created", "file.deleted", "batch.created"}


async def test_an_input_file_that_is_deleted_while_it_is_read_fails_its_batch(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of it until then is no batch of its own."""

    async def read_and_delete(connection: AsyncConnection, file_id: UUID, seq: int) -> bytes | None:
        piece = await read_chunk(connection, file_id, seq)
        if not seq:
            async with desk.stage.app.parts.engine.begin() as other:
                await delete_file(other, file_id)
        return piece

    monkeypatch.setattr(validation, "read_chunk", read_and_delete)
    line = jsonl(task("first"))
    batch = await desk.ended(await desk.create(line + b" " * (CHUNK_BYTES - len(line) - 1) + b"\n" + jsonl(task("b"))))
    assert (batch["status"], batch["request_counts"]["completed"]) == ("failed", 0)
    assert [fault["code"] for fault in batch["errors"]["data"]] == ["file_not_found"]
