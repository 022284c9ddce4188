"""The form in which a backend gets a sound, built anew: only checked fields and the file are the client's."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final

from models.call import Upload
from models.errors import InvalidRequest

BOUNDARY: Final = secrets.token_hex(24)
"""One of each process, told to backends alone: what a client cannot know cannot be in its file on purpose."""
CONTENT_TYPE: Final = f"multipart/form-data; boundary={BOUNDARY}"

_DELIMITER: Final = BOUNDARY.encode()
_FIELD: Final = b'--%b\r\ncontent-disposition: form-data; name="%b"\r\n\r\n%b\r\n'
_FILE: Final = (
    b'--%b\r\ncontent-disposition: form-data; name="file"; filename="audio.%b"\r\n'
    b"content-type: %b\r\n\r\n%b\r\n--%b--\r\n"
)
_TYPES: Final = {
    "wav": b"audio/wav",
    "flac": b"audio/flac",
    "mp3": b"audio/mpeg",
    "ogg": b"audio/ogg",
    "m4a": b"audio/mp4",
    "webm": b"audio/webm",
}


def form(fields: Mapping[str, Any], upload: Upload) -> bytes:
    """The body of a form. The names of fields come from our tables, that of the file from what the file is."""
    pieces = []
    for name, value in fields.items():
        is_list = isinstance(value, list)
        for item in value if is_list else [value]:
            content = _text(item).encode()
            if _DELIMITER in content:
                raise _impossible()
            pieces.append(_FIELD % (_DELIMITER, f"{name}[]".encode() if is_list else name.encode(), content))
    if _DELIMITER in upload.content:
        raise _impossible()
    kind = upload.kind
    pieces.append(_FILE % (_DELIMITER, kind.encode(), _TYPES[kind], upload.content, _DELIMITER))
    return b"".join(pieces)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _impossible() -> InvalidRequest:
    return InvalidRequest("The file holds what ends it; send another.", param="file")
