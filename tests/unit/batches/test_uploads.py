"""Multipart forms, however they are cut and however wrong they are."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.uploads import MOST_PARTS, UploadForm
from models.errors import InvalidRequest

TYPE = "multipart/form-data; boundary=b"


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    extra = "" if filename is None else f'; filename="{filename}"'
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"


def read(body: bytes, cuts: list[int] | None = None) -> tuple[UploadForm, bytes]:
    found, content = UploadForm([TYPE]), b""
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts or ()), len(body)]
    for low, high in itertools.pairwise(edges):
        found.feed(body[low:high])
        content += found.take()
    found.end()
    return found, content


@given(st.binary(max_size=200), st.lists(st.integers(0, 500), max_size=6), st.booleans())
def test_a_form_reads_the_same_however_it_is_cut(content: bytes, cuts: list[int], is_last: bool) -> None:
    parts = [part("purpose", b"batch"), part("file", content, "a.jsonl")]
    found, read_content = read(form(*(parts if is_last else reversed(parts))), cuts)
    assert read_content == content
    assert (found.fields, found.filename) == ({"purpose": "batch"}, "a.jsonl")


@pytest.mark.parametrize(
    ("filename", "shown"),
    [
        pytest.param("../../etc/passwd", "passwd", id="F10 a path"),
        pytest.param("C:\\\\x\\\\y.jsonl", "y.jsonl", id="a path of Windows"),
        pytest.param("", "file", id="none"),
        pytest.param("a\tb", "ab", id="not printable"),
        pytest.param("x" * 2_000, "x" * 255, id="long"),
        pytest.param("모델.jsonl", "모델.jsonl", id="Unicode"),
    ],
)
def test_names_are_shown_safely(filename: str, shown: str) -> None:
    assert read(form(part("file", b"x", filename)))[0].filename == shown


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"-" * 1_000_000, id="D09 a million dashes"),
        pytest.param((b"--b\r\n" * 200_000), id="D09 boundaries without parts"),
        pytest.param(form(part("purpose", b"batch")), id="no file"),
        pytest.param(part("file", b"x", "a"), id="no end"),
        pytest.param(form(part("file", b"x", "a"), part("file", b"y", "b")), id="two files"),
        pytest.param(form(part("a", b"1"), part("a", b"2")), id="a field twice"),
        pytest.param(form(*(part(f"f{number}", b"") for number in range(MOST_PARTS + 1))), id="too many parts"),
        pytest.param(form(part("purpose", b"x" * 2_000)), id="a long field"),
        pytest.param(b"--b\r\nX-Big: " + b"x" * 100_000, id="a large header"),
        pytest.param(b"--b\r\n" + b"X: y\r\n" * 1_000 + b"\r\n", id="many headers"),
        pytest.param(b"--b\r\nContent-Disposition: attachment\r\n\r\nx\r\n--b--\r\n", id="no field of a form"),
        pytest.param(b"--b\r\n\r\nx\r\n--b--\r\n", id="no headers"),
    ],
)
def test_wrong_forms_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(body)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "content_types",
    [
        pytest.param([], id="none"),
        pytest.param(["application/json"], id="JSON"),
        pytest.param(["multipart/form-data"], id="no boundary"),
        pytest.param(["multipart/form-data; boundary="], id="an empty boundary"),
        pytest.param(["multipart/form-data; boundary=" + "-" * 71], id="D09 a long boundary"),
        pytest.param(["multipart/form-data; boundary=" + "-" * 1_000_000], id="D09 a boundary of a million dashes"),
        pytest.param(["multipart/mixed; boundary=b"], id="another multipart"),
        pytest.param([TYPE, TYPE], id="two"),
    ],
)
def test_other_content_types_are_refused(content_types: list[str]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        UploadForm(content_types)
    assert refused.value.status == 415
