"""Counting tokens before a call, free of charge: what can be counted is what can be called.

The backend counts where it can, with the template of the model; else our tokenizer does, and the answer says that it is
an estimate. Bounded in time, in number, and in bytes, since nobody pays for it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import msgspec
from fastapi import APIRouter, Depends, Request

from billing.tokens import Tokenizers, prompt_text
from gateway.api import parameters
from gateway.api.conversations import has_media
from gateway.api.openai import sold_model
from gateway.api.parameters import Check, boolean, only, string, wrong
from gateway.api.requests import decode, read
from gateway.auth import require_api_key
from gateway.backends.tokenizing import TOKENIZING, Question, Tokenizing, read_count, read_text, read_tokens
from gateway.parts import Parts, parts_of
from gateway.peers import check_counting
from gateway.routing import caller_key, targets_for
from models.account import Principal
from models.call import CallRequest, Endpoint
from models.catalog import Backend, Model
from models.errors import InvalidRequest, RateLimited, Unavailable

SECONDS: Final = 5.0
"""How long a backend may take to count, in all."""
MOST_AT_ONCE: Final = 16
MOST_OF_A_PROJECT: Final = 4
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
MAX_TOKENS: Final = 1_000_000
MESSAGE_TOKENS: Final = 5
"""What a chat template adds to a message, and once for the answer that is to come, where nobody can tell."""
_CHATS: Final = frozenset(each for each in Endpoint if each.upstream is Endpoint.CHAT_COMPLETIONS)
_TEXTS: Final = frozenset(each for each in Endpoint if not each.hears)
_COUNTED: Final[Mapping[str, frozenset[Endpoint]]] = {
    "/v1/responses/input_tokens": frozenset({Endpoint.RESPONSES}),
    "/v1/messages/count_tokens": frozenset({Endpoint.MESSAGES}),
    "/v1/tokenize": _TEXTS,
    "/v1/detokenize": _TEXTS,
}
"""By path the endpoints whose tokens are told there: a key that is bound to endpoints must be for one of them."""
COUNTING_PATHS: Final = _COUNTED.keys()
"""Their bodies are as large as those of calls."""

_JSON: Final = "application/json"
Found = TypeVar("Found")
router = APIRouter(prefix="/v1", tags=["Counting"])


@dataclass(slots=True)
class Counting:
    """Asks backends and our own tokenizers, for one process."""

    tokenizers: Tokenizers
    _client: httpx.AsyncClient = field(
        default_factory=lambda: httpx.AsyncClient(timeout=SECONDS, trust_env=False, follow_redirects=False)
    )
    _running: Counter[UUID] = field(default_factory=Counter)

    @contextmanager
    def turn(self, project_id: UUID) -> Iterator[None]:
        """One count; raises where too many run."""
        if self._running[project_id] >= MOST_OF_A_PROJECT:
            raise RateLimited(f"At most {MOST_OF_A_PROJECT} counts of a project run at the same time.", 1_000)
        if self._running.total() >= MOST_AT_ONCE:
            raise Unavailable("Too many tokens are being counted at the same time; try again.")
        self._running[project_id] += 1
        try:
            yield
        finally:
            self._running[project_id] -= 1
            if not self._running[project_id]:
                del self._running[project_id]

    async def chat(self, request: CallRequest, model: Model) -> tuple[int, bool]:
        """Tokens of a chat, and whether that is an estimate."""
        chat = request.body
        told = await self._first(model, lambda engine, name: engine.chat_count(name, chat), read_count)
        if told is not None:
            return told, False
        own = await self.tokenizers.count(model.tokenizer, prompt_text(chat))
        return own.tokens + MESSAGE_TOKENS * (len(chat["messages"]) + 1), True

    async def chat_tokens(self, request: CallRequest, model: Model) -> list[int] | None:
        """The tokens of a chat, where a backend tells them."""
        chat = request.body
        if has_media(chat["messages"]):
            return None
        tokens = await self._first(model, lambda engine, name: engine.chat_count(name, chat), read_tokens)
        if tokens is not None:
            return tokens
        text = await self._first(model, lambda engine, name: engine.chat_text(name, chat), read_text)
        return None if text is None else await self.tokens(text, model, adds_special=True)

    async def tokens(self, text: str, model: Model, *, adds_special: bool) -> list[int] | None:
        """The tokens of a text, where a backend tells them."""
        return await self._first(
            model, lambda engine, name: engine.tokens(name, text, adds_special=adds_special), read_tokens
        )

    async def text(self, tokens: list[int], model: Model) -> str | None:
        """The text of tokens, where a backend tells it."""
        return await self._first(model, lambda engine, name: engine.text(name, tokens), read_text)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _first(
        self,
        model: Model,
        question: Callable[[Tokenizing, str], Question | None],
        found: Callable[[Any], Found | None],
    ) -> Found | None:
        """What the first backend tells that can be asked; None where there is none, or none that answers."""
        try:
            async with asyncio.timeout(SECONDS):
                for deployment in model.deployments:
                    engine = TOKENIZING[deployment.backend.kind]
                    asked = question(engine, deployment.backend_model)
                    if asked is not None:
                        assert asked.path in engine.paths, "only paths of the list"
                        told = found(await self._ask(deployment.backend, asked))
                        if told is not None:
                            return told
        except TimeoutError:
            pass
        return None

    async def _ask(self, backend: Backend, question: Question) -> Any:
        url = urlsplit(backend.url)
        root = f"{url.scheme}://{url.netloc}{url.path.rstrip('/').removesuffix('/v1')}"
        headers = {"authorization": f"Bearer {backend.credential}"} if backend.credential else {}
        try:
            body = msgspec.json.encode(question.body)
            async with self._client.stream(
                "POST", root + question.path, content=body, headers={**headers, "content-type": _JSON}
            ) as answer:
                if answer.status_code != 200:
                    return None
                return msgspec.json.decode(await _bounded(answer))
        except (httpx.HTTPError, msgspec.DecodeError, UnicodeError, RecursionError, OverflowError, ValueError):
            return None


async def _bounded(answer: httpx.Response) -> bytes:
    body = bytearray()
    async for piece in answer.aiter_bytes():
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            raise ValueError("more than an answer has")
    return bytes(body)


# Routes --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Asked:
    """A count that a caller wants, and what it takes."""

    caller: Principal
    parts: Parts
    counting: Counting
    path: str
    body: dict[str, Any]
    size: int

    def read(self, endpoint: Endpoint, body: dict[str, Any]) -> CallRequest:
        """The call whose tokens are to be counted."""
        return read(endpoint, body, self.size, media_hosts=self.parts.settings.media_hosts)

    def model(self, name: str) -> Model:
        """The model, which must be sold to the caller; behind an alias the one that would serve its next call.

        It has the deployments where the caller's words may go, and no others.
        """
        model, caller, catalog = sold_model(self.caller, self.parts, name), self.caller, self.parts.catalog.current
        if model.targets:
            key = caller_key(caller.organization_id, caller.api_key_id, None)
            targets = [catalog.models[target] for target in targets_for(model.targets, key)]
            model = next((each for each in targets if catalog.deployments(each, caller.organization_id)), targets[0])
        return replace(model, deployments=catalog.deployments(model, caller.organization_id))


def _permit(caller: Principal, path: str, counted: Collection[Endpoint]) -> None:
    if caller.scope is not None:
        check_counting(caller.scope, path, counted)


async def asked_count(
    request: Request,
    caller: Annotated[Principal, Depends(require_api_key)],
    parts: Annotated[Parts, Depends(parts_of)],
) -> AsyncIterator[Asked]:
    """The body of a request, read when its caller is known; then it holds one of the turns of its project."""
    counting: Counting = request.app.state.counting
    path = request.scope["path"]
    _permit(caller, path, _COUNTED[path])
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise InvalidRequest("Compressed bodies are not taken; send plain JSON.", status=415)
    kind = request.headers.get("content-type", _JSON).partition(";")[0].strip().lower()
    if kind != _JSON:
        raise InvalidRequest(f"Send the body as content-type {_JSON}.", status=415)
    # Before its turn: a body may come as slowly as its sender likes.
    body = await request.body()
    with counting.turn(caller.project_id):
        yield Asked(caller, parts, counting, path, decode(body), len(body))


TheCount = Annotated[Asked, Depends(asked_count)]


def _body(*required: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "required": list(required), "properties": properties}
    return {"requestBody": {"required": True, "content": {_JSON: {"schema": schema}}}}


_TEXT: Final = {"type": "string"}
_MESSAGES: Final = {"type": "array", "items": {"type": "object"}, "minItems": 1}


@router.post(
    "/responses/input_tokens",
    summary="Count the input tokens of a response",
    openapi_extra=_body("model", "input", model=_TEXT, input={}),
)
async def count_response(asked: TheCount) -> dict[str, Any]:
    """Takes what `POST /v1/responses` takes. Nothing is charged."""
    if asked.body.get("previous_response_id") is not None:
        raise wrong("previous_response_id", "is not counted; send the items of the conversation")
    request = asked.read(Endpoint.RESPONSES, asked.body)
    tokens, is_estimate = await asked.counting.chat(request, asked.model(request.model))
    return {"object": "response.input_tokens", "input_tokens": tokens, "is_estimate": is_estimate}


@router.post(
    "/messages/count_tokens",
    summary="Count the input tokens of a message",
    openapi_extra=_body("model", "messages", model=_TEXT, messages=_MESSAGES),
)
async def count_message(asked: TheCount) -> dict[str, Any]:
    """Takes what `POST /v1/messages` takes, without `max_tokens`. Nothing is charged."""
    request = asked.read(Endpoint.MESSAGES, {"max_tokens": 1, **asked.body})
    tokens, is_estimate = await asked.counting.chat(request, asked.model(request.model))
    return {"input_tokens": tokens, "is_estimate": is_estimate}


def _tokens(param: str, value: Any) -> Any:
    """A list of at most 1,000,000 token ids."""
    is_list = isinstance(value, list) and len(value) <= MAX_TOKENS
    if not is_list or not all(type(token) is int and 0 <= token < 2**31 for token in value):
        raise wrong(param, f"must be a list of at most {MAX_TOKENS} token ids")
    return value


TOKENIZE: Final[Mapping[str, Check]] = {
    "model": string(256),
    "prompt": string(20_000_000),
    "messages": parameters.messages,
    "tools": parameters.tools,
    "add_special_tokens": boolean,
    "add_generation_prompt": only(True, why="a chat is counted as it is called"),
    "return_token_strs": only(False, why="send the tokens to /v1/detokenize"),
}
DETOKENIZE: Final[Mapping[str, Check]] = {"model": string(256), "tokens": _tokens}


@router.post(
    "/tokenize",
    summary="Tell the tokens of a text or a chat",
    openapi_extra=_body("model", model=_TEXT, prompt=_TEXT, messages=_MESSAGES),
)
async def tokenize(asked: TheCount) -> dict[str, Any]:
    """In the shape of vLLM: `prompt`, or `messages` and `tools`. `tokens` is null where only their number is known."""
    kept = _checked(asked.body, TOKENIZE)
    model = asked.model(kept["model"])
    if ("prompt" in kept) == ("messages" in kept):
        raise InvalidRequest("Send either 'prompt' or 'messages'.", param="prompt")
    if "messages" in kept:
        _permit(asked.caller, asked.path, _CHATS)
        chat: dict[str, Any] = {name: kept[name] for name in ("model", "messages", "tools") if name in kept}
        request = asked.read(Endpoint.CHAT_COMPLETIONS, chat)
        tokens = await asked.counting.chat_tokens(request, model)
        number, is_estimate = (len(tokens), False) if tokens is not None else await asked.counting.chat(request, model)
    else:
        text = kept["prompt"]
        tokens = await asked.counting.tokens(text, model, adds_special=kept.get("add_special_tokens", True))
        if tokens is not None:
            number, is_estimate = len(tokens), False
        else:
            own = await asked.counting.tokenizers.count(model.tokenizer, text)
            number, is_estimate = own.tokens, not own.exact
    return {"count": number, "max_model_len": model.context_length, "tokens": tokens, "is_estimate": is_estimate}


@router.post(
    "/detokenize",
    summary="Tell the text of tokens",
    openapi_extra=_body("model", "tokens", model=_TEXT, tokens={"type": "array", "items": {"type": "integer"}}),
)
async def detokenize(asked: TheCount) -> dict[str, Any]:
    """In the shape of vLLM. Only backends know the text of a token; 400 where that of the model cannot be asked."""
    kept = _checked(asked.body, DETOKENIZE)
    if "tokens" not in kept:
        raise InvalidRequest("You must provide 'tokens'.", param="tokens")
    text = await asked.counting.text(kept["tokens"], asked.model(kept["model"]))
    if text is None:
        raise InvalidRequest(
            "The backend of this model tells no text for these tokens.", param="model", code="unsupported_endpoint"
        )
    return {"prompt": text}


def _checked(body: dict[str, Any], table: Mapping[str, Check]) -> dict[str, Any]:
    kept = parameters.checked(body, table)
    if "model" not in kept:
        raise InvalidRequest("You must provide 'model'.", param="model")
    return kept
