"""Streams are cut into events whatever the split, and not a byte of them changes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.calls.sse import DONE, EVENT_LIMIT_BYTES, EventSplitter, EventTooLarge

STREAM = (
    b": a comment\n\n"
    b'data: {"a": "\xe2\x80\xa8 and \xc2\x85 are text"}\r\n\r\n'
    b"event: error\rdata: one\rdata:two\r\r"
    b"id: 7\ndata:\n\n"
    b"data: [DONE]\n\n"
)
DATA = [None, b'{"a": "\xe2\x80\xa8 and \xc2\x85 are text"}', b"one\ntwo", b"", DONE]


def feed(pieces: list[bytes]) -> tuple[list[bytes | None], bytes]:
    splitter = EventSplitter()
    events = [event for piece in pieces for event in splitter.feed(piece)] + splitter.flush()
    # A line end that belongs to nothing makes an empty event, which clients ignore too.
    return [data for raw, data in events if raw.strip()], b"".join(raw for raw, _ in events)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_every_split_gives_the_same_events_and_bytes(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    data, raw = feed([STREAM[start:end] for start, end in itertools.pairwise(places)])
    assert data == DATA
    assert raw == STREAM


def test_one_byte_at_a_time() -> None:
    data, raw = feed([STREAM[index : index + 1] for index in range(len(STREAM))])
    assert data == DATA
    assert raw == STREAM


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        pytest.param(b"data: x", [b"x"], id="an end without an empty line is made whole"),
        pytest.param(b"data: x\n", [b"x"], id="half an empty line"),
        pytest.param(b"\xef\xbb\xbfdata: x\n\n", [b"x"], id="a byte order mark is dropped"),
        pytest.param(b"\r\n\r\n", [], id="empty lines alone are no event"),
        pytest.param(b"data:[DONE]\n\n", [DONE], id="no space after the colon"),
    ],
)
def test_odd_streams(stream: bytes, data: list[bytes]) -> None:
    assert feed([stream])[0] == data
    assert feed([stream[:1], stream[1:2], stream[2:]])[0] == data


def test_an_event_without_end_is_bounded() -> None:
    splitter = EventSplitter()
    splitter.feed(b"x" * EVENT_LIMIT_BYTES)
    with pytest.raises(EventTooLarge):
        splitter.feed(b"x")
