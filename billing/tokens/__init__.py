"""Our own count of tokens: one counter per tokenizer, proven against its reference, and how it is kept off the loop."""

from billing.tokens.counter import (
    Count,
    Counter,
    TokenizerUnavailable,
    count_tokens_bound,
    estimate_tokens,
)
from billing.tokens.loading import Tokenizers, load_counter
from billing.tokens.prompt import prompt_text

__all__ = [
    "Count",
    "Counter",
    "TokenizerUnavailable",
    "Tokenizers",
    "count_tokens_bound",
    "estimate_tokens",
    "load_counter",
    "prompt_text",
]
