"""What each engine is like: pure translations of request, stream event, usage and error, one file per engine."""

from __future__ import annotations

from gateway.backends.dialect import Dialect
from gateway.backends.llamacpp import LLAMACPP
from gateway.backends.ollama import OLLAMA
from gateway.backends.openai import OPENAI
from gateway.backends.sglang import SGLANG
from gateway.backends.tgi import TGI
from gateway.backends.vllm import VLLM
from models.catalog import BackendKind

DIALECTS: dict[BackendKind, Dialect] = {
    BackendKind.LLAMACPP: LLAMACPP,
    BackendKind.OLLAMA: OLLAMA,
    BackendKind.OPENAI: OPENAI,
    BackendKind.SGLANG: SGLANG,
    BackendKind.TGI: TGI,
    BackendKind.VLLM: VLLM,
}

__all__ = ["DIALECTS", "Dialect"]
