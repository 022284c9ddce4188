"""An embedded llama.cpp: `python -m gateway.embedded.llamacpp MODEL` serves a GGUF, `start` runs that as a child."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.embedded.children import Child
from gateway.embedded.errors import CannotStart
from gateway.embedded.ports import LOOPBACK, answers_ok, free_port

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """A running server of one model."""

    child: Child
    port: int

    @property
    def url(self) -> str:
        """The server's root, without a path."""
        return f"http://{LOOPBACK}:{self.port}"


def start(
    model: Path,
    *,
    log: Path,
    port: int | None = None,
    alias: str = "tiny",
    context_length: int = 4096,
    slots: int = 4,
    threads: int = 1,
    keep_open: tuple[int, ...] = (),
) -> LlamaCpp:
    """Serve `model` and return when it is loaded. Each of `slots` parallel requests has `context_length` tokens."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise CannotStart(
            "The demo model needs xllamacpp; install it with `pip install 'tollgate[embedded]'`, or name a model"
            " server of your own with --backend URL."
        )
    port = port or free_port()
    program = [sys.executable, "-m", "gateway.embedded.llamacpp", str(model), "--port", str(port), "--alias", alias]
    program += ["--slots", str(slots), "--context-length", str(context_length), "--threads", str(threads)]
    child = Child("llama.cpp", program, log=log, keep_open=keep_open)
    try:
        child.wait_until(lambda: answers_ok(port, "/health"), _START_SECONDS)
    except BaseException:
        child.stop(seconds=2)
        raise
    return LlamaCpp(child, port)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    arguments = _parse(argv)
    # Blocked before the server starts its threads, so that only sigwait sees them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    import xllamacpp  # 106 MB of library: loaded in the child only

    server = xllamacpp.Server(_parameters(arguments, xllamacpp))
    sys.stdout.write(f"listening {server.listening_address}\n")
    sys.stdout.flush()
    signal.sigwait(_STOP_SIGNALS)
    # The destructor would wait for generations that nobody reads any more.
    os._exit(0)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve a GGUF on loopback with the complete llama.cpp server.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--alias", default="tiny")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--context-length", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


def _parameters(arguments: argparse.Namespace, xllamacpp: Any) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(arguments.model.resolve())
    parameters.model_alias = {arguments.alias}
    parameters.hostnames = [LOOPBACK]
    parameters.port = arguments.port
    parameters.n_parallel = arguments.slots
    parameters.n_ctx = arguments.slots * arguments.context_length  # the server divides it among its slots
    parameters.cpuparams.n_threads = arguments.threads
    parameters.cpuparams_batch.n_threads = arguments.threads
    parameters.n_threads_http = 8
    parameters.verbosity = 1
    parameters.cache_ram_mib = 64
    parameters.fit_params = False
    parameters.ui = False
    parameters.embedding = True
    parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    parameters.endpoint_metrics = True
    parameters.endpoint_props = True
    parameters.endpoint_slots = True
    return parameters


if __name__ == "__main__":
    main()
