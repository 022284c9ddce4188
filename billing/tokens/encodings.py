"""tiktoken's own encodings, by name, from vocabulary files that are already on this machine: never a download."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tiktoken

from billing.tokens.counter import TokenizerUnavailable


@dataclass(frozen=True, slots=True)
class VocabularyFile:
    """Where tiktoken takes a vocabulary from, and the sha256 (hex) it must have."""

    url: str
    sha256: str

    @property
    def cache_name(self) -> str:
        """The file's name in tiktoken's cache directory."""
        return hashlib.sha1(self.url.encode(), usedforsecurity=False).hexdigest()


_SOURCE = "https://openaipublic.blob.core.windows.net/encodings/"
_R50K = VocabularyFile(
    _SOURCE + "r50k_base.tiktoken", "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
)
_P50K = VocabularyFile(
    _SOURCE + "p50k_base.tiktoken", "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069"
)
_CL100K = VocabularyFile(
    _SOURCE + "cl100k_base.tiktoken", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
)
_O200K = VocabularyFile(
    _SOURCE + "o200k_base.tiktoken", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
)
ENCODINGS = {
    "r50k_base": _R50K,
    "p50k_base": _P50K,
    "p50k_edit": _P50K,
    "cl100k_base": _CL100K,
    "o200k_base": _O200K,
    "o200k_harmony": _O200K,
}


def load_encoding(name: str) -> tiktoken.Encoding:
    """The encoding `name` of `ENCODINGS`.

    Raises `TokenizerUnavailable` unless its vocabulary is in tiktoken's cache.
    """
    _require_vocabulary(name, ENCODINGS[name])
    return tiktoken.get_encoding(name)


def _require_vocabulary(name: str, file: VocabularyFile) -> None:
    """Look for ourselves first: tiktoken deletes a file with a wrong hash and downloads it again."""
    directory = _cache_directory()
    if directory is None:
        raise TokenizerUnavailable(
            f"The tiktoken encoding {name} needs its vocabulary file, and tiktoken's cache is switched off: set "
            f"TIKTOKEN_CACHE_DIR to a directory that holds {file.cache_name}."
        )
    path = directory / file.cache_name
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        raise TokenizerUnavailable(
            f"The tiktoken encoding {name} needs its vocabulary, which Tollgate never downloads: put {file.url} "
            f"at {path}, or set TIKTOKEN_CACHE_DIR to the directory that holds {file.cache_name}."
        ) from None
    if found != file.sha256:
        raise TokenizerUnavailable(
            f"The vocabulary of the tiktoken encoding {name} at {path} is damaged: its sha256 is {found}, "
            f"and it must be {file.sha256}."
        )


def _cache_directory() -> Path | None:
    """The directory tiktoken will read, by its own rules; None where it would not cache at all."""
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if (configured := os.environ.get(variable)) is not None:
            return Path(configured) if configured else None
    return Path(tempfile.gettempdir()) / "data-gym-cache"
