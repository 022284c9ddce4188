"""A line in the place of a client's request."""

from __future__ import annotations

import pytest

from gateway.batches.exchange import LineExchange

pytestmark = pytest.mark.anyio


async def test_a_refusal_is_the_answer() -> None:
    exchange = LineExchange("/v1/embeddings", b"{}")
    bodies: list[bytes | None] = []
    exchange.read(bodies.append)
    assert bodies == [b"{}"]
    assert not exchange.answered.done()
    exchange.answer(429, [(b"content-length", b"2"), (b"retry-after", b"7")], b"no")
    await exchange.answered
    assert (exchange.status, exchange.body, exchange.retry_after_seconds) == (429, b"no", 7)
    assert exchange.response_complete
    exchange.abort()
    assert exchange.body == b"no"


async def test_an_answer_in_pieces_is_there_with_its_end() -> None:
    exchange = LineExchange("/v1/embeddings", b"{}")
    exchange.open(200, b"x-request-id: 1\r\n", 4)
    exchange.write(b"ab")
    exchange.flush()
    assert not exchange.answered.done()
    assert not exchange.has_written
    exchange.end(b"cd")
    assert exchange.has_written
    exchange.flush()
    await exchange.answered
    assert (exchange.status, exchange.body, exchange.has_written) == (200, b"abcd", False)


async def test_what_breaks_off_is_no_answer() -> None:
    exchange = LineExchange("/v1/embeddings", b"{}")
    exchange.open(200, b"", 4)
    exchange.write(b"ab")
    exchange.abort()
    await exchange.answered
    assert not exchange.response_complete
