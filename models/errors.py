"""The tree of what can go wrong. HTTP status is decided in one table, in `gateway/api/errors.py`.

TollgateError
 +-- InvalidRequest          the caller sent something that cannot be served
 |    +-- InvalidAmount
 |    +-- ModelNotFound
 +-- NotAuthenticated        no, unknown, revoked or expired key: one answer for all
 +-- NotPermitted            the key is known and may not do this
 +-- NotFound                the object does not exist, or is another tenant's
 +-- Conflict                the state of things, or an earlier request with the same key, forbids it
 +-- InsufficientBalance     the money does not cover the highest possible price
 +-- SpendLimitReached       nor does what is left of a limit that the customer or the operator has set
 +-- RateLimited             a limit of the tenant is used up for now
 +-- Unavailable             ours: the ledger cannot take a hold now; try again
 +-- BackendFailed           the model server failed
 |    +-- BackendTimedOut
 +-- BrokenPromise           a promise of the ledger does not hold; never caught, always loud
"""

from __future__ import annotations


class TollgateError(Exception):
    """Root of the tree. `message` is a sentence that tells the caller what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(TollgateError):
    """Bad input; `param` names the part of the request that is wrong, `code` is OpenAI's error code."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.status = status


class InvalidAmount(InvalidRequest):
    """Text that is no amount of money."""


class ModelNotFound(InvalidRequest):
    """The model does not exist, or is not sold to this caller."""


class NotAuthenticated(TollgateError):
    """No credential, or none that is known and alive."""


class NotPermitted(TollgateError):
    """A known caller without the right to do this."""


class NotFound(TollgateError):
    """Nothing here, as far as this caller may know."""


class Conflict(TollgateError):
    """The request contradicts the state of things."""


class InsufficientBalance(TollgateError):
    """Available money is less than the hold the call needs."""


class SpendLimitReached(TollgateError):
    """What may be spent this month by a key, a project or the organization does not cover the hold."""


class RateLimited(TollgateError):
    """A limit of the tenant is used up; `retry_after_ms` is when the same call would pass."""

    def __init__(self, message: str, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class Unavailable(TollgateError):
    """A part of Tollgate is down; nothing was charged."""

    def __init__(self, message: str, retry_after_ms: int = 1_000) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class BackendFailed(TollgateError):
    """The model server could not be reached or failed."""


class BackendTimedOut(BackendFailed):
    """The model server did not answer in time."""


class BrokenPromise(TollgateError):
    """The ledger contradicts itself."""
