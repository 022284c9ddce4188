"""What an error of Postgres means to the caller: constraints of `models.tables` turned into sentences."""

from __future__ import annotations

from typing import Final

from sqlalchemy.exc import DBAPIError

from models.errors import Conflict, InvalidRequest, TollgateError, Unavailable

_CONFLICTS: Final = {
    "backend_name_key": "A backend of this name exists. Choose another name, or update that backend.",
    "model_pk": 'A model of this id exists. Update it, or enable it again with "disabled": false.',
    "price_book_pk": "A price book of this name exists. Choose another name; the parent of a book never changes.",
    "tax_rule_no_overlap": "A part of this time already has a tax rule of this country. Begin the new one later.",
    "price_version_no_overlap": "A part of this time already has a price of this book, model, meter and currency."
    " Choose a time that has none.",
    "revenue_share_no_overlap": "This party has a share of such calls at that time. End it, then publish another.",
    "model_cost_no_overlap": "A part of this time already has a cost of this model and kind.",
}
_INVALID: Final = {
    "price_version_model_id_fk": ("There is no such model. Create it before its prices.", "model"),
    "price_book_batch_book_fk": (
        "There is no such price book. Create it before it is named for batches.",
        "batch_book",
    ),
    "price_book_batch_book_check": (
        "A price book cannot name itself for batches. Name another, or none.",
        "batch_book",
    ),
    "price_book_parent_fk": ("There is no such price book. Create the parent before its children.", "parent"),
    "allowance_book_fk": ("There is no such price book. Create it, or publish a price in it, first.", "book"),
    "revenue_share_model_fk": ("There is no such model. Create it before its shares.", "model"),
    "model_cost_model_fk": ("There is no such model. Create it before its costs.", "model"),
    "machine_use_model_fk": ("There is no such model. Create it before what it ran on.", "model"),
    "model_fallback_id_fk": ("There is no such model to fall back to. Create it first.", "fallback"),
    "model_fallback_check": ("A model cannot stand in for itself.", "fallback"),
    "deployment_backend_id_fk": ("There is no such backend. Create it before its models.", "deployments"),
    "organization_prepaid_without_credit_check": (
        "A prepaid organization has no credit limit. Make it postpaid or hybrid, or leave the limit out.",
        "credit_limit",
    ),
    "credit_grant_expires_at_check": ("A credit grant must expire after it becomes effective.", "expires_at"),
}
_UNIQUE, _EXCLUSION, _LOCK_TIMEOUT = "23505", "23P01", "55P03"
_CLASS_INTEGRITY, _CLASS_DATA = "23", "22"
_CLASSES_OUTAGE = ("08", "40", "53", "57")
"""Lost connection, serialization or deadlock, no resources, shutdown or cancelled."""


def refusal(error: DBAPIError) -> TollgateError | None:
    """What a database error is for the caller, or None where it is a bug of ours."""
    state = str(getattr(error.orig, "sqlstate", None) or "")
    name = _constraint(error)
    if name in _CONFLICTS:
        return Conflict(_CONFLICTS[name])
    if name in _INVALID:
        message, param = _INVALID[name]
        return InvalidRequest(message, param=param)
    if state in (_UNIQUE, _EXCLUSION):
        return Conflict("Something of this name or id exists already.")
    if state.startswith(_CLASS_INTEGRITY):
        return InvalidRequest("The request names something that does not exist, or contradicts itself.")
    if state.startswith(_CLASS_DATA):
        return InvalidRequest("The request contains a value that cannot be stored.")
    if error.connection_invalidated or state == _LOCK_TIMEOUT or state.startswith(_CLASSES_OUTAGE):
        return Unavailable("The database cannot do this now. Nothing was changed; try again in a moment.")
    return None


def _constraint(error: DBAPIError) -> str | None:
    # The driver's own exception, which knows the name, is the cause of the one that SQLAlchemy wraps.
    cause = getattr(error.orig, "__cause__", None)
    name: str | None = getattr(cause, "constraint_name", None)
    return name
