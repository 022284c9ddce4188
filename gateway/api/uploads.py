"""A multipart form with one file, read piece by piece: what is no such form is refused before it costs anything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from models.errors import InvalidRequest

MOST_PARTS: Final = 16
LONGEST_FIELD_BYTES: Final = 1_024
LONGEST_FILENAME: Final = 255
_LONGEST_TYPE: Final = 512
_LONGEST_BOUNDARY: Final = 70
"""RFC 2046, section 5.1.1."""


class UploadForm:
    """Fed with a body's pieces; `take` gives the bytes of the file that have come since, `fields` the other values."""

    def __init__(self, content_types: Iterable[str]) -> None:
        """Raises `InvalidRequest` (415) where the content type is not that of a form."""
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._pieces: list[bytes] = []
        self._parts = 0
        self._header: list[bytes] = []
        self._value: list[bytes] = []
        self._disposition = ""
        self._name: str | None = None
        self._is_file = False
        self._field: list[bytes] = []
        self._is_over = False
        self._parser = MultipartParser(
            _boundary(list(content_types)),
            {
                "on_part_begin": self._part_begins,
                "on_header_field": lambda data, start, end: self._header.append(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.append(data[start:end]),
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_part_end": self._part_ends,
                "on_end": self._ends,
            },
        )

    def feed(self, piece: bytes) -> None:
        """A piece of the body."""
        try:
            self._parser.write(piece)
        except FormParserError:
            raise _malformed() from None

    def end(self) -> None:
        """The body is complete: so must the form be."""
        if not self._is_over:
            raise _malformed()
        if self.filename is None:
            raise InvalidRequest("The form has no file. Send one as the part 'file'.", param="file")

    def take(self) -> bytes:
        """The bytes of the file that have come since the last time."""
        taken, self._pieces = b"".join(self._pieces), []
        return taken

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise InvalidRequest(f"The form has more than {MOST_PARTS} parts.")
        self._name, self._is_file, self._disposition, self._field = None, False, "", []

    def _header_ends(self) -> None:
        name, value = b"".join(self._header).lower(), b"".join(self._value)
        self._header, self._value = [], []
        if name == b"content-disposition":
            self._disposition = value.decode("utf-8", "replace")

    def _headers_end(self) -> None:
        kind, options = parse_options_header(self._disposition.encode().decode("latin-1"))
        name = options.get(b"name")
        if kind != b"form-data" or name is None:
            raise _malformed()
        self._name = name.decode("utf-8", "replace")[:64]
        self._is_file = self._name == "file"
        if self._is_file:
            if self.filename is not None:
                raise InvalidRequest("The form has more than one file. Send one at a time.", param="file")
            self.filename = _clean(options.get(b"filename", b"").decode("utf-8", "replace"))
        elif self._name in self.fields:
            raise InvalidRequest(f"'{self._name}' was sent twice.", param=self._name)

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._pieces.append(data[start:end])
            return
        self._field.append(data[start:end])
        if sum(map(len, self._field)) > LONGEST_FIELD_BYTES:
            what = f"'{self._name}' is longer than {LONGEST_FIELD_BYTES} bytes."
            raise InvalidRequest(what, param=self._name)

    def _part_ends(self) -> None:
        if not self._is_file and self._name is not None:
            self.fields[self._name] = b"".join(self._field).decode("utf-8", "replace")

    def _ends(self) -> None:
        self._is_over = True


def _boundary(content_types: list[str]) -> bytes:
    """The boundary between the parts, from the only header that says so."""
    if len(content_types) == 1 and len(content_types[0]) <= _LONGEST_TYPE:
        kind, options = parse_options_header(content_types[0])
        boundary = options.get(b"boundary", b"")
        if kind == b"multipart/form-data" and 0 < len(boundary) <= _LONGEST_BOUNDARY:
            return boundary
    raise InvalidRequest("Send the file as multipart/form-data, with a boundary of at most 70 characters.", status=415)


def _malformed() -> InvalidRequest:
    return InvalidRequest("The body is not a complete multipart form. Send the whole of it, as its boundary says.")


def _clean(filename: str) -> str:
    """A name to show: of printable letters, without a path, and never empty."""
    name = "".join(letter for letter in filename.replace("\\", "/").rpartition("/")[2] if letter.isprintable())
    return name[:LONGEST_FILENAME] or "file"
