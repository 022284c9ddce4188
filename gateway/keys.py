"""The keys people carry: how one is made, recognised without a store, and turned into what is stored instead of it.

A key is `<prefix><27 random base62 characters><6 base62 characters of CRC32>`. The random part holds 160.7 bits; the
checksum covers everything before it, so that a mistyped or invented key is refused without touching any store, and
so that scanners of leaked secrets can tell a real key from a look-alike.
"""

from __future__ import annotations

import hmac
import re
import secrets
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final
from uuid import UUID

from billing.store import keys as stored
from billing.store.engine import make_engine

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_LENGTH: Final = 27
_CHECKSUM_LENGTH: Final = 6
_NONCE_LENGTH: Final = 16


class KeyKind(StrEnum):
    """What a key is for; the value is its prefix."""

    API = "tg_live_"
    ADMIN = "tg_admin_"
    OPERATOR = "tg_op_"


LONGEST_KEY: Final = max(len(kind) for kind in KeyKind) + _RANDOM_LENGTH + _CHECKSUM_LENGTH
_SHAPE: Final = re.compile(f"({'|'.join(KeyKind)})[0-9A-Za-z]{{{_RANDOM_LENGTH + _CHECKSUM_LENGTH}}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class MintedKey:
    """A new key. `value` is shown once and kept nowhere; `digest` and `redacted_value` are stored."""

    value: str = field(repr=False)
    digest: bytes = field(repr=False)
    redacted_value: str


def mint(kind: KeyKind, pepper: bytes) -> MintedKey:
    """A new random key of a kind."""
    body = kind + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_LENGTH))
    value = body + _checksum(body)
    return MintedKey(value, digest(value, pepper), f"{kind}...{value[-4:]}")


def well_formed(value: str) -> KeyKind | None:
    """The kind of a key whose length, alphabet and checksum are right, else None. Says nothing about it being known."""
    # The length comes first, so that a header of a megabyte costs no more than one of forty bytes.
    if len(value) > LONGEST_KEY:
        return None
    match = _SHAPE.fullmatch(value)
    if match is None or value[-_CHECKSUM_LENGTH:] != _checksum(value[:-_CHECKSUM_LENGTH]):
        return None
    return KeyKind(match[1])


def digest(value: str, pepper: bytes) -> bytes:
    """`HMAC-SHA256(pepper, key)`: what is stored and looked up, 32 bytes.

    A fast function is right here: a key is random, so there is nothing to guess that a slow one would protect.
    """
    return hmac.digest(pepper, value.encode(), "sha256")


async def issue_operator_key(
    connection: AsyncConnection, name: str, pepper: bytes, now: datetime | None = None
) -> tuple[UUID, str]:
    """Make an operator key directly in the database, as `up` does for its first one; answers its id and its value."""
    minted = mint(KeyKind.OPERATOR, pepper)
    key_id = await stored.create_operator_key(
        connection,
        name=name,
        digest=minted.digest,
        redacted_value=minted.redacted_value,
        now=now or datetime.now(UTC),
    )
    return key_id, minted.value


async def issue_operator_key_at(database_url: str, name: str, pepper: str) -> tuple[UUID, str]:
    """The same on a connection of its own; raises `SQLAlchemyError` or `OSError` where the database cannot be used."""
    engine = make_engine(database_url, pool_size=1)
    try:
        async with engine.begin() as connection:
            return await issue_operator_key(connection, name, pepper.encode())
    finally:
        await engine.dispose()


def seal(value: str, pepper: bytes) -> str:
    """A key made unreadable without the pepper, for the stored answer of a request that made it; hexadecimal text.

    The pad is as long as the value and used once, since it comes from a random nonce.
    """
    nonce = secrets.token_bytes(_NONCE_LENGTH)
    return (nonce + _padded(value.encode(), nonce, pepper)).hex()


def unseal(sealed: str, pepper: bytes) -> str:
    """The key that `seal` made unreadable."""
    whole = bytes.fromhex(sealed)
    return _padded(whole[_NONCE_LENGTH:], whole[:_NONCE_LENGTH], pepper).decode()


def _padded(text: bytes, nonce: bytes, pepper: bytes) -> bytes:
    pad = hmac.digest(pepper, b"sealed answer" + nonce, "sha512")
    assert len(text) <= len(pad), "a pad is never used twice"
    return bytes(left ^ right for left, right in zip(text, pad, strict=False))


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    characters = []
    for _ in range(_CHECKSUM_LENGTH):
        number, index = divmod(number, len(_ALPHABET))
        characters.append(_ALPHABET[index])
    return "".join(reversed(characters))
