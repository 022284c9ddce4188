"""A complete Tollgate to measure: started by `tollgate up`, with the benchmark's backend and money enough."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from gateway.embedded.ports import free_port

ROOT = Path(__file__).parent.parent
GRANT_DOLLARS = "100000"
_START_SECONDS = 120.0
_STOP_SECONDS = 30.0
_BOOK_SECONDS = 60.0


class Tollgate:
    """A running `tollgate up` on `directory`; `facts` is its up.json."""

    def __init__(self, directory: Path, backend_url: str) -> None:
        self._directory = directory
        self._log = directory.with_name("up.log")
        program = [sys.executable, "-m", "gateway.cli", "up", "--data-dir", str(directory)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [*program, "--port", str(free_port()), "--backend", backend_url], stdout=log, stderr=log, cwd=ROOT
            )
        try:
            self.facts = self._wait_until_ready()
            self._grant()
        except BaseException:
            self.stop()
            raise

    @property
    def port(self) -> int:
        """The public port."""
        return int(self.facts["base_url"].rpartition(":")[2])

    @property
    def key(self) -> str:
        """The API key of the load."""
        return str(self.facts["api_key"])

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by part: gateway, worker, redis, postgres."""
        return {name: pid for name, pid in self.facts["pids"].items() if pid}

    def stop(self) -> None:
        """Stop it as Ctrl-C would."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def booked(self, expected: int) -> int:
        """Charges in Postgres, as soon as they are `expected`, or after a minute what there is."""
        return asyncio.run(self._count_charges(expected))

    def environment(self) -> dict[str, str]:
        """What `tollgate serve` and `tollgate verify` need to work on the same Postgres and Redis."""
        secrets = json.loads((self._directory / "secrets.json").read_text())
        return os.environ | {
            "TOLLGATE_DATABASE_URL": self.facts["database_url"],
            "TOLLGATE_REDIS_URL": self.facts["redis_url"],
            "TOLLGATE_KEY_PEPPER": secrets["key_pepper"],
        }

    @contextmanager
    def gateway(
        self, log: Path, program: Sequence[str] = ("-m", "gateway.cli", "serve"), **settings: str
    ) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
        """One more gateway on the same Postgres and Redis, with these settings: its port and its process."""
        port = free_port()
        environment = self.environment() | {
            "TOLLGATE_PORT": str(port),
            "TOLLGATE_INTERNAL_PORT": str(free_port()),
            "TOLLGATE_STARTED_BY_UP": "1",
            **settings,
        }
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, *program], env=environment, cwd=ROOT, stdout=output, stderr=output
            )
        try:
            self._wait_for(port, process)
            yield port, process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_STOP_SECONDS)

    @staticmethod
    def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
        raise RuntimeError("another gateway did not become ready; see its log")

    def verify(self) -> str:
        """What `tollgate verify` has to say against the books; empty when they are clean."""
        told = subprocess.run(
            [sys.executable, "-m", "gateway.cli", "verify"],
            env=self.environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        return "" if told.returncode == 0 else (told.stdout + told.stderr).strip() or f"exit code {told.returncode}"

    def _wait_until_ready(self) -> dict[str, Any]:
        def ready() -> dict[str, Any] | None:
            try:
                facts: dict[str, Any] = json.loads((self._directory / "up.json").read_text())
                return facts if httpx.get(facts["base_url"] + "/readyz", timeout=2).is_success else None
            except (OSError, ValueError, KeyError, httpx.HTTPError):
                return None

        return self._poll(ready, _START_SECONDS)

    def _poll(self, look: Callable[[], dict[str, Any] | None], seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            if (found := look()) is not None:
                return found
            time.sleep(0.05)
        raise RuntimeError(f"`tollgate up` did not become ready; it said:\n{self._log.read_text()[-3_000:]}")

    def _grant(self) -> None:
        """More than the run can spend: the demo's grant is for a first call."""
        answer = httpx.post(
            f"{self.facts['base_url']}/operator/v1/organizations/{self.facts['org_id']}/credit_grants",
            headers={"Authorization": f"Bearer {self.facts['operator_key']}", "Idempotency-Key": "benchmark-grant"},
            json={
                "kind": "paid",
                "amount": {"amount": GRANT_DOLLARS, "currency": "USD"},
                "effective_at": "2020-01-01T00:00:00Z",
            },
            timeout=10,
        )
        if not answer.is_success:
            raise RuntimeError(f"the benchmark's credit grant was refused: {answer.status_code} {answer.text}")

    async def _count_charges(self, expected: int) -> int:
        connection = await asyncpg.connect(self.facts["database_url"])
        try:
            deadline = time.monotonic() + _BOOK_SECONDS
            while True:
                count: int = await connection.fetchval("select count(*) from charge")
                if count >= expected or time.monotonic() > deadline:
                    return count
                await asyncio.sleep(0.1)
        finally:
            await connection.close()
