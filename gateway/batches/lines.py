"""The lines of a batch's files: what one asks for, what is wrong with it, and how a result is written. Pure."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID

import msgspec

from billing.store.batches import Line

MOST_LINES: Final = 50_000
MOST_FAULTS: Final = 100
"""Faults that are told; after so many nobody reads on."""

_LONGEST_CUSTOM_ID: Final = 512
_TOO_LONG: Final = ("line_too_long", "A line is too long. Keep each below the largest body of a call.")
_encode: Final = msgspec.json.Encoder().encode


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with an input file, as the OpenAI API tells it; `line` counts from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class _Task(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _Result(msgspec.Struct):
    id: str
    custom_id: str
    response: _Response | None = None
    error: msgspec.Raw | None = None


_tasks: Final = msgspec.json.Decoder(_Task)
_bodies: Final = msgspec.json.Decoder(dict[str, Any])


class _WrongLine(Exception):
    """What is wrong with the line that is read."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.message = message
        self.param = param


class InputFile:
    """Reads an input file piece by piece; `lines` gives what can be run, `faults` says what is wrong."""

    def __init__(self, endpoint: str, longest_line_bytes: int) -> None:
        self.faults: list[Fault] = []
        self.total = 0
        self._endpoint = endpoint
        self._longest = longest_line_bytes
        self._seen: dict[str, int] = {}
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._number = 0
        self._is_given_up = False

    @property
    def is_hopeless(self) -> bool:
        """Whether it makes no sense to read on."""
        return self._is_given_up or len(self.faults) >= MOST_FAULTS

    def lines(self, piece: bytes) -> Iterator[Line]:
        """The lines that end in this piece."""
        *ended, rest = piece.split(b"\n")
        for end in ended:
            self._rest.append(end)
            whole, self._rest, self._rest_bytes = b"".join(self._rest), [], 0
            yield from self._line(whole)
        self._rest.append(rest)
        self._rest_bytes += len(rest)
        if self._rest_bytes > self._longest:
            # Kept no longer: it may be the whole file.
            self._rest, self._rest_bytes, self._is_given_up = [], 0, True
            self.faults.append(Fault(*_TOO_LONG, None, self._number + 1))

    def last_lines(self) -> Iterator[Line]:
        """The last line, which may have no line break, once all was read."""
        yield from self._line(b"".join(self._rest))
        if not self.total and not self.faults:
            self.faults.append(Fault("empty_file", "The file has no lines. Write a JSON object on each."))

    def _line(self, raw: bytes) -> Iterator[Line]:
        self._number += 1
        if self._number == 1:
            # Editors of some systems begin every file with it.
            raw = raw.removeprefix(BOM_UTF8)
        if self.is_hopeless or not raw.strip():
            return
        self.total += 1
        try:
            line = self._read(raw)
        except _WrongLine as wrong:
            self.faults.append(Fault(wrong.code, wrong.message, wrong.param, self._number))
        else:
            yield line

    def _read(self, raw: bytes) -> Line:
        if self.total > MOST_LINES:
            self._is_given_up = True
            raise _WrongLine("too_many_tasks", f"A batch has at most {MOST_LINES} lines. Split the file.")
        if len(raw) > self._longest:
            raise _WrongLine(*_TOO_LONG)
        try:
            task = _tasks.decode(raw)
            # The body by itself, too: what is too deep is found here, not at its turn.
            wanted = _bodies.decode(task.body)
        except msgspec.ValidationError as error:
            what = f"A line has custom_id, method, url and a body that is an object: {str(error)[:200]}."
            raise _WrongLine("invalid_request", what) from None
        except (msgspec.DecodeError, UnicodeError, ValueError, RecursionError) as error:
            raise _WrongLine("invalid_json_line", _not_json(raw, error)) from None
        self._check(task)
        if wanted.get("stream"):
            what = "'stream' makes no sense in a batch. Leave it out."
            raise _WrongLine("invalid_request", what, "body.stream")
        return Line(self._number, task.custom_id, _name(wanted.get("model")), bytes(task.body))

    def _check(self, task: _Task) -> None:
        custom_id = task.custom_id
        if not 0 < len(custom_id) <= _LONGEST_CUSTOM_ID or "\0" in custom_id:
            what = f"'custom_id' must have 1 to {_LONGEST_CUSTOM_ID} characters."
            raise _WrongLine("invalid_custom_id", what, "custom_id")
        before = self._seen.setdefault(custom_id, self._number)
        if before != self._number:
            raise _WrongLine("duplicate_custom_id", f"Line {before} has the same 'custom_id'.", "custom_id")
        if task.method != "POST":
            raise _WrongLine("invalid_method", "'method' must be POST.", "method")
        if task.url != self._endpoint:
            raise _WrongLine("mismatched_url", f"'url' must be the batch's endpoint, {self._endpoint}.", "url")


def _not_json(raw: bytes, error: Exception) -> str:
    """What to do about a line that cannot be read."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return "This line is not in UTF-8. Save the file as UTF-8."
    why = str(error).removeprefix("JSON is malformed: ")[:200]
    return f"This line is not a whole JSON object ({why}). Write one on each line, without line breaks in it."


def _name(model: object) -> str | None:
    """A model's name, if it can be one; what cannot is refused when the line is run."""
    return model[:256] if isinstance(model, str) and "\0" not in model else None


def own_error(code: str, message: str) -> bytes:
    """The error of a line that was answered by nobody."""
    return _encode({"code": code, "message": message})


def result_line(
    custom_id: str, line: int, batch_id: UUID, call_id: UUID | None, status: int | None, told: bytes
) -> bytes:
    """A line of an output file or error file: `told` is the answer's body, or without a status our own error."""
    # Byte for byte, but on one line.
    raw = msgspec.Raw(msgspec.json.format(told, indent=-1) if b"\n" in told else told)
    result = _Result(f"batch_req_{batch_id.hex}_{line}", custom_id)
    if status is None:
        result.error = raw
    else:
        result.response = _Response(status, str(call_id), raw)
    return _encode(result) + b"\n"
