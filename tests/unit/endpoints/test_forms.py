"""Forms are read strictly, and go upstream as they would be read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.forms import MAX_PARTS, boundary_of, parts_in
from gateway.backends.forms import BOUNDARY, CONTENT_TYPE, form
from models.call import Upload
from models.errors import InvalidRequest

TYPE = b"multipart/form-data; boundary=x"
FIELD = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'


def field(name: bytes, content: bytes) -> bytes:
    return FIELD % (name, content)


def test_fields_and_files_in_their_order() -> None:
    head = b'--x\r\ncontent-type: audio/wav\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    file = head + b"\0\r\n\r\n\r\n"
    parts = parts_in(TYPE, field(b"a", b"1") + file + field(b"b", b"") + b"--x--\r\n")
    assert parts == [("a", b"1", False), ("file", b"\0\r\n\r\n", True), ("b", b"", False)]


@pytest.mark.parametrize(
    ("disposition", "part"),
    [
        pytest.param(b"form-data; name=model", ("model", b"1", False), id="a name without quotes, as .NET sends it"),
        pytest.param(b"form-data; name=file; filename=a.wav", ("file", b"1", True), id="and that of a file"),
        pytest.param(b'form-data; filename="; name=x"; name="file"', ("file", b"1", True), id="a name in a file name"),
    ],
)
def test_names_as_clients_write_them(disposition: bytes, part: tuple[str, bytes, bool]) -> None:
    body = b"--x\r\ncontent-disposition: %b\r\n\r\n1\r\n--x--\r\n" % disposition
    assert parts_in(TYPE, body) == [part]


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b'Multipart/Form-Data; charset=utf-8; boundary="a b"', b"a b"),
        (b"multipart/form-data; boundary=" + b"-" * 70, b"-" * 70),
    ],
)
def test_boundaries(content_type: bytes, boundary: bytes) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "content_type",
    [
        pytest.param(b"", id="none"),
        pytest.param(b"application/json", id="JSON"),
        pytest.param(b"multipart/form-data", id="no boundary"),
        pytest.param(b"multipart/mixed; boundary=x", id="another kind"),
        pytest.param(b"multipart/form-data; boundary=", id="an empty boundary"),
        pytest.param(b"multipart/form-data; boundary=" + b"-" * 71, id="a long boundary"),
        pytest.param(b"multipart/form-data; boundary=" + b"-" * 1_000_000, id="D09 a megabyte of dashes"),
    ],
)
def test_types_that_are_no_form(content_type: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        boundary_of(content_type)
    assert caught.value.status == 415


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"--x--\r\n", id="no field"),
        pytest.param(b"preamble\r\n" + field(b"a", b"1") + b"--x--", id="something before"),
        pytest.param(field(b"a", b"1"), id="no end"),
        pytest.param(field(b"a", b"1") + b"--xy\r\n", id="a longer boundary"),
        pytest.param(b"--x\r\n\r\n\r\n--x--", id="no head"),
        pytest.param(b"--x\r\ncontent-disposition: form-data\r\n\r\n1\r\n--x--", id="no name"),
        pytest.param(
            b'--x\r\ncontent-disposition: form-data; name="a"\r\n' * 2 + b"\r\n1\r\n--x--", id="no end of a head"
        ),
        pytest.param(
            b'--x\r\ncontent-disposition: form-data; name="a"\r\n'
            b'content-disposition: form-data; name="b"\r\n\r\n1\r\n--x--',
            id="two names",
        ),
        pytest.param(
            b'--x\r\ncontent-disposition: form-data; name="a"\r\ncontent-transfer-encoding: base64\r\n\r\n1\r\n--x--',
            id="encoded",
        ),
        pytest.param(field(b"a", b"1") * (MAX_PARTS + 1) + b"--x--", id="too many fields"),
        pytest.param(b"--x\r\nx: " + b"y" * 2_000 + b"\r\n\r\n1\r\n--x--", id="a long head"),
    ],
)
def test_bodies_that_are_no_form(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parts_in(TYPE, body)


@given(st.binary(max_size=300))
def test_any_body_is_a_form_or_a_clear_error(body: bytes) -> None:
    try:
        parts = parts_in(TYPE, b"--x\r\n" + body)
    except InvalidRequest:
        # Any other exception would fail the test: it would be a 500.
        return
    assert parts


@given(
    st.dictionaries(st.sampled_from(["prompt", "language", "model"]), st.text(max_size=40)),
    st.lists(st.sampled_from(["word", "segment"]), max_size=2),
    st.binary(max_size=300),
)
def test_what_goes_upstream_reads_back(fields: dict[str, str], list_: list[str], content: bytes) -> None:
    body = form({**fields, "granularities": list_, "stream": True, "temperature": 0.5}, Upload("wav", content))
    parts = parts_in(CONTENT_TYPE.encode(), body)
    assert [part.name for part in parts] == [
        *fields,
        *["granularities[]"] * len(list_),
        "stream",
        "temperature",
        "file",
    ]
    told = [part.content.decode() for part in parts[:-1]]
    assert told == [*(text for text in fields.values()), *list_, "true", "0.5"]
    assert parts[-1] == ("file", content, True)


def test_a_file_cannot_end_the_form() -> None:
    for fields, content in (({}, BOUNDARY.encode()), ({"prompt": f"x\r\n--{BOUNDARY}--"}, b"")):
        with pytest.raises(InvalidRequest):
            form(fields, Upload("wav", content))
