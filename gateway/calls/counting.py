"""Our own count of a call: prompt and generated text, with the model's own tokenizer where it is at hand."""

from __future__ import annotations

from typing import Any

from billing.tokens import Tokenizers, prompt_text
from gateway.calls.metering import OwnCount
from models.call import CallRequest, Endpoint


async def own_count(
    tokenizers: Tokenizers, request: CallRequest, tokenizer: str | None, texts: tuple[str, ...]
) -> OwnCount:
    """Our own count of a call; exact where the model's tokenizer is at hand and no chat template is in between.

    Each choice is counted by itself, as it was generated.
    """
    completions = [await tokenizers.count(tokenizer, text) for text in texts]
    if request.endpoint is Endpoint.RERANK:
        return await _ranked_count(tokenizers, request, tokenizer)
    subject = request.body.get("prompt") if request.endpoint is Endpoint.COMPLETIONS else request.body.get("input")
    if subject is None:
        prompts = [await tokenizers.count(tokenizer, prompt_text(request.body))]
    else:
        items = subject if isinstance(subject, list) and not isinstance(subject[0], int) else [subject]
        # Parts are judged together (moderations); they are pictures, too, which nobody can count here.
        texts_of = [item if isinstance(item, str) else item.get("text") for item in items if not isinstance(item, list)]
        prompts = [await tokenizers.count(tokenizer, item) for item in texts_of if isinstance(item, str)]
    token_ids = _token_ids(subject)
    return OwnCount(
        prompt=sum(prompt.tokens for prompt in prompts) + token_ids,
        completion=sum(completion.tokens for completion in completions),
        is_prompt_exact=subject is not None
        and not (isinstance(subject, list) and isinstance(subject[0], dict))
        and all(prompt.exact for prompt in prompts),
        is_completion_exact=all(completion.exact for completion in completions),
    )


async def _ranked_count(tokenizers: Tokenizers, request: CallRequest, tokenizer: str | None) -> OwnCount:
    """The query once with each document; never exact, since what is put between them is not ours to know."""
    query = await tokenizers.count(tokenizer, request.body["query"])
    documents = [await tokenizers.count(tokenizer, text) for text in request.body["documents"]]
    prompt = query.tokens * len(documents) + sum(document.tokens for document in documents)
    return OwnCount(prompt, 0, is_prompt_exact=False, is_completion_exact=True)


def _token_ids(subject: Any) -> int:
    if not isinstance(subject, list):
        return 0
    if isinstance(subject[0], int):
        return len(subject)
    return sum(len(item) for item in subject if isinstance(item, list))
