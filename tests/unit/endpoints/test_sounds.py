"""A sound is as long as what is in its file, whatever the file says of itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.sounds import measure
from models.errors import InvalidRequest
from tests import sounds


@pytest.mark.parametrize(
    ("content", "kind", "seconds"),
    [
        pytest.param(sounds.wav(2), "wav", 2, id="wav"),
        pytest.param(sounds.wav(2.01), "wav", 3, id="wav, a second begun"),
        pytest.param(sounds.wav(0), "wav", 1, id="wav without a sound"),
        pytest.param(sounds.wav(30, told=3_200), "wav", 30, id="wav that says less"),
        pytest.param(sounds.wav(3, told=0), "wav", 3, id="wav that says nothing"),
        pytest.param(sounds.wav(3, told=2**32 - 1), "wav", 3, id="wav that says all"),
        pytest.param(sounds.wav(2) + b"LIST\x1a\0\0\0INFO" + bytes(22), "wav", 2, id="wav with titles at its end"),
        pytest.param(sounds.flac(40), "flac", 11, id="flac: 40 × 4,096 / 16,000"),
        pytest.param(sounds.flac(43, told=175_500), "flac", 11, id="flac with what looks like a little more"),
        pytest.param(sounds.flac(60, told=1), "flac", 16, id="short flac that says nothing"),
        pytest.param(sounds.flac(400, told=16_000), "flac", 103, id="flac that says one second"),
        pytest.param(sounds.mp3(383), "mp3", 11, id="mp3: 383 × 1,152 / 44,100"),
        pytest.param(sounds.mp3(38, tags=b"ID3\3\0\0\0\0\1\0" + bytes(128)), "mp3", 1, id="mp3 with titles"),
        pytest.param(sounds.mp3(38) + b"TAG" + bytes(125), "mp3", 1, id="mp3 with titles at its end"),
        pytest.param(sounds.mp3(10) + b"\xff\xff junk" + sounds.mp3(28), "mp3", 1, id="mp3 with junk in it"),
        pytest.param(
            sounds.mp3(383).replace(b"\x90\0\0\0\0\0", b"\x90\0Info") + sounds.mp3(1),
            "mp3",
            11,
            id="mp3 whose frames all say that they hold no sound",
        ),
        pytest.param(sounds.opus(500), "ogg", 10, id="opus: 500 × 20 ms"),
        pytest.param(sounds.opus(500, granule=48), "ogg", 10, id="opus that says less"),
        pytest.param(sounds.vorbis(400, 400_000), "ogg", 10, id="vorbis"),
        pytest.param(sounds.vorbis(4_000, 44_100), "ogg", 93, id="vorbis that says one second"),
        pytest.param(sounds.m4a(431), "m4a", 11, id="m4a: 431 × 1,024 / 44,100"),
        pytest.param(sounds.m4a(4_310, delta=1), "m4a", 101, id="m4a whose samples say they are short"),
        pytest.param(sounds.m4a(431, rate=8_000, told_rate=48_000), "m4a", 56, id="m4a with two rates"),
        pytest.param(sounds.webm(500), "webm", 10, id="webm: 500 × 20 ms"),
    ],
)
def test_seconds(content: bytes, kind: str, seconds: int) -> None:
    assert measure(content) == (kind, seconds)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"hello, this is text", id="text"),
        pytest.param(b"%PDF-1.7", id="another file"),
        pytest.param(b"RIFF\0\0\0\0WAVE", id="wav without samples"),
        pytest.param(sounds.wav(1).replace(b"\x10\0\0\0\x01\0", b"\x10\0\0\0\x55\0", 1), id="mp3 inside wav"),
        pytest.param(sounds.wav(1, rate=0), id="no samples a second"),
        pytest.param(b"OggS" + bytes(23), id="ogg without packets"),
        pytest.param(
            sounds.opus(50) + sounds.opus(50).replace(b"\1\0\0\0\0\0\0\0\0", b"\2\0\0\0\0\0\0\0\0"), id="two streams"
        ),
        pytest.param(b"\0\0\0\x10ftypM4A \0\0\0\0", id="m4a without a table"),
        pytest.param(sounds.m4a(0), id="m4a in fragments"),
        pytest.param(b"\x1a\x45\xdf\xa3\x80", id="webm without a track"),
        pytest.param(b"ID3\3\0\0\x7f\x7f\x7f\x7f", id="titles and no sound"),
        pytest.param(b"fLaC" + b"\xff\xf8" * 500_000, id="more frames than are looked at"),
        pytest.param(b"ID3\3\0\0\0\0\0\0" + b"\xff" * 1_000_000, id="nothing but beginnings"),
        pytest.param(sounds.wav(0, rate=1).replace(b"data\0\0\0\0", b"data\0\0\0\0" + bytes(100_000)), id="13 hours"),
    ],
)
def test_what_cannot_be_measured_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        measure(content)
    assert caught.value.param == "file"


GOOD = [
    sounds.wav(0.1),
    sounds.flac(2),
    sounds.mp3(4),
    sounds.opus(50),
    sounds.vorbis(50, 9),
    sounds.m4a(9),
    sounds.webm(9),
]


@given(
    st.sampled_from(GOOD),
    st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 255)), max_size=8),
    st.integers(0, 5_000),
)
def test_a_broken_file_is_measured_or_refused(content: bytes, changes: list[tuple[int, int]], length: int) -> None:
    broken = bytearray(content[: length or None])
    for place, byte in changes:
        if place < len(broken):
            broken[place] = byte
    try:
        kind, seconds = measure(bytes(broken))
    except InvalidRequest:
        # Any other exception would fail the test: it would be a 500.
        return
    assert kind
    assert seconds >= 1
