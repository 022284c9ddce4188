"""The clients: what each is called, where its cases are, and the process in which they run one after another."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

ROOT: Final = Path(__file__).parents[2]
HERE: Final = Path(__file__).parent
INSTALLED: Final = ROOT / ".compat"
NODE_MODULES: Final = HERE / "node" / "node_modules"
CASE_SECONDS: Final = 60
INSTALL: Final = "run `make clients`"
PENDING: Final = frozenset({"count_tokens", "responses_counted"})
"""Cases of what Tollgate does not have yet: they must fail, and the table says "not yet"."""
# What might lead a client elsewhere than it is told: addresses, keys, proxies, telemetry.
_LEADS_ASTRAY: Final = re.compile(r"^(OPENAI|ANTHROPIC|AI_|LANGCHAIN|LANGSMITH)|_PROXY$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Client:
    """One client: its name in the documents, its program here, and the environment that has it (`node` or Python)."""

    name: str
    program: str
    environment: str

    @property
    def path(self) -> Path:
        """The file with its cases."""
        if self.environment == "node":
            return HERE / "node" / f"{self.program}.mjs"
        return HERE / "programs" / f"{self.program}.py"

    @property
    def cases(self) -> set[str]:
        """The cases it has: the functions of its program that are given where to call, and tell what came of it."""
        text = self.path.read_text(encoding="utf-8")
        if self.environment == "node":
            return set(re.findall(r"^export async function (\w+)\(at\)", text, re.MULTILINE))
        functions = (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        return {
            one.name
            for one in functions
            if ast.unparse(one.args) == "at: At" and one.returns is not None and ast.unparse(one.returns) == "Told"
        }

    def missing(self) -> str | None:
        """Why it cannot run here; None if it can."""
        if self.environment == "node":
            if shutil.which("node") is None:
                return "Node.js is not installed"
            return None if (NODE_MODULES / ".installed").exists() else f"the Node clients are not installed: {INSTALL}"
        if not (INSTALLED / self.environment / ".installed").exists():
            return f"the environment {self.environment} is not installed: {INSTALL}"
        return None

    def command(self) -> list[str]:
        """How its process is started."""
        if self.environment == "node":
            return ["node", str(HERE / "node" / "run.mjs"), str(self.path)]
        return [str(INSTALLED / self.environment / "bin" / "python"), "-m", "tests.compat.programs.run", self.program]


CLIENTS: Final = {
    client.name: client
    for client in (
        Client("openai-python", "openai_python", "python"),
        Client("openai-node", "openai", "node"),
        Client("anthropic-python", "anthropic_python", "python"),
        Client("anthropic-node", "anthropic", "node"),
        Client("pydantic-ai", "pydanticai", "python"),
        Client("langchain-openai", "langchain_of_openai", "python"),
        Client("langchain-anthropic", "langchain_of_anthropic", "python"),
        Client("ai-sdk", "ai_sdk", "node"),
        Client("llama-index", "llama_index_like", "llama-index"),
    )
}


def who_has(case: str) -> list[str]:
    """The names of the clients that have this case."""
    return [name for name, client in CLIENTS.items() if case in client.cases]


class Process:
    """A client's program in the interpreter that has the client."""

    def __init__(self, client: Client, log: IO[bytes]) -> None:
        self.client = client
        self._log = log
        environment = {name: value for name, value in os.environ.items() if not _LEADS_ASTRAY.search(name)}
        self._process = subprocess.Popen(
            client.command(),
            cwd=ROOT,
            env=environment | {"LANGSMITH_TRACING": "false", "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )

    def do(self, case: str, **given: Any) -> dict[str, Any]:
        """Run one case; what the client told."""
        told: dict[str, Any] = self._ask({"case": case, **given})
        return told

    def show(self, code: str) -> str:
        """Run the code of a guide; what it prints."""
        printed: str = self._ask({"code": code})
        return printed

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, asked: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.flush()
        late = threading.Timer(CASE_SECONDS, self._process.kill)
        late.start()
        try:
            line = self._process.stdout.readline()
        finally:
            late.cancel()
        assert line, f"{self.client.name} ended, or took more than {CASE_SECONDS} s: {asked}\n{self._printed()}"
        answer = json.loads(line)
        assert "failed" not in answer, f"{self.client.name} raised:\n{answer['failed']}"
        return answer["told"]

    def _printed(self) -> str:
        return Path(self._log.name).read_text(encoding="utf-8", errors="replace")[-4_000:]


class Processes:
    """One process for each client, started when it is first wanted."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: dict[str, tuple[Process, IO[bytes]]] = {}

    def of(self, client: Client) -> Process:
        """The process of this client; a new one if the last has died."""
        if client.name in self._running and self._running[client.name][0]._process.poll() is not None:
            self._end(client.name)
        if client.name not in self._running:
            log = (self._directory / f"{client.name}.log").open("ab")
            self._running[client.name] = (Process(client, log), log)
        return self._running[client.name][0]

    def close(self) -> None:
        """End them all."""
        for name in list(self._running):
            self._end(name)

    def _end(self, name: str) -> None:
        process, log = self._running.pop(name)
        process.close()
        log.close()


@contextmanager
def processes(directory: Path) -> Iterator[Processes]:
    """The processes of a session."""
    directory.mkdir(exist_ok=True)
    running = Processes(directory)
    try:
        yield running
    finally:
        running.close()
