"""The demo model: a tiny llama with random weights and its tokenizer, made on the spot; the same bytes every time.

The vocabulary is a byte-level BPE with the pattern of Qwen2, trained on the sources of Python's standard library.
Hidden channel 0 is constant and acts as a bias of the output: what is not plain printable ASCII is never sampled, and
the token that ends the turn comes after 80 tokens or so. The result babbles, at 2,000 tokens a second with real counts.
"""

from __future__ import annotations

import json
import math
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

    Matrix = np.ndarray[tuple[int, int], np.dtype[np.float32]]

CONTEXT_LENGTH = 4096
MODEL_FILE = "tiny.gguf"
TOKENIZER_FILE = "tiny.tokenizer.json"

_VOCABULARY = 4096
_WIDTH = 64
_LAYERS = 2
_HEADS = 4
_FEED_FORWARD = 160
_SEED = 1
_FORBIDDEN_LOGIT = -1000.0
_LOGIT_DEVIATION = 2.0
# Of the turn's end; with the server's default sampling a reply then has 60 to 100 tokens.
_END_LOGIT = 5.08
_TRAINING_FILES = 200
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_END_OF_TEXT = "<|endoftext|>"
_END_OF_TURN = "<|im_end|>"
_CONTROL = (_END_OF_TEXT, "<|im_start|>", _END_OF_TURN)
_SPECIAL = (*_CONTROL, "<tool_call>", "</tool_call>", "<think>", "</think>")


def make(directory: Path) -> tuple[Path, Path]:
    """Write the model and its tokenizer into `directory` unless they are there; both paths."""
    model, tokenizer = directory / MODEL_FILE, directory / TOKENIZER_FILE
    if not (model.exists() and tokenizer.exists()):
        directory.mkdir(parents=True, exist_ok=True)
        trained = _train()
        # Renamed into place, the model last: a start that was killed half-way begins again.
        draft = directory / f"{TOKENIZER_FILE}.new"
        trained.save(str(draft))
        os.replace(draft, tokenizer)
        draft = directory / f"{MODEL_FILE}.new"
        _write(draft, trained)
        os.replace(draft, model)
    return model, tokenizer


def _train() -> Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY - len(_SPECIAL),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.add_special_tokens(list(_CONTROL))
    # Like Qwen's: tokens in any text, also for llama.cpp, and not control tokens.
    marks = [token for token in _SPECIAL if token not in _CONTROL]
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in marks])
    return tokenizer


def _texts() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}
    files = (path for path in root.rglob("*.py") if not skipped.intersection(path.relative_to(root).parts))
    return (path.read_text(encoding="utf-8", errors="replace") for path in sorted(files)[:_TRAINING_FILES])


def _write(path: Path, tokenizer: Tokenizer) -> None:
    import gguf
    import numpy as np

    by_id = {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    tokens = [by_id[number] for number in range(len(by_id))]
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer)
    _add_vocabulary(writer, tokenizer, tokens)
    rng = np.random.default_rng(_SEED)
    for name, matrix in _weights(rng, tokens):
        writer.add_tensor(name, matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any) -> None:
    writer.add_name("tiny-random-llama")
    writer.add_description("random weights: it babbles")
    writer.add_file_type(0)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)


def _add_vocabulary(writer: Any, tokenizer: Tokenizer, tokens: list[str]) -> None:
    import gguf

    kinds = {token: gguf.TokenType.USER_DEFINED for token in _SPECIAL}
    kinds |= {token: gguf.TokenType.CONTROL for token in _CONTROL}
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.get(token, gguf.TokenType.NORMAL) for token in tokens])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokens.index(_END_OF_TEXT))
    writer.add_eos_token_id(tokens.index(_END_OF_TURN))
    writer.add_pad_token_id(tokens.index(_END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_chat_template(Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8"))


def _weights(rng: np.random.Generator, tokens: list[str]) -> Iterator[tuple[str, Matrix]]:
    import numpy as np

    embedding = _normal(rng, len(tokens), _WIDTH, math.sqrt(_WIDTH))
    embedding[:, 0] = 2.0
    ones: Any = np.ones(_WIDTH, np.float32)
    yield "token_embd.weight", embedding
    yield "output_norm.weight", ones
    yield "output.weight", _output(rng, tokens)
    for layer in range(_LAYERS):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", ones
        yield block + "ffn_norm.weight", ones
        for name in ("attn_q", "attn_k", "attn_v"):
            yield f"{block}{name}.weight", _normal(rng, _WIDTH, _WIDTH)
        yield block + "attn_output.weight", _without_channel_0(_normal(rng, _WIDTH, _WIDTH, 0.3))
        yield block + "ffn_gate.weight", _normal(rng, _FEED_FORWARD, _WIDTH)
        yield block + "ffn_up.weight", _normal(rng, _FEED_FORWARD, _WIDTH)
        yield block + "ffn_down.weight", _without_channel_0(_normal(rng, _WIDTH, _FEED_FORWARD, 0.3))


def _output(rng: np.random.Generator, tokens: list[str]) -> Matrix:
    """Random logits for printable tokens, none for the others, a fixed one for the end of the turn."""
    import numpy as np

    matrix = _normal(rng, len(tokens), _WIDTH, _LOGIT_DEVIATION)
    allowed = np.array([_is_printable(token) for token in tokens])
    matrix[allowed, 0] = 0
    matrix[~allowed] = 0
    matrix[~allowed, 0] = _FORBIDDEN_LOGIT
    bias_channel = 2.0 / math.sqrt(1.0 + 4.0 / _WIDTH + _LAYERS * 0.1)
    end = tokens.index(_END_OF_TURN)
    matrix[end] = 0
    matrix[end, 0] = _END_LOGIT / bias_channel
    return matrix


def _is_printable(token: str) -> bool:
    """In the byte-level alphabet 33 to 126 are themselves, U+0120 is a space and U+010A a new line."""
    return token not in _SPECIAL and all(33 <= ord(letter) <= 126 or letter in "\u0120\u010a" for letter in token)


def _normal(rng: np.random.Generator, rows: int, columns: int, deviation: float = 1.0) -> Matrix:
    import numpy as np

    return (rng.standard_normal((rows, columns)) * (deviation / math.sqrt(columns))).astype(np.float32)


def _without_channel_0(matrix: Matrix) -> Matrix:
    matrix[0] = 0  # blocks must not write to the constant channel
    return matrix
