"""What can keep an embedded part from starting, always as one sentence that says what to do."""

from __future__ import annotations

from models.errors import TollgateError


class CannotStart(TollgateError):
    """A part of `tollgate up` cannot start; the message is shown as it is and the exit code is 1."""
