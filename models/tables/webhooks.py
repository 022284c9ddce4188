"""What payment providers tell, and alerts on their way to those who asked for them."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from models.tables.columns import MOMENT, created_at, metadata, one_of

webhook_event = Table(
    "webhook_event",
    metadata,
    Column("id", Uuid, primary_key=True),
    # What a provider tells is taken once: the row and its booking commit together.
    Column("provider", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("received_at", MOMENT, nullable=False),
    Column("kind", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    # Why it was not booked, or by which other event it was.
    Column("reason", Text),
    # The payment's own, the same in every event about it.
    Column("reference", Text, nullable=False),
    # Only where there is such an organization.
    Column("organization_id", Uuid, ForeignKey("organization.id")),
    # In the minor unit of the currency that the provider names.
    Column("amount_minor", BigInteger),
    Column("currency", Text),
    # What else is kept of the event: nothing of cards, names or addresses.
    Column("payload", JSONB, nullable=False),
    one_of("kind", "succeeded", "refunded", "disputed"),
    one_of("state", "booked", "repeated", "unbooked"),
    CheckConstraint("octet_length(digest) = 32", name="digest"),
    UniqueConstraint("provider", "event_id"),
    Index("webhook_event_provider_reference_idx", "provider", "reference"),
)

alert = Table(
    "alert",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("kind", Text, nullable=False),
    # Null where it is the operator's alone.
    Column("organization_id", Uuid, ForeignKey("organization.id")),
    # What it is about: one that has not ended is not given again.
    Column("subject", Text, nullable=False),
    Column("detail", JSONB, nullable=False),
    created_at(),
    Column("ended_at", MOMENT),
    Index(
        "alert_once_key",
        "kind",
        "subject",
        unique=True,
        postgresql_where=text("ended_at is null"),
    ),
    Index("alert_organization_id_idx", "organization_id", "id"),
)

alert_endpoint = Table(
    "alert_endpoint",
    metadata,
    Column("id", Uuid, primary_key=True),
    # Whose alerts it gets; null is everybody's, and the operator's own.
    Column("organization_id", Uuid, ForeignKey("organization.id"), index=True),
    Column("url", Text, nullable=False),
    # The secret that alerts are signed with, sealed with the pepper.
    Column("sealed_secret", Text, nullable=False),
    Column("kinds", ARRAY(Text), nullable=False),
    created_at(),
    Column("removed_at", MOMENT),
)

alert_delivery = Table(
    "alert_delivery",
    metadata,
    # The outbox: written with the alert, and tried until the receiver has taken it.
    Column("alert_id", Uuid, ForeignKey("alert.id"), primary_key=True),
    Column("endpoint_id", Uuid, ForeignKey("alert_endpoint.id"), primary_key=True),
    Column("attempts", Integer, nullable=False, server_default="0"),
    # When it is tried next; null once it is delivered or given up.
    Column("next_at", MOMENT),
    Column("delivered_at", MOMENT),
    # The receiver's last status, or why there was none.
    Column("last_status", Integer),
    Column("last_error", Text),
    Index("alert_delivery_next_at_idx", "next_at", postgresql_where=text("next_at is not null")),
)
