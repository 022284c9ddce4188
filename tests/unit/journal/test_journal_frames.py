"""Frames under every cut and every flipped byte: what is intact is found, what is not is never trusted."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.journal.frames import (
    FRAME_BYTES,
    HEADER_BYTES,
    Damage,
    Record,
    decode_header,
    encode_header,
    frame,
    salt_of,
    scan,
)

INSTANCE = UUID(int=77)
SALT = salt_of(INSTANCE, 3)
SEGMENT_BYTES = 4_096
RECORDS = st.builds(Record, st.integers(1, 255), st.uuids(), st.binary(max_size=200))
SAMPLES = (
    Record(1, UUID(int=1), b"first" * 3),
    Record(200, UUID(int=2), b""),
    Record(1, UUID(int=3), b"\xff\xc0TG looks like a marker"),
    Record(2, UUID(int=4), bytes(40)),
)


def segment_of(records: tuple[Record, ...] | list[Record], salt: int = SALT) -> bytes:
    """A segment with these records, and zeros behind them."""
    frames = b"".join(part for record in records for part in frame(record, salt))
    return (encode_header(INSTANCE, 3, SEGMENT_BYTES) + frames).ljust(SEGMENT_BYTES, b"\0")


def ends_of(records: tuple[Record, ...]) -> list[int]:
    """Where each record ends in the segment."""
    ends, position = [], HEADER_BYTES
    for record in records:
        position += FRAME_BYTES + len(record.payload)
        ends.append(position)
    return ends


def found_in(segment: bytes) -> tuple[list[Record], list[Damage]]:
    """Records and damages of a segment."""
    found = list(scan(segment, SALT))
    records = [one for one in found if isinstance(one, Record)]
    return records, [one for one in found if isinstance(one, Damage)]


@settings(max_examples=100, deadline=None)
@given(st.lists(RECORDS, max_size=10))
def test_what_was_written_is_read(records: list[Record]) -> None:
    assert found_in(segment_of(records)) == (records, [])


@pytest.mark.parametrize("is_zeroed", [True, False], ids=["zeros follow", "the file ends"])
def test_a_write_cut_off_at_any_byte_leaves_the_records_before_it(is_zeroed: bool) -> None:
    segment, ends = segment_of(SAMPLES), ends_of(SAMPLES)
    for cut in range(HEADER_BYTES, ends[-1] + 1):
        torn = segment[:cut].ljust(SEGMENT_BYTES if is_zeroed else 0, b"\0")
        records, damages = found_in(torn)
        # The last sample ends in zeros: where only these are missing, nothing is.
        whole = [record for record, end in zip(SAMPLES, ends, strict=True) if end <= cut or torn[:end] == segment[:end]]
        assert records == whole
        start = ([HEADER_BYTES, *ends])[len(whole)]
        size = len(torn[start:].rstrip(b"\0"))
        assert damages == ([Damage(start, size, is_tail=True)] if size else []), cut


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 255))
def test_any_flipped_byte_costs_the_record_it_is_in_and_no_other(mask: int) -> None:
    segment, ends = segment_of(SAMPLES), ends_of(SAMPLES)
    starts = [HEADER_BYTES, *ends]
    for position in range(HEADER_BYTES, ends[-1]):
        flipped = bytearray(segment)
        flipped[position] ^= mask
        records, damages = found_in(bytes(flipped))
        hit = sum(end <= position for end in ends)
        assert records == [record for number, record in enumerate(SAMPLES) if number != hit]
        assert [(damage.position, damage.is_tail) for damage in damages] == [(starts[hit], hit == len(SAMPLES) - 1)]
        if hit < len(SAMPLES) - 1:
            assert damages[0].size == ends[hit] - starts[hit]


@settings(max_examples=200, deadline=None)
@given(st.lists(RECORDS, min_size=1, max_size=6), st.data())
def test_nothing_is_read_that_was_not_written(records: list[Record], data: st.DataObject) -> None:
    segment = bytearray(segment_of(records))
    start = data.draw(st.integers(HEADER_BYTES, SEGMENT_BYTES - 1))
    noise = data.draw(st.binary(min_size=1, max_size=300))
    segment[start : start + len(noise)] = noise
    found, _ = found_in(bytes(segment[:SEGMENT_BYTES]))
    assert all(record in records for record in found)


def test_records_behind_a_page_of_zeros_are_found() -> None:
    segment = bytearray(segment_of(SAMPLES))
    first, second = ends_of(SAMPLES)[:2]
    segment[first:second] = bytes(second - first)
    assert found_in(bytes(segment)) == (
        [SAMPLES[0], *SAMPLES[2:]],
        [Damage(first, second - first, is_tail=False)],
    )


def test_frames_of_another_segment_are_not_taken() -> None:
    other = salt_of(INSTANCE, 4)
    inside = b"".join(frame(SAMPLES[0], other))
    records, damages = found_in(segment_of([SAMPLES[0], Record(1, UUID(int=9), inside)]))
    assert [record.payload for record in records] == [SAMPLES[0].payload, inside]
    assert not damages
    assert found_in(segment_of(SAMPLES, other))[0] == []


def test_the_header_comes_back_and_no_flipped_byte_passes() -> None:
    header = encode_header(INSTANCE, 3, SEGMENT_BYTES)
    assert len(header) == HEADER_BYTES
    decoded = decode_header(header)
    assert decoded is not None
    assert (decoded.version, decoded.instance_id, decoded.number) == (1, INSTANCE, 3)
    assert decode_header(header[:-1]) is None
    for position in range(len(header.rstrip(b"\0"))):
        assert decode_header(header[:position] + bytes([header[position] ^ 1]) + header[position + 1 :]) is None
