"""Keys: their format, their checksum, and what is stored instead of them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.keys import KeyKind, digest, mint, seal, unseal, well_formed

PEPPER = b"p" * 32


@pytest.mark.parametrize("kind", KeyKind)
def test_a_minted_key_is_recognised(kind: KeyKind) -> None:
    minted = mint(kind, PEPPER)
    assert re.fullmatch(kind + "[0-9A-Za-z]{33}", minted.value)
    assert well_formed(minted.value) is kind
    assert minted.digest == digest(minted.value, PEPPER)
    assert len(minted.digest) == 32


def test_a_minted_key_does_not_show_itself() -> None:
    minted = mint(KeyKind.API, PEPPER)
    assert minted.value not in repr(minted)
    assert minted.redacted_value == f"tg_live_...{minted.value[-4:]}"


def test_keys_differ_and_so_do_their_digests_under_other_peppers() -> None:
    first, second = mint(KeyKind.API, PEPPER), mint(KeyKind.API, PEPPER)
    assert first.value != second.value
    assert digest(first.value, PEPPER) != digest(first.value, b"q" * 32)


GOOD = mint(KeyKind.API, PEPPER).value


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("", id="nothing"),
        pytest.param(GOOD[:-1], id="one character short"),
        pytest.param(GOOD + "0", id="one character long"),
        pytest.param(GOOD.replace("tg_live_", "tg_test_"), id="another prefix"),
        pytest.param(GOOD.replace("tg_live_", "tg_op_"), id="the prefix of another kind"),
        pytest.param(GOOD.swapcase(), id="another case"),
        pytest.param(GOOD[:-1] + "é", id="beyond ASCII"),
        pytest.param(GOOD + "\n", id="with a line break"),
        pytest.param(" " + GOOD, id="with a blank"),
        pytest.param("' OR 1=1--", id="SQL"),
        pytest.param("x' UNION SELECT digest FROM api_key--", id="more SQL"),
        pytest.param("$1", id="a parameter"),
        pytest.param("\0", id="NUL"),
        pytest.param("%" * 40, id="wildcards"),
        pytest.param("{{7*7}}", id="a template"),
        pytest.param("a" * 8_000, id="8,000 characters"),
        pytest.param(GOOD * 200_000, id="8 megabytes"),
    ],
)
def test_what_is_no_key_is_not_well_formed(value: str) -> None:
    assert well_formed(value) is None


@given(st.integers(0, len(GOOD) - 1), st.sampled_from("0123456789ABCXYZabcxyz"))
def test_a_single_mistyped_character_is_noticed(position: int, character: str) -> None:
    value = GOOD[:position] + character + GOOD[position + 1 :]
    assert (well_formed(value) is not None) == (value == GOOD)


@given(st.text(max_size=60))
def test_any_text_is_answered(value: str) -> None:
    assert well_formed(value) is None


def test_a_sealed_key_is_read_with_the_pepper_alone() -> None:
    sealed = seal(GOOD, PEPPER)
    assert GOOD.encode().hex() not in sealed
    assert unseal(sealed, PEPPER) == GOOD
    assert seal(GOOD, PEPPER) != sealed
    with pytest.raises(UnicodeDecodeError):
        # The pad of another pepper is noise, which is hardly ever text.
        [unseal(seal(GOOD, PEPPER), b"q" * 32) for _ in range(20)]
